//! Who gains and who loses what between two policies. Nodes of equal standing in both policies are one
//! class, only classes that a changed rule touches are looked at, and each pair of classes is compared
//! once: the totals are exact, the lists bounded.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use crate::keys::UserId;
use crate::wire::PortRange;

use super::compile::{Inner, SourceKey, UnitKind};
use super::ports::{Ports, grant, joined, ports_in_words};
use super::ranges::{Bits, Range, internet};
use super::resolve::{Resolved, Shape};
use super::{AccessChange, AccessDiff, World};

/// Access between two nodes, place by place.
type Access = BTreeMap<Place, Ports>;

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

/// Nodes that stand alike in both policies.
struct Class {
    /// One of them, by its place in each policy.
    old: Option<usize>,
    new: Option<usize>,
    size: u64,
    /// How many per user.
    users: BTreeMap<UserId, u64>,
}

/// Compares `old` and `new`, both compiled for `world`.
pub(super) fn diff(old: &Inner, new: &Inner, world: &World, limit: usize) -> AccessDiff {
    let (classes, class_of) = classes(old, new, world);
    let touched = touched(old, new, world, &class_of);
    let mut out = AccessDiff::default();
    // Per pair of classes that changes: gain and loss for nodes of different users, then of one user.
    let mut changes: Changes = HashMap::new();
    let mut recurring = [
        Recurring::new(old, classes.iter().map(|c| c.old)),
        Recurring::new(new, classes.iter().map(|c| c.new)),
    ];
    for (from, tos) in &touched {
        let Some(a) = classes.get(*from) else {
            continue;
        };
        let senders = [Sender::new(old, a.old), Sender::new(new, a.new)];
        for to in tos {
            let Some(b) = classes.get(*to) else { continue };
            let mut flags = [false; 4];
            let counts = pair_counts(a, b, from == to);
            for ((same, count), flags) in
                [false, true].into_iter().zip(counts).zip(flags.as_chunks_mut::<2>().0)
            {
                if count == 0 {
                    continue;
                }
                let [before, after] = &mut recurring;
                let [sender, next_sender] = &senders;
                let before = before.access(sender, *from, *to, b.old, same);
                let after = after.access(next_sender, *from, *to, b.new, same);
                *flags = turned(&before, &after);
                let [gained, lost] = *flags;
                out.gained_total += if gained { count } else { 0 };
                out.lost_total += if lost { count } else { 0 };
            }
            if flags != [false; 4] {
                changes.entry(*from).or_default().push((*to, flags));
            }
        }
    }
    list([old, new], &classes, &changes, &class_of, world, limit, &mut out);
    out
}

/// From class to class, in order: whether strangers gain, strangers lose, devices of one user gain, and
/// lose.
type Changes = HashMap<usize, Vec<(usize, [bool; 4])>>;

/// Whether anything is gained, and lost.
fn turned(before: &Access, after: &Access) -> [bool; 2] {
    if before.is_empty() || after.is_empty() {
        return [!after.is_empty(), !before.is_empty()];
    }
    if before == after {
        return [false; 2];
    }
    [!without(after, before).is_empty(), !without(before, after).is_empty()]
}

/// Accesses kept at most per policy; one with more kinds of nodes computes each.
const KEPT: usize = 1 << 16;

/// What recurs in one policy: classes are finer than what decides access there, as they tell nodes apart
/// by the other policy too. A policy of few kinds of nodes is looked at once per pair of kinds.
struct Recurring {
    /// Per class, its kind as the one who reaches, and as the one who is reached.
    kinds: Vec<[usize; 2]>,
    known: Option<HashMap<(usize, usize, bool), Rc<Access>>>,
    none: Rc<Access>,
}

