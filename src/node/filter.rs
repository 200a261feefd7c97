//! The packet filter: rules of the netmap compiled to address ranges, and the flows we started. Decides
//! what a peer may send to this host; only what it permits becomes [`Permitted`]. Order of the checks:
//! dataplane.md 6.3. TCP is not tracked: what is no opening SYN passes, as official clients have it.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::packet::{FromPeer, Headers, Permitted, Proto};
use crate::wire::{FilterRule, PortRange};

/// Flows remembered; the least recently used makes room.
const FLOWS: usize = 512;
/// Rules, and addresses over all rules, taken from control (RELIABILITY.md row 103).
const MAX_RULES: usize = 50_000;
const MAX_RANGES: usize = 1_000_000;
/// Cloud DNS and metadata, the one link-local address that may be routed.
const CLOUD_METADATA: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 169, 254));

/// A set of addresses as sorted, disjoint ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct IpSet {
    v4: Vec<(u128, u128)>,
    v6: Vec<(u128, u128)>,
}

fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(a) => a.to_bits().into(),
        IpAddr::V6(a) => a.to_bits(),
    }
}

impl IpSet {
    fn add_range(&mut self, first: IpAddr, last: IpAddr) {
        let list = match (first, last) {
            (IpAddr::V4(_), IpAddr::V4(_)) => &mut self.v4,
            (IpAddr::V6(_), IpAddr::V6(_)) => &mut self.v6,
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return,
        };
        let (first, last) = (number(first), number(last));
        if first <= last {
            list.push((first, last));
        }
    }

    /// Adds a prefix.
    pub(crate) fn add(&mut self, net: IpNet) {
        self.add_range(net.network(), net.broadcast());
    }

    /// Adds an address, a masked prefix, `a-b` or `*`; false when it is none of them.
    fn add_text(&mut self, text: &str) -> bool {
        if text == "*" {
            self.v4.push((0, u128::from(u32::MAX)));
            self.v6.push((0, u128::MAX));
            return true;
        }
        if let Ok(addr) = text.parse::<IpAddr>() {
            self.add_range(addr, addr);
            return true;
        }
        if let Some((a, b)) = text.split_once('-') {
            let (Ok(a), Ok(b)) = (a.parse(), b.parse()) else {
                return false;
            };
            self.add_range(a, b);
            return true;
        }
        match text.parse::<IpNet>() {
            Ok(net) if net == net.trunc() => {
                self.add(net);
                true
            }
            _ => false,
        }
    }

    /// Sorts and merges; to be called once after the last `add`.
    pub(crate) fn seal(mut self) -> Self {
        for list in [&mut self.v4, &mut self.v6] {
            list.sort_unstable();
            list.dedup_by(|next, kept| {
                let touches = next.0 <= kept.1.saturating_add(1);
                if touches {
                    kept.1 = kept.1.max(next.1);
                }
                touches
            });
        }
        self
    }

    /// Whether `addr` is in the set.
    pub(crate) fn contains(&self, addr: IpAddr) -> bool {
        let list = if addr.is_ipv4() { &self.v4 } else { &self.v6 };
        let n = number(addr);
        let after = list.partition_point(|(first, _)| *first <= n);
        after.checked_sub(1).and_then(|i| list.get(i)).is_some_and(|(_, last)| n <= *last)
    }

    const fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }
}

#[derive(Debug, Clone)]
struct Rule {
    protos: [u128; 2],
    srcs: IpSet,
    /// Addresses of peers that have a capability the rule names as source.
    cap_srcs: IpSet,
    dsts: Vec<(IpSet, PortRange)>,
}

impl Rule {
    fn has_proto(&self, proto: Proto) -> bool {
        let word = self.protos[usize::from(proto.0 >> 7)];
        word >> (proto.0 & 127) & 1 == 1
    }

    fn to(&self, dst: IpAddr, ports: impl Fn(PortRange) -> bool) -> bool {
        self.dsts.iter().any(|(set, range)| ports(*range) && set.contains(dst))
    }

    fn from(&self, src: IpAddr) -> bool {
        self.srcs.contains(src) || self.cap_srcs.contains(src)
    }
}

/// What the compiler must know beside the rules.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scope {
    /// Addresses this node serves: its own and the routes it advertises.
    pub(crate) local: IpSet,
    /// Addresses of the peers that have a capability.
    pub(crate) cap_holders: HashMap<String, Vec<IpNet>>,
    /// Addresses of peers that may reach the PeerAPI alone.
    pub(crate) peer_api_only: Vec<IpNet>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Flow {
    proto: Proto,
    near: (IpAddr, u16),
    far: (IpAddr, u16),
}

