//! The tree of values to typed sections (SEMANTICS.md 2, 3): shapes, field names and the words inside.
//! Whatever the language has and this build has not is refused by name; nothing is skipped silently.
//! An unsupported section that says nothing (null, false, empty) is accepted.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::model::Tag;
use crate::wire::PortRange;

use super::alias::{
    self, AliasFault, has_ports, parse_prefix, parse_protocol, parse_user, split_destination,
};
use super::ast::{Acl, Alias, Destination, File, Spanned};
use super::error::{Faults, did_you_mean, quote};
use super::hujson::{Kind, Member, Span, Value};

const SECTIONS: [&str; 4] = ["acls", "groups", "hosts", "tagOwners"];
const LATER_SECTIONS: [&str; 13] = [
    "grants",
    "ssh",
    "nodeAttrs",
    "autoApprovers",
    "postures",
    "defaultSrcPosture",
    "ipsets",
    "tests",
    "sshTests",
    "derpMap",
    "disableIPv4",
    "OneCGNATRoute",
    "randomizeClientPort",
];
const ACL_FIELDS: [&str; 6] = ["action", "proto", "src", "dst", "users", "ports"];

/// Reads all sections; names are looked up by [`super::check`].
pub(super) fn read(root: &Value, faults: &mut Faults) -> File {
    let mut file = File::default();
    let Kind::Object(members) = &root.kind else {
        faults.add(
            "wrong-type",
            root.span,
            format!("a policy is an object, not {}", root.noun()),
            "put the sections inside { }",
        );
        return file;
    };
    same_field_twice(members, faults);
    let mut acls = None;
    for member in members {
        match canonical(&member.name, &SECTIONS).unwrap_or_default() {
            "acls" => acls = Some(&member.value),
            "groups" => file.groups = groups(&member.value, faults),
            "hosts" => file.hosts = hosts(&member.value, faults),
            "tagOwners" => file.tag_owners = tag_owners(&member.value, faults),
            _ => other_section(member, &mut file, faults),
        }
    }
    if let Some(value) = acls
        && let Some(items) = array(value, "acls", faults)
    {
        file.acls = Some(items.iter().filter_map(|v| acl(v, faults)).collect());
    }
    file
}

fn other_section(member: &Member, file: &mut File, faults: &mut Faults) {
    let known = SECTIONS.iter().chain(&LATER_SECTIONS).copied();
    let Some(name) = canonical(&member.name, &LATER_SECTIONS) else {
        let near = faults.suggest(&member.name, known);
        faults.add(
            "unknown-field",
            member.name_span,
            format!("unknown field: {}", quote(&member.name)),
            did_you_mean(near, "the sections of a policy are acls, groups, hosts and tagOwners"),
        );
        return;
    };
    if !member.value.is_void() {
        faults.add(
            "not-supported",
            member.name_span,
            format!("{} is not supported yet", quote(name)),
            format!("remove the section {name}: this version would not enforce it"),
        );
    } else if name == "grants" && !matches!(member.value.kind, Kind::Null) {
        // An empty list of grants is a policy that grants nothing, not an absent one. `acls`, when
        // written, overwrites this.
        file.acls = Some(Vec::new());
    }
}

/// The known spelling of a field name; names match in any case (SEMANTICS.md 1.2).
fn canonical(name: &str, known: &[&'static str]) -> Option<&'static str> {
    known.iter().find(|k| k.eq_ignore_ascii_case(name)).copied()
}

/// Two spellings of one field would make one of them silently win.
fn same_field_twice(members: &[Member], faults: &mut Faults) {
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    for member in members.iter().filter(|m| !m.name.starts_with('#')) {
        if let Some(first) = seen.insert(member.name.to_ascii_lowercase(), &member.name) {
            faults.add(
                "duplicate-key",
                member.name_span,
                format!("{} is the same field as {}", quote(&member.name), quote(first)),
                "join the two, or remove one",
            );
        }
    }
}

/// The elements of an array; null is an absent one.
fn array<'a>(value: &'a Value, what: &str, faults: &mut Faults) -> Option<&'a [Value]> {
    match &value.kind {
        Kind::Array(items) => Some(items),
        Kind::Null => None,
        _ => {
            faults.add(
                "wrong-type",
                value.span,
                format!("{what} is an array, not {}", value.noun()),
                "put the elements inside [ ]",
            );
            None
        }
    }
}

/// The members of an object; null is an absent one.
fn object<'a>(value: &'a Value, what: &str, faults: &mut Faults) -> &'a [Member] {
    match &value.kind {
        Kind::Object(members) => members,
        Kind::Null => &[],
        _ => {
            faults.add(
                "wrong-type",
                value.span,
                format!("{what} is an object, not {}", value.noun()),
                "write it as { \"name\": … }",
            );
            &[]
        }
    }
}

