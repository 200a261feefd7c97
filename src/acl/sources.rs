//! Lists of sources: what stands on one, what it prints as (SEMANTICS.md 6.2), and the key that tells
//! lists that print alike from those that do not.

use std::sync::{Arc, OnceLock};

use crate::wire::SrcIps;

use super::compile::NameState;
use super::ground::Ground;
use super::plan::{Id, Plan, Shape};
use super::ranges::{Bits, Range, exit_routes, join, star, without};

/// What one list of sources prints as.
#[derive(Debug, Clone)]
pub(super) struct ListState {
    /// Equal for lists that print alike, and for no others.
    pub(super) key: u128,
    /// Nobody is on it.
    pub(super) empty: bool,
    pub(super) strings: Arc<OnceLock<SrcIps>>,
}

/// What stands on a list of sources.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// `autogroup:danger-all`: every address, whatever else is listed.
    danger: bool,
    /// `*`, whole.
    star: bool,
    /// The routes that come with `*`.
    routes: bool,
    ranges: Vec<Range>,
    nodes: Bits,
}

impl Sources {
    /// Nodes and nothing else.
    pub(super) fn of(nodes: Bits) -> Self {
        Self { nodes, ..Self::default() }
    }

    pub(super) fn into_nodes(self) -> Bits {
        self.nodes
    }

    pub(super) fn gather(plan: &Plan, names: &[Arc<NameState>], ground: &Ground, list: &[Id]) -> Self {
        let mut out = Self::default();
        for id in list {
            let (Some(name), Some(state)) = (plan.names.get(*id as usize), names.get(*id as usize)) else {
                continue;
            };
            let holed = |ranges: Vec<Range>| {
                if state.holes.is_empty() {
                    return ranges;
                }
                let holes = state.holes.iter().filter_map(|at| ground.nodes.get(at));
                let away: Vec<Range> =
                    holes.flat_map(|n| [Range::single(n.v4), Range::single(n.v6)]).collect();
                without(ranges, &away)
            };
            match &name.shape {
                Shape::Everything if state.holes.is_empty() => out.danger = true,
                Shape::Everything => out.ranges.extend(holed(exit_routes().map(Range::from).to_vec())),
                Shape::Star { .. } => {
                    if state.holes.is_empty() {
                        out.star = true;
                        out.routes = true;
                    } else {
                        // Routes too: one may cover the address of a device that fails.
                        let routes = ground.served().map(|(_, r)| r.range);
                        out.ranges.extend(holed(star().into_iter().chain(routes).collect()));
                    }
                }
                Shape::Nodes => out.nodes.add(&state.families[0]),
                Shape::Ranges(ranges) => out.ranges.extend(holed(ranges.iter().map(|(r, _)| *r).collect())),
            }
        }
        out
    }

    fn is_empty(&self) -> bool {
        !self.danger && !self.routes && self.ranges.is_empty() && self.nodes.is_empty()
    }

    /// Ranges that print, sorted and disjoint, beside `*` and its routes.
    fn joined(&self, ground: &Ground) -> Vec<Range> {
        let nodes = self.nodes.iter().filter_map(|at| ground.nodes.get(at));
        let nodes = nodes.flat_map(|n| [Range::single(n.v4), Range::single(n.v6)]);
        let mut all = join(self.ranges.iter().copied().chain(nodes).collect());
        if self.routes {
            let routes: Vec<Range> = ground.served().map(|(_, r)| r.range).collect();
            all.retain(|r| !(routes.contains(r) || self.star && star().contains(r)));
        }
        all
    }

    /// The same for two sets exactly when they print alike. A set of nodes has the sum of its nodes'
    /// hashes, so that one node more or less changes it in one step.
    pub(super) fn key(&self, ground: &Ground) -> u128 {
        let mark = |number: u128| ground.hash(Range::all()).wrapping_mul(2 * number + 1);
        if self.danger {
            return mark(1);
        }
        if !self.routes && self.ranges.is_empty() {
            let nodes = self.nodes.iter().filter_map(|at| ground.nodes.get(at));
            return nodes.fold(0, |key, n| key ^ n.hash);
        }
        let mut key = 0;
        if self.star {
            key ^= mark(2);
        }
        if self.routes {
            key ^= mark(3);
        }
        for range in self.joined(ground) {
            let inside = if range.is_single() { &[][..] } else { ground.within(range) };
            // A range of nothing but nodes' addresses equals those nodes.
            if !inside.is_empty() && range.counts(inside.len()) {
                key = inside.iter().fold(key, |key, (ip, _)| key ^ ground.hash(Range::single(*ip)));
            } else {
                key ^= ground.hash(range);
            }
        }
        key
    }

    /// `SrcIPs`: sorted as plain text (6.2).
    pub(super) fn text(&self, ground: &Ground) -> SrcIps {
        if self.danger {
            return [Arc::from("*")].into_iter().collect();
        }
        let mut out: Vec<Arc<str>> = Vec::new();
        if self.routes || !self.ranges.is_empty() {
            out.extend(self.joined(ground).into_iter().map(|r| Arc::from(r.text())));
        } else {
            // Texts of addresses are shared by all lists they stand in.
            let nodes = self.nodes.iter().filter_map(|at| ground.nodes.get(at));
            let mut singles: Vec<(Range, &Arc<str>)> = nodes
                .flat_map(|n| {
                    let [v4, v6] = &n.texts;
                    [(Range::single(n.v4), v4), (Range::single(n.v6), v6)]
                })
                .collect();
            singles.sort_unstable_by_key(|(range, _)| *range);
            let mut open: Option<(Range, &Arc<str>)> = None;
            let print = |(range, text): (Range, &Arc<str>)| {
                if range.is_single() { text.clone() } else { Arc::from(range.text()) }
            };
            for (range, text) in singles {
                match &mut open {
                    Some((last, _)) if last.touches(range) => *last = last.through(range),
                    _ => out.extend(open.replace((range, text)).map(print)),
                }
            }
            out.extend(open.map(print));
        }
        if self.star {
            out.extend(star().iter().map(|r| Arc::from(r.text())));
        }
        if self.routes {
            out.extend(ground.served().map(|(_, r)| r.text.clone()));
        }
        out.sort_unstable();
        out.dedup();
        out.into_iter().collect()
    }
}

pub(super) fn list_state(plan: &Plan, names: &[Arc<NameState>], ground: &Ground, list: &[Id]) -> ListState {
    let sources = Sources::gather(plan, names, ground, list);
    ListState { key: sources.key(ground), empty: sources.is_empty(), strings: Arc::default() }
}
