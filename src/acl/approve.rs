//! `autoApprovers` (SEMANTICS.md 11): which of the routes a node offers the policy approves. Approvals are
//! only ever added; what is taken out of the policy stays approved until somebody takes it back.

use std::collections::HashMap;

use ipnet::IpNet;

use super::ast::{Alias, File, Spanned};
use super::ranges::{Bits, Range, exit_routes};
use super::resolve::{Ground, Resolver};

/// Who may serve what in one world.
#[derive(Debug)]
pub(super) struct Table {
    routes: Vec<(IpNet, Bits)>,
    exits: Bits,
}

impl Table {
    /// Resolves the approvers of `file`.
    pub(super) fn new(file: &File, ground: &Ground) -> Self {
        let resolver = Resolver { file, ground };
        let mut known: HashMap<Alias, Bits> = HashMap::new();
        let mut all = |approvers: &[Spanned<Alias>]| {
            let mut nodes = Bits::default();
            for Spanned { value: alias, .. } in approvers {
                nodes.add(known.entry(alias.clone()).or_insert_with(|| resolver.members(alias)));
            }
            nodes
        };
        let written = &file.auto_approvers;
        let routes = written.routes.iter().map(|(net, who)| (net.value.trunc(), all(who))).collect();
        Self { routes, exits: all(&written.exit_node) }
    }

    /// Which of `offered` are approved for the node in `slot`, sorted. Never the address of another node:
    /// who may serve networks may not by that take somebody's place.
    pub(super) fn approved(&self, ground: &Ground, slot: usize, offered: &[IpNet]) -> Vec<IpNet> {
        let mut out: Vec<IpNet> = offered.iter().map(IpNet::trunc).collect();
        out.retain(|route| {
            // Exit routes are a thing of their own: no network in `routes` stands for them.
            if exit_routes().contains(route) {
                return self.exits.get(slot);
            }
            let range = Range::from(*route);
            if range.is_single() && ground.covered(range).iter().any(|other| other != slot) {
                return false;
            }
            self.routes.iter().any(|(net, nodes)| net.contains(route) && nodes.get(slot))
        });
        out.sort_unstable();
        out.dedup();
        out
    }
}