/// A string, trimmed.
fn string<'a>(value: &'a Value, what: &str, faults: &mut Faults) -> Option<&'a str> {
    if let Kind::String(text) = &value.kind {
        return Some(text.trim());
    }
    faults.add(
        "wrong-type",
        value.span,
        format!("{what} is a string, not {}", value.noun()),
        "put it in double quotes",
    );
    None
}

fn groups(value: &Value, faults: &mut Faults) -> BTreeMap<String, Spanned<Vec<Spanned<String>>>> {
    let mut out = BTreeMap::new();
    for member in object(value, "groups", faults) {
        if member.name.strip_prefix("group:").is_none_or(str::is_empty) {
            faults.add(
                "group-name",
                member.name_span,
                format!("group name {} must start with group:", quote(&member.name)),
                format!("write \"group:{}\"", member.name.trim_start_matches("group:")),
            );
            continue;
        }
        let what = format!("groups[{}]", quote(&member.name));
        let mut users = Vec::new();
        for item in array(&member.value, &what, faults).unwrap_or_default() {
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
                    Err(fault) => alias_fault(&fault, text, &what, item.span, faults),
                }
            }
        }
        out.insert(member.name.clone(), Spanned { value: users, span: member.name_span });
    }
    out
}

fn hosts(value: &Value, faults: &mut Faults) -> BTreeMap<String, Spanned<IpNet>> {
    let mut out = BTreeMap::new();
    for member in object(value, "hosts", faults) {
        let name = member.name.as_str();
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

fn tag_owners(value: &Value, faults: &mut Faults) -> BTreeMap<Tag, Spanned<Vec<Spanned<Alias>>>> {
    let mut out = BTreeMap::new();
    for member in object(value, "tagOwners", faults) {
        let what = format!("tagOwners[{}]", quote(&member.name));
        let Ok(tag) = Tag::parse(&member.name) else {
            faults.add(
                "tag-name",
                member.name_span,
                format!("{what}: tag names must start with a letter, after 'tag:'"),
                "such as tag:server; after the first letter also digits, '-' and '.', 63 in all",
            );
            continue;
        };
        let mut owners = Vec::new();
        for item in array(&member.value, &what, faults).unwrap_or_default() {
            let Some(text) = string(item, "a tag owner", faults) else {
                continue;
            };
            let owner = match Alias::parse(text) {
                Ok(
                    owner @ (Alias::User(_)
                    | Alias::Group(_)
                    | Alias::Tag(_)
                    | Alias::Member
                    | Alias::Role(_)),
                ) => owner,
                Ok(_) => {
                    faults.add(
                        "tag-owner",
                        item.span,
                        format!("{what}: {} cannot own a tag", quote(text)),
                        "owners are users (alice@), groups (group:x), tags (tag:x) and autogroup:member",
                    );
                    continue;
                }
                Err(fault) => {
                    alias_fault(&fault, text, &what, item.span, faults);
                    continue;
                }
            };
            owners.push(Spanned { value: owner, span: item.span });
        }
        out.insert(tag, Spanned { value: owners, span: member.name_span });
    }
    out
}

/// The fields of one entry of `acls`, by their present spelling.
#[derive(Default)]
struct AclFields<'a> {
    action: Option<&'a Value>,
    proto: Option<&'a Value>,
    src: Option<&'a Value>,
    dst: Option<&'a Value>,
}

fn acl(value: &Value, faults: &mut Faults) -> Option<Acl> {
    let Kind::Object(members) = &value.kind else {
        faults.add(
            "wrong-type",
            value.span,
            format!("a rule is an object, not {}", value.noun()),
            "such as { \"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:*\"] }",
        );
        return None;
    };
    let fields = acl_fields(members, faults);
    let action = match fields.action {
        Some(v) if !matches!(v.kind, Kind::Null) => string(v, "action", faults)?,
        _ => "",
    };
    // Case and blanks count in actions (SEMANTICS.md 1.3).
    let exact = matches!(fields.action.map(|v| &v.kind), Some(Kind::String(s)) if s == "accept");
    if !exact {
        faults.add(
            "action",
            fields.action.map_or(value.span, |v| v.span),
            format!("action={} is not supported", quote(action)),
            "the only action is \"accept\"; what no rule accepts is denied",
        );
    }
    let protocol = match fields.proto {
        Some(v) if !matches!(v.kind, Kind::Null) => {
            let text = string(v, "proto", faults)?;
            match parse_protocol(text) {
                Ok(protocol) => protocol,
                Err((message, hint)) => {
                    faults.add("protocol", v.span, message, hint);
                    return None;
                }
            }
        }
        _ => None,
    };
    let src = fields.src.map_or_else(Vec::new, |v| sources(v, faults));
    let dst = fields.dst.map_or_else(Vec::new, |v| destinations(v, protocol, faults));
    Some(Acl { span: value.span, protocol, src, dst, posture: None })
}

fn acl_fields<'a>(members: &'a [Member], faults: &mut Faults) -> AclFields<'a> {
    same_field_twice(members, faults);
    let mut fields = AclFields::default();
    for member in members.iter().filter(|m| !m.name.starts_with('#')) {
        let name = canonical(&member.name, &ACL_FIELDS).unwrap_or_default();
        let slot = match name {
            "action" => &mut fields.action,
            "proto" => &mut fields.proto,
            "src" | "users" => &mut fields.src,
            "dst" | "ports" => &mut fields.dst,
            _ => {
                acl_field_fault(member, faults);
                continue;
            }
        };
        if slot.is_some() && matches!(name, "src" | "users" | "dst" | "ports") {
            faults.add(
                "duplicate-key",
                member.name_span,
                format!("{} stands beside its other spelling", quote(&member.name)),
                "users is the old spelling of src, ports of dst: keep src and dst",
            );
        }
        *slot = Some(&member.value);
    }
    fields
}

