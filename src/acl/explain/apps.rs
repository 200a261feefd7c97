//! Capabilities that come with a flow: what the receiver is told the source may do (SEMANTICS.md 8).

use std::collections::BTreeSet;

use crate::acl::plan::{Id, Kind, Shape};
use crate::acl::ranges::Range;

use super::AppGranted;
use super::chain::rule_of;
use super::flow::{End, Marks, Outcome, Scene};

/// Capabilities that the receiver is told the source has.
pub(super) fn apps(scene: &Scene<'_>, outcome: &Outcome) -> Vec<AppGranted> {
    let (None, Some(receiver)) = (outcome.block, outcome.receiver()) else {
        return Vec::new();
    };
    let marks = scene.marks(outcome.from);
    let mut units: BTreeSet<Id> = BTreeSet::new();
    let kept = scene.inner.nodes.get(receiver).map_or(&[][..], |n| &n.class.kept);
    for name in kept {
        for (number, _) in scene.inner.plan.uses.get(*name as usize).into_iter().flatten() {
            let Some(unit) = scene.unit(*number) else { continue };
            let on = marks.lists.get(unit.list as usize).copied().unwrap_or(0) & outcome.asked;
            if on != 0
                && matches!(unit.kind, Kind::App { .. })
                && granted(scene, *name, receiver, outcome.to) & on != 0
            {
                units.insert(*number);
            }
        }
    }
    if scene.one_person(outcome.from, outcome.to) {
        units.extend(own_apps(scene, &marks, outcome));
    }
    let mut out = Vec::new();
    for number in units {
        let Some(rule) = rule_of(scene, number) else { continue };
        let Some(Kind::App { caps, .. } | Kind::OwnApp { caps, .. }) = scene.unit(number).map(|u| &u.kind)
        else {
            continue;
        };
        for (name, values) in &**caps {
            let values = values.clone().unwrap_or_default();
            out.push(AppGranted { name: name.clone(), values, rule: rule.clone() });
        }
    }
    out
}

/// Units of `autogroup:self` that grant capabilities from one device of a person to another.
fn own_apps<'s>(
    scene: &'s Scene<'_>,
    marks: &'s Marks,
    outcome: &'s Outcome,
) -> impl Iterator<Item = Id> + 's {
    scene.inner.plan.own.iter().copied().filter(|number| {
        let Some(unit) = scene.unit(*number) else { return false };
        let from = marks.lists.get(unit.list as usize).is_some_and(|m| *m != 0);
        match unit.kind {
            Kind::OwnApp { companion: false, .. } => from,
            // The other way: towards those that are sources.
            Kind::OwnApp { companion: true, .. } => {
                let list = scene.inner.plan.lists.get(unit.list as usize).into_iter().flatten();
                list.into_iter().any(|name| scene.takes(*name, outcome.to) != 0)
            }
            _ => false,
        }
    })
}

/// Families in which a destination of capabilities means `to` at the receiver (SEMANTICS.md 8.1, 9.1).
fn granted(scene: &Scene<'_>, id: Id, receiver: usize, to: End) -> u8 {
    let (Some(name), Some(node)) = (scene.inner.plan.names.get(id as usize), scene.node(receiver)) else {
        return 0;
    };
    match to {
        End::Node(..) => scene.takes(id, to),
        End::Address(ip) => {
            let holds = match &name.shape {
                Shape::Ranges(ranges) => ranges.iter().any(|(r, _)| {
                    r.contains(ip) && scene.routed(*r, node) && scene.routed(Range::single(ip), node)
                }),
                _ => false,
            };
            if holds { scene.families(to) } else { 0 }
        }
    }
}
