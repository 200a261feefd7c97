//! The tailnet as one value. Clones share their maps, so the published snapshot and the draft of the
//! next one are the same type; [`Draft`] is the only writer and notes for each step what must be kept
//! and what others must learn. Decisions are in `register`, `nodes`, `admin`, `policy`, `timers`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use ipnet::{IpNet, Ipv4Net};

use super::change::Change;
use super::ipam::Ledger;
use super::types::Settings;
use super::{relays, routes, world};
use crate::acl::{Compiled, Policy, World, WorldChange};
use crate::clock::{Now, Rng};
use crate::keys::{NodeId, NodePublic, UserId};
use crate::model::rows::{Stored, Write};
use crate::model::{KeyId, LoginId, Node, PendingLogin, PolicyVersion, PreAuthKey, User};
use crate::wire::DerpMap;

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
    pub(super) primaries: Arc<routes::Elected>,
    /// Relays, as settings and policy have them.
    pub(super) derp_map: Arc<DerpMap>,
    /// Mail domains, as settings or login names have them.
    pub(super) domains: Arc<BTreeSet<String>>,
    /// The policy's text and number.
    pub(super) policy_version: Arc<PolicyVersion>,
    /// The policy as read.
    pub(super) policy: Arc<Policy>,
    /// The policy in force.
    pub(super) compiled: Arc<Compiled>,
    /// The highest version ever stored.
    pub(super) last_policy: u64,
    /// The policy stored last could not be read; a sentence.
    pub(super) policy_fault: Option<Arc<str>>,
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
            derp_map: Arc::new(relays::merged(&settings.derp_map, &policy.ast().derp_map)),
            domains: Arc::default(),
            last_policy: stored.policy.as_ref().map_or(0, |p| p.version).max(policy_version.version),
            policy_fault: None,
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
        net.domains = Arc::new(world::domains(&net));
        net.compiled = Arc::new(net.policy.compile(&net.world()));
        net.primaries = Arc::new(routes::elect(&net));
        net
    }

    /// What the policy is resolved against.
    #[must_use]
    pub(super) fn world(&self) -> World {
        world::world(self)
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
    /// What the policy in force has not heard of yet.
    world: WorldChange,
    /// It has to be compiled as a whole.
    anew: bool,
    /// Nodes whose routes the policy may approve now.
    approve: BTreeSet<NodeId>,
    /// Who serves routes, or may be elected, changed.
    routes: bool,
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
            world: WorldChange::default(),
            anew: false,
            approve: BTreeSet::new(),
            routes: false,
        }
    }

    /// Adds or replaces a user and keeps it.
    pub(super) fn put_user(&mut self, user: User) -> Arc<User> {
        let user = Arc::new(user);
        let old = Arc::make_mut(&mut self.net.users).insert(user.id, Arc::clone(&user));
        self.writes.push(Write::PutUser(Arc::clone(&user)));
        self.world.users.insert(user.id, Some(world::user(&user)));
        self.change.users |= old.is_some_and(|o| o.name != user.name);
        user
    }

    /// Drops a user who owns nothing.
    pub(super) fn delete_user(&mut self, id: UserId) {
        Arc::make_mut(&mut self.net.users).remove(&id);
        self.writes.push(Write::DeleteUser(id));
        self.world.users.insert(id, None);
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

    /// Takes an address pair for `node`, which has none yet: from the networks the policy names for it,
    /// else from the server's own.
    ///
    /// # Errors
    /// When none is left.
    pub(super) fn take_address(
        &mut self,
        node: &Node,
    ) -> Result<(std::net::Ipv4Addr, std::net::Ipv6Addr), super::ipam::Exhausted> {
        let mut full = None;
        for pool in self.pools(node) {
            match self.net.ledger.allocate_from(pool, self.now.wall) {
                Ok(taken) => return Ok(taken),
                Err(exhausted) => full = Some(exhausted),
            }
        }
        match full {
            Some(exhausted) => Err(exhausted),
            None => self.net.ledger.allocate(self.net.settings.ipv4_pool, self.now.wall),
        }
    }

    /// The policy's networks for a node that is not there yet.
    fn pools(&self, node: &Node) -> Vec<Ipv4Net> {
        if self.net.policy.ast().node_attrs.iter().all(|a| a.ip_pool.is_empty()) {
            return Vec::new();
        }
        let mut change = self.world.clone();
        change.nodes.insert(node.id, Some(world::node(node)));
        let (compiled, _) = self.net.compiled.update(&change);
        let v4 = |net: IpNet| match net {
            IpNet::V4(net) => Some(net),
            IpNet::V6(_) => None,
        };
        compiled.ip_pool(node.id).into_iter().filter_map(v4).collect()
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
        self.note_world(old.as_deref(), &node);
        self.note_expiry(&node);
        node
    }

    /// Notes what a new record means for the policy.
    fn note_world(&mut self, old: Option<&Node>, node: &Node) {
        let seen = world::node(node);
        if old.is_none_or(|o| world::node(o) != seen) {
            self.world.nodes.insert(node.id, Some(seen));
        }
        self.routes |= serves(node) || old.is_some_and(serves);
        // What an admin took back stays back until the node comes with something new (SEMANTICS.md 11).
        let asks = old.is_none_or(|o| {
            o.key != node.key
                || o.owner != node.owner
                || o.hostinfo.routable_ips != node.hostinfo.routable_ips
        });
        if asks && !node.hostinfo.routable_ips.is_empty() {
            self.approve.insert(node.id);
        }
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
        // An expired node sees nobody.
        self.change.access.nodes.insert(node.id);
        self.routes |= serves(node);
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
        self.world.nodes.insert(id, None);
        self.approve.remove(&id);
        self.routes |= serves(&node);
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
        self.net.last_policy = version.version;
        self.net.policy_version = version;
        self.net.policy_fault = None;
        self.net.policy = Arc::new(policy);
        self.net.compiled = Arc::new(compiled);
        self.anew |= self.net.epoch != epoch;
        self.change.access.all = true;
        self.routes = true;
        let offer = self.net.nodes.values().filter(|n| !n.hostinfo.routable_ips.is_empty());
        self.approve.extend(offer.map(|n| n.id));
    }

    /// Whether the policy resolves to something else than for `epoch`.
    pub(super) fn moved_on(&self, epoch: u64) -> bool {
        self.anew || self.world != WorldChange::default() || self.net.epoch != epoch
    }

    /// Whether ending the round may take long: a compilation.
    pub(super) fn heavy(&self) -> bool {
        self.moved_on(self.net.epoch) || self.change.settings || !self.approve.is_empty()
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

    /// Ends a round of operations: brings the policy in force up to date with its world, approves what it
    /// approves by itself, elects routes.
    pub(super) fn finish(&mut self) {
        self.settle();
        self.auto_approve();
        self.settle();
        if !std::mem::take(&mut self.routes) {
            return;
        }
        let elected = routes::elect(&self.net);
        if elected != *self.net.primaries {
            routes::changed(&self.net.primaries, &elected, &mut self.change.nodes);
            self.net.primaries = Arc::new(elected);
        }
    }

    fn settle(&mut self) {
        if self.change.settings || self.change.access.all {
            let derp = relays::merged(&self.net.settings.derp_map, &self.net.policy.ast().derp_map);
            if derp != *self.net.derp_map {
                self.net.derp_map = Arc::new(derp);
            }
        }
        if !self.world.users.is_empty() {
            self.note_owned();
        }
        if self.change.settings || !self.world.users.is_empty() {
            let domains = world::domains(&self.net);
            if domains != *self.net.domains {
                self.net.domains = Arc::new(domains);
                self.anew = true;
            }
        }
        if std::mem::take(&mut self.anew) {
            self.world = WorldChange::default();
            self.net.compiled = Arc::new(self.net.policy.compile(&self.net.world()));
            self.net.epoch += 1;
            self.change.access.all = true;
            self.routes = true;
            return;
        }
        let world = std::mem::take(&mut self.world);
        if world == WorldChange::default() {
            return;
        }
        let (compiled, touched) = self.net.compiled.update(&world);
        self.net.compiled = Arc::new(compiled);
        self.net.epoch += 1;
        self.change.touch(&touched);
    }

    /// What others are told of a device, and its routes, may hang on what its owner may do.
    fn note_owned(&mut self) {
        let users = &self.world.users;
        let owned = |n: &&Arc<Node>| n.owner.user().is_some_and(|u| users.contains_key(&u));
        for node in self.net.nodes.values().filter(owned) {
            self.change.access.nodes.insert(node.id);
            if !node.hostinfo.routable_ips.is_empty() {
                self.approve.insert(node.id);
            }
        }
    }

    /// Approves what `autoApprovers` approve; never takes anything back (SEMANTICS.md 11).
    fn auto_approve(&mut self) {
        for id in std::mem::take(&mut self.approve) {
            let Some(node) = self.net.nodes.get(&id) else {
                continue;
            };
            let mut more = self.net.compiled.auto_approved(id, &node.hostinfo.routable_ips);
            more.retain(|r| !node.approved_routes.contains(&r.trunc()));
            if more.is_empty() {
                continue;
            }
            tracing::info!(node = %id, routes = ?more, "routes approved by the policy");
            let mut node = (**node).clone();
            node.approved_routes.extend(more.iter().map(IpNet::trunc));
            self.put_node(node);
        }
    }
}

/// Whether a node has routes that others may be shown.
fn serves(node: &Node) -> bool {
    !node.hostinfo.routable_ips.is_empty() && !node.approved_routes.is_empty()
}
