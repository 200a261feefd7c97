//! A policy laid out for the compiler, before any user or node: every distinct name once per place it
//! stands in, every distinct list of sources once, rules as units that refer to both by number, and which
//! source names lead to which destination names. Made once per policy text; worlds come and go.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use crate::model::Tag;
use crate::wire::{CapMap, PortRange};

use super::ast::{Acl, Alias, AppCaps, File, Grant, Spanned, SrcPosture};
use super::ranges::{Range, internet, join, without};

/// A number of a name, list or unit. A policy is bounded to a million rules, so 32 bits do.
pub(super) type Id = u32;

/// Where a name stands; the same word means different things in different places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// A source, under the posture of this number (0: none).
    Source(Id),
    /// A destination with ports.
    Dest,
    /// A destination of application capabilities, under a posture when it was a source (8.2).
    App(Id),
    /// A destination reached through the routers of [`Plan::vias`] with this number.
    Via(Id),
}

/// What a name's addresses are made of.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shape {
    /// Addresses of the nodes that bear it.
    Nodes,
    /// `*` as a destination, `autogroup:danger-all`.
    Everything,
    /// `*` as a source: the tailnet's ranges and, unless `bare`, every approved subnet route (5.1).
    Star {
        /// Without the routes: a destination of capabilities.
        bare: bool,
    },
    /// Ranges, each with its text.
    Ranges(Arc<[(Range, Arc<str>)]>),
}

/// One name in one place.
#[derive(Debug, Clone)]
pub(super) struct Name {
    pub(super) alias: Alias,
    pub(super) form: Form,
    pub(super) shape: Shape,
    /// As a destination it covers the internet of IPv4, of IPv6.
    pub(super) internet: [bool; 2],
    /// As a destination one of its ranges lies wholly in the internet: exit nodes keep it (9.1).
    pub(super) public: bool,
}

/// A destination name with ports, in the order written.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) name: Id,
    pub(super) ports: Arc<[PortRange]>,
}

/// The section a rule stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Section {
    /// What an absent policy means (2.1).
    Default,
    Grants,
    Acls,
}

/// A piece of a rule, in the order of the list that nodes receive (6.1).
#[derive(Debug, Clone)]
pub(super) struct Unit {
    pub(super) section: Section,
    /// Place in its section, from zero.
    pub(super) index: Id,
    /// The list of sources.
    pub(super) list: Id,
    pub(super) protocol: Option<u8>,
    pub(super) kind: Kind,
}

/// What a unit gives.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// Ports, the same for all nodes.
    Ports(Box<[Part]>),
    /// Ports of `autogroup:self` (7).
    OwnPorts(Box<[PortRange]>),
    /// Ports behind via routers (8.3).
    ViaPorts(Box<[Part]>),
    /// A via grant of capabilities alone: no rule, but peers and routes follow it (8.3).
    ViaApp(Box<[Id]>),
    /// Capabilities: one element per destination name; a companion has one element of all (8.1, 8.2).
    App { elements: Box<[Box<[Id]>]>, caps: Arc<CapMap>, companion: bool },
    /// Capabilities of `autogroup:self`; a companion goes the other way.
    OwnApp { caps: Arc<CapMap>, companion: bool },
}

impl Unit {
    /// Destination names with the number of their part.
    pub(super) fn names(&self) -> Vec<(Id, Id)> {
        let number = |at: usize| Id::try_from(at).unwrap_or(Id::MAX);
        match &self.kind {
            Kind::Ports(parts) | Kind::ViaPorts(parts) => {
                parts.iter().enumerate().map(|(at, p)| (p.name, number(at))).collect()
            }
            Kind::ViaApp(names) => names.iter().map(|n| (*n, 0)).collect(),
            Kind::App { elements, .. } => elements
                .iter()
                .enumerate()
                .flat_map(|(at, names)| names.iter().map(move |n| (*n, number(at))))
                .collect(),
            Kind::OwnPorts(_) | Kind::OwnApp { .. } => Vec::new(),
        }
    }

    /// Whether it is worked out per user.
    pub(super) const fn own(&self) -> bool {
        matches!(self.kind, Kind::OwnPorts(_) | Kind::OwnApp { .. })
    }
}

