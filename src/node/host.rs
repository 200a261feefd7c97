//! What this host is: name, kernel, distribution, as told to the server (control.md 7.2).

use std::collections::BTreeMap;

use serde_json::Value;

use super::prefs::Prefs;
use crate::wire::{Hostinfo, NetInfo};

/// The version this node reports.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "-tsd");

/// The hostname of the machine.
#[must_use]
pub fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "localhost".to_owned(),
        name => name.to_owned(),
    }
}

fn distro(os_release: &str) -> String {
    let id = os_release.lines().find_map(|l| l.strip_prefix("ID="));
    id.unwrap_or_default().trim_matches('"').to_owned()
}

/// Builds the self-description.
#[must_use]
pub fn hostinfo(prefs: &Prefs, log_id: &str, net_info: Option<NetInfo>) -> Hostinfo {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let os_release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let mut rest = BTreeMap::new();
    rest.insert("GoArch".to_owned(), Value::from(arch));
    rest.insert("NoLogsNoSupport".to_owned(), Value::from(true));
    let hostname = if prefs.hostname.is_empty() { hostname() } else { prefs.hostname.clone() };
    Hostinfo {
        ipn_version: VERSION.to_owned(),
        backend_log_id: log_id.to_owned(),
        os: "linux".to_owned(),
        os_version: release.trim().to_owned(),
        distro: distro(&os_release),
        hostname,
        shields_up: prefs.shields_up,
        machine: std::env::consts::ARCH.to_owned(),
        routable_ips: prefs.advertise_routes.clone().unwrap_or_default(),
        request_tags: prefs.advertise_tags.clone().unwrap_or_default(),
        net_info,
        userspace: Some(false),
        rest,
        ..Hostinfo::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_given_name_wins_and_the_distribution_is_read() {
        let prefs = Prefs { hostname: "o1".into(), ..Prefs::default() };
        assert_eq!(hostinfo(&prefs, "x", None).hostname, "o1");
        assert_eq!(distro("NAME=x\nID=\"debian\"\n"), "debian");
    }
}
