//! A network written down as JSON, and what a policy makes of it: for checks, editors and bug reports,
//! without a server. Nodes are numbered in the order of their names, so equal files give equal answers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap as _, Serializer};
use serde::{Deserialize, Serialize};

use super::alias::parse_prefix;
use super::error::{Faults, Lines, did_you_mean, quote};
use super::{Compiled, Policy, PolicyError, World, WorldNode, WorldUser};
use crate::keys::{NodeId, UserId};
use crate::model::{Owner, Role, Tag, Tags};
use crate::wire::{CapMap, FilterRule, SshRule};

/// Larger files are refused unread.
const MAX_BYTES: usize = 256 << 20;
/// No network here has more devices.
const MAX_NODES: usize = 1 << 20;
/// What checks of SSH sessions ask, when there is no server.
const NO_SERVER: &str = "https://unused";

/// Why a topology is of no use; the text says where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// It is no JSON of the expected shape.
    #[error("line {line}, column {column}: {what}")]
    Shape {
        /// 1-based line.
        line: usize,
        /// 1-based column.
        column: usize,
        /// What is wrong.
        what: String,
    },
    /// A part contradicts another.
    #[error("{place}: {what}")]
    Meaning {
        /// `nodes.beedrill.user`.
        place: String,
        /// What is wrong and what would be right.
        what: String,
    },
}

/// A network that was read from a file.
#[derive(Debug, Clone)]
pub struct Topology {
    world: World,
    /// What each node offers.
    offered: BTreeMap<NodeId, Vec<IpNet>>,
    /// What each node is said to be elected for; a node that says nothing is not in here.
    primaries: BTreeMap<NodeId, Vec<IpNet>>,
    names: BTreeMap<String, NodeId>,
}

#[derive(Deserialize)]
struct RawFile {
    tailnet: Option<RawTailnet>,
    users: Option<Vec<RawUser>>,
    nodes: Option<Named<RawNode>>,
}

#[derive(Default, Deserialize)]
struct RawTailnet {
    domains: Option<BTreeSet<String>>,
    settings: Option<RawSettings>,
}

#[derive(Default, Deserialize)]
struct RawSettings {
    devices_auto_updates_on: Option<bool>,
}

#[derive(Deserialize)]
struct RawUser {
    id: Option<u64>,
    name: Option<String>,
    email: Option<String>,
    role: Option<Role>,
}

#[derive(Deserialize)]
struct RawNode {
    user: Option<String>,
    tags: Option<Vec<Tag>>,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
    routable_ips: Option<Vec<Net>>,
    approved_routes: Option<Vec<Net>>,
    primary_routes: Option<Vec<Net>>,
}

/// A network, host bits cleared.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Net(IpNet);

impl TryFrom<String> for Net {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{} is no network; write it like 10.0.0.0/16", quote(&text));
        parse_prefix(&text).map(Self).ok_or_else(wrong)
    }
}

fn nets(list: Option<Vec<Net>>) -> Vec<IpNet> {
    let set: BTreeSet<IpNet> = list.into_iter().flatten().map(|n| n.0).collect();
    set.into_iter().collect()
}

/// An object whose members must differ: of two nodes of one name neither may win silently.
struct Named<T>(BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Named<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of names")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named<T>, A::Error> {
                let mut out = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, T>()? {
                    if out.len() >= MAX_NODES {
                        return Err(de::Error::custom(format!("more than {MAX_NODES} nodes")));
                    }
                    if out.contains_key(&name) {
                        return Err(de::Error::custom(format!("{} is there twice", quote(&name))));
                    }
                    out.insert(name, value);
                }
                Ok(Named(out))
            }
        }
        deserializer.deserialize_map(Members(std::marker::PhantomData))
    }
}

fn nearest<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    Faults::new(Lines::new("")).suggest(wanted, known)
}

fn meaning(place: impl Into<String>, what: impl Into<String>) -> TopologyError {
    TopologyError::Meaning { place: place.into(), what: what.into() }
}

