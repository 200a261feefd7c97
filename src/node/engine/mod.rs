//! The packet engine: netmap, packets and time in; packets, requests and events out. Owns its children
//! and fixes the order of the stages (HOUSES.md 17); state that grows belongs to a child. Packets pass
//! through `flow`, netmaps through `apply`, and `view` shows what is.

mod apply;
mod flow;
mod pings;
mod view;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};

pub use self::pings::Through;
use super::disco;
use super::filter::Filter;
use super::magicsock::Magicsock;
use super::netcheck::{Finished, Netcheck};
use super::netmap::Netmap;
use super::outbox::{Ctx, Outbox};
use super::quad100::Quad100;
use super::router::Table;
use super::wg::{WireGuard, is_initiation};
use crate::clock::{Now, Rng};
use crate::keys::{DiscoPrivate, NodeId, NodePrivate, NodePublic, RegionId};
use crate::wire::{EndpointType, MapResponse, NetInfo, Node, UserProfile};

/// The parts of the engine that every child needs, borrowed apart from the children.
macro_rules! ctx {
    ($engine:expr, $now:expr) => {
        &mut Ctx { now: $now, rng: &mut $engine.rng, out: &mut $engine.out }
    };
}
use ctx;

/// Datagrams of unknown sessions looked into per second.
const MAX_REVIVALS: u32 = 20;

/// What a new engine is made from.
#[derive(Debug)]
pub struct EngineConfig {
    /// WireGuard identity.
    pub node_key: NodePrivate,
    /// Discovery identity; kept over restarts, unlike the official client's.
    pub disco_key: DiscoPrivate,
    /// Take subnet routes of peers.
    pub accept_routes: bool,
    /// Answer MagicDNS at 100.100.100.100.
    pub accept_dns: bool,
    /// Refuse all new incoming connections.
    pub shields_up: bool,
}

/// Where a datagram came from or goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Path {
    /// UDP on the underlay.
    Direct(SocketAddr),
    /// By the relay region.
    Derp(RegionId),
}

/// What the shell must do; drained with [`Engine::poll_output`] after every input.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Send a datagram. Consecutive ones to the same address may be sent as one batch.
    Udp {
        /// Where.
        to: SocketAddr,
        /// What.
        bytes: Bytes,
    },
    /// Send by a relay region; connect to it when it is not yet.
    Derp {
        /// Which.
        region: RegionId,
        /// To whom.
        to: NodePublic,
        /// What.
        bytes: Bytes,
    },
    /// Write an IP packet to the TUN. Only filtered packets get here.
    Tun(Bytes),
    /// Ask the host's resolver; answer by [`Engine::handle_dns_answer`].
    DnsForward {
        /// To match the answer.
        id: u64,
        /// Resolvers to race, in order; empty: the host's own.
        resolvers: Vec<SocketAddr>,
        /// The query message.
        query: Bytes,
        /// The query came by TCP (answers may be large).
        tcp: bool,
    },
    /// Something happened.
    Event(EngineEvent),
}

/// What the engine tells the shell.
#[derive(Debug, Clone, PartialEq)]
pub enum EngineEvent {
    /// The home region changed: note it to the relays and to control.
    HomeDerp(RegionId),
    /// Our endpoints changed: a lite update is due.
    Endpoints(Vec<(SocketAddr, EndpointType)>),
    /// A netcheck finished.
    NetInfo(Box<NetInfo>),
    /// A ping asked for by [`Engine::ping`] got its answer (one per pong) or timed out.
    Ping(PingOutcome),
    /// The set of addresses, routes or DNS settings for the OS changed; read [`Engine::os_config`].
    OsConfig,
    /// A region was not used for 60 s: its connection may go.
    DerpIdle(RegionId),
    /// Our own key expired, or control removed us.
    Expired,
    /// No STUN answer came: measure these regions by HTTPS and tell by [`Underlay::HttpsLatency`].
    NeedHttpsLatency(Vec<RegionId>),
}