impl Recurring {
    fn new(policy: &Inner, places: impl Iterator<Item = Option<usize>>) -> Self {
        let mut of: [HashMap<[Vec<usize>; 2], usize>; 2] = [HashMap::new(), HashMap::new()];
        let mut kinds = Vec::new();
        for at in places {
            let [s, d, r] = signature(policy, at);
            let [senders, targets] = &mut of;
            let number = |known: &mut HashMap<[Vec<usize>; 2], usize>, key| {
                let next = known.len();
                *known.entry(key).or_insert(next)
            };
            kinds.push([number(senders, [s, r.clone()]), number(targets, [d, r])]);
        }
        let [senders, targets] = of.map(|known| known.len());
        let known = (senders.saturating_mul(targets) <= KEPT).then(HashMap::new);
        Self { kinds, known, none: Rc::default() }
    }

    fn access(
        &mut self,
        sender: &Sender<'_>,
        from: usize,
        to: usize,
        at: Option<usize>,
        same: bool,
    ) -> Rc<Access> {
        let kind = |class: usize| self.kinds.get(class).copied();
        if let (Some(known), Some([from, _]), Some([_, to])) = (&mut self.known, kind(from), kind(to)) {
            let access = known.entry((from, to, same)).or_insert_with(|| Rc::new(sender.access(at, same)));
            return Rc::clone(access);
        }
        let access = sender.access(at, same);
        if access.is_empty() { Rc::clone(&self.none) } else { Rc::new(access) }
    }
}

/// How many pairs of different nodes there are: of different users (or none), and of one user.
fn pair_counts(a: &Class, b: &Class, alike: bool) -> [u64; 2] {
    let own: u64 = a.users.iter().map(|(user, n)| n * b.users.get(user).copied().unwrap_or(0)).sum();
    let owned: u64 = a.users.values().sum();
    let all = a.size * b.size - if alike { a.size } else { 0 };
    let same = own - if alike { owned } else { 0 };
    [all - same, same]
}

/// Fills the two lists in order of node ids.
fn list(
    [old, new]: [&Inner; 2],
    classes: &[Class],
    changes: &Changes,
    class_of: &[usize],
    world: &World,
    limit: usize,
    out: &mut AccessDiff,
) {
    for (from, class) in world.nodes.values().zip(class_of) {
        if out.gained.len() >= limit && out.lost.len() >= limit {
            return;
        }
        let (Some(tos), Some(a)) = (changes.get(class), classes.get(*class)) else {
            continue;
        };
        let senders = [Sender::new(old, a.old), Sender::new(new, a.new)];
        for (to, class) in world.nodes.values().zip(class_of) {
            let found = tos.binary_search_by_key(class, |(to, _)| *to).ok().and_then(|i| tos.get(i));
            let (Some((_, [gain, loss, own_gain, own_loss])), Some(b)) = (found, classes.get(*class)) else {
                continue;
            };
            let same = from.owner.user().is_some() && from.owner.user() == to.owner.user();
            let (gain, loss) = if same { (own_gain, own_loss) } else { (gain, loss) };
            let wanted = (*gain && out.gained.len() < limit) || (*loss && out.lost.len() < limit);
            if from.id == to.id || !wanted {
                continue;
            }
            let [gained, lost] = change(&senders, b, same);
            for (access, list) in [(gained, &mut out.gained), (lost, &mut out.lost)] {
                if !access.is_empty() && list.len() < limit {
                    list.push(AccessChange { from: from.id, to: to.id, what: words(&access) });
                }
            }
        }
    }
}

/// Classes, and the class of each node of `world` in order.
fn classes(old: &Inner, new: &Inner, world: &World) -> (Vec<Class>, Vec<usize>) {
    let mut known: HashMap<[Vec<usize>; 6], usize> = HashMap::new();
    let mut list: Vec<Class> = Vec::new();
    let mut class_of = Vec::with_capacity(world.nodes.len());
    for node in world.nodes.values() {
        let at = [old, new].map(|p| p.ground.index.get(&node.id).copied());
        let [a, b] = at;
        let [s1, d1, r1] = signature(old, a);
        let [s2, d2, r2] = signature(new, b);
        let next = list.len();
        let class = *known.entry([s1, d1, r1, s2, d2, r2]).or_insert(next);
        if class == next {
            list.push(Class { old: a, new: b, size: 0, users: BTreeMap::new() });
        }
        if let Some(class) = list.get_mut(class) {
            class.size += 1;
            if let Some(user) = node.owner.user() {
                *class.users.entry(user).or_default() += 1;
            }
        }
        class_of.push(class);
    }
    (list, class_of)
}