/// The least-recently-used table of flows, as a doubly linked list in a slab.
#[derive(Debug, Default)]
struct Flows {
    index: HashMap<Flow, usize>,
    slots: Vec<Slot>,
    newest: usize,
    oldest: usize,
}

#[derive(Debug)]
struct Slot {
    flow: Flow,
    newer: usize,
    older: usize,
}

impl Flows {
    /// Whether the flow is known; use keeps it.
    fn refresh(&mut self, flow: Flow) -> bool {
        let known = self.index.contains_key(&flow);
        if known {
            self.touch(flow);
        }
        known
    }

    fn touch(&mut self, flow: Flow) {
        if let Some(&at) = self.index.get(&flow) {
            if at != self.newest {
                self.unlink(at);
                self.link_newest(at);
            }
            return;
        }
        let at = if self.slots.len() < FLOWS {
            self.slots.push(Slot { flow, newer: 0, older: 0 });
            self.slots.len() - 1
        } else {
            let at = self.oldest;
            self.unlink(at);
            if let Some(slot) = self.slots.get_mut(at) {
                self.index.remove(&slot.flow);
                slot.flow = flow;
            }
            at
        };
        self.index.insert(flow, at);
        if self.index.len() == 1 {
            (self.newest, self.oldest) = (at, at);
        } else {
            self.link_newest(at);
        }
    }

    fn unlink(&mut self, at: usize) {
        let Some((newer, older)) = self.slots.get(at).map(|s| (s.newer, s.older)) else {
            return;
        };
        if at == self.oldest {
            self.oldest = newer;
        } else if let Some(s) = self.slots.get_mut(older) {
            s.newer = newer;
        }
        if at == self.newest {
            self.newest = older;
        } else if let Some(s) = self.slots.get_mut(newer) {
            s.older = older;
        }
    }

    fn link_newest(&mut self, at: usize) {
        let before = self.newest;
        if let Some(s) = self.slots.get_mut(before) {
            s.newer = at;
        }
        if let Some(s) = self.slots.get_mut(at) {
            s.older = before;
        }
        self.newest = at;
    }
}

/// Why a packet may not pass.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Counted under this name.
    pub(crate) reason: &'static str,
    /// An IPv4 TCP SYN refused by rule: tell the sender, with this TSMP reason.
    pub(crate) notify: Option<u8>,
    /// The headers, for that notice.
    pub(crate) headers: Headers,
}

/// The filter of this node.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    rules: Vec<Rule>,
    local: IpSet,
    shields_up: bool,
    flows: Flows,
}

const fn default_protos() -> [u128; 2] {
    let low = (1 << Proto::ICMPV4.0) | (1 << Proto::TCP.0) | (1 << Proto::UDP.0) | (1 << Proto::ICMPV6.0);
    [low, 0]
}

fn compile_protos(list: &[i32]) -> [u128; 2] {
    if list.is_empty() {
        return default_protos();
    }
    let mut out = [0_u128; 2];
    for n in list.iter().filter_map(|n| u8::try_from(*n).ok()) {
        out[usize::from(n >> 7)] |= 1 << (n & 127);
    }
    out
}

fn compile_rule(rule: &FilterRule, scope: &Scope) -> Option<Rule> {
    let (mut srcs, mut cap_srcs) = (IpSet::default(), IpSet::default());
    for text in &rule.src_ips {
        if let Some(cap) = text.strip_prefix("cap:") {
            for net in scope.cap_holders.get(cap).into_iter().flatten() {
                cap_srcs.add(*net);
            }
        } else if !srcs.add_text(text) {
            tracing::debug!(source = %text, "a filter rule's source is unreadable: skipped");
        }
    }
    let mut dsts: Vec<(IpSet, PortRange)> = Vec::new();
    for dst in &rule.dst_ports {
        let mut set = IpSet::default();
        if dst.ports.first <= dst.ports.last && set.add_text(&dst.ip) {
            match dsts.iter_mut().find(|(_, ports)| *ports == dst.ports) {
                Some((all, _)) => {
                    all.v4.append(&mut set.v4);
                    all.v6.append(&mut set.v6);
                }
                None => dsts.push((set, dst.ports)),
            }
        }
    }
    (!dsts.is_empty()).then(|| Rule {
        protos: compile_protos(&rule.ip_proto),
        srcs: srcs.seal(),
        cap_srcs: cap_srcs.seal(),
        dsts: dsts.into_iter().map(|(s, p)| (s.seal(), p)).collect(),
    })
}

