//! A configuration that may run: what every other room sees. Only `check` makes one from outside text.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use super::ServerUrl;

/// Where a listener stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Off,
    /// Here; port 0 takes a free one.
    At(SocketAddr),
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Who may read `/metrics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricsPolicy {
    /// This machine only.
    Loopback,
    /// Everybody who reaches a listener.
    Any,
    /// Nobody.
    Off,
}

/// A DNS resolver as clients take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolver(pub String);

/// Names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsConfig {
    /// Suffix without dots at the ends.
    pub base_domain: String,
    /// Whether names are pushed.
    pub magic_dns: bool,
    /// Global resolvers.
    pub resolvers: Vec<Resolver>,
    /// Suffix to resolvers.
    pub split: BTreeMap<String, Vec<Resolver>>,
    /// Further search domains.
    pub search: Vec<String>,
    /// Name and address.
    pub extra_records: Vec<(String, IpAddr)>,
}

/// One relay of a further region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    /// As written, checked.
    pub raw: super::RawRelay,
}

/// A further region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// Number.
    pub id: u64,
    /// Short code.
    pub code: String,
    /// Name.
    pub name: String,
    /// At least one.
    pub relays: Vec<Relay>,
}

/// Relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DerpConfig {
    /// Whether our own relay is offered.
    pub enabled: bool,
    /// Region number.
    pub region_id: u64,
    /// Short code.
    pub region_code: String,
    /// Name.
    pub region_name: String,
    /// Host that clients dial; the URL's when `None`.
    pub hostname: Option<String>,
    /// Port that clients dial; the TLS listener's when `None`.
    pub public_port: Option<u16>,
    /// Address, or `none`; from the URL when `None`.
    pub ipv4: Option<String>,
    /// Address, or `none`; from the URL when `None`.
    pub ipv6: Option<String>,
    /// Further regions; one with our id replaces ours.
    pub regions: Vec<Region>,
}

/// A configuration that may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where state lives.
    pub state_dir: PathBuf,
    /// What clients dial; guessed when `None`.
    pub url: Option<ServerUrl>,
    /// HTTP.
    pub listen: Listen,
    /// TLS.
    pub tls_listen: Listen,
    /// Nobody chose the TLS address, so 8443 may stand in for 443.
    pub tls_listen_is_default: bool,
    /// STUN.
    pub stun_listen: Listen,
    /// Certificate and key files.
    pub tls_files: Option<(PathBuf, PathBuf)>,
    /// Proxies whose X-Forwarded headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Policy file.
    pub policy_file: Option<PathBuf>,
    /// Mail domains of the tailnet; none: those of the users' login names.
    pub policy_domains: BTreeSet<String>,
    /// Name of the network; the URL's host when `None`.
    pub tailnet_name: Option<String>,
    /// How long a login lasts; for ever when `None`.
    pub key_expiry: Option<Duration>,
    /// How long an ephemeral node may be away.
    pub ephemeral_timeout: Duration,
    /// IPv4 pool.
    pub ipv4_pool: Ipv4Net,
    /// Who may read `/metrics`.
    pub metrics: MetricsPolicy,
    /// Log filter.
    pub log_level: String,
    /// Log format.
    pub log_format: LogFormat,
    /// Relay.
    pub derp: DerpConfig,
    /// STUN port that clients are told; the listener's when `None`.
    pub stun_public_port: Option<u16>,
    /// Names.
    pub dns: DnsConfig,
}