/// The layout of one policy.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) names: Vec<Name>,
    /// Every place a word stands in.
    pub(super) by_alias: HashMap<Alias, Vec<(Form, Id)>>,
    /// Names whose members depend on addresses, not on who somebody is.
    pub(super) literals: Vec<Id>,
    /// Distinct lists of source names, sorted.
    pub(super) lists: Vec<Box<[Id]>>,
    /// Per name: the lists it stands in.
    pub(super) lists_of: Vec<Vec<Id>>,
    pub(super) units: Vec<Unit>,
    /// Per list: the units whose sources it is.
    pub(super) units_of: Vec<Vec<Id>>,
    /// Per name: units it is a destination of, with the number of the part.
    pub(super) uses: Vec<Vec<(Id, Id)>>,
    /// Per source name: destination names it leads to, sorted; without the steered ones.
    pub(super) to: Vec<Box<[Id]>>,
    /// Per destination name: source names that lead to it, sorted.
    pub(super) from: Vec<Box<[Id]>>,
    /// Units of `autogroup:self`.
    pub(super) own: Vec<Id>,
    /// Source names of those units, each once.
    pub(super) own_names: Vec<Id>,
    /// Distinct sets of via tags.
    pub(super) vias: Vec<Vec<Tag>>,
    /// Units of via grants.
    pub(super) steered: Vec<Id>,
    /// Distinct postures; number 0 is none.
    pub(super) postures: Vec<SrcPosture>,
    /// Groups by member.
    pub(super) groups_of: HashMap<String, Vec<String>>,
}

/// Lays `file` out.
pub(super) fn lay_out(file: &File) -> Plan {
    let mut layer = Layer {
        file,
        plan: Plan { postures: vec![Some(Vec::new())], ..Plan::default() },
        lists: HashMap::new(),
        vias: HashMap::new(),
        postures: HashMap::new(),
    };
    for (name, members) in &file.groups {
        for member in &members.value {
            let groups = layer.plan.groups_of.entry(member.value.clone()).or_default();
            if groups.last() != Some(name) {
                groups.push(name.clone());
            }
        }
    }
    for (index, grant) in file.grants.iter().flatten().enumerate() {
        layer.grant(number(index), grant);
    }
    for (index, acl) in file.acls.iter().flatten().enumerate() {
        layer.acl(number(index), acl);
    }
    if file.acls.is_none() && file.grants.is_none() {
        layer.default();
    }
    layer.finish()
}

fn number(at: usize) -> Id {
    Id::try_from(at).unwrap_or(Id::MAX)
}

struct Layer<'a> {
    file: &'a File,
    plan: Plan,
    lists: HashMap<Box<[Id]>, Id>,
    vias: HashMap<Vec<Tag>, Id>,
    postures: HashMap<Vec<String>, Id>,
}

/// The number of `key`, the next free one when it is new.
fn intern<K: Hash + Eq + Clone>(known: &mut HashMap<K, Id>, key: &K) -> (Id, bool) {
    if let Some(found) = known.get(key) {
        return (*found, false);
    }
    let next = number(known.len());
    known.insert(key.clone(), next);
    (next, true)
}

