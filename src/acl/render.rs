//! What one node receives: its packet filter (SEMANTICS.md 6, 7, 8, 9.1). A node's rules are found through
//! the destination names it keeps entries of; the cost is its own rules, not all rules.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::keys::NodeId;
use crate::wire::{CapGrant, CapMap, FilterRule, NetPortRange, PortRange, SrcIps};

use super::ast::Alias;
use super::compile::{Class, Inner, OwnList};
use super::ground::GroundNode;
use super::plan::{Form, Id, Kind, Part, Shape, Unit};
use super::ranges::{Range, exit_routes, internet, star};

/// What one unit adds to a node's list.
struct Piece {
    unit: Id,
    /// What joins it with others; capabilities never join.
    key: Option<(u128, Option<u8>)>,
    strings: SrcIps,
    protocol: Option<u8>,
    ports: Vec<NetPortRange>,
    grants: Vec<CapGrant>,
}

impl Inner {
    /// A node's packet filter; empty for a node that is not of this world.
    pub(super) fn filter_rules(&self, node: NodeId) -> Arc<[FilterRule]> {
        let Some(at) = self.ground.index.get(&node).copied() else {
            return Arc::from([]);
        };
        let (Some(node), Some(names)) = (self.ground.nodes.get(at), self.nodes.get(at)) else {
            return Arc::from([]);
        };
        let own = node.user.is_some() && !self.plan.own.is_empty();
        if !names.class.plain || own || !node.routes.is_empty() || !node.exits.is_empty() {
            return self.build(node, at, &names.class).into();
        }
        // The address is that of the class, which the snapshot keeps alive.
        let key = Arc::as_ptr(&names.class).addr();
        if let Some(found) = self.found.shared.lock().get(&key) {
            return found.clone();
        }
        let rules: Arc<[FilterRule]> = self.build(node, at, &names.class).into();
        self.found.shared.lock().entry(key).or_insert(rules).clone()
    }

    fn build(&self, node: &GroundNode, at: usize, class: &Class) -> Vec<FilterRule> {
        let mut pieces = Vec::new();
        for (number, parts) in class.pieces.get_or_init(|| self.pieces(&class.kept)) {
            if let Some(unit) = self.plan.units.get(*number as usize) {
                pieces.extend(self.global(*number, unit, parts, node, at));
            }
        }
        if let Some(user) = node.user {
            let own = self.own(user);
            pieces.extend(own.rows.iter().map(|row| Piece {
                unit: row.unit,
                key: Some((row.list.key, row.protocol)),
                strings: row.list.strings.clone(),
                protocol: row.protocol,
                ports: addressed(&node.texts, &row.ports),
                grants: Vec::new(),
            }));
            for (number, list) in &own.apps {
                if let Some(unit) = self.plan.units.get(*number as usize) {
                    pieces.extend(self.own_app(*number, unit, list, node, at));
                }
            }
        }
        self.join(pieces)
    }

    /// Units and parts that a node with these destination names has to do with.
    fn pieces(&self, kept: &[Id]) -> Vec<(Id, Vec<Id>)> {
        let mut wanted: BTreeMap<Id, Vec<Id>> = BTreeMap::new();
        for name in kept {
            for (unit, part) in self.plan.uses.get(*name as usize).into_iter().flatten() {
                wanted.entry(*unit).or_default().push(*part);
            }
        }
        let mut out: Vec<(Id, Vec<Id>)> = wanted.into_iter().collect();
        for (_, parts) in &mut out {
            parts.sort_unstable();
            parts.dedup();
        }
        out
    }

