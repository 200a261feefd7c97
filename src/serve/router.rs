//! Which room answers a request. Machine endpoints and probes on both listeners; console and login
//! pages by TLS only, except from this machine and behind a trusted proxy (issue of names and cookies
//! that must not cross a network in the clear).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use ipnet::IpNet;

use super::limits::{Connections, REQUEST_TIMEOUT};
use super::metrics::Metrics;
use crate::config::MetricsPolicy;
use crate::control::service::Control;
use crate::derp::server::DerpServer;
use crate::ui::{RequestInfo, Ui};

/// Where a connection came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    /// The socket's other end, IPv4-mapped addresses as IPv4.
    pub remote: SocketAddr,
    /// Came in by our TLS listener.
    pub tls: bool,
}

/// What happened at the front door since start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Connections let in.
    pub accepted: AtomicU64,
    /// Connections over a limit.
    pub refused: AtomicU64,
    /// Failed `accept` calls, mostly for want of file descriptors.
    pub accept_errors: AtomicU64,
    /// Failed TLS handshakes.
    pub tls_failures: AtomicU64,
    /// Connections that said nothing in time.
    pub timeouts: AtomicU64,
}

/// What the doors go by; replaced whole by a reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facing {
    /// Who may read the figures.
    pub metrics: MetricsPolicy,
    /// Proxies whose word counts.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether the relay is on.
    pub relay: bool,
    /// The name that is us, for pages on loopback.
    pub host: String,
    /// Where the console is opened: `https://host[:port]`, without TLS `http://127.0.0.1:port`.
    pub console: String,
}

/// Hands requests to rooms.
pub(super) struct Router {
    /// Coordination.
    pub control: Control,
    /// Relay.
    pub derp: DerpServer,
    /// Console.
    pub ui: Ui,
    /// Figures.
    pub metrics: Metrics,
    /// What a reload may change.
    pub facing: Arc<ArcSwap<Facing>>,
    /// Front-door counters.
    pub counters: Arc<Counters>,
    /// Connections now.
    pub connections: Connections,
}

impl Router {
    /// Answers one request; never hangs.
    pub(super) async fn answer(&self, request: Request<Incoming>, origin: Origin) -> Response<Full<Bytes>> {
        let facing = self.facing.load();
        let client = client_of(request.headers(), origin, &facing.trusted_proxies);
        let path = request.uri().path();
        let get = request.method() == Method::GET || request.method() == Method::HEAD;
        match path {
            "/key" | "/ts2021" => crate::control::http::handle(&self.control, request, client.remote),
            "/healthz" if get => self.health(),
            "/metrics" if get => self.show_metrics(client, request.headers(), &facing),
            "/robots.txt" if get => text(StatusCode::OK, "User-agent: *\nDisallow: /\n"),
            "/generate_204" => self.derp.http(request, client.remote),
            _ if path == "/derp" || path.starts_with("/derp/") => {
                if facing.relay {
                    self.derp.http(request, client.remote)
                } else {
                    text(StatusCode::NOT_FOUND, "the relay of this server is off\n")
                }
            }
            _ if Ui::owns(path) => self.console(request, client, &facing).await,
            _ => text(StatusCode::NOT_FOUND, "there is nothing here\n"),
        }
    }

    fn health(&self) -> Response<Full<Bytes>> {
        let stats = self.control.stats();
        let body = serde_json::json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION"), "policy_version": stats.policy_version });
        let mut response = text(StatusCode::OK, "");
        set(&mut response, header::CONTENT_TYPE, "application/json");
        *response.body_mut() = Full::from(format!("{body}\n"));
        response
    }

    fn show_metrics(&self, client: Client, headers: &HeaderMap, facing: &Facing) -> Response<Full<Bytes>> {
        let allowed = match facing.metrics {
            MetricsPolicy::Any => true,
            MetricsPolicy::Loopback => client.local,
            MetricsPolicy::Off => false,
        };
        if !allowed {
            // As if it were not there: RELIABILITY.md row 96.
            return text(StatusCode::NOT_FOUND, "there is nothing here\n");
        }
        // As with the console: a page in a browser here must not read them by a rebound name.
        if facing.metrics == MetricsPolicy::Loopback && !names_us(headers, &facing.host) {
            return misdirected();
        }
        let mut response = text(StatusCode::OK, "");
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        set(&mut response, header::CONTENT_TYPE, kind);
        *response.body_mut() = Full::from(self.metrics.render(self));
        response
    }

    async fn console(
        &self,
        request: Request<Incoming>,
        client: Client,
        facing: &Facing,
    ) -> Response<Full<Bytes>> {
        if client.local && !client.tls && !names_us(request.headers(), &facing.host) {
            return misdirected();
        }
        let tls_url = Some(facing.console.clone()).filter(|c| c.starts_with("https://"));
        let info = RequestInfo { remote: client.remote, secure: client.secure, tls_url };
        match tokio::time::timeout(REQUEST_TIMEOUT, self.ui.handle(request, info)).await {
            Ok(response) => response,
            Err(_) => text(StatusCode::REQUEST_TIMEOUT, "the request took too long; try again\n"),
        }
    }
}

