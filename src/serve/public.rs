//! Which address clients will find us by, guessed from our interfaces alone: nothing outside is asked.
//! A guess is printed with the flag that changes it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// What was guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Guess {
    /// The address.
    pub ip: IpAddr,
    /// How far it reaches.
    pub reach: Reach,
}

/// How far an address reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Everywhere.
    Public,
    /// This network only: clients elsewhere need another.
    Private,
    /// This machine only.
    Loopback,
}

/// How far `ip` reaches.
#[must_use]
pub(super) fn reach(ip: IpAddr) -> Reach {
    match ip.to_canonical() {
        ip if ip.is_loopback() => Reach::Loopback,
        IpAddr::V4(v4) if v4.is_private() || v4.is_link_local() || shared(v4) => Reach::Private,
        IpAddr::V6(v6) if v6.segments()[0] & 0xe000 != 0x2000 => Reach::Private,
        _ => Reach::Public,
    }
}

/// 100.64.0.0/10: carriers' own, and tailnets' (RFC 6598).
fn shared(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    a == 100 && (64..128).contains(&b)
}

/// Guesses from the listener's address when it is a definite one, else from the interfaces.
#[must_use]
pub(super) fn guess(listen: SocketAddr, interfaces: &[(String, IpAddr)]) -> Guess {
    let made = |ip: IpAddr| Guess { ip: ip.to_canonical(), reach: reach(ip) };
    if !listen.ip().is_unspecified() {
        return made(listen.ip());
    }
    let usable = |v4: bool, wanted: Reach| {
        interfaces.iter().find(|(name, ip)| {
            ip.is_ipv4() == v4 && reach(*ip) == wanted && !is_inner(name) && !is_link_local(*ip)
        })
    };
    let order =
        [(true, Reach::Public), (true, Reach::Private), (false, Reach::Public), (false, Reach::Private)];
    order
        .into_iter()
        // IPv6 private addresses (fd…) are as good as IPv4's inside one network.
        .find_map(|(v4, wanted)| usable(v4, wanted))
        .map_or_else(|| made(Ipv4Addr::LOCALHOST.into()), |(_, ip)| made(*ip))
}

/// Interfaces of containers, machines inside this one, and tunnels: no client is there.
fn is_inner(name: &str) -> bool {
    ["lo", "docker", "br-", "virbr", "tailscale", "tsd", "podman", "cni"]
        .iter()
        .any(|inner| name.starts_with(inner))
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local() || shared(v4),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
    }
}

/// All addresses of this machine with their interface's name.
#[must_use]
pub(super) fn interfaces() -> Vec<(String, IpAddr)> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    all.filter_map(|entry| {
        let address = entry.address?;
        let ip = if let Some(v4) = address.as_sockaddr_in() {
            IpAddr::V4(v4.ip())
        } else {
            IpAddr::V6(address.as_sockaddr_in6()?.ip())
        };
        Some((entry.interface_name, ip))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guessed(listen: &str, interfaces: &[(&str, &str)]) -> (String, Reach) {
        let list: Vec<(String, IpAddr)> =
            interfaces.iter().map(|(n, ip)| ((*n).to_owned(), ip.parse().unwrap())).collect();
        let guess = guess(listen.parse().unwrap(), &list);
        (guess.ip.to_string(), guess.reach)
    }

    #[test]
    fn public_addresses_come_first_and_inner_ones_never() {
        let lo = ("lo", "127.0.0.1");
        let all = [
            lo,
            ("docker0", "172.17.0.1"),
            ("eth0", "10.0.0.5"),
            ("eth1", "203.0.113.9"),
            ("eth1", "2001:db8::1"),
        ];
        assert_eq!(guessed("[::]:8080", &all), ("203.0.113.9".into(), Reach::Public));
        assert_eq!(guessed("[::]:8080", &all[..3]), ("10.0.0.5".into(), Reach::Private));
        assert_eq!(
            guessed("[::]:8080", &[lo, ("tailscale0", "100.64.0.1"), ("e", "100.65.0.1")]),
            ("127.0.0.1".into(), Reach::Loopback)
        );
        assert_eq!(
            guessed("[::]:8080", &[lo, ("e", "fe80::1"), ("e", "2001:db8::1")]),
            ("2001:db8::1".into(), Reach::Public)
        );
    }

    #[test]
    fn a_definite_listener_is_no_guess() {
        assert_eq!(guessed("127.0.0.1:1", &[("e", "203.0.113.9")]), ("127.0.0.1".into(), Reach::Loopback));
        assert_eq!(guessed("192.168.1.2:1", &[("e", "203.0.113.9")]), ("192.168.1.2".into(), Reach::Private));
    }
}
