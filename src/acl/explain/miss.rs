//! The nearest misses of a refused flow: rules that would let it through if one thing were different.
//! Rules are weighed by numbers; words are made for the few that are told.

use std::collections::HashSet;

use crate::acl::ast::Alias;
use crate::acl::plan::{Form, Id, Kind, Part, Shape};
use crate::acl::ports::{self, Ports};
use crate::wire::PortRange;

use super::Miss;
use super::chain::{Words, condition_words, rule_of};
use super::flow::{Block, End, Hit, Marks, Outcome, Scene, What};

/// At most so many are told.
const MOST: usize = 5;

/// What one thing is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Ports { part: Id },
    Posture,
    Router { name: Id },
    Source { part: Id },
    Dest,
    Person,
}

/// A rule that is near: the lower, the nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Near {
    rank: u32,
    unit: Id,
    thing: Thing,
}

/// The nearest misses of `outcome`.
pub(super) fn misses(scene: &Scene<'_>, outcome: &Outcome, what: What) -> Vec<Miss> {
    let words = Words { scene };
    let mut out = unapproved(scene, outcome);
    if let Some(Block::Same | Block::Local(_) | Block::Gone | Block::Families | Block::NoSource(_)) =
        outcome.block
    {
        return out;
    }
    let mut near = Search { scene, outcome, what, marks: scene.marks(outcome.from), near: Vec::new() }.run();
    near.sort_unstable();
    let mut told = HashSet::new();
    for near in near {
        if out.len() >= MOST {
            break;
        }
        let Some(unit) = scene.unit(near.unit) else { continue };
        if !told.insert((unit.section, unit.index)) {
            continue;
        }
        if let Some(change) = words.change(outcome, what, near) {
            out.push(Miss { rule: rule_of(scene, near.unit), change });
        }
    }
    out
}

/// Routes that are offered, would carry it, and await approval.
fn unapproved(scene: &Scene<'_>, outcome: &Outcome) -> Vec<Miss> {
    let (what, ip) = match (outcome.block, outcome.to) {
        (Some(Block::NoSource(ip)), _) => ("behind", ip),
        (Some(Block::NoWay(_)), End::Address(ip)) => ("to", ip),
        _ => return Vec::new(),
    };
    let mut out = Vec::new();
    for (node, routes) in &scene.facts.unapproved {
        let name = scene.inner.ground.index.get(node).and_then(|at| scene.node(*at)).map(|n| &n.node.name);
        for route in routes.iter().filter(|r| r.contains(&ip)) {
            if let Some(name) = name
                && out.len() < MOST
            {
                let change = format!(
                    "Approve the route {route}, which {name} offers: it leads {what} {ip} and is not approved."
                );
                out.push(Miss { rule: None, change });
            }
        }
    }
    out
}

struct Search<'s, 'a> {
    scene: &'s Scene<'a>,
    outcome: &'s Outcome,
    what: What,
    marks: Marks,
    near: Vec<Near>,
}

impl Search<'_, '_> {
    fn run(mut self) -> Vec<Near> {
        let holes = self.holes();
        let reached = match self.outcome.receiver() {
            Some(receiver) => self.at_receiver(receiver, &holes),
            None => vec![false; self.scene.inner.plan.units.len()],
        };
        if self.outcome.receiver().is_some() {
            self.elsewhere(&reached);
            self.own(&holes);
        }
        self.near
    }

    fn on(&self, list: Id) -> bool {
        self.marks.lists.get(list as usize).is_some_and(|mask| mask & self.outcome.asked != 0)
    }

    /// Lists on which only the posture keeps the source from being.
    fn holes(&self) -> Vec<bool> {
        let plan = &self.scene.inner.plan;
        let mut lists = vec![false; plan.lists.len()];
        let End::Node(at, _) = self.outcome.from else {
            return lists;
        };
        for ((id, name), state) in (0..).zip(&plan.names).zip(&self.scene.inner.names) {
            if !matches!(name.form, Form::Source(posture) if posture > 0) || !state.holes.get(at) {
                continue;
            }
            let id: Id = id;
            for list in plan.lists_of.get(id as usize).into_iter().flatten() {
                if let Some(slot) = lists.get_mut(*list as usize) {
                    *slot = true;
                }
            }
        }
        lists
    }

