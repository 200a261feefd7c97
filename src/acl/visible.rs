//! Who sees whom and which routes (SEMANTICS.md 9.3 to 9.5). A rule joins every source name with every
//! destination name, so it is enough to know which names lead to which: a node belongs to a few names,
//! and a question is a few look-ups.

use std::sync::OnceLock;

use ipnet::IpNet;

use crate::keys::NodeId;

use super::ast::Alias;
use super::compile::Inner;
use super::plan::{Form, Id};
use super::ranges::Bits;

/// Above so many pairs of names, sets are made and kept instead of looking pairs up.
const FEW_PAIRS: usize = 512;

type Sets = OnceLock<Box<[OnceLock<Bits>]>>;

/// What was found out about this world so far; shared by all who ask.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// Per source name: nodes on the destination side of its rules.
    to: Sets,
    /// Per destination name: nodes on the source side of its rules.
    from: Sets,
    /// Per route: source names and destination names that overlap it.
    routes: OnceLock<Vec<[Vec<Id>; 2]>>,
}

/// Who is elected for a route among nodes; see [`super::Compiled::shown_routes`].
pub(super) type Elected<'a> = &'a dyn Fn(&IpNet, &[NodeId]) -> Option<NodeId>;

impl Inner {
    fn slot(&self, id: NodeId) -> Option<usize> {
        self.ground.index.get(&id).copied()
    }

    fn sides(&self, at: usize) -> [&[Id]; 2] {
        self.nodes.get(at).map_or([&[], &[]], |n| [&n.srcs, &n.dsts])
    }

    /// Whether two nodes are peers.
    pub(super) fn visible(&self, a: NodeId, b: NodeId) -> bool {
        match (self.slot(a), self.slot(b)) {
            (Some(a), Some(b)) if a != b => self.related(a, b),
            _ => false,
        }
    }

    fn related(&self, a: usize, b: usize) -> bool {
        self.leads(a, b) || self.leads(b, a) || self.own_related(a, b)
    }

    fn own_related(&self, a: usize, b: usize) -> bool {
        let user = |at: usize| self.ground.nodes.get(at).and_then(|n| n.user);
        user(a).is_some() && user(a) == user(b) && (self.own_sources().get(a) || self.own_sources().get(b))
    }

    /// Whether a rule has `a` on its source side and `b` on its destination side.
    fn leads(&self, a: usize, b: usize) -> bool {
        let ([srcs, _], [_, dsts]) = (self.sides(a), self.sides(b));
        if srcs.len() * dsts.len() <= FEW_PAIRS {
            return srcs.iter().any(|s| dsts.iter().any(|d| self.pair(*s, *d)));
        }
        srcs.iter().filter_map(|s| self.to(*s)).any(|nodes| nodes.get(b))
    }

    /// Whether some rule joins two names.
    fn pair(&self, src: Id, dst: Id) -> bool {
        self.plan.to.get(src as usize).is_some_and(|to| to.binary_search(&dst).is_ok())
    }

    fn to(&self, src: Id) -> Option<&Bits> {
        self.set(&self.found.reach.to, &self.plan.to, src)
    }

    fn from(&self, dst: Id) -> Option<&Bits> {
        self.set(&self.found.reach.from, &self.plan.from, dst)
    }

    fn set<'a>(&'a self, sets: &'a Sets, across: &[Box<[Id]>], name: Id) -> Option<&'a Bits> {
        let all = sets.get_or_init(|| self.plan.names.iter().map(|_| OnceLock::new()).collect());
        let cell = all.get(name as usize)?;
        Some(cell.get_or_init(|| {
            let mut out = Bits::default();
            for other in across.get(name as usize).into_iter().flatten() {
                if let Some(state) = self.names.get(*other as usize) {
                    out.add(&state.side);
                }
            }
            out
        }))
    }

    /// All peers of a node, in order of id.
    pub(super) fn peers(&self, node: NodeId) -> Vec<NodeId> {
        let Some(at) = self.slot(node) else {
            return Vec::new();
        };
        let mut out = Bits::default();
        let [srcs, dsts] = self.sides(at);
        srcs.iter().filter_map(|s| self.to(*s)).for_each(|nodes| out.add(nodes));
        dsts.iter().filter_map(|d| self.from(*d)).for_each(|nodes| out.add(nodes));
        let user = self.ground.nodes.get(at).and_then(|n| n.user);
        if let Some(devices) = user.and_then(|u| self.ground.by_user.get(&u)) {
            let mut devices = Bits::clone(devices);
            if !self.own_sources().get(at) {
                devices.keep(self.own_sources());
            }
            out.add(&devices);
        }
        out.clear(at);
        let mut ids: Vec<NodeId> =
            out.iter().filter_map(|other| self.ground.nodes.get(other)).map(|n| n.id).collect();
        ids.sort_unstable();
        ids
    }