impl Filter {
    /// Takes new rules; the flows stay.
    pub(crate) fn set<'a>(
        &mut self,
        rules: impl Iterator<Item = &'a FilterRule>,
        scope: Scope,
        shields_up: bool,
    ) {
        self.shields_up = shields_up;
        self.rules.clear();
        let mut budget = MAX_RANGES;
        for rule in rules.take(MAX_RULES) {
            let Some(rule) = compile_rule(rule, &scope) else {
                continue;
            };
            let size = rule.srcs.len() + rule.dsts.iter().map(|d| d.0.len()).sum::<usize>();
            let Some(rest) = budget.checked_sub(size) else {
                tracing::warn!("the packet filter of this network is too large; its tail is left out");
                break;
            };
            budget = rest;
            self.rules.push(rule);
        }
        // A node limited to the PeerAPI that a rule lets in shows that the filter was tampered with.
        let tampered = |r: &Rule| scope.peer_api_only.iter().any(|n| r.from(n.addr()));
        if self.rules.iter().any(tampered) {
            tracing::warn!("the packet filter names a PeerAPI-only node: everything is refused");
            self.rules.clear();
        }
        self.local = scope.local;
    }

    /// Notes an outgoing packet's flow, so that answers come back; says why when it may not leave.
    pub(crate) fn outbound(&mut self, h: &Headers) -> Result<(), &'static str> {
        precheck(h)?;
        match h.proto {
            Proto::TSMP => Err("tsmp from host"),
            Proto::UDP | Proto::SCTP => {
                self.flows.touch(Flow {
                    proto: h.proto,
                    near: (h.src, h.src_port),
                    far: (h.dst, h.dst_port),
                });
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Judges a peer's packet. `jailed` peers may only answer.
    pub(crate) fn inbound(&mut self, packet: FromPeer, jailed: bool) -> Result<Permitted, Refused> {
        let h = *packet.packet().headers();
        let closed = self.shields_up || jailed;
        match self.judge(&h, closed) {
            Ok(()) => Ok(Permitted::filtered(packet)),
            Err(reason) => {
                let syn = h.proto == Proto::TCP && h.is_tcp_syn() && h.src.is_ipv4();
                let notify = (syn && reason == "acl").then_some(if closed { b'S' } else { b'A' });
                Err(Refused { reason, notify, headers: h })
            }
        }
    }

    fn judge(&mut self, h: &Headers, closed: bool) -> Result<(), &'static str> {
        precheck(h)?;
        if h.proto == Proto::FRAGMENT {
            return Ok(());
        }
        if !self.local.contains(h.dst) {
            return Err("not for us");
        }
        let rules: &[Rule] = if closed { &[] } else { &self.rules };
        let permitted = match h.proto {
            Proto::ICMPV4 | Proto::ICMPV6 => {
                h.is_icmp_answer() || rules.iter().any(|r| r.from(h.src) && r.to(h.dst, |_| true))
            }
            Proto::TCP => !h.is_tcp_syn() || ports_permit(rules, h),
            Proto::UDP | Proto::SCTP => {
                let flow = Flow { proto: h.proto, near: (h.dst, h.dst_port), far: (h.src, h.src_port) };
                self.flows.refresh(flow) || ports_permit(rules, h)
            }
            Proto::TSMP => true,
            // Capability sources do not count on this branch (dataplane.md 6.3).
            _ => rules.iter().any(|r| {
                r.has_proto(h.proto) && r.srcs.contains(h.src) && r.to(h.dst, |p| p == PortRange::ANY)
            }),
        };
        if permitted { Ok(()) } else { Err("acl") }
    }
}

fn ports_permit(rules: &[Rule], h: &Headers) -> bool {
    rules.iter().any(|r| r.has_proto(h.proto) && r.from(h.src) && r.to(h.dst, |p| p.contains(h.dst_port)))
}

fn precheck(h: &Headers) -> Result<(), &'static str> {
    if h.proto == Proto::UNKNOWN {
        return Err("unknown protocol");
    }
    if h.dst.is_multicast() {
        return Err("multicast");
    }
    let link_local = match h.dst {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    if link_local && h.dst != CLOUD_METADATA {
        return Err("link-local");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
