//! Which of several nodes serves a route. The lowest id that is online; whoever is elected stays while
//! it can, so that nothing flaps. Exit routes are not elected: the client chooses its exit node.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::state::Tailnet;
use crate::keys::NodeId;

/// Whether a route is one of the two default routes.
#[must_use]
pub(super) fn is_exit(route: &IpNet) -> bool {
    route.prefix_len() == 0
}

/// Elects a primary for every served route.
#[must_use]
pub(super) fn elect(net: &Tailnet) -> BTreeMap<IpNet, NodeId> {
    let mut servers: BTreeMap<IpNet, Vec<NodeId>> = BTreeMap::new();
    for node in net.nodes.values() {
        if node.hostinfo.routable_ips.is_empty() || net.expired.contains(&node.id) {
            continue;
        }
        for route in node.served_routes().into_iter().filter(|r| !is_exit(r)) {
            servers.entry(route).or_default().push(node.id);
        }
    }
    let elected = |route: &IpNet, nodes: &[NodeId]| {
        let holder = net.primaries.get(route).filter(|id| nodes.contains(id));
        let online = |id: &&NodeId| net.is_online(**id);
        holder
            .filter(online)
            .or_else(|| nodes.iter().find(online))
            .or(holder)
            .or_else(|| nodes.first())
            .copied()
    };
    servers.iter().filter_map(|(route, nodes)| Some((*route, elected(route, nodes)?))).collect()
}

/// Adds every node that won or lost a route to `nodes`.
pub(super) fn changed(
    old: &BTreeMap<IpNet, NodeId>,
    new: &BTreeMap<IpNet, NodeId>,
    nodes: &mut BTreeSet<NodeId>,
) {
    for (a, b) in [(old, new), (new, old)] {
        for (route, id) in a {
            if b.get(route) != Some(id) {
                nodes.insert(*id);
            }
        }
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
    net.compiled.shown_routes(viewer, peer, &|route, _| net.primaries.get(route).copied())
}
