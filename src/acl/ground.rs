//! A world, numbered: every node has a slot, sets of nodes are bitmaps of slots, and each way to ask for
//! nodes (user, tag, role, domain, address, route) has an index. A change touches the indexes of the one
//! node; the rest is shared with the world before.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;

use crate::keys::{NodeId, UserId};
use crate::model::{Role, Tag};

use super::ranges::{Bits, Range, exit_routes};
use super::{World, WorldNode, WorldUser};

/// What the compiler needs of one node.
#[derive(Debug, Clone)]
pub(super) struct GroundNode {
    pub(super) id: NodeId,
    pub(super) v4: IpAddr,
    pub(super) v6: IpAddr,
    /// Its addresses as text.
    pub(super) texts: [Arc<str>; 2],
    /// Stands for both addresses in the hash of a set of sources.
    pub(super) hash: u128,
    pub(super) user: Option<UserId>,
    /// Numbers of its served subnet routes, ascending.
    pub(super) routes: Vec<usize>,
    /// Approved exit routes; an exit node has at least one.
    pub(super) exits: Vec<IpNet>,
    /// As it was given.
    pub(super) node: Arc<WorldNode>,
}

/// A subnet route that somebody serves, or served once.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) net: IpNet,
    pub(super) range: Range,
    pub(super) text: Arc<str>,
    /// Who serves it; nobody any more when empty.
    pub(super) nodes: Bits,
    /// Whose addresses lie in it: an odd thing that costs extra care.
    pub(super) covers: Bits,
}

/// Keys the hashes of this run; one for all worlds, so that policies can be compared.
static SEED: OnceLock<[RandomState; 2]> = OnceLock::new();

type Index<K> = HashMap<K, Arc<Bits>>;

/// A world, numbered.
#[derive(Debug, Clone)]
pub(super) struct Ground {
    /// By slot; a slot whose node is gone keeps it but is in no set.
    pub(super) nodes: Vec<Arc<GroundNode>>,
    free: Vec<usize>,
    pub(super) index: Arc<HashMap<NodeId, usize>>,
    pub(super) people: Arc<BTreeMap<UserId, WorldUser>>,
    users: Arc<HashMap<String, Vec<UserId>>>,
    pub(super) by_user: Arc<Index<UserId>>,
    by_tag: Arc<Index<Tag>>,
    by_domain: Arc<Index<String>>,
    by_role: Arc<Index<Role>>,
    pub(super) untagged: Arc<Bits>,
    pub(super) tagged: Arc<Bits>,
    pub(super) all: Arc<Bits>,
    pub(super) exits: Arc<Bits>,
    /// Distinct subnet routes by number.
    pub(super) routes: Vec<Arc<Route>>,
    route_index: Arc<HashMap<IpNet, usize>>,
    /// All addresses in order, with their slots.
    addresses: Arc<Vec<(IpAddr, usize)>>,
    /// Nobody outside can make two sets collide.
    seed: [RandomState; 2],
    /// The tailnet's mail domains and settings, without users and nodes.
    pub(super) frame: Arc<World>,
    none: Arc<Bits>,
}

impl Ground {
    pub(super) fn new(world: &World) -> Self {
        let frame = World { users: BTreeMap::new(), nodes: BTreeMap::new(), ..world.clone_frame() };
        let mut ground = Self {
            nodes: Vec::with_capacity(world.nodes.len()),
            free: Vec::new(),
            index: Arc::default(),
            people: Arc::new(world.users.clone()),
            users: Arc::default(),
            by_user: Arc::default(),
            by_tag: Arc::default(),
            by_domain: Arc::default(),
            by_role: Arc::default(),
            untagged: Arc::default(),
            tagged: Arc::default(),
            all: Arc::default(),
            exits: Arc::default(),
            routes: Vec::new(),
            route_index: Arc::default(),
            addresses: Arc::default(),
            seed: SEED.get_or_init(|| [RandomState::new(), RandomState::new()]).clone(),
            frame: Arc::new(frame),
            none: Arc::default(),
        };
        ground.name_users();
        let mut addresses = Vec::with_capacity(world.nodes.len() * 2);
        for node in world.nodes.values() {
            let at = ground.place(Arc::new(node.clone()));
            addresses.push((IpAddr::V4(node.ipv4), at));
            addresses.push((IpAddr::V6(node.ipv6), at));
        }
        addresses.sort_unstable();
        ground.addresses = Arc::new(addresses);
        let covers: Vec<Bits> = ground.routes.iter().map(|r| ground.covered(r.range)).collect();
        for (route, covers) in ground.routes.iter_mut().zip(covers) {
            Arc::make_mut(route).covers = covers;
        }
        ground
    }

    fn name_users(&mut self) {
        let mut users: HashMap<String, Vec<UserId>> = HashMap::new();
        for user in self.people.values() {
            users.entry(user.name.clone()).or_default().push(user.id);
        }
        self.users = Arc::new(users);
    }

