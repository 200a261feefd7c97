//! Rules to what a node receives (SEMANTICS.md 5, 6, 7, 9.1). Sources are compiled once per distinct
//! set, names once per side, and a node's own rules are found through the few names it belongs to:
//! the cost of one node is its own rules, not all rules. `autogroup:self` is worked out per user when
//! asked for. Results that do not depend on the node are shared by all nodes of a class.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use crate::keys::{NodeId, UserId};
use crate::wire::{FilterRule, NetPortRange, PortRange};

use super::World;
use super::ast::Alias;
use super::ast::{Acl, Destination, File, Spanned};
use super::ranges::{Bits, Range, join, star};
use super::resolve::{Ground, GroundNode, Resolved, Resolver, Shape};
use super::visible::Reach;

/// Filters with more text than this are made again when asked for instead of being kept, unless many
/// nodes share them.
const KEEP_STRINGS: usize = 4096;

/// A distinct set of sources.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SourceKey {
    /// `autogroup:danger-all`: every address, whatever else is listed.
    pub(super) danger: bool,
    /// Holds `*`.
    pub(super) star: bool,
    /// What stands beside.
    pub(super) ranges: Vec<Range>,
}

#[derive(Debug)]
pub(super) struct SourceSet {
    pub(super) key: SourceKey,
    strings: OnceLock<Vec<String>>,
}

/// Ports of one destination name.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// Number in [`Inner::dsts`].
    pub(super) dst: usize,
    pub(super) ports: Vec<PortRange>,
}

/// What one rule gives, in the order of the list; its `autogroup:self` part is a unit of its own.
#[derive(Debug)]
pub(super) struct Unit {
    /// Numbers in [`Inner::srcs`].
    pub(super) srcs: Vec<usize>,
    pub(super) protocol: Option<u8>,
    pub(super) kind: UnitKind,
    /// Number of the first unit that this one is joined to (6.7).
    group: usize,
}

#[derive(Debug)]
pub(super) enum UnitKind {
    /// The same for all nodes.
    Global { source: usize, parts: Vec<Part> },
    /// `autogroup:self` with these ports.
    Own { ports: Vec<PortRange> },
}

/// Everything known of one policy in one world.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) file: Arc<File>,
    pub(super) world: World,
    pub(super) ground: Arc<Ground>,
    pub(super) srcs: Vec<Resolved>,
    pub(super) dsts: Vec<Resolved>,
    pub(super) sources: Vec<SourceSet>,
    source_index: HashMap<SourceKey, usize>,
    pub(super) units: Vec<Unit>,
    first: HashMap<(usize, Option<u8>), usize>,
    pub(super) own_units: Vec<usize>,
    /// Sources of any `autogroup:self` rule.
    pub(super) own_sources: Bits,
    /// For each destination name: units and their parts.
    pub(super) uses: Vec<Vec<(usize, usize)>>,
    /// For each node: destination names its filter keeps entries of.
    kept: Vec<Vec<usize>>,
    class: Vec<usize>,
    filters: Vec<OnceLock<Arc<[FilterRule]>>>,
    shared: Vec<bool>,
    pub(super) reach: Reach,
    /// SSH, attributes, automatic approval.
    pub(super) sections: super::Sections,
}

/// Rules as the builder gathers them.
struct Builder<'a> {
    resolver: Resolver<'a>,
    srcs: Table,
    dsts: Table,
    sources: Vec<SourceSet>,
    source_index: HashMap<SourceKey, usize>,
    source_lists: HashMap<Vec<usize>, Option<usize>>,
    units: Vec<Unit>,
}

#[derive(Default)]
struct Table {
    index: HashMap<Alias, usize>,
    list: Vec<Resolved>,
}

impl Table {
    fn number(&mut self, alias: &Alias, resolve: impl FnOnce() -> Resolved) -> usize {
        if let Some(found) = self.index.get(alias) {
            return *found;
        }
        let number = self.list.len();
        self.list.push(resolve());
        self.index.insert(alias.clone(), number);
        number
    }
}