    fn route_names(&self, route: usize) -> [&[Id]; 2] {
        let all = self.found.reach.routes.get_or_init(|| {
            let mut out = vec![[Vec::new(), Vec::new()]; self.ground.routes.len()];
            for ((id, name), state) in (0..).zip(&self.plan.names).zip(&self.names) {
                for number in &state.routes {
                    let Some([srcs, dsts]) = out.get_mut(*number) else {
                        continue;
                    };
                    match name.form {
                        Form::Source(_) => srcs.push(id),
                        Form::Dest | Form::App(_) => dsts.push(id),
                        // Steered routes have their own way of being shown (9.5).
                        Form::Via(_) => {}
                    }
                }
            }
            out
        });
        all.get(route).map_or([&[], &[]], |[s, d]| [s, d])
    }

    /// Routes of `peer` that `viewer` is shown.
    pub(super) fn shown_routes(&self, viewer: NodeId, peer: NodeId, elected: Elected<'_>) -> Vec<IpNet> {
        let (Some(v), Some(p)) = (self.slot(viewer), self.slot(peer)) else {
            return Vec::new();
        };
        let (Some(view), Some(server)) = (self.ground.nodes.get(v), self.ground.nodes.get(p)) else {
            return Vec::new();
        };
        if v == p || (server.routes.is_empty() && server.exits.is_empty()) || !self.related(v, p) {
            return Vec::new();
        }
        let [srcs, dsts] = self.sides(v);
        let mut out = Vec::new();
        for number in &server.routes {
            let Some(route) = self.ground.routes.get(*number) else {
                continue;
            };
            let [route_srcs, route_dsts] = self.route_names(*number);
            let any = |a: &[Id], b: &[Id]| a.iter().any(|s| b.iter().any(|d| self.pair(*s, *d)));
            let carries = |nodes: &Bits| elected(&route.net, &self.ids(nodes)) == Some(peer);
            let mut vias = self.steering(v, *number).peekable();
            // Who is led through certain routers is led there, unless a rule opens ports by any of them.
            let led = !view.routes.contains(number) && vias.peek().is_some() && {
                let opens = |d: &&Id| self.plan.names.get(**d as usize).is_some_and(|n| n.form == Form::Dest);
                let opening: Vec<Id> = route_dsts.iter().filter(opens).copied().collect();
                !any(srcs, &opening)
            };
            let shown = if led {
                vias.any(|via| {
                    let group = self.via_servers(via, &route.nodes);
                    group.get(p) && carries(&group)
                })
            } else {
                let open = view.routes.contains(number) || any(srcs, route_dsts) || any(route_srcs, dsts);
                open && carries(&route.nodes)
            };
            if shown {
                out.push(route.net);
            }
        }
        if !server.exits.is_empty() && self.reaches_internet(v, p) {
            out.extend(&server.exits);
        }
        out.sort_unstable();
        out
    }

    /// Sets of via tags through which `viewer` is led to a route.
    fn steering(&self, viewer: usize, route: usize) -> impl Iterator<Item = Id> {
        let [srcs, _] = self.sides(viewer);
        let any = if self.plan.steered.is_empty() { &[] } else { srcs };
        let names = any.iter().filter_map(|s| self.plan.to.get(*s as usize)).flatten();
        names.filter_map(move |d| match self.plan.names.get(*d as usize)?.form {
            Form::Via(via) if self.names.get(*d as usize)?.routes.contains(&route) => Some(via),
            _ => None,
        })
    }

    /// Those of `nodes` that carry a tag of a via set.
    pub(super) fn via_servers(&self, via: Id, nodes: &Bits) -> Bits {
        let mut tagged = Bits::default();
        for tag in self.plan.vias.get(via as usize).into_iter().flatten() {
            tagged.add(&self.ground.tag(tag));
        }
        tagged.keep(nodes);
        tagged
    }

    fn ids(&self, nodes: &Bits) -> Vec<NodeId> {
        let mut ids: Vec<NodeId> =
            nodes.iter().filter_map(|at| self.ground.nodes.get(at)).map(|n| n.id).collect();
        ids.sort_unstable();
        ids
    }

    /// Whether `viewer` may use the exit node `server`: any exit node by a plain rule, tagged ones by via.
    fn reaches_internet(&self, viewer: usize, server: usize) -> bool {
        let [srcs, _] = self.sides(viewer);
        let mut steered = false;
        for dst in srcs.iter().filter_map(|s| self.plan.to.get(*s as usize)).flatten() {
            let Some(name) = self.plan.names.get(*dst as usize) else {
                continue;
            };
            match name.form {
                Form::Via(via) if name.alias == Alias::Internet => {
                    steered |= self.via_servers(via, &self.ground.exits).get(server);
                }
                Form::Dest if name.internet != [false; 2] => return true,
                _ => {}
            }
        }
        steered
    }

    /// Routes steered by via, each with the nodes of which one is to be elected.
    pub(super) fn via_groups(&self) -> Vec<(IpNet, Vec<NodeId>)> {
        let mut out = Vec::new();
        for (name, state) in self.plan.names.iter().zip(&self.names) {
            let Form::Via(via) = name.form else { continue };
            for route in state.routes.iter().filter_map(|r| self.ground.routes.get(*r)) {
                let group = self.via_servers(via, &route.nodes);
                if !group.is_empty() {
                    out.push((route.net, self.ids(&group)));
                }
            }
        }
        out.sort();
        out.dedup();
        out
    }
}