    /// Replaces, adds or drops a user. Nodes of the user are replaced by the caller.
    pub(super) fn set_user(&mut self, id: UserId, user: Option<WorldUser>) {
        let people = Arc::make_mut(&mut self.people);
        match user {
            Some(user) => drop(people.insert(id, user)),
            None => drop(people.remove(&id)),
        }
        self.name_users();
    }

    /// Replaces, adds or drops a node. Answers its slot before and after.
    pub(super) fn set_node(&mut self, id: NodeId, node: Option<&WorldNode>) -> [Option<usize>; 2] {
        let before = self.index.get(&id).copied();
        if let Some(at) = before {
            self.lift(at);
        }
        let after = node.map(|node| {
            let at = self.place(Arc::new(node.clone()));
            let addresses = Arc::make_mut(&mut self.addresses);
            for ip in [IpAddr::V4(node.ipv4), IpAddr::V6(node.ipv6)] {
                let entry = (ip, at);
                addresses.insert(addresses.partition_point(|a| *a < entry), entry);
            }
            at
        });
        if let Some(at) = after {
            let covering: Vec<usize> = match self.nodes.get(at) {
                Some(n) => (0..)
                    .zip(&self.routes)
                    .filter(|(_, r)| r.range.contains(n.v4) || r.range.contains(n.v6))
                    .map(|(number, _)| number)
                    .collect(),
                None => Vec::new(),
            };
            for number in covering {
                if let Some(route) = self.routes.get_mut(number) {
                    Arc::make_mut(route).covers.set(at);
                }
            }
            let mine = self.nodes.get(at).map(|n| n.routes.clone()).unwrap_or_default();
            for number in mine {
                let covers = self.routes.get(number).map(|r| self.covered(r.range));
                if let (Some(route), Some(covers)) = (self.routes.get_mut(number), covers) {
                    Arc::make_mut(route).covers = covers;
                }
            }
        }
        [before, after]
    }

    /// Whether a served route covers addresses of nodes. Then a name's routes depend on its nodes.
    pub(super) fn odd(&self) -> bool {
        self.routes.iter().any(|r| !r.nodes.is_empty() && !r.covers.is_empty())
    }

    /// Enters a node into a free slot and all indexes but that of addresses.
    fn place(&mut self, node: Arc<WorldNode>) -> usize {
        let at = self.free.pop().unwrap_or(self.nodes.len());
        Arc::make_mut(&mut self.index).insert(node.id, at);
        Arc::make_mut(&mut self.all).set(at);
        let user = node.owner.user();
        if let Some(user) = user {
            Arc::make_mut(&mut self.untagged).set(at);
            enter(&mut self.by_user, user, at);
            if let Some(person) = self.people.get(&user).cloned() {
                enter(&mut self.by_role, person.role, at);
                if let Some((_, domain)) = person.name.rsplit_once('@') {
                    enter(&mut self.by_domain, domain.to_owned(), at);
                }
            }
        } else {
            Arc::make_mut(&mut self.tagged).set(at);
        }
        for tag in node.owner.tags() {
            enter(&mut self.by_tag, tag.clone(), at);
        }
        let (mut routes, mut exits) = (Vec::new(), Vec::new());
        for route in node.served_routes.iter().map(IpNet::trunc) {
            if exit_routes().contains(&route) {
                exits.push(route);
            } else {
                let number = self.route(route);
                if let Some(route) = self.routes.get_mut(number) {
                    Arc::make_mut(route).nodes.set(at);
                }
                routes.push(number);
            }
        }
        if !exits.is_empty() {
            Arc::make_mut(&mut self.exits).set(at);
        }
        routes.sort_unstable();
        routes.dedup();
        let (v4, v6) = (IpAddr::V4(node.ipv4), IpAddr::V6(node.ipv6));
        let new = Arc::new(GroundNode {
            id: node.id,
            v4,
            v6,
            texts: [v4, v6].map(|ip| Arc::from(ip.to_string())),
            hash: self.hash(Range::single(v4)) ^ self.hash(Range::single(v6)),
            user,
            routes,
            exits,
            node,
        });
        match self.nodes.get_mut(at) {
            Some(slot) => *slot = new,
            None => self.nodes.push(new),
        }
        at
    }

    /// Takes a node out of all indexes; its slot is free.
    fn lift(&mut self, at: usize) {
        let Some(node) = self.nodes.get(at).cloned() else {
            return;
        };
        Arc::make_mut(&mut self.index).remove(&node.id);
        for set in [&mut self.all, &mut self.untagged, &mut self.tagged, &mut self.exits] {
            if set.get(at) {
                Arc::make_mut(set).clear(at);
            }
        }
        if let Some(user) = node.user {
            leave(&mut self.by_user, &user, at);
            // The person may have another role or name by now.
            for set in Arc::make_mut(&mut self.by_role).values_mut().filter(|s| s.get(at)) {
                Arc::make_mut(set).clear(at);
            }
            for set in Arc::make_mut(&mut self.by_domain).values_mut().filter(|s| s.get(at)) {
                Arc::make_mut(set).clear(at);
            }
        }
        for tag in node.node.owner.tags() {
            leave(&mut self.by_tag, tag, at);
        }
        for route in &mut self.routes {
            if route.nodes.get(at) || route.covers.get(at) {
                let route = Arc::make_mut(route);
                route.nodes.clear(at);
                route.covers.clear(at);
            }
        }
        let addresses = Arc::make_mut(&mut self.addresses);
        for ip in [node.v4, node.v6] {
            if let Ok(found) = addresses.binary_search(&(ip, at)) {
                addresses.remove(found);
            }
        }
        self.free.push(at);
    }