    /// Rules whose destination is right. Answers which units these are.
    fn at_receiver(&mut self, receiver: usize, holes: &[bool]) -> Vec<bool> {
        let (scene, outcome) = (self.scene, self.outcome);
        let mut reached = vec![false; scene.inner.plan.units.len()];
        let kept = scene.inner.nodes.get(receiver).map_or(&[][..], |n| &n.class.kept);
        for name in kept {
            if scene.gets(*name, receiver, outcome.to) & outcome.asked == 0 {
                continue;
            }
            // A rule for this very destination is nearer than one for everything.
            let broad =
                scene.inner.plan.names.get(*name as usize).is_some_and(|n| n.shape == Shape::Everything);
            for (number, part) in scene.inner.plan.uses.get(*name as usize).into_iter().flatten() {
                let Some(unit) = scene.unit(*number) else { continue };
                let (Kind::Ports(parts) | Kind::ViaPorts(parts)) = &unit.kind else { continue };
                if let Some(slot) = reached.get_mut(*number as usize) {
                    *slot = true;
                }
                let Some(Part { ports, .. }) = parts.get(*part as usize) else { continue };
                let passes = self.what.passes(unit.protocol, ports);
                let rank = |base: u32| base * 10 + u32::from(broad);
                if self.on(unit.list) {
                    if !passes {
                        self.near.push(Near {
                            rank: rank(0),
                            unit: *number,
                            thing: Thing::Ports { part: *part },
                        });
                    }
                } else if passes {
                    let hole = holes.get(unit.list as usize).is_some_and(|h| *h);
                    let near = if hole {
                        Near { rank: rank(1), unit: *number, thing: Thing::Posture }
                    } else {
                        let base = 2 + self.distance(unit.list);
                        Near { rank: rank(base), unit: *number, thing: Thing::Source { part: *part } }
                    };
                    self.near.push(near);
                }
            }
        }
        reached
    }

    /// How far the source is from a list: 0 when a group or tag would bring it in, else 1.
    fn distance(&self, list: Id) -> u32 {
        let End::Node(at, _) = self.outcome.from else {
            return 1;
        };
        let person = self.scene.node(at).is_some_and(|n| n.user.is_some());
        let names = self.scene.inner.plan.lists.get(list as usize).into_iter().flatten();
        let mut aliases =
            names.filter_map(|n| self.scene.inner.plan.names.get(*n as usize)).map(|n| &n.alias);
        let joins = aliases.any(|alias| match alias {
            Alias::Group(_) => person,
            Alias::Tag(_) => !person,
            _ => false,
        });
        u32::from(!joins)
    }

    /// Rules that take the source and lead elsewhere.
    fn elsewhere(&mut self, reached: &[bool]) {
        for (number, unit) in (0..).zip(&self.scene.inner.plan.units) {
            let number: Id = number;
            let (Kind::Ports(parts) | Kind::ViaPorts(parts)) = &unit.kind else { continue };
            if !self.on(unit.list) || reached.get(number as usize).is_some_and(|r| *r) {
                continue;
            }
            if !parts.iter().any(|p| self.what.passes(unit.protocol, &p.ports)) {
                continue;
            }
            let thing = match (&unit.kind, self.outcome.to) {
                (Kind::ViaPorts(_), End::Address(ip)) => {
                    let holds = |p: &&Part| match self
                        .scene
                        .inner
                        .plan
                        .names
                        .get(p.name as usize)
                        .map(|n| &n.shape)
                    {
                        Some(Shape::Ranges(ranges)) => ranges.iter().any(|(r, _)| r.contains(ip)),
                        _ => false,
                    };
                    match parts.iter().find(holds) {
                        Some(part) => Thing::Router { name: part.name },
                        None => Thing::Dest,
                    }
                }
                // What goes through routers is never a node's own.
                (Kind::ViaPorts(_), _) => continue,
                _ => Thing::Dest,
            };
            let rank = if matches!(thing, Thing::Router { .. }) { 10 } else { 40 };
            self.near.push(Near { rank, unit: number, thing });
        }
    }

    /// Rules for a person's own devices.
    fn own(&mut self, holes: &[bool]) {
        let (End::Node(..), End::Node(..)) = (self.outcome.from, self.outcome.to) else {
            return;
        };
        let same = self.scene.one_person(self.outcome.from, self.outcome.to);
        for number in &self.scene.inner.plan.own {
            let Some(unit) = self.scene.unit(*number) else { continue };
            let Kind::OwnPorts(ports) = &unit.kind else { continue };
            let passes = self.what.passes(unit.protocol, ports);
            let on = self.marks.lists.get(unit.list as usize).is_some_and(|m| *m != 0);
            let hole = holes.get(unit.list as usize).is_some_and(|h| *h);
            let near = match (same, on, passes) {
                (true, true, false) => Near { rank: 0, unit: *number, thing: Thing::Ports { part: 0 } },
                (true, false, true) if hole => Near { rank: 10, unit: *number, thing: Thing::Posture },
                (true, false, true) => {
                    let rank = 10 * (2 + self.distance(unit.list));
                    Near { rank, unit: *number, thing: Thing::Source { part: 0 } }
                }
                (false, true, true) => Near { rank: 45, unit: *number, thing: Thing::Person },
                _ => continue,
            };
            self.near.push(near);
        }
    }
}

