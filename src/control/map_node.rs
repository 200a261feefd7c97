//! One node on the wire: as oneself, as a peer, and the patch between two forms of a peer.

use std::net::IpAddr;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use ipnet::IpNet;

use super::hostinfo;
use super::register::TAGGED_USER;
use super::routes;
use super::state::Tailnet;
use crate::keys::{NodeId, RegionId};
use crate::model;
use crate::wire::{CapMap, Node, PeerChange};

/// What decides a peer's form for one viewer; kept per stream, so it is small.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    /// The record as it was.
    pub(super) node: Arc<model::Node>,
    online: bool,
    expired: bool,
    routes: Vec<IpNet>,
    /// Capabilities that peers are told.
    caps: CapMap,
    /// The viewer is shown its IPv4 address.
    v4: bool,
    /// Something outside of the record changed (the base domain): send it whole.
    pub(super) stale: bool,
}

impl PartialEq for Shown {
    fn eq(&self, other: &Self) -> bool {
        (Arc::ptr_eq(&self.node, &other.node) || self.node == other.node)
            && self.online == other.online
            && self.expired == other.expired
            && self.routes == other.routes
            && self.caps == other.caps
            && self.v4 == other.v4
            && self.stale == other.stale
    }
}

/// How `viewer` sees `peer`; `None` while the peer is held back.
#[must_use]
pub(super) fn shown(net: &Tailnet, viewer: NodeId, peer: NodeId, now: DateTime<Utc>) -> Option<Shown> {
    let node = net.nodes.get(&peer)?;
    node.disco?;
    Some(Shown {
        node: Arc::clone(node),
        online: net.is_online(peer),
        expired: node.expired(now),
        routes: routes::shown(net, viewer, peer),
        caps: net.compiled.peer_caps(peer),
        // Both halves: its own lack, and the viewer's (SEMANTICS.md 10).
        v4: !net.compiled.without_ipv4(peer) && !net.compiled.without_ipv4(viewer),
        stale: false,
    })
}

fn addresses(node: &model::Node, v4: bool) -> Vec<IpNet> {
    let both = [IpAddr::V4(node.ipv4), IpAddr::V6(node.ipv6)];
    both.into_iter().filter(|ip| v4 || ip.is_ipv6()).map(IpNet::from).collect()
}

fn common(net: &Tailnet, node: &model::Node, routes: &[IpNet], v4: bool) -> Node {
    let addresses = addresses(node, v4);
    let mut allowed = addresses.clone();
    allowed.extend(routes);
    Node {
        id: node.id,
        stable_id: node.stable_id.clone(),
        // With a trailing dot (trap 9).
        name: format!("{}.{}.", node.name, net.settings.base_domain),
        user: node.owner.user().unwrap_or(TAGGED_USER),
        key: node.key,
        key_expiry: node.expiry,
        machine: node.machine,
        disco_key: node.disco.unwrap_or_default(),
        addresses,
        allowed_ips: Some(allowed),
        endpoints: node.endpoints.clone(),
        home_derp: node.home_derp.unwrap_or_default(),
        created: Some(node.created),
        cap: node.capver,
        tags: node.owner.tags().map(ToString::to_string).collect(),
        primary_routes: routes.iter().filter(|r| !routes::is_exit(r)).copied().collect(),
        machine_authorized: true,
        ..Node::default()
    }
}

/// A peer as it is sent.
#[must_use]
pub(super) fn peer(net: &Tailnet, shown: &Shown) -> Node {
    let node = &shown.node;
    Node {
        hostinfo: Some(hostinfo::for_peers(&node.hostinfo)),
        online: Some(shown.online),
        // Trap 19: only of those who are not here.
        last_seen: node.last_seen.filter(|_| !shown.online),
        expired: shown.expired,
        cap_map: shown.caps.clone(),
        ..common(net, node, &shown.routes, shown.v4)
    }
}

/// The node as it is told about itself.
#[must_use]
pub(super) fn self_node(net: &Tailnet, me: NodeId, now: DateTime<Utc>) -> Option<Node> {
    let node = net.nodes.get(&me)?;
    let mut routes = node.served_routes();
    routes.retain(|r| routes::is_exit(r) || net.primaries.primary(r) == Some(me));
    let mut info = hostinfo::for_peers(&node.hostinfo);
    info.routable_ips.clone_from(&node.hostinfo.routable_ips);
    info.request_tags.clone_from(&node.hostinfo.request_tags);
    Some(Node {
        hostinfo: Some(info),
        expired: node.expired(now),
        cap_map: net.compiled.self_caps(me),
        online: Some(true),
        ..common(net, node, &routes, !net.compiled.without_ipv4(me))
    })
}

/// Whether the self node has to be sent again. What the client itself told us does not count.
#[must_use]
pub(super) fn self_differs(sent: &Node, new: &Node) -> bool {
    let plain = |n: &Node| Node {
        endpoints: Vec::new(),
        home_derp: RegionId(0),
        disco_key: Default::default(),
        hostinfo: None,
        cap: Default::default(),
        ..n.clone()
    };
    plain(sent) != plain(new)
}

/// The patch from `old` to `new`: `None` when only the whole node will do, `Some(None)` when nothing
/// that a client can see differs.
#[must_use]
pub(super) fn patch(old: &Node, new: &Node) -> Option<Option<PeerChange>> {
    let mut reached = old.clone();
    let mut patch = PeerChange { node_id: new.id, ..PeerChange::default() };
    // A patch cannot clear these (control.md 7.1).
    if old.home_derp != new.home_derp && new.home_derp != RegionId(0) {
        patch.derp_region = new.home_derp;
        reached.home_derp = new.home_derp;
    }
    if old.endpoints != new.endpoints && !new.endpoints.is_empty() {
        patch.endpoints.clone_from(&new.endpoints);
        reached.endpoints.clone_from(&new.endpoints);
    }
    if old.disco_key != new.disco_key && !new.disco_key.is_zero() {
        patch.disco_key = Some(new.disco_key);
        reached.disco_key = new.disco_key;
    }
    if old.key != new.key {
        patch.key = Some(new.key);
        reached.key = new.key;
    }
    if old.key_expiry != new.key_expiry {
        patch.key_expiry = Some(new.key_expiry);
        reached.key_expiry = new.key_expiry;
    }
    if old.online != new.online {
        patch.online = new.online;
        reached.online = new.online;
    }
    if old.last_seen != new.last_seen {
        // Going online leaves the old time behind; clients ignore it then.
        patch.last_seen = new.last_seen;
        reached.last_seen = new.last_seen;
    }
    if reached != *new {
        return None;
    }
    let empty = PeerChange { node_id: new.id, ..PeerChange::default() };
    Some((patch != empty).then_some(patch))
}
