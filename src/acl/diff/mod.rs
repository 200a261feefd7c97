//! Who gains and who loses what between two policies for the same world. Only what a changed rule touches
//! is looked at; nodes of equal standing in both policies are one class, and classes that gain the same
//! at the same places are told together, as people and tags. What is no access between two devices
//! (attributes, approval, ways, posture, options) is found by the parts under `others`.

mod access;
mod approvals;
mod attributes;
mod options;
mod others;
mod owners;
mod postures;
mod rows;
mod ssh;
mod ways;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::keys::{NodeId, UserId};

use super::AccessDiff;
use super::compile::Inner;
use super::plan::{Form, Id, Kind, Shape, Unit};
use super::ranges::Bits;
use access::{Sender, without, words};

pub use others::{Effect, OtherChange, OtherKind};

/// Pairs of classes that are compared at most per direction; a change that touches more is told as "at
/// least so much".
const BUDGET: usize = 300_000;

/// Nodes that stand alike in both policies.
struct Class {
    /// One of them.
    at: usize,
    nodes: Vec<usize>,
    /// How many per user.
    users: BTreeMap<UserId, u64>,
}

/// What one direction of change came to: per text, the pairs of classes it holds for, apart for devices
/// of one user.
#[derive(Default)]
struct Found {
    pairs: BTreeMap<(String, bool), BTreeMap<usize, BTreeSet<usize>>>,
    total: u64,
}

/// Compares `old` and `new`, compiled for the same world.
pub(super) fn diff(old: &Inner, new: &Inner, limit: usize) -> AccessDiff {
    let (was, is) = (prints(old), prints(new));
    let only = |policy: &Inner, mine: &[u128], theirs: &[u128]| -> Vec<Id> {
        let known: HashSet<u128> = theirs.iter().copied().collect();
        (0..)
            .zip(&policy.plan.units)
            .zip(mine)
            .filter(|((_, unit), print)| !known.contains(print) && gives(policy, unit))
            .map(|((id, _), _)| id)
            .collect()
    };
    let (gone, came) = (only(old, &was, &is), only(new, &is, &was));
    let mut classes = Classes { old, new, known: HashMap::new(), list: Vec::new(), of: HashMap::new() };
    let (lost, all_lost) = turn(&mut classes, &gone, [old, new]);
    let (gained, all_gained) = turn(&mut classes, &came, [new, old]);
    let (ssh_lost, ssh_lost_total, ssh_all_lost) = ssh::turn(old, new);
    let (ssh_gained, ssh_gained_total, ssh_all_gained) = ssh::turn(new, old);
    let list = |policy: &Inner, found: &Found, ssh| {
        let mut list = rows::rows(policy, &classes.list, found);
        list.extend(ssh);
        rows::widest(list, limit)
    };
    let (other, other_total, other_lost) = others::others(old, new, limit);
    AccessDiff {
        other,
        other_total,
        other_lost,
        gained_total: gained.total + ssh_gained_total,
        lost_total: lost.total + ssh_lost_total,
        gained: list(new, &gained, ssh_gained),
        lost: list(old, &lost, ssh_lost),
        exact: all_lost && all_gained && ssh_all_lost && ssh_all_gained,
    }
}

/// Whether `from` reaches any port of `to` itself by `policy` and not by `other`, over whichever family.
pub(super) fn opens_beyond(policy: &Inner, other: &Inner, from: NodeId, to: NodeId) -> bool {
    let ports = |policy: &Inner| {
        let [from, to] = [from, to].map(|id| policy.ground.index.get(&id).copied());
        let user = |at: Option<usize>| policy.ground.nodes.get(at?)?.user;
        let same = user(from).is_some() && user(from) == user(to);
        Sender::new(policy, from).ports(to, same)
    };
    let (mine, theirs) = (ports(policy), ports(other));
    mine.iter().any(|(protocol, ranges)| {
        let kept = theirs.get(protocol).map_or(&[][..], Vec::as_slice);
        ranges.iter().any(|(first, last)| !kept.iter().any(|(from, to)| from <= first && last <= to))
    })
}

