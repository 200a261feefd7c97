//! Watches the host's network: interface addresses and default routes, by netlink multicast.
//!
//! Bursts are gathered for a quarter of a second; what did not change the picture is not reported.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// The host's network as far as paths depend on it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkState {
    /// Addresses of all interfaces that are up, without loopback, link-local IPv6 and tailnet ones.
    pub addresses: BTreeSet<IpAddr>,
    /// Interfaces and gateways of the default routes.
    pub default_routes: BTreeSet<String>,
}

/// How long a burst of messages is gathered.
const GATHER: Duration = Duration::from_millis(250);

/// Whether an address belongs to tailnets: 100.64.0.0/10 or fd7a:115c:a1e0::/48.
#[must_use]
pub fn is_tailnet(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            a == 100 && b & 0xc0 == 64
        }
        IpAddr::V6(v6) => v6.segments().starts_with(&[0xfd7a, 0x115c, 0xa1e0]),
    }
}

impl LinkState {
    /// Reads the present picture; `tun` is our own interface.
    #[must_use]
    pub fn read(tun: &str) -> Self {
        let mut addresses = BTreeSet::new();
        for interface in nix::ifaddrs::getifaddrs().into_iter().flatten() {
            let up = interface.flags.contains(nix::net::if_::InterfaceFlags::IFF_UP);
            if interface.interface_name == tun || !up {
                continue;
            }
            let Some(address) = interface.address else {
                continue;
            };
            let ip: IpAddr = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => v4.ip().into(),
                (None, Some(v6)) => v6.ip().into(),
                (None, None) => continue,
            };
            let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
            if !ip.is_loopback() && !link_local && !is_tailnet(ip) {
                addresses.insert(ip);
            }
        }
        let v4 = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
        let v6 = std::fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
        Self { addresses, default_routes: default_routes(&v4, &v6, tun) }
    }
}

/// `interface gateway` of each default route in the kernel's two tables.
fn default_routes(v4: &str, v6: &str, tun: &str) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for line in v4.lines().skip(1) {
        let mut words = line.split_whitespace();
        if let (Some(dev), Some("00000000"), Some(gateway)) = (words.next(), words.next(), words.next())
            && dev != tun
        {
            out.insert(format!("{dev} {gateway}"));
        }
    }
    let any = "0".repeat(32);
    for line in v6.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [dst, "00", _, _, gateway, .., dev] = words.as_slice()
            && *dst == any
            && *dev != tun
            && *dev != "lo"
        {
            out.insert(format!("{dev} {gateway}"));
        }
    }
    out
}

/// Starts watching; the channel always holds the latest picture. Ends with its `JoinSet`.
///
/// # Errors
/// When netlink cannot be opened.
pub fn watch_links(tun: String, tasks: &mut JoinSet<()>) -> std::io::Result<watch::Receiver<LinkState>> {
    let (connection, _handle, mut messages) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ])?;
    let (tx, rx) = watch::channel(LinkState::read(&tun));
    tasks.spawn(connection);
    tasks.spawn(async move {
        while messages.next().await.is_some() {
            let gathered = tokio::time::sleep(GATHER);
            tokio::pin!(gathered);
            loop {
                tokio::select! {
                    () = &mut gathered => break,
                    message = messages.next() => if message.is_none() { break },
                }
            }
            let state = LinkState::read(&tun);
            tx.send_if_modified(|old| {
                let changed = *old != state;
                *old = state;
                changed
            });
        }
    });
    Ok(rx)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_routes_are_found_in_both_tables() {
        let v4 = "Iface\tDestination\tGateway\tFlags\neth0\t00000000\t0102A8C0\t0003\n\
                  eth0\t0002A8C0\t00000000\t0001\ntsd0\t00000000\t00000000\t0001\n";
        let v6 = format!(
            "{z} 00 {z} 00 fe800000000000000000000000000001 00000400 1 0 450003 eth1\n\
             {z} 00 {z} 00 {z} ffffffff 1 0 200200 lo\n",
            z = "0".repeat(32)
        );
        let routes = default_routes(v4, &v6, "tsd0");
        let expected = ["eth0 0102A8C0".to_owned(), "eth1 fe800000000000000000000000000001".to_owned()];
        assert_eq!(routes, BTreeSet::from(expected));
    }

    #[test]
    fn tailnet_addresses_are_known() {
        assert!(is_tailnet("100.127.0.1".parse().unwrap()));
        assert!(!is_tailnet("100.128.0.1".parse().unwrap()));
        assert!(is_tailnet("fd7a:115c:a1e0::1".parse().unwrap()));
        assert!(!is_tailnet("fd7a:115c:a1e1::1".parse().unwrap()));
    }
}