impl Layer<'_> {
    fn name(&mut self, alias: &Alias, form: Form) -> Id {
        if let Some(places) = self.plan.by_alias.get(alias)
            && let Some((_, id)) = places.iter().find(|(f, _)| *f == form)
        {
            return *id;
        }
        let id = number(self.plan.names.len());
        let shape = self.shape(alias, form);
        if !matches!(shape, Shape::Nodes) {
            self.plan.literals.push(id);
        }
        let (internet, public) = internet_of(&shape, form);
        self.plan.names.push(Name { alias: alias.clone(), form, shape, internet, public });
        self.plan.by_alias.entry(alias.clone()).or_default().push((form, id));
        id
    }

    fn shape(&self, alias: &Alias, form: Form) -> Shape {
        let texts = |ranges: Vec<Range>, text: fn(Range) -> String| {
            Shape::Ranges(ranges.into_iter().map(|r| (r, Arc::from(text(r)))).collect())
        };
        // A via grant's prefix keeps its length even for a single address (8.3).
        let plain = if matches!(form, Form::Via(_)) { Range::prefix_text } else { Range::text };
        match alias {
            Alias::Any if form == Form::Dest || matches!(form, Form::Via(_)) => Shape::Everything,
            Alias::Any => Shape::Star { bare: matches!(form, Form::App(_)) },
            Alias::DangerAll => Shape::Everything,
            Alias::Internet => texts(internet().to_vec(), Range::span_text),
            Alias::Prefix(net) => texts(vec![(*net).into()], plain),
            Alias::Range(low, high) => texts(vec![Range::new(*low, *high)], plain),
            Alias::Host(name) => {
                texts(self.file.hosts.get(name).map(|n| n.value.into()).into_iter().collect(), plain)
            }
            Alias::IpSet(name) => {
                let ranges = ip_set(self.file, name, &mut Vec::new());
                if !mentions_internet(self.file, name, &mut Vec::new()) {
                    return texts(ranges, plain);
                }
                // What was joined to the internet is told apart again: exit nodes keep what lies wholly
                // inside it (9.1).
                let inside = ranges.iter().flat_map(|r| internet().map(|i| r.common(i))).flatten();
                let mut parts: Vec<Range> = inside.collect();
                parts.extend(without(ranges, &internet()));
                parts.sort_unstable();
                texts(parts, plain)
            }
            _ => Shape::Nodes,
        }
    }

    fn posture(&mut self, posture: &SrcPosture) -> Id {
        let names: Vec<String> = match posture {
            Some(own) => own.iter().map(|p| p.value.clone()).collect(),
            None => self.file.default_src_posture.iter().map(|p| p.value.clone()).collect(),
        };
        if names.is_empty() {
            return 0;
        }
        let next = number(self.plan.postures.len());
        let id = *self.postures.entry(names).or_insert(next);
        if id == next {
            let all = posture.clone().unwrap_or_else(|| self.file.default_src_posture.clone());
            self.plan.postures.push(Some(all));
        }
        id
    }

    fn list(&mut self, src: &[Spanned<Alias>], posture: Id) -> Id {
        let names = src.iter().map(|s| self.name(&s.value, Form::Source(posture))).collect();
        self.list_of(names)
    }

    fn list_of(&mut self, mut names: Vec<Id>) -> Id {
        names.sort_unstable();
        names.dedup();
        let names: Box<[Id]> = names.into();
        let (id, new) = intern(&mut self.lists, &names);
        if new {
            self.plan.lists.push(names);
        }
        id
    }

    fn default(&mut self) {
        let posture = self.posture(&None);
        let source = self.name(&Alias::Any, Form::Source(posture));
        let list = self.list_of(vec![source]);
        let name = self.name(&Alias::Any, Form::Dest);
        let kind = Kind::Ports([Part { name, ports: Arc::from([PortRange::ANY]) }].into());
        self.plan.units.push(Unit { section: Section::Default, index: 0, list, protocol: None, kind });
    }

    fn acl(&mut self, index: Id, acl: &Acl) {
        let posture = self.posture(&acl.posture);
        let list = self.list(&acl.src, posture);
        let unit = |kind| Unit { section: Section::Acls, index, list, protocol: acl.protocol, kind };
        // Ports of one name are gathered; names keep their order (6.3).
        let mut parts: Vec<(Id, Vec<PortRange>)> = Vec::new();
        let mut place: HashMap<Id, usize> = HashMap::new();
        let mut own: Vec<PortRange> = Vec::new();
        let mut own_first = false;
        for dst in &acl.dst {
            if dst.value.alias == Alias::Own {
                own_first |= parts.is_empty();
                own.extend(&dst.value.ports);
                continue;
            }
            let name = self.name(&dst.value.alias, Form::Dest);
            let at = *place.entry(name).or_insert(parts.len());
            match parts.get_mut(at) {
                Some((_, ports)) => ports.extend(&dst.value.ports),
                None => parts.push((name, dst.value.ports.clone())),
            }
        }
        // Only a list of nothing but autogroups keeps its order; else self comes last (6.1).
        own_first &= acl.dst.iter().all(|d| d.value.alias.is_autogroup());
        let parts: Box<[Part]> =
            parts.into_iter().map(|(name, ports)| Part { name, ports: ports.into() }).collect();
        let global = (!parts.is_empty()).then(|| unit(Kind::Ports(parts)));
        let own = (!own.is_empty()).then(|| unit(Kind::OwnPorts(own.into())));
        let both = if own_first { [own, global] } else { [global, own] };
        self.plan.units.extend(both.into_iter().flatten());
    }

    fn grant(&mut self, index: Id, grant: &Grant) {
        let posture = self.posture(&grant.posture);
        let list = self.list(&grant.src, posture);
        let unit = |list, protocol, kind| Unit { section: Section::Grants, index, list, protocol, kind };
        let via = self.via(&grant.via);
        let own = grant.dst.iter().any(|d| d.value == Alias::Own);
        let dsts: Vec<&Alias> = grant.dst.iter().map(|d| &d.value).filter(|d| **d != Alias::Own).collect();
        // All that the others are given comes before all of self.
        let ports = by_protocol(grant);
        if !dsts.is_empty() {
            for (protocol, ports) in &ports {
                let ports: Arc<[PortRange]> = ports.as_slice().into();
                let form = via.map_or(Form::Dest, Form::Via);
                // A name written twice is told twice: nothing is left out of lists of destinations (6.3).
                let names = dsts.iter().map(|dst| self.name(dst, form));
                let parts: Box<[Part]> = names.map(|name| Part { name, ports: ports.clone() }).collect();
                let kind = if via.is_some() { Kind::ViaPorts(parts) } else { Kind::Ports(parts) };
                self.plan.units.push(unit(list, *protocol, kind));
            }
            if !grant.app.is_empty() {
                self.app(grant, (list, posture), via, &dsts, unit);
            }
        }
        if own {
            for (protocol, ports) in ports {
                self.plan.units.push(unit(list, protocol, Kind::OwnPorts(ports.into())));
            }
            if via.is_none() && !grant.app.is_empty() {
                let caps = Arc::new(cap_map(&grant.app));
                self.plan.units.push(unit(list, None, Kind::OwnApp { caps, companion: false }));
                for caps in companions(grant) {
                    self.plan.units.push(unit(list, None, Kind::OwnApp { caps, companion: true }));
                }
            }
        }
    }

    /// The capabilities of a grant at all its destinations but `autogroup:self`.
    fn app(
        &mut self,
        grant: &Grant,
        (list, posture): (Id, Id),
        via: Option<Id>,
        dsts: &[&Alias],
        unit: impl Fn(Id, Option<u8>, Kind) -> Unit,
    ) {
        if let Some(via) = via {
            let names = dsts.iter().map(|d| self.name(d, Form::Via(via))).collect();
            self.plan.units.push(unit(list, None, Kind::ViaApp(names)));
            return;
        }
        let caps = Arc::new(cap_map(&grant.app));
        let elements = dsts.iter().map(|d| [self.name(d, Form::App(0))].into()).collect();
        self.plan.units.push(unit(list, None, Kind::App { elements, caps, companion: false }));
        for caps in companions(grant) {
            let back = dsts.iter().map(|d| self.name(d, Form::Source(0))).collect();
            let back = self.list_of(back);
            let sources: Box<[Id]> =
                grant.src.iter().map(|s| self.name(&s.value, Form::App(posture))).collect();
            let kind = Kind::App { elements: [sources].into(), caps, companion: true };
            self.plan.units.push(unit(back, None, kind));
        }
    }

    fn via(&mut self, tags: &[Spanned<Tag>]) -> Option<Id> {
        if tags.is_empty() {
            return None;
        }
        let mut tags: Vec<Tag> = tags.iter().map(|t| t.value.clone()).collect();
        tags.sort();
        tags.dedup();
        let (id, new) = intern(&mut self.vias, &tags);
        if new {
            self.plan.vias.push(tags);
        }
        Some(id)
    }

    /// Cross references, when all units are there.
    fn finish(self) -> Plan {
        let mut plan = self.plan;
        let count = plan.names.len();
        plan.lists_of = vec![Vec::new(); count];
        for (at, names) in plan.lists.iter().enumerate() {
            for name in names {
                push(&mut plan.lists_of, *name, number(at));
            }
        }
        plan.uses = vec![Vec::new(); count];
        plan.units_of = vec![Vec::new(); plan.lists.len()];
        let mut reached: Vec<Vec<Id>> = vec![Vec::new(); plan.lists.len()];
        for (at, unit) in plan.units.iter().enumerate() {
            let at = number(at);
            push(&mut plan.units_of, unit.list, at);
            if unit.own() {
                plan.own.push(at);
                plan.own_names.extend(plan.lists.get(unit.list as usize).into_iter().flatten());
            }
            if matches!(unit.kind, Kind::ViaPorts(_) | Kind::ViaApp(_)) {
                plan.steered.push(at);
            }
            for (name, part) in unit.names() {
                push(&mut plan.uses, name, (at, part));
                push(&mut reached, unit.list, name);
            }
        }
        plan.own_names.sort_unstable();
        plan.own_names.dedup();
        let mut to: Vec<Vec<Id>> = vec![Vec::new(); count];
        for (names, reached) in plan.lists.iter().zip(&mut reached) {
            reached.sort_unstable();
            reached.dedup();
            for name in names {
                if let Some(list) = to.get_mut(*name as usize) {
                    list.extend(&*reached);
                }
            }
        }
        let mut from: Vec<Vec<Id>> = vec![Vec::new(); count];
        plan.to = (0..)
            .zip(to)
            .map(|(src, mut list): (Id, Vec<Id>)| {
                list.sort_unstable();
                list.dedup();
                for dst in &list {
                    push(&mut from, *dst, src);
                }
                list.into()
            })
            .collect();
        plan.from = from.into_iter().map(Into::into).collect();
        plan
    }
}