/// The names a node belongs to as source and as destination, by which of its addresses, and its routes.
fn signature(policy: &Inner, node: Option<usize>) -> [Vec<usize>; 3] {
    let Some(at) = node else {
        return [vec![usize::MAX], Vec::new(), Vec::new()];
    };
    let names = |of: &[Vec<usize>], list: &[Resolved]| -> Vec<usize> {
        let names = of.get(at).into_iter().flatten();
        names
            .map(|name| {
                let by = list.get(*name).map(|n| &n.families);
                let [v4, v6] = by.map_or([false; 2], |[a, b]| [a.get(at), b.get(at)]);
                name * 4 + usize::from(v4) * 2 + usize::from(v6)
            })
            .collect()
    };
    let mut routes = Vec::new();
    if let Some(node) = policy.ground.nodes.get(at) {
        routes.clone_from(&node.routes);
        let exits = node.exits.iter();
        routes.extend(exits.map(|e| usize::MAX - usize::from(e.addr().is_ipv6())));
    }
    [names(&policy.reach.srcs_of, &policy.srcs), names(&policy.reach.dsts_of, &policy.dsts), routes]
}

/// A destination, none for `autogroup:self`, and its ports.
type PartPrint<'a> = (Option<(&'a Shape, &'a Bits)>, &'a [PortRange]);

/// What makes two rules give the same.
#[derive(PartialEq, Eq, Hash)]
struct Print<'a> {
    sources: Option<&'a SourceKey>,
    own: Option<Bits>,
    protocol: Option<u8>,
    parts: Vec<PartPrint<'a>>,
}

fn print(policy: &Inner, number: usize) -> Option<Print<'_>> {
    let unit = policy.units.get(number)?;
    Some(match &unit.kind {
        UnitKind::Global { source, parts } => Print {
            sources: policy.sources.get(*source).map(|s| &s.key),
            own: None,
            protocol: unit.protocol,
            parts: parts
                .iter()
                .map(|p| {
                    let dst = policy.dsts.get(p.dst).map(|d| (&d.shape, &d.members));
                    (dst, p.ports.as_slice())
                })
                .collect(),
        },
        UnitKind::Own { ports } => Print {
            sources: None,
            own: Some(source_nodes(policy, number, |s| &s.members)),
            protocol: unit.protocol,
            parts: vec![(None, ports.as_slice())],
        },
    })
}

fn prints(policy: &Inner) -> HashSet<Print<'_>> {
    let all = 0..policy.units.len();
    all.filter_map(|n| print(policy, n)).collect()
}

/// Union over a rule's source names.
fn source_nodes(policy: &Inner, unit: usize, part: fn(&Resolved) -> &Bits) -> Bits {
    let mut out = Bits::default();
    if let Some(unit) = policy.units.get(unit) {
        for src in unit.srcs.iter().filter_map(|s| policy.srcs.get(*s)) {
            out.add(part(src));
        }
    }
    out
}