/// The answer to a ping.
#[derive(Debug, Clone, PartialEq)]
pub struct PingOutcome {
    /// As returned by [`Engine::ping`].
    pub id: u64,
    /// The way it took and how long, or why there was no answer.
    pub result: Result<(Path, Duration), String>,
}

/// How the OS should be set up for the current netmap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OsConfig {
    /// Addresses of the interface (/32, /128).
    pub addresses: Vec<ipnet::IpNet>,
    /// Routes into the interface.
    pub routes: Vec<ipnet::IpNet>,
    /// Quad-100 is the host's resolver, with these search domains.
    pub dns: Option<DnsOs>,
}

/// The DNS part of [`OsConfig`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsOs {
    /// Search domains.
    pub search: Vec<String>,
    /// Suffixes quad-100 answers for, where the OS can split.
    pub match_domains: Vec<String>,
}

/// A peer as `status` shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerStatus {
    /// The netmap's node.
    pub node: Node,
    /// Direct address in use.
    pub cur_addr: Option<SocketAddr>,
    /// Its home region.
    pub home: Option<RegionId>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// Last WireGuard handshake.
    pub last_handshake: Option<DateTime<Utc>>,
    /// Last packet sent to it.
    pub last_write: Option<DateTime<Utc>>,
    /// User traffic within 45 s.
    pub active: bool,
    /// Its key has expired.
    pub expired: bool,
}

/// The engine's view of everything, for LocalAPI `status`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EngineStatus {
    /// Ourselves, once there is a netmap.
    pub self_node: Option<Node>,
    /// MagicDNS suffix without dots at the ends.
    pub magic_dns_suffix: String,
    /// Tailnet name.
    pub domain: String,
    /// Peers by id.
    pub peers: BTreeMap<NodeId, PeerStatus>,
    /// Users by id.
    pub users: BTreeMap<crate::keys::UserId, UserProfile>,
    /// Our endpoints.
    pub endpoints: Vec<SocketAddr>,
    /// Home region.
    pub home: Option<RegionId>,
    /// Packets dropped, by reason.
    pub drops: BTreeMap<&'static str, u64>,
    /// What went through the device and the sockets, and in which batches; the shell counts.
    pub io: IoStats,
}

/// Counters of the shell: packets over calls is the mean size of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoStats {
    /// The TUN device.
    pub tun: CallStats,
    /// The UDP sockets.
    pub udp: CallStats,
}

/// Counters of one road.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallStats {
    /// Trains received: reads of the device, or buffers the kernel filled.
    pub reads: u64,
    /// Packets they held.
    pub packets_in: u64,
    /// Writes.
    pub writes: u64,
    /// Packets they held.
    pub packets_out: u64,
    /// Reads and writes that failed.
    pub errors: u64,
}

/// What the shell measured or saw of the underlay.
#[derive(Debug, Clone, PartialEq)]
pub enum Underlay {
    /// Interface addresses (no loopback, no tailnet) and the bound UDP ports.
    Interfaces {
        /// Addresses.
        addresses: Vec<IpAddr>,
        /// Port of the IPv4 socket.
        port_v4: Option<u16>,
        /// Port of the IPv6 socket.
        port_v6: Option<u16>,
        /// A route or address changed so much that all paths are doubtful.
        major: bool,
    },
    /// A relay region is connected.
    DerpConnected(RegionId),
    /// A relay connection ended.
    DerpLost(RegionId),
    /// The relay says that a peer is not there, or not any more.
    DerpPeerGone {
        /// Where.
        region: RegionId,
        /// Who.
        key: NodePublic,
        /// What we sent found nobody there; else a connection ended.
        undelivered: bool,
    },
    /// Round trip to a region's relay by HTTPS, when UDP is blocked.
    HttpsLatency(RegionId, Duration),
    /// Resolved addresses of relay nodes, by node name (names are not resolved in the engine).
    DerpAddrs(BTreeMap<String, Vec<IpAddr>>),
    /// Control is reachable or not: the home region does not move while it is not.
    ControlUp(bool),
}

