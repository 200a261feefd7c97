//! What one measurement saw, and its form for control.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::keys::RegionId;
use crate::wire::NetInfo;

/// One measurement.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Report {
    /// Any STUN answer came.
    pub(crate) udp: bool,
    /// One came by IPv6.
    pub(crate) v6: bool,
    /// Best round trip per region, by UDP or else by HTTPS.
    pub(crate) latency: BTreeMap<RegionId, Duration>,
    by_family: BTreeMap<(RegionId, bool), Duration>,
    /// Two servers saw different IPv4 mappings: a hard NAT.
    pub(crate) varies: Option<bool>,
    /// Mappings seen, by server.
    mappings: Vec<(SocketAddr, SocketAddr)>,
}

fn keep_min<K: Ord>(map: &mut BTreeMap<K, Duration>, key: K, d: Duration) {
    map.entry(key).and_modify(|old| *old = d.min(*old)).or_insert(d);
}

impl Report {
    /// Takes a STUN answer of `server`, which saw us as `seen`.
    pub(crate) fn note_stun(
        &mut self,
        region: RegionId,
        server: SocketAddr,
        seen: SocketAddr,
        latency: Duration,
    ) {
        self.udp = true;
        self.v6 |= server.is_ipv6();
        keep_min(&mut self.latency, region, latency);
        keep_min(&mut self.by_family, (region, server.is_ipv4()), latency);
        if server.is_ipv4() {
            let others = self.mappings.iter().filter(|(s, _)| s.is_ipv4() && *s != server);
            for (_, other) in others {
                let differs = *other != seen;
                self.varies = Some(self.varies.unwrap_or(false) || differs);
            }
        }
        if !self.mappings.contains(&(server, seen)) {
            self.mappings.push((server, seen));
        }
    }

    /// Takes a round trip by HTTPS.
    pub(crate) fn note_https(&mut self, region: RegionId, latency: Duration) {
        if !self.udp {
            keep_min(&mut self.latency, region, latency);
        }
    }

    /// Addresses others see, IPv4 first: the first of each family and those seen more than once.
    pub(crate) fn globals(&self) -> Vec<SocketAddr> {
        let mut out = Vec::new();
        for v4 in [true, false] {
            let family = || self.mappings.iter().map(|m| m.1).filter(|a| a.is_ipv4() == v4);
            for (i, addr) in family().enumerate() {
                let count = family().filter(|a| *a == addr).count();
                if (i == 0 || count > 1) && !out.contains(&addr) {
                    out.push(addr);
                }
            }
        }
        out
    }

    /// The first IPv4 mapping.
    pub(crate) fn global_v4(&self) -> Option<SocketAddr> {
        self.mappings.iter().map(|m| m.1).find(SocketAddr::is_ipv4)
    }

    /// The form for control.
    pub(crate) fn net_info(&self, home: Option<RegionId>, os_has_v6: bool) -> NetInfo {
        NetInfo {
            mapping_varies_by_dest_ip: self.varies,
            working_ipv6: Some(self.v6),
            os_has_ipv6: Some(os_has_v6),
            working_udp: Some(self.udp),
            preferred_derp: home.unwrap_or_default(),
            derp_latency: self
                .by_family
                .iter()
                .map(|((region, v4), d)| {
                    let family = if *v4 { "v4" } else { "v6" };
                    (format!("{region}-{family}"), d.as_secs_f64())
                })
                .collect(),
            ..NetInfo::default()
        }
    }
}
