//! Names as pushed to nodes (control.md 7.4). Clients derive the records of the tailnet's nodes from
//! their peers; here only the base domain, resolvers and the extra records are said.

use super::types::Settings;
use crate::wire::DnsConfig;

/// The configuration every node gets.
#[must_use]
pub(super) fn build(settings: &Settings) -> DnsConfig {
    let mut domains = Vec::new();
    let mut routes = settings.split.clone();
    if settings.magic_dns {
        domains.push(settings.base_domain.clone());
        // An empty list: the client answers these itself, authoritatively.
        routes.entry(settings.base_domain.clone()).or_default();
    }
    for search in &settings.search {
        if !domains.contains(search) {
            domains.push(search.clone());
        }
    }
    DnsConfig {
        resolvers: settings.resolvers.clone(),
        routes,
        domains,
        proxied: settings.magic_dns,
        extra_records: settings.extra_records.clone(),
        ..DnsConfig::default()
    }
}
