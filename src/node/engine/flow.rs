//! The way of a packet through the engine, both directions. Order: HOUSES.md 17, dataplane.md 5 and 6.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};

use super::{Ctx, Engine, EngineEvent, Path, ctx, disco};
use crate::clock::Now;
use crate::keys::{DiscoPublic, NodeId, NodePublic, RegionId};
use crate::node::filter::{CUT, Refused, Resets};
use crate::node::magicsock::PeerUpdate;
use crate::node::outbox::Outbox;
use crate::node::packet::{FromPeer, Headers, IpPacket, Permitted, Proto, build_ip, build_rst};
use crate::node::quad100::is_service;
use crate::node::wg::{UNKNOWN_SESSION, relay_source};
use crate::stun::message::is_stun;
use crate::wire::CapVer;

/// From this version on nodes tell their disco key through the tunnel (dataplane.md 6.5).
const TSMP_DISCO: CapVer = CapVer(144);
const TSMP_PING: u8 = b'p';
const TSMP_PONG: u8 = b'o';
const TSMP_DISCO_KEY: u8 = b'a';
const TSMP_REJECT: u8 = b'!';

/// A Geneve header of a peer relay (dataplane.md 5): not supported yet, so what it wraps is dropped.
fn is_geneve(b: &[u8]) -> bool {
    matches!(b, [a, c, 0x7a, 0x11 | 0x12, _, _, _, 0, ..] if a & 0xc0 == 0 && c & 0x3f == 0)
}

impl Engine {
    /// A packet of the host, to a peer or to the resolver.
    pub(super) fn outbound(&mut self, packet: &[u8], now: Now) {
        if self.expired || self.netmap.node.is_none() {
            self.out.dropped("no netmap");
            return;
        }
        let Some(h) = Headers::parse(packet) else {
            self.out.dropped("not an ip packet");
            return;
        };
        if is_service(h.dst) {
            if self.accept_dns
                && let Some(packet) = IpPacket::new(Bytes::copy_from_slice(packet))
            {
                self.quad100.handle(&packet, ctx!(self, now));
            }
            return;
        }
        if let Err(reason) = self.filter.outbound(&h) {
            self.out.dropped(reason);
            if reason == CUT {
                self.reset_host(packet);
            }
            return;
        }
        let Some(id) = self.router.find(h.dst) else {
            self.out.dropped("no peer");
            return;
        };
        let packet = packet.get(..h.len).unwrap_or(packet);
        if h.proto == Proto::UDP && self.is_own_disco(packet, &h) {
            // Our own probes routed back into the tunnel would loop.
            self.out.dropped("own disco");
            return;
        }
        self.send_plain(id, packet, true, now);
    }

    /// The host still sends on a connection that was cut: it gets a reset, as if the peer had gone away.
    fn reset_host(&mut self, packet: &[u8]) {
        let packet = IpPacket::new(Bytes::copy_from_slice(packet));
        if let Some(rst) = packet.as_ref().and_then(build_rst) {
            self.out.tun(Permitted::own(rst.into()));
        }
    }

    fn is_own_disco(&self, packet: &[u8], h: &Headers) -> bool {
        let payload = packet.get(h.transport + 8..).unwrap_or_default();
        disco::is_disco(payload)
            && disco::Sealed::parse(payload).is_some_and(|s| s.sender == self.magic.disco_public())
    }

    /// Encrypts a packet for a peer and sends it by the best way.
    pub(super) fn send_plain(&mut self, id: NodeId, plain: &[u8], user: bool, now: Now) {
        let Some(key) = self.magic.key_of(id) else {
            self.out.dropped("no peer");
            return;
        };
        let mut sealed = std::mem::take(&mut self.sealed);
        self.wg.encapsulate(id, &key, plain, now.mono, &mut sealed);
        self.transmit(id, &mut sealed, user, None, now);
        sealed.clear();
        self.sealed = sealed;
    }

