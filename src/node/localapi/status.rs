//! `Status` and `PeerStatus` as the official client reads them (dataplane.md 13.4).

use std::collections::BTreeMap;
use std::net::IpAddr;

use chrono::{DateTime, Utc};
use ipnet::IpNet;
use serde::Serialize;
use serde_json::{Value, json};

use crate::keys::{NodePublic, RegionId};
use crate::node::core::News;
use crate::node::engine::{EngineStatus, PeerStatus as EnginePeer};
use crate::node::host::{self, VERSION};
use crate::node::lifecycle::{State, View};
use crate::wire::{CapMap, DerpMap, Node, UserProfile};

/// Go's zero time.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

fn time(at: Option<DateTime<Utc>>) -> String {
    at.map_or_else(|| ZERO_TIME.to_owned(), |t| t.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true))
}

/// One node as `status` shows it.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PeerStatus {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "NodeID")]
    node_id: u64,
    public_key: NodePublic,
    host_name: String,
    #[serde(rename = "DNSName")]
    dns_name: String,
    #[serde(rename = "OS")]
    os: String,
    #[serde(rename = "UserID")]
    user_id: u64,
    #[serde(rename = "TailscaleIPs")]
    tailscale_ips: Vec<IpAddr>,
    #[serde(rename = "AllowedIPs", skip_serializing_if = "Option::is_none")]
    allowed_ips: Option<Vec<IpNet>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    primary_routes: Vec<IpNet>,
    addrs: Vec<String>,
    cur_addr: String,
    relay: String,
    peer_relay: String,
    rx_bytes: u64,
    tx_bytes: u64,
    created: String,
    last_write: String,
    last_seen: String,
    last_handshake: String,
    online: bool,
    exit_node: bool,
    exit_node_option: bool,
    active: bool,
    #[serde(rename = "PeerAPIURL")]
    peer_api_url: Option<Vec<String>>,
    taildrop_target: i32,
    no_file_sharing_reason: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    cap_map: CapMap,
    in_network_map: bool,
    in_magic_sock: bool,
    in_engine: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    expired: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_expiry: Option<String>,
}

/// The addresses of a node, without prefix lengths.
#[must_use]
pub fn addresses(node: &Node) -> Vec<IpAddr> {
    node.addresses.iter().map(IpNet::addr).collect()
}

/// The code of a region, or its number.
#[must_use]
pub fn region_code(map: &DerpMap, region: RegionId) -> String {
    match map.regions.get(&region) {
        Some(r) if !r.region_code.is_empty() => r.region_code.clone(),
        _ => region.to_string(),
    }
}

fn offers_exit(node: &Node) -> bool {
    let allowed = node.allowed_ips.as_deref().unwrap_or_default();
    allowed.iter().any(|n| n.prefix_len() == 0)
}

fn of_node(node: &Node) -> PeerStatus {
    let info = node.hostinfo.clone().unwrap_or_default();
    PeerStatus {
        id: node.stable_id.0.clone(),
        node_id: node.id.0,
        public_key: node.key,
        host_name: info.hostname,
        dns_name: node.name.clone(),
        os: info.os,
        user_id: node.user.0,
        tailscale_ips: addresses(node),
        allowed_ips: Some(node.allowed_ips.clone().unwrap_or_else(|| node.addresses.clone())),
        tags: node.tags.clone(),
        primary_routes: node.primary_routes.clone(),
        created: time(node.created),
        last_write: time(None),
        last_seen: time(node.last_seen),
        last_handshake: time(None),
        online: node.online.unwrap_or(false),
        exit_node_option: offers_exit(node),
        cap_map: node.cap_map.clone(),
        in_network_map: true,
        in_magic_sock: true,
        in_engine: true,
        expired: node.expired,
        key_expiry: node.key_expiry.map(|t| time(Some(t))),
        ..PeerStatus::default()
    }
}

fn of_peer(peer: &EnginePeer, map: &DerpMap) -> PeerStatus {
    let current = peer.cur_addr.map(|a| a.to_string()).unwrap_or_default();
    PeerStatus {
        addrs: peer.node.endpoints.iter().map(ToString::to_string).collect(),
        cur_addr: current,
        relay: peer.home.map(|r| region_code(map, r)).unwrap_or_default(),
        rx_bytes: peer.rx_bytes,
        tx_bytes: peer.tx_bytes,
        last_write: time(peer.last_write),
        last_handshake: time(peer.last_handshake),
        active: peer.active,
        expired: peer.expired,
        ..of_node(&peer.node)
    }
}

