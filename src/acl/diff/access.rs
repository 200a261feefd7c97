//! What one node may do at another by one policy: ports place by place, and capabilities with their values.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::super::compile::{Inner, NameState};
use super::super::plan::{Form, Id, Kind, Name, Shape};
use super::super::ports::{Ports, grant, joined, ports_in_words};
use super::super::ranges::{Range, internet};
use super::others::some;
use crate::wire::CapMap;

/// Access between two nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Access {
    ports: BTreeMap<Place, Ports>,
    apps: Apps,
}

/// Capabilities with the texts of their values.
type Apps = BTreeMap<String, BTreeSet<String>>;

/// From the node itself (`None`) or what lies behind it, to the node itself or what lies behind it, in
/// one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    from: Option<Range>,
    to: Option<Range>,
    v6: bool,
}

impl Place {
    /// Whether access by this place gives all that access by `other` gives.
    fn covers(&self, other: &Self) -> bool {
        let wide = |mine: Option<Range>, theirs: Option<Range>| match (mine, theirs) {
            (None, None) => true,
            (Some(mine), Some(theirs)) => theirs.within(mine),
            _ => false,
        };
        self.v6 == other.v6 && wide(self.from, other.from) && wide(self.to, other.to)
    }
}

type Spots = BTreeSet<(Option<Range>, bool)>;

/// A node as the one who reaches, by one policy.
pub(super) struct Sender<'a> {
    policy: &'a Inner,
    /// Per destination name: what the node and what lies behind it may reach there.
    reach: HashMap<Id, BTreeMap<(Option<Range>, bool), Ports>>,
    /// Per destination name: capabilities.
    apps: HashMap<Id, Apps>,
    /// What devices of one user may besides.
    own: Ports,
    own_apps: Apps,
}

/// Adds a rule's capabilities.
fn add_caps(to: &mut Apps, caps: &CapMap) {
    for (name, values) in caps {
        let values = values.iter().flatten().map(ToString::to_string);
        to.entry(name.clone()).or_default().extend(values);
    }
}

/// Adds capabilities to others.
fn add_apps(to: &mut Apps, more: &Apps) {
    for (name, values) in more {
        to.entry(name.clone()).or_default().extend(values.iter().cloned());
    }
}

impl<'a> Sender<'a> {
    pub(super) fn new(policy: &'a Inner, node: Option<usize>) -> Self {
        let mut sender = Self {
            policy,
            reach: HashMap::new(),
            apps: HashMap::new(),
            own: Ports::new(),
            own_apps: Apps::new(),
        };
        let Some((at, names)) = node.and_then(|at| Some((at, policy.nodes.get(at)?))) else {
            return sender;
        };
        let plan = &policy.plan;
        let lists: BTreeSet<Id> =
            names.srcs.iter().filter_map(|n| plan.lists_of.get(*n as usize)).flatten().copied().collect();
        for list in lists {
            let spots = source_places(policy, list, at);
            if spots.is_empty() {
                continue;
            }
            let itself = spots.iter().any(|(behind, _)| behind.is_none());
            let units = plan.units_of.get(list as usize).into_iter().flatten();
            for unit in units.filter_map(|u| plan.units.get(*u as usize)) {
                match &unit.kind {
                    Kind::Ports(parts) | Kind::ViaPorts(parts) => {
                        for part in parts {
                            let here = sender.reach.entry(part.name).or_default();
                            for spot in &spots {
                                grant(here.entry(*spot).or_default(), unit.protocol, &part.ports);
                            }
                        }
                    }
                    Kind::App { elements, caps, companion: false } => {
                        for name in elements.iter().flatten() {
                            add_caps(sender.apps.entry(*name).or_default(), caps);
                        }
                    }
                    Kind::OwnPorts(ports) if itself => grant(&mut sender.own, unit.protocol, ports),
                    Kind::OwnApp { caps, companion: false } if itself => {
                        add_caps(&mut sender.own_apps, caps);
                    }
                    _ => {}
                }
            }
        }
        for ports in sender.reach.values_mut().flat_map(BTreeMap::values_mut) {
            ports.values_mut().for_each(joined);
        }
        sender
    }

