//! From what was written to what may run: the pure check. Every fault is found, not only the first;
//! impossible combinations are refused here so that no other room has to think of them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use super::ServerUrl;
use super::check_derp::derp;
use super::check_dns::dns;
use super::checked::{Config, Listen, LogFormat, MetricsPolicy};
use super::duration::parse_duration;
use super::raw::RawConfig;

/// One thing that is wrong: the key it belongs to and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Dotted key.
    pub key: String,
    /// What is wrong, and the remedy.
    pub text: String,
}

/// Where state goes when nobody says.
#[must_use]
pub fn default_state_dir(root: bool, xdg: Option<PathBuf>, home: Option<PathBuf>) -> PathBuf {
    if let Some(xdg) = xdg.filter(|x| x.is_absolute()) {
        return xdg.join("tsd");
    }
    match home {
        Some(home) if !root && home.is_absolute() => home.join(".local/state/tsd"),
        _ => PathBuf::from("/var/lib/tsd"),
    }
}

/// Faults found so far.
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn add(&mut self, key: &str, text: impl Into<String>) {
        self.0.push(Fault { key: key.to_owned(), text: text.into() });
    }

    pub(super) fn take<T>(&mut self, key: &str, result: Result<T, String>, fallback: T) -> T {
        match result {
            Ok(value) => value,
            Err(text) => {
                self.add(key, text);
                fallback
            }
        }
    }
}

/// Checks what was written.
///
/// # Errors
/// All faults.
pub fn check(raw: &RawConfig, default_state_dir: &Path) -> Result<Config, Vec<Fault>> {
    let mut f = Faults(Vec::new());
    let url = raw.url.as_deref().and_then(|text| f.take("url", ServerUrl::parse(text).map(Some), None));
    let listen = listener(&mut f, "listen", raw.listen.as_deref(), 8080);
    let tls_listen = listener(&mut f, "tls_listen", raw.tls_listen.as_deref(), 443);
    let stun_listen = listener(&mut f, "stun_listen", raw.stun_listen.as_deref(), 3478);
    let tls_files = match (&raw.tls_cert, &raw.tls_key) {
        (Some(cert), Some(key)) => Some((PathBuf::from(cert), PathBuf::from(key))),
        (Some(_), None) => {
            f.add("tls_cert", "needs tls_key beside it: the private key of the certificate");
            None
        }
        (None, Some(_)) => {
            f.add("tls_key", "needs tls_cert beside it: the certificate chain of the key");
            None
        }
        (None, None) => None,
    };
    let trusted_proxies = proxies(&mut f, raw.trusted_proxies.as_deref().unwrap_or_default());
    let state_dir = raw.state_dir.as_ref().map_or_else(|| default_state_dir.to_owned(), PathBuf::from);
    if state_dir.as_os_str().is_empty() {
        f.add("state_dir", "is empty; name a directory, such as /var/lib/tsd");
    }
    let metrics = match raw.metrics.as_deref().unwrap_or("loopback") {
        "loopback" => MetricsPolicy::Loopback,
        "any" => MetricsPolicy::Any,
        "off" => MetricsPolicy::Off,
        other => {
            f.take("metrics", Err(format!("{other:?} is none of loopback, any, off")), MetricsPolicy::Off)
        }
    };
    let config = Config {
        state_dir,
        url,
        listen,
        tls_listen,
        tls_listen_is_default: raw.tls_listen.is_none(),
        stun_listen,
        tls_files,
        trusted_proxies,
        policy_file: raw.policy_file.as_ref().map(PathBuf::from),
        policy_domains: domains(&mut f, raw.policy.domains.as_deref().unwrap_or_default()),
        tailnet_name: raw.tailnet_name.clone(),
        key_expiry: key_expiry(&mut f, raw.key_expiry.as_deref()),
        ephemeral_timeout: ephemeral_timeout(&mut f, raw.ephemeral_timeout.as_deref()),
        ipv4_pool: pool(&mut f, raw.ipv4_pool.as_deref()),
        metrics,
        log_level: raw.log.level.clone().unwrap_or_else(|| "info".to_owned()),
        log_format: log_format(&mut f, raw.log.format.as_deref()),
        derp: derp(&mut f, raw),
        stun_public_port: port(&mut f, "stun.public_port", raw.stun.public_port),
        dns: dns(&mut f, raw),
    };
    if config.log_level.parse::<tracing_subscriber::filter::EnvFilter>().is_err() {
        let text = format!("{:?} is no log level; write error, warn, info, debug or trace", config.log_level);
        f.add("log.level", text);
    }
    combinations(&mut f, &config);
    if f.0.is_empty() { Ok(config) } else { Err(f.0) }
}

