//! Map requests and responses (control.md 6).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    CapVer, DerpMap, DnsConfig, FilterRule, Hostinfo, Node, PeerChange, SshPolicy, go_bytes, go_time, nil,
    zero,
};
use crate::keys::{DiscoPublic, NodeId, NodePublic, RegionId, UserId};

/// What a node asks and tells.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MapRequest {
    /// Capability version.
    pub version: CapVer,
    /// `zstd` or empty.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub compress: String,
    /// Wants keep-alives.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub keep_alive: bool,
    /// Who asks.
    pub node_key: NodePublic,
    /// Its disco key.
    #[serde(deserialize_with = "nil")]
    pub disco_key: DiscoPublic,
    /// Long poll.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub stream: bool,
    /// Self-description.
    pub hostinfo: Option<Hostinfo>,
    /// Resume handle; ignored.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub map_session_handle: String,
    /// Resume sequence; ignored.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub map_session_seq: i64,
    /// Its endpoints.
    #[serde(deserialize_with = "lenient_endpoints", skip_serializing_if = "zero")]
    pub endpoints: Vec<SocketAddr>,
    /// Kinds, parallel to `endpoints`.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub endpoint_types: Vec<EndpointType>,
    /// Tailnet-lock head.
    #[serde(rename = "TKAHead", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub tka_head: String,
    /// Apply nothing.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub read_only: bool,
    /// Lite update.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub omit_peers: bool,
    /// Problems the client reports.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub debug_flags: Vec<String>,
}

/// Endpoints that do not parse are dropped one by one; a bad one must not end the poll.
fn lenient_endpoints<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<SocketAddr>, D::Error> {
    let texts = Option::<Vec<String>>::deserialize(d)?.unwrap_or_default();
    Ok(texts.iter().filter_map(|t| t.parse().ok()).collect())
}

/// How an endpoint was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EndpointType(pub i32);

impl EndpointType {
    /// An interface address.
    pub const LOCAL: Self = Self(1);
    /// Seen by STUN.
    pub const STUN: Self = Self(2);
    /// Port-mapped.
    pub const PORTMAPPED: Self = Self(3);
    /// STUN address with the local port.
    pub const STUN4_LOCAL_PORT: Self = Self(4);
    /// Configured.
    pub const EXPLICIT: Self = Self(5);
}

/// One message of the map stream. `None` is "unchanged" everywhere; an empty list is not.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MapResponse {
    /// Nothing else in the message counts but pings, pop-ups, versions and time.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub keep_alive: bool,
    /// A ping to answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ping_request: Option<PingRequest>,
    /// Open this once.
    #[serde(rename = "PopBrowserURL", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub pop_browser_url: String,
    /// Self, always whole; required in the first message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Node>,
    /// Relays.
    #[serde(rename = "DERPMap", skip_serializing_if = "Option::is_none")]
    pub derp_map: Option<DerpMap>,
    /// Full replacement, sorted by id. Leave out when there is nothing to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peers: Option<Vec<Node>>,
    /// Added or wholly replaced, sorted by id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peers_changed: Option<Vec<Node>>,
    /// Gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peers_removed: Option<Vec<NodeId>>,
    /// Partial changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peers_changed_patch: Option<Vec<PeerChange>>,
    /// true: seen now; false: unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_seen_change: Option<BTreeMap<NodeId, bool>>,
    /// Sets `Online`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub online_change: Option<BTreeMap<NodeId, bool>>,
    /// Whole replacement.
    #[serde(rename = "DNSConfig", skip_serializing_if = "Option::is_none")]
    pub dns_config: Option<DnsConfig>,
    /// Tailnet name for display.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub domain: String,
    /// Whether to list local listeners.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collect_services: Option<bool>,
    /// The chunk `base`; empty blocks everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet_filter: Option<Vec<FilterRule>>,
    /// Named chunks; null deletes, key `*` null clears first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet_filters: Option<BTreeMap<String, Option<Vec<FilterRule>>>>,
    /// Additive.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub user_profiles: Vec<UserProfile>,
    /// Plain-text problems; superseded by `display_messages`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Vec<String>>,
    /// Named messages; null deletes, key `*` null clears first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display_messages: Option<BTreeMap<String, Option<DisplayMessage>>>,
    /// SSH rules.
    #[serde(rename = "SSHPolicy", skip_serializing_if = "Option::is_none")]
    pub ssh_policy: Option<SshPolicy>,
    /// The server's clock.
    #[serde(with = "go_time", skip_serializing_if = "Option::is_none")]
    pub control_time: Option<DateTime<Utc>>,
    /// Tailnet lock.
    #[serde(rename = "TKAInfo", skip_serializing_if = "Option::is_none")]
    pub tka_info: Option<TkaInfo>,
    /// Debug settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debug: Option<DebugSettings>,
    /// Newer releases.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_version: Option<ClientVersion>,
}

