//! The map of relays (control.md 7.5).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{nil, zero};
use crate::keys::RegionId;

/// All regions.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DerpMap {
    /// Scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub home_params: Option<DerpHomeParams>,
    /// Regions by id; null values are dropped on reading.
    #[serde(deserialize_with = "regions")]
    pub regions: BTreeMap<RegionId, DerpRegion>,
    /// Only meaningful on the hosted service.
    #[serde(rename = "omitDefaultRegions", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub omit_default_regions: bool,
}

fn regions<'de, D: serde::Deserializer<'de>>(d: D) -> Result<BTreeMap<RegionId, DerpRegion>, D::Error> {
    let all = Option::<BTreeMap<RegionId, Option<DerpRegion>>>::deserialize(d)?.unwrap_or_default();
    Ok(all.into_iter().filter_map(|(id, r)| Some((id, r?))).collect())
}

/// Weights for the choice of the home region.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DerpHomeParams {
    /// Latency multipliers.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub region_score: BTreeMap<RegionId, f64>,
}

/// A place with relays.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DerpRegion {
    /// Equal to the map key.
    #[serde(rename = "RegionID")]
    pub region_id: RegionId,
    /// Short code shown by clients.
    #[serde(deserialize_with = "nil")]
    pub region_code: String,
    /// Name shown by clients.
    #[serde(deserialize_with = "nil")]
    pub region_name: String,
    /// Deprecated.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub avoid: bool,
    /// Never measured, never home.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub no_measure_no_home: bool,
    /// In order of priority.
    #[serde(deserialize_with = "nil")]
    pub nodes: Vec<DerpNode>,
}

/// One relay.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DerpNode {
    /// Unique everywhere.
    #[serde(deserialize_with = "nil")]
    pub name: String,
    /// Its region.
    #[serde(rename = "RegionID")]
    pub region_id: RegionId,
    /// Name or address to dial; an IPv6 address in brackets where the port is 443, see [`DerpNode::host`].
    #[serde(deserialize_with = "nil")]
    pub host_name: String,
    /// Name to verify instead, or `sha256-raw:<hex>`.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub cert_name: String,
    /// Literal, or `none`.
    #[serde(rename = "IPv4", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub ipv4: String,
    /// Literal, or `none`.
    #[serde(rename = "IPv6", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub ipv6: String,
    /// 0 is 3478, negative is none.
    #[serde(rename = "STUNPort", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub stun_port: i32,
    /// No relay, only STUN.
    #[serde(rename = "STUNOnly", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub stun_only: bool,
    /// 0 is 443.
    #[serde(rename = "DERPPort", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub derp_port: u16,
    /// Skip TLS verification.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub insecure_for_tests: bool,
    /// Where to send STUN instead.
    #[serde(rename = "STUNTestIP", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub stun_test_ip: String,
    /// Serves captive-portal checks on port 80.
    #[serde(rename = "CanPort80", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub can_port80: bool,
}

impl DerpNode {
    /// The name or address without brackets. Clients make a URL of the field as it is and add a port only
    /// when it is not 443, so that an IPv6 address has to bring its own brackets then.
    #[must_use]
    pub fn host(&self) -> &str {
        let inner = self.host_name.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        inner.unwrap_or(&self.host_name)
    }
}