/// Compiles `file` for `world`.
pub(super) fn compile(file: &Arc<File>, world: &World) -> Inner {
    let ground = Arc::new(Ground::new(world));
    let mut builder = Builder {
        resolver: Resolver { file, ground: &ground },
        srcs: Table::default(),
        dsts: Table::default(),
        sources: Vec::new(),
        source_index: HashMap::new(),
        source_lists: HashMap::new(),
        units: Vec::new(),
    };
    match &file.acls {
        Some(acls) => acls.iter().for_each(|acl| builder.rule(acl)),
        None if file.grants.is_none() => builder.rule(&allow_all()),
        None => {}
    }
    builder.finish(file, world, ground.clone())
}

/// What an absent `acls` means (2.1).
pub(super) fn allow_all() -> Acl {
    let span = super::hujson::Span::default();
    Acl {
        span,
        posture: None,
        protocol: None,
        src: vec![Spanned { value: Alias::Any, span }],
        dst: vec![Spanned { value: Destination { alias: Alias::Any, ports: vec![PortRange::ANY] }, span }],
    }
}

impl Builder<'_> {
    fn rule(&mut self, acl: &Acl) {
        let resolver = &self.resolver;
        let mut srcs: Vec<usize> =
            acl.src.iter().map(|s| self.srcs.number(&s.value, || resolver.source(&s.value))).collect();
        srcs.sort_unstable();
        srcs.dedup();
        // Ports of one name are gathered; names keep their order (6.3).
        let mut parts: Vec<Part> = Vec::new();
        let mut place: HashMap<usize, usize> = HashMap::new();
        let mut own: Vec<PortRange> = Vec::new();
        let mut own_first = false;
        for dst in &acl.dst {
            let Destination { alias, ports } = &dst.value;
            if *alias == Alias::Own {
                own_first |= parts.is_empty();
                own.extend(ports);
                continue;
            }
            let number = self.dsts.number(alias, || resolver.destination(alias));
            let at = *place.entry(number).or_insert(parts.len());
            if let Some(part) = parts.get_mut(at) {
                part.ports.extend(ports);
            } else {
                parts.push(Part { dst: number, ports: ports.clone() });
            }
        }
        // Only a list of nothing but autogroups keeps its order; else self comes last (6.1).
        own_first &= acl.dst.iter().all(|d| d.value.alias.is_autogroup());
        if own_first {
            self.own(&srcs, acl.protocol, &mut own);
        }
        self.global(&srcs, acl.protocol, parts);
        self.own(&srcs, acl.protocol, &mut own);
    }

    fn own(&mut self, srcs: &[usize], protocol: Option<u8>, ports: &mut Vec<PortRange>) {
        if !ports.is_empty() {
            self.push(srcs, protocol, UnitKind::Own { ports: std::mem::take(ports) });
        }
    }

    fn global(&mut self, srcs: &[usize], protocol: Option<u8>, mut parts: Vec<Part>) {
        let dsts = &self.dsts.list;
        parts.retain(|p| dsts.get(p.dst).is_some_and(|d| !d.is_empty()));
        if parts.is_empty() {
            return;
        }
        if let Some(source) = self.source(srcs) {
            self.push(srcs, protocol, UnitKind::Global { source, parts });
        }
    }

    fn push(&mut self, srcs: &[usize], protocol: Option<u8>, kind: UnitKind) {
        self.units.push(Unit { srcs: srcs.to_vec(), protocol, kind, group: self.units.len() });
    }

    /// The source set of a list of names; `None` when it is empty.
    fn source(&mut self, srcs: &[usize]) -> Option<usize> {
        if let Some(found) = self.source_lists.get(srcs) {
            return *found;
        }
        let names = srcs.iter().filter_map(|s| self.srcs.list.get(*s));
        let key = source_key(names, self.resolver.ground);
        let number = (key.danger || key.star || !key.ranges.is_empty()).then(|| {
            let next = self.sources.len();
            let number = *self.source_index.entry(key.clone()).or_insert(next);
            if number == next {
                self.sources.push(SourceSet { key, strings: OnceLock::new() });
            }
            number
        });
        self.source_lists.insert(srcs.to_vec(), number);
        number
    }

    fn finish(mut self, file: &Arc<File>, world: &World, ground: Arc<Ground>) -> Inner {
        let mut first = HashMap::new();
        let mut own_units = Vec::new();
        let mut own_sources = Bits::default();
        let mut uses = vec![Vec::new(); self.dsts.list.len()];
        for (at, unit) in self.units.iter_mut().enumerate() {
            match &unit.kind {
                UnitKind::Own { .. } => {
                    own_units.push(at);
                    for src in unit.srcs.iter().filter_map(|s| self.srcs.list.get(*s)) {
                        own_sources.add(&src.members);
                    }
                }
                UnitKind::Global { source, parts } => {
                    unit.group = *first.entry((*source, unit.protocol)).or_insert(at);
                    for (number, part) in parts.iter().enumerate() {
                        if let Some(list) = uses.get_mut(part.dst) {
                            list.push((at, number));
                        }
                    }
                }
            }
        }
        let mut kept = vec![Vec::new(); ground.nodes.len()];
        for (number, dst) in self.dsts.list.iter().enumerate() {
            for node in dst.keep.iter() {
                if let Some(list) = kept.get_mut(node) {
                    list.push(number);
                }
            }
        }
        let reach = Reach::new(&ground, &self.srcs.list, &self.dsts.list, &self.units);
        let mut inner = Inner {
            file: file.clone(),
            world: world.clone(),
            ground,
            srcs: self.srcs.list,
            dsts: self.dsts.list,
            sources: self.sources,
            source_index: self.source_index,
            units: self.units,
            first,
            own_units,
            own_sources,
            uses,
            kept,
            class: Vec::new(),
            filters: Vec::new(),
            shared: Vec::new(),
            reach,
            sections: super::Sections::default(),
        };
        inner.classes();
        inner
    }
}

