//! Names to nodes and address ranges, against one world.

use std::sync::Arc;

use super::ast::{Alias, File};
pub(super) use super::ground::Ground;
use super::plan::ip_set;
use super::ranges::{Bits, Range, exit_routes, internet, join, star};

/// Resolves names of one policy.
pub(super) struct Resolver<'a> {
    pub(super) file: &'a File,
    pub(super) ground: &'a Ground,
}

impl Resolver<'_> {
    /// Nodes that bear a name; none for names that are addresses.
    pub(super) fn bearers(&self, alias: &Alias) -> Arc<Bits> {
        match alias {
            Alias::User(name) => self.ground.user(name),
            Alias::Group(name) => {
                let mut out = Bits::default();
                for user in self.file.groups.get(name).into_iter().flat_map(|g| &g.value) {
                    out.add(&self.ground.user(&user.value));
                }
                Arc::new(out)
            }
            Alias::Tag(tag) => self.ground.tag(tag),
            Alias::Domain(domain) => self.ground.domain(domain),
            Alias::Role(role) => self.ground.role(*role),
            Alias::Member => self.ground.untagged.clone(),
            Alias::Tagged => self.ground.tagged.clone(),
            _ => self.ground.nobody(),
        }
    }

    /// Nodes one of whose addresses the name covers; `*` covers all, `autogroup:self` none.
    pub(super) fn members(&self, alias: &Alias) -> Bits {
        match alias {
            Alias::Any | Alias::DangerAll => Bits::clone(&self.ground.all),
            Alias::Internet => Bits::default(),
            Alias::Prefix(_) | Alias::Range(..) | Alias::Host(_) | Alias::IpSet(_) => {
                let mut out = Bits::default();
                self.ranges(alias).into_iter().for_each(|r| out.add(&self.ground.covered(r)));
                out
            }
            _ => Bits::clone(&self.bearers(alias)),
        }
    }

    /// The addresses a name means, sorted and disjoint: those of its nodes, or its literal ranges.
    pub(super) fn ranges(&self, alias: &Alias) -> Vec<Range> {
        join(match alias {
            Alias::Any => {
                let routes = self.ground.served().map(|(_, r)| r.range);
                star().into_iter().chain(routes).collect()
            }
            Alias::DangerAll => exit_routes().map(Range::from).to_vec(),
            Alias::Internet => internet().to_vec(),
            Alias::Prefix(net) => vec![(*net).into()],
            Alias::Range(low, high) => vec![Range::new(*low, *high)],
            Alias::Host(name) => self.file.hosts.get(name).map(|n| n.value.into()).into_iter().collect(),
            Alias::IpSet(name) => ip_set(self.file, name, &mut Vec::new()),
            _ => {
                let nodes = self.bearers(alias);
                let nodes = nodes.iter().filter_map(|at| self.ground.nodes.get(at));
                nodes.flat_map(|n| [Range::single(n.v4), Range::single(n.v6)]).collect()
            }
        })
    }
}