impl Topology {
    /// Reads a topology file.
    ///
    /// # Errors
    /// The first fault, with its place.
    pub fn parse(text: &str) -> Result<Self, TopologyError> {
        if text.len() > MAX_BYTES {
            return Err(meaning("the file", format!("is larger than {MAX_BYTES} bytes")));
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let raw: RawFile = serde_json::from_str(text).map_err(|error| {
            let whole = error.to_string();
            let (line, column) = (error.line(), error.column());
            let place = format!(" at line {line} column {column}");
            TopologyError::Shape {
                line,
                column,
                what: whole.strip_suffix(&place).unwrap_or(&whole).to_owned(),
            }
        })?;
        let tailnet = raw.tailnet.unwrap_or_default();
        let users = users(raw.users.unwrap_or_default())?;
        // As on a server that is told none: those of its users' names.
        let of = |u: &WorldUser| u.name.rsplit_once('@').map(|(_, domain)| domain.to_owned());
        let domains = tailnet.domains.unwrap_or_else(|| users.world.values().filter_map(of).collect());
        let mut topology = Self {
            world: World {
                users: users.world,
                nodes: BTreeMap::new(),
                domains,
                auto_update: tailnet.settings.unwrap_or_default().devices_auto_updates_on.unwrap_or(false),
            },
            offered: BTreeMap::new(),
            primaries: BTreeMap::new(),
            names: BTreeMap::new(),
        };
        topology.add_nodes(raw.nodes.map_or_else(BTreeMap::new, |n| n.0), &users.by_name)?;
        Ok(topology)
    }

    fn add_nodes(
        &mut self,
        raw: BTreeMap<String, RawNode>,
        users: &BTreeMap<String, UserId>,
    ) -> Result<(), TopologyError> {
        let mut used4: BTreeMap<Ipv4Addr, String> = BTreeMap::new();
        let mut used6: BTreeMap<Ipv6Addr, String> = BTreeMap::new();
        for (name, node) in &raw {
            let v4 = node.ipv4.and_then(|ip| used4.insert(ip, name.clone()));
            let v6 = node.ipv6.and_then(|ip| used6.insert(ip, name.clone()));
            if let Some(other) = v4.or(v6) {
                return Err(meaning(format!("nodes.{name}"), format!("has an address of node {other}")));
            }
        }
        // Addresses the file does not give: those no other node has, in order of names.
        let mut free4 =
            (1u32..).map(|n| Ipv4Addr::from(0x6440_0000 + n)).filter(|ip| !used4.contains_key(ip));
        let mut free6 = (1u128..)
            .map(|n| Ipv6Addr::from(0xfd7a_115c_a1e0_u128 << 80 | n))
            .filter(|ip| !used6.contains_key(ip));
        for (number, (name, node)) in (1..).zip(raw) {
            let owner = match (Tags::new(node.tags.into_iter().flatten()), node.user) {
                (Some(tags), _) => Owner::Tags(tags),
                (None, Some(user)) => match users.get(&user) {
                    Some(id) => Owner::User(*id),
                    None => {
                        let near = nearest(&user, users.keys().map(String::as_str));
                        return Err(meaning(
                            format!("nodes.{name}.user"),
                            format!(
                                "no user is called {}; {}",
                                quote(&user),
                                did_you_mean(near, "add them to \"users\"")
                            ),
                        ));
                    }
                },
                (None, None) => {
                    return Err(meaning(
                        format!("nodes.{name}"),
                        "has neither a user nor tags; give it \"user\" or \"tags\"",
                    ));
                }
            };
            let id = NodeId(number);
            let offered = nets(node.routable_ips);
            let approved = nets(node.approved_routes);
            self.names.insert(name.clone(), id);
            self.world.nodes.insert(
                id,
                WorldNode {
                    id,
                    name,
                    owner,
                    ipv4: node.ipv4.or_else(|| free4.next()).unwrap_or(Ipv4Addr::UNSPECIFIED),
                    ipv6: node.ipv6.or_else(|| free6.next()).unwrap_or(Ipv6Addr::UNSPECIFIED),
                    served_routes: offered.iter().filter(|r| approved.contains(r)).copied().collect(),
                    attributes: BTreeMap::new(),
                },
            );
            self.offered.insert(id, offered);
            if let Some(list) = node.primary_routes {
                self.primaries.insert(id, nets(Some(list)));
            }
        }
        Ok(())
    }

    /// Users and nodes as the policy sees them.
    #[must_use]
    pub const fn world(&self) -> &World {
        &self.world
    }

    /// The node of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<NodeId> {
        self.names.get(name).copied()
    }