impl Words<'_, '_> {
    /// What would have to change, in one sentence.
    fn change(&self, outcome: &Outcome, what: What, near: Near) -> Option<String> {
        let scene = self.scene;
        let unit = scene.unit(near.unit)?;
        let from = self.end(outcome.from);
        Some(match near.thing {
            Thing::Ports { part } => {
                let hit = Hit { unit: near.unit, part, mask: 3, dst: None };
                let open = ports_words(unit.protocol, scene.ports(&hit));
                format!("The rule opens only {open}: it would have to open {} too.", asked_words(what))
            }
            Thing::Posture => {
                let reasons = self.failing(outcome.from, unit.list);
                format!("{from} does not meet the rule's device posture: {reasons}.")
            }
            Thing::Router { name } => {
                let name = scene.inner.plan.names.get(name as usize)?;
                let Form::Via(via) = name.form else { return None };
                let tags: Vec<&str> =
                    scene.inner.plan.vias.get(via as usize)?.iter().map(crate::model::Tag::as_str).collect();
                let routers = tags.join(" or ");
                format!(
                    "The rule goes only through routers with {routers}: none of them carries this address for {from} now."
                )
            }
            Thing::Source { .. } => self.join(outcome.from, unit.list),
            Thing::Dest => {
                let to = self.end(outcome.to);
                let named = self.handle(outcome.to);
                if named == to {
                    format!(
                        "The rule takes {from} and leads elsewhere: {named} would have to be among its destinations."
                    )
                } else {
                    format!(
                        "The rule takes {from} and leads elsewhere: {named} (which means {to}) would have to be among its destinations."
                    )
                }
            }
            Thing::Person => format!(
                "The rule opens people's own devices to themselves: {from} and {} would have to belong to the same person.",
                self.end(outcome.to)
            ),
        })
    }

    /// How the source would come onto a list.
    fn join(&self, from: End, list: Id) -> String {
        let names = self.scene.inner.plan.lists.get(list as usize).into_iter().flatten();
        let aliases: Vec<&Alias> =
            names.filter_map(|n| self.scene.inner.plan.names.get(*n as usize)).map(|n| &n.alias).collect();
        let handle = self.handle(from);
        let person =
            matches!(from, End::Node(at, _) if self.scene.node(at).is_some_and(|n| n.user.is_some()));
        let group = aliases.iter().find(|a| matches!(a, Alias::Group(_)));
        let tag = aliases.iter().find(|a| matches!(a, Alias::Tag(_)));
        match (person, group, tag, from) {
            (true, Some(group), _, _) => {
                format!("{handle} would have to be in {group}, or among the rule's sources.")
            }
            (false, _, Some(tag), End::Node(..)) => {
                format!(
                    "{} would have to carry {tag}, or {handle} be among the rule's sources.",
                    self.end(from)
                )
            }
            _ => format!("{handle} would have to be among the rule's sources."),
        }
    }

    /// Which conditions of a list's posture fail, with what is known.
    fn failing(&self, from: End, list: Id) -> String {
        let reasons = || {
            let End::Node(at, _) = from else { return None };
            let node = self.scene.node(at)?;
            let name = *self.scene.inner.plan.lists.get(list as usize)?.first()?;
            let Form::Source(posture) = self.scene.inner.plan.names.get(name as usize)?.form else {
                return None;
            };
            let wanted = self.scene.inner.plan.postures.get(posture as usize)?.as_ref()?;
            let mut out = Vec::new();
            for name in wanted {
                let conditions = self.scene.inner.file.postures.get(&name.value)?;
                for condition in &conditions.value {
                    let (holds, words) = condition_words(&condition.value, &node.node.attributes);
                    if !holds {
                        out.push(format!("{} wants {words}", name.value));
                    }
                }
            }
            Some(out.join("; "))
        };
        reasons().unwrap_or_default()
    }
}

/// A rule's ports in words.
fn ports_words(protocol: Option<u8>, ranges: &[PortRange]) -> String {
    let mut open = Ports::new();
    ports::grant(&mut open, protocol, ranges);
    open.values_mut().for_each(ports::joined);
    ports::ports_in_words(&open)
}

/// What was asked, in words: `tcp 443`, `icmp`, `anything`.
pub(super) fn asked_words(what: What) -> String {
    use crate::acl::alias::protocol_name;
    match (what.protocol, what.port) {
        (Some(protocol), Some(port)) => format!("{} {port}", protocol_name(protocol)),
        (Some(protocol), None) => protocol_name(protocol),
        (None, Some(port)) => format!("port {port}"),
        (None, None) => "anything".to_owned(),
    }
}