fn push<T>(list: &mut [Vec<T>], at: Id, item: T) {
    if let Some(list) = list.get_mut(at as usize) {
        list.push(item);
    }
}

/// Capabilities that come with others, in the other direction (8.2).
const COMPANIONS: [(&str, &str); 2] = [
    ("tailscale.com/cap/drive", "tailscale.com/cap/drive-sharer"),
    ("tailscale.com/cap/relay", "tailscale.com/cap/relay-target"),
];

fn cap_map(app: &AppCaps) -> CapMap {
    app.iter().map(|(name, values)| (name.clone(), Some(values.clone()))).collect()
}

/// What the capabilities of a grant give the other way, each by itself (8.2).
fn companions(grant: &Grant) -> impl Iterator<Item = Arc<CapMap>> + '_ {
    let given = COMPANIONS.iter().filter(|(name, _)| grant.app.contains_key(*name));
    given.map(|(_, companion)| Arc::new(CapMap::from([((*companion).to_owned(), None)])))
}

/// Ports per distinct protocol, in order of first appearance (6.1).
fn by_protocol(grant: &Grant) -> Vec<(Option<u8>, Vec<PortRange>)> {
    let mut out: Vec<(Option<u8>, Vec<PortRange>)> = Vec::new();
    for entry in &grant.ip {
        match out.iter_mut().find(|(p, _)| *p == entry.protocol) {
            Some((_, ports)) => ports.extend(&entry.ports),
            None => out.push((entry.protocol, entry.ports.clone())),
        }
    }
    out
}

