//! HTTP/2 inside Noise: the machine endpoints (control.md 4.1). Who asks is the proven machine key, a
//! value that travels with the connection; every handler checks the node key in the body against it.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use super::nodes::{self, MapRefusal};
use super::register::{self, Outcome};
use super::service::{AdminError, Control};
use super::session::{self, Session, StartError};
use super::sources;
use super::strangers::Place;
use crate::clock::Now;
use crate::keys::MachinePublic;
use crate::noise::MachinePeer;
use crate::wire::{CapVer, MapRequest, RegisterRequest, RegisterResponse, decode_request};

/// Request bodies at most, as the reference server (control.md 3.5).
const MAX_BODY: usize = 1 << 20;
/// Bodies up to this size are taken of anybody; real ones have some 10 KiB. For more there are few places.
const COMMON_BODY: usize = 64 << 10;
/// Bodies read at the same time of one connection.
const BODIES: usize = 2;
/// What HTTP/2 lets a client send ahead of us, per stream and in all.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 128 << 10;
/// A body has to be there by then.
const BODY_TIME: Duration = Duration::from_secs(30);
/// A connection without a request in progress ends after this long; clients dial again.
const IDLE: Duration = Duration::from_secs(120);

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Who is at the other end of the channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    machine: MachinePublic,
    /// Where from; `None` is not limited.
    place: Option<IpAddr>,
}

impl Caller {
    /// The machine whose key was proven, at this address.
    pub(super) fn new(peer: &MachinePeer, from: IpAddr) -> Self {
        Self { machine: peer.machine(), place: sources::place(from) }
    }

    #[cfg(test)]
    pub(super) fn test(machine: MachinePublic, from: IpAddr) -> Self {
        Self { machine, place: sources::place(from) }
    }
}

/// Counts requests in progress, so that an idle connection can be told from a long poll.
struct Busy(Arc<AtomicUsize>);

