//! The policy: HuJSON text in, [`Compiled`] out. `hujson` (AST with positions) → `syntax` → `resolve`
//! → `compile` → per-node filter rules and visibility. Only [`Policy::parse`] makes a [`Policy`], only
//! [`Policy::compile`] makes a [`Compiled`], and only a [`Compiled`] reaches the mapper.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use crate::keys::{NodeId, UserId};
use crate::model::{Owner, Tag};
use crate::wire::FilterRule;

/// One fault of a policy text, with its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyError {
    /// Stable short name: `syntax`, `unknown-field`, `unknown-tag`, `not-supported`, …
    pub code: &'static str,
    /// 1-based line.
    pub line: u32,
    /// 1-based column in bytes.
    pub column: u32,
    /// What is wrong. Contains the hosted service's text where there is one.
    pub message: String,
    /// What would be right; may be empty.
    pub hint: String,
}

/// A user as the policy sees one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorldUser {
    /// Id.
    pub id: UserId,
    /// Login name: `alice` or `alice@example.com`.
    pub name: String,
}

/// A node as the policy sees one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorldNode {
    /// Id.
    pub id: NodeId,
    /// Whose.
    pub owner: Owner,
    /// IPv4.
    pub ipv4: Ipv4Addr,
    /// IPv6.
    pub ipv6: Ipv6Addr,
    /// Offered and approved routes, exit routes included.
    pub served_routes: Vec<IpNet>,
}

/// Everything a policy is resolved against.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct World {
    /// All users.
    pub users: BTreeMap<UserId, WorldUser>,
    /// All nodes that exist (expired ones too).
    pub nodes: BTreeMap<NodeId, WorldNode>,
}

/// A policy whose text was read and checked without knowing users and nodes.
#[derive(Debug, Clone)]
pub struct Policy {
    _private: (),
}

impl Policy {
    /// Reads a policy text.
    ///
    /// # Errors
    /// All faults found, at most 50, in order of position.
    pub fn parse(_text: &str) -> Result<Self, Vec<PolicyError>> {
        todo!()
    }

    /// The policy of a server without a file: all members reach all (SEMANTICS.md 2.1).
    #[must_use]
    pub fn hosted_default() -> Self {
        todo!()
    }

    /// Faults that only show against the users there are (an ambiguous name), as warnings.
    #[must_use]
    pub fn warnings(&self, _world: &World) -> Vec<PolicyError> {
        todo!()
    }

    /// Resolves and compiles for `world`. Names that match nobody resolve to nothing.
    #[must_use]
    pub fn compile(&self, _world: &World) -> Compiled {
        todo!()
    }

    /// Whether `tag` is declared.
    #[must_use]
    pub fn declares(&self, _tag: &Tag) -> bool {
        todo!()
    }

    /// Whether `user` may apply `tag` (owner lists, groups, owner tags held in `held`).
    #[must_use]
    pub fn may_apply(&self, _tag: &Tag, _user: Option<&str>, _held: &[Tag]) -> bool {
        todo!()
    }
}

/// A policy in force for one world. Immutable; queries take no locks.
#[derive(Debug, Clone)]
pub struct Compiled {
    _private: (),
}

impl Compiled {
    /// The packet filter of `node`, reduced to what concerns it. Empty blocks everything.
    #[must_use]
    pub fn filter_rules(&self, _node: NodeId) -> Arc<[FilterRule]> {
        todo!()
    }

    /// Whether two nodes are peers (symmetric).
    #[must_use]
    pub fn visible(&self, _a: NodeId, _b: NodeId) -> bool {
        todo!()
    }

    /// All peers of `node` in order of id, without itself.
    #[must_use]
    pub fn peers(&self, _node: NodeId) -> Vec<NodeId> {
        todo!()
    }

    /// The served routes of `peer` that `viewer` is shown (SEMANTICS.md 9.4), given that `peer` is
    /// primary for all of them.
    #[must_use]
    pub fn shown_routes(&self, _viewer: NodeId, _peer: NodeId) -> Vec<IpNet> {
        todo!()
    }
}

/// What one pair of nodes gains or loses when the policy changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AccessChange {
    /// Who reaches.
    pub from: NodeId,
    /// Whom.
    pub to: NodeId,
    /// Ports and protocols in words: `tcp 22, 443`, `all ports`.
    pub what: String,
}

/// Gains and losses between two compiled policies, as pairs; each list in order, bounded to `limit`
/// entries with the whole counts beside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AccessDiff {
    /// New access.
    pub gained: Vec<AccessChange>,
    /// Access taken away.
    pub lost: Vec<AccessChange>,
    /// All gains, also those past the limit.
    pub gained_total: u64,
    /// All losses, also those past the limit.
    pub lost_total: u64,
}

/// Compares two compiled policies over the nodes of `world`.
#[must_use]
pub fn diff(_old: &Compiled, _new: &Compiled, _world: &World, _limit: usize) -> AccessDiff {
    todo!()
}