    /// Sends WireGuard datagrams to a peer; `fallback` when no way to it is known yet.
    pub(super) fn transmit(
        &mut self,
        id: NodeId,
        datagrams: &mut Vec<Bytes>,
        user: bool,
        fallback: Option<Path>,
        now: Now,
    ) {
        if datagrams.is_empty() && !user {
            return;
        }
        let Some(mut route) = self.magic.route(id, user, ctx!(self, now)) else {
            return;
        };
        let key = route.key;
        if route.udp.is_none() && route.derp.is_none() {
            match fallback {
                Some(Path::Direct(addr)) => route.udp = Some(addr),
                Some(Path::Derp(region)) => route.derp = Some(region),
                None => {
                    if !datagrams.is_empty() {
                        self.out.dropped("no path to the peer");
                    }
                    return;
                }
            }
        }
        for datagram in datagrams.drain(..) {
            match (route.udp, route.derp) {
                (Some(addr), Some(region)) => {
                    self.out.udp(addr, datagram.clone());
                    self.out.derp(region, key, datagram, now);
                }
                (Some(addr), None) => self.out.udp(addr, datagram),
                (None, Some(region)) => self.out.derp(region, key, datagram, now),
                (None, None) => {}
            }
        }
    }

    /// A datagram of the underlay: STUN, disco or WireGuard.
    pub(super) fn datagram(&mut self, from: SocketAddr, bytes: BytesMut, now: Now) {
        // One byte alone is a sentinel of some senders' segmentation work-around.
        if bytes.len() <= 1 {
            return;
        }
        if bytes.get(1) == Some(&1) && is_stun(&bytes) {
            if !self.netcheck.handle_stun(from, &bytes, now.mono) {
                self.out.dropped("stun without request");
            }
        } else if is_geneve(&bytes) {
            self.out.dropped("geneve");
        } else if self.expired {
            self.out.dropped("expired");
        } else if disco::is_disco(&bytes) {
            let ctx = ctx!(self, now);
            if let Err(reason) = self.magic.handle_disco(Path::Direct(from), None, &bytes, ctx) {
                self.out.dropped(reason);
            }
        } else {
            self.wireguard(Path::Direct(from), None, bytes, now);
        }
    }

    /// A packet of a relay: the sender is known by its node key.
    pub(super) fn relayed(&mut self, region: RegionId, from: NodePublic, bytes: &[u8], now: Now) {
        self.netcheck.note_frame(region, now.mono);
        let Some(id) = self.magic.by_key(&from).filter(|_| !self.expired) else {
            self.out.dropped("relayed by a stranger");
            return;
        };
        self.magic.note_relay(id, region);
        if is_geneve(bytes) {
            self.out.dropped("geneve");
        } else if disco::is_disco(bytes) {
            let ctx = ctx!(self, now);
            if let Err(reason) = self.magic.handle_disco(Path::Derp(region), Some(id), bytes, ctx) {
                self.out.dropped(reason);
            }
        } else {
            self.wireguard(Path::Derp(region), Some(from), bytes.into(), now);
        }
    }

    fn wireguard(&mut self, from: Path, relayed: Option<NodePublic>, bytes: BytesMut, now: Now) {
        let source = match (from, &relayed) {
            (Path::Direct(addr), _) => addr,
            (Path::Derp(_), Some(key)) => relay_source(key),
            (Path::Derp(_), None) => return,
        };
        let (wg, magic) = (&mut self.wg, &self.magic);
        let mut outcome = wg.decapsulate(source, bytes, now.mono, |key| magic.by_key(key));
        if let Some(cookie) = outcome.reply {
            self.out.send(from, relayed.unwrap_or_default(), cookie, now);
        }
        if let Some(reason) = outcome.dropped {
            self.out.dropped(reason);
            if reason == UNKNOWN_SESSION {
                self.revive(from, relayed, now);
            }
        }
        let Some(id) = outcome.peer else {
            return;
        };
        self.transmit(id, &mut outcome.send, false, Some(from), now);
        if outcome.established {
            self.established(id, now);
        }
        if let Some(packet) = outcome.packet {
            self.deliver(id, packet, now);
        }
    }

    /// A session stands: tell our disco key first, then send what waited.
    fn established(&mut self, id: NodeId, now: Now) {
        let peer = self.netmap.peers.get(&id).filter(|p| p.cap >= TSMP_DISCO);
        let theirs = peer.and_then(|p| p.addresses.first()).map(ipnet::IpNet::addr);
        let ours = theirs.and_then(|t| {
            let mut own = self.netmap.own_addresses();
            own.find(|a| a.is_ipv4() == t.is_ipv4())
        });
        if let (Some(src), Some(dst)) = (ours, theirs) {
            let mut advert = vec![TSMP_DISCO_KEY];
            advert.extend_from_slice(self.magic.disco_public().as_bytes());
            if let Some(packet) = build_ip(src, dst, Proto::TSMP, &advert) {
                self.send_plain(id, &packet, false, now);
            }
        }
        let mut queued = self.wg.flush(id);
        self.transmit(id, &mut queued, false, None, now);
    }

