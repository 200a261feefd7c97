//! What a policy comes to in a world: per rule how many nodes it joins, and what it names in vain.

use serde::Serialize;

use super::explain::RuleAt;

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

pub(super) fn stats(policy: &super::Compiled) -> PolicyStats {
    let _ = policy;
    todo!()
}
