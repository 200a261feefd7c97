//! Ports per protocol: gathering, joining and saying them.

use std::collections::BTreeMap;

use crate::wire::PortRange;

use super::alias::{has_ports, protocol_name};

/// The protocols of a rule without any (SEMANTICS.md 6.5).
const DEFAULT_PROTOCOLS: [u8; 4] = [1, 6, 17, 58];

/// Ports per protocol, joined and sorted.
pub(super) type Ports = BTreeMap<u8, Vec<(u32, u32)>>;

/// Adds a rule's ports; no protocol is the default set.
pub(super) fn grant(ports: &mut Ports, protocol: Option<u8>, ranges: &[PortRange]) {
    let one = protocol.map(|p| [p]);
    let protocols: &[u8] = one.as_ref().map_or(&DEFAULT_PROTOCOLS, |p| p);
    for protocol in protocols {
        let list = ports.entry(*protocol).or_default();
        list.extend(ranges.iter().map(|r| (u32::from(r.first), u32::from(r.last))));
    }
}

/// Sorts ranges and joins neighbours.
pub(super) fn joined(list: &mut Vec<(u32, u32)>) {
    list.sort_unstable();
    let mut out: Vec<(u32, u32)> = Vec::with_capacity(list.len());
    for (first, last) in list.drain(..) {
        match out.last_mut() {
            Some(before) if first <= before.1 + 1 => before.1 = before.1.max(last),
            _ => out.push((first, last)),
        }
    }
    *list = out;
}

/// `all ports`, `port 443`, `tcp 22, 443`, `udp all ports`, `icmp`.
pub(super) fn ports_in_words(ports: &Ports) -> String {
    let mut rest = ports.clone();
    let first = DEFAULT_PROTOCOLS.first().and_then(|p| ports.get(p)).cloned();
    let mut out = Vec::new();
    if let Some(ranges) = first
        && DEFAULT_PROTOCOLS.iter().all(|p| ports.get(p) == Some(&ranges))
    {
        rest.retain(|p, _| !DEFAULT_PROTOCOLS.contains(p));
        out.push(match port_words(&ranges) {
            Some(list) if list.contains([',', '-']) => format!("ports {list}"),
            Some(one) => format!("port {one}"),
            None => "all ports".to_owned(),
        });
    }
    for (protocol, ranges) in &rest {
        let name = protocol_name(*protocol);
        out.push(match port_words(ranges) {
            Some(list) => format!("{name} {list}"),
            None if has_ports(Some(*protocol)) => format!("{name} all ports"),
            None => name,
        });
    }
    out.join(", ")
}

/// `None` when it is all ports.
fn port_words(ranges: &[(u32, u32)]) -> Option<String> {
    if ranges == [(0, 65535)] {
        return None;
    }
    let text = |(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    Some(ranges.iter().map(text).collect::<Vec<_>>().join(", "))
}
