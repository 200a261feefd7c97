//! The sections that give names: `groups`, `hosts`, `ipsets`, `tagOwners` (SEMANTICS.md 3).

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::fields::{array, map, string};
use super::words::{Side, alias_fault};
use crate::acl::alias::{parse_prefix, parse_user};
use crate::acl::ast::{Alias, IpSetEntry, Spanned};
use crate::acl::error::{Faults, quote};
use crate::acl::hujson::{Member, Value};
use crate::model::Tag;

/// A section's names, each with its place and what it stands for.
type Named<K, T> = BTreeMap<K, Spanned<Vec<T>>>;

/// Names that begin as they must.
fn prefixed(member: &Member<'_>, prefix: &str, code: &'static str, faults: &mut Faults) -> bool {
    let name = member.name.as_ref();
    let rest = name.strip_prefix(prefix);
    let fine = rest.is_some_and(|n| !n.is_empty() && !n.contains(char::is_whitespace));
    if !fine {
        let kind = prefix.trim_end_matches(':');
        faults.add(
            code,
            member.name_span,
            format!("{kind} name {} must start with {prefix} and go on without blanks", quote(name)),
            format!(
                "write \"{prefix}{}\"",
                rest.unwrap_or(name).split_whitespace().collect::<Vec<_>>().join("-")
            ),
        );
    }
    fine
}

pub(super) fn groups(value: &Value<'_>, faults: &mut Faults) -> Named<String, Spanned<String>> {
    let mut out = BTreeMap::new();
    for member in map(value, "groups", faults) {
        if !prefixed(member, "group:", "group-name", faults) {
            continue;
        }
        let what = format!("groups[{}]", quote(&member.name));
        let items = array(&member.value, &what, faults).unwrap_or_default();
        let mut users = Vec::with_capacity(items.len());
        for item in items {
            let Some(text) = string(item, "a group member", faults) else {
                continue;
            };
            if text.starts_with("group:") {
                faults.add(
                    "nested-group",
                    item.span,
                    format!("{what}: {}: group members cannot be recursive", quote(text)),
                    "list the users of the inner group here",
                );
            } else if !text.contains('@') {
                faults.add(
                    "user-name",
                    item.span,
                    format!("{what}: username must contain @, got: {}", quote(text)),
                    format!("write {text}@ for a user of this server, or a mail address"),
                );
            } else {
                match parse_user(text) {
                    Ok(value) => users.push(Spanned { value, span: item.span }),
                    Err(fault) => alias_fault(fault, text, &what, Side::Other, item.span, faults),
                }
            }
        }
        out.insert(member.name.clone().into_owned(), Spanned { value: users, span: member.name_span });
    }
    out
}

pub(super) fn hosts(value: &Value<'_>, faults: &mut Faults) -> BTreeMap<String, Spanned<IpNet>> {
    let mut out = BTreeMap::new();
    for member in map(value, "hosts", faults) {
        let name = member.name.as_ref();
        if !matches!(Alias::parse(name), Ok(Alias::Host(_))) {
            faults.add(
                "host-name",
                member.name_span,
                format!("host name {} is not usable", quote(name)),
                "a host name has no @, : or / and is not an address",
            );
            continue;
        }
        let Some(text) = string(&member.value, "a host's address", faults) else {
            continue;
        };
        if let Some(net) = parse_prefix(text) {
            out.insert(name.to_owned(), Spanned { value: net, span: member.name_span });
        } else {
            faults.add(
                "host-address",
                member.value.span,
                format!("hostname {} address {} contains invalid IP", quote(name), quote(text)),
                "write an address such as 10.1.2.3 or a network such as 10.0.0.0/8",
            );
        }
    }
    out
}

pub(super) fn ipsets(value: &Value<'_>, faults: &mut Faults) -> Named<String, IpSetEntry> {
    const HINT: &str = "an entry is an address, a network, a-b, a host, ipset:x or autogroup:internet, with add or remove before it if need be";
    let mut out = BTreeMap::new();
    for member in map(value, "ipsets", faults) {
        if !prefixed(member, "ipset:", "ipset-name", faults) {
            continue;
        }
        let what = format!("ipsets[{}]", quote(&member.name));
        let items = array(&member.value, &what, faults).unwrap_or_default();
        let mut entries = Vec::with_capacity(items.len());
        for item in items {
            let Some(text) = string(item, "an entry of an IP set", faults) else {
                continue;
            };
            let (add, target) = match text.split_once(char::is_whitespace) {
                Some(("add", target)) => (true, target.trim()),
                Some(("remove", target)) => (false, target.trim()),
                _ => (true, text),
            };
            match Alias::parse(target) {
                Ok(
                    value @ (Alias::Prefix(_)
                    | Alias::Range(..)
                    | Alias::Host(_)
                    | Alias::IpSet(_)
                    | Alias::Internet),
                ) => {
                    entries.push(IpSetEntry { add, target: Spanned { value, span: item.span } });
                }
                Ok(_) => faults.add(
                    "alias-place",
                    item.span,
                    format!("{what}: {} cannot be part of an IP set", quote(target)),
                    HINT,
                ),
                Err(fault) => alias_fault(fault, target, &what, Side::Other, item.span, faults),
            }
        }
        out.insert(member.name.clone().into_owned(), Spanned { value: entries, span: member.name_span });
    }
    out
}

/// What is wrong with a tag's name, in the words of the public client's check of tags, one of which is
/// captured (SEMANTICS.md 13).
fn tag_flaw(name: &str) -> &'static str {
    let Some(name) = name.strip_prefix("tag:") else {
        return "tags must start with 'tag:'";
    };
    match name.chars().next() {
        None => "tag names must not be empty",
        Some(first) if !first.is_ascii_alphabetic() => "tag names must start with a letter, after 'tag:'",
        Some(_) if name.len() > 63 => "tag names have at most 63 characters",
        Some(_) => "tag names can only contain numbers, letters, or dashes",
    }
}

pub(super) fn tag_owners(value: &Value<'_>, faults: &mut Faults) -> Named<Tag, Spanned<Alias>> {
    let mut out = BTreeMap::new();
    for member in map(value, "tagOwners", faults) {
        let what = format!("tagOwners[{}]", quote(&member.name));
        let Ok(tag) = Tag::parse(&member.name) else {
            faults.add(
                "tag-name",
                member.name_span,
                format!("{what}: {}", tag_flaw(&member.name)),
                "such as tag:server; after the first letter also digits, '-' and '.', 63 in all",
            );
            continue;
        };
        let items = array(&member.value, &what, faults).unwrap_or_default();
        let mut owners = Vec::with_capacity(items.len());
        for item in items {
            let Some(text) = string(item, "a tag owner", faults) else {
                continue;
            };
            let value = match Alias::parse(text) {
                Ok(value) => value,
                Err(fault) => {
                    alias_fault(fault, text, &what, Side::Other, item.span, faults);
                    continue;
                }
            };
            owners.push(Spanned { value, span: item.span });
        }
        out.insert(tag, Spanned { value: owners, span: member.name_span });
    }
    out
}
