//! The policy: HuJSON text in, [`Compiled`] out. `hujson` (AST with positions) → `syntax` → `resolve`
//! → `compile` → per-node filter rules and visibility. Only [`Policy::parse`] makes a [`Policy`], only
//! [`Policy::compile`] makes a [`Compiled`], and only a [`Compiled`] reaches the mapper.

mod alias;
pub mod ast;
mod check;
mod compile;
pub mod explain;
mod ground;
mod plan;
mod render;

mod error;
mod hujson;
mod ports;
mod posture;
mod ranges;
mod resolve;
pub mod stats;
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

impl World {
    /// The world without its users and nodes.
    fn clone_frame(&self) -> Self {
        Self { domains: self.domains.clone(), auto_update: self.auto_update, ..Self::default() }
    }
}

/// A policy whose text was read and checked without knowing users and nodes.
#[derive(Debug, Clone)]
pub struct Policy {
    file: Arc<ast::File>,
    plan: Arc<plan::Plan>,
    lines: Arc<error::Lines>,
    /// What was read and should be written otherwise.
    notes: Arc<[PolicyError]>,
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
            let plan = Arc::new(plan::lay_out(&file));
            let notes = faults.take_notes().into();
            Ok(Self { file: Arc::new(file), plan, lines: Arc::new(lines), notes })
        } else {
            Err(faults.finish())
        }
    }

    /// The policy of a server without a file: all members reach all (SEMANTICS.md 2.1).
    #[must_use]
    pub fn hosted_default() -> Self {
        let file = ast::File::default();
        let plan = Arc::new(plan::lay_out(&file));
        let lines = Arc::new(error::Lines::new(""));
        Self { file: Arc::new(file), plan, lines, notes: Arc::default() }
    }

    /// Faults that only show against the users there are (a name nobody has), as warnings.
    #[must_use]
    pub fn warnings(&self, world: &World) -> Vec<PolicyError> {
        check::warnings(&self.file, &self.lines, world)
    }

    /// Faults that only show against the tailnet and stop the policy: a mail domain that is not the
    /// tailnet's. Failing tests are [`Compiled::failing_tests`].
    #[must_use]
    pub fn mistakes(&self, _world: &World) -> Vec<PolicyError> {
        Vec::new()
    }

    /// Resolves and compiles for `world`. Names that match nobody resolve to nothing.
    #[must_use]
    pub fn compile(&self, world: &World) -> Compiled {
        Compiled { inner: Arc::new(compile::compile(&self.file, &self.plan, world)) }
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

    /// The same policy for the world after `change`, and whom that may concern.
    #[must_use]
    pub fn update(&self, change: &WorldChange) -> (Self, Touched) {
        let (inner, touched) = self.inner.update(change);
        (Self { inner: Arc::new(inner) }, touched)
    }

    /// The SSH rules of `node`; none is no SSH at all. `base` is the server's URL, for checks.
    #[must_use]
    pub fn ssh_rules(&self, _node: NodeId, _base: &str) -> Vec<crate::wire::SshRule> {
        Vec::new()
    }

    /// The capabilities `node` is told about itself: the baseline, its roles, its attributes.
    #[must_use]
    pub fn self_caps(&self, _node: NodeId) -> crate::wire::CapMap {
        crate::wire::CapMap::new()
    }

    /// The capabilities others are told about `node`.
    #[must_use]
    pub fn peer_caps(&self, _node: NodeId) -> crate::wire::CapMap {
        crate::wire::CapMap::new()
    }

    /// Whether `node` is without IPv4: by attribute, or by the policy's `disableIPv4`.
    #[must_use]
    pub fn without_ipv4(&self, _node: NodeId) -> bool {
        false
    }

    /// The networks new addresses of `node` come from; empty is the server's own pool.
    #[must_use]
    pub fn ip_pool(&self, _node: NodeId) -> Vec<IpNet> {
        Vec::new()
    }

    /// Which of `offered` the policy approves for `node`, sorted.
    #[must_use]
    pub fn auto_approved(&self, _node: NodeId, _offered: &[IpNet]) -> Vec<IpNet> {
        Vec::new()
    }

    /// `tests` and `sshTests` that do not hold in this world, in order; each message contains the hosted
    /// service's text.
    #[must_use]
    pub fn failing_tests(&self) -> Vec<PolicyError> {
        Vec::new()
    }

    /// Routes that are steered by `via`: for each, the nodes of which one is to be elected.
    #[must_use]
    pub fn via_groups(&self) -> Vec<(IpNet, Vec<NodeId>)> {
        self.inner.via_groups()
    }

    /// Whether and why one end may reach the other.
    #[must_use]
    pub fn explain(&self, question: &explain::Question) -> explain::Explanation {
        explain::explain(self, question)
    }

    /// The policy in numbers, for the world it is compiled for.
    #[must_use]
    pub fn stats(&self) -> stats::PolicyStats {
        stats::stats(self)
    }

    /// All peers of `node` in order of id, without itself.
    #[must_use]
    pub fn peers(&self, node: NodeId) -> Vec<NodeId> {
        self.inner.peers(node)
    }

    /// The served routes of `peer` that `viewer` is shown (SEMANTICS.md 9.4, 9.5). `elected` says which of
    /// several nodes carries a route: of all that serve it, or of one group of [`Compiled::via_groups`].
    #[must_use]
    pub fn shown_routes(
        &self,
        viewer: NodeId,
        peer: NodeId,
        elected: &dyn Fn(&IpNet, &[NodeId]) -> Option<NodeId>,
    ) -> Vec<IpNet> {
        self.inner.shown_routes(viewer, peer, elected)
    }
}

/// What may differ after [`Compiled::update`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// Nodes that came, went or changed: how anybody sees these may differ, and all that they see.
    pub nodes: BTreeSet<NodeId>,
    /// Further nodes whose own packet filter, SSH rules or attributes may differ.
    pub filters: BTreeSet<NodeId>,
    /// Anything may differ for anybody.
    pub all: bool,
}

/// What happened to the world since a policy was compiled for it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WorldChange {
    /// Nodes that are new or changed, or gone (`None`).
    pub nodes: BTreeMap<NodeId, Option<WorldNode>>,
    /// Users that are new or changed, or gone (`None`).
    pub users: BTreeMap<UserId, Option<WorldUser>>,
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
    let _ = (old, new, world, limit);
    AccessDiff::default()
}
