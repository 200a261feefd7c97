//! The check of names, resolvers and records.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::check::Faults;
use super::checked::{DnsConfig, Resolver};
use super::raw::RawConfig;

/// Checks `dns`.
pub(super) fn dns(f: &mut Faults, raw: &RawConfig) -> DnsConfig {
    let raw = &raw.dns;
    let base = raw.base_domain.as_deref().unwrap_or("tail.internal");
    let base_domain = f.take("dns.base_domain", domain(base), "tail.internal".to_owned());
    let resolvers = resolvers(f, "dns.resolvers", raw.resolvers.as_deref().unwrap_or_default());
    let mut split = BTreeMap::new();
    for (suffix, list) in raw.split.iter().flatten() {
        match domain(suffix) {
            Ok(suffix) => drop(split.insert(suffix, self::resolvers(f, "dns.split", list))),
            Err(text) => f.add("dns.split", text),
        }
    }
    let mut search = Vec::new();
    for text in raw.search.iter().flatten() {
        match domain(text) {
            Ok(name) => search.push(name),
            Err(text) => f.add("dns.search", text),
        }
    }
    let mut extra_records = Vec::new();
    for record in raw.extra_records.iter().flatten() {
        let kind_fits = |ip: &IpAddr| match record.kind.as_str() {
            "" => true,
            "A" => ip.is_ipv4(),
            "AAAA" => ip.is_ipv6(),
            _ => false,
        };
        match (domain(&record.name), record.value.parse::<IpAddr>()) {
            (Ok(name), Ok(ip)) if kind_fits(&ip) => extra_records.push((name, ip)),
            (Err(text), _) => f.add("dns.extra_records", text),
            _ => f.add(
                "dns.extra_records",
                format!(
                    "{}: {:?} is no address of type {:?}; only A and AAAA are served",
                    record.name, record.value, record.kind
                ),
            ),
        }
    }
    DnsConfig {
        base_domain,
        magic_dns: raw.magic_dns.unwrap_or(true),
        resolvers,
        split,
        search,
        extra_records,
    }
}

fn resolvers(f: &mut Faults, key: &str, texts: &[String]) -> Vec<Resolver> {
    let mut out = Vec::new();
    for text in texts {
        let ok = text.parse::<IpAddr>().is_ok()
            || text.parse::<SocketAddr>().is_ok()
            || (text.starts_with("https://") && text.parse::<http::Uri>().is_ok());
        if ok {
            out.push(Resolver(text.clone()));
        } else {
            f.add(key, format!("{text:?} is no resolver; write an address (1.1.1.1), address:port, or a DoH URL (https://…)"));
        }
    }
    out
}

/// A domain in lower case without dots at the ends.
fn domain(text: &str) -> Result<String, String> {
    let name = text.trim_matches('.').to_ascii_lowercase();
    let label_ok = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    if name.len() <= 200 && name.split('.').all(label_ok) {
        Ok(name)
    } else {
        Err(format!(
            "{text:?} is no domain; write letters, digits and dashes between dots, such as tail.internal"
        ))
    }
}
