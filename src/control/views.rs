//! The tailnet as people see it: lists and single things for console, command line and metrics.

use chrono::{DateTime, Utc};

use super::state::Tailnet;
use super::types::{AdminError, AuthKeyView, ControlStats, LoginView, NodeView, UserView};
use crate::keys::NodeId;
use crate::model::{Node, PendingLogin, PreAuthKey, User};

/// A user.
#[must_use]
pub(super) fn user(net: &Tailnet, user: &User) -> UserView {
    let owned = |n: &&std::sync::Arc<Node>| n.owner.user() == Some(user.id);
    UserView {
        id: user.id,
        name: user.name.clone(),
        role: user.role,
        created: user.created,
        nodes: net.nodes.values().filter(owned).count(),
    }
}

/// A node.
#[must_use]
pub(super) fn node(net: &Tailnet, node: &Node, now: DateTime<Utc>) -> NodeView {
    let online = net.is_online(node.id);
    let user = node.owner.user();
    NodeView {
        id: node.id,
        name: node.name.clone(),
        fqdn: format!("{}.{}", node.name, net.settings.base_domain),
        hostname: node.hostinfo.hostname.clone(),
        user: user.map(|id| {
            let user = net.users.get(&id);
            user.map_or_else(|| id.to_string(), |u| u.name.clone())
        }),
        tags: node.owner.tags().cloned().collect(),
        ipv4: node.ipv4,
        ipv6: node.ipv6,
        online,
        last_seen: node.last_seen.filter(|_| !online),
        version: node.hostinfo.ipn_version.clone(),
        os: node.hostinfo.os.clone(),
        expires: node.expiry,
        expired: node.expired(now),
        ephemeral: node.ephemeral,
        created: node.created,
        advertised_routes: node.hostinfo.routable_ips.clone(),
        approved_routes: node.approved_routes.iter().copied().collect(),
        home_derp: node.home_derp.map_or(0, |r| r.0),
        endpoints: node.endpoints.clone(),
        key: node.key,
        machine: node.machine,
    }
}

/// A pre-auth key.
#[must_use]
pub(super) fn auth_key(net: &Tailnet, key: &PreAuthKey, now: DateTime<Utc>) -> AuthKeyView {
    let user = net.users.get(&key.user);
    let state = if key.revoked.is_some() {
        "revoked"
    } else if key.expires <= now {
        "expired"
    } else if !key.reusable && key.uses > 0 {
        "used"
    } else {
        "usable"
    };
    AuthKeyView {
        id: key.id,
        user: user.map_or_else(|| format!("(deleted user {})", key.user), |u| u.name.clone()),
        reusable: key.reusable,
        ephemeral: key.ephemeral,
        tags: key.tags.iter().flat_map(|t| t.iter().cloned()).collect(),
        created: key.created,
        expires: key.expires,
        state,
        uses: key.uses,
    }
}

/// A waiting login.
#[must_use]
pub(super) fn login(login: &PendingLogin) -> LoginView {
    LoginView {
        id: login.id.clone(),
        hostname: login.hostinfo.hostname.clone(),
        os: login.hostinfo.os.clone(),
        version: login.hostinfo.ipn_version.clone(),
        key: login.key,
        created: login.created,
        expires: login.expires,
    }
}

/// Figures.
#[must_use]
pub(super) fn stats(net: &Tailnet) -> ControlStats {
    ControlStats {
        nodes: net.nodes.len(),
        online: net.online.difference(&net.expired).count(),
        users: net.users.len(),
        logins: net.logins.len(),
        policy_version: net.policy_version.version,
        policy_tests_failing: 0,
    }
}

/// A node by id, address, label or full name. What a device calls itself never hides an id.
///
/// # Errors
/// When there is none.
pub(super) fn find_node(net: &Tailnet, text: &str) -> Result<std::sync::Arc<Node>, AdminError> {
    let wanted = text.trim().trim_end_matches('.').to_ascii_lowercase();
    let suffix = format!(".{}", net.settings.base_domain);
    let label = wanted.strip_suffix(&suffix).unwrap_or(&wanted);
    let by_name = || net.by_name.get(label).copied();
    let by_address = || {
        let ip: std::net::IpAddr = wanted.parse().ok()?;
        let node = net.nodes.values().find(|n| ip == n.ipv4 || ip == n.ipv6)?;
        Some(node.id)
    };
    let found = match wanted.parse::<NodeId>() {
        Ok(id) => Some(id),
        Err(_) => by_address().or_else(by_name),
    };
    found.and_then(|id| net.nodes.get(&id)).cloned().ok_or_else(|| {
        AdminError::NotFound(format!(
            "there is no device {text:?}; `tsd nodes list` shows all (id, name or address will do)"
        ))
    })
}
