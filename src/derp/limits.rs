//! The relay's numbers in one place, and the gate that bounds what one network may open.
//!
//! A network is an IPv4 /24 or an IPv6 /64. Loopback is exempt, because a proxy in front makes all
//! clients look local.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Time for each step of the login (dataplane.md 1.2).
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Time one write may block before the client is cut off (dataplane.md 1.4).
pub const WRITE_DEADLINE: Duration = Duration::from_secs(2);
/// Keepalive interval; up to [`KEEP_ALIVE_JITTER_MS`] more.
pub const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Most milliseconds of jitter on [`KEEP_ALIVE`].
pub const KEEP_ALIVE_JITTER_MS: u64 = 5000;
/// Silence after which a client gives a relay up.
pub const SILENCE: Duration = Duration::from_secs(120);
/// Packets in each of the two queues of a connection.
pub const QUEUE: usize = 32;
/// Control frames (PeerGone and the like) waiting for one connection; the oldest is dropped.
pub const CONTROL_QUEUE: usize = 256;
/// Connections of one network.
pub const CONNECTIONS_PER_NETWORK: u32 = 2048;
/// New connections per second of one network.
pub const ACCEPTS_PER_SECOND: u32 = 200;
/// New connections of one network in a burst.
pub const ACCEPTS_BURST: u32 = 1024;
/// Connections in all, logged in or not.
pub const CONNECTIONS: u32 = 50_000;
/// Networks remembered; unknown ones are refused beyond it.
pub const NETWORKS: usize = 65_536;
/// How long shutdown waits for clients to hear of it.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);
/// What Restarting tells clients: reconnect after this many milliseconds.
pub const RECONNECT_IN_MS: u32 = 1000;
/// What Restarting tells clients: keep trying for this many milliseconds.
pub const TRY_FOR_MS: u32 = 30_000;

struct Network {
    open: u32,
    tokens: f64,
    at: Instant,
}

/// Counts and rates connections per network.
#[derive(Default)]
pub struct Gate {
    networks: HashMap<IpAddr, Network>,
    total: u32,
    pruned: Option<Instant>,
}

impl Gate {
    /// Asks for one connection. True must be followed by one [`Gate::leave`].
    pub fn enter(&mut self, from: IpAddr, now: Instant) -> bool {
        if self.total >= CONNECTIONS {
            return false;
        }
        let network = network_of(from);
        if !network.is_loopback() {
            if !self.networks.contains_key(&network) && self.networks.len() >= NETWORKS {
                self.prune(now);
                if self.networks.len() >= NETWORKS {
                    return false;
                }
            }
            let entry = self.networks.entry(network).or_insert(Network {
                open: 0,
                tokens: f64::from(ACCEPTS_BURST),
                at: now,
            });
            entry.tokens = refilled(entry, now);
            entry.at = now;
            if entry.open >= CONNECTIONS_PER_NETWORK || entry.tokens < 1.0 {
                return false;
            }
            entry.tokens -= 1.0;
            entry.open += 1;
        }
        self.total += 1;
        true
    }

    /// Gives a connection back.
    pub fn leave(&mut self, from: IpAddr) {
        self.total = self.total.saturating_sub(1);
        if let Some(entry) = self.networks.get_mut(&network_of(from)) {
            entry.open = entry.open.saturating_sub(1);
        }
    }

    fn prune(&mut self, now: Instant) {
        let recent = |at| now.duration_since(at) < Duration::from_secs(1);
        if self.pruned.is_some_and(recent) {
            return;
        }
        self.pruned = Some(now);
        self.networks.retain(|_, n| n.open > 0 || refilled(n, now) < f64::from(ACCEPTS_BURST));
    }
}

fn refilled(network: &Network, now: Instant) -> f64 {
    let gained = now.duration_since(network.at).as_secs_f64() * f64::from(ACCEPTS_PER_SECOND);
    (network.tokens + gained).min(f64::from(ACCEPTS_BURST))
}

fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        loopback if loopback.is_loopback() => loopback,
        IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4) & 0xffff_ff00).into(),
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Now;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_is_rated_and_counted_and_recovers() {
        let mut now = Now::read();
        let mut gate = Gate::default();
        let mut entered = 0;
        for n in 0..ACCEPTS_BURST + 1 {
            let host = u8::try_from(n % 250).unwrap();
            entered += u32::from(gate.enter(IpAddr::from([192, 0, 2, host]), now.mono));
        }
        assert_eq!(entered, ACCEPTS_BURST);
        assert!(gate.enter(ip("192.0.3.1"), now.mono));
        for _ in 0..10 {
            now = now.after(Duration::from_secs(4));
            while gate.enter(ip("192.0.2.7"), now.mono) {
                entered += 1;
            }
        }
        assert_eq!(entered, CONNECTIONS_PER_NETWORK);
        gate.leave(ip("192.0.2.9"));
        assert!(gate.enter(ip("192.0.2.9"), now.after(Duration::from_secs(1)).mono));
    }

    #[test]
    fn loopback_is_exempt_and_v6_counts_by_64() {
        let now = Now::read().mono;
        let mut gate = Gate::default();
        assert!((0..5000).all(|_| gate.enter(ip("::ffff:127.0.0.1"), now)));
        for n in 0..u128::from(ACCEPTS_BURST) {
            let host = Ipv6Addr::from(u128::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0)) + n);
            assert!(gate.enter(host.into(), now));
        }
        assert!(!gate.enter(ip("2001:db8::ffff:1"), now));
        assert!(gate.enter(ip("2001:db8:0:1::1"), now));
    }

    #[test]
    fn idle_networks_are_forgotten() {
        let now = Now::read();
        let mut gate = Gate::default();
        for n in 0..100_u8 {
            gate.enter(IpAddr::from([10, n, 0, 1]), now.mono);
            gate.leave(IpAddr::from([10, n, 0, 1]));
        }
        gate.enter(ip("10.200.0.1"), now.mono);
        gate.prune(now.after(Duration::from_secs(10)).mono);
        assert_eq!(gate.networks.len(), 1);
    }
}