/// A ping the server asks for (control.md 6.5).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PingRequest {
    /// Unique, unguessable.
    #[serde(rename = "URL", deserialize_with = "nil")]
    pub url: String,
    /// Over Noise rather than HTTPS.
    #[serde(rename = "URLIsNoise", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub url_is_noise: bool,
    /// Log it.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub log: bool,
    /// Empty, `c2n`, or a list of ping kinds.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub types: String,
    /// Whom to ping.
    #[serde(rename = "IP", skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// The c2n request.
    #[serde(with = "go_bytes", skip_serializing_if = "Option::is_none")]
    pub payload: Option<Vec<u8>>,
}

/// The result of a ping, to control and to the LocalAPI's callers alike.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PingResponse {
    /// The kind asked.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub r#type: String,
    /// The address asked.
    #[serde(rename = "IP", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub ip: String,
    /// The node's address.
    #[serde(rename = "NodeIP", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub node_ip: String,
    /// The node's name.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub node_name: String,
    /// What failed.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub err: String,
    /// Round trip.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub latency_seconds: f64,
    /// `ip:port` when direct.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub endpoint: String,
    /// Region when relayed.
    #[serde(rename = "DERPRegionID", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub derp_region_id: RegionId,
    /// Region's code when relayed.
    #[serde(rename = "DERPRegionCode", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub derp_region_code: String,
    /// The peer's PeerAPI port.
    #[serde(rename = "PeerAPIPort", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub peer_api_port: u16,
    /// The address is our own.
    #[serde(rename = "IsLocalIP", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub is_local_ip: bool,
}

/// Who owns nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UserProfile {
    /// Id.
    #[serde(rename = "ID")]
    pub id: UserId,
    /// Login name.
    #[serde(deserialize_with = "nil")]
    pub login_name: String,
    /// Shown name.
    #[serde(deserialize_with = "nil")]
    pub display_name: String,
    /// Picture.
    #[serde(rename = "ProfilePicURL", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub profile_pic_url: String,
}

/// A named problem shown by clients.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DisplayMessage {
    /// Headline.
    #[serde(deserialize_with = "nil")]
    pub title: String,
    /// Body.
    #[serde(deserialize_with = "nil")]
    pub text: String,
    /// `high`, `medium`, `low`.
    #[serde(deserialize_with = "nil")]
    pub severity: String,
    /// Connections suffer.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub impacts_connectivity: bool,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary_action: Option<DisplayMessageAction>,
}

/// A link under a [`DisplayMessage`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DisplayMessageAction {
    /// Where.
    #[serde(rename = "URL", deserialize_with = "nil")]
    pub url: String,
    /// What it says.
    #[serde(deserialize_with = "nil")]
    pub label: String,
}

/// Tailnet-lock state.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TkaInfo {
    /// Head hash.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub head: String,
    /// Turned off.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub disabled: bool,
}

/// `Debug` of a map response.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DebugSettings {
    /// Pause, at most 300 s.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub sleep_seconds: f64,
    /// Stops log upload for good in that process.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub disable_log_tail: bool,
    /// Exit with this code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
}

/// What release is newest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ClientVersion {
    /// Silences update prompts.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub running_latest: bool,
    /// Newest version.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub latest_version: String,
}
