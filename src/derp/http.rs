//! The HTTP face of the relay (dataplane.md 1.1 and 1.7, control.md 4.2).

use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderName, HeaderValue, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::frame::PROTOCOL_VERSION;
use super::server::DerpServer;
use super::websocket::WebSocketIo;

const PROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");
const CHALLENGE: HeaderName = HeaderName::from_static("x-tailscale-challenge");

type Answer = Response<Full<Bytes>>;

/// What an upgrade request asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Raw,
    WebSocket { key: String, derp: bool },
    Nothing,
}

pub(super) fn answer<B>(server: &DerpServer, request: Request<B>, remote: SocketAddr) -> Answer {
    match request.uri().path() {
        "/derp" => upgrade(server, request, remote),
        "/derp/probe" | "/derp/latency-check" => probe(request.method()),
        "/generate_204" => no_content(request.headers()),
        _ => text(StatusCode::NOT_FOUND, "not found\n"),
    }
}

fn text(status: StatusCode, body: &'static str) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    if !body.is_empty() {
        set(&mut response, "content-type", "text/plain; charset=utf-8");
    }
    response
}

fn set(response: &mut Answer, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(HeaderName::from_static(name), value);
    }
}

fn probe(method: &Method) -> Answer {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "use GET or HEAD\n");
    }
    let mut response = text(StatusCode::OK, "");
    set(&mut response, "access-control-allow-origin", "*");
    response
}

fn no_content(headers: &HeaderMap) -> Answer {
    let mut response = text(StatusCode::NO_CONTENT, "");
    set(&mut response, "cache-control", "no-cache, no-store, must-revalidate, no-transform, max-age=0");
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b".-_:".contains(&c);
    let challenge = headers.get(CHALLENGE).and_then(|v| v.to_str().ok());
    if let Some(challenge) = challenge
        && (1..=64).contains(&challenge.len())
        && challenge.bytes().all(allowed)
    {
        let echo = format!("response {challenge}");
        set(&mut response, "x-tailscale-response", &echo);
    }
    response
}

fn wanted<B>(request: &Request<B>) -> Wanted {
    let header = |name: &HeaderName| request.headers().get(name).and_then(|v| v.to_str().ok());
    // HTTP/1.0 and HTTP/2 know no upgrade.
    if request.method() != Method::GET || request.version() != http::Version::HTTP_11 {
        return Wanted::Nothing;
    }
    let upgrade = header(&UPGRADE).unwrap_or_default();
    if upgrade.eq_ignore_ascii_case("derp") {
        return Wanted::Raw;
    }
    if !upgrade.eq_ignore_ascii_case("websocket") {
        return Wanted::Nothing;
    }
    let protocols = request.headers().get_all(PROTOCOL);
    let named =
        protocols.iter().filter_map(|v| v.to_str().ok()).fold(String::new(), |all, one| all + "," + one);
    // Very old clients say WebSocket but mean the raw stream; they name no derp subprotocol.
    if !named.contains("derp") {
        return Wanted::Raw;
    }
    let derp = named.split(',').any(|one| one.trim() == "derp");
    match header(&HeaderName::from_static("sec-websocket-key")) {
        Some(key) if header(&HeaderName::from_static("sec-websocket-version")) == Some("13") => {
            Wanted::WebSocket { key: key.to_owned(), derp }
        }
        _ => Wanted::Nothing,
    }
}

fn upgrade<B>(server: &DerpServer, request: Request<B>, remote: SocketAddr) -> Answer {
    let wanted = wanted(&request);
    let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "");
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    match &wanted {
        Wanted::Nothing => {
            return text(
                StatusCode::UPGRADE_REQUIRED,
                "DERP requires a connection upgrade: send Upgrade: DERP\n",
            );
        }
        Wanted::Raw => {
            set(&mut response, "upgrade", "DERP");
            set(&mut response, "derp-version", &PROTOCOL_VERSION.to_string());
            set(&mut response, "derp-public-key", &server.public_key().untyped_hex());
        }
        Wanted::WebSocket { key, derp } => {
            set(&mut response, "upgrade", "websocket");
            set(&mut response, "sec-websocket-accept", &derive_accept_key(key.as_bytes()));
            if *derp {
                set(&mut response, "sec-websocket-protocol", "derp");
            }
        }
    }
    let upgraded = hyper::upgrade::on(request);
    let shared = server.shared();
    server.spawn(async move {
        let io = match upgraded.await {
            Ok(io) => TokioIo::new(io),
            Err(error) => {
                tracing::debug!(%remote, %error, "DERP upgrade failed");
                return;
            }
        };
        match wanted {
            Wanted::WebSocket { derp: true, .. } => {
                shared.serve(WebSocketIo::new(io).await, remote).await;
            }
            Wanted::WebSocket { .. } => WebSocketIo::new(io).await.refuse().await,
            Wanted::Raw | Wanted::Nothing => shared.serve(io, remote).await,
        }
    });
    response
}
