//! Filter rules as control sends them, read once into ranges of addresses. What is unreadable is skipped
//! entry by entry (control.md 7.6); capability grants open no port and are no business of the filter.

use std::collections::HashMap;

use ipnet::IpNet;

use super::ranges::IpSet;
use crate::wire::{FilterRule, PortRange};

/// TCP, UDP and both ICMPs: what a rule without protocols means.
const DEFAULT_PROTOS: [u128; 2] = [(1 << 1) | (1 << 6) | (1 << 17) | (1 << 58), 0];

/// A rule, read.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    /// One bit per protocol number.
    pub(super) protos: [u128; 2],
    /// Sources named by address.
    pub(super) srcs: IpSet,
    /// The same and those named by capability, when the rule names any.
    pub(super) with_caps: Option<IpSet>,
    /// Destinations, by port range.
    pub(super) dsts: Vec<(IpSet, PortRange)>,
}

/// Whether a set of protocols has this one.
pub(super) const fn has_proto(protos: &[u128; 2], proto: u8) -> bool {
    (if proto < 128 { protos[0] >> proto } else { protos[1] >> (proto - 128) }) & 1 == 1
}

fn read_protos(list: &[i32]) -> [u128; 2] {
    if list.is_empty() {
        return DEFAULT_PROTOS;
    }
    let mut out = [0_u128; 2];
    for n in list.iter().filter_map(|n| u8::try_from(*n).ok()) {
        out[usize::from(n >> 7)] |= 1 << (n & 127);
    }
    out
}

impl Rule {
    /// Reads a rule; `None` when it opens nothing.
    pub(super) fn read(rule: &FilterRule, cap_holders: &HashMap<String, Vec<IpNet>>) -> Option<Self> {
        let (mut srcs, mut holders) = (IpSet::default(), IpSet::default());
        for text in rule.src_ips.iter() {
            if let Some(cap) = text.strip_prefix("cap:") {
                for net in cap_holders.get(cap).into_iter().flatten() {
                    holders.add(*net);
                }
            } else if !srcs.add_text(text) {
                tracing::debug!(source = %text, "a filter rule's source is unreadable: skipped");
            }
        }
        let mut dsts: Vec<(IpSet, PortRange)> = Vec::new();
        let mut by_ports: HashMap<PortRange, usize> = HashMap::new();
        for dst in &rule.dst_ports {
            let mut set = IpSet::default();
            if dst.ports.first > dst.ports.last || !set.add_text(&dst.ip) {
                tracing::debug!(destination = %dst.ip, "a filter rule's destination is unreadable: skipped");
                continue;
            }
            let at = *by_ports.entry(dst.ports).or_insert(dsts.len());
            match dsts.get_mut(at) {
                Some((all, _)) => all.append(set),
                None => dsts.push((set, dst.ports)),
            }
        }
        if dsts.is_empty() || srcs.len() + holders.len() == 0 {
            return None;
        }
        let with_caps = (holders.len() > 0).then(|| {
            holders.append(srcs.clone());
            holders.seal()
        });
        Some(Self {
            protos: read_protos(&rule.ip_proto),
            srcs: srcs.seal(),
            with_caps,
            dsts: dsts.into_iter().map(|(s, p)| (s.seal(), p)).collect(),
        })
    }

    /// Whom the rule lets in.
    pub(super) fn sources(&self) -> &IpSet {
        self.with_caps.as_ref().unwrap_or(&self.srcs)
    }

    /// How many ranges of addresses it holds.
    pub(super) fn len(&self) -> usize {
        let srcs = self.srcs.len() + self.with_caps.as_ref().map_or(0, IpSet::len);
        srcs + self.dsts.iter().map(|d| d.0.len()).sum::<usize>()
    }
}
