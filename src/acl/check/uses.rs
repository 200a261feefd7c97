//! Every place of a policy where a name stands, and from that the names that stand nowhere.

use std::collections::BTreeSet;

use crate::acl::ast::{Alias, File, Span, Spanned};
use crate::acl::error::{Faults, Lines, quote};

/// Unused names of one section told one by one; more are told together.
const MAX_TOLD: usize = 5;

/// Calls `look` for every name of every rule, attribute and approval.
pub(super) fn each_alias<'f>(file: &'f File, look: &mut dyn FnMut(&'f Alias, Span)) {
    fn list<'f>(words: &'f [Spanned<Alias>], look: &mut dyn FnMut(&'f Alias, Span)) {
        words.iter().for_each(|w| look(&w.value, w.span));
    }
    for acl in file.acls.iter().flatten() {
        list(&acl.src, look);
        acl.dst.iter().for_each(|d| look(&d.value.alias, d.span));
    }
    for grant in file.grants.iter().flatten() {
        list(&grant.src, look);
        list(&grant.dst, look);
    }
    for rule in &file.ssh {
        list(&rule.src, look);
        list(&rule.dst, look);
        list(&rule.recorder, look);
    }
    file.node_attrs.iter().for_each(|a| list(&a.target, look));
    let approvers = &file.auto_approvers;
    approvers.routes.iter().for_each(|(_, who)| list(who, look));
    list(&approvers.exit_node, look);
    approvers.services.iter().for_each(|(_, who)| list(who, look));
    file.tag_owners.values().for_each(|owners| list(&owners.value, look));
    for entry in file.ipsets.values().flat_map(|s| &s.value) {
        look(&entry.target.value, entry.target.span);
    }
}

/// Names of the tests; a word that is none counts for nothing.
fn test_names(file: &File) -> Vec<Alias> {
    let mut out = Vec::new();
    for test in &file.tests {
        out.extend(test.src.iter().filter_map(|s| Alias::parse(&s.value).ok()));
        for word in test.accept.iter().chain(&test.deny) {
            let name = word.value.rsplit_once(':').map_or(word.value.as_str(), |(name, _)| name);
            out.extend(Alias::parse(name).ok());
        }
    }
    for test in &file.ssh_tests {
        out.extend(test.src.iter().chain(&test.dst).filter_map(|s| Alias::parse(&s.value).ok()));
    }
    out
}

/// The declared name behind an alias.
fn name_of(alias: &Alias) -> Option<&str> {
    match alias {
        Alias::Group(name) | Alias::Host(name) | Alias::IpSet(name) => Some(name),
        Alias::Tag(tag) => Some(tag.as_str()),
        _ => None,
    }
}

/// A declared name: its section, itself, its place.
pub(in crate::acl) type Declared<'f> = (&'static str, &'f str, Span);

/// Warns of names that stand nowhere.
pub(super) fn unused(file: &File, lines: &Lines, faults: &mut Faults) {
    let names = unused_names(file);
    for names in names.chunk_by(|a, b| a.0 == b.0) {
        let idle: Vec<(&str, Span)> = names.iter().map(|(_, name, span)| (*name, *span)).collect();
        tell(names.first().map_or("", |n| n.0), &idle, lines, faults);
    }
}

/// Names that stand nowhere, section by section.
pub(in crate::acl) fn unused_names(file: &File) -> Vec<Declared<'_>> {
    let tests = test_names(file);
    let mut used: BTreeSet<&str> = BTreeSet::new();
    each_alias(file, &mut |alias, _| used.extend(name_of(alias)));
    used.extend(tests.iter().filter_map(name_of));
    let grants = || file.grants.iter().flatten();
    used.extend(grants().flat_map(|g| &g.via).map(|t| t.value.as_str()));
    used.extend(file.auto_approvers.services.iter().map(|(name, _)| name.value.as_str()));
    let lists = file
        .acls
        .iter()
        .flatten()
        .map(|a| &a.posture)
        .chain(grants().map(|g| &g.posture))
        .chain(file.ssh.iter().map(|r| &r.posture));
    used.extend(lists.flatten().flatten().chain(&file.default_src_posture).map(|p| p.value.as_str()));
    let groups = file.groups.iter().map(|(n, v)| ("groups", n.as_str(), v.span));
    let hosts = file.hosts.iter().map(|(n, v)| ("hosts", n.as_str(), v.span));
    let ipsets = file.ipsets.iter().map(|(n, v)| ("ipsets", n.as_str(), v.span));
    let tags = file.tag_owners.iter().map(|(n, v)| ("tagOwners", n.as_str(), v.span));
    let postures = file.postures.iter().map(|(n, v)| ("postures", n.as_str(), v.span));
    let all = groups.chain(hosts).chain(ipsets).chain(tags).chain(postures);
    all.filter(|(_, name, _)| !used.contains(name)).collect()
}

fn tell(section: &str, idle: &[(&str, Span)], lines: &Lines, faults: &mut Faults) {
    const HINT: &str = "remove it, or write the rule it was made for";
    if idle.len() <= MAX_TOLD {
        for (name, span) in idle {
            faults.add("unused", *span, format!("{} stands in no rule", quote(name)), HINT);
        }
        return;
    }
    let Some((_, span)) = idle.iter().min_by_key(|(_, span)| span.start) else {
        return;
    };
    let some: Vec<String> = idle
        .iter()
        .take(MAX_TOLD)
        .map(|(name, span)| format!("{} (line {})", quote(name), lines.place(span.start).0))
        .collect();
    let message = format!(
        "{} names of {section} stand in no rule: {} and {} more",
        idle.len(),
        some.join(", "),
        idle.len() - some.len()
    );
    faults.add("unused", *span, message, HINT);
}
