//! The keys of the configuration as they are written: every field optional, nothing checked yet.
//! The set of keys is derived from these structs alone; `config.example.toml` is tested against it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Everything a file, the environment or flags may say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RawConfig {
    /// Where keys, database and admin socket live.
    pub state_dir: Option<String>,
    /// What clients are told to dial.
    pub url: Option<String>,
    /// HTTP listener.
    pub listen: Option<String>,
    /// TLS listener.
    pub tls_listen: Option<String>,
    /// STUN listener.
    pub stun_listen: Option<String>,
    /// Certificate chain file, PEM.
    pub tls_cert: Option<String>,
    /// Private key file, PEM.
    pub tls_key: Option<String>,
    /// Proxies whose X-Forwarded headers are believed.
    pub trusted_proxies: Option<Vec<String>>,
    /// Policy file that SIGHUP reads again.
    pub policy_file: Option<String>,
    /// Name of the network shown by clients.
    pub tailnet_name: Option<String>,
    /// How long a login lasts.
    pub key_expiry: Option<String>,
    /// How long an ephemeral node may be away.
    pub ephemeral_timeout: Option<String>,
    /// Where IPv4 addresses are taken from.
    pub ipv4_pool: Option<String>,
    /// Who may read `/metrics`.
    pub metrics: Option<String>,
    /// Logs.
    pub log: RawLog,
    /// Relay.
    pub derp: RawDerp,
    /// STUN as seen from outside.
    pub stun: RawStun,
    /// Names.
    pub dns: RawDns,
    /// Access rules.
    pub policy: RawPolicy,
}

/// `[policy]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RawPolicy {
    /// Mail domains of the tailnet.
    pub domains: Option<Vec<String>>,
}

/// `[log]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RawLog {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter.
    pub level: Option<String>,
    /// `text` or `json`.
    pub format: Option<String>,
}

/// `[derp]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RawDerp {
    /// Whether our own relay is offered.
    pub enabled: Option<bool>,
    /// Region number, 900 to 999 for operators.
    pub region_id: Option<u64>,
    /// Short code shown by clients.
    pub region_code: Option<String>,
    /// Name shown by clients.
    pub region_name: Option<String>,
    /// Host that clients dial.
    pub hostname: Option<String>,
    /// Port that clients dial.
    pub public_port: Option<u16>,
    /// Address that clients dial, or `none`.
    pub ipv4: Option<String>,
    /// Address that clients dial, or `none`.
    pub ipv6: Option<String>,
    /// Further regions; one with our id replaces ours.
    pub regions: Option<Vec<RawRegion>>,
}

/// `[[derp.regions]]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawRegion {
    /// Region number.
    pub id: u64,
    /// Short code.
    pub code: String,
    /// Name; the code when absent.
    #[serde(default)]
    pub name: String,
    /// Relays, in order of priority.
    #[serde(default)]
    pub nodes: Vec<RawRelay>,
}

/// `[[derp.regions.nodes]]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawRelay {
    /// Unique name.
    pub name: String,
    /// Host to dial.
    pub hostname: String,
    /// Name to verify instead, or `sha256-raw:<hex>`.
    #[serde(default)]
    pub cert_name: String,
    /// Literal or `none`.
    #[serde(default)]
    pub ipv4: String,
    /// Literal or `none`.
    #[serde(default)]
    pub ipv6: String,
    /// 0 is 3478, -1 is none.
    #[serde(default)]
    pub stun_port: i32,
    /// 0 is 443.
    #[serde(default)]
    pub derp_port: u16,
    /// No relay, only STUN.
    #[serde(default)]
    pub stun_only: bool,
}

/// `[stun]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RawStun {
    /// Port that clients are told.
    pub public_port: Option<u16>,
}

/// `[dns]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RawDns {
    /// Suffix of all nodes.
    pub base_domain: Option<String>,
    /// Whether names are pushed at all.
    pub magic_dns: Option<bool>,
    /// Global resolvers.
    pub resolvers: Option<Vec<String>>,
    /// Suffix to resolvers.
    pub split: Option<BTreeMap<String, Vec<String>>>,
    /// Further search domains.
    pub search: Option<Vec<String>>,
    /// Records of our own.
    pub extra_records: Option<Vec<RawRecord>>,
}

/// `[[dns.extra_records]]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawRecord {
    /// Full name.
    pub name: String,
    /// `A` or `AAAA`; derived from the value when absent.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// Address.
    pub value: String,
}

/// All keys with their dots, leaves only, in order.
#[must_use]
pub fn key_paths() -> Vec<String> {
    let mut out = Vec::new();
    let Ok(serde_json::Value::Object(top)) = serde_json::to_value(RawConfig::default()) else {
        return out;
    };
    for (key, value) in top {
        match value {
            serde_json::Value::Object(inner) => {
                out.extend(inner.keys().map(|k| format!("{key}.{k}")));
            }
            _ => out.push(key),
        }
    }
    out
}

/// The environment variable of a key: `derp.public_port` is `TSD_DERP_PUBLIC_PORT`.
#[must_use]
pub fn env_name(path: &str) -> String {
    format!("TSD_{}", path.replace('.', "_").to_ascii_uppercase())
}

/// The flag of a key where there is one: `tls_listen` is `--tls-listen`, `log.level` `--log-level`.
#[must_use]
pub(super) fn flag_name(path: &str) -> String {
    format!("--{}", path.replace(['.', '_'], "-"))
}