    /// The name nearest to one that no node has.
    #[must_use]
    pub fn nearest(&self, name: &str) -> Option<&str> {
        nearest(name, self.names.keys().map(String::as_str))
    }

    fn name(&self, id: NodeId) -> &str {
        self.world.nodes.get(&id).map_or("", |n| n.name.as_str())
    }

    /// Reads and compiles a policy for this network and runs its tests.
    ///
    /// # Errors
    /// Why the policy is refused: faults of the text, else what contradicts the tailnet, else tests
    /// that do not hold.
    pub fn compile(&self, policy: &str) -> Result<(Policy, Compiled), Vec<PolicyError>> {
        let (policy, compiled) = self.compile_untested(policy)?;
        let failing = compiled.failing_tests();
        if failing.is_empty() { Ok((policy, compiled)) } else { Err(failing) }
    }

    /// Reads and compiles a policy for this network, whether its tests hold or not.
    ///
    /// # Errors
    /// Faults of the text, else what contradicts the tailnet.
    pub fn compile_untested(&self, policy: &str) -> Result<(Policy, Compiled), Vec<PolicyError>> {
        let policy = Policy::parse(policy)?;
        let mistakes = policy.mistakes(&self.world);
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let compiled = policy.compile(&self.world);
        Ok((policy, compiled))
    }

    /// Which node carries `route`, of `nodes` that may: the one the file says, else the first. When all
    /// that serve it say what they carry and none says this route, nobody does.
    #[must_use]
    pub fn elected(&self, route: &IpNet, nodes: &[NodeId]) -> Option<NodeId> {
        let says = |id: &&NodeId| self.primaries.get(id).is_some_and(|list| list.contains(route));
        if let Some(id) = nodes.iter().find(says) {
            return Some(*id);
        }
        let silent = nodes.iter().find(|id| !self.primaries.contains_key(id));
        let serves = |n: &&WorldNode| n.served_routes.contains(route);
        let all = self.world.nodes.values().filter(serves).all(|n| nodes.contains(&n.id));
        // A group steered by `via` elects its own, whoever carries the route for the others.
        silent.copied().or_else(|| if all { None } else { nodes.iter().min().copied() })
    }

    /// What `compiled` gives one node, or all, printed as it is made.
    #[must_use]
    pub const fn rendered<'a>(&'a self, compiled: &'a Compiled, only: Option<NodeId>) -> Rendered<'a> {
        Rendered { topology: self, compiled, only }
    }

