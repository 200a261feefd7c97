//! One flow from one place to another: who receives it, which rules let it through there, and what else is
//! open. The verdict is that of the receiver's own packet filter (SEMANTICS.md 6, 7, 8.3, 9.1) and of
//! whether the sender is shown the way at all (9.4, 9.5).

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::acl::Compiled;
use crate::acl::ast::Alias;
use crate::acl::compile::Inner;
use crate::acl::ground::GroundNode;
use crate::acl::plan::{Form, Id, Kind, Shape, Unit};
use crate::acl::ports::{self, Ports};
use crate::acl::ranges::{Range, star};
use crate::wire::PortRange;

use super::party::Place;
use super::{Facts, Verdict};

/// A place in a world. The masks of this module have a bit for IPv4 and one for IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// A node's slot, and by which addresses.
    Node(usize, u8),
    /// An address that is no node's.
    Address(IpAddr),
}

/// What is asked of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct What {
    pub(super) protocol: Option<u8>,
    pub(super) port: Option<u16>,
}

impl What {
    /// Whether ports of a rule let it through, as clients match: whatever is open to an address opens it
    /// to pings, and protocols without ports want all ports.
    pub(super) fn passes(self, protocol: Option<u8>, ports: &[PortRange]) -> bool {
        let Some(asked) = self.protocol else {
            return !ports.is_empty();
        };
        if asked == 1 || asked == 58 {
            return !ports.is_empty();
        }
        if protocol.is_none_or(|p| p != asked) && !(protocol.is_none() && matches!(asked, 6 | 17)) {
            return false;
        }
        match (asked, self.port) {
            (6 | 17 | 132, Some(port)) => ports.iter().any(|p| p.contains(port)),
            (6 | 17 | 132, None) => !ports.is_empty(),
            _ => ports.contains(&PortRange::ANY),
        }
    }
}

/// A rule that joins the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Hit {
    pub(super) unit: Id,
    pub(super) part: Id,
    /// Families it joins them in.
    pub(super) mask: u8,
    /// The destination name; `None` for `autogroup:self`.
    pub(super) dst: Option<Id>,
}

/// Who receives a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Carrier {
    pub(super) at: usize,
    /// The route it is carried by; the default route for the internet.
    pub(super) net: IpNet,
    /// The sender is shown this way.
    pub(super) shown: bool,
    /// Others that serve the same.
    pub(super) others: usize,
    /// One that is elected among nodes of a via grant.
    pub(super) steered: bool,
}

/// Why nothing arrives, whatever the rules say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    /// Both ends are one device.
    Same,
    /// Both ends are on the network that the device in this slot serves.
    Local(usize),
    /// Nobody carries traffic to the address.
    NoWay(IpAddr),
    /// Nobody carries traffic from the address.
    NoSource(IpAddr),
    /// A node is not of this world.
    Gone,
    /// The two ends have no address family in common.
    Families,
}

/// What happens to one flow.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) from: End,
    pub(super) to: End,
    pub(super) carrier: Option<Carrier>,
    pub(super) block: Option<Block>,
    /// Families asked about.
    pub(super) asked: u8,
    /// Families let through.
    pub(super) passed: u8,
    /// All rules that join the ends, in the order they are applied.
    pub(super) hits: Vec<Hit>,
    /// Those that let it through.
    pub(super) by: Vec<Hit>,
}

impl Outcome {
    pub(super) const fn verdict(&self) -> Verdict {
        match (self.block, self.passed) {
            (Some(Block::Same | Block::Local(_)), _) => Verdict::Allowed,
            (Some(_), _) | (None, 0) => Verdict::Refused,
            (None, passed) if passed == self.asked => Verdict::Allowed,
            (None, _) => Verdict::Partly,
        }
    }

    /// The slot of the receiver.
    pub(super) fn receiver(&self) -> Option<usize> {
        match (&self.carrier, self.to) {
            (Some(carrier), _) => Some(carrier.at),
            (None, End::Node(at, _)) => Some(at),
            (None, End::Address(_)) => None,
        }
    }
}

/// How a source stands to names and lists.
#[derive(Debug)]
pub(super) struct Marks {
    /// Families per list.
    pub(super) lists: Vec<u8>,
}

/// Asks one policy.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) policy: &'a Compiled,
    pub(super) inner: &'a Inner,
    pub(super) facts: &'a Facts,
}

const fn bit(v6: bool) -> u8 {
    if v6 { 2 } else { 1 }
}

