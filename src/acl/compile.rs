//! A policy in force for one world: per name the nodes it means, per list of sources what it prints as,
//! per node the names it belongs to. Made whole by [`compile`]; `update` makes the next one from a change
//! of few nodes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::keys::UserId;
use crate::wire::{FilterRule, PortRange, SrcIps};

use super::ast::{Alias, File};
use super::ground::Ground;
use super::plan::{Form, Id, Kind, Name, Plan, Shape, Unit};
use super::posture;
use super::ranges::{Bits, Range, star};
use super::resolve::Resolver;
use super::sources::{ListState, Sources, list_state};
use super::ssh;
use super::visible::Reach;
use super::{World, WorldNode};

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

/// What `autogroup:self` gives the devices of one user.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// Rules with ports, joined by sources and protocol.
    pub(super) rows: Vec<OwnRow>,
    /// Units with capabilities.
    pub(super) apps: Vec<(Id, Arc<OwnList>)>,
}

/// Ports from some devices of a user to all of them.
#[derive(Debug)]
pub(super) struct OwnRow {
    /// The first unit, which decides the place.
    pub(super) unit: Id,
    pub(super) list: Arc<OwnList>,
    pub(super) protocol: Option<u8>,
    pub(super) ports: Vec<PortRange>,
}

/// The sources of an `autogroup:self` rule among one user's devices.
#[derive(Debug)]
pub(super) struct OwnList {
    pub(super) members: Bits,
    pub(super) key: u128,
    pub(super) strings: SrcIps,
}

pub(super) type Classes = Arc<Mutex<HashMap<Box<[Id]>, Arc<Class>>>>;

/// Everything known of one policy in one world.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) file: Arc<File>,
    pub(super) plan: Arc<Plan>,
    pub(super) ground: Ground,
    pub(super) names: Vec<Arc<NameState>>,
    pub(super) lists: Vec<ListState>,
    pub(super) nodes: Vec<NodeNames>,
    pub(super) classes: Classes,
    pub(super) found: Found,
}