fn internet_of(shape: &Shape, form: Form) -> ([bool; 2], bool) {
    match shape {
        _ if matches!(form, Form::Source(_) | Form::App(_)) => ([false; 2], false),
        Shape::Everything => ([true; 2], false),
        Shape::Nodes | Shape::Star { .. } => ([false; 2], false),
        Shape::Ranges(ranges) => {
            let joined = join(ranges.iter().map(|(r, _)| *r).collect());
            let covers = |part: &Range| joined.iter().any(|r| part.within(*r));
            let [internet4 @ .., internet6] = internet();
            let inside = |r: &Range| internet().iter().any(|i| r.within(*i));
            let public = ranges.iter().any(|(r, _)| inside(r));
            ([internet4.iter().all(covers), covers(&internet6)], public)
        }
    }
}

fn mentions_internet<'f>(file: &'f File, name: &'f str, open: &mut Vec<&'f str>) -> bool {
    if open.contains(&name) {
        return false;
    }
    open.push(name);
    file.ipsets.get(name).into_iter().flat_map(|s| &s.value).any(|entry| match &entry.target.value {
        Alias::Internet => entry.add,
        Alias::IpSet(inner) => mentions_internet(file, inner, open),
        _ => false,
    })
}

/// Entries apply in order (3.3). Cycles are refused before; here they end.
pub(super) fn ip_set<'f>(file: &'f File, name: &'f str, open: &mut Vec<&'f str>) -> Vec<Range> {
    if open.contains(&name) {
        return Vec::new();
    }
    open.push(name);
    let mut out = Vec::new();
    for entry in file.ipsets.get(name).into_iter().flat_map(|s| &s.value) {
        let ranges = match &entry.target.value {
            Alias::IpSet(inner) => ip_set(file, inner, open),
            Alias::Prefix(net) => vec![(*net).into()],
            Alias::Range(low, high) => vec![Range::new(*low, *high)],
            Alias::Host(name) => file.hosts.get(name).map(|n| n.value.into()).into_iter().collect(),
            Alias::Internet => internet().to_vec(),
            // Nothing else may stand in a set.
            _ => Vec::new(),
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