impl Busy {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves one connection until it ends, idles too long, or the server stops.
pub(super) async fn serve<S>(control: Control, caller: Caller, place: Option<Place>, io: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let busy = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&busy);
    let handler = control.clone();
    let bodies = Arc::new(Semaphore::new(BODIES));
    let mut place = place;
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (control, busy, bodies) = (handler.clone(), Busy::new(&counter), Arc::clone(&bodies));
        async move {
            let response = route(&control, caller, &bodies, request).await;
            // A stream counts as long as its body lives.
            let response = response.map(|body| {
                body.map_frame(move |frame| {
                    let _held = &busy;
                    frame
                })
                .boxed_unsync()
            });
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(64)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(16 << 10)
        .max_pending_accept_reset_streams(Some(32));
    let connection = builder.serve_connection(TokioIo::new(io), service);
    tokio::pin!(connection);
    let mut stop = control.stopping();
    let mut idle_check = tokio::time::interval(IDLE / 2);
    let mut idle = 0;
    loop {
        tokio::select! {
            done = connection.as_mut() => {
                if let Err(error) = done {
                    tracing::debug!(%error, "a control connection ended");
                }
                return;
            }
            _ = stop.wait_for(|s| *s) => break,
            _ = idle_check.tick() => {
                idle = if busy.load(Ordering::Relaxed) == 0 { idle + 1 } else { 0 };
                if idle > 2 {
                    break;
                }
                // Who got a node meanwhile leaves the strangers' places to others.
                if place.is_some() && has_node(&control, caller.machine) {
                    place = None;
                }
            }
        }
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(Duration::from_secs(1), connection).await;
    drop(place);
}

/// Whether this machine has a node. Looks through all of them: not for the common path.
pub(super) fn has_node(control: &Control, machine: MachinePublic) -> bool {
    control.net().nodes.values().any(|n| n.machine == machine)
}

fn full(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn text(status: StatusCode, body: impl Into<String>) -> Response<Body> {
    full(status, "text/plain; charset=utf-8", body.into())
}

fn failed(error: &AdminError) -> Response<Body> {
    text(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
}

async fn route(
    control: &Control,
    caller: Caller,
    bodies: &Semaphore,
    request: Request<Incoming>,
) -> Response<Body> {
    let path = request.uri().path().to_owned();
    match (request.method(), path.as_str()) {
        (&Method::POST, "/machine/register") => match body::<RegisterRequest>(control, bodies, request).await
        {
            Ok(request) => register(control, caller, request).await,
            Err(refusal) => *refusal,
        },
        (&Method::POST, "/machine/map") => match body::<MapRequest>(control, bodies, request).await {
            Ok(request) => map(control, caller, request).await,
            Err(refusal) => *refusal,
        },
        // Clients until 2025-10 report their health here; nobody reads it.
        (&Method::POST, "/machine/update-health") => text(StatusCode::NO_CONTENT, ""),
        (&Method::GET, "/machine/whoami") => text(StatusCode::OK, format!("you are {}\n", caller.machine)),
        (_, "/machine/register" | "/machine/map" | "/machine/update-health") => {
            text(StatusCode::METHOD_NOT_ALLOWED, "use POST")
        }
        (_, path) if known(path) => {
            text(StatusCode::NOT_IMPLEMENTED, "this server does not offer this function")
        }
        _ => text(StatusCode::NOT_FOUND, "there is nothing here"),
    }
}

/// Endpoints that clients know and we do not serve.
fn known(path: &str) -> bool {
    let Some(rest) = path.strip_prefix("/machine/") else {
        return false;
    };
    ["tka/", "webclient/", "ssh/"].iter().any(|p| rest.starts_with(p))
        || matches!(rest, "set-dns" | "set-device-attr" | "id-token" | "feature/query" | "audit-log" | "c2n")
}

async fn body<T: serde::de::DeserializeOwned>(
    control: &Control,
    bodies: &Semaphore,
    request: Request<Incoming>,
) -> Result<T, Box<Response<Body>>> {
    let reading = async {
        // While others of this connection are read, the window above bounds what is sent ahead.
        let _one = bodies.acquire().await;
        read_body(control, request.into_body()).await
    };
    let bytes = match tokio::time::timeout(BODY_TIME, reading).await {
        Ok(bytes) => bytes?,
        Err(_) => {
            return Err(Box::new(text(StatusCode::REQUEST_TIMEOUT, "the request took too long")));
        }
    };
    decode_request(&bytes).map_err(|e| Box::new(text(StatusCode::BAD_REQUEST, e.to_string())))
}

async fn read_body(control: &Control, mut body: Incoming) -> Result<BytesMut, Box<Response<Body>>> {
    let mut bytes = BytesMut::new();
    let mut large = None;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return Err(Box::new(text(StatusCode::BAD_REQUEST, "the request broke off")));
        };
        let Some(data) = frame.data_ref() else {
            continue;
        };
        if bytes.len() + data.len() > MAX_BODY {
            return Err(Box::new(text(StatusCode::PAYLOAD_TOO_LARGE, "the request is larger than 1 MiB")));
        }
        if large.is_none() && bytes.len() + data.len() > COMMON_BODY {
            large = control.large_bodies().acquire().await.ok();
        }
        bytes.extend_from_slice(data);
    }
    Ok(bytes)
}

fn json(response: &RegisterResponse) -> Response<Body> {
    match serde_json::to_vec(response) {
        Ok(body) => full(StatusCode::OK, "application/json", body),
        Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    }
}

/// Takes a registration that needs no credential off its place's allowance (RELIABILITY rows 30, 31).
/// Devices that are known, hold a key or wait for a login that is there cost nothing.
fn allow(control: &Control, caller: Caller, request: &RegisterRequest) -> Result<(), Duration> {
    let Some(place) = caller.place else {
        return Ok(());
    };
    let net = control.net();
    let keyed = request.auth.as_ref().is_some_and(|a| !a.auth_key.is_empty());
    let fresh = request.followup.is_empty();
    if (keyed && fresh) || net.by_key(&request.node_key).is_some_and(|n| n.machine == caller.machine) {
        return Ok(());
    }
    let waits = net.logins.get(&register::login_id(&request.followup));
    if waits.is_some_and(|l| l.machine == caller.machine && l.key == request.node_key) {
        return Ok(());
    }
    let sources = &control.shared().sources;
    let allowance = if fresh { &sources.logins } else { &sources.guesses };
    allowance.lock().take(place, Now::read().mono)
}

/// Clients wait as long as `Retry-After` says (control.md 5.3).
fn slow_down(wait: Duration) -> Response<Body> {
    let seconds = wait.as_secs() + 1;
    let mut response = text(
        StatusCode::TOO_MANY_REQUESTS,
        format!("too many logins from your network; try again in {seconds} s, or use a pre-auth key"),
    );
    response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    response
}

async fn register(control: &Control, caller: Caller, request: RegisterRequest) -> Response<Body> {
    if let Err(wait) = allow(control, caller, &request) {
        tracing::debug!(machine = %caller.machine.short(), "too many registrations from one place");
        return slow_down(wait);
    }
    let mut logins = control.shared().logins.subscribe();
    loop {
        let (asked, machine) = (request.clone(), caller.machine);
        let outcome = control.run(move |draft| Ok(register::register(draft, machine, asked)));
        match outcome.await {
            Ok(Outcome::Answer(response)) => {
                tracing::info!(
                    machine = %caller.machine.short(),
                    node = %request.node_key.short(),
                    authorized = response.machine_authorized,
                    error = %response.error,
                    "registration"
                );
                return json(&response);
            }
            Ok(Outcome::Wait(id)) => {
                let decided = |_: &u64| !control.net().logins.contains_key(&id);
                if logins.wait_for(decided).await.is_err() {
                    return text(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping");
                }
            }
            // In the answer, where the client shows it to its person (control.md 5.3); it tries again.
            Err(error) => {
                let error = format!("this server cannot register devices now: {error}");
                return json(&RegisterResponse { error, ..RegisterResponse::default() });
            }
        }
    }
}

fn refused(refusal: MapRefusal) -> Response<Body> {
    let status = match refusal {
        MapRefusal::Unknown => StatusCode::NOT_FOUND,
        MapRefusal::ForeignMachine => StatusCode::FORBIDDEN,
    };
    text(status, refusal.to_string())
}

async fn map(control: &Control, caller: Caller, request: MapRequest) -> Response<Body> {
    if request.version < CapVer::OLDEST {
        return text(
            StatusCode::BAD_REQUEST,
            format!(
                "this client is too old: protocol version {}, the oldest served is {} (Tailscale 1.80)",
                request.version,
                CapVer::OLDEST
            ),
        );
    }
    let compress = match request.compress.as_str() {
        "" => false,
        "zstd" => true,
        _ => return text(StatusCode::BAD_REQUEST, "the only compression is zstd"),
    };
    let (machine, key) = (caller.machine, request.node_key);
    if request.stream {
        if let Err(refusal) = fill_disco(control, machine, &request).await {
            return refusal;
        }
        return match Session::start(control, machine, key, compress).await {
            Ok(session) => stream(session),
            Err(StartError::Refused(refusal)) => refused(refusal),
            Err(error @ StartError::Failed) => text(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        };
    }
    let lite = request.omit_peers;
    if !request.read_only {
        let done = control.run(move |draft| Ok(nodes::update(draft, machine, request)));
        match done.await {
            Ok(Ok(())) => {}
            Ok(Err(refusal)) => return refused(refusal),
            Err(error) => return failed(&error),
        }
    }
    if lite {
        return text(StatusCode::OK, "");
    }
    let me = match nodes::find(&control.net(), machine, &key) {
        Ok(node) => node.id,
        Err(refusal) => return refused(refusal),
    };
    match session::once(control, me, compress).await {
        Some(bytes) => full(StatusCode::OK, "application/octet-stream", bytes),
        None => text(StatusCode::SERVICE_UNAVAILABLE, "the map cannot be built now"),
    }
}

/// See [`nodes::first_disco`].
async fn fill_disco(
    control: &Control,
    machine: MachinePublic,
    request: &MapRequest,
) -> Result<(), Response<Body>> {
    let (key, disco) = (request.node_key, request.disco_key);
    let missing = match nodes::find(&control.net(), machine, &key) {
        Ok(node) => node.disco.is_none() && !disco.is_zero(),
        Err(refusal) => return Err(refused(refusal)),
    };
    if !missing {
        return Ok(());
    }
    let done = control.run(move |draft| {
        nodes::first_disco(draft, &key, disco);
        Ok(())
    });
    done.await.map_err(|e| failed(&e))
}

fn stream(session: Session) -> Response<Body> {
    Response::new(StreamBody::new(session.into_stream()).boxed_unsync())
}