/// Pairs of classes that a rule relates which only one of the policies has.
fn touched(old: &Inner, new: &Inner, world: &World, class_of: &[usize]) -> BTreeMap<usize, BTreeSet<usize>> {
    let alike = old.ground.index == new.ground.index;
    let mut only_old: Vec<usize> = (0..old.units.len()).collect();
    let mut only_new: Vec<usize> = (0..new.units.len()).collect();
    if alike {
        let (in_old, in_new) = (prints(old), prints(new));
        only_old.retain(|n| print(old, *n).is_some_and(|p| !in_new.contains(&p)));
        only_new.retain(|n| print(new, *n).is_some_and(|p| !in_old.contains(&p)));
    }
    let mut out: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for (policy, units) in [(old, only_old), (new, only_new)] {
        let class_at: HashMap<usize, usize> = world
            .nodes
            .keys()
            .zip(class_of)
            .filter_map(|(id, class)| Some((*policy.ground.index.get(id)?, *class)))
            .collect();
        let to_classes = |bits: &Bits| -> BTreeSet<usize> {
            bits.iter().filter_map(|n| class_at.get(&n).copied()).collect()
        };
        for number in units {
            let Some(unit) = policy.units.get(number) else {
                continue;
            };
            let froms = source_nodes(policy, number, |s| &s.side);
            let mut tos = Bits::default();
            match &unit.kind {
                UnitKind::Own { .. } => tos.add(&policy.ground.untagged),
                UnitKind::Global { parts, .. } => {
                    for dst in parts.iter().filter_map(|p| policy.dsts.get(p.dst)) {
                        tos.add(&dst.side);
                    }
                }
            }
            let (froms, tos) = (to_classes(&froms), to_classes(&tos));
            for from in &froms {
                out.entry(*from).or_default().extend(&tos);
            }
        }
    }
    out
}

/// What is gained and what is lost.
fn change([old, new]: &[Sender<'_>; 2], to: &Class, same: bool) -> [Access; 2] {
    let before = old.access(to.old, same);
    let after = new.access(to.new, same);
    if before == after {
        return [Access::new(), Access::new()];
    }
    [without(&after, &before), without(&before, &after)]
}

/// A node as the one who reaches, by one policy.
struct Sender<'a> {
    policy: &'a Inner,
    /// Per destination name: what the node and what lies behind it may reach there.
    reach: HashMap<usize, BTreeMap<(Option<Range>, bool), Ports>>,
    /// What devices of one user may besides.
    own: Ports,
}

impl<'a> Sender<'a> {
    fn new(policy: &'a Inner, node: Option<usize>) -> Self {
        let mut sender = Self { policy, reach: HashMap::new(), own: Ports::new() };
        let Some(at) = node else { return sender };
        for unit in &policy.units {
            let srcs = unit.srcs.iter().filter_map(|s| policy.srcs.get(*s));
            match &unit.kind {
                UnitKind::Global { parts, .. } => {
                    if !srcs.into_iter().any(|s| s.side.get(at)) {
                        continue;
                    }
                    let places = source_places(policy, &unit.srcs, at);
                    for part in parts {
                        let here = sender.reach.entry(part.dst).or_default();
                        for place in &places {
                            grant(here.entry(*place).or_default(), unit.protocol, &part.ports);
                        }
                    }
                }
                UnitKind::Own { ports } => {
                    if srcs.into_iter().any(|s| s.members.get(at)) {
                        grant(&mut sender.own, unit.protocol, ports);
                    }
                }
            }
        }
        for ports in sender.reach.values_mut().flat_map(BTreeMap::values_mut) {
            ports.values_mut().for_each(joined);
        }
        sender
    }

    /// What is reached at `to`; `same` adds what devices of one user may.
    fn access(&self, to: Option<usize>, same: bool) -> Access {
        let mut out = Access::new();
        let Some(at) = to else { return out };
        let mut add = |place: Place, ports: &Ports| {
            let here = out.entry(place).or_default();
            for (protocol, ranges) in ports {
                here.entry(*protocol).or_default().extend(ranges);
            }
        };
        for number in self.policy.reach.dsts_of.get(at).into_iter().flatten() {
            let (Some(froms), Some(dst)) = (self.reach.get(number), self.policy.dsts.get(*number)) else {
                continue;
            };
            for (to, v6) in target_places(self.policy, dst, at) {
                for ((from, _), ports) in froms.iter().filter(|((_, six), _)| *six == v6) {
                    add(Place { from: *from, to, v6 }, ports);
                }
            }
        }
        if same && !self.own.is_empty() {
            for v6 in [false, true] {
                let place = Place { from: None, to: None, v6 };
                add(place, &self.own);
            }
        }
        for ports in out.values_mut() {
            ports.values_mut().for_each(joined);
        }
        out
    }
}

