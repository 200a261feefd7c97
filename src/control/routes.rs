//! Which of several nodes serves a route. The lowest id that is online; whoever is elected stays while
//! it can, so that nothing flaps. Exit routes are not elected: the client chooses its exit node.
//!
//! A `via` grant has an election of its own among the nodes it steers through (SEMANTICS.md 9.5).

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::state::Tailnet;
use crate::keys::NodeId;

/// Who carries what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Elected {
    /// Of all nodes that serve a route.
    global: BTreeMap<IpNet, NodeId>,
    /// Of the nodes of one `via` group, in order of id.
    via: BTreeMap<IpNet, BTreeMap<Vec<NodeId>, NodeId>>,
}

impl Elected {
    /// Who carries `route` for everybody.
    #[must_use]
    pub(super) fn primary(&self, route: &IpNet) -> Option<NodeId> {
        self.global.get(route).copied()
    }

    /// Who of `nodes` carries `route`: of a `via` group, or of all.
    #[must_use]
    fn among(&self, route: &IpNet, nodes: &[NodeId]) -> Option<NodeId> {
        let group = self.via.get(route).and_then(|groups| {
            if nodes.is_sorted() {
                return groups.get(nodes).copied();
            }
            let mut nodes = nodes.to_vec();
            nodes.sort_unstable();
            groups.get(&nodes).copied()
        });
        group.or_else(|| self.primary(route))
    }

    /// Who carries each route for somebody.
    #[must_use]
    pub(super) fn carriers(&self) -> BTreeMap<IpNet, Vec<NodeId>> {
        let mut out: BTreeMap<IpNet, Vec<NodeId>> = BTreeMap::new();
        for (route, _, id) in self.entries() {
            let list = out.entry(*route).or_default();
            if !list.contains(&id) {
                list.push(id);
            }
        }
        out
    }

    fn entries(&self) -> impl Iterator<Item = (&IpNet, &[NodeId], NodeId)> {
        let global = self.global.iter().map(|(route, id)| (route, [].as_slice(), *id));
        let via = self
            .via
            .iter()
            .flat_map(|(route, groups)| groups.iter().map(move |(nodes, id)| (route, nodes.as_slice(), *id)));
        global.chain(via)
    }
}

/// Whether a route is one of the two default routes.
#[must_use]
pub(super) fn is_exit(route: &IpNet) -> bool {
    route.prefix_len() == 0
}

/// Who of `nodes`, in order of id, takes a route that `holder` has.
fn one_of(net: &Tailnet, nodes: &[NodeId], holder: Option<NodeId>) -> Option<NodeId> {
    let holder = holder.filter(|id| nodes.contains(id));
    let online = |id: &NodeId| net.is_online(*id);
    holder
        .filter(online)
        .or_else(|| nodes.iter().copied().find(online))
        .or(holder)
        .or_else(|| nodes.first().copied())
}

/// Elects a primary for every served route, and one for every `via` group.
#[must_use]
pub(super) fn elect(net: &Tailnet) -> Elected {
    let mut servers: BTreeMap<IpNet, Vec<NodeId>> = BTreeMap::new();
    for node in net.nodes.values() {
        if node.hostinfo.routable_ips.is_empty() || net.expired.contains(&node.id) {
            continue;
        }
        for route in node.served_routes().into_iter().filter(|r| !is_exit(r)) {
            servers.entry(route).or_default().push(node.id);
        }
    }
    let old = &net.primaries;
    let global: BTreeMap<IpNet, NodeId> = servers
        .iter()
        .filter_map(|(route, nodes)| Some((*route, one_of(net, nodes, old.primary(route))?)))
        .collect();
    let mut via: BTreeMap<IpNet, BTreeMap<Vec<NodeId>, NodeId>> = BTreeMap::new();
    for (route, mut nodes) in net.compiled.via_groups() {
        nodes.sort_unstable();
        nodes.dedup();
        let live: Vec<NodeId> = nodes.iter().copied().filter(|id| !net.expired.contains(id)).collect();
        // A group of all that serve a route is that route's election.
        let everybody = servers.get(&route).is_some_and(|all| *all == live);
        let holder = old.via.get(&route).and_then(|groups| groups.get(&nodes)).copied();
        let one = if everybody { global.get(&route).copied() } else { one_of(net, &live, holder) };
        if let Some(one) = one {
            via.entry(route).or_default().insert(nodes, one);
        }
    }
    Elected { global, via }
}

/// Adds every node that won or lost a route to `nodes`.
pub(super) fn changed(old: &Elected, new: &Elected, nodes: &mut BTreeSet<NodeId>) {
    for (a, b) in [(old, new), (new, old)] {
        let known: BTreeSet<_> = b.entries().collect();
        nodes.extend(a.entries().filter(|e| !known.contains(e)).map(|(_, _, id)| id));
    }
}

/// The routes of `peer` that `viewer` is shown: shown by the policy, and elected or an exit.
#[must_use]
pub(super) fn shown(net: &Tailnet, viewer: NodeId, peer: NodeId) -> Vec<IpNet> {
    let has_routes = net
        .nodes
        .get(&peer)
        .is_some_and(|n| !n.hostinfo.routable_ips.is_empty() && !n.approved_routes.is_empty());
    if !has_routes {
        return Vec::new();
    }
    net.compiled.shown_routes(viewer, peer, &|route, nodes| net.primaries.among(route, nodes))
}