fn acl_field_fault(member: &Member, faults: &mut Faults) {
    let later = ["srcPosture", "via", "app", "ip"];
    if let Some(name) = canonical(&member.name, &later) {
        if !(name == "srcPosture" && member.value.is_void()) {
            faults.add(
                "not-supported",
                member.name_span,
                format!("{} is not supported yet", quote(name)),
                format!("remove {name}: this version would not enforce it"),
            );
        }
        return;
    }
    let near = faults.suggest(&member.name, ACL_FIELDS);
    faults.add(
        "unknown-field",
        member.name_span,
        format!("unknown field: {}", quote(&member.name)),
        did_you_mean(near, "a rule has action, proto, src and dst"),
    );
}

fn sources(value: &Value, faults: &mut Faults) -> Vec<Spanned<Alias>> {
    let mut out = Vec::new();
    for item in array(value, "src", faults).unwrap_or_default() {
        let Some(text) = string(item, "a source", faults) else {
            continue;
        };
        match Alias::parse(text) {
            Ok(value) => out.push(Spanned { value, span: item.span }),
            Err(AliasFault::Tag) => {
                faults.add("unknown-tag", item.span, format!("src=tag not found: {}", quote(text)), TAG_HINT)
            }
            Err(fault) => alias_fault(&fault, text, "src", item.span, faults),
        }
    }
    out
}

const TAG_HINT: &str =
    "a tag starts with a letter and goes on with letters, digits, '-' or '.', such as tag:server";

fn destinations(value: &Value, protocol: Option<u8>, faults: &mut Faults) -> Vec<Spanned<Destination>> {
    let mut out = Vec::new();
    for item in array(value, "dst", faults).unwrap_or_default() {
        let Some(text) = string(item, "a destination", faults) else {
            continue;
        };
        let (name, ports) = match split_destination(text) {
            Ok(split) => split,
            Err((message, hint)) => {
                let hint = match Alias::parse(text) {
                    Ok(found) if !matches!(found, Alias::Host(_)) => {
                        format!("write the ports behind it, such as {text}:22 or {text}:*")
                    }
                    _ => hint.to_owned(),
                };
                faults.add("ports", item.span, message, hint);
                continue;
            }
        };
        let alias = match Alias::parse(&name) {
            Ok(alias) => alias,
            Err(AliasFault::Tag) => {
                let name = quote(&name);
                let message = format!("dst={name}: tag not found: {name}");
                faults.add("unknown-tag", item.span, message, TAG_HINT);
                continue;
            }
            Err(fault) => {
                alias_fault(&fault, &name, "dst", item.span, faults);
                continue;
            }
        };
        if !has_ports(protocol) && ports.iter().any(|p| *p != PortRange::ANY) {
            let protocol = alias::protocol_name(protocol.unwrap_or_default());
            faults.add(
                "ports",
                item.span,
                format!("dst={}: {protocol} has no ports", quote(text)),
                format!("write {name}:*"),
            );
        }
        out.push(Spanned { value: Destination { alias, ports }, span: item.span });
    }
    out
}

/// Tells why `text` names nothing; `place` is the field it stands in.
fn alias_fault(fault: &AliasFault, text: &str, place: &str, span: Span, faults: &mut Faults) {
    match fault {
        AliasFault::NotSupported(what) => faults.add(
            "not-supported",
            span,
            format!("{place}={}: {} is not supported yet", quote(text), quote(what)),
            "use users, groups, tags, hosts, addresses or autogroup:member",
        ),
        AliasFault::Tag => {
            faults.add("unknown-tag", span, format!("{place}: tag not found: {}", quote(text)), TAG_HINT)
        }
        AliasFault::Autogroup => {
            let near = faults.suggest(text, alias::AUTOGROUPS);
            faults.add(
                "unknown-autogroup",
                span,
                format!("{place}={}: no such autogroup", quote(text)),
                did_you_mean(near, "there are member, tagged, self, internet and danger-all"),
            );
        }
        AliasFault::Invalid => faults.add(
            "invalid-alias",
            span,
            format!("{place}={}: invalid address", quote(text)),
            "write a user (alice@), group:x, tag:x, a name of hosts, an address or a network",
        ),
    }
}
