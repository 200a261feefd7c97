//! The relays that clients are told of: ours, as seen from outside, and those of the configuration.

use std::net::IpAddr;

use crate::config::{Config, Region, ServerUrl};
use crate::keys::RegionId;
use crate::wire::{DerpMap, DerpNode, DerpRegion};

/// What the map needs to know of the running server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reachable {
    /// What clients dial.
    pub url: ServerUrl,
    /// The TLS listener's port; `None` when off.
    pub tls_port: Option<u16>,
    /// The STUN listener's port; `None` when off.
    pub stun_port: Option<u16>,
    /// SHA-256 of the self-signed certificate; `None` with CA-issued ones.
    pub pin: Option<String>,
}

/// Builds the map. Without TLS, neither here nor at a proxy, our region is left out: clients dial
/// relays by TLS only, and a home that cannot be dialled is worse than none.
#[must_use]
pub(super) fn build(config: &Config, reachable: &Reachable) -> DerpMap {
    let mut map = DerpMap::default();
    if config.derp.enabled
        && let Some(port) = relay_port(config, reachable)
    {
        let id = RegionId(config.derp.region_id);
        map.regions.insert(
            id,
            DerpRegion {
                region_id: id,
                region_code: config.derp.region_code.clone(),
                region_name: config.derp.region_name.clone(),
                nodes: vec![our_node(config, reachable, port)],
                ..DerpRegion::default()
            },
        );
    }
    for region in &config.derp.regions {
        map.regions.insert(RegionId(region.id), foreign(region));
    }
    map
}

/// The port on which clients reach our relay by TLS.
#[must_use]
pub(super) fn relay_port(config: &Config, reachable: &Reachable) -> Option<u16> {
    let proxied = (reachable.url.https && reachable.pin.is_none()).then_some(reachable.url.port);
    let behind_proxy = proxied.filter(|_| config.tls_files.is_none());
    config
        .derp
        .public_port
        .filter(|_| behind_proxy.is_some() || reachable.tls_port.is_some())
        .or(behind_proxy)
        .or(reachable.tls_port)
}

fn our_node(config: &Config, reachable: &Reachable, port: u16) -> DerpNode {
    let id = RegionId(config.derp.region_id);
    let host = config.derp.hostname.clone().unwrap_or_else(|| reachable.url.host.clone());
    let ip: Option<IpAddr> = host.parse().ok();
    // A name is left to DNS (empty); an address is literal and switches the other family off, which
    // clients would otherwise look up in vain.
    let literal = |v4: bool| match ip {
        None => String::new(),
        Some(ip) if ip.is_ipv4() == v4 => ip.to_string(),
        Some(_) => "none".to_owned(),
    };
    let public_stun = reachable.stun_port.map(|own| config.stun_public_port.unwrap_or(own));
    DerpNode {
        name: format!("{id}a"),
        region_id: id,
        host_name: match ip {
            Some(IpAddr::V6(ip)) if port == 443 => format!("[{ip}]"),
            _ => host.clone(),
        },
        cert_name: reachable.pin.as_ref().map(|pin| format!("sha256-raw:{pin}")).unwrap_or_default(),
        ipv4: config.derp.ipv4.clone().unwrap_or_else(|| literal(true)),
        ipv6: config.derp.ipv6.clone().unwrap_or_else(|| literal(false)),
        stun_port: match public_stun {
            None => -1,
            Some(3478) => 0,
            Some(port) => i32::from(port),
        },
        derp_port: if port == 443 { 0 } else { port },
        // Clients never probe loopback unless told to (control.md 13.1).
        stun_test_ip: ip.filter(IpAddr::is_loopback).map(|ip| ip.to_string()).unwrap_or_default(),
        ..DerpNode::default()
    }
}

