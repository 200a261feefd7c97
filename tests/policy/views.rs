//! What follows from the naive evaluator's rules beside access: capabilities, peers, shown routes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use tsd::acl::WorldNode;
use tsd::acl::ast::Alias;
use tsd::keys::NodeId;

use super::naive::{Naive, Rule, companions};
use super::plain::is_exit;

impl Naive<'_> {
    /// Names of the capabilities of one address at a node's address.
    pub(crate) fn capabilities(&self, from: IpAddr, to: IpAddr) -> BTreeSet<String> {
        let mut out = BTreeSet::new();
        for (rule, app) in self.rules.iter().filter(|r| r.via.is_empty()).filter_map(|r| Some((r, r.app?))) {
            let (there, back) = match (rule.dst, self.at.get(&from), self.at.get(&to)) {
                (Alias::Own, Some(a), Some(b)) => (self.own(rule, a, b), self.own(rule, b, a)),
                (dst, _, _) => (
                    self.source(rule, from) && self.means(dst, to),
                    self.source(rule, to) && self.means_source(dst, from),
                ),
            };
            out.extend(app.keys().filter(|_| there).cloned());
            out.extend(companions(Some(app)).into_iter().filter(|_| back).map(str::to_owned));
        }
        out
    }

    pub(crate) fn visible(&self, a: &WorldNode, b: &WorldNode) -> bool {
        self.rules.iter().any(|rule| {
            let to = |n: &WorldNode| rule.to.contains(&n.id) || (rule.internet && is_exit(n));
            let related = |x: &WorldNode, y| match rule.dst {
                Alias::Own => self.own(rule, x, y),
                _ => rule.from.contains(&x.id) && to(y) && self.passes(rule, y),
            };
            related(a, b) || related(b, a)
        })
    }

    /// Routes of a peer that a node is shown, with the first of several in charge of a route.
    pub(crate) fn shown(&self, viewer: &WorldNode, peer: &WorldNode) -> BTreeSet<IpNet> {
        let first = |route: IpNet, tags: Option<&BTreeSet<&str>>| -> Option<NodeId> {
            let mut servers = self.world.nodes.values().filter(|n| n.served_routes.contains(&route));
            let right = |n: &&WorldNode| tags.is_none_or(|t| n.owner.tags().any(|x| t.contains(x.as_str())));
            servers.find(right).map(|n| n.id)
        };
        let shown = |route: &IpNet| {
            let (from, to) =
                (|r: &Rule<'_>| r.from.contains(&viewer.id), |r: &Rule<'_>| r.nets[1].contains(route));
            if route.prefix_len() == 0 {
                return self.rules.iter().any(|r| r.internet && from(r) && self.passes(r, peer));
            }
            let back = |r: &Rule<'_>| {
                r.nets[0].contains(route) && (r.to.contains(&viewer.id) || (r.internet && is_exit(viewer)))
            };
            let primary = first(*route, None) == Some(peer.id);
            let related = |r: &Rule<'_>| from(r) && to(r) && r.via.is_empty();
            if viewer.served_routes.contains(route)
                || self.rules.iter().any(|r| related(r) && !r.ports.is_empty())
            {
                return primary;
            }
            let literal = |r: &Rule<'_>| *r.dst != Alias::Internet && !self.spans(r.dst).is_empty();
            let led = |r: &&Rule<'_>| from(r) && to(r) && !r.via.is_empty() && literal(r);
            let mut led = self.rules.iter().filter(led).peekable();
            if led.peek().is_some() {
                return led.any(|r| self.passes(r, peer) && first(*route, Some(&r.via)) == Some(peer.id));
            }
            // The way back leads through whoever carries the rule.
            primary && self.rules.iter().any(|r| related(r) || (self.passes(r, viewer) && back(r)))
        };
        let visible = self.visible(viewer, peer);
        peer.served_routes.iter().filter(|r| visible && shown(r)).copied().collect()
    }
}
