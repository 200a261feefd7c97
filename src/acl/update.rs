//! The next world's policy from this one's: what a change of few nodes touches is made anew, everything
//! else is shared. The outcome equals compiling from scratch, which is what larger changes get.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::keys::{NodeId, UserId};

use super::ast::{Alias, SshUser};
use super::compile::{Found, Inner, NameState, NodeNames, compile, overlaps};
use super::ground::{Ground, GroundNode};
use super::plan::{Form, Id, Plan, Shape};
use super::posture;
use super::ranges::{Bits, star};
use super::resolve::Resolver;
use super::sources::{ListState, list_state};
use super::{Touched, WorldChange, WorldNode};

/// How one node relates to one name; the same as the bits of a [`NameState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Touch {
    families: [bool; 2],
    side: bool,
    keep: bool,
    hole: bool,
}

/// What changed for one name: the slot before and after.
type Patch = (Touch, Touch);

impl Inner {
    /// All names `node` has to do with, given that no route covers addresses of nodes.
    fn touches(&self, ground: &Ground, node: &GroundNode) -> BTreeMap<Id, Touch> {
        let mut out = BTreeMap::new();
        let mut words: Vec<Alias> = node.node.owner.tags().cloned().map(Alias::Tag).collect();
        match node.user.map(|id| ground.people.get(&id)) {
            None => words.push(Alias::Tagged),
            Some(person) => {
                words.push(Alias::Member);
                if let Some(person) = person {
                    words.push(Alias::User(person.name.clone()));
                    let groups = self.plan.groups_of.get(&person.name);
                    words.extend(groups.into_iter().flatten().cloned().map(Alias::Group));
                    let domain = person.name.rsplit_once('@');
                    words.extend(domain.map(|(_, domain)| Alias::Domain(domain.to_owned())));
                    let roles = crate::model::Role::ALL.into_iter().filter(|r| person.role.is(*r));
                    words.extend(roles.map(Alias::Role));
                }
            }
        }
        for word in &words {
            for (_, id) in self.plan.by_alias.get(word).into_iter().flatten() {
                self.touch(ground, node, *id, true, &mut out);
            }
        }
        for id in &self.plan.literals {
            self.touch(ground, node, *id, false, &mut out);
        }
        out
    }

    fn touch(&self, ground: &Ground, node: &GroundNode, id: Id, bears: bool, out: &mut BTreeMap<Id, Touch>) {
        let Some(name) = self.plan.names.get(id as usize) else {
            return;
        };
        let route = |number: &usize| ground.routes.get(*number).is_some_and(|r| overlaps(name, r.range));
        let routed = node.routes.iter().any(route);
        let mut touch = Touch::default();
        if let Form::Via(via) = name.form {
            let tags = self.plan.vias.get(via as usize);
            let tagged = node.node.owner.tags().any(|t| tags.is_some_and(|tags| tags.contains(t)));
            let exit = name.alias == Alias::Internet && !node.exits.is_empty();
            touch.side = tagged && (routed || exit);
            touch.keep = touch.side;
        } else {
            let covers = |ip| match &name.shape {
                Shape::Nodes => bears,
                Shape::Everything => true,
                Shape::Star { .. } => star().iter().any(|r| r.contains(ip)),
                Shape::Ranges(ranges) => ranges.iter().any(|(r, _)| r.contains(ip)),
            };
            touch.families = [covers(node.v4), covers(node.v6)];
            if let Form::Source(posture) | Form::App(posture) = name.form
                && posture > 0
                && touch.families != [false; 2]
                && let Some(wanted) = self.plan.postures.get(posture as usize)
                && !posture::holds(&self.file, wanted, &node.node.attributes)
            {
                touch.families = [false; 2];
                touch.hole = true;
            }
            let exit = !node.exits.is_empty();
            let base = touch.families != [false; 2] || routed;
            touch.side = base || (exit && name.internet != [false; 2]);
            touch.keep = match name.form {
                Form::Source(_) | Form::Via(_) => false,
                Form::App(_) => base,
                Form::Dest => base || (exit && (name.public || name.internet != [false; 2])),
            };
        }
        if touch != Touch::default() {
            out.insert(id, touch);
        }
    }