/// Whether a unit gives anybody anything.
fn gives(policy: &Inner, unit: &Unit) -> bool {
    policy.lists.get(unit.list as usize).is_some_and(|l| !l.empty)
}

/// What `by`'s units give that the other policy does not, and whether all of it was looked at.
fn turn(classes: &mut Classes<'_>, units: &[Id], [by, other]: [&Inner; 2]) -> (Found, bool) {
    let mut found = Found::default();
    let mut wanted: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    let mut spent = 0;
    let mut whole = true;
    for unit in units.iter().filter_map(|u| by.plan.units.get(*u as usize)) {
        let (froms, tos) = (classes.all(&sources(by, unit)), classes.all(&targets(by, unit)));
        for from in froms {
            let known = wanted.entry(from).or_default();
            for to in &tos {
                if spent >= BUDGET {
                    whole = false;
                    break;
                }
                spent += usize::from(known.insert(*to));
            }
        }
    }
    for (from, tos) in wanted {
        let Some(a) = classes.list.get(from) else { continue };
        let senders = [Sender::new(by, Some(a.at)), Sender::new(other, Some(a.at))];
        for to in tos {
            let Some(b) = classes.list.get(to) else { continue };
            for (same, count) in [false, true].into_iter().zip(pair_counts(a, b, from == to)) {
                if count == 0 {
                    continue;
                }
                let [mine, theirs] = senders.each_ref().map(|s| s.access(Some(b.at), same));
                if mine == theirs {
                    continue;
                }
                let more = without(&mine, &theirs);
                if !more.is_empty() {
                    found.total += count;
                    let places = found.pairs.entry((words(&more), same)).or_default();
                    places.entry(from).or_default().insert(to);
                }
            }
        }
    }
    (found, whole)
}

/// How many pairs of different nodes there are: of different users (or none), and of one user.
fn pair_counts(a: &Class, b: &Class, alike: bool) -> [u64; 2] {
    let size = |c: &Class| u64::try_from(c.nodes.len()).unwrap_or(u64::MAX);
    let own: u64 = a.users.iter().map(|(user, n)| n * b.users.get(user).copied().unwrap_or(0)).sum();
    let owned: u64 = a.users.values().sum();
    let all = size(a) * size(b) - if alike { size(a) } else { 0 };
    let same = own - if alike { owned } else { 0 };
    [all - same, same]
}

/// Nodes on the source side of a unit.
fn sources(policy: &Inner, unit: &Unit) -> Bits {
    let mut out = Bits::default();
    for name in policy.plan.lists.get(unit.list as usize).into_iter().flatten() {
        if let Some(state) = policy.names.get(*name as usize) {
            out.add(&state.side);
        }
    }
    out
}

/// Nodes that a unit leads to.
fn targets(policy: &Inner, unit: &Unit) -> Bits {
    let mut out = Bits::default();
    if unit.own() {
        out.add(&policy.ground.untagged);
    }
    for (name, _) in unit.names() {
        if let Some(state) = policy.names.get(name as usize) {
            out.add(&state.side);
            out.add(&state.keep);
        }
    }
    out
}