/// What was found out about one world so far, when first asked for; empty for every new world.
#[derive(Debug, Default)]
pub(super) struct Found {
    merge: OnceLock<Merge>,
    own_sources: OnceLock<Bits>,
    own: Mutex<HashMap<UserId, Arc<Own>>>,
    /// Filters that whole classes share.
    pub(super) shared: Mutex<HashMap<usize, Arc<[FilterRule]>>>,
    pub(super) reach: Reach,
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
    let mut alike: HashMap<&Alias, Arc<Bits>> = HashMap::new();
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
        classes: Classes::default(),
        found: Found::default(),
        ground,
    };
    for ((srcs, dsts), kept) in srcs.into_iter().zip(dsts).zip(kept) {
        let class = inner.class(kept);
        inner.nodes.push(NodeNames { srcs: srcs.into(), dsts: dsts.into(), class });
    }
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
    fn state(&self, name: &'a Name, alike: &mut HashMap<&'a Alias, Arc<Bits>>) -> NameState {
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

    fn families(&self, name: &'a Name, alike: &mut HashMap<&'a Alias, Arc<Bits>>) -> [Arc<Bits>; 2] {
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
                let nodes = alike.entry(&name.alias).or_insert_with(|| self.resolver.bearers(&name.alias));
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
pub(super) fn overlaps(name: &Name, route: Range) -> bool {
    match &name.shape {
        Shape::Nodes => false,
        // Identities and `*` steer nothing (8.3).
        Shape::Everything => !matches!(name.form, Form::Via(_)),
        Shape::Star { bare } => !bare || star().iter().any(|r| r.overlaps(route)),
        Shape::Ranges(_) if matches!(name.form, Form::Via(_)) && name.alias == Alias::Internet => false,
        Shape::Ranges(ranges) => ranges.iter().any(|(r, _)| r.overlaps(route)),
    }
}

impl Inner {
    /// The world this was compiled for.
    pub(super) fn world(&self) -> World {
        let live = self.ground.all.iter().filter_map(|at| self.ground.nodes.get(at));
        World {
            users: BTreeMap::clone(&self.ground.people),
            nodes: live.map(|n| (n.id, WorldNode::clone(&n.node))).collect(),
            ..self.ground.frame.clone_frame()
        }
    }

    pub(super) fn class(&self, kept: Vec<Id>) -> Arc<Class> {
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
    pub(super) fn sweep(&self) {
        let mut classes = self.classes.lock();
        if classes.len() > 1024 + 4 * self.nodes.len() {
            classes.retain(|_, class| Arc::strong_count(class) > 1);
        }
    }

    /// The SSH rules, resolved.
    pub(super) fn ssh(&self) -> &ssh::Table {
        self.found.sections.ssh.get_or_init(|| ssh::Table::new(&self.file, &self.ground))
    }

    /// Sources of any `autogroup:self` rule.
    pub(super) fn own_sources(&self) -> &Bits {
        self.found.own_sources.get_or_init(|| {
            let mut out = Bits::default();
            for state in self.plan.own_names.iter().filter_map(|n| self.names.get(*n as usize)) {
                state.families.iter().for_each(|f| out.add(f));
            }
            out
        })
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
        self.found.merge.get_or_init(|| {
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

    /// What `autogroup:self` gives the devices of `user`; found out once per world.
    pub(super) fn own(&self, user: UserId) -> Arc<Own> {
        if let Some(found) = self.found.own.lock().get(&user) {
            return found.clone();
        }
        let made = Arc::new(self.make_own(user));
        self.found.own.lock().entry(user).or_insert(made).clone()
    }

    fn make_own(&self, user: UserId) -> Own {
        let mut own = Own::default();
        let Some(devices) = self.ground.by_user.get(&user) else {
            return own;
        };
        // Only lists that some device is on.
        let mut names = Bits::default();
        for node in devices.iter().filter_map(|at| self.nodes.get(at)) {
            node.srcs.iter().for_each(|n| names.set(*n as usize));
        }
        let mut lists = Bits::default();
        for list in names.iter().filter_map(|n| self.plan.lists_of.get(n)).flatten() {
            lists.set(*list as usize);
        }
        let mut alike: HashMap<u128, Arc<OwnList>> = HashMap::new();
        let mut units: Vec<(Id, Arc<OwnList>)> = Vec::new();
        for list in lists.iter() {
            let all = self.plan.units_of.get(list).into_iter().flatten();
            let mine = all.filter(|u| self.plan.units.get(**u as usize).is_some_and(Unit::own)).copied();
            let mut mine = mine.peekable();
            if mine.peek().is_none() {
                continue;
            }
            let mut members = Bits::default();
            for name in self.plan.lists.get(list).into_iter().flatten() {
                if let Some(state) = self.names.get(*name as usize) {
                    state.families.iter().for_each(|f| members.add_common(f, devices));
                }
            }
            if members.is_empty() {
                continue;
            }
            let sources = Sources::of(members);
            let key = sources.key(&self.ground);
            let list = alike.entry(key).or_insert_with(|| {
                Arc::new(OwnList { key, strings: sources.text(&self.ground), members: sources.into_nodes() })
            });
            units.extend(mine.map(|unit| (unit, list.clone())));
        }
        units.sort_by_key(|(unit, _)| *unit);
        let mut rows: HashMap<(u128, Option<u8>), usize> = HashMap::new();
        for (number, list) in units {
            let Some(unit) = self.plan.units.get(number as usize) else {
                continue;
            };
            let Kind::OwnPorts(ports) = &unit.kind else {
                own.apps.push((number, list));
                continue;
            };
            let at = *rows.entry((list.key, unit.protocol)).or_insert(own.rows.len());
            match own.rows.get_mut(at) {
                Some(row) => row.ports.extend(ports),
                None => own.rows.push(OwnRow {
                    unit: number,
                    list,
                    protocol: unit.protocol,
                    ports: ports.to_vec(),
                }),
            }
        }
        own
    }
}
