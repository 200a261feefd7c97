//! Packet-filter rules as the destination node receives them (control.md 7.6).

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{CapMap, nil, zero};

/// One allow rule; there are no others.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct FilterRule {
    /// Address, CIDR, `a-b` range, `*`, or `cap:<node capability>`.
    #[serde(rename = "SrcIPs", deserialize_with = "nil")]
    pub src_ips: Vec<String>,
    /// Destinations and ports.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub dst_ports: Vec<NetPortRange>,
    /// Protocols; empty is TCP, UDP, ICMPv4 and ICMPv6.
    #[serde(rename = "IPProto", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub ip_proto: Vec<i32>,
    /// Application capabilities, instead of `dst_ports`.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub cap_grant: Vec<CapGrant>,
}

/// Destination addresses with ports.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetPortRange {
    /// As `SrcIPs`, without `cap:`.
    #[serde(rename = "IP", deserialize_with = "nil")]
    pub ip: String,
    /// Ports.
    pub ports: PortRange,
}

/// Ports from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PortRange {
    /// First.
    pub first: u16,
    /// Last.
    pub last: u16,
}

impl PortRange {
    /// All ports.
    pub const ANY: Self = Self { first: 0, last: 65535 };

    /// Whether `port` lies in it.
    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// Capabilities granted to the sources at these destinations.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CapGrant {
    /// Where.
    #[serde(deserialize_with = "nil")]
    pub dsts: Vec<IpNet>,
    /// Deprecated list.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub caps: Vec<String>,
    /// What.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub cap_map: CapMap,
}