fn foreign(region: &Region) -> DerpRegion {
    let id = RegionId(region.id);
    let nodes = region.relays.iter().map(|relay| {
        let raw = &relay.raw;
        DerpNode {
            name: raw.name.clone(),
            region_id: id,
            host_name: raw.hostname.clone(),
            cert_name: raw.cert_name.clone(),
            ipv4: raw.ipv4.clone(),
            ipv6: raw.ipv6.clone(),
            stun_port: raw.stun_port,
            stun_only: raw.stun_only,
            derp_port: raw.derp_port,
            ..DerpNode::default()
        }
    });
    DerpRegion {
        region_id: id,
        region_code: region.code.clone(),
        region_name: region.name.clone(),
        nodes: nodes.collect(),
        ..DerpRegion::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{RawConfig, check};

    fn node(url: &str, tls: Option<u16>, pin: Option<&str>, raw: &RawConfig) -> Option<DerpNode> {
        let config = check(raw, "/s".as_ref()).unwrap();
        let reachable = Reachable {
            url: ServerUrl::parse(url).unwrap(),
            tls_port: tls,
            stun_port: Some(3478),
            pin: pin.map(str::to_owned),
        };
        let map = build(&config, &reachable);
        map.regions.get(&RegionId(900)).and_then(|r| r.nodes.first()).cloned()
    }

    #[test]
    fn a_server_by_address_is_pinned_and_literal() {
        let n = node("http://203.0.113.9:8080", Some(443), Some("ab"), &RawConfig::default()).unwrap();
        assert_eq!(
            (n.host_name.as_str(), n.ipv4.as_str(), n.ipv6.as_str()),
            ("203.0.113.9", "203.0.113.9", "none")
        );
        assert_eq!((n.derp_port, n.stun_port, n.cert_name.as_str()), (0, 0, "sha256-raw:ab"));
        assert_eq!((n.stun_test_ip.as_str(), n.insecure_for_tests), ("", false));
        let n = node("http://127.0.0.1:8080", Some(8443), Some("ab"), &RawConfig::default()).unwrap();
        assert_eq!((n.derp_port, n.ipv4.as_str(), n.stun_test_ip.as_str()), (8443, "127.0.0.1", "127.0.0.1"));
    }

    #[test]
    fn an_ipv6_address_has_brackets_where_clients_add_none() {
        let raw = RawConfig::default();
        let n = node("http://[2001:db8::9]:8080", Some(443), Some("ab"), &raw).unwrap();
        assert_eq!((n.host_name.as_str(), n.host(), n.derp_port), ("[2001:db8::9]", "2001:db8::9", 0));
        assert_eq!((n.ipv4.as_str(), n.ipv6.as_str()), ("none", "2001:db8::9"));
        let n = node("http://[2001:db8::9]:8080", Some(8443), Some("ab"), &raw).unwrap();
        assert_eq!((n.host_name.as_str(), n.host()), ("2001:db8::9", "2001:db8::9"));
    }

    #[test]
    fn no_tls_means_no_region_unless_a_proxy_has_it() {
        assert_eq!(node("http://203.0.113.9:8080", None, None, &RawConfig::default()), None);
        let proxied = RawConfig { trusted_proxies: Some(vec!["10.0.0.1".into()]), ..RawConfig::default() };
        let n = node("https://vpn.example.com", None, None, &proxied).unwrap();
        assert_eq!(
            (n.host_name.as_str(), n.derp_port, n.ipv4.as_str(), n.cert_name.as_str()),
            ("vpn.example.com", 0, "", "")
        );
    }

    #[test]
    fn outside_ports_and_regions_replace_ours() {
        let mut raw = RawConfig::default();
        raw.derp.public_port = Some(4443);
        raw.stun.public_port = Some(5000);
        let n = node("http://a.example", Some(8443), Some("ab"), &raw).unwrap();
        assert_eq!((n.derp_port, n.stun_port), (4443, 5000));
        raw.derp.regions = Some(vec![crate::config::RawRegion {
            id: 900,
            code: "far".into(),
            nodes: vec![crate::config::RawRelay {
                name: "x".into(),
                hostname: "r.example".into(),
                ..Default::default()
            }],
            ..Default::default()
        }]);
        assert_eq!(node("http://a.example", Some(8443), Some("ab"), &raw).unwrap().host_name, "r.example");
    }
}
