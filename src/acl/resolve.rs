//! Names to nodes and address ranges, against one [`World`]. Each distinct name is resolved once per
//! side; rules then only hold numbers into the two tables.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::keys::{NodeId, UserId};
use crate::model::{Role, Tag};

use super::World;
use super::ast::{Alias, File};
use super::ranges::{Bits, Range, exit_routes, internet, join, star, without};

/// What the compiler needs of one node.
#[derive(Debug, Clone)]
pub(super) struct GroundNode {
    pub(super) id: NodeId,
    pub(super) v4: IpAddr,
    pub(super) v6: IpAddr,
    pub(super) user: Option<UserId>,
    /// Numbers of its served subnet routes.
    pub(super) routes: Vec<usize>,
    /// Approved exit routes; an exit node has at least one.
    pub(super) exits: Vec<IpNet>,
    /// Whether one of its routes covers addresses of nodes, an odd thing that costs extra care.
    pub(super) routes_nodes: bool,
}

/// A world, numbered.
#[derive(Debug, Default)]
pub(super) struct Ground {
    pub(super) nodes: Vec<GroundNode>,
    pub(super) index: HashMap<NodeId, usize>,
    pub(super) by_user: HashMap<UserId, Bits>,
    by_tag: HashMap<Tag, Bits>,
    by_domain: HashMap<String, Bits>,
    by_role: BTreeMap<Role, Bits>,
    users: HashMap<String, Vec<UserId>>,
    pub(super) untagged: Bits,
    tagged: Bits,
    all: Bits,
    exits: Bits,
    /// Distinct served subnet routes.
    pub(super) routes: Vec<IpNet>,
    route_ranges: Vec<Range>,
    /// Who serves each route.
    route_nodes: Vec<Bits>,
    /// Whose addresses lie in each route.
    route_covers: Vec<Bits>,
    /// All addresses in order, with their nodes.
    addresses: Vec<(IpAddr, usize)>,
}

impl Ground {
    pub(super) fn new(world: &World) -> Self {
        let mut ground = Self::default();
        for user in world.users.values() {
            ground.users.entry(user.name.clone()).or_default().push(user.id);
        }
        let mut route_index: HashMap<IpNet, usize> = HashMap::new();
        for node in world.nodes.values() {
            let at = ground.nodes.len();
            let (v4, v6) = (IpAddr::V4(node.ipv4), IpAddr::V6(node.ipv6));
            ground.index.insert(node.id, at);
            ground.all.set(at);
            ground.addresses.push((v4, at));
            ground.addresses.push((v6, at));
            if let Some(user) = node.owner.user() {
                ground.untagged.set(at);
                ground.by_user.entry(user).or_default().set(at);
                if let Some(user) = world.users.get(&user) {
                    ground.by_role.entry(user.role).or_default().set(at);
                    if let Some((_, domain)) = user.name.rsplit_once('@') {
                        ground.by_domain.entry(domain.to_owned()).or_default().set(at);
                    }
                }
            } else {
                ground.tagged.set(at);
            }
            for tag in node.owner.tags() {
                ground.by_tag.entry(tag.clone()).or_default().set(at);
            }
            let mut routes = Vec::new();
            let mut exits = Vec::new();
            for route in &node.served_routes {
                let route = route.trunc();
                if exit_routes().contains(&route) {
                    exits.push(route);
                    continue;
                }
                let number = *route_index.entry(route).or_insert_with(|| {
                    ground.routes.push(route);
                    ground.route_ranges.push(route.into());
                    ground.route_nodes.push(Bits::default());
                    ground.routes.len() - 1
                });
                if let Some(nodes) = ground.route_nodes.get_mut(number) {
                    nodes.set(at);
                }
                routes.push(number);
            }
            if !exits.is_empty() {
                ground.exits.set(at);
            }
            routes.sort_unstable();
            routes.dedup();
            ground.nodes.push(GroundNode {
                id: node.id,
                v4,
                v6,
                user: node.owner.user(),
                routes,
                exits,
                routes_nodes: false,
            });
        }
        ground.addresses.sort_unstable();
        let covers: Vec<Bits> = ground.route_ranges.iter().map(|r| ground.covered(*r)).collect();
        for node in &mut ground.nodes {
            node.routes_nodes = node.routes.iter().any(|r| covers.get(*r).is_some_and(|c| !c.is_empty()));
        }
        ground.route_covers = covers;
        ground
    }

    /// Nodes one of whose addresses lies in `range`.
    fn covered(&self, range: Range) -> Bits {
        let from =
            self.addresses.partition_point(|(ip, _)| Range::single(*ip) < range && !range.contains(*ip));
        self.addresses
            .get(from..)
            .unwrap_or_default()
            .iter()
            .take_while(|(ip, _)| range.contains(*ip))
            .map(|(_, at)| *at)
            .collect()
    }

