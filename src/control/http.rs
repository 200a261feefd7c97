//! `/key` and `/ts2021` on the public listeners (control.md 2, 3.2): hands out the server's key and
//! turns an upgraded connection into Noise. What runs inside is `machine`.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::machine::{self, Caller};
use super::service::Control;
use super::websocket;
use crate::clock::Rng;
use crate::keys::{ChallengePrivate, MachinePublic};
use crate::wire::{EarlyNoise, ServerKeys};

/// The upgrade's name, compared in lower case (control.md 3.2).
const PROTOCOL: &str = "tailscale-control-protocol";
const HANDSHAKE: &str = "x-tailscale-handshake";
/// A handshake is over by then.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// The initiation has 101 bytes; anything much longer is not looked at.
const MAX_HANDSHAKE_TEXT: usize = 512;

type Answer = Response<Full<Bytes>>;

fn text(status: StatusCode, body: impl Into<String>) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(body.into())));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Answers `GET /key`, `POST /ts2021` and the WebSocket form `GET /ts2021`; 404 for anything else.
/// Spawns the upgraded half itself.
pub fn handle(control: &Control, request: Request<Incoming>, remote: SocketAddr) -> Response<Full<Bytes>> {
    answer(control, request, remote)
}

/// As [`handle`], over any body.
fn answer<B>(control: &Control, mut request: Request<B>, remote: SocketAddr) -> Answer {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/key") => key(control, request.uri().query().unwrap_or_default()),
        (&Method::POST, "/ts2021") => upgrade(control, &mut request, remote),
        (&Method::GET, "/ts2021") => upgrade_websocket(control, &mut request, remote),
        (_, "/key" | "/ts2021") => text(StatusCode::METHOD_NOT_ALLOWED, "wrong method"),
        _ => text(StatusCode::NOT_FOUND, "there is nothing here"),
    }
}

fn key(control: &Control, query: &str) -> Answer {
    let version = query.split('&').find_map(|pair| pair.strip_prefix("v="));
    if version.and_then(|v| v.parse::<u32>().ok()).is_none() {
        return text(StatusCode::BAD_REQUEST, "say which protocol version you speak: /key?v=N");
    }
    let keys =
        ServerKeys { legacy_public_key: MachinePublic::default(), public_key: control.noise_key().public() };
    let Ok(body) = serde_json::to_vec(&keys) else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "");
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn header_is<B>(request: &Request<B>, name: header::HeaderName, wanted: &str) -> bool {
    let value = request.headers().get(name).and_then(|v| v.to_str().ok());
    value.is_some_and(|v| v.eq_ignore_ascii_case(wanted))
}

fn switching(protocol: &'static str) -> Answer {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response
}

fn decode_initiation(text: &str) -> Option<Vec<u8>> {
    if text.len() > MAX_HANDSHAKE_TEXT {
        return None;
    }
    STANDARD.decode(text).ok()
}

const NO_HANDSHAKE: &str = "the header X-Tailscale-Handshake is missing or not base64";
const FULL: &str = "too many connections; try again later";

fn upgrade<B>(control: &Control, request: &mut Request<B>, remote: SocketAddr) -> Answer {
    if !header_is(request, header::UPGRADE, PROTOCOL) {
        return text(
            StatusCode::BAD_REQUEST,
            "this is for Tailscale clients: Upgrade: tailscale-control-protocol is missing (does a proxy drop it?)",
        );
    }
    let given = request.headers().get(HANDSHAKE);
    let Some(initiation) = given.and_then(|v| v.to_str().ok()).and_then(decode_initiation) else {
        return text(StatusCode::BAD_REQUEST, NO_HANDSHAKE);
    };
    let upgraded = hyper::upgrade::on(request);
    let task = {
        let control = control.clone();
        async move {
            let Some(io) = wait_upgrade(upgraded).await else {
                return;
            };
            noise(control, TokioIo::new(io), initiation, true, remote).await;
        }
    };
    match control.spawn(task) {
        Some(()) => switching(PROTOCOL),
        None => text(StatusCode::SERVICE_UNAVAILABLE, FULL),
    }
}

