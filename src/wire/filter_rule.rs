//! Packet-filter rules as the destination node receives them (control.md 7.6).

use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};

use super::{CapMap, nil, zero};

/// One allow rule; there are no others.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct FilterRule {
    /// Address, CIDR, `a-b` range, `*`, or `cap:<node capability>`.
    #[serde(rename = "SrcIPs", deserialize_with = "nil")]
    pub src_ips: SrcIps,
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

/// Source addresses as texts. A list is made once and shared by the rules of all nodes that have it: the
/// same thousand sources stand in the filters of a thousand nodes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct SrcIps(Arc<[Arc<str>]>);

impl Default for SrcIps {
    fn default() -> Self {
        Self(Arc::from([]))
    }
}

impl std::ops::Deref for SrcIps {
    type Target = [Arc<str>];
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<T: Into<Arc<str>>> FromIterator<T> for SrcIps {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Self(items.into_iter().map(Into::into).collect())
    }
}

impl<'a> IntoIterator for &'a SrcIps {
    type Item = &'a Arc<str>;
    type IntoIter = std::slice::Iter<'a, Arc<str>>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<'de> Deserialize<'de> for SrcIps {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Vec::<String>::deserialize(from)?.into_iter().collect())
    }
}

/// Destination addresses with ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetPortRange {
    /// As `SrcIPs`, without `cap:`.
    #[serde(rename = "IP", deserialize_with = "nil_text")]
    pub ip: Arc<str>,
    /// Ports.
    pub ports: PortRange,
}

impl Default for NetPortRange {
    fn default() -> Self {
        Self { ip: Arc::from(""), ports: PortRange::default() }
    }
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

fn nil_text<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<str>, D::Error> {
    Ok(nil::<D, String>(from)?.into())
}
