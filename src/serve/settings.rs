//! From configuration and the running server's ports to what the coordination server is told.

use super::derp_map::{self, Reachable};
use crate::config::{Config, Resolver as Written, ServerUrl};
use crate::control::service::Settings;
use crate::wire::{DnsRecord, Resolver};

/// How the server is reached; fixed for a run but for the URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct World {
    /// What clients dial.
    pub url: ServerUrl,
    /// Nobody chose it.
    pub guessed: bool,
    /// The TLS listener's port; `None` when off.
    pub tls_port: Option<u16>,
    /// The HTTP listener's port; `None` when off.
    pub http_port: Option<u16>,
    /// The STUN listener's port; `None` when off.
    pub stun_port: Option<u16>,
    /// The certificate that clients pin; `None` when they need not.
    pub pin: Option<String>,
}

/// Builds the settings.
#[must_use]
pub(super) fn build(config: &Config, world: &World) -> Settings {
    let reachable = Reachable {
        url: world.url.clone(),
        tls_port: world.tls_port,
        stun_port: world.stun_port,
        pin: world.pin.clone(),
    };
    let dns = &config.dns;
    Settings {
        url: world.url.to_string(),
        base_domain: dns.base_domain.clone(),
        tailnet_name: config.tailnet_name.clone().unwrap_or_else(|| world.url.host.clone()),
        derp_map: derp_map::build(config, &reachable),
        resolvers: resolvers(&dns.resolvers),
        split: dns.split.iter().map(|(suffix, list)| (suffix.clone(), resolvers(list))).collect(),
        search: dns.search.clone(),
        extra_records: dns
            .extra_records
            .iter()
            .map(|(name, ip)| DnsRecord {
                name: name.clone(),
                r#type: if ip.is_ipv4() { "A" } else { "AAAA" }.to_owned(),
                value: ip.to_string(),
            })
            .collect(),
        magic_dns: dns.magic_dns,
        key_expiry: config.key_expiry,
        ephemeral_timeout: config.ephemeral_timeout,
        ipv4_pool: config.ipv4_pool,
        domains: config.policy_domains.clone(),
        policy_file: config.policy_file.clone(),
    }
}

fn resolvers(written: &[Written]) -> Vec<Resolver> {
    written.iter().map(|r| Resolver { addr: r.0.clone(), ..Resolver::default() }).collect()
}