    /// The same policy after `change`.
    pub(super) fn update(&self, change: &WorldChange) -> (Self, Touched) {
        let mut nodes = change.nodes.clone();
        for user in change.users.keys() {
            for at in self.ground.by_user.get(user).into_iter().flat_map(|b| b.iter()) {
                if let Some(node) = self.ground.nodes.get(at) {
                    nodes.entry(node.id).or_insert_with(|| Some(WorldNode::clone(&node.node)));
                }
            }
        }
        if nodes.len() > 64.max(self.ground.all.len() / 16) || self.ground.odd() {
            return (self.anew(change), everything(nodes));
        }
        let mut ground = self.ground.clone();
        for (id, user) in &change.users {
            ground.set_user(*id, user.clone());
        }
        let mut next = Next {
            names: self.names.clone(),
            nodes: self.nodes.clone(),
            lists: self.lists.clone(),
            dirty: BTreeSet::new(),
            swapped: BTreeMap::new(),
        };
        let mut filters = Bits::default();
        // Nodes that serve a route of a changed node: another of them may be elected now.
        let mut rivals = Bits::default();
        for (id, node) in &nodes {
            let old = ground.index.get(id).and_then(|at| ground.nodes.get(*at).cloned());
            // What the node was to each name, by the people there were before.
            let before = old.as_ref().map(|n| self.touches(&self.ground, n)).unwrap_or_default();
            let [was, is] = ground.set_node(*id, node.as_ref());
            if ground.odd() {
                return (self.anew(change), everything(nodes));
            }
            let new = is.and_then(|at| ground.nodes.get(at).cloned());
            let after = new.as_ref().map(|n| self.touches(&ground, n)).unwrap_or_default();
            let ends = [was.zip(old.as_deref()), is.zip(new.as_deref())];
            for route in ends.iter().flatten().flat_map(|(_, n)| &n.routes) {
                for world in [&self.ground, &ground] {
                    world.routes.get(*route).into_iter().for_each(|r| rivals.add(&r.nodes));
                }
            }
            self.concerned(&ground, &before, &after, ends, &mut filters);
            next.patch(&self.plan, ends, &before, &after);
            if let Some(at) = is {
                let names = self.node_names(&after);
                match next.nodes.get_mut(at) {
                    Some(slot) => *slot = names,
                    None => next.nodes.push(names),
                }
            }
        }
        let routes = next.routes(&self.plan, &self.ground, &ground);
        next.lists(&self.plan, &ground);
        if routes {
            // The routes stand in the sources of every rule from `*`.
            let mut dsts = Bits::default();
            for id in &self.plan.literals {
                let name = self.plan.names.get(*id as usize);
                if name.is_some_and(|n| matches!((&n.shape, n.form), (Shape::Star { .. }, Form::Source(_)))) {
                    self.led_to(*id, &mut dsts);
                }
            }
            receivers(&dsts, &next.names, &mut filters);
        }
        let out = Self {
            file: self.file.clone(),
            plan: self.plan.clone(),
            names: next.names,
            lists: next.lists,
            nodes: next.nodes,
            classes: self.classes.clone(),
            found: Found::default(),
            ground,
        };
        out.sweep();
        let ids = |bits: &Bits| -> BTreeSet<NodeId> {
            let live = bits.iter().filter(|at| out.ground.all.get(*at));
            live.filter_map(|at| out.ground.nodes.get(at)).map(|n| n.id).collect()
        };
        let mut changed = ids(&rivals);
        changed.extend(nodes.into_keys());
        let touched = Touched { filters: ids(&filters), nodes: changed, all: false };
        (out, touched)
    }

    /// Compiled from scratch for the world after `change`.
    fn anew(&self, change: &WorldChange) -> Self {
        let mut world = self.world();
        for (id, node) in &change.nodes {
            match node {
                Some(node) => drop(world.nodes.insert(*id, node.clone())),
                None => drop(world.nodes.remove(id)),
            }
        }
        for (id, user) in &change.users {
            match user {
                Some(user) => drop(world.users.insert(*id, user.clone())),
                None => drop(world.users.remove(id)),
            }
        }
        compile(&self.file, &self.plan, &world)
    }

