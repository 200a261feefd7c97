//! The policy: HuJSON text in, [`Compiled`] out. `hujson` (AST with positions) → `syntax` → `resolve`
//! → `compile` → per-node filter rules and visibility. Only [`Policy::parse`] makes a [`Policy`], only
//! [`Policy::compile`] makes a [`Compiled`], and only a [`Compiled`] reaches the mapper.

mod alias;
mod approve;
mod asserts;
pub mod ast;
mod attrs;
mod check;
mod compile;
mod diff;
mod edit;
mod error;
pub mod explain;
mod format;
mod ground;
mod hujson;
mod plan;
mod ports;
mod posture;
mod ranges;
mod render;
mod resolve;
mod sources;
mod splice;
mod ssh;
pub mod stats;
mod syntax;
#[cfg(test)]
mod tests;
mod topology;
mod update;
mod visible;

pub use diff::{Effect, OtherChange, OtherKind};
pub use edit::{Edit, edit};
pub use format::format;
pub use topology::{NodeView, Rendered, Topology, TopologyError};

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;
use serde::Serialize;

use crate::keys::{NodeId, UserId};
use crate::model::{Owner, Role, Tag};
use crate::wire::FilterRule;

use compile::Inner;

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
        check::warnings(&self.file, &self.lines, &self.notes, world)
    }

    /// Faults that only show against the tailnet and stop the policy: a mail domain that is not the
    /// tailnet's. Failing tests are [`Compiled::failing_tests`].
    #[must_use]
    pub fn mistakes(&self, world: &World) -> Vec<PolicyError> {
        check::mistakes(&self.file, &self.lines, world)
    }

    /// Resolves and compiles for `world`. Names that match nobody resolve to nothing.
    #[must_use]
    pub fn compile(&self, world: &World) -> Compiled {
        let inner = Arc::new(compile::compile(&self.file, &self.plan, world));
        Compiled { inner, lines: self.lines.clone() }
    }

    /// Compiles for the world that `other` is in force for; cheaper, and to be compared with it.
    #[must_use]
    pub fn compile_beside(&self, other: &Compiled) -> Compiled {
        let ground = other.inner.ground.clone();
        let inner = Arc::new(compile::compile_on(&self.file, &self.plan, ground));
        Compiled { inner, lines: self.lines.clone() }
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

    /// Whether `user` may apply `tag` (owner lists, groups, roles, owner tags held in `held`). A held tag
    /// that is declared may be applied again.
    #[must_use]
    pub fn may_apply(&self, tag: &Tag, user: Option<(&str, Role)>, held: &[Tag]) -> bool {
        let (name, role) = user.unzip();
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
                    ast::Alias::User(owner) => name == Some(owner.as_str()),
                    ast::Alias::Member => user.is_some(),
                    ast::Alias::Role(owner) => role.is_some_and(|r| r.is(*owner)),
                    ast::Alias::Group(group) => self
                        .file
                        .groups
                        .get(group)
                        .into_iter()
                        .flat_map(|g| &g.value)
                        .any(|member| name == Some(member.value.as_str())),
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
    inner: Arc<Inner>,
    lines: Arc<error::Lines>,
}

/// Sections that are resolved when first asked for.
#[derive(Debug, Default)]
struct Sections {
    ssh: OnceLock<ssh::Table>,
    attrs: OnceLock<attrs::Table>,
    approve: OnceLock<approve::Table>,
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
        (Self { inner: Arc::new(inner), lines: self.lines.clone() }, touched)
    }

    fn ssh(&self) -> &ssh::Table {
        self.inner.ssh()
    }

    fn attrs(&self) -> &attrs::Table {
        let Inner { file, ground, found, .. } = &*self.inner;
        found.sections.attrs.get_or_init(|| attrs::Table::new(file, ground))
    }

    fn approve(&self) -> &approve::Table {
        let Inner { file, ground, found, .. } = &*self.inner;
        found.sections.approve.get_or_init(|| approve::Table::new(file, ground))
    }

    fn slot(&self, node: NodeId) -> Option<usize> {
        self.inner.ground.index.get(&node).copied()
    }

    /// The SSH rules of `node` as the hosted service sends them; none is no SSH at all. `base` is the
    /// server's URL, for checks. What clients of this server get is [`Compiled::client_ssh_rules`].
    #[must_use]
    pub fn ssh_rules(&self, node: NodeId, base: &str) -> Vec<crate::wire::SshRule> {
        let rules = |slot| self.ssh().rules(&self.inner.ground, slot, ssh::Checks::Delegate(base));
        self.slot(node).map_or_else(Vec::new, rules)
    }

    /// The SSH rules of `node` for a client of this server: a check refuses with a sentence, because
    /// check mode does not exist yet.
    #[must_use]
    pub fn client_ssh_rules(&self, node: NodeId) -> Vec<crate::wire::SshRule> {
        let rules = |slot| self.ssh().rules(&self.inner.ground, slot, ssh::Checks::Refuse);
        self.slot(node).map_or_else(Vec::new, rules)
    }

    /// The capabilities `node` is told about itself: the baseline, its roles, its attributes.
    #[must_use]
    pub fn self_caps(&self, node: NodeId) -> crate::wire::CapMap {
        let caps = |slot| self.attrs().self_caps(&self.inner.ground, slot);
        self.slot(node).map_or_else(Default::default, caps)
    }

    /// The capabilities others are told about `node`.
    #[must_use]
    pub fn peer_caps(&self, node: NodeId) -> crate::wire::CapMap {
        let caps = |slot| self.attrs().peer_caps(&self.inner.ground, slot);
        self.slot(node).map_or_else(Default::default, caps)
    }

    /// Whether `node` is without IPv4: by attribute, or by the policy's `disableIPv4`.
    #[must_use]
    pub fn without_ipv4(&self, node: NodeId) -> bool {
        self.slot(node).is_some_and(|slot| self.attrs().without_ipv4(slot))
    }

    /// The networks new addresses of `node` come from; empty is the server's own pool.
    #[must_use]
    pub fn ip_pool(&self, node: NodeId) -> Vec<IpNet> {
        self.slot(node).map_or_else(Vec::new, |slot| self.attrs().ip_pool(slot))
    }

    /// Which of `offered` the policy approves for `node`, sorted.
    #[must_use]
    pub fn auto_approved(&self, node: NodeId, offered: &[IpNet]) -> Vec<IpNet> {
        self.slot(node)
            .map_or_else(Vec::new, |slot| self.approve().approved(&self.inner.ground, slot, offered))
    }

    /// `tests` and `sshTests` that do not hold in this world, in order, at most 50; each message contains
    /// the hosted service's text.
    #[must_use]
    pub fn failing_tests(&self) -> Vec<PolicyError> {
        let Inner { file, ground, .. } = &*self.inner;
        asserts::run(file, ground, &self.lines, || self.ssh()).failed
    }

    /// What tests leave in doubt, as warnings, at most 60: a `deny` that keeps out only some of its
    /// sources, and rules that open all ports where the tests want few.
    #[must_use]
    pub fn doubtful_tests(&self) -> Vec<PolicyError> {
        let Inner { file, ground, .. } = &*self.inner;
        asserts::run(file, ground, &self.lines, || self.ssh()).doubts
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

    /// Whether `from` reaches any port of `to` itself by this policy that it does not reach by `other`, which
    /// is compiled for the same world.
    #[must_use]
    pub fn opens_beyond(&self, other: &Self, from: NodeId, to: NodeId) -> bool {
        diff::opens_beyond(&self.inner, &other.inner, from, to)
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

/// What somebody gains or loses when the policy changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AccessChange {
    /// Who reaches, as people and tags: `alice@, tag:ci and 3 more`.
    pub from: String,
    /// Whom.
    pub to: String,
    /// Ports, protocols and capabilities in words: `tcp 22, 443`, `all ports`.
    pub what: String,
    /// For how many pairs of devices.
    pub pairs: u64,
    /// Some of the devices that reach, at most 16.
    pub from_nodes: Vec<NodeId>,
    /// Some of those that are reached, at most 16.
    pub to_nodes: Vec<NodeId>,
}

/// Gains and losses between two compiled policies, the widest first; each list bounded, with the whole
/// counts of pairs of devices beside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AccessDiff {
    /// New access.
    pub gained: Vec<AccessChange>,
    /// Access taken away.
    pub lost: Vec<AccessChange>,
    /// Pairs of devices that gain.
    pub gained_total: u64,
    /// Pairs of devices that lose.
    pub lost_total: u64,
    /// False when the change touches so much that not all of it was looked at: the counts are lower
    /// bounds then.
    pub exact: bool,
    /// What changes beside access: attributes, automatic approval, tag owners, ways, posture, options.
    pub other: Vec<OtherChange>,
    /// How many such changes there are.
    pub other_total: u64,
    /// How many of them take something away.
    pub other_lost: u64,
}

impl Default for AccessDiff {
    fn default() -> Self {
        Self {
            gained: Vec::new(),
            lost: Vec::new(),
            gained_total: 0,
            lost_total: 0,
            exact: true,
            other: Vec::new(),
            other_total: 0,
            other_lost: 0,
        }
    }
}

impl AccessDiff {
    /// Whether somebody loses access or something else to live by, or may.
    #[must_use]
    pub const fn takes_away(&self) -> bool {
        self.lost_total > 0 || self.other_lost > 0 || !self.exact
    }

    /// Whether anything changes for anybody, or may.
    #[must_use]
    pub const fn changes(&self) -> bool {
        self.gained_total > 0 || self.other_total > 0 || self.takes_away()
    }
}

/// Compares two policies compiled for the same world; at most `limit` rows each way.
#[must_use]
pub fn diff(old: &Compiled, new: &Compiled, limit: usize) -> AccessDiff {
    if old.inner.ground.alike(&new.inner.ground) {
        return diff::diff(&old.inner, &new.inner, limit);
    }
    // Slots differ after changes of the world; a fresh numbering makes both comparable.
    let world = new.inner.world();
    let again = |policy: &Compiled| compile::compile(&policy.inner.file, &policy.inner.plan, &world);
    diff::diff(&again(old), &again(new), limit)
}
