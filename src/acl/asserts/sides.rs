//! Names of rules and sources of tests as sets of addresses: nodes by family, and what is no node's.

use std::collections::HashMap;
use std::net::IpAddr;

use super::super::alias::Alias;
use super::super::ranges::{Bits, Range, without};
use super::super::resolve::Ground;
use super::Scene;

/// One name of a rule against the world.
#[derive(Debug)]
pub(super) struct Side {
    /// All addresses there are.
    pub(super) everything: bool,
    /// Nodes whose IPv4, and whose IPv6 address is meant.
    families: [Bits; 2],
    pub(super) members: Bits,
    /// The addresses themselves, of a name that means addresses; nodes' are looked up when needed.
    pub(super) literal: Option<Vec<Range>>,
}

/// Numbered names.
#[derive(Default)]
pub(super) struct Sides<'a> {
    index: HashMap<&'a Alias, usize>,
    pub(super) list: Vec<Side>,
}

/// Everything a source is, address by address.
#[derive(Debug, Clone, Default)]
pub(super) struct Source {
    /// Nodes by family.
    pub(super) nodes: [Bits; 2],
    /// Addresses that are no node's, whole networks among them.
    pub(super) ranges: Vec<Range>,
}

impl Source {
    /// What the source of a test means.
    pub(super) fn new(scene: &Scene<'_>, alias: &Alias) -> Self {
        let resolver = &scene.resolver;
        let mut source = Self::default();
        match alias {
            Alias::Any | Alias::Range(..) | Alias::IpSet(_) | Alias::Prefix(_) | Alias::Host(_) => {
                source.ranges = resolver.ranges(alias);
                let single = matches!(alias, Alias::Prefix(_) | Alias::Host(_)) && scene.is_single(alias);
                let node = single.then(|| resolver.members(alias)).filter(|m| !m.is_empty());
                if let (Some(node), [range]) = (node, source.ranges.as_slice()) {
                    let [v4, v6] = &mut source.nodes;
                    *(if range.is_v6() { v6 } else { v4 }) = node;
                    source.ranges.clear();
                }
            }
            _ => {
                let members = resolver.members(alias);
                source.nodes = [members.clone(), members];
            }
        }
        source
    }

    pub(super) fn is_empty(&self) -> bool {
        self.nodes.iter().all(Bits::is_empty) && self.ranges.is_empty()
    }

    pub(super) fn count(&self) -> usize {
        self.nodes.iter().map(Bits::len).sum::<usize>() + self.ranges.len()
    }

    /// Whether a rule's source name has any part of `source`, whatever its posture.
    pub(super) fn touches(&self, side: &Side, ground: &Ground) -> bool {
        let nodes = side.families.iter().zip(&self.nodes).any(|(side, nodes)| side.meets(nodes));
        nodes || self.ranges.iter().any(|range| side.overlaps(*range, None, ground))
    }

    /// Takes away what `side` covers.
    pub(super) fn take_away(&mut self, side: &Side, fit: Option<&Bits>, ground: &Ground) {
        for (left, covered) in self.nodes.iter_mut().zip(&side.families) {
            match fit {
                None => left.drop(covered),
                Some(fit) => {
                    let mut covered = covered.clone();
                    covered.keep(fit);
                    left.drop(&covered);
                }
            }
        }
        self.ranges.retain(|range| !side.overlaps(*range, fit, ground));
    }
}

impl<'a> Sides<'a> {
    pub(super) fn number(&mut self, alias: &'a Alias, resolve: impl FnOnce() -> Side) -> usize {
        let next = self.list.len();
        let number = *self.index.entry(alias).or_insert(next);
        if number == next {
            self.list.push(resolve());
        }
        number
    }
}

impl Side {
    /// Resolves one name.
    pub(super) fn new(scene: &Scene<'_>, alias: &Alias) -> Self {
        let members = scene.resolver.members(alias);
        let by_nodes = matches!(
            alias,
            Alias::User(_)
                | Alias::Domain(_)
                | Alias::Group(_)
                | Alias::Tag(_)
                | Alias::Member
                | Alias::Tagged
                | Alias::Role(_)
                | Alias::Service(_)
        );
        if by_nodes {
            let families = [members.clone(), members.clone()];
            return Self { everything: false, families, members, literal: None };
        }
        let ranges = scene.resolver.ranges(alias);
        let mut families = [Bits::default(), Bits::default()];
        let [v4, v6] = &mut families;
        for slot in members.iter() {
            if let Some(node) = scene.ground.nodes.get(slot) {
                [(&mut *v4, node.v4), (&mut *v6, node.v6)]
                    .into_iter()
                    .filter(|(_, ip)| holds(&ranges, *ip))
                    .for_each(|(family, _)| family.set(slot));
            }
        }
        Self { everything: false, families, members, literal: Some(ranges) }
    }

    /// Whether it has an address in `range`; with `fit`, of nodes only of these.
    fn overlaps(&self, range: Range, fit: Option<&Bits>, ground: &Ground) -> bool {
        let nodes = |members: &Bits| {
            let nodes = members.iter().filter_map(|slot| ground.nodes.get(slot));
            nodes.flat_map(|n| [n.v4, n.v6]).collect::<Vec<IpAddr>>()
        };
        match (&self.literal, fit) {
            (Some(ranges), None) => ranges.iter().any(|r| r.overlaps(range)),
            // Posture is asked only of what is a node's.
            (Some(ranges), Some(fit)) => {
                let mut unfit = self.members.clone();
                unfit.drop(fit);
                let unfit: Vec<Range> = nodes(&unfit).into_iter().map(Range::single).collect();
                without(ranges.clone(), &unfit).iter().any(|r| r.overlaps(range))
            }
            (None, None) => nodes(&self.members).into_iter().any(|ip| range.contains(ip)),
            (None, Some(fit)) => {
                let mut members = self.members.clone();
                members.keep(fit);
                nodes(&members).into_iter().any(|ip| range.contains(ip))
            }
        }
    }
}

/// Whether sorted, disjoint ranges contain `ip`.
fn holds(ranges: &[Range], ip: IpAddr) -> bool {
    let single = Range::single(ip);
    let at = ranges.partition_point(|r| *r < single);
    let near = at.checked_sub(1).into_iter().chain([at]);
    near.filter_map(|at| ranges.get(at)).any(|r| r.contains(ip))
}