/// Who asks, after believing trusted proxies and nobody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Client {
    remote: SocketAddr,
    tls: bool,
    secure: bool,
    local: bool,
}

fn client_of(headers: &HeaderMap, origin: Origin, trusted: &[IpNet]) -> Client {
    let is_trusted = |ip: IpAddr| trusted.iter().any(|net| net.contains(&ip));
    let first = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    if is_trusted(origin.remote.ip()) {
        // The nearest address that is no proxy of ours; what stands left of it anybody may have written.
        let chain = headers.get_all("x-forwarded-for").iter().filter_map(|v| v.to_str().ok());
        let all: Vec<IpAddr> = chain
            .flat_map(|line| line.split(','))
            .filter_map(|part| part.trim().parse::<IpAddr>().ok())
            .map(|ip| ip.to_canonical())
            .collect();
        let ip = all.iter().rev().find(|ip| !is_trusted(**ip)).copied();
        let plain = first("x-forwarded-proto").is_some_and(|p| !p.eq_ignore_ascii_case("https"));
        return Client {
            remote: ip.map_or(origin.remote, |ip| SocketAddr::new(ip, 0)),
            tls: origin.tls,
            secure: !plain,
            local: false,
        };
    }
    // A proxy on this machine that nobody told us of: its visitors are not from here.
    let forwarded = ["x-forwarded-for", "forwarded", "x-real-ip"].iter().any(|h| headers.contains_key(*h));
    let local = origin.remote.ip().is_loopback() && !forwarded;
    Client { remote: origin.remote, tls: origin.tls, secure: origin.tls || local, local }
}

/// A page in a browser on this machine may have its own name point at 127.0.0.1 (DNS rebinding): what
/// is open to this machine alone must be asked for by a name of ours.
fn misdirected() -> Response<Full<Bytes>> {
    text(
        StatusCode::MISDIRECTED_REQUEST,
        "this name is not known here; use http://127.0.0.1 or the server's URL\n",
    )
}

fn names_us(headers: &HeaderMap, host: &str) -> bool {
    let Some(named) = headers.get(header::HOST).and_then(|v| v.to_str().ok()) else {
        return false;
    };
    let Ok(authority) = named.parse::<http::uri::Authority>() else {
        return false;
    };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name.eq_ignore_ascii_case(host)
        || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A plain text answer.
fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    set(&mut response, header::CONTENT_TYPE, "text/plain; charset=utf-8");
    set(&mut response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(&mut response, header::CACHE_CONTROL, "no-store");
    response
}

fn set(response: &mut Response<Full<Bytes>>, name: header::HeaderName, value: &'static str) {
    response.headers_mut().insert(name, header::HeaderValue::from_static(value));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(remote: &str, tls: bool, headers: &[(&'static str, &str)]) -> Client {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let trusted = ["10.0.0.0/24".parse().unwrap()];
        let remote = format!("{remote}:9").parse().unwrap();
        client_of(&map, Origin { remote, tls }, &trusted)
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        let spoof = [("x-forwarded-for", "198.51.100.1"), ("x-forwarded-proto", "https")];
        let stranger = client("203.0.113.9", false, &spoof);
        assert_eq!((stranger.remote.ip().to_string().as_str(), stranger.secure), ("203.0.113.9", false));
        let proxied = client(
            "10.0.0.1",
            false,
            &[("x-forwarded-for", "6.6.6.6, 198.51.100.1, 10.0.0.7"), ("x-forwarded-proto", "https")],
        );
        assert_eq!((proxied.remote.ip().to_string().as_str(), proxied.secure), ("198.51.100.1", true));
        assert!(!client("10.0.0.1", false, &[("x-forwarded-proto", "http")]).secure);
    }

    #[test]
    fn loopback_is_local_unless_a_proxy_speaks_for_others() {
        assert!(client("127.0.0.1", false, &[]).local && client("127.0.0.1", false, &[]).secure);
        let forwarded = client("127.0.0.1", false, &[("x-forwarded-for", "198.51.100.1")]);
        assert!(!forwarded.local && !forwarded.secure);
        assert!(!client("203.0.113.9", true, &[]).local && client("203.0.113.9", true, &[]).secure);
        // A trusted proxy's own metrics requests are not from here either.
        assert!(!client("10.0.0.1", false, &[]).local);
    }

    #[test]
    fn rebound_names_are_not_ours() {
        let named = |host: &str| {
            let mut map = HeaderMap::new();
            map.insert(header::HOST, host.parse().unwrap());
            names_us(&map, "203.0.113.9")
        };
        for ours in ["localhost:8080", "127.0.0.1", "[::1]:8080", "203.0.113.9:8080"] {
            assert!(named(ours), "{ours}");
        }
        for other in ["evil.example", "127.0.0.1.evil.example", "198.51.100.1", ""] {
            assert!(!named(other), "{other}");
        }
        assert!(!names_us(&HeaderMap::new(), "x"));
    }
}
