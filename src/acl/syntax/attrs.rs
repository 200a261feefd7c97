//! `nodeAttrs` (SEMANTICS.md 10) and `autoApprovers` (11).

use ipnet::IpNet;

use super::fields::{Shape, array, fields, map, raw, string};
use super::grants;
use super::words::{Side, aliases};
use crate::acl::alias::parse_prefix;
use crate::acl::ast::{AppCaps, AutoApprovers, NodeAttr, Spanned};
use crate::acl::error::{Faults, quote};
use crate::acl::hujson::Value;
use crate::model::Tag;

const NODE_ATTR: Shape = Shape {
    what: "an entry of nodeAttrs",
    known: &["target", "attr", "ipPool", "app"],
    old: &[],
    comments: false,
    example: "such as { \"target\": [\"tag:server\"], \"attr\": [\"funnel\"] }",
};
const APPROVERS: Shape = Shape {
    what: "autoApprovers",
    known: &["routes", "exitNode", "services"],
    old: &[],
    comments: false,
    example: "such as { \"routes\": { \"10.0.0.0/8\": [\"tag:router\"] }, \"exitNode\": [\"tag:exit\"] }",
};

pub(super) fn node_attr(value: &Value<'_>, faults: &mut Faults) -> Option<NodeAttr> {
    let found = fields(value, &NODE_ATTR, faults)?;
    let target = aliases(found.get("target"), "target", Side::Other, faults);
    let mut attr = Vec::new();
    for item in found.get("attr").and_then(|v| array(v, "attr", faults)).unwrap_or_default() {
        attr.extend(raw(item, "an attribute", faults).map(str::to_owned));
    }
    let mut ip_pool = Vec::new();
    for item in found.get("ipPool").and_then(|v| array(v, "ipPool", faults)).unwrap_or_default() {
        ip_pool.extend(pool(item, faults));
    }
    let mut app = AppCaps::new();
    for member in found.get("app").map_or(&[][..], |v| map(v, "app", faults)) {
        let name = member.name.as_ref();
        app.insert(name.to_owned(), grants::values(&member.value, name, faults));
    }
    Some(NodeAttr { span: value.span, target, attr, ip_pool, app })
}

/// Pools lie in 100.64.0.0/10, clear of what clients keep for themselves.
fn pool(value: &Value<'_>, faults: &mut Faults) -> Option<IpNet> {
    let text = string(value, "a network of ipPool", faults)?;
    let hint = "write a network inside of 100.64.0.0/10 such as 100.85.0.0/16, clear of 100.100.0.0/24, 100.100.100.0/24 and 100.115.92.0/23";
    let why = match parse_prefix(text) {
        None => "not a network",
        Some(net) => match flaw(&net) {
            None => return Some(net),
            Some(why) => why,
        },
    };
    faults.add("ip-pool", value.span, format!("IPPool({text}): {why}"), hint);
    None
}

fn flaw(net: &IpNet) -> Option<&'static str> {
    const WHOLE: &str = "100.64.0.0/10";
    const RESERVED: [&str; 3] = ["100.100.0.0/24", "100.100.100.0/24", "100.115.92.0/23"];
    if !parse_prefix(WHOLE).is_some_and(|whole| whole.contains(net)) {
        return Some("network not within 100.64.0.0/10");
    }
    let touches = |r: &IpNet| r.contains(net) || net.contains(r);
    RESERVED
        .iter()
        .filter_map(|r| parse_prefix(r))
        .any(|r| touches(&r))
        .then_some("network within reserved range")
}

pub(super) fn auto_approvers(value: &Value<'_>, faults: &mut Faults) -> AutoApprovers {
    let mut out = AutoApprovers::default();
    let Some(found) = fields(value, &APPROVERS, faults) else {
        return out;
    };
    for member in found.get("routes").map_or(&[][..], |v| map(v, "autoApprovers.routes", faults)) {
        let what = format!("autoApprovers.routes[{}]", quote(&member.name));
        let approvers = aliases(Some(&member.value), &what, Side::Other, faults);
        match parse_prefix(member.name.trim()) {
            Some(value) => out.routes.push((Spanned { value, span: member.name_span }, approvers)),
            None => faults.add(
                "route",
                member.name_span,
                format!("{what}: not a network"),
                "write a network such as 10.0.0.0/8; parts of it are approved too",
            ),
        }
    }
    out.exit_node = aliases(found.get("exitNode"), "autoApprovers.exitNode", Side::Other, faults);
    for member in found.get("services").map_or(&[][..], |v| map(v, "autoApprovers.services", faults)) {
        let name = member.name.trim();
        let what = format!("autoApprovers.services[{}]", quote(name));
        let approvers = aliases(Some(&member.value), &what, Side::Other, faults);
        if name.strip_prefix("svc:").is_some_and(|n| !n.is_empty()) || Tag::parse(name).is_ok() {
            let key = Spanned { value: name.to_owned(), span: member.name_span };
            out.services.push((key, approvers));
        } else {
            faults.add(
                "service",
                member.name_span,
                format!("{what}: neither a service nor a tag"),
                "write svc:name or tag:name",
            );
        }
    }
    out
}