    /// Nodes whose filter may differ because this node became or ceased to be a source, or whose SSH
    /// rules may.
    fn concerned(
        &self,
        ground: &Ground,
        before: &BTreeMap<Id, Touch>,
        after: &BTreeMap<Id, Touch>,
        ends: [Option<(usize, &GroundNode)>; 2],
        filters: &mut Bits,
    ) {
        let same_address = match ends {
            [Some((_, a)), Some((_, b))] => a.v4 == b.v4 && a.v6 == b.v6,
            _ => false,
        };
        // Of many names that lead to the same destinations, each destination is looked at once.
        let mut dsts = Bits::default();
        for (one, other) in [(before, after), (after, before)] {
            for (id, touch) in one {
                let there = other.get(id).copied().unwrap_or_default();
                let sources = touch.families == there.families && touch.hole == there.hole;
                if !(sources && same_address) && self.prints(*id) {
                    self.led_to(*id, &mut dsts);
                }
            }
        }
        receivers(&dsts, &self.names, filters);
        let users: BTreeSet<UserId> = ends.iter().flatten().filter_map(|(_, n)| n.user).collect();
        if !self.plan.own.is_empty() || !self.file.ssh.is_empty() {
            for devices in users.iter().filter_map(|u| ground.by_user.get(u)) {
                filters.add(devices);
            }
        }
        let resolver = Resolver { file: &self.file, ground };
        for rule in &self.file.ssh {
            let split = rule.users.iter().any(|u| matches!(u.value, SshUser::LocalPart(_)));
            // Rules split by person reach their sources too (12.3).
            let ends = rule.dst.iter().chain(rule.src.iter().filter(|_| split));
            for end in ends {
                filters.add(&resolver.members(&end.value));
            }
        }
    }

    /// Whether rules from `name` read otherwise when a node enters or leaves it. Ranges print the same
    /// whoever has an address in them, except around failed postures.
    fn prints(&self, name: Id) -> bool {
        self.plan.names.get(name as usize).is_some_and(|n| match n.form {
            Form::Source(posture) => posture > 0 || matches!(n.shape, Shape::Nodes),
            Form::Dest | Form::App(_) | Form::Via(_) => false,
        })
    }

    /// Adds the destination names that the source `name` leads to.
    fn led_to(&self, name: Id, dsts: &mut Bits) {
        for dst in self.plan.to.get(name as usize).into_iter().flatten() {
            dsts.set(*dst as usize);
        }
    }

    fn node_names(&self, touches: &BTreeMap<Id, Touch>) -> NodeNames {
        let is_source =
            |id: &Id| self.plan.names.get(*id as usize).is_some_and(|n| matches!(n.form, Form::Source(_)));
        let side = touches.iter().filter(|(_, t)| t.side).map(|(id, _)| *id);
        let (srcs, dsts): (Vec<Id>, Vec<Id>) = side.partition(is_source);
        let kept = touches.iter().filter(|(_, t)| t.keep).map(|(id, _)| *id).collect();
        NodeNames { srcs: srcs.into(), dsts: dsts.into(), class: self.class(kept) }
    }
}

/// Adds the nodes whose packet filters keep any of these destination names.
fn receivers(dsts: &Bits, names: &[Arc<NameState>], out: &mut Bits) {
    let kept: Vec<&Bits> = dsts.iter().filter_map(|dst| names.get(dst)).map(|state| &*state.keep).collect();
    out.add_all(&kept);
}

fn everything(nodes: BTreeMap<NodeId, Option<WorldNode>>) -> Touched {
    Touched { nodes: nodes.into_keys().collect(), filters: BTreeSet::new(), all: true }
}

/// The next world's tables while they are made.
struct Next {
    names: Vec<Arc<NameState>>,
    nodes: Vec<NodeNames>,
    lists: Vec<ListState>,
    /// Names whose sources print differently.
    dirty: BTreeSet<Id>,
    /// Per list of nothing but nodes: what its key changes by, in hashes of nodes.
    swapped: BTreeMap<Id, u128>,
}

impl Next {
    /// Carries the difference between two sets of touches into the names.
    fn patch(
        &mut self,
        plan: &Plan,
        ends: [Option<(usize, &GroundNode)>; 2],
        before: &BTreeMap<Id, Touch>,
        after: &BTreeMap<Id, Touch>,
    ) {
        let [was, is] = ends;
        let mut ids: Vec<Id> = before.keys().chain(after.keys()).copied().collect();
        ids.sort_unstable();
        ids.dedup();
        // Keys of lists first: they look at the names as they were and as they will be.
        let mut lists: BTreeSet<Id> = BTreeSet::new();
        for id in &ids {
            lists.extend(plan.lists_of.get(*id as usize).into_iter().flatten());
        }
        for list in lists {
            let on = |touches: &BTreeMap<Id, Touch>| {
                let names = plan.lists.get(list as usize).into_iter().flatten();
                names.into_iter().any(|n| touches.get(n).is_some_and(|t| t.families != [false; 2]))
            };
            let hash =
                |end: Option<(usize, &GroundNode)>, on: bool| end.filter(|_| on).map_or(0, |(_, n)| n.hash);
            let swap = hash(was, on(before)) ^ hash(is, on(after));
            *self.swapped.entry(list).or_default() ^= swap;
        }
        for id in ids {
            let old = before.get(&id).copied().unwrap_or_default();
            let new = after.get(&id).copied().unwrap_or_default();
            let same_slot = was.map(|w| w.0) == is.map(|i| i.0);
            let same_address = matches!((was, is), (Some((_, a)), Some((_, b))) if a.hash == b.hash);
            if old.families != new.families || old.hole != new.hole || !same_address {
                self.dirty.insert(id);
            }
            if old == new && same_slot {
                continue;
            }
            if let Some(state) = self.names.get_mut(id as usize) {
                let state = Arc::make_mut(state);
                let slots = [was.map(|w| w.0), is.map(|i| i.0)];
                patch_state(state, slots, (old, new));
            }
        }
    }

