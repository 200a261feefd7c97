//! The tailnet as one value. Clones share their maps, so the published snapshot and the draft of the
//! next one are the same type; [`Draft`] is the only writer and notes for each step what must be kept
//! and what others must learn. Decisions are in `register`, `nodes`, `admin`, `policy`, `timers`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use ipnet::IpNet;

use super::change::Change;
use super::ipam::Ledger;
use super::routes;
use super::types::Settings;
use crate::acl::{Compiled, Policy, World, WorldNode, WorldUser};
use crate::clock::{Now, Rng};
use crate::keys::{NodeId, NodePublic, UserId};
use crate::model::rows::{Stored, Write};
use crate::model::{KeyId, LoginId, Node, PendingLogin, PolicyVersion, PreAuthKey, Role, User};

/// Everything known, at one moment. Immutable once published.
#[derive(Clone)]
pub(super) struct Tailnet {
    /// Users.
    pub(super) users: Arc<BTreeMap<UserId, Arc<User>>>,
    /// Nodes.
    pub(super) nodes: Arc<BTreeMap<NodeId, Arc<Node>>>,
    /// Pre-auth keys.
    pub(super) keys: Arc<BTreeMap<KeyId, Arc<PreAuthKey>>>,
    /// Waiting logins.
    pub(super) logins: Arc<BTreeMap<LoginId, Arc<PendingLogin>>>,
    /// Logins that were turned away lately, until when that is remembered; not kept on disk.
    pub(super) rejected: Arc<BTreeMap<LoginId, DateTime<Utc>>>,
    /// Nodes by node key.
    pub(super) by_key: Arc<HashMap<NodePublic, NodeId>>,
    /// Nodes by label.
    pub(super) by_name: Arc<HashMap<String, NodeId>>,
    /// Nodes with a map stream, or with one until a moment ago.
    pub(super) online: Arc<BTreeSet<NodeId>>,
    /// Nodes whose key has expired.
    pub(super) expired: Arc<BTreeSet<NodeId>>,
    /// Who is elected for a route that is served.
    pub(super) primaries: Arc<BTreeMap<IpNet, NodeId>>,
    /// The policy's text and number.
    pub(super) policy_version: Arc<PolicyVersion>,
    /// The policy as read.
    pub(super) policy: Arc<Policy>,
    /// The policy in force.
    pub(super) compiled: Arc<Compiled>,
    /// What config says.
    pub(super) settings: Arc<Settings>,
    /// Counts changes of what the policy is resolved against.
    pub(super) epoch: u64,
    ledger: Ledger,
    last_user: u64,
    last_node: u64,
    last_key: u64,
}

impl Tailnet {
    /// From what was kept. The policy was read by the caller.
    #[must_use]
    pub(super) fn new(
        stored: Stored,
        policy: Policy,
        policy_version: PolicyVersion,
        settings: Settings,
        now: Now,
    ) -> Self {
        let compiled = Arc::new(policy.compile(&World::default()));
        let nodes: BTreeMap<_, _> = stored.nodes.into_iter().map(|n| (n.id, Arc::new(n))).collect();
        let by_key = nodes.values().map(|n| (n.key, n.id)).collect();
        let by_name = nodes.values().map(|n| (n.name.clone(), n.id)).collect();
        let expired = nodes.values().filter(|n| n.expired(now.wall)).map(|n| n.id).collect();
        let by_id = |u: User| (u.id, Arc::new(u));
        let mut net = Self {
            users: Arc::new(stored.users.into_iter().map(by_id).collect()),
            nodes: Arc::new(nodes),
            keys: Arc::new(stored.keys.into_iter().map(|k| (k.id, Arc::new(k))).collect()),
            logins: Arc::new(stored.logins.into_iter().map(|l| (l.id.clone(), Arc::new(l))).collect()),
            rejected: Arc::default(),
            by_key: Arc::new(by_key),
            by_name: Arc::new(by_name),
            online: Arc::default(),
            expired: Arc::new(expired),
            primaries: Arc::default(),
            policy_version: Arc::new(policy_version),
            policy: Arc::new(policy),
            compiled,
            settings: Arc::new(settings),
            epoch: 0,
            ledger: Ledger::new(stored.addresses),
            last_user: stored.last_user,
            last_node: stored.last_node,
            last_key: stored.last_key,
        };
        net.compiled = Arc::new(net.policy.compile(&net.world()));
        net.primaries = Arc::new(routes::elect(&net));
        net
    }