/// Mail domains: `example.com`, as they stand behind the `@`.
fn domains(f: &mut Faults, written: &[String]) -> BTreeSet<String> {
    let fine = |d: &str| {
        !d.is_empty()
            && d.split('.').all(|l| !l.is_empty() && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'))
    };
    for domain in written.iter().filter(|d| !fine(d)) {
        f.add("policy.domains", format!("{domain:?} is no mail domain; write it like example.com"));
    }
    written.iter().cloned().collect()
}

/// What is fine alone but cannot be together.
fn combinations(f: &mut Faults, config: &Config) {
    if config.listen == Listen::Off && config.tls_listen == Listen::Off {
        f.add("listen", "listen and tls_listen are both off: nobody could reach the server; leave one on");
    }
    if let (Listen::At(a), Listen::At(b)) = (config.listen, config.tls_listen)
        && a == b
        && a.port() != 0
    {
        f.add("tls_listen", format!("listen and tls_listen are both {a}; give them different ports"));
    }
    let https = config.url.as_ref().is_some_and(|u| u.https);
    if https && config.tls_files.is_none() && config.trusted_proxies.is_empty() {
        f.add(
            "url",
            "an https:// URL needs a certificate that clients trust: set tls_cert and tls_key, or name the proxy in front in trusted_proxies, or use http:// (joins are protected by Noise either way)",
        );
    }
    if https && config.tls_listen == Listen::Off && config.trusted_proxies.is_empty() {
        f.add(
            "tls_listen",
            "is off, but the URL is https://; turn it on, or name the proxy in front in trusted_proxies",
        );
    }
    if config.tls_files.is_some() && config.tls_listen == Listen::Off {
        f.add("tls_cert", "is set, but tls_listen is off; turn it on or remove tls_cert and tls_key");
    }
    if !config.derp.enabled && config.derp.regions.is_empty() {
        f.add("derp.enabled", "is false and derp.regions is empty: clients that cannot reach each other directly would have no way; enable it or add a region");
    }
}

fn listener(f: &mut Faults, key: &str, text: Option<&str>, default_port: u16) -> Listen {
    match text {
        None => Listen::At(SocketAddr::from((Ipv6Addr::UNSPECIFIED, default_port))),
        Some("off") => Listen::Off,
        Some(text) => match text.parse() {
            Ok(addr) => Listen::At(addr),
            Err(_) => {
                f.add(key, format!("{text:?} is no listener; write addr:port such as [::]:{default_port} or 127.0.0.1:0, or off"));
                Listen::Off
            }
        },
    }
}

fn proxies(f: &mut Faults, texts: &[String]) -> Vec<IpNet> {
    let mut out = Vec::new();
    for text in texts {
        let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        match net {
            Some(net) => out.push(net.trunc()),
            None => f.add(
                "trusted_proxies",
                format!("{text:?} is no address or prefix; write 10.0.0.5 or 10.0.0.0/24"),
            ),
        }
    }
    out
}

/// A port that clients dial.
pub(super) fn port(f: &mut Faults, key: &str, port: Option<u16>) -> Option<u16> {
    if port == Some(0) {
        f.add(key, "0 cannot be dialled; give the port that clients see, 1 to 65535");
    }
    port
}

fn key_expiry(f: &mut Faults, text: Option<&str>) -> Option<Duration> {
    let text = text.filter(|t| *t != "none")?;
    match parse_duration(text) {
        Ok(d) if d < Duration::from_secs(60) => {
            f.add("key_expiry", format!("{text:?} would log devices out at once; give at least 1m, or none"));
            None
        }
        Ok(d) => Some(d),
        Err(error) => {
            f.add("key_expiry", format!("{error}, or none"));
            None
        }
    }
}

fn ephemeral_timeout(f: &mut Faults, text: Option<&str>) -> Duration {
    let text = text.unwrap_or("30m");
    let parsed = parse_duration(text).map_err(|e| e.to_string());
    f.take("ephemeral_timeout", parsed, Duration::from_secs(1800))
}

fn pool(f: &mut Faults, text: Option<&str>) -> Ipv4Net {
    // RFC 6598's range: what the clients themselves take for tailnet addresses.
    let whole = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);
    let Some(text) = text else { return whole };
    match text.parse::<Ipv4Net>() {
        Ok(net) if whole.contains(&net) && net.prefix_len() <= 24 => net.trunc(),
        Ok(_) => {
            f.add("ipv4_pool", format!("{text} must lie in 100.64.0.0/10 and be /24 or larger; clients take nothing else for tailnet addresses"));
            whole
        }
        Err(_) => {
            f.add("ipv4_pool", format!("{text:?} is no IPv4 prefix; write 100.64.0.0/10"));
            whole
        }
    }
}

fn log_format(f: &mut Faults, text: Option<&str>) -> LogFormat {
    match text.unwrap_or("text") {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        other => f.take("log.format", Err(format!("{other:?} is neither text nor json")), LogFormat::Text),
    }
}