    /// Routes that came into service or left it; answers whether there are any.
    fn routes(&mut self, plan: &Plan, old: &Ground, new: &Ground) -> bool {
        let mut changed = Vec::new();
        for (number, route) in new.routes.iter().enumerate() {
            let before = old.routes.get(number).is_some_and(|r| !r.nodes.is_empty());
            if before == route.nodes.is_empty() {
                changed.push((number, route.range, !before));
            }
        }
        if changed.is_empty() {
            return false;
        }
        for id in &plan.literals {
            let (Some(name), Some(state)) = (plan.names.get(*id as usize), self.names.get_mut(*id as usize))
            else {
                continue;
            };
            let mut mine = changed.iter().filter(|(_, range, _)| overlaps(name, *range)).peekable();
            if mine.peek().is_none() {
                continue;
            }
            let state = Arc::make_mut(state);
            for (number, _, served) in mine {
                match state.routes.binary_search(number) {
                    Ok(at) if !served => drop(state.routes.remove(at)),
                    Err(at) if *served => state.routes.insert(at, *number),
                    Ok(_) | Err(_) => {}
                }
            }
            if matches!(name.shape, Shape::Star { .. }) {
                self.dirty.insert(*id);
            }
        }
        true
    }

    /// Makes the lists anew that hold a name which prints differently.
    fn lists(&mut self, plan: &Plan, ground: &Ground) {
        let mut lists: BTreeSet<Id> = BTreeSet::new();
        for id in &self.dirty {
            lists.extend(plan.lists_of.get(*id as usize).into_iter().flatten());
        }
        for id in lists {
            let Some(names) = plan.lists.get(id as usize) else {
                continue;
            };
            let shape = |n: &Id| plan.names.get(*n as usize).map(|n| &n.shape);
            let nodes_only = names.iter().all(|n| matches!(shape(n), Some(Shape::Nodes)));
            let Some(list) = self.lists.get_mut(id as usize) else {
                continue;
            };
            if nodes_only {
                let state = |n: &Id| self.names.get(*n as usize);
                list.key ^= self.swapped.get(&id).copied().unwrap_or(0);
                list.empty = names.iter().all(|n| state(n).is_none_or(|s| s.families[0].is_empty()));
                list.strings = Arc::default();
            } else {
                *list = list_state(plan, &self.names, ground, names);
            }
        }
    }
}

fn patch_state(state: &mut NameState, [was, is]: [Option<usize>; 2], (old, new): Patch) {
    let shared = Arc::ptr_eq(&state.families[0], &state.families[1]);
    let alike = |a: &Arc<Bits>, b: &Arc<Bits>| Arc::ptr_eq(a, b);
    let (side_shared, keep_shared) =
        (alike(&state.side, &state.families[0]), alike(&state.keep, &state.side));
    let apply = |set: &mut Arc<Bits>, old: bool, new: bool| {
        if old && let Some(at) = was {
            Arc::make_mut(set).clear(at);
        }
        if new && let Some(at) = is {
            Arc::make_mut(set).set(at);
        }
    };
    // Sets that were one stay one, so that memory does not grow with the number of changes.
    if shared && old.families[0] == old.families[1] && new.families[0] == new.families[1] {
        apply(&mut state.families[0], old.families[0], new.families[0]);
        state.families[1] = state.families[0].clone();
    } else {
        for (set, (old, new)) in state.families.iter_mut().zip(old.families.into_iter().zip(new.families)) {
            apply(set, old, new);
        }
    }
    let members = |t: Touch| t.families[0];
    if side_shared && shared && old.side == members(old) && new.side == members(new) {
        state.side = state.families[0].clone();
    } else {
        apply(&mut state.side, old.side, new.side);
    }
    if keep_shared && old.keep == old.side && new.keep == new.side {
        state.keep = state.side.clone();
    } else {
        apply(&mut state.keep, old.keep, new.keep);
    }
    apply(&mut state.holes, old.hole, new.hole);
}
