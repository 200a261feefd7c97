//! What a policy comes to in a world: per rule how many nodes it joins, and what it names in vain.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde::Serialize;

use super::Compiled;
use super::check::unused_names;
use super::compile::Inner;
use super::explain::{RuleAt, rule_at, section_name};
use super::plan::{Id, Kind, Section, Unit};
use super::ranges::Bits;

/// One rule in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleStats {
    /// The rule.
    pub rule: RuleAt,
    /// Nodes it takes as sources.
    pub sources: u64,
    /// Nodes it leads to, routers and exit nodes of its destinations included.
    pub destinations: u64,
    /// Pairs of different nodes that it joins.
    pub edges: u64,
    /// It joins nobody with anybody now.
    pub matches_nothing: bool,
}

/// A name of the policy that nothing uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnusedName {
    /// `groups`, `hosts`, `ipsets`, `tagOwners`, `postures`.
    pub section: &'static str,
    /// The name.
    pub name: String,
    /// 1-based.
    pub line: u32,
    /// 1-based column in bytes.
    pub column: u32,
}

/// A policy in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PolicyStats {
    /// Nodes of the world.
    pub nodes: u64,
    /// Users of the world.
    pub users: u64,
    /// Rules of `grants` and `acls`.
    pub rules: u64,
    /// Distinct names in their places.
    pub names: u64,
    /// Groups of nodes with the same rules.
    pub classes: u64,
    /// Rules that match nothing now.
    pub idle: u64,
    /// Each rule of `grants`, then of `acls`, in order.
    pub per_rule: Vec<RuleStats>,
    /// Names that nothing uses.
    pub unused: Vec<UnusedName>,
}

/// Counts.
pub(super) fn stats(policy: &Compiled) -> PolicyStats {
    let inner = &*policy.inner;
    let mut rules: BTreeMap<(Section, Id), Vec<&Unit>> = BTreeMap::new();
    for index in 0..inner.file.grants.as_ref().map_or(0, Vec::len) {
        rules.insert((Section::Grants, Id::try_from(index).unwrap_or(Id::MAX)), Vec::new());
    }
    for index in 0..inner.file.acls.as_ref().map_or(0, Vec::len) {
        rules.insert((Section::Acls, Id::try_from(index).unwrap_or(Id::MAX)), Vec::new());
    }
    for unit in &inner.plan.units {
        rules.entry((unit.section, unit.index)).or_default().push(unit);
    }
    let per_rule: Vec<RuleStats> = rules
        .into_iter()
        .map(|((section, index), units)| {
            let rule = rule_at(&inner.file, &policy.lines, section_name(section), index);
            count(inner, rule, &units)
        })
        .collect();
    let classes: HashSet<_> = inner
        .ground
        .all
        .iter()
        .filter_map(|at| inner.nodes.get(at))
        .map(|names| Arc::as_ptr(&names.class))
        .collect();
    let unused = unused_names(&inner.file).into_iter().map(|(section, name, span)| {
        let (line, column) = policy.lines.place(span.start);
        UnusedName { section, name: name.to_owned(), line, column }
    });
    PolicyStats {
        nodes: whole(inner.ground.all.len()),
        users: whole(inner.ground.people.len()),
        rules: whole(per_rule.len()),
        names: whole(inner.plan.names.len()),
        classes: whole(classes.len()),
        idle: whole(per_rule.iter().filter(|r| r.matches_nothing).count()),
        unused: unused.collect(),
        per_rule,
    }
}

fn whole(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// One rule: its units take the same sources, companions of capabilities apart, which only give back.
fn count(inner: &Inner, rule: RuleAt, units: &[&Unit]) -> RuleStats {
    let mut sources = Bits::default();
    let mut destinations = Bits::default();
    let mut beyond = false;
    let mut edges = Bits::default();
    let mut own = false;
    for unit in units {
        if matches!(unit.kind, Kind::App { companion: true, .. } | Kind::OwnApp { companion: true, .. }) {
            continue;
        }
        for name in inner.plan.lists.get(unit.list as usize).into_iter().flatten() {
            if let Some(state) = inner.names.get(*name as usize) {
                state.families.iter().for_each(|f| sources.add(f));
                // Addresses behind routers, and any address at all, are sources without a node.
                beyond |= !state.routes.is_empty();
            }
        }
        own |= unit.own();
        for (name, _) in unit.names() {
            if let Some(state) = inner.names.get(name as usize) {
                destinations.add(&state.side);
            }
        }
    }
    edges.add(&destinations);
    let mut pairs = whole(sources.len()).saturating_mul(whole(destinations.len()));
    edges.keep(&sources);
    pairs -= whole(edges.len()).min(pairs);
    if own {
        pairs = pairs.saturating_add(own_pairs(inner, &sources, &mut destinations));
    }
    let matches_nothing = destinations.is_empty() || (sources.is_empty() && !beyond);
    RuleStats {
        rule,
        sources: whole(sources.len()),
        destinations: whole(destinations.len()),
        edges: pairs,
        matches_nothing,
    }
}

/// Pairs that `autogroup:self` adds, and its destinations.
fn own_pairs(inner: &Inner, sources: &Bits, destinations: &mut Bits) -> u64 {
    let global = destinations.clone();
    let mut pairs: u64 = 0;
    for devices in inner.ground.by_user.values() {
        let mut from = Bits::clone(devices);
        from.keep(sources);
        if from.is_empty() {
            continue;
        }
        destinations.add(devices);
        // Pairs with a destination that is named anyway are counted already.
        let mut to = Bits::clone(devices);
        to.drop(&global);
        let mut both = to.clone();
        both.keep(&from);
        let all = whole(from.len()).saturating_mul(whole(to.len()));
        pairs = pairs.saturating_add(all - whole(both.len()).min(all));
    }
    pairs
}