/// The canonical form of a set of sources: two sets that print alike are equal.
fn source_key<'a>(names: impl Iterator<Item = &'a Resolved>, ground: &Ground) -> SourceKey {
    let mut key = SourceKey { danger: false, star: false, ranges: Vec::new() };
    let mut members = Bits::default();
    for name in names {
        match (&name.alias, &name.shape) {
            (Alias::Any, _) => key.star = true,
            (_, Shape::Everything) => key.danger = true,
            (_, Shape::Nodes) => members.add(&name.members),
            (_, Shape::Ranges(ranges)) => key.ranges.extend(ranges.iter().map(|(r, _)| *r)),
        }
    }
    if key.danger {
        key.star = false;
        key.ranges.clear();
        return key;
    }
    key.ranges.extend(node_ranges(&members, ground));
    key.ranges = join(key.ranges);
    if key.star {
        let routes: Vec<Range> = ground.routes.iter().map(|r| (*r).into()).collect();
        key.ranges.retain(|r| !star().contains(r) && !routes.contains(r));
    }
    key
}

fn node_ranges(members: &Bits, ground: &Ground) -> Vec<Range> {
    members
        .iter()
        .filter_map(|at| ground.nodes.get(at))
        .flat_map(|n| [Range::single(n.v4), Range::single(n.v6)])
        .collect()
}

/// `SrcIPs`: sorted as plain text (6.2).
fn source_strings(key: &SourceKey, ground: &Ground) -> Vec<String> {
    if key.danger {
        return vec!["*".to_owned()];
    }
    let mut out: Vec<String> = key.ranges.iter().map(|r| r.text()).collect();
    if key.star {
        out.extend(star().iter().map(|r| r.text()));
        out.extend(ground.routes.iter().map(ToString::to_string));
    }
    out.sort_unstable();
    out.dedup();
    out
}

/// What one unit adds to a node's list.
struct Piece {
    group: usize,
    unit: usize,
    strings: Vec<String>,
    protocol: Option<u8>,
    ports: Vec<NetPortRange>,
}