fn upgrade_websocket<B>(control: &Control, request: &mut Request<B>, remote: SocketAddr) -> Answer {
    if !header_is(request, header::UPGRADE, "websocket") {
        return text(
            StatusCode::BAD_REQUEST,
            "this is for Tailscale clients: POST with Upgrade: tailscale-control-protocol, or a WebSocket",
        );
    }
    let offered = request
        .headers()
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .any(|v| v.split(',').any(|p| p.trim() == PROTOCOL));
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).cloned();
    let query = request.uri().query().unwrap_or_default();
    let initiation = query
        .split('&')
        .find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            name.eq_ignore_ascii_case(HANDSHAKE).then_some(value)
        })
        .filter(|v| v.len() <= 3 * MAX_HANDSHAKE_TEXT)
        .and_then(|v| percent_encoding::percent_decode_str(v).decode_utf8().ok())
        // An unescaped plus reads as a space in some encoders' minds; base64 has no spaces.
        .and_then(|v| decode_initiation(&v.replace(' ', "+")));
    let (Some(key), true, Some(initiation)) = (key, offered, initiation) else {
        return text(
            StatusCode::BAD_REQUEST,
            "a WebSocket here needs Sec-WebSocket-Key, the subprotocol tailscale-control-protocol and X-Tailscale-Handshake in the query",
        );
    };
    let accept = websocket::accept_key(key.as_bytes());
    let Ok(accept) = HeaderValue::from_str(&accept) else {
        return text(StatusCode::BAD_REQUEST, "bad Sec-WebSocket-Key");
    };
    let upgraded = hyper::upgrade::on(request);
    let task = {
        let control = control.clone();
        async move {
            let Some(io) = wait_upgrade(upgraded).await else {
                return;
            };
            let io = websocket::ByteStream::server(TokioIo::new(io)).await;
            // The reference server sends no early payload on this road (control.md 3.2).
            noise(control, io, initiation, false, remote).await;
        }
    };
    if control.spawn(task).is_none() {
        return text(StatusCode::SERVICE_UNAVAILABLE, FULL);
    }
    let mut response = switching("websocket");
    let headers = response.headers_mut();
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    response
}

async fn wait_upgrade(upgraded: OnUpgrade) -> Option<hyper::upgrade::Upgraded> {
    match tokio::time::timeout(HANDSHAKE_TIME, upgraded).await {
        Ok(Ok(io)) => Some(io),
        _ => {
            tracing::debug!("an upgrade did not come about");
            None
        }
    }
}

async fn noise<S>(control: Control, io: S, initiation: Vec<u8>, early: bool, remote: SocketAddr)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut rng = Rng::from_os();
    let challenge = EarlyNoise { node_key_challenge: ChallengePrivate::generate(&mut rng).public() };
    let payload = serde_json::to_vec(&challenge).ok().filter(|_| early);
    let key = control.noise_key().clone();
    let shake = crate::noise::stream::accept(io, &initiation, &key, payload.as_deref(), &mut rng);
    match tokio::time::timeout(HANDSHAKE_TIME, shake).await {
        Ok(Ok((stream, peer))) => {
            let place = control.strangers().enter(remote.ip());
            let place = match place {
                Ok(place) => place,
                // An office behind one address: who has a node is no stranger.
                Err(_) if machine::has_node(&control, peer.machine()) => None,
                Err(_) => {
                    tracing::debug!(%remote, "too many connections of strangers from one network");
                    return;
                }
            };
            machine::serve(control, Caller::new(&peer, remote.ip()), place, stream).await;
        }
        Ok(Err(error)) => tracing::debug!(%remote, %error, "a handshake failed"),
        Err(_) => tracing::debug!(%remote, "a handshake took too long"),
    }
}