    /// A decrypted packet: source, TSMP, filter, and then to the host.
    fn deliver(&mut self, id: NodeId, bytes: Bytes, now: Now) {
        let Some(packet) = IpPacket::new(bytes) else {
            self.out.dropped("not an ip packet");
            return;
        };
        // A subnet route may cover them, but nobody speaks for the resolver or for ourselves.
        let reserved = |src| is_service(src) || self.netmap.own_addresses().any(|a| a == src);
        let routed = |src| self.router.find(src) == Some(id) && !reserved(src);
        let Some(packet) = FromPeer::check(packet, routed) else {
            self.out.dropped("source not of the peer");
            return;
        };
        if let Some((ping, took)) = self.pings.answered(packet.packet(), now.mono) {
            self.ping_answered(packet.packet().headers().src, ping, took, now);
            return;
        }
        if packet.packet().headers().proto == Proto::TSMP {
            self.handle_tsmp(id, packet.packet(), now);
            return;
        }
        let jailed = self.netmap.peers.get(&id).is_none_or(|p| p.is_jailed);
        match self.filter.inbound(packet, jailed) {
            Ok(packet) => self.out.tun(packet),
            Err(refused) => {
                self.out.dropped(refused.reason);
                self.notify(id, &refused, now);
                if let Some(resets) = refused.resets {
                    self.reset(id, resets, now);
                }
            }
        }
    }

    /// Tells both ends of a connection that it was cut, as neither would learn it otherwise.
    fn reset(&mut self, id: NodeId, resets: Resets, now: Now) {
        if let Some(packet) = resets.to_host {
            self.out.tun(packet);
        }
        if let Some(packet) = resets.to_peer {
            self.send_plain(id, &packet, false, now);
        }
    }

    /// Tells the sender of a refused SYN why, as there is no other answer.
    fn notify(&mut self, id: NodeId, refused: &Refused, now: Now) {
        let Some(reason) = refused.notify else {
            return;
        };
        let h = &refused.headers;
        let mut text = vec![TSMP_REJECT, h.proto.0, reason];
        text.extend_from_slice(&h.src_port.to_be_bytes());
        text.extend_from_slice(&h.dst_port.to_be_bytes());
        if let Some(packet) = build_ip(h.dst, h.src, Proto::TSMP, &text) {
            self.send_plain(id, &packet, false, now);
        }
    }

    fn handle_tsmp(&mut self, id: NodeId, packet: &IpPacket, now: Now) {
        let h = *packet.headers();
        match packet.transport() {
            [TSMP_PING, rest @ ..] => {
                let Some(data) = rest.first_chunk::<8>() else {
                    return;
                };
                let mut text = vec![TSMP_PONG];
                text.extend_from_slice(data);
                // No PeerAPI.
                text.extend_from_slice(&[0, 0]);
                let own = self.netmap.own_addresses().any(|a| a == h.dst);
                if let Some(pong) = build_ip(h.dst, h.src, Proto::TSMP, &text).filter(|_| own) {
                    self.send_plain(id, &pong, false, now);
                }
            }
            [TSMP_DISCO_KEY, rest @ ..] => {
                if let Some(key) = rest.first_chunk::<32>() {
                    self.set_disco(id, DiscoPublic::from_bytes(*key));
                }
            }
            [TSMP_REJECT, proto, reason, ..] => {
                tracing::debug!(
                    proto,
                    reason = %char::from(*reason),
                    peer = %h.src,
                    "a peer refused a connection"
                );
            }
            _ => self.out.dropped("unknown tsmp"),
        }
    }

    /// A peer told its disco key by its own tunnel: no better witness.
    fn set_disco(&mut self, id: NodeId, key: DiscoPublic) {
        if key.is_zero() {
            return;
        }
        self.netmap.set_disco(id, key);
        if self.magic.set_disco(id, key) == PeerUpdate::Restarted {
            // The advert came by a session that the restarted peer made itself: it is good.
            tracing::debug!("a peer told a new disco key");
            if let Some(node) = self.netmap.peers.get(&id) {
                self.magic.set_peer(node);
            }
        }
    }

    /// Reports that our own key expired, once.
    pub(super) fn set_expired(&mut self, expired: bool) {
        if expired && !self.expired {
            let out: &mut Outbox = &mut self.out;
            out.event(EngineEvent::Expired);
        }
        self.expired = expired;
    }
}
