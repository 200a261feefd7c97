//! Names against declarations, and which word may stand where (SEMANTICS.md 4.3, 4.4): every fault
//! that shows without knowing users and nodes. The texts are the hosted service's where there is one.

use std::collections::BTreeSet;

use crate::model::Tag;

use super::ast::{Acl, Alias, File, Spanned};
use super::error::{Faults, Lines, did_you_mean, quote};
use super::hujson::Span;
use super::{PolicyError, World};

/// Checks every name of `file`.
pub(super) fn check(file: &File, faults: &mut Faults) {
    for acl in file.acls.iter().flatten() {
        for src in &acl.src {
            source(file, src, faults);
        }
        destinations(file, acl, faults);
    }
    tag_owners(file, faults);
}

fn source(file: &File, src: &Spanned<Alias>, faults: &mut Faults) {
    match &src.value {
        Alias::Own => faults.add(
            "alias-place",
            src.span,
            "\"autogroup:self\" not valid on the src side of a rule",
            "use autogroup:member as source and autogroup:self as destination",
        ),
        Alias::Internet => faults.add(
            "alias-place",
            src.span,
            "autogroup:internet can only be used in ACL destinations",
            "name who may reach the internet, such as autogroup:member",
        ),
        Alias::Tag(tag) if !file.tag_owners.contains_key(tag) => {
            let message = format!("src=tag not found: {}", quote(tag.as_str()));
            faults.add("unknown-tag", src.span, message, tag_hint(file, tag, faults));
        }
        other => known(file, other, "src", src.span, faults),
    }
}

fn destinations(file: &File, acl: &Acl, faults: &mut Faults) {
    let narrow = acl
        .src
        .iter()
        .all(|s| matches!(s.value, Alias::User(_) | Alias::Group(_) | Alias::Member | Alias::Any));
    for dst in &acl.dst {
        match &dst.value.alias {
            Alias::Own if !narrow => faults.add(
                "self-sources",
                dst.span,
                "autogroup:self can only be used with users, groups, or supported autogroups",
                "make the sources users, groups, autogroup:member or *; put the others in a rule of their own",
            ),
            Alias::DangerAll => faults.add(
                "alias-place",
                dst.span,
                "cannot use autogroup:danger-all as a dst",
                "use * for everything",
            ),
            Alias::Tag(tag) if !file.tag_owners.contains_key(tag) => {
                let name = quote(tag.as_str());
                let message = format!("dst={name}: tag not found: {name}");
                faults.add("unknown-tag", dst.span, message, tag_hint(file, tag, faults));
            }
            other => known(file, other, "dst", dst.span, faults),
        }
    }
}

/// Groups and hosts that nobody defines.
fn known(file: &File, alias: &Alias, place: &str, span: Span, faults: &mut Faults) {
    match alias {
        Alias::Group(name) if !file.groups.contains_key(name) => {
            let message = format!("{place}: group not defined in policy: {}", quote(name));
            faults.add("unknown-group", span, message, group_hint(file, name, faults));
        }
        Alias::Host(name) if !file.hosts.contains_key(name) => {
            let near = faults.suggest(name, file.hosts.keys().map(String::as_str)).map(str::to_owned);
            let otherwise = format!(
                "add {name} to \"hosts\" with its address; a user is written {name}@, a group group:{name}, a tag tag:{name}"
            );
            faults.add(
                "unknown-host",
                span,
                format!("{place}: host not defined in policy: {}", quote(name)),
                did_you_mean(near.as_deref(), &otherwise),
            );
        }
        _ => {}
    }
}

fn tag_hint(file: &File, tag: &Tag, faults: &Faults) -> String {
    let near = faults.suggest(tag.as_str(), file.tag_owners.keys().map(Tag::as_str));
    format!("{tag} is declared by nobody; {}", did_you_mean(near, "add it to \"tagOwners\""))
}

fn group_hint(file: &File, name: &str, faults: &Faults) -> String {
    let near = faults.suggest(name, file.groups.keys().map(String::as_str));
    did_you_mean(near, &format!("add {name} to \"groups\""))
}

fn tag_owners(file: &File, faults: &mut Faults) {
    for (tag, owners) in &file.tag_owners {
        for owner in &owners.value {
            match &owner.value {
                Alias::Tag(by) if !file.tag_owners.contains_key(by) => {
                    let message = format!(
                        "tag {} references undefined tag {}",
                        quote(tag.as_str()),
                        quote(by.as_str())
                    );
                    faults.add("unknown-tag", owner.span, message, tag_hint(file, by, faults));
                }
                Alias::Group(name) if !file.groups.contains_key(name) => {
                    let message = format!(
                        "tagOwners[{}]: group not defined in policy: {}",
                        quote(tag.as_str()),
                        quote(name)
                    );
                    faults.add("unknown-group", owner.span, message, group_hint(file, name, faults));
                }
                _ => {}
            }
        }
    }
}

/// Users of the policy that this server does not have. They resolve to nothing, which is legal (an
/// account may come later) and mostly a typo.
pub(super) fn warnings(file: &File, lines: &Lines, world: &World) -> Vec<PolicyError> {
    let users: BTreeSet<&str> = world.users.values().map(|u| u.name.as_str()).collect();
    let mut faults = Faults::new(lines.clone());
    let mut look = |name: &str, span: Span| {
        if users.contains(name) {
            return;
        }
        let near = faults
            .suggest(name, users.iter().copied())
            .map(|n| if n.contains('@') { n.to_owned() } else { format!("{n}@") });
        let shown = if name.contains('@') { name.to_owned() } else { format!("{name}@") };
        faults.add(
            "unknown-user",
            span,
            format!("no user is called {}; it stands for nobody", quote(&shown)),
            did_you_mean(near.as_deref(), "make the user, or remove the name"),
        );
    };
    for member in file.groups.values().flat_map(|g| &g.value) {
        look(&member.value, member.span);
    }
    for owner in file.tag_owners.values().flat_map(|o| &o.value) {
        if let Alias::User(name) = &owner.value {
            look(name, owner.span);
        }
    }
    for acl in file.acls.iter().flatten() {
        let srcs = acl.src.iter().map(|s| (&s.value, s.span));
        let dsts = acl.dst.iter().map(|d| (&d.value.alias, d.span));
        for (alias, span) in srcs.chain(dsts) {
            if let Alias::User(name) = alias {
                look(name, span);
            }
        }
    }
    faults.finish()
}
