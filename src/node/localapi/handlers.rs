//! One function per LocalAPI path.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::notify::Notify;
use super::status::{addresses, region_code, status};
use super::{Api, Body, Caller, PREFIX, json as json_answer, text};
use crate::keys::NodePublic;
use crate::node::core::{Command, PING_TIMEOUT};
use crate::node::engine::{EngineStatus, Path, Through};
use crate::node::lifecycle::{Ask, State, View};
use crate::node::prefs::Prefs;
use crate::wire::{Node, UserProfile};

/// Largest request body.
const MAX_BODY: usize = 1 << 20;

type Answer = Response<Body>;

/// The value of a query parameter, decoded.
fn query(uri: &http::Uri, name: &str) -> Option<String> {
    let pairs = uri.query()?.split('&');
    let value = pairs
        .filter_map(|p| p.split_once('=').or(Some((p, ""))))
        .find(|(k, _)| *k == name)?
        .1
        .replace('+', " ");
    let decoded = percent_encoding::percent_decode_str(&value).decode_utf8();
    decoded.ok().map(|v| v.into_owned())
}

async fn body(request: Request<Incoming>) -> Result<Bytes, Answer> {
    match Limited::new(request.into_body(), MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(e) => Err(text(StatusCode::BAD_REQUEST, e.to_string())),
    }
}

fn gone() -> Answer {
    text(StatusCode::SERVICE_UNAVAILABLE, "the node is shutting down")
}

fn no_content() -> Answer {
    text(StatusCode::NO_CONTENT, "")
}

/// Finds the function for a path and checks method and right.
pub async fn route(request: Request<Incoming>, caller: Caller, api: &Api) -> Answer {
    let Some(path) = request.uri().path().strip_prefix(PREFIX) else {
        return text(StatusCode::NOT_FOUND, "unknown path");
    };
    let path = path.to_owned();
    let method = request.method().clone();
    let (get, post) = (method == Method::GET, method == Method::POST);
    let patch = method == Method::PATCH;
    let known = match path.as_str() {
        "status"
        | "derpmap"
        | "whois"
        | "watch-ipn-bus"
        | "metrics"
        | "usermetrics"
        | "check-so-mark-in-use"
        | "check-ip-forwarding"
        | "check-udp-gro-forwarding"
        | "dns-osconfig"
        | "dns-config"
        | "netcheck"
        | "profiles/"
        | "profiles/current"
        | "suggest-exit-node"
        | "serve-config" => get,
        "prefs" => get || patch,
        "check-prefs"
        | "start"
        | "login-interactive"
        | "logout"
        | "ping"
        | "shutdown"
        | "reset-auth"
        | "upload-client-metrics" => post,
        other if unsupported(other) => {
            let why = format!("{other} is not supported by this node");
            return text(StatusCode::NOT_IMPLEMENTED, why);
        }
        _ => return text(StatusCode::NOT_FOUND, "unknown path"),
    };
    if !known {
        return text(StatusCode::METHOD_NOT_ALLOWED, "wrong method");
    }
    let changes = matches!(
        path.as_str(),
        "start" | "login-interactive" | "logout" | "shutdown" | "reset-auth" | "profiles/" | "check-prefs"
    ) || patch;
    if changes && caller != Caller::Write {
        return text(StatusCode::FORBIDDEN, "access denied");
    }
    dispatch(&path, patch, request, api).await
}

/// Paths of the official client that this node does not have.
fn unsupported(path: &str) -> bool {
    const FAMILIES: [&str; 21] = [
        "file-targets",
        "file-put/",
        "files/",
        "cert/",
        "cert-domains",
        "dns-query",
        "set-dns",
        "profiles/",
        "set-use-exit-node-enabled",
        "goroutines",
        "pprof",
        "logtap",
        "bugreport",
        "dial",
        "id-token",
        "query-feature",
        "reload-config",
        "tka/",
        "drive/",
        "debug",
        "update/",
    ];
    FAMILIES.iter().any(|f| path.starts_with(f))
}