impl Inner {
    /// Sorts nodes into classes of equal filters. Nodes whose entries name themselves, that serve
    /// routes or have a part in `autogroup:self` are classes of their own.
    fn classes(&mut self) {
        let mut known: HashMap<Vec<usize>, usize> = HashMap::new();
        for (at, node) in self.ground.nodes.iter().enumerate() {
            let names = self.kept.get(at).cloned().unwrap_or_default();
            let plain = node.routes.is_empty()
                && node.exits.is_empty()
                && (node.user.is_none() || self.own_units.is_empty())
                && names.iter().all(|n| {
                    self.dsts.get(*n).is_some_and(|d| match &d.shape {
                        Shape::Everything => true,
                        Shape::Ranges(ranges) => ranges.len() == 1,
                        Shape::Nodes => false,
                    })
                });
            let next = self.filters.len();
            let class = if plain { *known.entry(names).or_insert(next) } else { next };
            if class == next {
                self.filters.push(OnceLock::new());
                self.shared.push(plain);
            }
            self.class.push(class);
        }
    }

    /// A node's packet filter; empty for a node that is not of this world.
    pub(super) fn filter_rules(&self, node: NodeId) -> Arc<[FilterRule]> {
        let Some(at) = self.ground.index.get(&node).copied() else {
            return Arc::from([]);
        };
        let class = self.class.get(at).copied().unwrap_or(usize::MAX);
        let cell = self.filters.get(class);
        if let Some(rules) = cell.and_then(OnceLock::get) {
            return rules.clone();
        }
        let rules: Arc<[FilterRule]> = self.build(at).into();
        let size: usize = rules.iter().map(|r| r.src_ips.len() + r.dst_ports.len()).sum();
        let shared = self.shared.get(class).copied().unwrap_or(false);
        if (shared || size <= KEEP_STRINGS)
            && let Some(cell) = cell
        {
            return cell.get_or_init(|| rules).clone();
        }
        rules
    }

    fn build(&self, at: usize) -> Vec<FilterRule> {
        let Some(node) = self.ground.nodes.get(at) else {
            return Vec::new();
        };
        // Parts of global rules that concern the node, in order of rule and destination.
        let mut wanted: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for dst in self.kept.get(at).into_iter().flatten() {
            for (unit, part) in self.uses.get(*dst).into_iter().flatten() {
                wanted.entry(*unit).or_default().push(*part);
            }
        }
        let own = node.user.map_or_else(Vec::new, |u| self.own_pieces(u, node));
        // An own part that comes before the global rule it is joined to moves that rule up.
        let mut moved: HashMap<usize, usize> = HashMap::new();
        for (_, lift) in &own {
            if let Some((from, to)) = *lift {
                moved.entry(from).or_insert(to);
            }
        }
        let mut pieces: Vec<Piece> = own.into_iter().map(|(piece, _)| piece).collect();
        for (number, mut parts) in wanted {
            parts.sort_unstable();
            let Some(unit) = self.units.get(number) else {
                continue;
            };
            let UnitKind::Global { source, parts: all } = &unit.kind else {
                continue;
            };
            let ports: Vec<NetPortRange> =
                parts.iter().filter_map(|p| all.get(*p)).flat_map(|p| self.entries(p, node)).collect();
            pieces.push(Piece {
                group: moved.get(&unit.group).copied().unwrap_or(unit.group),
                unit: number,
                strings: self.strings(*source),
                protocol: unit.protocol,
                ports,
            });
        }
        pieces.sort_by_key(|p| (p.group, p.unit));
        let mut out: Vec<FilterRule> = Vec::new();
        let mut last = None;
        for piece in pieces.into_iter().filter(|p| !p.ports.is_empty()) {
            match out.last_mut() {
                Some(rule) if last == Some(piece.group) => rule.dst_ports.extend(piece.ports),
                _ => out.push(FilterRule {
                    src_ips: piece.strings,
                    dst_ports: piece.ports,
                    ip_proto: piece.protocol.map(i32::from).into_iter().collect(),
                    cap_grant: Vec::new(),
                }),
            }
            last = Some(piece.group);
        }
        out
    }