/// The engine. One owner, no locks, no I/O.
#[derive(Debug)]
pub struct Engine {
    node_public: NodePublic,
    accept_routes: bool,
    accept_dns: bool,
    shields_up: bool,
    rng: Rng,
    out: Outbox,
    /// Room for the datagrams of one packet, kept from packet to packet.
    sealed: Vec<Bytes>,
    netmap: Netmap,
    wg: WireGuard,
    magic: Magicsock,
    netcheck: Netcheck,
    filter: Filter,
    router: Table<NodeId>,
    quad100: Quad100,
    pings: pings::Pings,
    /// When datagrams of unknown sessions were looked into last, and how often in that second.
    revived: Option<(Instant, u32)>,
    /// What the shell was last told to set up.
    os: OsConfig,
    endpoints: Vec<(SocketAddr, EndpointType)>,
    control_up: bool,
    os_has_v6: bool,
    expired: bool,
    expiry_at: Option<Instant>,
}

impl Engine {
    /// An engine without a netmap: drops everything.
    #[must_use]
    pub fn new(config: EngineConfig, mut rng: Rng, _now: Now) -> Self {
        let node_public = config.node_key.public();
        Self {
            node_public,
            accept_routes: config.accept_routes,
            accept_dns: config.accept_dns,
            shields_up: config.shields_up,
            out: Outbox::default(),
            sealed: Vec::new(),
            netmap: Netmap::default(),
            wg: WireGuard::new(&config.node_key),
            magic: Magicsock::new(config.disco_key, node_public),
            netcheck: Netcheck::new(rng.u64()),
            filter: Filter::default(),
            router: Table::new(),
            quad100: Quad100::default(),
            pings: pings::Pings::default(),
            revived: None,
            os: OsConfig::default(),
            endpoints: Vec::new(),
            control_up: false,
            os_has_v6: false,
            expired: false,
            expiry_at: None,
            rng,
        }
    }

    /// Applies one message of the map stream. The first of a stream is a whole netmap: `fresh` says so.
    pub fn handle_map(&mut self, map: &MapResponse, fresh: bool, now: Now) {
        let first = self.netmap.node.is_none();
        let changes = self.netmap.apply(map, fresh, now);
        self.apply_changes(&changes, now);
        if first && !changes.derp {
            self.netcheck(now);
        }
        self.settle(now);
    }

    /// The whole current netmap as one map response, for keeping on disk; feed it back with
    /// `handle_map(.., true, ..)` after a restart without control.
    #[must_use]
    pub fn netmap(&self) -> Option<MapResponse> {
        self.netmap.snapshot()
    }

    /// Changes preferences that matter to packets.
    pub fn set_prefs(&mut self, accept_routes: bool, accept_dns: bool, shields_up: bool, now: Now) {
        self.accept_routes = accept_routes;
        self.accept_dns = accept_dns;
        self.shields_up = shields_up;
        self.rebuild_tables(now);
    }

    /// An IP packet the host sent into the TUN.
    pub fn handle_tun(&mut self, packet: &[u8], now: Now) {
        self.feed_tun(packet, now);
        self.end_batch(now);
    }

    /// One of many packets the host sent into the TUN; [`Engine::end_batch`] follows the last.
    pub fn feed_tun(&mut self, packet: &[u8], now: Now) {
        self.outbound(packet, now);
    }

    /// A datagram from the underlay.
    pub fn handle_udp(&mut self, from: SocketAddr, bytes: &[u8], now: Now) {
        self.feed_udp(from, BytesMut::from(bytes), now);
        self.end_batch(now);
    }

    /// One of many datagrams from the underlay; [`Engine::end_batch`] follows the last. Decrypted where
    /// it lies.
    pub fn feed_udp(&mut self, from: SocketAddr, bytes: BytesMut, now: Now) {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        self.datagram(from, bytes, now);
    }

    /// Does what the packets of a batch made due, once for all of them.
    pub fn end_batch(&mut self, now: Now) {
        self.settle(now);
    }