    /// What the policy is resolved against.
    #[must_use]
    pub(super) fn world(&self) -> World {
        let user = |u: &Arc<User>| WorldUser { id: u.id, name: u.name.clone(), role: Role::Member };
        let node = |n: &Arc<Node>| WorldNode {
            id: n.id,
            name: n.name.clone(),
            attributes: BTreeMap::new(),
            owner: n.owner.clone(),
            ipv4: n.ipv4,
            ipv6: n.ipv6,
            served_routes: n.served_routes(),
        };
        World {
            users: self.users.iter().map(|(id, u)| (*id, user(u))).collect(),
            nodes: self.nodes.iter().map(|(id, n)| (*id, node(n))).collect(),
            ..World::default()
        }
    }

    /// The node with this key.
    #[must_use]
    pub(super) fn by_key(&self, key: &NodePublic) -> Option<&Arc<Node>> {
        self.nodes.get(self.by_key.get(key)?)
    }

    /// A user by id or login name; a number is always an id.
    #[must_use]
    pub(super) fn user(&self, text: &str) -> Option<&Arc<User>> {
        match text.parse() {
            Ok(id) => self.users.get(&id),
            Err(_) => self.users.values().find(|u| u.name == text),
        }
    }

    /// Whether a node counts as online for others.
    #[must_use]
    pub(super) fn is_online(&self, id: NodeId) -> bool {
        self.online.contains(&id) && !self.expired.contains(&id)
    }
}

/// A tailnet being changed: what to keep and whom to tell gathers beside it. Dropped when the disk
/// refuses. Operations check first and change after, so that a refused one leaves it as it was.
pub(super) struct Draft {
    /// The state after all operations so far.
    pub(super) net: Tailnet,
    /// When the operation at hand happens.
    pub(super) now: Now,
    /// Randomness.
    pub(super) rng: Rng,
    /// Rows to keep, in order.
    pub(super) writes: Vec<Write>,
    /// What others must learn.
    pub(super) change: Change,
    /// Node keys that lost their place.
    pub(super) revoked: Vec<NodePublic>,
    /// Nodes whose lagging fields changed.
    pub(super) lagging: BTreeSet<NodeId>,
    world_changed: bool,
}

impl Draft {
    /// Starts from a published state.
    #[must_use]
    pub(super) fn new(net: Tailnet, now: Now, rng: Rng) -> Self {
        Self {
            net,
            now,
            rng,
            writes: Vec::new(),
            change: Change::default(),
            revoked: Vec::new(),
            lagging: BTreeSet::new(),
            world_changed: false,
        }
    }

    /// Adds or replaces a user and keeps it.
    pub(super) fn put_user(&mut self, user: User) -> Arc<User> {
        let user = Arc::new(user);
        Arc::make_mut(&mut self.net.users).insert(user.id, Arc::clone(&user));
        self.writes.push(Write::PutUser(Arc::clone(&user)));
        self.world_changed = true;
        self.change.settings = true;
        user
    }

    /// Drops a user who owns nothing.
    pub(super) fn delete_user(&mut self, id: UserId) {
        Arc::make_mut(&mut self.net.users).remove(&id);
        self.writes.push(Write::DeleteUser(id));
        self.world_changed = true;
    }

    /// The next user id.
    pub(super) fn next_user(&mut self) -> UserId {
        self.net.last_user += 1;
        UserId(self.net.last_user)
    }

    /// The next node id.
    pub(super) fn next_node(&mut self) -> NodeId {
        self.net.last_node += 1;
        NodeId(self.net.last_node)
    }

    /// The next key id.
    pub(super) fn next_key(&mut self) -> KeyId {
        self.net.last_key += 1;
        KeyId(self.net.last_key)
    }

    /// Takes an address pair.
    ///
    /// # Errors
    /// When the pool has none left.
    pub(super) fn take_address(
        &mut self,
    ) -> Result<(std::net::Ipv4Addr, std::net::Ipv6Addr), super::ipam::Exhausted> {
        let pool = self.net.settings.ipv4_pool;
        self.net.ledger.allocate(pool, self.now.wall)
    }

    /// Adds or replaces a node and keeps it on disk.
    pub(super) fn put_node(&mut self, node: Node) -> Arc<Node> {
        let node = self.set_node(node);
        self.writes.push(Write::PutNode(Arc::clone(&node)));
        node
    }

    /// Replaces a node whose lagging fields alone changed; it is written some seconds later.
    pub(super) fn lag_node(&mut self, node: Node) {
        self.lagging.insert(node.id);
        self.set_node(node);
    }

    fn set_node(&mut self, node: Node) -> Arc<Node> {
        let node = Arc::new(node);
        let old = Arc::make_mut(&mut self.net.nodes).insert(node.id, Arc::clone(&node));
        self.change.nodes.insert(node.id);
        let same_key = old.as_ref().is_some_and(|o| o.key == node.key);
        if !same_key {
            let by_key = Arc::make_mut(&mut self.net.by_key);
            if let Some(old) = &old {
                by_key.remove(&old.key);
                self.revoked.push(old.key);
            }
            by_key.insert(node.key, node.id);
        }
        if old.as_ref().is_none_or(|o| o.name != node.name) {
            let by_name = Arc::make_mut(&mut self.net.by_name);
            if let Some(old) = &old {
                by_name.remove(&old.name);
            }
            by_name.insert(node.name.clone(), node.id);
        }
        self.world_changed |= old.is_none_or(|o| {
            o.owner != node.owner
                || o.hostinfo.routable_ips != node.hostinfo.routable_ips
                || o.approved_routes != node.approved_routes
        });
        self.note_expiry(&node);
        node
    }