    /// Range of a route by its number.
    pub(super) fn route_range(&self, number: usize) -> Option<Range> {
        self.route_ranges.get(number).copied()
    }

    /// Users called `name`.
    pub(super) fn users_called(&self, name: &str) -> &[UserId] {
        self.users.get(name).map_or(&[], Vec::as_slice)
    }
}

/// What a destination's entries look like on the wire.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Shape {
    /// Addresses of the member nodes.
    Nodes,
    /// `*`.
    Everything,
    /// Ranges, each with its text.
    Ranges(Vec<(Range, String)>),
}

/// One name on one side of rules.
#[derive(Debug, Clone)]
pub(super) struct Resolved {
    pub(super) alias: Alias,
    pub(super) shape: Shape,
    /// Nodes one of whose addresses is covered.
    pub(super) members: Bits,
    /// Nodes whose IPv4, and whose IPv6 address is covered.
    pub(super) families: [Bits; 2],
    /// Members, nodes whose subnet routes overlap, and exit nodes if the internet is covered:
    /// whom the name concerns when it comes to visibility (SEMANTICS.md 9.3).
    pub(super) side: Bits,
    /// Destinations only: whose packet filter keeps an entry (9.1).
    pub(super) keep: Bits,
    /// Routes that overlap.
    pub(super) routes: Bits,
    /// Destinations only: covers the internet of IPv4, of IPv6.
    pub(super) internet: [bool; 2],
}

impl Resolved {
    /// Whether it means nobody.
    pub(super) fn is_empty(&self) -> bool {
        match &self.shape {
            Shape::Nodes => self.members.is_empty(),
            Shape::Everything => false,
            Shape::Ranges(ranges) => ranges.is_empty(),
        }
    }
}

/// Resolves names of one policy.
pub(super) struct Resolver<'a> {
    pub(super) file: &'a File,
    pub(super) ground: &'a Arc<Ground>,
}

