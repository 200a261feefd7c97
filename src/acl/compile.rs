//! A policy in force for one world: per name the nodes it means, per list of sources what it prints as,
//! per node the names it belongs to. Made whole by [`compile`]; [`Inner::update`] makes the next one from
//! a change of few nodes, sharing everything the change does not touch.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::keys::{NodeId, UserId};
use crate::wire::{FilterRule, SrcIps};

use super::ast::{Alias, File, SshUser};
use super::ground::{Ground, GroundNode};
use super::plan::{Form, Id, Kind, Name, Plan, Shape};
use super::posture;
use super::ranges::{Bits, Range, exit_routes, join, star, without};
use super::resolve::Resolver;
use super::visible::Reach;
use super::{Touched, World, WorldChange, WorldNode};

/// What one name means in this world.
#[derive(Debug, Clone)]
pub(super) struct NameState {
    /// Nodes whose IPv4, and whose IPv6 address is covered.
    pub(super) families: [Arc<Bits>; 2],
    /// Whom the name concerns when it comes to visibility (9.3): its nodes, nodes whose subnet routes
    /// overlap, and exit nodes if the internet is covered.
    pub(super) side: Arc<Bits>,
    /// Destinations only: whose packet filter keeps an entry (9.1).
    pub(super) keep: Arc<Bits>,
    /// Routes that overlap, by number, ascending.
    pub(super) routes: Vec<usize>,
    /// Nodes that are covered and fail the posture.
    pub(super) holes: Arc<Bits>,
}

impl NameState {
    /// Nodes one of whose addresses is covered.
    pub(super) fn members(&self) -> Arc<Bits> {
        let [v4, v6] = &self.families;
        if Arc::ptr_eq(v4, v6) {
            return v4.clone();
        }
        let mut all = Bits::clone(v4);
        all.add(v6);
        Arc::new(all)
    }

    pub(super) fn has(&self, at: usize) -> bool {
        self.families.iter().any(|f| f.get(at))
    }
}

/// What one list of sources prints as.
#[derive(Debug, Clone)]
pub(super) struct ListState {
    /// Equal for lists that print alike, and for no others.
    pub(super) key: u128,
    /// Nobody is on it.
    pub(super) empty: bool,
    strings: Arc<OnceLock<SrcIps>>,
}

/// Nodes whose filters keep the same destinations share the work of finding their rules.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) kept: Box<[Id]>,
    /// Units and their parts, in order of unit.
    pub(super) pieces: OnceLock<Vec<(Id, Vec<Id>)>>,
    /// No entry depends on the node.
    pub(super) plain: bool,
}

/// What a node belongs to.
#[derive(Debug, Clone)]
pub(super) struct NodeNames {
    /// Source names it is on the side of.
    pub(super) srcs: Arc<[Id]>,
    /// Destination names it is on the side of.
    pub(super) dsts: Arc<[Id]>,
    pub(super) class: Arc<Class>,
}

/// Which units are joined (6.7).
#[derive(Debug)]
pub(super) struct Merge {
    /// The first unit of each key and protocol.
    pub(super) first: HashMap<(u128, Option<u8>), Id>,
}

/// The sources of an `autogroup:self` rule among one user's devices.
#[derive(Debug)]
pub(super) struct OwnList {
    pub(super) members: Bits,
    pub(super) key: u128,
    pub(super) strings: SrcIps,
}

type Classes = Arc<Mutex<HashMap<Box<[Id]>, Arc<Class>>>>;

/// Everything known of one policy in one world.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) file: Arc<File>,
    pub(super) plan: Arc<Plan>,
    pub(super) ground: Ground,
    pub(super) names: Vec<Arc<NameState>>,
    pub(super) lists: Vec<ListState>,
    pub(super) nodes: Vec<NodeNames>,
    /// Sources of any `autogroup:self` rule.
    pub(super) own_sources: Bits,
    classes: Classes,
    merge: OnceLock<Merge>,
    pub(super) reach: Reach,
    /// Filters that whole classes share.
    pub(super) shared: Mutex<HashMap<usize, Arc<[FilterRule]>>>,
    own: Mutex<HashMap<(UserId, Id), Arc<OwnList>>>,
    /// SSH, attributes, automatic approval.
    pub(super) sections: super::Sections,
}

