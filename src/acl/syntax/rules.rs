//! `acls` (SEMANTICS.md 6.4, 6.5).

use super::fields::{Shape, array, fields, string};
use super::posture;
use super::words::{Side, alias_fault, aliases};
use crate::acl::alias::{has_ports, parse_protocol, protocol_name, split_destination};
use crate::acl::ast::{Acl, Alias, Destination, Spanned};
use crate::acl::error::{Faults, quote};
use crate::acl::hujson::{Kind, Value};
use crate::wire::PortRange;

const ACL: Shape = Shape {
    what: "a rule",
    known: &["action", "proto", "src", "dst", "srcPosture"],
    old: &[("users", "src"), ("ports", "dst")],
    comments: true,
    example: "such as { \"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:*\"] }",
};

pub(super) fn acl(value: &Value<'_>, faults: &mut Faults) -> Option<Acl> {
    let found = fields(value, &ACL, faults)?;
    let action = match found.get("action") {
        Some(v) => string(v, "action", faults)?,
        None => "",
    };
    // Case and blanks count in actions (SEMANTICS.md 1.3).
    let exact = matches!(found.get("action").map(|v| &v.kind), Some(Kind::String(s)) if s == "accept");
    if !exact {
        faults.add(
            "action",
            found.get("action").map_or(value.span, |v| v.span),
            format!("action={} is not supported", quote(action)),
            "the only action is \"accept\"; what no rule accepts is denied",
        );
    }
    let protocol = match found.get("proto") {
        Some(v) => {
            let text = string(v, "proto", faults)?;
            match parse_protocol(text) {
                Ok(protocol) => protocol,
                Err((message, hint)) => {
                    faults.add("protocol", v.span, message, hint);
                    return None;
                }
            }
        }
        None => None,
    };
    let src = aliases(found.get("src"), "src", Side::Source, faults);
    let dst = found.get("dst").map_or_else(Vec::new, |v| destinations(v, protocol, faults));
    let posture = found.get("srcPosture").and_then(|v| posture::names(v, "srcPosture", faults));
    Some(Acl { span: value.span, protocol, src, dst, posture })
}

fn destinations(value: &Value<'_>, protocol: Option<u8>, faults: &mut Faults) -> Vec<Spanned<Destination>> {
    let items = array(value, "dst", faults).unwrap_or_default();
    let mut out = Vec::with_capacity(items.len());
    for item in items {
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
            Err(fault) => {
                alias_fault(fault, &name, "dst", Side::Destination, item.span, faults);
                continue;
            }
        };
        if !has_ports(protocol) && ports.iter().any(|p| *p != PortRange::ANY) {
            let protocol = protocol_name(protocol.unwrap_or_default());
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