impl Resolver<'_> {
    /// A name on the source side.
    pub(super) fn source(&self, alias: &Alias) -> Resolved {
        match alias {
            Alias::Any => {
                let ranges = star().into_iter();
                let routes = self.ground.route_ranges.iter().copied();
                self.literal(alias, ranges.chain(routes).collect(), Range::text)
            }
            Alias::DangerAll => self.everything(alias),
            _ => self.common(alias),
        }
    }

    /// A name on the destination side.
    pub(super) fn destination(&self, alias: &Alias) -> Resolved {
        let mut found = match alias {
            Alias::Any => self.everything(alias),
            Alias::Internet => self.literal(alias, internet().to_vec(), Range::span_text),
            _ => self.common(alias),
        };
        found.keep = found.side.clone();
        match &found.shape {
            Shape::Everything => found.internet = [true; 2],
            Shape::Nodes => {}
            Shape::Ranges(ranges) => {
                let joined = join(ranges.iter().map(|(r, _)| *r).collect());
                let covers = |part: &Range| joined.iter().any(|r| part.within(*r));
                let [internet4 @ .., internet6] = internet();
                found.internet = [internet4.iter().all(covers), covers(&internet6)];
                let inside = |r: &Range| internet().iter().any(|i| r.within(*i));
                if ranges.iter().any(|(r, _)| inside(r)) {
                    found.keep.add(&self.ground.exits);
                }
            }
        }
        if found.internet != [false; 2] {
            found.side.add(&self.ground.exits);
        }
        found
    }

    /// Nodes one of whose addresses the name covers; `*` covers all, `autogroup:self` none.
    pub(super) fn members(&self, alias: &Alias) -> Bits {
        match alias {
            Alias::Any | Alias::DangerAll => self.ground.all.clone(),
            Alias::Internet => Bits::default(),
            _ => self.common(alias).members,
        }
    }

    /// The addresses a name means, sorted and disjoint: those of its nodes, or its literal ranges.
    pub(super) fn ranges(&self, alias: &Alias) -> Vec<Range> {
        join(match alias {
            Alias::Any => star().into_iter().chain(self.ground.route_ranges.iter().copied()).collect(),
            Alias::DangerAll => exit_routes().map(Range::from).to_vec(),
            Alias::Internet => internet().to_vec(),
            Alias::Prefix(net) => vec![(*net).into()],
            Alias::Range(low, high) => vec![Range::new(*low, *high)],
            Alias::Host(name) => self.file.hosts.get(name).map(|n| n.value.into()).into_iter().collect(),
            Alias::IpSet(name) => self.ip_set(name, &mut Vec::new()),
            _ => {
                let nodes = self.members(alias);
                let nodes = nodes.iter().filter_map(|at| self.ground.nodes.get(at));
                nodes.flat_map(|n| [Range::single(n.v4), Range::single(n.v6)]).collect()
            }
        })
    }

    /// Entries apply in order (SEMANTICS.md 3.3). Cycles are refused before; here they end.
    fn ip_set<'f>(&'f self, name: &'f str, open: &mut Vec<&'f str>) -> Vec<Range> {
        if open.contains(&name) {
            return Vec::new();
        }
        open.push(name);
        let mut out = Vec::new();
        for entry in self.file.ipsets.get(name).into_iter().flat_map(|s| &s.value) {
            let ranges = match &entry.target.value {
                Alias::IpSet(inner) => self.ip_set(inner, open),
                other => self.ranges(other),
            };
            if entry.add {
                out.extend(ranges);
            } else {
                out = without(out, &ranges);
            }
        }
        open.pop();
        join(out)
    }

    fn common(&self, alias: &Alias) -> Resolved {
        match alias {
            Alias::Prefix(net) => self.literal(alias, vec![(*net).into()], Range::text),
            Alias::Host(name) => {
                let net = self.file.hosts.get(name);
                self.literal(alias, net.map(|n| n.value.into()).into_iter().collect(), Range::text)
            }
            Alias::User(name) => self.nodes(alias, self.user_nodes(name)),
            Alias::Group(name) => {
                let mut members = Bits::default();
                for user in self.file.groups.get(name).into_iter().flat_map(|g| &g.value) {
                    members.add(&self.user_nodes(&user.value));
                }
                self.nodes(alias, members)
            }
            Alias::Tag(tag) => {
                let members = self.ground.by_tag.get(tag).cloned();
                self.nodes(alias, members.unwrap_or_default())
            }
            Alias::Range(low, high) => self.literal(alias, vec![Range::new(*low, *high)], Range::text),
            Alias::IpSet(_) => self.literal(alias, self.ranges(alias), Range::text),
            Alias::Domain(domain) => {
                self.nodes(alias, self.ground.by_domain.get(domain).cloned().unwrap_or_default())
            }
            Alias::Role(role) => {
                let mut members = Bits::default();
                for (_, nodes) in self.ground.by_role.iter().filter(|(has, _)| has.is(*role)) {
                    members.add(nodes);
                }
                self.nodes(alias, members)
            }
            Alias::Member => self.nodes(alias, self.ground.untagged.clone()),
            Alias::Tagged => self.nodes(alias, self.ground.tagged.clone()),
            // Each of these has its own place and is refused in others by `check`.
            _ => self.nodes(alias, Bits::default()),
        }
    }

    fn user_nodes(&self, name: &str) -> Bits {
        let mut out = Bits::default();
        for id in self.ground.users_called(name) {
            if let Some(nodes) = self.ground.by_user.get(id) {
                out.add(nodes);
            }
        }
        out
    }

    fn everything(&self, alias: &Alias) -> Resolved {
        Resolved {
            alias: alias.clone(),
            shape: Shape::Everything,
            members: self.ground.all.clone(),
            families: [self.ground.all.clone(), self.ground.all.clone()],
            side: self.ground.all.clone(),
            keep: Bits::default(),
            routes: (0..self.ground.routes.len()).collect(),
            internet: [false; 2],
        }
    }

    fn nodes(&self, alias: &Alias, members: Bits) -> Resolved {
        let overlap = |number: usize| {
            let covers = self.ground.route_covers.get(number);
            covers.is_some_and(|c| c.meets(&members))
        };
        let routes = (0..self.ground.routes.len()).filter(|r| overlap(*r)).collect();
        let families = [members.clone(), members];
        self.with_routes(alias, Shape::Nodes, families, routes)
    }

    fn literal(&self, alias: &Alias, ranges: Vec<Range>, text: fn(Range) -> String) -> Resolved {
        let mut families = [Bits::default(), Bits::default()];
        let [v4, v6] = &mut families;
        for range in &ranges {
            let family = if range.is_v6() { &mut *v6 } else { &mut *v4 };
            family.add(&self.ground.covered(*range));
        }
        let overlap = |route: &Range| ranges.iter().any(|r| r.overlaps(*route));
        let routes = (0..)
            .zip(&self.ground.route_ranges)
            .filter(|(_, route)| overlap(route))
            .map(|(number, _)| number)
            .collect();
        let shape = Shape::Ranges(ranges.into_iter().map(|r| (r, text(r))).collect());
        self.with_routes(alias, shape, families, routes)
    }

    fn with_routes(&self, alias: &Alias, shape: Shape, families: [Bits; 2], routes: Bits) -> Resolved {
        let [mut members, v6] = families.clone();
        members.add(&v6);
        let mut side = members.clone();
        for number in routes.iter() {
            if let Some(nodes) = self.ground.route_nodes.get(number) {
                side.add(nodes);
            }
        }
        Resolved {
            alias: alias.clone(),
            shape,
            members,
            families,
            side,
            keep: Bits::default(),
            routes,
            internet: [false; 2],
        }
    }
}
