//! Rules that allow nothing an earlier rule does not allow already. Bounded: an earlier rule is found by
//! one of its first pairs of source and destination, and the comparisons of one file are counted.

use std::collections::HashMap;

use crate::acl::ast::{Alias, File, Span, Spanned};
use crate::acl::error::{Faults, Lines};
use crate::wire::PortRange;

/// Pairs of a rule it is found by.
const MAX_PAIRS: usize = 64;
/// Rules remembered for one pair.
const MAX_SAME: usize = 16;
/// Pairs remembered in all.
const MAX_INDEX: usize = 1_000_000;
/// Comparisons of names in all.
const MAX_STEPS: usize = 4_000_000;

/// A rule's part that opens ports.
struct Flat<'f> {
    span: Span,
    src: &'f [Spanned<Alias>],
    dst: Vec<Part<'f>>,
    posture: &'f [Spanned<String>],
    /// Grants through routers cover nothing; those with capabilities are no mere copies.
    covers: bool,
    copy: bool,
}

/// One destination with its ports.
struct Part<'f> {
    alias: &'f Alias,
    protocol: Option<u8>,
    ports: &'f [PortRange],
}

/// Notes rules that say nothing new.
pub(super) fn shadowed(file: &File, lines: &Lines, faults: &mut Faults) {
    let rules = flat(file);
    let mut index: HashMap<(&Alias, &Alias), Vec<usize>> = HashMap::new();
    let mut indexed = 0usize;
    let mut steps = 0usize;
    for (at, rule) in rules.iter().enumerate() {
        if steps > MAX_STEPS || faults.is_full() {
            return;
        }
        let (Some(src), Some(dst)) = (rule.src.first(), rule.dst.first()) else {
            continue;
        };
        let earlier = rule.copy.then(|| {
            let mut wide = [&src.value, &Alias::Any, &Alias::DangerAll, &Alias::Member]
                .into_iter()
                .flat_map(|s| [dst.alias, &Alias::Any, &Alias::Member].map(|d| (s, d)));
            wide.find_map(|pair| {
                let found = index.get(&pair)?;
                found.iter().filter_map(|i| rules.get(*i)).find(|e| covers(e, rule, &mut steps))
            })
        });
        if let Some(earlier) = earlier.flatten() {
            let line = lines.place(earlier.span.start).0;
            faults.add(
                "shadowed",
                rule.span,
                format!("this rule allows nothing that the one in line {line} does not allow already"),
                "remove it, or narrow the other",
            );
            continue;
        }
        if !rule.covers || indexed >= MAX_INDEX {
            continue;
        }
        let pairs = rule.src.iter().flat_map(|s| rule.dst.iter().map(|d| (&s.value, d.alias)));
        for pair in pairs.take(MAX_PAIRS) {
            let same = index.entry(pair).or_default();
            if same.len() < MAX_SAME && same.last() != Some(&at) {
                same.push(at);
                indexed += 1;
            }
        }
    }
}

/// All rules that open ports, in order of their place.
fn flat(file: &File) -> Vec<Flat<'_>> {
    let mut out = Vec::new();
    for acl in file.acls.iter().flatten() {
        out.push(Flat {
            span: acl.span,
            src: &acl.src,
            dst: acl
                .dst
                .iter()
                .map(|d| Part { alias: &d.value.alias, protocol: acl.protocol, ports: &d.value.ports })
                .collect(),
            posture: acl.posture.as_deref().unwrap_or(&file.default_src_posture),
            covers: true,
            copy: true,
        });
    }
    for grant in file.grants.iter().flatten() {
        let parts = grant.dst.iter().flat_map(|d| {
            grant.ip.iter().map(|ip| Part { alias: &d.value, protocol: ip.protocol, ports: &ip.ports })
        });
        out.push(Flat {
            span: grant.span,
            src: &grant.src,
            dst: parts.collect(),
            posture: grant.posture.as_deref().unwrap_or(&file.default_src_posture),
            covers: grant.via.is_empty(),
            copy: grant.via.is_empty() && grant.app.is_empty(),
        });
    }
    out.sort_by_key(|r| r.span.start);
    out
}

/// Whether `wide` allows all that `narrow` allows.
fn covers(wide: &Flat<'_>, narrow: &Flat<'_>, steps: &mut usize) -> bool {
    let same_posture = wide.posture.is_empty()
        || (wide.posture.len() == narrow.posture.len()
            && wide.posture.iter().zip(narrow.posture).all(|(a, b)| a.value == b.value));
    same_posture
        && narrow.src.iter().all(|n| {
            wide.src.iter().any(|w| {
                *steps += 1;
                *steps < MAX_STEPS && source_covers(&w.value, &n.value)
            })
        })
        && narrow.dst.iter().all(|n| {
            wide.dst.iter().any(|w| {
                *steps += 1;
                *steps < MAX_STEPS && part_covers(w, n)
            })
        })
}

fn source_covers(wide: &Alias, narrow: &Alias) -> bool {
    match (wide, narrow) {
        // `*` is the tailnet; a written address may lie outside of it.
        (Alias::Any, Alias::Prefix(_) | Alias::Range(..) | Alias::Host(_) | Alias::IpSet(_)) => false,
        (Alias::Any, other) => *other != Alias::DangerAll,
        (Alias::DangerAll, _) => true,
        _ => alias_covers(wide, narrow),
    }
}

fn part_covers(wide: &Part<'_>, narrow: &Part<'_>) -> bool {
    let protocol = wide.protocol == narrow.protocol
        || (wide.protocol.is_none() && matches!(narrow.protocol, Some(1 | 6 | 17 | 58)));
    protocol
        && (*wide.alias == Alias::Any || alias_covers(wide.alias, narrow.alias))
        && narrow.ports.iter().all(|n| wide.ports.iter().any(|w| w.first <= n.first && n.last <= w.last))
}

fn alias_covers(wide: &Alias, narrow: &Alias) -> bool {
    match (wide, narrow) {
        (Alias::Prefix(wide), Alias::Prefix(narrow)) => wide.contains(narrow),
        (Alias::Member, Alias::User(_) | Alias::Domain(_) | Alias::Group(_) | Alias::Role(_)) => true,
        _ => wide == narrow,
    }
}
