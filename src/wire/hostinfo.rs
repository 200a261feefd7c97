//! What a node says of itself (control.md 7.2).

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{nil, zero};
use crate::keys::RegionId;

/// `Hostinfo`. Fields we never look into are kept in `rest` and handed on as they came.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Hostinfo {
    /// The client's version text.
    #[serde(rename = "IPNVersion", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub ipn_version: String,
    /// Log id; never empty from official clients.
    #[serde(rename = "BackendLogID", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub backend_log_id: String,
    /// `linux`, `macOS`, `windows`, `iOS`, `android`, …
    #[serde(rename = "OS", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub os: String,
    /// OS version text.
    #[serde(rename = "OSVersion", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub os_version: String,
    /// Distribution name.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub distro: String,
    /// The name the machine gives itself; hostile text.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub hostname: String,
    /// Refuses all incoming connections.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub shields_up: bool,
    /// CPU architecture.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub machine: String,
    /// Routes the node offers.
    #[serde(rename = "RoutableIPs", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub routable_ips: Vec<IpNet>,
    /// Tags the node asks for; a request, never a fact.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub request_tags: Vec<String>,
    /// Listening services; the peerapi ones must reach peers.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub services: Vec<Service>,
    /// What the node measured of its network. Absent means unchanged, not none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_info: Option<NetInfo>,
    /// SSH host keys, when the node runs the SSH server.
    #[serde(rename = "sshHostKeys", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub ssh_host_keys: Vec<String>,
    /// Userspace networking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub userspace: Option<bool>,
    /// Updates itself when told to.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub allows_update: bool,
    /// Its state on disk is encrypted; absent is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_encrypted: Option<bool>,
    /// Every other field, untouched.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// One listening service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Service {
    /// `tcp`, `udp`, `peerapi4`, `peerapi6`, `peerapi-dns-proxy`.
    #[serde(deserialize_with = "nil")]
    pub proto: String,
    /// The port.
    #[serde(deserialize_with = "nil")]
    pub port: u16,
    /// Free text.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub description: String,
}

/// The node's view of its network (control.md 7.2).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetInfo {
    /// Hard NAT when true.
    #[serde(rename = "MappingVariesByDestIP", skip_serializing_if = "Option::is_none")]
    pub mapping_varies_by_dest_ip: Option<bool>,
    /// IPv6 works.
    #[serde(rename = "WorkingIPv6", skip_serializing_if = "Option::is_none")]
    pub working_ipv6: Option<bool>,
    /// The OS has IPv6.
    #[serde(rename = "OSHasIPv6", skip_serializing_if = "Option::is_none")]
    pub os_has_ipv6: Option<bool>,
    /// UDP works at all.
    #[serde(rename = "WorkingUDP", skip_serializing_if = "Option::is_none")]
    pub working_udp: Option<bool>,
    /// ICMPv4 works.
    #[serde(rename = "WorkingICMPv4", skip_serializing_if = "Option::is_none")]
    pub working_icmpv4: Option<bool>,
    /// A port mapping is held.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub have_port_map: bool,
    /// UPnP seen.
    #[serde(rename = "UPnP", skip_serializing_if = "Option::is_none")]
    pub upnp: Option<bool>,
    /// NAT-PMP seen.
    #[serde(rename = "PMP", skip_serializing_if = "Option::is_none")]
    pub pmp: Option<bool>,
    /// PCP seen.
    #[serde(rename = "PCP", skip_serializing_if = "Option::is_none")]
    pub pcp: Option<bool>,
    /// Home region; 0 is unknown.
    #[serde(rename = "PreferredDERP", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub preferred_derp: RegionId,
    /// `wired`, `wifi`, `mobile`.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub link_type: String,
    /// Seconds per `<region>-v4` or `<region>-v6`.
    #[serde(rename = "DERPLatency", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub derp_latency: BTreeMap<String, f64>,
    /// `nft-…` or `ipt-…`.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub firewall_mode: String,
}
