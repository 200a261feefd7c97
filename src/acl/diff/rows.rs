//! Gains and losses as people read them: who, as persons and tags, to whom, what.

use std::collections::{BTreeMap, BTreeSet};

use super::super::AccessChange;
use super::super::compile::Inner;
use super::{Class, Found, pair_counts};
use crate::keys::NodeId;

/// Names written out in one cell; the rest is a number.
const NAMES: usize = 3;
/// Ids that come with a row.
const IDS: usize = 16;

/// The widest rows first, at most `limit`.
pub(super) fn widest(mut rows: Vec<AccessChange>, limit: usize) -> Vec<AccessChange> {
    rows.sort_by(|a, b| b.pairs.cmp(&a.pairs).then_with(|| (&a.from, &a.to).cmp(&(&b.from, &b.to))));
    rows.truncate(limit);
    rows
}

/// The rows of one direction.
pub(super) fn rows(policy: &Inner, classes: &[Class], found: &Found) -> Vec<AccessChange> {
    let people = Identities::new(policy);
    let mut out: Vec<AccessChange> = Vec::new();
    for ((what, same), places) in &found.pairs {
        // Targets that the same sources reach stand in one row.
        let mut by_target: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (from, tos) in places {
            for to in tos {
                by_target.entry(*to).or_default().insert(*from);
            }
        }
        let mut groups: BTreeMap<BTreeSet<usize>, Vec<usize>> = BTreeMap::new();
        for (to, froms) in by_target {
            groups.entry(froms).or_default().push(to);
        }
        for (froms, tos) in groups {
            let pairs = froms.iter().flat_map(|f| tos.iter().map(move |t| (*f, *t)));
            let count = |(f, t): (usize, usize)| match (classes.get(f), classes.get(t)) {
                (Some(a), Some(b)) => {
                    let [strangers, own] = pair_counts(a, b, f == t);
                    if *same { own } else { strangers }
                }
                _ => 0,
            };
            let nodes = |list: &mut dyn Iterator<Item = &usize>| -> Vec<usize> {
                list.filter_map(|c| classes.get(*c)).flat_map(|c| &c.nodes).copied().collect()
            };
            let (from, to) = (nodes(&mut froms.iter()), nodes(&mut tos.iter()));
            let mut row = people.row(policy, &from, &to, what.clone(), pairs.map(count).sum());
            if *same {
                "their own devices".clone_into(&mut row.to);
            }
            out.push(row);
        }
    }
    out
}

/// How many devices each identity has in all.
pub(super) struct Identities {
    sizes: BTreeMap<String, usize>,
}

impl Identities {
    pub(super) fn new(policy: &Inner) -> Self {
        let mut sizes = BTreeMap::new();
        for (at, _) in policy.ground.live() {
            *sizes.entry(identity(policy, at)).or_default() += 1;
        }
        Self { sizes }
    }

    /// One row.
    pub(super) fn row(
        &self,
        policy: &Inner,
        from: &[usize],
        to: &[usize],
        what: String,
        pairs: u64,
    ) -> AccessChange {
        AccessChange {
            from: self.words(policy, from),
            to: self.words(policy, to),
            what,
            pairs,
            from_nodes: some_ids(policy, from),
            to_nodes: some_ids(policy, to),
        }
    }

    /// `alice@`, `laptop of alice@`, `alice@, tag:server and 41 more`.
    pub(super) fn words(&self, policy: &Inner, nodes: &[usize]) -> String {
        let mut by: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for at in nodes {
            by.entry(identity(policy, *at)).or_default().push(*at);
        }
        if by.len() > NAMES && nodes.len() == policy.ground.all.len() {
            return format!("all {} devices", nodes.len());
        }
        let more = by.len().saturating_sub(NAMES);
        let shown = if more == 1 { NAMES + 1 } else { NAMES };
        let mut out: Vec<String> = by
            .iter()
            .take(shown)
            .map(|(who, devices)| {
                let all = self.sizes.get(who).copied().unwrap_or(0);
                let name = |at: &usize| {
                    policy.ground.nodes.get(*at).map_or_else(String::new, |n| n.node.name.clone())
                };
                match devices.as_slice() {
                    some if some.len() == all => who.clone(),
                    [one] => format!("{} of {who}", name(one)),
                    some => format!("{} of {all} devices of {who}", some.len()),
                }
            })
            .collect();
        if by.len() > shown {
            out.push(format!("{} more", by.len() - shown));
        }
        match out.pop() {
            Some(last) if out.is_empty() => last,
            Some(last) => format!("{} and {last}", out.join(", ")),
            None => String::new(),
        }
    }
}

/// Ids of the first devices.
pub(super) fn some_ids(policy: &Inner, nodes: &[usize]) -> Vec<NodeId> {
    nodes.iter().filter_map(|at| policy.ground.nodes.get(*at)).map(|n| n.id).take(IDS).collect()
}

/// The person, or the tags, that a node is.
fn identity(policy: &Inner, at: usize) -> String {
    if let Some(user) = policy.ground.owner(at) {
        return if user.name.contains('@') { user.name.clone() } else { format!("{}@", user.name) };
    }
    let Some(node) = policy.ground.nodes.get(at) else {
        return String::new();
    };
    node.node.owner.tags().map(ToString::to_string).collect::<Vec<_>>().join("+")
}
