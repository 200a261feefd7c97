//! DNS as pushed to nodes (control.md 7.4).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{nil, zero};

/// `DNSConfig`; always a whole replacement.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DnsConfig {
    /// Global resolvers; non-empty overrides local DNS.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub resolvers: Vec<Resolver>,
    /// Split DNS; an empty list answers here, authoritatively.
    #[serde(deserialize_with = "routes", skip_serializing_if = "zero")]
    pub routes: BTreeMap<String, Vec<Resolver>>,
    /// Used where split DNS is impossible.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub fallback_resolvers: Vec<Resolver>,
    /// Search domains, no trailing dot.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub domains: Vec<String>,
    /// MagicDNS is on.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub proxied: bool,
    /// Names this node may get certificates for.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub cert_domains: Vec<String>,
    /// Extra A and AAAA records.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub extra_records: Vec<DnsRecord>,
    /// Names an exit node must not resolve for others.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub exit_node_filtered_set: Vec<String>,
}

fn routes<'de, D: serde::Deserializer<'de>>(d: D) -> Result<BTreeMap<String, Vec<Resolver>>, D::Error> {
    let all = Option::<BTreeMap<String, Option<Vec<Resolver>>>>::deserialize(d)?.unwrap_or_default();
    Ok(all.into_iter().map(|(k, v)| (k, v.unwrap_or_default())).collect())
}

/// One resolver.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Resolver {
    /// `IP`, `IP:port`, or a DoH URL.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub addr: String,
    /// Keep using it behind an exit node.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub use_with_exit_node: bool,
}

/// One extra record.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DnsRecord {
    /// Full name.
    #[serde(deserialize_with = "nil")]
    pub name: String,
    /// `A`, `AAAA` or empty.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub r#type: String,
    /// The address.
    #[serde(deserialize_with = "nil")]
    pub value: String,
}