    /// A packet from a relay.
    pub fn handle_derp(&mut self, region: RegionId, from: NodePublic, bytes: &[u8], now: Now) {
        self.relayed(region, from, bytes, now);
        self.settle(now);
    }

    /// News of the underlay.
    pub fn handle_underlay(&mut self, news: Underlay, now: Now) {
        match news {
            Underlay::Interfaces { mut addresses, port_v4, port_v6, major } => {
                // Our own tunnel is no underlay.
                addresses.retain(|a| self.netmap.own_addresses().all(|own| own != *a));
                self.os_has_v6 = addresses.iter().any(IpAddr::is_ipv6);
                let changed = self.netcheck.set_interfaces(addresses, port_v4, port_v6);
                if major {
                    self.netcheck.forget_network();
                    self.magic.distrust_all();
                }
                if changed || major {
                    self.netcheck(now);
                }
                if major {
                    // Peers that only send to us would go on sending to where we were.
                    self.magic.search_active(ctx!(self, now));
                }
            }
            Underlay::DerpConnected(region) => {
                self.netcheck.note_frame(region, now.mono);
                for id in self.magic.reached_by(region) {
                    self.retry_handshake(id, now);
                }
            }
            Underlay::DerpLost(region) => {
                self.magic.relay_lost(region);
                self.out.derp_lost(region);
                if self.netcheck.home() == Some(region) {
                    self.netcheck(now);
                }
            }
            Underlay::DerpPeerGone { region, key, undelivered } => {
                self.magic.peer_gone(&key, region);
                if undelivered && let Some(id) = self.magic.by_key(&key) {
                    self.wg.undelivered(id, now.mono);
                }
            }
            Underlay::HttpsLatency(region, latency) => self.netcheck.note_https(region, latency),
            Underlay::DerpAddrs(addrs) => {
                if self.netcheck.set_resolved(addrs) {
                    self.netcheck(now);
                }
            }
            Underlay::ControlUp(up) => self.control_up = up,
        }
        self.settle(now);
    }

    /// The answer to [`Output::DnsForward`]; `None` when all resolvers failed.
    pub fn handle_dns_answer(&mut self, id: u64, answer: Option<&[u8]>, now: Now) {
        let (quad100, ctx) = (&mut self.quad100, ctx!(self, now));
        quad100.handle_answer(id, answer, ctx);
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(id) = self.wg.due(now.mono) {
            let datagrams = self.wg.handle_timeout(id, now.mono);
            self.transmit_again(id, datagrams, now);
        }
        let ctx = ctx!(self, now);
        self.magic.handle_timeout(ctx);
        let ctx = ctx!(self, now);
        self.quad100.handle_timeout(ctx);
        self.give_up_pings(now.mono);
        if self.expiry_at.is_some_and(|t| t <= now.mono) {
            self.check_expiry(now);
        }
        for region in self.out.sweep(self.netcheck.home(), now) {
            // The shell closes it, so no peer is answered there any more.
            self.magic.relay_lost(region);
        }
        self.settle(now);
    }

    /// What every input may have made due at once: the steps of a netcheck.
    fn settle(&mut self, now: Now) {
        while let Some(id) = self.magic.take_opened() {
            self.retry_handshake(id, now);
        }
        while let Some(id) = self.magic.take_heard() {
            let datagrams = self.wg.heard(id, now.mono);
            self.transmit_again(id, datagrams, now);
        }
        let wish = self.magic.take_netcheck_wish();
        let active = self.magic.active(now.mono);
        let ctx = ctx!(self, now);
        if wish {
            self.netcheck.start(false, ctx);
        }
        self.netcheck.plan_next(active, ctx);
        if let Some(done) = self.netcheck.handle_timeout(ctx) {
            self.netcheck.plan_next(active, ctx);
            self.netcheck_done(done, now);
        }
    }

    /// A way to a peer opened: a handshake that went nowhere before goes there now.
    fn retry_handshake(&mut self, id: NodeId, now: Now) {
        let datagrams = self.wg.retry(id, now.mono);
        self.transmit_again(id, datagrams, now);
    }

