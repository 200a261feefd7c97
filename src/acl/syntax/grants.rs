//! `grants` (SEMANTICS.md 6.6, 8.1, 8.3).

use super::fields::{Shape, array, fields, map, string};
use super::posture;
use super::words::{Side, aliases};
use crate::acl::alias::parse_ip;
use crate::acl::ast::{AppCaps, Grant, IpEntry, Spanned};
use crate::acl::error::{Faults, did_you_mean, quote};
use crate::acl::hujson::{Kind, Value};
use crate::model::Tag;

const GRANT: Shape = Shape {
    what: "a grant",
    known: &["src", "dst", "ip", "app", "via", "srcPosture"],
    old: &[],
    comments: false,
    example: "such as { \"src\": [\"*\"], \"dst\": [\"tag:server\"], \"ip\": [\"tcp:443\"] }",
};

/// The capabilities of `tailscale.com` that may be granted (SEMANTICS.md 8.1).
pub(super) const GRANTABLE: [&str; 6] = [
    "tailscale.com/cap/drive",
    "tailscale.com/cap/relay",
    "tailscale.com/cap/webui",
    "tailscale.com/cap/kubernetes",
    "tailscale.com/cap/tsidp",
    "tailscale.com/cap/secrets",
];

pub(super) fn grant(value: &Value<'_>, faults: &mut Faults) -> Option<Grant> {
    let found = fields(value, &GRANT, faults)?;
    let src = aliases(found.get("src"), "src", Side::Source, faults);
    let dst = aliases(found.get("dst"), "dst", Side::Destination, faults);
    let says = |name| match found.get(name).map(|v| &v.kind) {
        Some(Kind::Array(items)) => !items.is_empty(),
        Some(Kind::Object(members)) => !members.is_empty(),
        other => other.is_some(),
    };
    if !says("ip") && !says("app") {
        faults.add(
            "grant-empty",
            value.span,
            "ip and app can not both be empty",
            "say what is granted: \"ip\": [\"*\"] for all ports, \"ip\": [\"tcp:443\"] for one",
        );
    }
    let ip = found.get("ip").map_or_else(Vec::new, |v| ports(v, faults));
    let app = found.get("app").map_or_else(AppCaps::new, |v| app(v, faults));
    let via = found.get("via").map_or_else(Vec::new, |v| via(v, faults));
    let posture = found.get("srcPosture").and_then(|v| posture::names(v, "srcPosture", faults));
    Some(Grant { span: value.span, src, dst, ip, app, via, posture })
}

fn ports(value: &Value<'_>, faults: &mut Faults) -> Vec<IpEntry> {
    let items = array(value, "ip", faults).unwrap_or_default();
    let mut out = Vec::with_capacity(items.len());
    for item in items {
        let Some(text) = string(item, "an element of ip", faults) else {
            continue;
        };
        match parse_ip(text) {
            Ok(entry) => out.push(entry),
            Err((message, hint)) => faults.add("ports", item.span, message, hint),
        }
    }
    out
}

fn app(value: &Value<'_>, faults: &mut Faults) -> AppCaps {
    let mut out = AppCaps::new();
    for member in map(value, "app", faults) {
        let name = member.name.as_ref();
        let near = |faults: &Faults| faults.suggest(name, GRANTABLE).map(str::to_owned);
        match name.split_once('/') {
            Some((domain, path))
                if fine(domain) && !path.is_empty() && !path.contains(char::is_whitespace) =>
            {
                if domain.eq_ignore_ascii_case("tailscale.com") && !GRANTABLE.contains(&name) {
                    let otherwise = format!("use a domain of your own, or one of {}", GRANTABLE.join(", "));
                    let hint = did_you_mean(near(faults).as_deref(), &otherwise);
                    let message =
                        format!("{}: capability name must not be in the tailscale.com domain", quote(name));
                    faults.add("capability", member.name_span, message, hint);
                }
            }
            _ => {
                let bare = name.split_once("://").map_or(name, |(_, rest)| rest);
                let hint = match bare == name {
                    true => "such as example.com/cap/files".to_owned(),
                    false => format!("leave the scheme out: {bare}"),
                };
                let message =
                    format!("{}: capability name must have the form {{domain}}/{{path}}", quote(name));
                faults.add("capability", member.name_span, message, hint);
            }
        }
        out.insert(name.to_owned(), values(&member.value, name, faults));
    }
    out
}

/// A domain of a capability: no scheme, no blanks.
fn fine(domain: &str) -> bool {
    !domain.is_empty() && domain.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

/// The values of one capability, kept as they are.
pub(super) fn values(value: &Value<'_>, name: &str, faults: &mut Faults) -> Vec<serde_json::Value> {
    let what = format!("the value of {}", quote(name));
    array(value, &what, faults).unwrap_or_default().iter().map(Value::to_json).collect()
}

fn via(value: &Value<'_>, faults: &mut Faults) -> Vec<Spanned<Tag>> {
    let mut out = Vec::new();
    for item in array(value, "via", faults).unwrap_or_default() {
        let Some(text) = string(item, "an element of via", faults) else {
            continue;
        };
        match Tag::parse(text) {
            Ok(value) => out.push(Spanned { value, span: item.span }),
            Err(_) if text.starts_with("tag:") => faults.add(
                "unknown-tag",
                item.span,
                format!("tag {} not found", quote(text)),
                "a tag starts with a letter and goes on with letters, digits, '-' or '.', such as tag:router",
            ),
            Err(_) => faults.add(
                "via",
                item.span,
                format!("{}: via can only be a tag", quote(text)),
                "tag the routers, and name that tag here: \"via\": [\"tag:router\"]",
            ),
        }
    }
    out
}