fn own(view: &View, engine: &EngineStatus, news: &News) -> PeerStatus {
    let Some(node) = &engine.self_node else {
        return PeerStatus {
            public_key: view.node_key,
            host_name: if view.prefs.hostname.is_empty() {
                host::hostname()
            } else {
                view.prefs.hostname.clone()
            },
            os: "linux".to_owned(),
            created: time(None),
            last_write: time(None),
            last_seen: time(None),
            last_handshake: time(None),
            ..PeerStatus::default()
        };
    };
    let home = engine.home.or(news.home);
    PeerStatus {
        addrs: engine.endpoints.iter().map(ToString::to_string).collect(),
        relay: home.map(|r| region_code(&news.derp_map, r)).unwrap_or_default(),
        online: view.control_up,
        os: "linux".to_owned(),
        in_magic_sock: false,
        in_engine: false,
        ..of_node(node)
    }
}

/// The whole answer of `GET status`.
#[must_use]
pub fn status(view: &View, engine: &EngineStatus, news: &News, peers: bool) -> Value {
    let up = matches!(view.state, State::Starting | State::Running);
    let ips = engine.self_node.as_ref().map(addresses);
    let tailnet = engine.self_node.as_ref().map(|_| {
        json!({
            "Name": engine.domain,
            "MagicDNSSuffix": engine.magic_dns_suffix,
            "MagicDNSEnabled": view.dns.proxied && view.prefs.corp_dns,
        })
    });
    let peer: Option<BTreeMap<String, PeerStatus>> = (peers && up).then(|| {
        engine.peers.values().map(|p| (p.node.key.to_string(), of_peer(p, &news.derp_map))).collect()
    });
    let users: Option<BTreeMap<String, &UserProfile>> =
        up.then(|| engine.users.iter().map(|(id, u)| (id.to_string(), u)).collect());
    let mut out = json!({
        "Version": VERSION,
        "TUN": true,
        "BackendState": view.state.word(),
        "AuthURL": view.auth_url,
        "TailscaleIPs": ips,
        "Self": own(view, engine, news),
        "Health": view.health,
        "MagicDNSSuffix": engine.magic_dns_suffix,
        "CurrentTailnet": tailnet,
        "CertDomains": Value::Null,
        "ExtraRecords": view.dns.extra_records,
        "Peer": peer,
        "User": users,
        "ClientVersion": Value::Null,
    });
    if view.have_node_key
        && let Some(map) = out.as_object_mut()
    {
        map.insert("HaveNodeKey".to_owned(), Value::Bool(true));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logged_out_node_still_gives_a_whole_status() {
        let view = View { state: State::NeedsLogin, ..View::default() };
        let out = status(&view, &EngineStatus::default(), &News::default(), true);
        assert_eq!(out["BackendState"], "NeedsLogin");
        assert_eq!(out["Self"]["LastSeen"], ZERO_TIME);
        assert_eq!(out["Self"]["PublicKey"], NodePublic::default().to_string());
        assert_eq!(out.get("HaveNodeKey"), None);
        assert_eq!(out["Peer"], Value::Null);
    }

    #[test]
    fn a_peer_shows_its_way() {
        let mut map = DerpMap::default();
        map.regions.insert(
            RegionId(900),
            crate::wire::DerpRegion { region_code: "tsd".into(), ..Default::default() },
        );
        let peer = EnginePeer {
            node: Node { online: Some(true), ..Node::default() },
            cur_addr: Some("203.0.113.9:41641".parse().unwrap()),
            home: Some(RegionId(900)),
            rx_bytes: 2,
            tx_bytes: 1,
            last_handshake: None,
            last_write: None,
            active: true,
            expired: false,
        };
        let shown = serde_json::to_value(of_peer(&peer, &map)).unwrap();
        assert_eq!(shown["CurAddr"], "203.0.113.9:41641");
        assert_eq!(shown["Relay"], "tsd");
        assert_eq!(shown["Online"], true);
    }
}