    fn global(&self, number: Id, unit: &Unit, parts: &[Id], node: &GroundNode, at: usize) -> Option<Piece> {
        let list = self.lists.get(unit.list as usize)?;
        let piece = |key, ports, grants| {
            let strings = self.strings(unit.list);
            Some(Piece { unit: number, key, strings, protocol: unit.protocol, ports, grants })
        };
        match &unit.kind {
            Kind::Ports(all) | Kind::ViaPorts(all) if !list.empty => {
                let mine = parts.iter().filter_map(|p| all.get(*p as usize));
                let ports: Vec<NetPortRange> = mine.flat_map(|p| self.entries(p, node, at)).collect();
                if ports.is_empty() {
                    None
                } else {
                    piece(Some((list.key, unit.protocol)), ports, Vec::new())
                }
            }
            // An empty list of sources is sent as one (6.1), that of a companion too.
            Kind::App { elements, caps, .. } => {
                let mine = parts.iter().filter_map(|p| elements.get(*p as usize));
                let grants: Vec<CapGrant> = mine
                    .filter_map(|names| {
                        let mut dsts: Vec<IpNet> =
                            names.iter().flat_map(|n| self.targets(*n, node, at)).collect();
                        dsts.sort_unstable_by_key(|d| (d.addr(), d.prefix_len()));
                        dsts.dedup();
                        grant(dsts, caps)
                    })
                    .collect();
                if grants.is_empty() { None } else { piece(None, Vec::new(), grants) }
            }
            _ => None,
        }
    }

    /// The capabilities that a unit of `autogroup:self` gives at `node` (7).
    fn own_app(
        &self,
        number: Id,
        unit: &Unit,
        list: &OwnList,
        node: &GroundNode,
        at: usize,
    ) -> Option<Piece> {
        let (caps, strings) = match &unit.kind {
            Kind::OwnApp { caps, companion: false } => (caps, list.strings.clone()),
            // The other way: from all the user's devices to those that are sources.
            Kind::OwnApp { caps, companion: true } if list.members.get(at) => (caps, self.own_devices(node)),
            _ => return None,
        };
        Some(Piece {
            unit: number,
            key: None,
            strings,
            protocol: unit.protocol,
            ports: Vec::new(),
            grants: grant(own_nets(node).to_vec(), caps).into_iter().collect(),
        })
    }

    /// Joins pieces of one key (6.7): the first place in the list of all rules counts, whether or not the
    /// node has an entry there.
    fn join(&self, pieces: Vec<Piece>) -> Vec<FilterRule> {
        let first = &self.merge().first;
        let mut groups: HashMap<(u128, Option<u8>), Id> = HashMap::new();
        for piece in &pieces {
            if let Some(key) = piece.key {
                let global = first.get(&key).copied().unwrap_or(Id::MAX);
                let group = groups.entry(key).or_insert(global);
                *group = (*group).min(piece.unit);
            }
        }
        let group = |p: &Piece| p.key.and_then(|k| groups.get(&k).copied()).unwrap_or(p.unit);
        let mut ordered: Vec<((Id, Id), Piece)> =
            pieces.into_iter().map(|p| ((group(&p), p.unit), p)).collect();
        ordered.sort_by_key(|(place, _)| *place);
        let mut out: Vec<FilterRule> = Vec::with_capacity(ordered.len());
        let mut last = None;
        for ((group, _), piece) in ordered {
            match out.last_mut() {
                Some(rule) if piece.key.is_some() && last == Some((group, piece.key)) => {
                    rule.dst_ports.extend(piece.ports);
                }
                _ => out.push(FilterRule {
                    src_ips: piece.strings,
                    dst_ports: piece.ports,
                    ip_proto: piece.protocol.map(i32::from).into_iter().collect(),
                    cap_grant: piece.grants,
                }),
            }
            last = Some((group, piece.key));
        }
        out
    }

    fn own_devices(&self, node: &GroundNode) -> SrcIps {
        let devices = node.user.and_then(|u| self.ground.by_user.get(&u));
        let devices = devices.into_iter().flat_map(|d| d.iter()).filter_map(|at| self.ground.nodes.get(at));
        let mut texts: Vec<Arc<str>> = devices.flat_map(|n| n.texts.clone()).collect();
        texts.sort_unstable();
        texts.into_iter().collect()
    }

