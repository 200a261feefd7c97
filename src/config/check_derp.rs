//! The check of the relay's settings and of further regions.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::check::{Faults, port};
use super::checked::{DerpConfig, Region, Relay};
use super::raw::{RawConfig, RawRegion};

/// Checks `derp`.
pub(super) fn derp(f: &mut Faults, raw: &RawConfig) -> DerpConfig {
    let raw = &raw.derp;
    let region_id = raw.region_id.unwrap_or(900);
    if !(900..=999).contains(&region_id) {
        f.add("derp.region_id", format!("{region_id} is not yours to use; operators have 900 to 999"));
    }
    for (key, text, v4) in [("derp.ipv4", &raw.ipv4, true), ("derp.ipv6", &raw.ipv6, false)] {
        let Some(text) = text.as_deref().filter(|t| *t != "none") else {
            continue;
        };
        let ok = if v4 { text.parse::<Ipv4Addr>().is_ok() } else { text.parse::<Ipv6Addr>().is_ok() };
        if !ok {
            f.add(key, format!("{text:?} is no such address; write the public address, or none"));
        }
    }
    let mut regions = Vec::new();
    for region in raw.regions.as_deref().unwrap_or_default() {
        regions.extend(check_region(f, region));
    }
    let mut ids: Vec<u64> = regions.iter().map(|r| r.id).collect();
    ids.sort_unstable();
    if ids.windows(2).any(|w| w.first() == w.last()) {
        f.add("derp.regions", "two regions have the same id; merge them, or give one another id");
    }
    DerpConfig {
        enabled: raw.enabled.unwrap_or(true),
        region_id,
        region_code: raw.region_code.clone().unwrap_or_else(|| "tsd".to_owned()),
        region_name: raw.region_name.clone().unwrap_or_else(|| "tsd".to_owned()),
        hostname: raw.hostname.clone(),
        public_port: port(f, "derp.public_port", raw.public_port),
        ipv4: raw.ipv4.clone(),
        ipv6: raw.ipv6.clone(),
        regions,
    }
}

fn check_region(f: &mut Faults, region: &RawRegion) -> Option<Region> {
    let id = region.id;
    if id == 0 || id > 65_535 {
        f.add("derp.regions", format!("region {id}: ids are 1 to 65535"));
        return None;
    }
    if region.nodes.is_empty() {
        f.add(
            "derp.regions",
            format!("region {id} has no nodes; add a [[derp.regions.nodes]] with name and hostname"),
        );
        return None;
    }
    if let Some(node) = region.nodes.iter().find(|n| n.name.is_empty() || n.hostname.is_empty()) {
        f.add("derp.regions", format!("region {id}: node {:?} needs a name and a hostname", node.name));
        return None;
    }
    let name = if region.name.is_empty() { &region.code } else { &region.name };
    Some(Region {
        id,
        code: region.code.clone(),
        name: name.clone(),
        relays: region.nodes.iter().cloned().map(|raw| Relay { raw }).collect(),
    })
}
