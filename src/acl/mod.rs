//! The policy: HuJSON text in, [`Compiled`] out. `hujson` (AST with positions) → `syntax` → `resolve`
//! → `compile` → per-node filter rules and visibility. Only [`Policy::parse`] makes a [`Policy`], only
//! [`Policy::compile`] makes a [`Compiled`], and only a [`Compiled`] reaches the mapper.

mod alias;
pub mod ast;
mod check;
mod compile;
mod diff;
mod error;
mod hujson;
mod ports;
mod ranges;
mod resolve;
mod syntax;
#[cfg(test)]
mod tests;
mod visible;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use crate::keys::{NodeId, UserId};
use crate::model::{Owner, Role, Tag};
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
    /// What they may do.
    pub role: Role,
}

/// A node as the policy sees one.
#[derive(Debug, Clone, PartialEq)]
pub struct WorldNode {
    /// Id.
    pub id: NodeId,
    /// The unique label.
    pub name: String,
    /// Whose.
    pub owner: Owner,
    /// IPv4.
    pub ipv4: Ipv4Addr,
    /// IPv6.
    pub ipv6: Ipv6Addr,
    /// Offered and approved routes, exit routes included.
    pub served_routes: Vec<IpNet>,
    /// What is known for postures, by name: `node:os`, `custom:x`.
    pub attributes: BTreeMap<String, ast::AttrValue>,
}

/// Everything a policy is resolved against.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct World {
    /// All users.
    pub users: BTreeMap<UserId, WorldUser>,
    /// All nodes that exist (expired ones too).
    pub nodes: BTreeMap<NodeId, WorldNode>,
    /// Mail domains that belong to the tailnet, for `user:*@domain` and `localpart:*@domain`.
    pub domains: BTreeSet<String>,
    /// The tailnet's setting for automatic updates of clients.
    pub auto_update: bool,
}

/// A policy whose text was read and checked without knowing users and nodes.
#[derive(Debug, Clone)]
pub struct Policy {
    file: Arc<ast::File>,
    lines: Arc<error::Lines>,
}

impl Policy {
    /// Reads a policy text.
    ///
    /// # Errors
    /// All faults found, at most 50, in order of position.
    pub fn parse(text: &str) -> Result<Self, Vec<PolicyError>> {
        let text = hujson::body(text);
        let root = hujson::read(text)?;
        let lines = error::Lines::new(text);
        let mut faults = error::Faults::new(lines.clone());
        let file = syntax::read(&root, &mut faults);
        check::check(&file, &mut faults);
        if faults.is_empty() {
            Ok(Self { file: Arc::new(file), lines: Arc::new(lines) })
        } else {
            Err(faults.finish())
        }
    }

    /// The policy of a server without a file: all members reach all (SEMANTICS.md 2.1).
    #[must_use]
    pub fn hosted_default() -> Self {
        Self { file: Arc::default(), lines: Arc::new(error::Lines::new("")) }
    }

    /// Faults that only show against the users there are (a name nobody has), as warnings.
    #[must_use]
    pub fn warnings(&self, world: &World) -> Vec<PolicyError> {
        check::warnings(&self.file, &self.lines, world)
    }

    /// Resolves and compiles for `world`. Names that match nobody resolve to nothing.
    #[must_use]
    pub fn compile(&self, world: &World) -> Compiled {
        Compiled { inner: Arc::new(compile::compile(&self.file, world)) }
    }

    /// The policy as written.
    #[must_use]
    pub fn ast(&self) -> &ast::File {
        &self.file
    }

    /// Whether `tag` is declared.
    #[must_use]
    pub fn declares(&self, tag: &Tag) -> bool {
        self.file.tag_owners.contains_key(tag)
    }

    /// Whether `user` may apply `tag` (owner lists, groups, owner tags held in `held`). A held tag
    /// that is declared may be applied again.
    #[must_use]
    pub fn may_apply(&self, tag: &Tag, user: Option<&str>, held: &[Tag]) -> bool {
        let mut seen: BTreeSet<&Tag> = BTreeSet::new();
        let mut open = vec![tag];
        while let Some(tag) = open.pop() {
            let Some(owners) = self.file.tag_owners.get(tag) else {
                continue;
            };
            if held.contains(tag) {
                return true;
            }
            if !seen.insert(tag) {
                continue;
            }
            for owner in &owners.value {
                let owns = match &owner.value {
                    ast::Alias::User(name) => user == Some(name.as_str()),
                    ast::Alias::Member => user.is_some(),
                    ast::Alias::Group(name) => self
                        .file
                        .groups
                        .get(name)
                        .into_iter()
                        .flat_map(|g| &g.value)
                        .any(|member| user == Some(member.value.as_str())),
                    ast::Alias::Tag(by) => {
                        open.push(by);
                        false
                    }
                    _ => false,
                };
                if owns {
                    return true;
                }
            }
        }
        false
    }
}

/// A policy in force for one world. Immutable; queries take no locks.
#[derive(Debug, Clone)]
pub struct Compiled {
    inner: Arc<compile::Inner>,
}

impl Compiled {
    /// The packet filter of `node`, reduced to what concerns it. Empty blocks everything.
    #[must_use]
    pub fn filter_rules(&self, node: NodeId) -> Arc<[FilterRule]> {
        self.inner.filter_rules(node)
    }

    /// Whether two nodes are peers (symmetric).
    #[must_use]
    pub fn visible(&self, a: NodeId, b: NodeId) -> bool {
        self.inner.visible(a, b)
    }

    /// All peers of `node` in order of id, without itself.
    #[must_use]
    pub fn peers(&self, node: NodeId) -> Vec<NodeId> {
        self.inner.peers(node)
    }

    /// The served routes of `peer` that `viewer` is shown (SEMANTICS.md 9.4), given that `peer` is
    /// primary for all of them.
    #[must_use]
    pub fn shown_routes(&self, viewer: NodeId, peer: NodeId) -> Vec<IpNet> {
        self.inner.shown_routes(viewer, peer)
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
pub fn diff(old: &Compiled, new: &Compiled, world: &World, limit: usize) -> AccessDiff {
    diff::diff(&old.inner, &new.inner, world, limit)
}