/// Compiles `plan` for `world`.
pub(super) fn compile(file: &Arc<File>, plan: &Arc<Plan>, world: &World) -> Inner {
    compile_on(file, plan, Ground::new(world))
}

/// Compiles `plan` for a world that was numbered before.
pub(super) fn compile_on(file: &Arc<File>, plan: &Arc<Plan>, ground: Ground) -> Inner {
    let states = States::new(file, plan, &ground);
    let mut alike: HashMap<(&Alias, Id), Arc<Bits>> = HashMap::new();
    let names: Vec<Arc<NameState>> =
        plan.names.iter().map(|name| Arc::new(states.state(name, &mut alike))).collect();
    let lists = plan.lists.iter().map(|list| list_state(plan, &names, &ground, list)).collect();
    let count = ground.nodes.len();
    let (mut srcs, mut dsts, mut kept) =
        (vec![Vec::new(); count], vec![Vec::new(); count], vec![Vec::new(); count]);
    for ((id, name), state) in (0..).zip(&plan.names).zip(&names) {
        let sides: &mut Vec<Vec<Id>> =
            if matches!(name.form, Form::Source(_)) { &mut srcs } else { &mut dsts };
        note(sides, &state.side, id);
        note(&mut kept, &state.keep, id);
    }
    let mut inner = Inner {
        file: file.clone(),
        plan: plan.clone(),
        names,
        lists,
        nodes: Vec::with_capacity(count),
        own_sources: Bits::default(),
        classes: Classes::default(),
        merge: OnceLock::new(),
        reach: Reach::default(),
        shared: Mutex::default(),
        own: Mutex::default(),
        sections: super::Sections::default(),
        ground,
    };
    for ((srcs, dsts), kept) in srcs.into_iter().zip(dsts).zip(kept) {
        let class = inner.class(kept);
        inner.nodes.push(NodeNames { srcs: srcs.into(), dsts: dsts.into(), class });
    }
    inner.own_sources = inner.own_sources();
    inner
}

fn note(lists: &mut [Vec<Id>], nodes: &Bits, name: Id) {
    for at in nodes.iter() {
        if let Some(list) = lists.get_mut(at) {
            list.push(name);
        }
    }
}

/// Finds what names mean.
struct States<'a> {
    resolver: Resolver<'a>,
    plan: &'a Plan,
    ground: &'a Ground,
    /// Per posture: nodes that satisfy it; `None` is everybody.
    fit: Vec<Option<Bits>>,
}

impl<'a> States<'a> {
    fn new(file: &'a File, plan: &'a Plan, ground: &'a Ground) -> Self {
        let fit = (0..).zip(&plan.postures).map(|(number, posture): (Id, _)| {
            (number > 0).then(|| {
                let fits = |at: &usize| {
                    let node = ground.nodes.get(*at);
                    node.is_some_and(|n| posture::holds(file, posture, &n.node.attributes))
                };
                ground.all.iter().filter(fits).collect()
            })
        });
        Self { resolver: Resolver { file, ground }, plan, ground, fit: fit.collect() }
    }