    fn strings(&self, source: usize) -> Vec<String> {
        self.sources
            .get(source)
            .map_or_else(Vec::new, |s| s.strings.get_or_init(|| source_strings(&s.key, &self.ground)).clone())
    }

    /// Untagged nodes of `user` that a self rule's sources cover.
    fn own_members(&self, user: UserId, unit: &Unit) -> Bits {
        let mut members = Bits::default();
        for src in &unit.srcs {
            if let Some(src) = self.srcs.get(*src) {
                members.add(&src.members);
            }
        }
        match self.ground.by_user.get(&user) {
            Some(devices) => members.keep(devices),
            None => members = Bits::default(),
        }
        members
    }

    /// The `autogroup:self` parts for `node` (7). Beside each, when the part stands before a global
    /// rule it is joined to: that rule's group and the place it moves to.
    fn own_pieces(&self, user: UserId, node: &GroundNode) -> Vec<(Piece, Option<(usize, usize)>)> {
        let mut out = Vec::new();
        let mut groups: HashMap<(SourceKey, Option<u8>), usize> = HashMap::new();
        for at in &self.own_units {
            let Some(unit) = self.units.get(*at) else {
                continue;
            };
            let UnitKind::Own { ports } = &unit.kind else {
                continue;
            };
            let members = self.own_members(user, unit);
            if members.is_empty() {
                continue;
            }
            let key =
                SourceKey { danger: false, star: false, ranges: join(node_ranges(&members, &self.ground)) };
            let global =
                self.source_index.get(&key).and_then(|s| self.first.get(&(*s, unit.protocol))).copied();
            let strings = source_strings(&key, &self.ground);
            let group =
                *groups.entry((key, unit.protocol)).or_insert_with(|| global.map_or(*at, |g| g.min(*at)));
            let lift = global.filter(|g| *g > group).map(|g| (g, group));
            let ports = addressed(&own_texts(node), ports);
            out.push((Piece { group, unit: *at, strings, protocol: unit.protocol, ports }, lift));
        }
        out
    }

    /// Entries of one destination that `node` keeps (9.1).
    fn entries(&self, part: &Part, node: &GroundNode) -> Vec<NetPortRange> {
        let Some(dst) = self.dsts.get(part.dst) else {
            return Vec::new();
        };
        let texts = match &dst.shape {
            Shape::Everything => vec!["*".to_owned()],
            Shape::Nodes if node.routes_nodes => {
                let mut ranges: Vec<Range> = node_ranges(&dst.members, &self.ground);
                ranges.sort_unstable();
                let kept = ranges.into_iter().filter(|r| self.keeps(*r, node));
                kept.map(Range::text).collect()
            }
            Shape::Nodes => {
                let member = self.ground.index.get(&node.id);
                match member {
                    Some(at) if dst.members.get(*at) => own_texts(node).to_vec(),
                    _ => Vec::new(),
                }
            }
            Shape::Ranges(ranges) => {
                ranges.iter().filter(|(r, _)| self.keeps(*r, node)).map(|(_, text)| text.clone()).collect()
            }
        };
        addressed(&texts, &part.ports)
    }

    fn keeps(&self, range: Range, node: &GroundNode) -> bool {
        range.contains(node.v4)
            || range.contains(node.v6)
            || node.routes.iter().filter_map(|r| self.ground.route_range(*r)).any(|r| r.overlaps(range))
            || (!node.exits.is_empty() && super::ranges::internet().iter().any(|i| range.within(*i)))
    }
}

fn own_texts(node: &GroundNode) -> [String; 2] {
    [node.v4.to_string(), node.v6.to_string()]
}

/// Address-major, port-minor (6.3).
fn addressed(texts: &[String], ports: &[PortRange]) -> Vec<NetPortRange> {
    texts
        .iter()
        .flat_map(|ip| ports.iter().map(|ports| NetPortRange { ip: ip.clone(), ports: *ports }))
        .collect()
}
