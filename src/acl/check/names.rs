//! Names nobody declares, and the sections that name names: `tagOwners`, `ipsets`, lists of postures.

use std::collections::BTreeMap;

use crate::acl::ast::{Alias, File, Span, Spanned};
use crate::acl::error::{Faults, did_you_mean, quote};
use crate::model::Tag;

/// Sets inside of sets, at most so deep.
const MAX_DEPTH: usize = 32;
/// One set may hold so many entries, those of its inner sets counted.
const MAX_ENTRIES: usize = 1_000_000;

/// Where an undeclared name stands; decides its text (SEMANTICS.md 13).
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    /// Source of a rule.
    Source,
    /// Destination of a rule.
    Destination,
    /// Anywhere else, in words.
    Other(&'a str),
}

impl Place<'_> {
    fn words(&self) -> &str {
        match self {
            Self::Source => "src",
            Self::Destination => "dst",
            Self::Other(words) => words,
        }
    }
}

/// Tells of a name that nobody declares; true when it is declared, or needs no declaration.
pub(super) fn known(file: &File, alias: &Alias, place: Place<'_>, span: Span, faults: &mut Faults) {
    let (code, message, hint) = match alias {
        Alias::Tag(tag) if !file.tag_owners.contains_key(tag) => {
            let name = quote(tag.as_str());
            let message = match place {
                Place::Source => format!("src=tag not found: {name}"),
                Place::Destination => format!("dst={name}: tag not found: {name}"),
                Place::Other(words) => format!("{words}: tag not found: {name}"),
            };
            ("unknown-tag", message, tag_hint(file, tag, faults))
        }
        Alias::Group(name) if !file.groups.contains_key(name) => {
            let message = format!("{}: group not defined in policy: {}", place.words(), quote(name));
            let near = faults.suggest(name, file.groups.keys().map(String::as_str));
            ("unknown-group", message, did_you_mean(near, &format!("add {name} to \"groups\"")))
        }
        Alias::Host(name) if !file.hosts.contains_key(name) => {
            let message = format!("{}: host not defined in policy: {}", place.words(), quote(name));
            ("unknown-host", message, host_hint(file, name, faults))
        }
        Alias::IpSet(name) if !file.ipsets.contains_key(name) => {
            let message = format!("{}: IP set not defined in policy: {}", place.words(), quote(name));
            let near = faults.suggest(name, file.ipsets.keys().map(String::as_str));
            ("unknown-ipset", message, did_you_mean(near, &format!("add {name} to \"ipsets\"")))
        }
        _ => return,
    };
    faults.add(code, span, message, hint);
}

pub(super) fn tag_hint(file: &File, tag: &Tag, faults: &Faults) -> String {
    let near = faults.suggest(tag.as_str(), file.tag_owners.keys().map(Tag::as_str));
    format!("{tag} is declared by nobody; {}", did_you_mean(near, "add it to \"tagOwners\""))
}

/// A word without a prefix is taken for a host: often the prefix was forgotten.
pub(super) fn host_hint(file: &File, name: &str, faults: &Faults) -> String {
    let with = |prefix: &str| format!("{prefix}{name}");
    if file.groups.contains_key(&with("group:")) {
        return format!("did you mean group:{name}?");
    }
    if Tag::parse(&with("tag:")).is_ok_and(|tag| file.tag_owners.contains_key(&tag)) {
        return format!("did you mean tag:{name}?");
    }
    if matches!(
        Alias::parse(&with("autogroup:")),
        Ok(Alias::Member | Alias::Tagged | Alias::Own | Alias::Role(_))
    ) {
        return format!("did you mean autogroup:{name}?");
    }
    let near = faults.suggest(name, file.hosts.keys().map(String::as_str));
    let otherwise = format!(
        "add {name} to \"hosts\" with its address; a user is written {name}@, a group group:{name}, a tag tag:{name}"
    );
    did_you_mean(near, &otherwise)
}

/// Who may own tags and approve routes: people and tags (SEMANTICS.md 4.3).
pub(super) const fn is_owner(alias: &Alias) -> bool {
    matches!(alias, Alias::User(_) | Alias::Group(_) | Alias::Tag(_) | Alias::Member | Alias::Role(_))
}

