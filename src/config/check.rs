//! From what was written to what may run: the pure check. Every fault is found, not only the first;
//! impossible combinations are refused here so that no other room has to think of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

use super::duration::parse_duration;
use super::raw::{RawConfig, RawRegion};

/// One thing that is wrong: the key it belongs to and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Dotted key.
    pub key: String,
    /// What is wrong, and the remedy.
    pub text: String,
}

/// Where a listener stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Off,
    /// Here; port 0 takes a free one.
    At(SocketAddr),
}

/// The URL clients dial: scheme, host and port, nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUrl {
    /// `https`, else `http`.
    pub https: bool,
    /// Name or address, without brackets.
    pub host: String,
    /// Port, the scheme's own included.
    pub port: u16,
}

impl ServerUrl {
    /// The host as an address, when it is one.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Reads `http://host[:port]`.
    ///
    /// # Errors
    /// A sentence with the remedy.
    pub fn parse(text: &str) -> Result<Self, String> {
        let example = "write it like http://203.0.113.9:8080 or https://vpn.example.com";
        let uri: http::Uri = text.parse().map_err(|_| format!("{text:?} is no URL; {example}"))?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => {
                return Err(format!("{text:?} has no http:// or https:// in front; {example}"));
            }
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(format!("{text:?} has a path; clients need the bare server; {example}"));
        }
        let authority = uri.authority().map_or("", http::uri::Authority::as_str);
        if authority.contains('@') {
            return Err(format!("a user name has no place in the URL; {example}"));
        }
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let dns = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        if host.is_empty() || (host.parse::<Ipv6Addr>().is_err() && !host.chars().all(dns)) {
            return Err(format!("{text:?} has no usable host; {example}"));
        }
        let port = match uri.port() {
            Some(port) => port.as_u16(),
            // What stands after the colon is no port number.
            None if authority.rsplit(']').next().is_some_and(|rest| rest.contains(':')) => {
                return Err(format!("{text:?} has no usable port; {example}"));
            }
            None if https => 443,
            None => 80,
        };
        if port == 0 {
            return Err(format!("port 0 cannot be dialled; {example}"));
        }
        Ok(Self { https, host: host.to_ascii_lowercase(), port })
    }
}

impl std::fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        let host = match self.host.parse::<Ipv6Addr>() {
            Ok(ip) => format!("[{ip}]"),
            Err(_) => self.host.clone(),
        };
        write!(f, "{scheme}://{host}")?;
        if self.port == if self.https { 443 } else { 80 } { Ok(()) } else { write!(f, ":{}", self.port) }
    }
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

struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, key: &str, text: impl Into<String>) {
        self.0.push(Fault { key: key.to_owned(), text: text.into() });
    }

    fn take<T>(&mut self, key: &str, result: Result<T, String>, fallback: T) -> T {
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

fn port(f: &mut Faults, key: &str, port: Option<u16>) -> Option<u16> {
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

fn derp(f: &mut Faults, raw: &RawConfig) -> DerpConfig {
    let raw = &raw.derp;
    let region_id = raw.region_id.unwrap_or(900);
    if !(900..=999).contains(&region_id) {
        f.add("derp.region_id", format!("{region_id} is not yours to use; operators have 900 to 999"));
    }
    for (key, text, v4) in [("derp.ipv4", &raw.ipv4, true), ("derp.ipv6", &raw.ipv6, false)] {
        let Some(text) = text.as_deref().filter(|t| *t != "none") else {
            continue;
        };
        let ok = if v4 { text.parse::<Ipv4Addr>().is_ok() } else { text.parse::<Ipv6Addr>().is_ok() };
        if !ok {
            f.add(key, format!("{text:?} is no such address; write the public address, or none"));
        }
    }
    let mut regions = Vec::new();
    for region in raw.regions.as_deref().unwrap_or_default() {
        regions.extend(check_region(f, region));
    }
    let mut ids: Vec<u64> = regions.iter().map(|r| r.id).collect();
    ids.sort_unstable();
    if ids.windows(2).any(|w| w.first() == w.last()) {
        f.add("derp.regions", "two regions have the same id; merge them, or give one another id");
    }
    DerpConfig {
        enabled: raw.enabled.unwrap_or(true),
        region_id,
        region_code: raw.region_code.clone().unwrap_or_else(|| "tsd".to_owned()),
        region_name: raw.region_name.clone().unwrap_or_else(|| "tsd".to_owned()),
        hostname: raw.hostname.clone(),
        public_port: port(f, "derp.public_port", raw.public_port),
        ipv4: raw.ipv4.clone(),
        ipv6: raw.ipv6.clone(),
        regions,
    }
}

fn check_region(f: &mut Faults, region: &RawRegion) -> Option<Region> {
    let id = region.id;
    if id == 0 || id > 65_535 {
        f.add("derp.regions", format!("region {id}: ids are 1 to 65535"));
        return None;
    }
    if region.nodes.is_empty() {
        f.add(
            "derp.regions",
            format!("region {id} has no nodes; add a [[derp.regions.nodes]] with name and hostname"),
        );
        return None;
    }
    if let Some(node) = region.nodes.iter().find(|n| n.name.is_empty() || n.hostname.is_empty()) {
        f.add("derp.regions", format!("region {id}: node {:?} needs a name and a hostname", node.name));
        return None;
    }
    let name = if region.name.is_empty() { &region.code } else { &region.name };
    Some(Region {
        id,
        code: region.code.clone(),
        name: name.clone(),
        relays: region.nodes.iter().cloned().map(|raw| Relay { raw }).collect(),
    })
}

fn dns(f: &mut Faults, raw: &RawConfig) -> DnsConfig {
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
