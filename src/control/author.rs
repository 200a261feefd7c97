//! Whether a policy would take from its own author the way to this server: they sit at a device of the
//! tailnet and reach the console by a device that is this machine.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr as _;

use ipnet::IpNet;

use super::policy::Author;
use super::state::Tailnet;
use crate::acl::Compiled;
use crate::model::Node;
use crate::wire::FilterRule;

/// What a rule without protocols means: TCP, UDP, ICMP of both families.
const DEFAULT: [i32; 4] = [6, 17, 1, 58];

/// A sentence when the author's device would lose any port of this machine's device. `None` also when
/// nothing is known: they come from elsewhere, or this machine is no device of the tailnet.
pub(super) fn cut_off(net: &Tailnet, new: &Compiled, author: &Author) -> Option<String> {
    let from = author.from?;
    let has = |n: &Node, ip: IpAddr| ip == n.ipv4 || ip == n.ipv6;
    let me = net.nodes.values().find(|n| has(n, from))?;
    let here = net.nodes.values().filter(|n| author.server.iter().any(|ip| has(n, *ip)));
    let lost = here.filter(|n| n.id != me.id).find(|server| {
        let before = reach(&net.compiled.filter_rules(server.id), me, server);
        let after = reach(&new.filter_rules(server.id), me, server);
        before.iter().any(|(protocol, ports)| {
            let kept = after.get(protocol).map_or(&[][..], Vec::as_slice);
            ports.iter().any(|p| !kept.iter().any(|k| k.0 <= p.0 && p.1 <= k.1))
        })
    })?;
    Some(format!(
        "you sit at the device {} and would lose access to {}, the device this server runs on: the console may be out of your reach then (`tsd policy rollback` on the server itself takes it back)",
        me.name, lost.name
    ))
}

/// Port ranges that `me` reaches on `server`, joined, per protocol.
fn reach(rules: &[FilterRule], me: &Node, server: &Node) -> BTreeMap<i32, Vec<(u16, u16)>> {
    let mut out: BTreeMap<i32, Vec<(u16, u16)>> = BTreeMap::new();
    for rule in rules.iter().filter(|r| r.src_ips.iter().any(|text| names(text, me))) {
        for dst in rule.dst_ports.iter().filter(|d| names(&d.ip, server)) {
            let protocols = if rule.ip_proto.is_empty() { &DEFAULT[..] } else { &rule.ip_proto[..] };
            for protocol in protocols {
                out.entry(*protocol).or_default().push((dst.ports.first, dst.ports.last));
            }
        }
    }
    for ports in out.values_mut() {
        ports.sort_unstable();
        let mut joined: Vec<(u16, u16)> = Vec::new();
        for (first, last) in ports.drain(..) {
            match joined.last_mut() {
                Some(before) if u32::from(first) <= u32::from(before.1) + 1 => before.1 = before.1.max(last),
                _ => joined.push((first, last)),
            }
        }
        *ports = joined;
    }
    out
}

/// Whether a text of a filter rule (`*`, address, prefix, `a-b`) covers an address of `node`.
fn names(text: &str, node: &Node) -> bool {
    let own = [IpAddr::V4(node.ipv4), IpAddr::V6(node.ipv6)];
    if text == "*" {
        return true;
    }
    if let Ok(ip) = IpAddr::from_str(text) {
        return own.contains(&ip);
    }
    if let Ok(net) = IpNet::from_str(text) {
        return own.iter().any(|ip| net.contains(ip));
    }
    let ends = text.split_once('-').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    ends.is_some_and(|(a, b): (IpAddr, IpAddr)| {
        own.iter().any(|ip| ip.is_ipv4() == a.is_ipv4() && a <= *ip && *ip <= b)
    })
}