    /// Entries of one destination that `node` keeps (9.1).
    fn entries(&self, part: &Part, node: &GroundNode, at: usize) -> Vec<NetPortRange> {
        let place = part.name as usize;
        let (Some(name), Some(state)) = (self.plan.names.get(place), self.names.get(place)) else {
            return Vec::new();
        };
        let texts: Vec<Arc<str>> = match &name.shape {
            Shape::Everything | Shape::Star { .. } => vec![Arc::from("*")],
            // A route that covers addresses of other nodes keeps their entries too.
            Shape::Nodes if self.ground.odd() && !node.routes.is_empty() => {
                let nodes = state.families[0].iter().filter_map(|at| self.ground.nodes.get(at));
                let mut own: Vec<(Range, Arc<str>)> = nodes
                    .flat_map(|n| {
                        let [v4, v6] = n.texts.clone();
                        [(Range::single(n.v4), v4), (Range::single(n.v6), v6)]
                    })
                    .filter(|(range, _)| self.keeps(*range, node))
                    .collect();
                own.sort_unstable();
                own.into_iter().map(|(_, text)| text).collect()
            }
            Shape::Nodes if state.families[0].get(at) => node.texts.to_vec(),
            Shape::Nodes => Vec::new(),
            Shape::Ranges(ranges) => {
                let kept = ranges.iter().filter(|(range, _)| match name.form {
                    Form::Via(_) if name.alias == Alias::Internet => !node.exits.is_empty(),
                    Form::Via(_) => self.routed(*range, node),
                    _ => self.keeps(*range, node),
                });
                kept.map(|(_, text)| text.clone()).collect()
            }
        };
        addressed(&texts, &part.ports)
    }

    /// Destinations of capabilities that `node` keeps (9.1).
    fn targets(&self, name: Id, node: &GroundNode, at: usize) -> Vec<IpNet> {
        let (Some(name), Some(state)) = (self.plan.names.get(name as usize), self.names.get(name as usize))
        else {
            return Vec::new();
        };
        let mut out: Vec<IpNet> = Vec::new();
        for (family, ip) in state.families.iter().zip([node.v4, node.v6]) {
            if family.get(at) {
                out.push(ip.into());
            }
        }
        let mut wider = |ranges: &mut dyn Iterator<Item = Range>| {
            let ranges = ranges.filter(|r| self.routed(*r, node));
            out.extend(ranges.flat_map(Range::prefixes).filter(|net| self.routed((*net).into(), node)));
        };
        match &name.shape {
            Shape::Ranges(ranges) => wider(&mut ranges.iter().map(|(r, _)| *r)),
            Shape::Star { .. } => wider(&mut star().into_iter()),
            // Whom `autogroup:danger-all` makes sources, a companion goes back to (8.2).
            Shape::Everything => wider(&mut exit_routes().map(Range::from).into_iter()),
            Shape::Nodes if self.ground.odd() && !node.routes.is_empty() => {
                let nodes: Vec<IpAddr> = state.families[0]
                    .iter()
                    .filter_map(|at| self.ground.nodes.get(at))
                    .flat_map(|n| [n.v4, n.v6])
                    .collect();
                wider(&mut nodes.into_iter().map(Range::single));
            }
            Shape::Nodes => {}
        }
        out
    }

    fn routed(&self, range: Range, node: &GroundNode) -> bool {
        node.routes.iter().filter_map(|r| self.ground.routes.get(*r)).any(|r| r.range.overlaps(range))
    }

    pub(super) fn keeps(&self, range: Range, node: &GroundNode) -> bool {
        range.contains(node.v4)
            || range.contains(node.v6)
            || self.routed(range, node)
            || (!node.exits.is_empty() && internet().iter().any(|i| range.within(*i)))
    }
}

fn own_nets(node: &GroundNode) -> [IpNet; 2] {
    [node.v4.into(), node.v6.into()]
}

fn grant(dsts: Vec<IpNet>, caps: &Arc<CapMap>) -> Option<CapGrant> {
    let cap_map = CapMap::clone(caps);
    (!dsts.is_empty()).then(|| CapGrant { dsts, cap_map, ..CapGrant::default() })
}

/// Address-major, port-minor (6.3).
fn addressed(texts: &[Arc<str>], ports: &[PortRange]) -> Vec<NetPortRange> {
    texts
        .iter()
        .flat_map(|ip| ports.iter().map(|ports| NetPortRange { ip: ip.clone(), ports: *ports }))
        .collect()
}