    /// The number of a route; a number nobody serves any more is used again.
    fn route(&mut self, net: IpNet) -> usize {
        if let Some(number) = self.route_index.get(&net) {
            return *number;
        }
        let route = Arc::new(Route {
            net,
            range: net.into(),
            text: Arc::from(net.to_string()),
            nodes: Bits::default(),
            covers: Bits::default(),
        });
        let index = Arc::make_mut(&mut self.route_index);
        let number = self.routes.len();
        index.insert(net, number);
        self.routes.push(route);
        number
    }

    /// Keyed hash of a range, for sets of sources.
    pub(super) fn hash(&self, range: Range) -> u128 {
        let [a, b] = &self.seed;
        u128::from(a.hash_one(range)) << 64 | u128::from(b.hash_one(range))
    }

    /// Slots whose addresses lie in `range`.
    pub(super) fn covered(&self, range: Range) -> Bits {
        self.within(range).iter().map(|(_, at)| *at).collect()
    }

    /// Addresses of nodes in `range`, in order, with their slots.
    pub(super) fn within(&self, range: Range) -> &[(IpAddr, usize)] {
        let from = self.addresses.partition_point(|(ip, _)| Range::single(*ip).before(range));
        let rest = self.addresses.get(from..).unwrap_or_default();
        rest.get(..rest.partition_point(|(ip, _)| range.contains(*ip))).unwrap_or_default()
    }

    /// Users called `name`.
    pub(super) fn users_called(&self, name: &str) -> &[UserId] {
        self.users.get(name).map_or(&[], Vec::as_slice)
    }

    /// Untagged nodes of the users called `name`.
    pub(super) fn user(&self, name: &str) -> Arc<Bits> {
        match self.users_called(name) {
            [id] => self.by_user.get(id).unwrap_or(&self.none).clone(),
            ids => {
                let mut out = Bits::default();
                ids.iter().filter_map(|id| self.by_user.get(id)).for_each(|nodes| out.add(nodes));
                Arc::new(out)
            }
        }
    }

    /// Nodes with a tag.
    pub(super) fn tag(&self, tag: &Tag) -> Arc<Bits> {
        self.by_tag.get(tag).unwrap_or(&self.none).clone()
    }

    /// Untagged nodes of users of a mail domain.
    pub(super) fn domain(&self, domain: &str) -> Arc<Bits> {
        self.by_domain.get(domain).unwrap_or(&self.none).clone()
    }

    /// Untagged nodes of users who count as `role`.
    pub(super) fn role(&self, role: Role) -> Arc<Bits> {
        let mut out = Bits::default();
        for (_, nodes) in self.by_role.iter().filter(|(has, _)| has.is(role)) {
            out.add(nodes);
        }
        Arc::new(out)
    }

    /// The empty set.
    pub(super) fn nobody(&self) -> Arc<Bits> {
        self.none.clone()
    }

    /// Routes that somebody serves, with their numbers.
    pub(super) fn served(&self) -> impl Iterator<Item = (usize, &Route)> {
        (0..).zip(&self.routes).filter(|(_, r)| !r.nodes.is_empty()).map(|(n, r)| (n, &**r))
    }

    /// All nodes there are, with their slots.
    pub(super) fn live(&self) -> impl Iterator<Item = (usize, &GroundNode)> {
        self.all.iter().filter_map(|at| Some((at, &**self.nodes.get(at)?)))
    }

    /// Whether two worlds number the same nodes alike.
    pub(super) fn alike(&self, other: &Self) -> bool {
        self.all == other.all
            && self.live().all(|(at, n)| {
                other.nodes.get(at).is_some_and(|o| Arc::ptr_eq(&n.node, &o.node) || n.node == o.node)
            })
            && self.people == other.people
            && self.routes.len() == other.routes.len()
            && self.routes.iter().zip(&other.routes).all(|(a, b)| a.net == b.net)
    }

    /// The user a node belongs to.
    pub(super) fn owner(&self, at: usize) -> Option<&WorldUser> {
        self.people.get(&self.nodes.get(at)?.user?)
    }
}

fn enter<K: std::hash::Hash + Eq + Clone>(index: &mut Arc<Index<K>>, key: K, at: usize) {
    Arc::make_mut(Arc::make_mut(index).entry(key).or_default()).set(at);
}

fn leave<K: std::hash::Hash + Eq + Clone>(index: &mut Arc<Index<K>>, key: &K, at: usize) {
    if let Some(set) = Arc::make_mut(index).get_mut(key) {
        Arc::make_mut(set).clear(at);
    }
}