    /// Ports of the node `to` itself that are reached, over whichever family.
    pub(super) fn ports(&self, to: Option<usize>, same: bool) -> Ports {
        let mut out = Ports::new();
        for (place, ports) in self.access(to, same).ports {
            if place.from.is_none() && place.to.is_none() {
                for (protocol, ranges) in ports {
                    out.entry(protocol).or_default().extend(ranges);
                }
            }
        }
        out.values_mut().for_each(joined);
        out
    }

    /// What is reached at `to`; `same` adds what devices of one user may.
    pub(super) fn access(&self, to: Option<usize>, same: bool) -> Access {
        let mut out = Access::default();
        let Some((at, names)) = to.and_then(|at| Some((at, self.policy.nodes.get(at)?))) else {
            return out;
        };
        let mut add = |place: Place, ports: &Ports| {
            let here = out.ports.entry(place).or_default();
            for (protocol, ranges) in ports {
                here.entry(*protocol).or_default().extend(ranges);
            }
        };
        for number in names.dsts.iter().chain(&names.class.kept).collect::<BTreeSet<_>>() {
            let place = *number as usize;
            let (Some(name), Some(state)) = (self.policy.plan.names.get(place), self.policy.names.get(place))
            else {
                continue;
            };
            if let Some(froms) = self.reach.get(number) {
                for (to, v6) in target_places(self.policy, name, state, at) {
                    for ((from, _), ports) in froms.iter().filter(|((_, six), _)| *six == v6) {
                        add(Place { from: *from, to, v6 }, ports);
                    }
                }
            }
            if let Some(apps) = self.apps.get(number)
                && (state.has(at) || state.keep.get(at))
            {
                add_apps(&mut out.apps, apps);
            }
        }
        if same {
            if !self.own.is_empty() {
                for v6 in [false, true] {
                    let here = out.ports.entry(Place { from: None, to: None, v6 }).or_default();
                    for (protocol, ranges) in &self.own {
                        here.entry(*protocol).or_default().extend(ranges);
                    }
                }
            }
            add_apps(&mut out.apps, &self.own_apps);
        }
        for ports in out.ports.values_mut() {
            ports.values_mut().for_each(joined);
        }
        out
    }
}

/// Addresses of node `at` that a destination covers, and what it covers behind the node.
fn target_places(policy: &Inner, name: &Name, state: &NameState, at: usize) -> Spots {
    let steered = matches!(name.form, Form::Via(_));
    let mut out = if steered { Spots::new() } else { own_places(state, at) };
    let Some(node) = policy.ground.nodes.get(at) else {
        return out;
    };
    if steered && !state.keep.get(at) {
        return out;
    }
    behind(policy, name, state, &node.routes, &mut out);
    let [v4, v6] = name.internet;
    for exit in node.exits.iter().filter(|_| !steered || name.alias == super::super::ast::Alias::Internet) {
        let exit = Range::from(*exit);
        if (exit.is_v6() && v6) || (!exit.is_v6() && v4) {
            out.insert((Some(exit), exit.is_v6()));
        } else if let Shape::Ranges(ranges) = &name.shape {
            // A part of the internet: that part only.
            let parts = ranges
                .iter()
                .filter(|(r, _)| r.is_v6() == exit.is_v6() && internet().iter().any(|i| r.within(*i)));
            out.extend(parts.map(|(r, _)| (Some(*r), r.is_v6())));
        }
    }
    out
}

/// Addresses of node `at` that any name of a list covers, and what they cover behind the node.
fn source_places(policy: &Inner, list: Id, at: usize) -> Spots {
    let mut out = Spots::new();
    for id in policy.plan.lists.get(list as usize).into_iter().flatten() {
        let place = *id as usize;
        if let (Some(name), Some(state)) = (policy.plan.names.get(place), policy.names.get(place)) {
            out.extend(own_places(state, at));
            if let Some(node) = policy.ground.nodes.get(at) {
                behind(policy, name, state, &node.routes, &mut out);
            }
        }
    }
    out
}

