//! Hostile self-descriptions made safe: everything a node says is cut to size before it is kept, and
//! what peers are shown of it is chosen, not copied (RELIABILITY rows 21 to 23).

use std::net::{IpAddr, SocketAddr};

use ipnet::Ipv4Net;

use crate::wire::{Hostinfo, Service};

const MAX_TEXT: usize = 256;
const MAX_SERVICES: usize = 64;
const MAX_TAGS: usize = 32;
const MAX_ROUTES: usize = 512;
const MAX_SSH_KEYS: usize = 16;
const MAX_SSH_KEY: usize = 2048;
const MAX_LATENCIES: usize = 1024;
const MAX_ENDPOINTS: usize = 64;
/// The first 48 bits of every tailnet's IPv6 addresses (control.md 7.1).
const TAILNET6: [u16; 3] = [0xfd7a, 0x115c, 0xa1e0];

fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        let mut end = max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
}

/// Cuts everything to size. Fields that nobody reads are not kept.
#[must_use]
pub(super) fn bounded(mut info: Hostinfo) -> Hostinfo {
    info.rest.clear();
    for text in [
        &mut info.ipn_version,
        &mut info.backend_log_id,
        &mut info.os,
        &mut info.os_version,
        &mut info.distro,
        &mut info.hostname,
        &mut info.machine,
    ] {
        cut(text, MAX_TEXT);
    }
    info.services.truncate(MAX_SERVICES);
    for service in &mut info.services {
        cut(&mut service.proto, 32);
        cut(&mut service.description, MAX_TEXT);
    }
    info.request_tags.truncate(MAX_TAGS);
    for tag in &mut info.request_tags {
        cut(tag, MAX_TEXT);
    }
    for route in &mut info.routable_ips {
        *route = route.trunc();
    }
    info.routable_ips.sort();
    info.routable_ips.dedup();
    info.routable_ips.truncate(MAX_ROUTES);
    info.ssh_host_keys.retain(|k| k.len() <= MAX_SSH_KEY);
    info.ssh_host_keys.truncate(MAX_SSH_KEYS);
    if let Some(net) = &mut info.net_info {
        cut(&mut net.link_type, 32);
        cut(&mut net.firewall_mode, 64);
        if net.derp_latency.len() > MAX_LATENCIES {
            net.derp_latency.clear();
        }
        net.derp_latency.retain(|name, _| name.len() <= 32);
    }
    info
}

/// Endpoints worth trying, at most 64. Those inside the tailnet are none: they would make peers dial a
/// third node, or themselves.
#[must_use]
pub(super) fn endpoints(given: &[SocketAddr], pool: Ipv4Net) -> Vec<SocketAddr> {
    let usable = |e: &&SocketAddr| {
        let ip = e.ip();
        let inside = match ip.to_canonical() {
            IpAddr::V4(v4) => v4.is_broadcast() || (ours(pool) && pool.contains(&v4)),
            IpAddr::V6(v6) => v6.segments().starts_with(&TAILNET6),
        };
        e.port() != 0 && !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || inside)
    };
    let mut out: Vec<SocketAddr> = Vec::new();
    for endpoint in given.iter().filter(usable) {
        if out.len() >= MAX_ENDPOINTS {
            break;
        }
        if !out.contains(endpoint) {
            out.push(*endpoint);
        }
    }
    out
}

/// The whole of 100.64.0.0/10 is also what carriers number their customers from: only a pool that was
/// chosen smaller tells apart what is inside.
fn ours(pool: Ipv4Net) -> bool {
    pool.prefix_len() > 10
}

/// What peers are shown (control.md 7.2): enough for names, Taildrop, exit-node DNS and SSH.
#[must_use]
pub(super) fn for_peers(info: &Hostinfo) -> Hostinfo {
    let peerapi = |s: &&Service| s.proto.starts_with("peerapi");
    Hostinfo {
        os: info.os.clone(),
        hostname: info.hostname.clone(),
        services: info.services.iter().filter(peerapi).cloned().collect(),
        ssh_host_keys: info.ssh_host_keys.clone(),
        ..Hostinfo::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_descriptions_are_cut_to_size() {
        let info = Hostinfo {
            hostname: "é".repeat(500),
            services: vec![Service::default(); 1000],
            request_tags: vec!["tag:a".into(); 1000],
            routable_ips: vec!["10.0.0.1/8".parse().unwrap(); 3],
            ..Hostinfo::default()
        };
        let out = bounded(info);
        assert_eq!(out.hostname.len(), 256);
        assert_eq!(out.services.len(), 64);
        assert_eq!(out.request_tags.len(), 32);
        assert_eq!(out.routable_ips, ["10.0.0.0/8".parse().unwrap()]);
    }

    #[test]
    fn only_usable_endpoints_stay() {
        let given: Vec<SocketAddr> = [
            "127.0.0.1:1",
            "0.0.0.0:5",
            "224.0.0.1:5",
            "192.0.2.1:0",
            "[::1]:5",
            "192.0.2.1:7",
            "192.0.2.1:7",
            "[2001:db8::1]:9",
            "[fd7a:115c:a1e0::7]:9",
            "100.64.3.4:9",
        ]
        .iter()
        .map(|t| t.parse().unwrap())
        .collect();
        let small: Ipv4Net = "100.64.0.0/16".parse().unwrap();
        assert_eq!(endpoints(&given, small).len(), 2);
        let all: Ipv4Net = "100.64.0.0/10".parse().unwrap();
        assert_eq!(endpoints(&given, all).len(), 3, "a carrier's address may be the only one");
        let many: Vec<SocketAddr> = (1..=1000).map(|p| SocketAddr::from(([192, 0, 2, 1], p))).collect();
        assert_eq!(endpoints(&many, all).len(), 64);
    }
}
