//! Users and nodes as the policy sees them: what a change of a record means for the rules is decided by
//! comparing these, so that a new endpoint or name server compiles nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::state::Tailnet;
use crate::acl::ast::AttrValue;
use crate::acl::{World, WorldNode, WorldUser};
use crate::model::{Node, User};
use crate::wire::Hostinfo;

/// Everything, for a whole compilation.
#[must_use]
pub(super) fn world(net: &Tailnet) -> World {
    World {
        users: net.users.iter().map(|(id, u)| (*id, user(u))).collect(),
        nodes: net.nodes.iter().map(|(id, n)| (*id, node(n))).collect(),
        domains: domains(net),
        auto_update: false,
    }
}

/// A user.
#[must_use]
pub(super) fn user(user: &User) -> WorldUser {
    WorldUser { id: user.id, name: user.name.clone(), role: user.role }
}

/// A node.
#[must_use]
pub(super) fn node(node: &Node) -> WorldNode {
    WorldNode {
        id: node.id,
        name: node.name.clone(),
        owner: node.owner.clone(),
        ipv4: node.ipv4,
        ipv6: node.ipv6,
        served_routes: node.served_routes(),
        attributes: attributes(&node.hostinfo),
    }
}

/// The configured mail domains, or those of the users' login names.
#[must_use]
pub(super) fn domains(net: &Tailnet) -> BTreeSet<String> {
    if !net.settings.domains.is_empty() {
        return net.settings.domains.clone();
    }
    let of = |u: &Arc<User>| u.name.rsplit_once('@').map(|(_, domain)| domain.to_owned());
    net.users.values().filter_map(of).collect()
}

/// What a node says of itself, under the documented names of postures (SEMANTICS.md 3.5). What it does
/// not say is not set.
fn attributes(info: &Hostinfo) -> BTreeMap<String, AttrValue> {
    let mut out = BTreeMap::new();
    let mut text = |name: &str, value: String| {
        if !value.is_empty() {
            out.insert(format!("node:{name}"), AttrValue::Text(value));
        }
    };
    text("os", info.os.to_ascii_lowercase());
    text("osVersion", info.os_version.clone());
    let version = info.ipn_version.split('-').next().unwrap_or_default();
    text("tsVersion", version.to_owned());
    text("tsReleaseTrack", track(version).unwrap_or_default().to_owned());
    // Absent on the wire is no: clients leave a false out.
    if !info.ipn_version.is_empty() {
        out.insert("node:tsAutoUpdate".to_owned(), AttrValue::Bool(info.allows_update));
    }
    if let Some(encrypted) = info.state_encrypted {
        out.insert("node:tsStateEncrypted".to_owned(), AttrValue::Bool(encrypted));
    }
    out
}

/// Odd minor versions are unstable builds.
fn track(version: &str) -> Option<&'static str> {
    let minor: u32 = version.split('.').nth(1)?.parse().ok()?;
    Some(if minor.is_multiple_of(2) { "stable" } else { "unstable" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(json: &str) -> Vec<String> {
        let info: Hostinfo = crate::wire::decode_request(json.as_bytes()).unwrap();
        attributes(&info).into_iter().map(|(k, v)| format!("{k}={v:?}")).collect()
    }

    #[test]
    fn a_device_is_known_by_the_documented_names() {
        let mac = told(
            r#"{"OS": "macOS", "OSVersion": "15.1", "IPNVersion": "1.81.2-tabc-gdef", "AllowsUpdate": true, "StateEncrypted": true}"#,
        );
        assert_eq!(
            mac,
            [
                r#"node:os=Text("macos")"#,
                r#"node:osVersion=Text("15.1")"#,
                "node:tsAutoUpdate=Bool(true)",
                r#"node:tsReleaseTrack=Text("unstable")"#,
                "node:tsStateEncrypted=Bool(true)",
                r#"node:tsVersion=Text("1.81.2")"#,
            ]
        );
        assert_eq!(told(r#"{"OS": "iOS"}"#), [r#"node:os=Text("ios")"#], "the rest is not set");
        assert!(told("{}").is_empty());
    }
}