fn own_places(state: &NameState, at: usize) -> Spots {
    let [v4, v6] = &state.families;
    let v4 = v4.get(at).then_some((None, false));
    v4.into_iter().chain(v6.get(at).then_some((None, true))).collect()
}

/// What of the subnet `routes` a name covers.
fn behind(policy: &Inner, name: &Name, state: &NameState, routes: &[usize], out: &mut Spots) {
    for route in routes.iter().filter(|r| state.routes.contains(r)) {
        let Some(route) = policy.ground.routes.get(*route).map(|r| r.range) else {
            continue;
        };
        match &name.shape {
            Shape::Ranges(ranges) => {
                let parts = ranges.iter().filter_map(|(r, _)| r.common(route));
                out.extend(parts.map(|r| (Some(r), r.is_v6())));
            }
            Shape::Nodes | Shape::Everything | Shape::Star { .. } => {
                out.insert((Some(route), route.is_v6()));
            }
        }
    }
}

/// What of `a` is not in `b`. A part of a subnet that `b` has as a whole is in `b`; what `b` has only
/// in parts counts as missing, so a loss is never hidden. A capability that `b` has with other values stands
/// with the values that are missing there, one that it has not stands without.
pub(super) fn without(a: &Access, b: &Access) -> Access {
    let mut apps = Apps::new();
    for (name, values) in &a.apps {
        let missing: BTreeSet<String> = match b.apps.get(name) {
            None => BTreeSet::new(),
            Some(known) => values.difference(known).cloned().collect(),
        };
        if !missing.is_empty() || !b.apps.contains_key(name) {
            apps.insert(name.clone(), missing);
        }
    }
    let mut out = Access { ports: BTreeMap::new(), apps };
    for (place, ports) in &a.ports {
        for (protocol, ranges) in ports {
            let mut taken: Vec<(u32, u32)> = b
                .ports
                .iter()
                .filter(|(other, _)| other.covers(place))
                .filter_map(|(_, ports)| ports.get(protocol))
                .flatten()
                .copied()
                .collect();
            joined(&mut taken);
            let mut rest = Vec::new();
            for (first, last) in ranges {
                let mut next = *first;
                for (from, to) in taken.iter().filter(|(_, to)| *to >= *first) {
                    if *from > *last {
                        break;
                    }
                    if *from > next {
                        rest.push((next, from - 1));
                    }
                    next = to + 1;
                }
                if next <= *last {
                    rest.push((next, *last));
                }
            }
            if !rest.is_empty() {
                out.ports.entry(*place).or_default().insert(*protocol, rest);
            }
        }
    }
    out
}

impl Access {
    /// What of it lies behind a node, in `range`.
    pub(super) fn behind(mut self, range: Range) -> Self {
        self.ports.retain(|place, _| place.to.is_some_and(|to| to.overlaps(range)));
        self.apps.clear();
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.apps.is_empty()
    }
}

/// Access in words: `all ports`, `tcp 22, 443`, `all ports at 10.0.0.0/8`, `udp 53 from 10.0.0.0/8`.
pub(super) fn words(access: &Access) -> String {
    let mut out: Vec<String> = Vec::new();
    for (place, ports) in &access.ports {
        let here = ports_in_words(ports);
        let twin = |place: Place| access.ports.get(&place).is_some_and(|p| p == ports);
        let family = match (place.from, place.to) {
            (None, None) if place.v6 && twin(Place { v6: false, ..*place }) => {
                continue;
            }
            (None, None) if twin(Place { v6: true, ..*place }) => "",
            (None, None) if place.v6 => " over IPv6",
            (None, None) => " over IPv4",
            _ => "",
        };
        // What the node itself gets as well needs no second mention for its subnet.
        if place.from.is_some() && twin(Place { from: None, ..*place }) {
            continue;
        }
        let to = place.to.map_or_else(String::new, |r| format!(" at {}", r.text()));
        let from = place.from.map_or_else(String::new, |r| format!(" from {}", r.text()));
        out.push(format!("{here}{family}{to}{from}"));
    }
    out.extend(access.apps.iter().map(|(app, values)| match values.is_empty() {
        true => format!("capability {app}"),
        false => format!("capability {app}{}", some(values)),
    }));
    out.join("; ")
}