    /// `alike` keeps the bearers of a word for its other places.
    fn state(&self, name: &'a Name, alike: &mut HashMap<(&'a Alias, Id), Arc<Bits>>) -> NameState {
        let none = self.ground.nobody();
        if let Form::Via(via) = name.form {
            let (side, routes) = self.steered(name, via);
            let side = Arc::new(side);
            return NameState {
                families: [none.clone(), none.clone()],
                keep: side.clone(),
                side,
                routes,
                holes: none,
            };
        }
        let routes = self.routes(name);
        let mut families = self.families(name, alike);
        let mut holes = none.clone();
        if let Form::Source(posture) | Form::App(posture) = name.form
            && let Some(fit) = self.fit.get(posture as usize).and_then(Option::as_ref)
        {
            let mut failing = Bits::clone(&families[0]);
            failing.add(&families[1]);
            failing.drop(fit);
            holes = Arc::new(failing);
            families = families.map(|family| {
                let mut left = Bits::clone(&family);
                left.keep(fit);
                Arc::new(left)
            });
        }
        let mut state = NameState { families, side: none.clone(), keep: none.clone(), routes, holes };
        let members = state.members();
        let mut side = members.clone();
        for route in state.routes.iter().filter_map(|r| self.ground.routes.get(*r)) {
            Arc::make_mut(&mut side).add(&route.nodes);
        }
        state.keep = match name.form {
            Form::Source(_) | Form::Via(_) => none,
            Form::App(_) => side.clone(),
            Form::Dest => {
                let mut keep = side.clone();
                if name.public || name.internet != [false; 2] {
                    Arc::make_mut(&mut keep).add(&self.ground.exits);
                }
                keep
            }
        };
        if name.internet != [false; 2] {
            Arc::make_mut(&mut side).add(&self.ground.exits);
        }
        state.side = side;
        state
    }

    fn families(&self, name: &'a Name, alike: &mut HashMap<(&'a Alias, Id), Arc<Bits>>) -> [Arc<Bits>; 2] {
        let covered = |ranges: &mut dyn Iterator<Item = Range>| {
            let mut out = [Bits::default(), Bits::default()];
            for range in ranges {
                let [v4, v6] = &mut out;
                let family = if range.is_v6() { v6 } else { v4 };
                family.add(&self.ground.covered(range));
            }
            out.map(Arc::new)
        };
        match &name.shape {
            Shape::Nodes => {
                let nodes =
                    alike.entry((&name.alias, 0)).or_insert_with(|| self.resolver.bearers(&name.alias));
                [nodes.clone(), nodes.clone()]
            }
            Shape::Everything => [self.ground.all.clone(), self.ground.all.clone()],
            Shape::Star { bare } => {
                let routes = self.ground.served().map(|(_, r)| r.range).filter(|_| !bare);
                covered(&mut star().into_iter().chain(routes))
            }
            Shape::Ranges(ranges) => covered(&mut ranges.iter().map(|(r, _)| *r)),
        }
    }

    fn routes(&self, name: &Name) -> Vec<usize> {
        let served = self.ground.served();
        match &name.shape {
            Shape::Nodes if !self.ground.odd() => Vec::new(),
            Shape::Nodes => {
                let members = self.resolver.bearers(&name.alias);
                served.filter(|(_, r)| r.covers.meets(&members)).map(|(n, _)| n).collect()
            }
            _ => served.filter(|(_, r)| overlaps(name, r.range)).map(|(n, _)| n).collect(),
        }
    }

    /// Nodes with a via tag that serve the name, and the routes they serve it by.
    fn steered(&self, name: &Name, via: Id) -> (Bits, Vec<usize>) {
        let mut tagged = Bits::default();
        for tag in self.plan.vias.get(via as usize).into_iter().flatten() {
            tagged.add(&self.ground.tag(tag));
        }
        let mut side = Bits::default();
        let mut routes = Vec::new();
        for (number, route) in self.ground.served().filter(|(_, r)| overlaps(name, r.range)) {
            routes.push(number);
            side.add(&route.nodes);
        }
        if name.alias == Alias::Internet {
            side.add(&self.ground.exits);
        }
        side.keep(&tagged);
        (side, routes)
    }
}

