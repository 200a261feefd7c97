//! Who carries what goes to and comes from addresses that are no node's: the router that the sender is shown
//! for the narrowest route (SEMANTICS.md 9.4 to 9.6), else an exit node.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::acl::ranges::internet;
use crate::keys::NodeId;

use super::flow::{Block, Carrier, Scene};

impl Scene<'_> {
    /// Who is elected among nodes that serve a route, as far as is known.
    fn elected(&self, net: &IpNet, nodes: &[NodeId]) -> Option<NodeId> {
        let known = self.facts.carriers.get(net).into_iter().flatten().find(|n| nodes.contains(n));
        let online = || nodes.iter().find(|n| !self.facts.offline.contains(n));
        known.or_else(online).or(nodes.first()).copied()
    }

    /// Whom a sender hands what goes to `ip`, which is no node's.
    pub(super) fn carrier(&self, sender: usize, ip: IpAddr) -> Result<Carrier, Block> {
        let ground = &self.inner.ground;
        let sender_id = self.node(sender).ok_or(Block::Gone)?.id;
        let elect = |net: &IpNet, nodes: &[NodeId]| self.elected(net, nodes);
        let mut routes: Vec<_> =
            ground.served().filter(|(_, r)| r.range.contains(ip)).map(|(_, r)| r).collect();
        routes.sort_by_key(|r| std::cmp::Reverse(r.net.prefix_len()));
        let mut fallback = None;
        for route in routes {
            if route.nodes.get(sender) {
                return Err(Block::Local(sender));
            }
            let others = route.nodes.len().saturating_sub(1);
            let mut ids: Vec<NodeId> =
                route.nodes.iter().filter_map(|at| self.node(at)).map(|n| n.id).collect();
            ids.sort_unstable();
            let elected = self.elected(&route.net, &ids);
            let carrier = |id: NodeId, shown| {
                let at = *ground.index.get(&id)?;
                Some(Carrier { at, net: route.net, shown, others, steered: elected != Some(id) })
            };
            let shows = |id: &&NodeId| self.inner.shown_routes(sender_id, **id, &elect).contains(&route.net);
            if let Some(found) = ids.iter().find(shows).and_then(|id| carrier(*id, true)) {
                return Ok(found);
            }
            fallback = fallback.or_else(|| carrier(elected?, false));
        }
        if fallback.is_none() && internet().iter().any(|r| r.contains(ip)) {
            fallback = self.exit(sender, sender_id, ip);
        }
        fallback.ok_or(Block::NoWay(ip))
    }

    /// An exit node for `ip`: one that lets the sender through before one that does not.
    fn exit(&self, sender: usize, sender_id: NodeId, ip: IpAddr) -> Option<Carrier> {
        let default = if ip.is_ipv6() { "::/0" } else { "0.0.0.0/0" };
        let net: IpNet = default.parse().ok()?;
        let exits = &self.inner.ground.exits;
        let mut best: Option<Carrier> = None;
        for at in exits.iter().filter(|at| *at != sender) {
            let Some(node) = self.node(at).filter(|n| n.exits.contains(&net)) else {
                continue;
            };
            let shown =
                self.inner.shown_routes(sender_id, node.id, &|_, all| all.first().copied()).contains(&net);
            let online = |at: usize| self.node(at).is_some_and(|n| !self.facts.offline.contains(&n.id));
            let better = best.as_ref().is_none_or(|b| (shown, online(at)) > (b.shown, online(b.at)));
            if better {
                let others = exits.len().saturating_sub(1);
                best = Some(Carrier { at, net, shown, others, steered: false });
            }
        }
        best
    }

    /// The node that stands for the sender of what comes from `ip`, which is no node's.
    pub(super) fn sender(&self, ip: IpAddr) -> Option<usize> {
        let routes = self.inner.ground.served().filter(|(_, r)| r.range.contains(ip)).map(|(_, r)| r);
        let route = routes.max_by_key(|r| r.net.prefix_len())?;
        let mut ids: Vec<NodeId> = route.nodes.iter().filter_map(|at| self.node(at)).map(|n| n.id).collect();
        ids.sort_unstable();
        self.inner.ground.index.get(&self.elected(&route.net, &ids)?).copied()
    }
}