async fn dispatch(path: &str, patch: bool, request: Request<Incoming>, api: &Api) -> Answer {
    let uri = request.uri().clone();
    let view = || api.backend.view();
    match path {
        "status" => {
            let peers = query(&uri, "peers").as_deref() != Some("false");
            get_status(api, peers).await
        }
        "prefs" if patch => edit_prefs(request, api).await,
        "prefs" => json_answer(StatusCode::OK, &view().prefs),
        "check-prefs" => check_prefs(request).await,
        "start" => start(request, api).await,
        "login-interactive" => done(api.backend.ask(Ask::Login).await),
        "logout" => done(api.backend.ask(Ask::Logout).await),
        "reset-auth" => done(api.backend.ask(Ask::Logout).await),
        "profiles/" => {
            let all: Vec<Value> = profile(api).into_iter().collect();
            json_answer(StatusCode::OK, &all)
        }
        "profiles/current" => {
            let current = profile(api).unwrap_or_else(empty_profile);
            json_answer(StatusCode::OK, &current)
        }
        "ping" => ping(&uri, api).await,
        "whois" => whois(&uri, api).await,
        "watch-ipn-bus" => watch(&uri, api).await,
        "derpmap" => json_answer(StatusCode::OK, &view().derp_map),
        "netcheck" => netcheck(api).await,
        "dns-config" => json_answer(StatusCode::OK, &view().dns),
        "dns-osconfig" => dns_os(api),
        "check-so-mark-in-use" => json_answer(StatusCode::OK, &json!({"UseSOMark": true})),
        "check-ip-forwarding" | "check-udp-gro-forwarding" => {
            json_answer(StatusCode::OK, &json!({"Warning": ""}))
        }
        // `status` of the official client asks for it; nothing is served here.
        "serve-config" => json_answer(StatusCode::OK, &json!({})),
        "suggest-exit-node" => text(StatusCode::NOT_IMPLEMENTED, "exit nodes are not supported"),
        "upload-client-metrics" => json_answer(StatusCode::OK, &json!({})),
        "metrics" | "usermetrics" => metrics(api).await,
        "shutdown" => {
            api.backend.shutdown().await;
            text(StatusCode::OK, "")
        }
        _ => text(StatusCode::NOT_FOUND, "unknown path"),
    }
}

fn done(result: Result<(), String>) -> Answer {
    match result {
        Ok(()) => no_content(),
        Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, e),
    }
}

async fn get_status(api: &Api, peers: bool) -> Answer {
    let Ok(engine) = api.core.ask(Command::Status).await else {
        return gone();
    };
    let news = api.core.news().borrow().clone();
    let view = api.backend.view();
    json_answer(StatusCode::OK, &status(&view, &engine, &news, peers))
}

async fn edit_prefs(request: Request<Incoming>, api: &Api) -> Answer {
    let bytes = match body(request).await {
        Ok(bytes) => bytes,
        Err(answer) => return answer,
    };
    let bad = |e: String| json_answer(StatusCode::BAD_REQUEST, &json!({"Error": e}));
    let masked: Value = match serde_json::from_slice(&bytes) {
        Ok(value) => value,
        Err(e) => return bad(e.to_string()),
    };
    match api.backend.ask(|reply| Ask::Edit(masked, reply)).await {
        Ok(prefs) => json_answer(StatusCode::OK, &prefs),
        Err(e) => bad(e),
    }
}