/// Whether a literal name overlaps a route.
fn overlaps(name: &Name, route: Range) -> bool {
    match &name.shape {
        Shape::Nodes => false,
        // Identities and `*` steer nothing (8.3).
        Shape::Everything => !matches!(name.form, Form::Via(_)),
        Shape::Star { bare } => !bare || star().iter().any(|r| r.overlaps(route)),
        Shape::Ranges(_) if matches!(name.form, Form::Via(_)) && name.alias == Alias::Internet => false,
        Shape::Ranges(ranges) => ranges.iter().any(|(r, _)| r.overlaps(route)),
    }
}

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
            let old = ground.index.get(id).and_then(|at| self.ground_node(&ground, *at));
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
            for id in &self.plan.literals {
                let name = self.plan.names.get(*id as usize);
                if name.is_some_and(|n| matches!((&n.shape, n.form), (Shape::Star { .. }, Form::Source(_)))) {
                    self.all_receivers(*id, &next.names, &mut filters);
                }
            }
        }
        let mut out = Self {
            file: self.file.clone(),
            plan: self.plan.clone(),
            names: next.names,
            lists: next.lists,
            nodes: next.nodes,
            own_sources: Bits::default(),
            classes: self.classes.clone(),
            merge: OnceLock::new(),
            reach: Reach::default(),
            shared: Mutex::default(),
            own: Mutex::default(),
            sections: super::Sections::default(),
            ground,
        };
        out.own_sources = out.own_sources();
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

    fn ground_node(&self, ground: &Ground, at: usize) -> Option<Arc<GroundNode>> {
        ground.nodes.get(at).cloned()
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

    /// The world this was compiled for.
    pub(super) fn world(&self) -> World {
        let live = self.ground.all.iter().filter_map(|at| self.ground.nodes.get(at));
        World {
            users: BTreeMap::clone(&self.ground.people),
            nodes: live.map(|n| (n.id, WorldNode::clone(&n.node))).collect(),
            ..self.ground.frame.clone_frame()
        }
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
        for (one, other) in [(before, after), (after, before)] {
            for (id, touch) in one {
                let there = other.get(id).copied().unwrap_or_default();
                let sources = touch.families == there.families && touch.hole == there.hole;
                if !(sources && same_address) {
                    self.receivers(*id, &self.names, filters);
                }
            }
        }
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

    /// Nodes that receive rules whose sources hold `name`, given that a node entered or left it.
    fn receivers(&self, name: Id, names: &[Arc<NameState>], out: &mut Bits) {
        // Ranges print the same whoever has an address in them, except around failed postures.
        let prints = self.plan.names.get(name as usize).is_some_and(|n| match n.form {
            Form::Source(posture) => posture > 0 || matches!(n.shape, Shape::Nodes),
            Form::Dest | Form::App(_) | Form::Via(_) => false,
        });
        if prints {
            self.all_receivers(name, names, out);
        }
    }

    fn all_receivers(&self, name: Id, names: &[Arc<NameState>], out: &mut Bits) {
        for dst in self.plan.to.get(name as usize).into_iter().flatten() {
            if let Some(state) = names.get(*dst as usize) {
                out.add(&state.keep);
            }
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

    fn class(&self, kept: Vec<Id>) -> Arc<Class> {
        let kept: Box<[Id]> = kept.into();
        let mut classes = self.classes.lock();
        if let Some(found) = classes.get(&kept) {
            return found.clone();
        }
        let plain = kept.iter().all(|id| {
            let units = self.plan.uses.get(*id as usize).into_iter().flatten();
            let ports = |unit: Id| {
                self.plan.units.get(unit as usize).is_some_and(|u| matches!(u.kind, Kind::Ports(_)))
            };
            let fixed = self.plan.names.get(*id as usize).is_some_and(|name| match &name.shape {
                Shape::Everything => true,
                Shape::Ranges(ranges) => ranges.len() == 1,
                Shape::Nodes | Shape::Star { .. } => false,
            });
            fixed && units.into_iter().all(|(unit, _)| ports(*unit))
        });
        let class = Arc::new(Class { kept: kept.clone(), pieces: OnceLock::new(), plain });
        classes.insert(kept, class.clone());
        class
    }

    /// Drops classes nobody is in any more, when there are many.
    fn sweep(&self) {
        let mut classes = self.classes.lock();
        if classes.len() > 1024 + 4 * self.nodes.len() {
            classes.retain(|_, class| Arc::strong_count(class) > 1);
        }
    }

    fn own_sources(&self) -> Bits {
        let mut out = Bits::default();
        for unit in self.plan.own.iter().filter_map(|u| self.plan.units.get(*u as usize)) {
            for name in self.plan.lists.get(unit.list as usize).into_iter().flatten() {
                if let Some(state) = self.names.get(*name as usize) {
                    state.families.iter().for_each(|f| out.add(f));
                }
            }
        }
        out
    }

    /// Whether a name means nobody at all.
    pub(super) fn is_empty(&self, name: Id) -> bool {
        let at = name as usize;
        match (self.plan.names.get(at).map(|n| &n.shape), self.names.get(at)) {
            (Some(Shape::Nodes), Some(state)) => state.families[0].is_empty(),
            (Some(Shape::Ranges(ranges)), _) => ranges.is_empty(),
            _ => false,
        }
    }

    /// Which units are joined; found out once per world.
    pub(super) fn merge(&self) -> &Merge {
        self.merge.get_or_init(|| {
            let mut first = HashMap::new();
            for (at, unit) in (0..).zip(&self.plan.units) {
                let Kind::Ports(parts) = &unit.kind else {
                    continue;
                };
                let Some(list) = self.lists.get(unit.list as usize).filter(|l| !l.empty) else {
                    continue;
                };
                if parts.iter().any(|p| !self.is_empty(p.name)) {
                    first.entry((list.key, unit.protocol)).or_insert(at);
                }
            }
            Merge { first }
        })
    }

    /// A list as it stands in rules.
    pub(super) fn strings(&self, list: Id) -> SrcIps {
        let Some(state) = self.lists.get(list as usize) else {
            return SrcIps::default();
        };
        let names = self.plan.lists.get(list as usize).map_or(&[][..], |l| l);
        let text = || Sources::gather(&self.plan, &self.names, &self.ground, names).text(&self.ground);
        state.strings.get_or_init(text).clone()
    }

    /// The devices of `user` that are on a list.
    pub(super) fn own_list(&self, user: UserId, list: Id) -> Arc<OwnList> {
        if let Some(found) = self.own.lock().get(&(user, list)) {
            return found.clone();
        }
        let mut members = Bits::default();
        for name in self.plan.lists.get(list as usize).into_iter().flatten() {
            if let Some(state) = self.names.get(*name as usize) {
                state.families.iter().for_each(|f| members.add(f));
            }
        }
        match self.ground.by_user.get(&user) {
            Some(devices) => members.keep(devices),
            None => members = Bits::default(),
        }
        let sources = Sources { nodes: members.clone(), ..Sources::default() };
        let made = Arc::new(OwnList {
            key: sources.key(&self.ground),
            strings: sources.text(&self.ground),
            members,
        });
        self.own.lock().entry((user, list)).or_insert(made).clone()
    }
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

/// What stands on a list of sources.
#[derive(Debug, Default)]
struct Sources {
    /// `autogroup:danger-all`: every address, whatever else is listed.
    danger: bool,
    /// `*`, whole.
    star: bool,
    /// The routes that come with `*`.
    routes: bool,
    ranges: Vec<Range>,
    nodes: Bits,
}

impl Sources {
    fn gather(plan: &Plan, names: &[Arc<NameState>], ground: &Ground, list: &[Id]) -> Self {
        let mut out = Self::default();
        for id in list {
            let (Some(name), Some(state)) = (plan.names.get(*id as usize), names.get(*id as usize)) else {
                continue;
            };
            let holed = |ranges: Vec<Range>| {
                if state.holes.is_empty() {
                    return ranges;
                }
                let holes = state.holes.iter().filter_map(|at| ground.nodes.get(at));
                let away: Vec<Range> =
                    holes.flat_map(|n| [Range::single(n.v4), Range::single(n.v6)]).collect();
                without(ranges, &away)
            };
            match &name.shape {
                Shape::Everything if state.holes.is_empty() => out.danger = true,
                Shape::Everything => out.ranges.extend(holed(exit_routes().map(Range::from).to_vec())),
                Shape::Star { .. } => {
                    if state.holes.is_empty() {
                        out.star = true;
                        out.routes = true;
                    } else {
                        // Routes too: one may cover the address of a device that fails.
                        let routes = ground.served().map(|(_, r)| r.range);
                        out.ranges.extend(holed(star().into_iter().chain(routes).collect()));
                    }
                }
                Shape::Nodes => out.nodes.add(&state.families[0]),
                Shape::Ranges(ranges) => out.ranges.extend(holed(ranges.iter().map(|(r, _)| *r).collect())),
            }
        }
        out
    }

    fn is_empty(&self) -> bool {
        !self.danger && !self.routes && self.ranges.is_empty() && self.nodes.is_empty()
    }

    /// Ranges that print, sorted and disjoint, beside `*` and its routes.
    fn joined(&self, ground: &Ground) -> Vec<Range> {
        let nodes = self.nodes.iter().filter_map(|at| ground.nodes.get(at));
        let nodes = nodes.flat_map(|n| [Range::single(n.v4), Range::single(n.v6)]);
        let mut all = join(self.ranges.iter().copied().chain(nodes).collect());
        if self.routes {
            let routes: Vec<Range> = ground.served().map(|(_, r)| r.range).collect();
            all.retain(|r| !(self.star && star().contains(r)) && !routes.contains(r));
        }
        all
    }

    /// The same for two sets exactly when they print alike. A set of nodes has the sum of its nodes'
    /// hashes, so that one node more or less changes it in one step.
    fn key(&self, ground: &Ground) -> u128 {
        let mark = |number: u128| ground.hash(Range::all()).wrapping_mul(2 * number + 1);
        if self.danger {
            return mark(1);
        }
        if !self.routes && self.ranges.is_empty() {
            let nodes = self.nodes.iter().filter_map(|at| ground.nodes.get(at));
            return nodes.fold(0, |key, n| key ^ n.hash);
        }
        let mut key = 0;
        if self.star {
            key ^= mark(2);
        }
        if self.routes {
            key ^= mark(3);
        }
        for range in self.joined(ground) {
            let inside = if range.is_single() { &[][..] } else { ground.within(range) };
            // A range of nothing but nodes' addresses equals those nodes.
            if !inside.is_empty() && range.counts(inside.len()) {
                key = inside.iter().fold(key, |key, (ip, _)| key ^ ground.hash(Range::single(*ip)));
            } else {
                key ^= ground.hash(range);
            }
        }
        key
    }

    /// `SrcIPs`: sorted as plain text (6.2).
    fn text(&self, ground: &Ground) -> SrcIps {
        if self.danger {
            return [Arc::from("*")].into_iter().collect();
        }
        let mut out: Vec<Arc<str>> = Vec::new();
        if self.routes || !self.ranges.is_empty() {
            out.extend(self.joined(ground).into_iter().map(|r| Arc::from(r.text())));
        } else {
            // Texts of addresses are shared by all lists they stand in.
            let nodes = self.nodes.iter().filter_map(|at| ground.nodes.get(at));
            let mut singles: Vec<(Range, &Arc<str>)> = nodes
                .flat_map(|n| {
                    let [v4, v6] = &n.texts;
                    [(Range::single(n.v4), v4), (Range::single(n.v6), v6)]
                })
                .collect();
            singles.sort_unstable_by_key(|(range, _)| *range);
            let mut open: Option<(Range, &Arc<str>)> = None;
            let print = |(range, text): (Range, &Arc<str>)| {
                if range.is_single() { text.clone() } else { Arc::from(range.text()) }
            };
            for (range, text) in singles {
                match &mut open {
                    Some((last, _)) if last.touches(range) => *last = last.through(range),
                    _ => out.extend(open.replace((range, text)).map(print)),
                }
            }
            out.extend(open.map(print));
        }
        if self.star {
            out.extend(star().iter().map(|r| Arc::from(r.text())));
        }
        if self.routes {
            out.extend(ground.served().map(|(_, r)| r.text.clone()));
        }
        out.sort_unstable();
        out.dedup();
        out.into_iter().collect()
    }
}

fn list_state(plan: &Plan, names: &[Arc<NameState>], ground: &Ground, list: &[Id]) -> ListState {
    let sources = Sources::gather(plan, names, ground, list);
    ListState { key: sources.key(ground), empty: sources.is_empty(), strings: Arc::default() }
}
