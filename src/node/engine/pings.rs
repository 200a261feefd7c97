//! Pings that go through the tunnel itself: TSMP, answered by the peer's engine, and ICMP echo, answered by
//! the peer's host when its filter lets it. Each carries eight random bytes, by which its answer is known.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{Engine, EngineEvent, Path, PingOutcome};
use crate::clock::Now;
use crate::keys::RegionId;
use crate::node::packet::{IpPacket, Proto, build_echo, build_ip};

/// How long an answer is waited for.
const LIMIT: Duration = Duration::from_secs(5);
/// Pings under way at most.
const MAX_WAITING: usize = 64;
/// Numbers below belong to disco pings.
const FIRST: u64 = 1 << 63;
const TSMP_PING: u8 = b'p';
const TSMP_PONG: u8 = b'o';

/// What is sent through the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Through {
    /// The engines' own protocol.
    Tsmp,
    /// An echo request of the host's protocol.
    Icmp,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    to: IpAddr,
    since: Instant,
}

/// The pings under way.
#[derive(Debug, Default)]
pub(super) struct Pings {
    waiting: BTreeMap<[u8; 8], Waiting>,
    sent: u64,
}

impl Pings {
    /// The ping this packet answers, and how long that took.
    pub(super) fn answered(&mut self, packet: &IpPacket, now: Instant) -> Option<(u64, Duration)> {
        if self.waiting.is_empty() {
            return None;
        }
        let h = packet.headers();
        let data = match (h.proto, packet.transport()) {
            (Proto::TSMP, [TSMP_PONG, rest @ ..]) => rest.first_chunk::<8>(),
            (Proto::ICMPV4, [0, 0, _, _, _, _, _, _, rest @ ..])
            | (Proto::ICMPV6, [129, 0, _, _, _, _, _, _, rest @ ..]) => rest.first_chunk::<8>(),
            _ => None,
        }?;
        if self.waiting.get(data)?.to != h.src {
            return None;
        }
        let done = self.waiting.remove(data)?;
        Some((done.id, now.saturating_duration_since(done.since)))
    }

    /// When the first one is given up.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.values().map(|w| w.since + LIMIT).min()
    }

    fn take_late(&mut self, now: Instant) -> Vec<u64> {
        let late = self.waiting.values().filter(|w| now >= w.since + LIMIT).map(|w| w.id).collect();
        self.waiting.retain(|_, w| now < w.since + LIMIT);
        late
    }
}

impl Engine {
    /// Pings a tailnet address through the tunnel; the outcome comes as an event.
    ///
    /// # Errors
    /// When no peer has the address, or it is of a family we have no address of.
    pub fn ping_through(&mut self, target: IpAddr, through: Through, now: Now) -> Result<u64, String> {
        let peer = self.pingable(target)?;
        if self.pings.waiting.len() >= MAX_WAITING {
            return Err("too many pings at once: wait for the ones under way".to_owned());
        }
        let own = self.netmap.own_addresses().find(|a| a.is_ipv4() == target.is_ipv4());
        let own = own.ok_or_else(|| format!("this node has no address of the family of {target}"))?;
        let data: [u8; 8] = self.rng.bytes();
        let packet = match through {
            Through::Tsmp => build_ip(own, target, Proto::TSMP, &[&[TSMP_PING], &data[..]].concat()),
            Through::Icmp => build_echo(own, target, &data),
        };
        let packet = packet.ok_or_else(|| format!("no ping can be made for {target}"))?;
        let id = FIRST + self.pings.sent;
        self.pings.sent += 1;
        self.pings.waiting.insert(data, Waiting { id, to: target, since: now.mono });
        self.send_plain(peer, &packet, true, now);
        self.settle(now);
        Ok(id)
    }

    /// Reports an answered ping with the way packets to the peer go now.
    pub(super) fn ping_answered(&mut self, from: IpAddr, id: u64, took: Duration, now: Now) {
        let way = self.router.find(from).map(|peer| self.magic.view(peer, now));
        let path = match way {
            Some((Some(addr), ..)) => Path::Direct(addr),
            Some((None, home, ..)) => Path::Derp(home.unwrap_or_default()),
            None => Path::Derp(RegionId::default()),
        };
        self.out.event(EngineEvent::Ping(PingOutcome { id, result: Ok((path, took)) }));
    }

    pub(super) fn give_up_pings(&mut self, now: Instant) {
        for id in self.pings.take_late(now) {
            let result = Err("no answer within 5 s".to_owned());
            self.out.event(EngineEvent::Ping(PingOutcome { id, result }));
        }
    }
}
