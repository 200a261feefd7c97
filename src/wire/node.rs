//! `Node` and `PeerChange` (control.md 7.1).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use chrono::{DateTime, Utc};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{CapVer, Hostinfo, go_bytes, go_time, nil, zero};
use crate::keys::{DiscoPublic, MachinePublic, NodeId, NodePublic, RegionId, StableId, UserId};

/// Capability name to its values; presence counts, the value may be null.
pub type CapMap = BTreeMap<String, Option<Vec<Value>>>;

/// One node, as a peer or as oneself.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Node {
    /// Never zero, never reused.
    #[serde(rename = "ID")]
    pub id: NodeId,
    /// Opaque, survives key rotation.
    #[serde(rename = "StableID")]
    pub stable_id: StableId,
    /// Full name **with** a trailing dot.
    #[serde(deserialize_with = "nil")]
    pub name: String,
    /// Owner.
    pub user: UserId,
    /// Who shared it in.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub sharer: UserId,
    /// Node key.
    pub key: NodePublic,
    /// When the key expires; `None` is never.
    #[serde(with = "go_time", skip_serializing_if = "Option::is_none")]
    pub key_expiry: Option<DateTime<Utc>>,
    /// Tailnet-lock signature.
    #[serde(with = "go_bytes", skip_serializing_if = "Option::is_none")]
    pub key_signature: Option<Vec<u8>>,
    /// Machine key.
    #[serde(skip_serializing_if = "zero")]
    pub machine: MachinePublic,
    /// Disco key; a peer without it is unreachable for official clients.
    #[serde(skip_serializing_if = "zero")]
    pub disco_key: DiscoPublic,
    /// The node's own addresses, /32 and /128.
    #[serde(deserialize_with = "nil")]
    pub addresses: Vec<IpNet>,
    /// What may be routed to it; `None` equals `addresses`.
    #[serde(rename = "AllowedIPs", skip_serializing_if = "Option::is_none")]
    pub allowed_ips: Option<Vec<IpNet>>,
    /// Addresses and ports to try.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub endpoints: Vec<SocketAddr>,
    /// Legacy `127.3.3.40:<region>`; read only when `home_derp` is 0.
    #[serde(rename = "DERP", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub legacy_derp: String,
    /// Home region.
    #[serde(rename = "HomeDERP", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub home_derp: RegionId,
    /// What it says of itself, trimmed for peers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostinfo: Option<Hostinfo>,
    /// When it was made.
    #[serde(with = "go_time", skip_serializing_if = "Option::is_none")]
    pub created: Option<DateTime<Utc>>,
    /// Its capability version.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub cap: CapVer,
    /// Its tags.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub tags: Vec<String>,
    /// Routes it is primary for.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub primary_routes: Vec<IpNet>,
    /// Only sent when offline.
    #[serde(with = "go_time", skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<DateTime<Utc>>,
    /// `None` is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub online: Option<bool>,
    /// Must be true on the self node to reach Running.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub machine_authorized: bool,
    /// Deprecated list of capabilities.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub capabilities: Vec<String>,
    /// Node capabilities.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub cap_map: CapMap,
    /// Exempt from tailnet lock, PeerAPI only.
    #[serde(rename = "UnsignedPeerAPIOnly", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub unsigned_peer_api_only: bool,
    /// Its key has expired.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub expired: bool,
    /// Our IPv4 address in that peer's eyes.
    #[serde(rename = "SelfNodeV4MasqAddrForThisPeer", skip_serializing_if = "Option::is_none")]
    pub self_v4_masq: Option<IpAddr>,
    /// Our IPv6 address in that peer's eyes.
    #[serde(rename = "SelfNodeV6MasqAddrForThisPeer", skip_serializing_if = "Option::is_none")]
    pub self_v6_masq: Option<IpAddr>,
    /// Plain WireGuard peer.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub is_wire_guard_only: bool,
    /// May be contacted but may not initiate.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub is_jailed: bool,
}

/// A partial change of a peer; absent fields stay.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PeerChange {
    /// Which peer.
    #[serde(rename = "NodeID")]
    pub node_id: NodeId,
    /// New home region; zero is unchanged.
    #[serde(rename = "DERPRegion", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub derp_region: RegionId,
    /// New capability version.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub cap: CapVer,
    /// New capability map.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cap_map: Option<CapMap>,
    /// New endpoints.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub endpoints: Vec<SocketAddr>,
    /// New node key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<NodePublic>,
    /// New signature.
    #[serde(with = "go_bytes", skip_serializing_if = "Option::is_none")]
    pub key_signature: Option<Vec<u8>>,
    /// New disco key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disco_key: Option<DiscoPublic>,
    /// Came or went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub online: Option<bool>,
    /// When it was last seen.
    #[serde(with = "go_time", skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<DateTime<Utc>>,
    /// New expiry: outer `None` is unchanged, inner `None` is never (Go's zero time).
    #[serde(with = "expiry_change", skip_serializing_if = "Option::is_none")]
    pub key_expiry: Option<Option<DateTime<Utc>>>,
}

/// `KeyExpiry` of a patch: present-but-zero means "never expires".
mod expiry_change {
    use chrono::{DateTime, Utc};
    use serde::{Deserializer, Serializer};

    use super::go_time;

    pub(super) fn serialize<S: Serializer>(
        time: &Option<Option<DateTime<Utc>>>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        go_time::serialize(&time.flatten(), s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<Option<DateTime<Utc>>>, D::Error> {
        go_time::deserialize(d).map(Some)
    }
}