/// What makes two units give the same, as one number each.
fn prints(policy: &Inner) -> Vec<u128> {
    let names: Vec<u128> = (0..policy.plan.names.len()).map(|at| name_print(policy, at)).collect();
    let of = |id: Id| names.get(id as usize).copied().unwrap_or(0);
    let mut members: HashMap<Id, u128> = HashMap::new();
    for unit in policy.plan.own.iter().filter_map(|u| policy.plan.units.get(*u as usize)) {
        members.entry(unit.list).or_insert_with(|| {
            let nodes = sources(policy, unit);
            let nodes = nodes.iter().filter_map(|at| policy.ground.nodes.get(at));
            nodes.fold(0, |key, n| key ^ n.hash)
        });
    }
    let texts = |caps: &crate::wire::CapMap| serde_json::to_string(caps).unwrap_or_default();
    let units = policy.plan.units.iter().map(|unit| {
        double(|hash| {
            policy.lists.get(unit.list as usize).map(|l| l.key).hash(hash);
            // An own rule narrows its sources per user: who they are counts, not how they print.
            if unit.own() {
                members.get(&unit.list).hash(hash);
            }
            unit.protocol.hash(hash);
            std::mem::discriminant(&unit.kind).hash(hash);
            match &unit.kind {
                Kind::Ports(parts) | Kind::ViaPorts(parts) => {
                    parts.iter().for_each(|p| (of(p.name), &p.ports).hash(hash));
                }
                Kind::OwnPorts(ports) => ports.hash(hash),
                Kind::ViaApp(list) => list.iter().for_each(|n| of(*n).hash(hash)),
                Kind::App { elements, caps, companion } => {
                    elements.iter().flatten().for_each(|n| of(*n).hash(hash));
                    (texts(caps), companion).hash(hash);
                }
                Kind::OwnApp { caps, companion } => (texts(caps), companion).hash(hash),
            }
        })
    });
    units.collect()
}

fn name_print(policy: &Inner, at: usize) -> u128 {
    let (Some(name), Some(state)) = (policy.plan.names.get(at), policy.names.get(at)) else {
        return 0;
    };
    if matches!(name.form, Form::Source(_)) {
        return 0;
    }
    double(|hash| {
        if let Form::Via(via) = name.form {
            policy.plan.vias.get(via as usize).hash(hash);
        }
        match &name.shape {
            Shape::Nodes => {
                let nodes = state.families[0].iter().filter_map(|at| policy.ground.nodes.get(at));
                nodes.fold(0, |key, n| key ^ n.hash).hash(hash);
            }
            Shape::Everything => 1.hash(hash),
            Shape::Star { bare } => (2, bare).hash(hash),
            Shape::Ranges(ranges) => ranges.iter().for_each(|(r, _)| r.hash(hash)),
        }
    })
}

/// Two hashes of one thing side by side.
fn double(feed: impl Fn(&mut DefaultHasher)) -> u128 {
    let [a, b] = [1_u8, 2].map(|salt| {
        let mut hash = DefaultHasher::new();
        salt.hash(&mut hash);
        feed(&mut hash);
        hash.finish()
    });
    u128::from(a) << 64 | u128::from(b)
}

/// Sorts nodes into classes as they are asked for.
struct Classes<'a> {
    old: &'a Inner,
    new: &'a Inner,
    known: HashMap<u128, usize>,
    list: Vec<Class>,
    of: HashMap<usize, usize>,
}

impl Classes<'_> {
    /// The classes of `nodes`, which are slots of both policies.
    fn all(&mut self, nodes: &Bits) -> BTreeSet<usize> {
        nodes.iter().map(|at| self.class(at)).collect()
    }

    fn class(&mut self, at: usize) -> usize {
        if let Some(found) = self.of.get(&at) {
            return *found;
        }
        let standing = double(|hash| {
            for policy in [self.old, self.new] {
                stand(policy, at, hash);
            }
        });
        let next = self.list.len();
        let class = *self.known.entry(standing).or_insert(next);
        if class == next {
            self.list.push(Class { at, nodes: Vec::new(), users: BTreeMap::new() });
        }
        if let Some(class) = self.list.get_mut(class) {
            class.nodes.push(at);
            if let Some(user) = self.old.ground.nodes.get(at).and_then(|n| n.user) {
                *class.users.entry(user).or_default() += 1;
            }
        }
        self.of.insert(at, class);
        class
    }
}

/// The names a node belongs to, by which of its addresses, and its routes.
fn stand(policy: &Inner, at: usize, hash: &mut DefaultHasher) {
    if let Some(names) = policy.nodes.get(at) {
        for name in names.srcs.iter().chain(names.dsts.iter()).chain(&names.class.kept) {
            let families = policy.names.get(*name as usize).map(|s| s.families.each_ref().map(|f| f.get(at)));
            (name, families).hash(hash);
        }
    }
    if let Some(node) = policy.ground.nodes.get(at) {
        (&node.routes, &node.exits).hash(hash);
    }
}