/// Addresses of node `at` that a destination covers, and what it covers behind the node.
fn target_places(policy: &Inner, dst: &Resolved, at: usize) -> BTreeSet<(Option<Range>, bool)> {
    let mut out = own_places(dst, at);
    let Some(node) = policy.ground.nodes.get(at) else {
        return out;
    };
    behind(policy, dst, &node.routes, &mut out);
    let [v4, v6] = dst.internet;
    for exit in &node.exits {
        let exit = Range::from(*exit);
        if (exit.is_v6() && v6) || (!exit.is_v6() && v4) {
            out.insert((Some(exit), exit.is_v6()));
        } else if let Shape::Ranges(ranges) = &dst.shape {
            // A part of the internet: that part only.
            let parts = ranges
                .iter()
                .filter(|(r, _)| r.is_v6() == exit.is_v6() && internet().iter().any(|i| r.within(*i)));
            out.extend(parts.map(|(r, _)| (Some(*r), r.is_v6())));
        }
    }
    out
}

/// Addresses of node `at` that any of the sources covers, and what they cover behind the node.
fn source_places(policy: &Inner, srcs: &[usize], at: usize) -> BTreeSet<(Option<Range>, bool)> {
    let mut out = BTreeSet::new();
    for src in srcs.iter().filter_map(|s| policy.srcs.get(*s)) {
        out.extend(own_places(src, at));
        if let Some(node) = policy.ground.nodes.get(at) {
            behind(policy, src, &node.routes, &mut out);
        }
    }
    out
}

fn own_places(name: &Resolved, at: usize) -> BTreeSet<(Option<Range>, bool)> {
    let [v4, v6] = &name.families;
    let v4 = v4.get(at).then_some((None, false));
    v4.into_iter().chain(v6.get(at).then_some((None, true))).collect()
}

/// What of the subnet `routes` a name covers.
fn behind(policy: &Inner, name: &Resolved, routes: &[usize], out: &mut BTreeSet<(Option<Range>, bool)>) {
    for route in routes.iter().filter(|r| name.routes.get(**r)) {
        let Some(route) = policy.ground.route_range(*route) else {
            continue;
        };
        match &name.shape {
            Shape::Ranges(ranges) => {
                let parts = ranges.iter().filter_map(|(r, _)| r.common(route));
                out.extend(parts.map(|r| (Some(r), r.is_v6())));
            }
            Shape::Nodes | Shape::Everything => {
                out.insert((Some(route), route.is_v6()));
            }
        }
    }
}

/// What of `a` is not in `b`. A part of a subnet that `b` has as a whole is in `b`; what `b` has only
/// in parts counts as missing, so a loss is never hidden.
fn without(a: &Access, b: &Access) -> Access {
    let mut out = Access::new();
    for (place, ports) in a {
        for (protocol, ranges) in ports {
            let mut taken: Vec<(u32, u32)> = b
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
                out.entry(*place).or_default().insert(*protocol, rest);
            }
        }
    }
    out
}

/// Access in words: `all ports`, `tcp 22, 443`, `all ports at 10.0.0.0/8`, `udp 53 from 10.0.0.0/8`.
fn words(access: &Access) -> String {
    let mut out: Vec<String> = Vec::new();
    for (place, ports) in access {
        let here = ports_in_words(ports);
        let twin = |place: Place| access.get(&place).is_some_and(|p| p == ports);
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
    out.join("; ")
}