pub(super) fn tag_owners(file: &File, faults: &mut Faults) {
    for (tag, owners) in &file.tag_owners {
        for owner in &owners.value {
            match &owner.value {
                Alias::Tag(by) if !file.tag_owners.contains_key(by) => {
                    let (tag, named) = (quote(tag.as_str()), quote(by.as_str()));
                    let message = format!("tag {tag} references undefined tag {named}");
                    faults.add("unknown-tag", owner.span, message, tag_hint(file, by, faults));
                }
                fine if is_owner(fine) => {
                    if let Alias::Group(name) = fine
                        && !file.groups.contains_key(name)
                    {
                        let what = format!("tagOwners[{}]", quote(tag.as_str()));
                        known(file, fine, Place::Other(&what), owner.span, faults);
                    }
                }
                other => faults.add(
                    "tag-owner",
                    owner.span,
                    format!("tagOwners[{}]: {} cannot own a tag", quote(tag.as_str()), quote(&other.to_string())),
                    "owners are users (alice@), groups (group:x), tags (tag:x), autogroup:member and roles (autogroup:admin)",
                ),
            }
        }
    }
}

/// Every posture of a list is defined.
pub(super) fn postures(file: &File, list: &[Spanned<String>], faults: &mut Faults) {
    for name in list.iter().filter(|n| !file.postures.contains_key(&n.value)) {
        let near = faults.suggest(&name.value, file.postures.keys().map(String::as_str));
        let hint = did_you_mean(near, &format!("add {} to \"postures\"", name.value));
        let message = format!("posture not defined in policy: {}", quote(&name.value));
        faults.add("unknown-posture", name.span, message, hint);
    }
}

/// How far the walk through the sets has come.
#[derive(Debug, Clone, Copy)]
enum Walk {
    /// Below the one being looked at.
    Open,
    /// Done; so many entries.
    Done(usize),
}

/// Names inside of IP sets are known; no set holds itself, and none grows beyond reason.
pub(super) fn ipsets(file: &File, faults: &mut Faults) {
    let mut walked = BTreeMap::new();
    for (name, entries) in &file.ipsets {
        let what = format!("ipsets[{}]", quote(name));
        for entry in &entries.value {
            known(file, &entry.target.value, Place::Other(&what), entry.target.span, faults);
        }
        ipset(file, name, 0, &mut walked, faults);
    }
}

fn ipset<'f>(
    file: &'f File,
    name: &'f str,
    depth: usize,
    walked: &mut BTreeMap<&'f str, Walk>,
    faults: &mut Faults,
) -> usize {
    if let Some(Walk::Done(count)) = walked.get(name) {
        return *count;
    }
    let Some(entries) = file.ipsets.get(name) else {
        return 0;
    };
    walked.insert(name, Walk::Open);
    let mut count = 0usize;
    for entry in &entries.value {
        let Alias::IpSet(inner) = &entry.target.value else {
            count = count.saturating_add(1);
            continue;
        };
        if matches!(walked.get(inner.as_str()), Some(Walk::Open)) {
            faults.add(
                "ipset-cycle",
                entry.target.span,
                format!("ipsets[{}]: {}: IP sets cannot contain themselves", quote(name), quote(inner)),
                "break the circle: put what both need into a set of its own",
            );
        } else if depth >= MAX_DEPTH {
            faults.add(
                "too-large",
                entry.target.span,
                format!("ipsets[{}]: IP sets nested more than {MAX_DEPTH} deep", quote(name)),
                "name the addresses here",
            );
            break;
        } else {
            count = count.saturating_add(ipset(file, inner, depth + 1, walked, faults));
        }
    }
    if count > MAX_ENTRIES {
        faults.add(
            "too-large",
            entries.span,
            format!("ipsets[{}] holds {count} entries, more than the limit of {MAX_ENTRIES}", quote(name)),
            "use larger networks",
        );
        count = 0;
    }
    walked.insert(name, Walk::Done(count));
    count
}