    /// What `compiled` gives one node.
    #[must_use]
    pub fn view(&self, compiled: &Compiled, node: NodeId) -> NodeView {
        let mut peers: Vec<NodeId> = compiled.peers(node);
        peers.sort_by_key(|id| self.name(*id));
        let named = |id: &NodeId| self.name(*id).to_owned();
        let elected = |route: &IpNet, nodes: &[NodeId]| self.elected(route, nodes);
        let without = compiled.without_ipv4(node);
        let allowed = |id: &NodeId| {
            let peer = self.world.nodes.get(id);
            let mut list: Vec<IpNet> = Vec::new();
            if let Some(peer) = peer {
                if !without && !compiled.without_ipv4(*id) {
                    list.push(IpNet::from(std::net::IpAddr::V4(peer.ipv4)));
                }
                list.push(IpNet::from(std::net::IpAddr::V6(peer.ipv6)));
                if !peer.served_routes.is_empty() {
                    let mut routes = compiled.shown_routes(node, *id, &elected);
                    routes.sort_unstable();
                    list.extend(routes);
                }
            }
            (named(id), list)
        };
        let mut approved = compiled.auto_approved(node, self.offered.get(&node).map_or(&[], Vec::as_slice));
        approved.sort_unstable();
        NodeView {
            packet_filter_rules: compiled.filter_rules(node).to_vec(),
            ssh_rules: compiled.ssh_rules(node, NO_SERVER),
            cap_map: compiled.self_caps(node),
            allowed_ips: peers.iter().map(allowed).collect(),
            peer_cap_map: peers.iter().map(|id| (named(id), compiled.peer_caps(*id))).collect(),
            peers: peers.iter().map(named).collect(),
            auto_approved: approved,
        }
    }
}

/// What a policy gives one node, in the wire's spelling.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeView {
    /// Its packet filter.
    pub packet_filter_rules: Vec<FilterRule>,
    /// Its SSH rules.
    pub ssh_rules: Vec<SshRule>,
    /// Its own capabilities.
    pub cap_map: CapMap,
    /// Whom it sees, by name.
    pub peers: Vec<String>,
    /// Addresses and routes of each peer as it sees them.
    pub allowed_ips: BTreeMap<String, Vec<IpNet>>,
    /// Capabilities of each peer as it sees them.
    pub peer_cap_map: BTreeMap<String, CapMap>,
    /// The routes it offers that the policy approves.
    pub auto_approved: Vec<IpNet>,
}

/// Nodes with what they are given; each is made when it is printed.
#[derive(Debug, Clone, Copy)]
pub struct Rendered<'a> {
    topology: &'a Topology,
    compiled: &'a Compiled,
    only: Option<NodeId>,
}

impl Serialize for Rendered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, id) in &self.topology.names {
            if self.only.is_none_or(|only| only == *id) {
                map.serialize_entry(name, &self.topology.view(self.compiled, *id))?;
            }
        }
        map.end()
    }
}

struct Users {
    world: BTreeMap<UserId, WorldUser>,
    by_name: BTreeMap<String, UserId>,
}

/// Numbers who has no number, and makes the first the owner when nobody has a role.
fn users(raw: Vec<RawUser>) -> Result<Users, TopologyError> {
    let mut taken: BTreeSet<u64> = BTreeSet::new();
    let mut out = Users { world: BTreeMap::new(), by_name: BTreeMap::new() };
    for (at, user) in raw.iter().enumerate() {
        if let Some(id) = user.id.filter(|id| *id != 0)
            && !taken.insert(id)
        {
            return Err(meaning(format!("users[{at}].id"), format!("{id} is another user's too")));
        }
    }
    let mut next = (1..).filter(|id| !taken.contains(id));
    let roles = raw.iter().any(|u| u.role.is_some());
    for (at, user) in raw.into_iter().enumerate() {
        let text = |t: Option<String>| t.filter(|t| !t.is_empty());
        let (name, email) = (text(user.name), text(user.email));
        let Some(login) = email.clone().or_else(|| name.clone()) else {
            return Err(meaning(format!("users[{at}]"), "has neither a name nor an email"));
        };
        let id = user.id.filter(|id| *id != 0).or_else(|| next.next()).unwrap_or(u64::MAX);
        let id = UserId(id);
        let role = user.role.unwrap_or_default();
        out.world.insert(id, WorldUser { id, name: login, role });
        for word in [name, email].into_iter().flatten() {
            if out.by_name.insert(word.clone(), id).is_some_and(|other| other != id) {
                return Err(meaning(format!("users[{at}]"), format!("{} is two users", quote(&word))));
            }
        }
    }
    if !roles && let Some(mut first) = out.world.first_entry() {
        first.get_mut().role = Role::Owner;
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