    /// Sends what a session has to say unasked. When that is an initiation once more, all that was done to
    /// reach the peer may have been lost with the last one, so that is done once more too.
    fn transmit_again(&mut self, id: NodeId, mut datagrams: Vec<Bytes>, now: Now) {
        if datagrams.first().is_some_and(|d| is_initiation(d)) {
            self.magic.search_again(id);
        }
        self.transmit(id, &mut datagrams, false, None, now);
    }

    /// A datagram of a session we lost: whoever may have sent it is offered a new one. Bounded, because
    /// anybody can send such datagrams.
    fn revive(&mut self, from: Path, relayed: Option<NodePublic>, now: Now) {
        let (since, count) = self.revived.unwrap_or((now.mono, 0));
        let (since, count) =
            if now.mono >= since + Duration::from_secs(1) { (now.mono, 0) } else { (since, count) };
        self.revived = Some((since, count + 1));
        if count >= MAX_REVIVALS {
            return;
        }
        let id = match (relayed, from) {
            (Some(key), _) => self.magic.by_key(&key),
            (None, Path::Direct(addr)) => self.magic.by_addr(addr),
            (None, Path::Derp(_)) => None,
        };
        if let Some((id, key)) = id.and_then(|id| Some((id, self.magic.key_of(id)?))) {
            let mut datagrams = self.wg.renew(id, &key, now.mono);
            self.transmit(id, &mut datagrams, false, Some(from), now);
        }
    }

    fn netcheck_done(&mut self, done: Finished, now: Now) {
        let before = self.netcheck.home();
        let home = self.netcheck.choose_home(self.control_up, now.mono);
        if let Some(region) = home.filter(|_| home != before) {
            self.out.event(EngineEvent::HomeDerp(region));
        }
        let own = done.endpoints.iter().map(|(a, _)| *a).collect();
        let ctx = ctx!(self, now);
        self.magic.set_endpoints(own, ctx);
        if self.endpoints != done.endpoints {
            self.endpoints.clone_from(&done.endpoints);
            self.out.event(EngineEvent::Endpoints(done.endpoints));
        }
        let info = done.report.net_info(home, self.os_has_v6);
        self.out.event(EngineEvent::NetInfo(Box::new(info)));
    }

    /// When to call [`Engine::handle_timeout`] next, and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        [
            self.wg.poll_timeout().map(|t| (t, "wireguard")),
            self.magic.poll_timeout(),
            self.netcheck.poll_timeout(),
            self.quad100.poll_timeout().map(|t| (t, "dns")),
            self.pings.poll_timeout().map(|t| (t, "ping")),
            self.expiry_at.map(|t| (t, "key expiry")),
            self.out.idle_at(self.netcheck.home()).map(|t| (t, "idle relay")),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop()
    }

    /// Sends a disco ping to the peer with this tailnet address; the outcome comes as an event.
    ///
    /// # Errors
    /// When no peer has the address.
    pub fn ping(&mut self, target: IpAddr, now: Now) -> Result<u64, String> {
        let id = self.pingable(target)?;
        let ctx = ctx!(self, now);
        let ping = self.magic.ping(id, ctx);
        self.settle(now);
        ping
    }

    /// The peer with this address, or why it cannot be pinged.
    fn pingable(&self, target: IpAddr) -> Result<NodeId, String> {
        if self.netmap.own_addresses().any(|a| a == target) {
            return Err(format!("{target} is local"));
        }
        if self.expired {
            return Err("this node's key has expired: log in again".to_owned());
        }
        self.router.find(target).ok_or_else(|| match self.whois(target) {
            Some((node, _)) => format!("the key of {} has expired", node.name),
            None => format!("no peer has the address {target}"),
        })
    }

    /// Starts a netcheck now (after a network change or for `netcheck`).
    pub fn netcheck(&mut self, now: Now) {
        if self.netmap.node.is_none() {
            // Nobody to tell, and no relay to ask.
            return;
        }
        let ctx = ctx!(self, now);
        self.netcheck.start(true, ctx);
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod hostile_tests;
