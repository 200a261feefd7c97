//! Who sees whom and which routes (SEMANTICS.md 9.3, 9.4). A rule joins every source name with every
//! destination name, so it is enough to know per name what it reaches: a node then belongs to a few
//! names, and a question is a few bit tests.

use ipnet::IpNet;

use crate::keys::NodeId;

use super::compile::{Inner, Unit, UnitKind};
use super::ranges::Bits;
use super::resolve::{Ground, Resolved};

/// What names reach, and which names a node belongs to.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// Per source name: nodes on the destination side of its rules.
    to: Vec<Bits>,
    /// Per source name: routes its rules lead to.
    to_routes: Vec<Bits>,
    /// Per source name: some rule leads to the internet.
    to_internet: Vec<bool>,
    /// Per destination name: nodes on the source side of its rules.
    from: Vec<Bits>,
    /// Per destination name: routes its rules come from.
    from_routes: Vec<Bits>,
    /// Per node: source names it is on the side of.
    pub(super) srcs_of: Vec<Vec<usize>>,
    /// Per node: destination names it is on the side of.
    pub(super) dsts_of: Vec<Vec<usize>>,
}

impl Reach {
    pub(super) fn new(ground: &Ground, srcs: &[Resolved], dsts: &[Resolved], units: &[Unit]) -> Self {
        let mut reach = Self {
            to: vec![Bits::default(); srcs.len()],
            to_routes: vec![Bits::default(); srcs.len()],
            to_internet: vec![false; srcs.len()],
            from: vec![Bits::default(); dsts.len()],
            from_routes: vec![Bits::default(); dsts.len()],
            srcs_of: names_of(ground.nodes.len(), srcs),
            dsts_of: names_of(ground.nodes.len(), dsts),
        };
        for unit in units {
            let UnitKind::Global { parts, .. } = &unit.kind else {
                continue;
            };
            for s in &unit.srcs {
                let Some(src) = srcs.get(*s) else { continue };
                for part in parts {
                    let Some(dst) = dsts.get(part.dst) else {
                        continue;
                    };
                    add(&mut reach.to, *s, &dst.side);
                    add(&mut reach.to_routes, *s, &dst.routes);
                    add(&mut reach.from, part.dst, &src.side);
                    add(&mut reach.from_routes, part.dst, &src.routes);
                    if dst.internet != [false; 2]
                        && let Some(flag) = reach.to_internet.get_mut(*s)
                    {
                        *flag = true;
                    }
                }
            }
        }
        reach
    }
}

fn add(list: &mut [Bits], at: usize, more: &Bits) {
    if let Some(bits) = list.get_mut(at) {
        bits.add(more);
    }
}

fn names_of(nodes: usize, names: &[Resolved]) -> Vec<Vec<usize>> {
    let mut out = vec![Vec::new(); nodes];
    for (number, name) in names.iter().enumerate() {
        for node in name.side.iter() {
            if let Some(list) = out.get_mut(node) {
                list.push(number);
            }
        }
    }
    out
}

/// Whether any of `names` has `at` in its set of `sets`.
fn any(names: Option<&Vec<usize>>, sets: &[Bits], at: usize) -> bool {
    names.into_iter().flatten().filter_map(|n| sets.get(*n)).any(|bits| bits.get(at))
}

impl Inner {
    /// Whether two nodes are peers.
    pub(super) fn visible(&self, a: NodeId, b: NodeId) -> bool {
        let find = |id| self.ground.index.get(&id).copied();
        match (find(a), find(b)) {
            (Some(a), Some(b)) if a != b => self.related(a, b),
            _ => false,
        }
    }

    fn related(&self, a: usize, b: usize) -> bool {
        any(self.reach.srcs_of.get(a), &self.reach.to, b)
            || any(self.reach.srcs_of.get(b), &self.reach.to, a)
            || (self.same_user(a, b) && (self.own_sources.get(a) || self.own_sources.get(b)))
    }

    fn same_user(&self, a: usize, b: usize) -> bool {
        let user = |at: usize| self.ground.nodes.get(at).and_then(|n| n.user);
        user(a).is_some() && user(a) == user(b)
    }

    /// All peers of a node, in order of id.
    pub(super) fn peers(&self, node: NodeId) -> Vec<NodeId> {
        let Some(at) = self.ground.index.get(&node).copied() else {
            return Vec::new();
        };
        let mut out = Bits::default();
        for name in self.reach.srcs_of.get(at).into_iter().flatten() {
            if let Some(bits) = self.reach.to.get(*name) {
                out.add(bits);
            }
        }
        for name in self.reach.dsts_of.get(at).into_iter().flatten() {
            if let Some(bits) = self.reach.from.get(*name) {
                out.add(bits);
            }
        }
        let user = self.ground.nodes.get(at).and_then(|n| n.user);
        if let Some(devices) = user.and_then(|u| self.ground.by_user.get(&u)) {
            let mine = self.own_sources.get(at);
            for other in devices.iter().filter(|o| mine || self.own_sources.get(*o)) {
                out.set(other);
            }
        }
        out.iter()
            .filter(|other| *other != at)
            .filter_map(|other| self.ground.nodes.get(other))
            .map(|n| n.id)
            .collect()
    }

    /// Routes of `peer` that `viewer` is shown.
    pub(super) fn shown_routes(&self, viewer: NodeId, peer: NodeId) -> Vec<IpNet> {
        let find = |id| self.ground.index.get(&id).copied();
        let (Some(v), Some(p)) = (find(viewer), find(peer)) else {
            return Vec::new();
        };
        if v == p || !self.related(v, p) {
            return Vec::new();
        }
        let (Some(view), Some(server)) = (self.ground.nodes.get(v), self.ground.nodes.get(p)) else {
            return Vec::new();
        };
        let srcs = self.reach.srcs_of.get(v);
        let dsts = self.reach.dsts_of.get(v);
        let mut out: Vec<IpNet> = server
            .routes
            .iter()
            .filter(|r| {
                view.routes.contains(r)
                    || any(srcs, &self.reach.to_routes, **r)
                    || any(dsts, &self.reach.from_routes, **r)
            })
            .filter_map(|r| self.ground.routes.get(*r).copied())
            .collect();
        let internet =
            srcs.into_iter().flatten().any(|s| self.reach.to_internet.get(*s).copied().unwrap_or(false));
        if internet {
            out.extend(&server.exits);
        }
        out.sort_unstable();
        out
    }
}