async fn check_prefs(request: Request<Incoming>) -> Answer {
    let bytes = match body(request).await {
        Ok(bytes) => bytes,
        Err(answer) => return answer,
    };
    let prefs: Prefs = match serde_json::from_slice(&bytes) {
        Ok(prefs) => prefs,
        Err(e) => return text(StatusCode::BAD_REQUEST, e.to_string()),
    };
    match prefs.check() {
        Ok(()) => json_answer(StatusCode::OK, &json!({})),
        Err(e) => json_answer(StatusCode::OK, &json!({"Error": e.to_string()})),
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct StartOptions {
    update_prefs: Option<Box<Prefs>>,
    auth_key: String,
}

async fn start(request: Request<Incoming>, api: &Api) -> Answer {
    let bytes = match body(request).await {
        Ok(bytes) => bytes,
        Err(answer) => return answer,
    };
    let options: StartOptions = match serde_json::from_slice(&bytes) {
        Ok(options) => options,
        Err(e) => return text(StatusCode::BAD_REQUEST, e.to_string()),
    };
    let key = Some(options.auth_key).filter(|k| !k.is_empty());
    let prefs = options.update_prefs;
    done(api.backend.ask(|reply| Ask::Start(prefs, key, reply)).await)
}

fn profile(api: &Api) -> Option<Value> {
    let profile = api.backend.view().profile?;
    Some(json!({
        "ID": profile.id,
        "Name": profile.user.login_name,
        "NetworkProfile": {
            "MagicDNSName": profile.magic_dns_name,
            "DomainName": profile.domain,
            "DisplayName": profile.domain,
        },
        "Key": format!("profile-{}", profile.id),
        "UserProfile": profile.user,
        "NodeID": profile.node_id,
        "LocalUserID": "",
        "ControlURL": profile.control_url,
    }))
}

fn empty_profile() -> Value {
    json!({
        "ID": "", "Name": "", "Key": "", "NodeID": "", "LocalUserID": "", "ControlURL": "",
        "NetworkProfile": {"MagicDNSName": "", "DomainName": "", "DisplayName": ""},
        "UserProfile": UserProfile::default(),
    })
}

/// The first label of a node's name, or its hostname.
fn short_name(node: &Node) -> String {
    let label = node.name.split('.').next().unwrap_or_default();
    if !label.is_empty() {
        return label.to_owned();
    }
    let info = node.hostinfo.as_ref();
    info.map(|h| h.hostname.clone()).unwrap_or_default()
}

async fn ping(uri: &http::Uri, api: &Api) -> Answer {
    let Some(ip) = query(uri, "ip").and_then(|t| IpAddr::from_str(&t).ok()) else {
        return text(StatusCode::BAD_REQUEST, "missing or wrong 'ip' parameter");
    };
    let kind = query(uri, "type").unwrap_or_else(|| "disco".to_owned());
    let through = match kind.as_str() {
        "disco" => None,
        "TSMP" => Some(Through::Tsmp),
        "ICMP" => Some(Through::Icmp),
        other => {
            let why = format!("{other} pings are not supported by this node; use disco, TSMP or ICMP");
            return text(StatusCode::NOT_IMPLEMENTED, why);
        }
    };
    let mut out = json!({
        "IP": ip.to_string(), "NodeIP": "", "NodeName": "", "Err": "", "LatencySeconds": 0.0,
        "Endpoint": "", "PeerRelay": "", "DERPRegionID": 0, "DERPRegionCode": "",
    });
    let Ok(engine) = api.core.ask(Command::Status).await else {
        return gone();
    };
    let Ok(owner) = api.core.ask(|reply| Command::Whois(ip, reply)).await else {
        return gone();
    };
    if let Some(own) = &engine.self_node
        && addresses(own).contains(&ip)
    {
        put(&mut out, "Err", format!("{ip} is local Tailscale IP"));
        put(&mut out, "IsLocalIP", true);
        return json_answer(StatusCode::OK, &out);
    }
    if let Some((node, _)) = &owner {
        put(&mut out, "NodeName", short_name(node));
        let first = addresses(node).first().map(ToString::to_string);
        put(&mut out, "NodeIP", first.unwrap_or_default());
    }
    let asked = api.core.ask(|reply| Command::Ping(ip, through, reply));
    let result = match tokio::time::timeout(PING_TIMEOUT, asked).await {
        Ok(Ok(Ok(outcome))) => outcome.result,
        Ok(Ok(Err(e))) => Err(e),
        Ok(Err(_)) => return gone(),
        // The caller has its own limit and shows a timeout in its own words.
        Err(_) => Err("no reply".to_owned()),
    };
    match result {
        Ok((path, latency)) => {
            put(&mut out, "LatencySeconds", latency.as_secs_f64());
            match path {
                // The way is disco's business; the caller then names the protocol instead.
                _ if through.is_some() => {}
                Path::Direct(addr) => put(&mut out, "Endpoint", addr.to_string()),
                Path::Derp(region) => {
                    let map = api.core.news().borrow().derp_map.clone();
                    put(&mut out, "DERPRegionID", region.0);
                    put(&mut out, "DERPRegionCode", region_code(&map, region));
                }
            }
        }
        Err(e) => put(&mut out, "Err", e),
    }
    json_answer(StatusCode::OK, &out)
}

fn put(out: &mut Value, name: &str, value: impl Into<Value>) {
    if let Some(map) = out.as_object_mut() {
        map.insert(name.to_owned(), value.into());
    }
}

async fn whois(uri: &http::Uri, api: &Api) -> Answer {
    let Some(addr) = query(uri, "addr") else {
        return text(StatusCode::BAD_REQUEST, "missing 'addr' parameter");
    };
    let Ok(engine) = api.core.ask(Command::Status).await else {
        return gone();
    };
    let found = if addr.starts_with(NodePublic::PREFIX) {
        let key = addr.parse::<NodePublic>().ok();
        let own = engine.self_node.iter();
        let mut all = engine.peers.values().map(|p| &p.node).chain(own);
        let node = all.find(|n| Some(n.key) == key).cloned();
        node.map(|n| {
            let user = engine.users.get(&n.user).cloned();
            (n, user)
        })
    } else {
        let ip = addr.parse::<SocketAddr>().map(|a| a.ip()).or_else(|_| addr.parse::<IpAddr>());
        let Ok(ip) = ip else {
            return text(StatusCode::BAD_REQUEST, "invalid 'addr' parameter");
        };
        match api.core.ask(|reply| Command::Whois(ip, reply)).await {
            Ok(found) => found,
            Err(_) => return gone(),
        }
    };
    let Some((node, user)) = found else {
        return text(StatusCode::NOT_FOUND, "no match for IP:port");
    };
    let user = user.unwrap_or_default();
    let out = json!({"Node": node, "UserProfile": user, "CapMap": Value::Null});
    json_answer(StatusCode::OK, &out)
}

/// Initial state, prefs, status: bits 1, 2, 14 (dataplane.md 13.4); 16 is not for callers.
async fn watch(uri: &http::Uri, api: &Api) -> Answer {
    let mask = match query(uri, "mask").map(|m| m.parse::<u64>()) {
        None => 0,
        Some(Ok(mask)) => mask,
        Some(Err(_)) => return text(StatusCode::BAD_REQUEST, "bad mask"),
    };
    let bit = |n: u32| mask & (1 << n) != 0;
    if bit(16) {
        return text(StatusCode::BAD_REQUEST, "this mask is not for callers");
    }
    // Subscribed before the view is read, so that nothing falls in between.
    let bus = api.backend.bus.watch();
    let view = api.backend.view();
    let mut first = Notify::default();
    if bit(1) {
        let mut id = crate::clock::Rng::from_os();
        first.session_id = Some(hex::encode(id.bytes::<8>()));
        first.state = Some(view.state as i32);
        first.browse_to_url = Some(view.auth_url.clone()).filter(|u| !u.is_empty());
    }
    if bit(2) {
        first.prefs = Some(Box::new(view.prefs.clone()));
    }
    if bit(14) || bit(3) {
        let Ok(engine) = api.core.ask(Command::Status).await else {
            return gone();
        };
        let news = api.core.news().borrow().clone();
        if bit(3) {
            first.net_map = net_map(&view, &engine).map(Box::new);
        }
        if bit(14) {
            first.initial_status = Some(Box::new(status(&view, &engine, &news, true)));
        }
    }
    if bit(7) {
        let warnings: serde_json::Map<String, Value> = view
            .health
            .iter()
            .enumerate()
            .map(|(i, t)| {
                let code = format!("tsd-{i}");
                let warning = json!({"WarnableCode": code, "Severity": "medium", "Title": t,
                    "Text": t, "ImpactsConnectivity": false});
                (code, warning)
            })
            .collect();
        first.health = Some(Box::new(json!({"Warnings": warnings})));
    }
    let lines = stream::unfold((Some(first.line()), bus), next_line);
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(lines)));
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// The netmap as older watchers ask for it at the start, as far as this node keeps it.
fn net_map(view: &View, engine: &EngineStatus) -> Option<Value> {
    let own = engine.self_node.as_ref()?;
    let peers: Vec<&Node> = engine.peers.values().map(|p| &p.node).collect();
    let users: BTreeMap<String, &UserProfile> =
        engine.users.iter().map(|(id, u)| (id.to_string(), u)).collect();
    Some(json!({
        "SelfNode": own,
        "NodeKey": own.key,
        "Peers": peers,
        "DNS": view.dns,
        "DERPMap": view.derp_map,
        "Domain": engine.domain,
        "UserProfiles": users,
    }))
}

type Watcher = (Option<Vec<u8>>, broadcast::Receiver<Arc<Notify>>);

/// The next line for a watcher; one that lags too far is disconnected.
async fn next_line(
    (first, mut bus): Watcher,
) -> Option<(Result<Frame<Bytes>, std::convert::Infallible>, Watcher)> {
    let line = match first {
        Some(line) => line,
        None => bus.recv().await.ok()?.line(),
    };
    Some((Ok(Frame::data(Bytes::from(line))), (None, bus)))
}

/// Measures now and gives the result with the map: `tsd node netcheck`.
async fn netcheck(api: &Api) -> Answer {
    let mut news = api.core.news();
    let before = news.borrow_and_update().netchecks;
    if api.core.tell(Command::Netcheck).await.is_err() {
        return gone();
    }
    let fresh = async {
        while news.borrow_and_update().netchecks == before {
            if news.changed().await.is_err() {
                return;
            }
        }
    };
    // Five seconds are the limit of a report (dataplane.md 3.2).
    let in_time = tokio::time::timeout(Duration::from_secs(7), fresh).await;
    let latest = api.core.news().borrow().clone();
    let endpoints: Vec<String> = latest.endpoints.iter().map(|e| e.0.to_string()).collect();
    let out = json!({
        "Fresh": in_time.is_ok(),
        "NetInfo": latest.net_info,
        "Endpoints": endpoints,
        "DERPMap": latest.derp_map,
    });
    json_answer(StatusCode::OK, &out)
}

fn dns_os(api: &Api) -> Answer {
    let dns = api.core.news().borrow().os.dns.clone().unwrap_or_default();
    let out = json!({
        "Nameservers": ["100.100.100.100"],
        "SearchDomains": dns.search,
        "MatchDomains": dns.match_domains,
    });
    json_answer(StatusCode::OK, &out)
}

async fn metrics(api: &Api) -> Answer {
    let Ok(engine) = api.core.ask(Command::Status).await else {
        return gone();
    };
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    let running = u8::from(api.backend.view().state == State::Running);
    line("# TYPE tsd_node_running gauge".to_owned());
    line(format!("tsd_node_running {running}"));
    line("# TYPE tsd_node_peers gauge".to_owned());
    line(format!("tsd_node_peers {}", engine.peers.len()));
    let rx: u64 = engine.peers.values().map(|p| p.rx_bytes).sum();
    let tx: u64 = engine.peers.values().map(|p| p.tx_bytes).sum();
    line("# TYPE tsd_node_received_bytes_total counter".to_owned());
    line(format!("tsd_node_received_bytes_total {rx}"));
    line("# TYPE tsd_node_sent_bytes_total counter".to_owned());
    line(format!("tsd_node_sent_bytes_total {tx}"));
    line("# TYPE tsd_node_dropped_packets_total counter".to_owned());
    for (reason, count) in &engine.drops {
        line(format!("tsd_node_dropped_packets_total{{reason=\"{reason}\"}} {count}"));
    }
    // Packets over calls is the mean size of a batch.
    line("# TYPE tsd_node_io_packets_total counter".to_owned());
    line("# TYPE tsd_node_io_calls_total counter".to_owned());
    line("# TYPE tsd_node_io_errors_total counter".to_owned());
    for (road, io) in [("tun", engine.io.tun), ("udp", engine.io.udp)] {
        for (way, packets, calls) in [("in", io.packets_in, io.reads), ("out", io.packets_out, io.writes)] {
            line(format!("tsd_node_io_packets_total{{road=\"{road}\",way=\"{way}\"}} {packets}"));
            line(format!("tsd_node_io_calls_total{{road=\"{road}\",way=\"{way}\"}} {calls}"));
        }
        line(format!("tsd_node_io_errors_total{{road=\"{road}\"}} {}", io.errors));
    }
    text(StatusCode::OK, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let uri: http::Uri = "/x?ip=fd7a%3A%3A1&mask=4&peers=".parse().unwrap();
        assert_eq!(query(&uri, "ip").as_deref(), Some("fd7a::1"));
        assert_eq!(query(&uri, "mask").as_deref(), Some("4"));
        assert_eq!(query(&uri, "peers").as_deref(), Some(""));
        assert_eq!(query(&uri, "no"), None);
    }
}