impl<'a> Scene<'a> {
    /// A place in this world.
    pub(super) fn end(&self, place: Place) -> Option<End> {
        match place {
            Place::Node(id, [v4, v6]) => {
                let at = *self.inner.ground.index.get(&id)?;
                Some(End::Node(at, u8::from(v4) | u8::from(v6) << 1))
            }
            Place::Address(ip) => match self.inner.ground.within(Range::single(ip)) {
                [(_, at), ..] => Some(End::Node(*at, bit(ip.is_ipv6()))),
                [] => Some(End::Address(ip)),
            },
        }
    }

    pub(super) fn node(&self, at: usize) -> Option<&'a GroundNode> {
        self.inner.ground.nodes.get(at).map(|n| &**n)
    }

    pub(super) fn unit(&self, unit: Id) -> Option<&'a Unit> {
        self.inner.plan.units.get(unit as usize)
    }

    /// Families in which a source name takes an address or a node.
    pub(super) fn takes(&self, id: Id, end: End) -> u8 {
        let (Some(name), Some(state)) =
            (self.inner.plan.names.get(id as usize), self.inner.names.get(id as usize))
        else {
            return 0;
        };
        match end {
            End::Node(at, _) => {
                let [v4, v6] = &state.families;
                u8::from(v4.get(at)) | u8::from(v6.get(at)) << 1
            }
            End::Address(ip) => {
                let holds = match &name.shape {
                    Shape::Nodes => false,
                    Shape::Everything => true,
                    Shape::Star { .. } => {
                        let mut routes = self.inner.ground.served();
                        star().iter().any(|r| r.contains(ip)) || routes.any(|(_, r)| r.range.contains(ip))
                    }
                    Shape::Ranges(ranges) => ranges.iter().any(|(r, _)| r.contains(ip)),
                };
                if holds { bit(ip.is_ipv6()) } else { 0 }
            }
        }
    }

    /// Everything that takes `end` as a source.
    pub(super) fn marks(&self, end: End) -> Marks {
        let plan = &self.inner.plan;
        let candidates: &[Id] = match end {
            End::Node(at, _) => self.inner.nodes.get(at).map_or(&[], |n| &n.srcs),
            End::Address(_) => &plan.literals,
        };
        let is_source =
            |id: &Id| plan.names.get(*id as usize).is_some_and(|n| matches!(n.form, Form::Source(_)));
        let names = candidates.iter().filter(|id| is_source(id));
        let names = names.map(|id| (*id, self.takes(*id, end))).filter(|(_, mask)| *mask != 0);
        let mut lists = vec![0; plan.lists.len()];
        for (id, mask) in names {
            for list in plan.lists_of.get(id as usize).into_iter().flatten() {
                if let Some(slot) = lists.get_mut(*list as usize) {
                    *slot |= mask;
                }
            }
        }
        Marks { lists }
    }

    /// Families in which the receiver keeps an entry of a destination name that covers the destination.
    pub(super) fn gets(&self, id: Id, receiver: usize, to: End) -> u8 {
        let place = id as usize;
        let (Some(name), Some(state), Some(node)) =
            (self.inner.plan.names.get(place), self.inner.names.get(place), self.node(receiver))
        else {
            return 0;
        };
        if !state.keep.get(receiver) || matches!(name.form, Form::Source(_) | Form::App(_)) {
            return 0;
        }
        let kept = |range: Range| match name.form {
            Form::Via(_) if name.alias == Alias::Internet => !node.exits.is_empty(),
            Form::Via(_) => self.routed(range, node),
            _ => self.inner.keeps(range, node),
        };
        let holds = |ip: IpAddr| match &name.shape {
            Shape::Everything | Shape::Star { .. } => true,
            Shape::Nodes => {
                ip == node.v4 && state.families[0].get(receiver)
                    || ip == node.v6 && state.families[1].get(receiver)
            }
            Shape::Ranges(ranges) => ranges.iter().any(|(r, _)| r.contains(ip) && kept(*r)),
        };
        match to {
            End::Node(..) => u8::from(holds(node.v4)) | u8::from(holds(node.v6)) << 1,
            End::Address(ip) if holds(ip) => bit(ip.is_ipv6()),
            End::Address(_) => 0,
        }
    }

    pub(super) fn routed(&self, range: Range, node: &GroundNode) -> bool {
        let routes = node.routes.iter().filter_map(|r| self.inner.ground.routes.get(*r));
        routes.into_iter().any(|r| r.range.overlaps(range))
    }

    /// Rules that join a marked source with `to` at `receiver`, in order.
    pub(super) fn hits(&self, from: End, marks: &Marks, receiver: usize, to: End) -> Vec<Hit> {
        let mut hits = Vec::new();
        let kept = self.inner.nodes.get(receiver).map_or(&[][..], |n| &n.class.kept);
        for name in kept {
            let gets = self.gets(*name, receiver, to);
            if gets == 0 {
                continue;
            }
            for (number, part) in self.inner.plan.uses.get(*name as usize).into_iter().flatten() {
                let Some(unit) = self.unit(*number) else { continue };
                let mask = gets & marks.lists.get(unit.list as usize).copied().unwrap_or(0);
                if mask != 0 && matches!(unit.kind, Kind::Ports(_) | Kind::ViaPorts(_)) {
                    hits.push(Hit { unit: *number, part: *part, mask, dst: Some(*name) });
                }
            }
        }
        if self.one_person(from, to) {
            for number in &self.inner.plan.own {
                let Some(unit) = self.unit(*number) else { continue };
                let on = marks.lists.get(unit.list as usize).is_some_and(|m| *m != 0);
                if on && matches!(unit.kind, Kind::OwnPorts(_)) {
                    hits.push(Hit { unit: *number, part: 0, mask: 3, dst: None });
                }
            }
        }
        hits.sort_unstable();
        hits.dedup();
        hits
    }

    /// Whether both ends are devices of one person.
    pub(super) fn one_person(&self, from: End, to: End) -> bool {
        let (End::Node(a, _), End::Node(b, _)) = (from, to) else {
            return false;
        };
        let user = |at| self.node(at).and_then(|n| n.user);
        user(a).is_some() && user(a) == user(b)
    }

    /// The ports of a hit.
    pub(super) fn ports(&self, hit: &Hit) -> &'a [PortRange] {
        match self.unit(hit.unit).map(|u| &u.kind) {
            Some(Kind::Ports(parts) | Kind::ViaPorts(parts)) => {
                parts.get(hit.part as usize).map_or(&[], |p| &p.ports)
            }
            Some(Kind::OwnPorts(ports)) => ports,
            _ => &[],
        }
    }

    /// All that is open by `hits` in one of the families of `mask`, in words.
    pub(super) fn open(&self, hits: &[Hit], mask: u8) -> String {
        let mut open = Ports::new();
        for hit in hits.iter().filter(|h| h.mask & mask != 0) {
            let protocol = self.unit(hit.unit).and_then(|u| u.protocol);
            ports::grant(&mut open, protocol, self.ports(hit));
        }
        open.values_mut().for_each(ports::joined);
        ports::ports_in_words(&open)
    }

    /// What happens to a flow.
    pub(super) fn outcome(&self, from: End, to: End, what: What) -> Outcome {
        let mut out = Outcome {
            from,
            to,
            carrier: None,
            block: None,
            asked: 3,
            passed: 0,
            hits: Vec::new(),
            by: Vec::new(),
        };
        out.asked = self.families(from) & self.families(to);
        let blocked = |block, out| Outcome { block: Some(block), ..out };
        let sender = match from {
            End::Node(at, _) => at,
            End::Address(ip) => match self.sender(ip) {
                Some(at) => at,
                None => return blocked(Block::NoSource(ip), out),
            },
        };
        match to {
            End::Node(at, _) if from == to || matches!(from, End::Node(f, _) if f == at) => {
                return blocked(Block::Same, out);
            }
            End::Node(..) => {}
            End::Address(ip) => match self.carrier(sender, ip) {
                Ok(carrier) => out.carrier = Some(carrier),
                Err(block) => return blocked(block, out),
            },
        }
        if out.asked == 0 {
            return blocked(Block::Families, out);
        }
        let Some(receiver) = out.receiver() else {
            return blocked(Block::Gone, out);
        };
        let marks = self.marks(from);
        out.hits = self.hits(from, &marks, receiver, to);
        out.hits.retain(|h| h.mask & out.asked != 0);
        if out.carrier.as_ref().is_some_and(|c| !c.shown) {
            out.hits.clear();
        }
        let passes = |h: &&Hit| {
            let protocol = self.unit(h.unit).and_then(|u| u.protocol);
            what.passes(protocol, self.ports(h))
        };
        out.by = out.hits.iter().filter(passes).copied().collect();
        out.passed = out.by.iter().fold(0, |mask, h| mask | (h.mask & out.asked));
        out
    }

    /// Families an end has.
    pub(super) fn families(&self, end: End) -> u8 {
        match end {
            End::Address(ip) => bit(ip.is_ipv6()),
            End::Node(at, mask) => {
                let without = self.node(at).is_some_and(|n| self.policy.without_ipv4(n.id));
                if without { mask & 2 } else { mask }
            }
        }
    }

    /// Rules, distinct, of hits.
    pub(super) fn rules(&self, hits: &[Hit]) -> Vec<Hit> {
        let mut seen = BTreeSet::new();
        let key = |h: &Hit| self.unit(h.unit).map(|u| (u.section, u.index));
        hits.iter().filter(|h| key(h).is_some_and(|k| seen.insert(k))).copied().collect()
    }
}