    /// Files a node under expired or not, as its expiry says now.
    pub(super) fn note_expiry(&mut self, node: &Node) {
        let expired = node.expired(self.now.wall);
        if expired == self.net.expired.contains(&node.id) {
            return;
        }
        let set = Arc::make_mut(&mut self.net.expired);
        if expired {
            set.insert(node.id);
            self.revoked.push(node.key);
        } else {
            set.remove(&node.id);
        }
        self.change.nodes.insert(node.id);
        self.world_changed = true;
    }

    /// Removes a node for good.
    pub(super) fn delete_node(&mut self, id: NodeId) -> Option<Arc<Node>> {
        let node = Arc::make_mut(&mut self.net.nodes).remove(&id)?;
        Arc::make_mut(&mut self.net.by_key).remove(&node.key);
        Arc::make_mut(&mut self.net.by_name).remove(&node.name);
        Arc::make_mut(&mut self.net.expired).remove(&id);
        Arc::make_mut(&mut self.net.online).remove(&id);
        self.net.ledger.release(node.ipv4, self.now.wall);
        self.lagging.remove(&id);
        self.writes.push(Write::DeleteNode { id, at: self.now.wall });
        self.revoked.push(node.key);
        self.change.nodes.insert(id);
        self.world_changed = true;
        Some(node)
    }

    /// Adds or replaces a pre-auth key.
    pub(super) fn put_key(&mut self, key: PreAuthKey) -> Arc<PreAuthKey> {
        let key = Arc::new(key);
        Arc::make_mut(&mut self.net.keys).insert(key.id, Arc::clone(&key));
        self.writes.push(Write::PutKey(Arc::clone(&key)));
        key
    }

    /// Adds a waiting login.
    pub(super) fn put_login(&mut self, login: PendingLogin) {
        let login = Arc::new(login);
        Arc::make_mut(&mut self.net.logins).insert(login.id.clone(), Arc::clone(&login));
        self.writes.push(Write::PutLogin(login));
    }

    /// Takes a waiting login out.
    pub(super) fn drop_login(&mut self, id: &LoginId) -> Option<Arc<PendingLogin>> {
        let login = Arc::make_mut(&mut self.net.logins).remove(id)?;
        self.writes.push(Write::DeleteLogin(id.clone()));
        Some(login)
    }

    /// Puts a policy in force, compiled by the caller for `epoch`.
    pub(super) fn put_policy(
        &mut self,
        version: PolicyVersion,
        policy: Policy,
        compiled: Compiled,
        epoch: u64,
    ) {
        let version = Arc::new(version);
        self.writes.push(Write::PutPolicy(Arc::clone(&version)));
        self.net.policy_version = version;
        self.net.policy = Arc::new(policy);
        self.world_changed |= self.net.epoch != epoch;
        self.net.compiled = Arc::new(compiled);
        self.change.access = true;
    }

    /// Whether the policy resolves to something else than for `epoch`.
    pub(super) fn moved_on(&self, epoch: u64) -> bool {
        self.world_changed || self.net.epoch != epoch
    }

    /// Whether ending the round takes long: a compilation.
    pub(super) fn heavy(&self) -> bool {
        self.world_changed
    }

    /// Notes presence.
    pub(super) fn set_online(&mut self, id: NodeId, online: bool) {
        if online == self.net.online.contains(&id) {
            return;
        }
        let Some(node) = self.net.nodes.get(&id).cloned() else {
            return;
        };
        let set = Arc::make_mut(&mut self.net.online);
        if online {
            set.insert(id);
        } else {
            set.remove(&id);
        }
        let mut node = (*node).clone();
        node.last_seen = Some(self.now.wall);
        self.lag_node(node);
    }

    /// Ends a round of operations: compiles the policy if its world changed, elects routes.
    pub(super) fn finish(&mut self) {
        if self.world_changed {
            let compiled = self.net.policy.compile(&self.net.world());
            self.net.compiled = Arc::new(compiled);
            self.net.epoch += 1;
            self.change.access = true;
            self.world_changed = false;
        }
        if self.change.access || !self.change.nodes.is_empty() {
            let elected = routes::elect(&self.net);
            if elected != *self.net.primaries {
                routes::changed(&self.net.primaries, &elected, &mut self.change.nodes);
                self.net.primaries = Arc::new(elected);
            }
        }
    }
}
