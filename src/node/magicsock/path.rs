//! Which of two validated addresses of a peer is the better one (dataplane.md 4.5), and which addresses may
//! be probed at all.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// A direct latency below which nothing better is looked for.
pub(crate) const GOOD_ENOUGH: Duration = Duration::from_millis(5);

/// An address a pong came back for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Best {
    /// Where.
    pub(crate) addr: SocketAddr,
    /// Round trip.
    pub(crate) latency: Duration,
    /// Trusted until then; after it packets go by the relay too.
    pub(crate) trust_until: Instant,
}

fn place_points(ip: IpAddr) -> u128 {
    let place = match ip {
        IpAddr::V4(a) if a.is_loopback() => 50,
        IpAddr::V4(a) if a.is_link_local() => 30,
        IpAddr::V4(a) if a.is_private() => 20,
        IpAddr::V6(a) if a.is_loopback() => 50,
        IpAddr::V6(a) if a.is_unicast_link_local() => 30,
        IpAddr::V6(a) if a.is_unique_local() => 20,
        IpAddr::V4(_) | IpAddr::V6(_) => 0,
    };
    place + if ip.is_ipv6() { 10 } else { 0 }
}

/// Whether `a` is better than `b`, by points: how much faster in percent, and how near.
pub(crate) fn is_better(a: (SocketAddr, Duration), b: Option<(SocketAddr, Duration)>) -> bool {
    let Some(b) = b else {
        return true;
    };
    if a.0 == b.0 {
        return false;
    }
    let (mut a_points, mut b_points) = (place_points(a.0.ip()), place_points(b.0.ip()));
    let (la, lb) = (a.1.as_nanos(), b.1.as_nanos());
    if la < lb {
        a_points += 100 - la * 100 / lb;
    } else if lb < la {
        b_points += 100 - lb * 100 / la;
    }
    // A gain of one percent alone would make paths flap.
    if b_points == 0 && a_points <= 1 {
        return false;
    }
    a_points > b_points
}

/// Whether an address that somebody told us may be sent probes: never to many, never to nobody.
pub(crate) fn may_probe(addr: SocketAddr) -> bool {
    let ip_ok = match addr.ip() {
        IpAddr::V4(a) => !a.is_multicast() && !a.is_broadcast() && !a.is_unspecified() && a.octets()[0] < 240,
        IpAddr::V6(a) => !a.is_multicast() && !a.is_unspecified() && !a.is_unicast_link_local(),
    };
    ip_ok && addr.port() != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(addr: &str, ms: u64) -> (SocketAddr, Duration) {
        (addr.parse().unwrap(), Duration::from_millis(ms))
    }

    #[test]
    fn a_lan_path_wins_unless_the_other_is_much_faster() {
        let (lan, wan) = ("192.168.1.2:1", "203.0.113.9:1");
        assert!(is_better(at(lan, 10), Some(at(wan, 10))));
        assert!(is_better(at(lan, 10), Some(at(wan, 9))));
        assert!(!is_better(at(lan, 10), Some(at(wan, 7))));
        assert!(is_better(at(wan, 7), Some(at(lan, 10))));
    }

    #[test]
    fn one_percent_is_no_reason_and_equal_addresses_are_not_better() {
        assert!(!is_better(at("203.0.113.9:1", 99), Some(at("203.0.113.8:1", 100))));
        assert!(is_better(at("203.0.113.9:1", 90), Some(at("203.0.113.8:1", 100))));
        assert!(!is_better(at("203.0.113.9:1", 1), Some(at("203.0.113.9:1", 100))));
        assert!(is_better(at("203.0.113.9:1", 100), None));
    }

    #[test]
    fn ipv6_is_slightly_preferred() {
        assert!(is_better(at("[2001:db8::1]:1", 100), Some(at("203.0.113.8:1", 95))));
        assert!(!is_better(at("203.0.113.8:1", 95), Some(at("[2001:db8::1]:1", 100))));
    }

    #[test]
    fn groups_and_nobody_are_never_probed() {
        for bad in
            ["224.0.0.1:1", "255.255.255.255:1", "0.0.0.0:1", "1.2.3.4:0", "[ff02::1]:1", "[fe80::1]:1"]
        {
            assert!(!may_probe(bad.parse().unwrap()), "{bad}");
        }
        assert!(may_probe("192.168.1.1:41641".parse().unwrap()));
    }
}
