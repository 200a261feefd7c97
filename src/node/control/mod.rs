//! The node's control client: `/key`, the dial race of control.md 3.1, Noise, HTTP/2, register and map.

mod dial;
mod map;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use dial::{Target, Way};
pub use map::MapStream;

use crate::clock::{Now, Rng};
use crate::derp::client::DialOptions;
use crate::keys::{MachinePrivate, MachinePublic};
use crate::noise::stream::{ClientHandshake, NoiseStream};
use crate::wire::{CapVer, MapRequest, RegisterRequest, RegisterResponse, ServerKeys};

/// Largest answer of `/key` (control.md 2) and of other requests outside Noise.
const MAX_KEY: usize = 64 << 10;
/// Largest answer to a register or an update (control.md 3.5).
const MAX_ANSWER: usize = 1 << 20;
/// Most of an error's body that is read; 200 characters of it are shown.
const MAX_FAULT: usize = 4 << 10;
/// Requests that should be answered at once.
const REQUEST: Duration = Duration::from_secs(60);
/// Between HTTP/2 pings, and for their answer: a server gone without a word is noticed in 50 s.
const H2_PING: Duration = Duration::from_secs(30);
const H2_PONG: Duration = Duration::from_secs(20);
/// Longest wait a server may ask for with 429 (control.md 5.3).
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Why control could not be asked. Texts name the server and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The URL is no http(s) URL with a host.
    #[error("{0:?} is not a server URL: write https://host or http://host:port")]
    Url(String),
    /// Nothing answered, or not as a coordination server.
    #[error("cannot reach the server {url}: {why}")]
    Unreachable {
        /// Which.
        url: String,
        /// What went wrong on each try.
        why: String,
    },
    /// The server answered a status other than 200.
    #[error("the server answered {status}: {text}")]
    Status {
        /// HTTP status.
        status: u16,
        /// First 200 characters of the body.
        text: String,
        /// From `Retry-After` on 429.
        retry_after: Option<Duration>,
    },
    /// A ping that would lead elsewhere than to the server.
    #[error("the server asks to answer a ping at {0}, which is not the server: refused")]
    Foreign(String),
    /// The answer could not be read.
    #[error("the server's answer could not be read: {0}")]
    Decode(String),
    /// No message for 120 s.
    #[error("the map stream was silent for 120 s")]
    Silent,
}

/// A client of one coordination server. Keeps one HTTP/2 connection and redials when it is gone.
pub struct ControlClient {
    target: Target,
    machine: MachinePrivate,
    options: DialOptions,
    rng: Mutex<Rng>,
    /// The key of the first `/key` answer, kept for the client's life (control.md 2).
    key: tokio::sync::OnceCell<MachinePublic>,
    conn: Mutex<Option<Conn>>,
    /// Held while dialling, so that callers share one dial.
    dialling: tokio::sync::Mutex<()>,
    /// Counts resets: a connection dialled before one is not kept.
    resets: AtomicU64,
    last: Mutex<Option<Way>>,
}

impl std::fmt::Debug for ControlClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlClient").field("url", &self.target.url).finish_non_exhaustive()
    }
}

/// One HTTP/2 connection; all its tasks end with it.
struct Conn {
    send: http2::SendRequest<Full<Bytes>>,
    _tasks: Arc<Mutex<JoinSet<()>>>,
}

/// Spawns hyper's tasks into the set of their connection, so that dropping the connection cuts its
/// open streams too. Weak, because those tasks hold their executor.
#[derive(Clone)]
struct Owned(Weak<Mutex<JoinSet<()>>>);

impl<F: Future + Send + 'static> Executor<F> for Owned {
    fn execute(&self, task: F) {
        if let Some(tasks) = self.0.upgrade() {
            let mut tasks = tasks.lock();
            while tasks.try_join_next().is_some() {}
            tasks.spawn(async move {
                task.await;
            });
        }
    }
}

impl ControlClient {
    /// Checks the URL; nothing is dialled yet.
    ///
    /// # Errors
    /// [`ControlError::Url`].
    pub fn new(
        url: &str,
        machine: MachinePrivate,
        options: DialOptions,
        rng: Rng,
    ) -> Result<Self, ControlError> {
        let target = Target::parse(url).ok_or_else(|| ControlError::Url(url.to_owned()))?;
        Ok(Self {
            target,
            machine,
            options,
            rng: Mutex::new(rng),
            key: tokio::sync::OnceCell::new(),
            conn: Mutex::new(None),
            dialling: tokio::sync::Mutex::new(()),
            resets: AtomicU64::new(0),
            last: Mutex::new(None),
        })
    }

    /// `POST /machine/register`. With a follow-up it blocks as long as the server does.
    ///
    /// # Errors
    /// Transport faults and statuses; what a person should read is in the response's `error`.
    pub async fn register(&self, request: &RegisterRequest) -> Result<RegisterResponse, ControlError> {
        let ask = async {
            let answer = self.post("/machine/register", request).await?;
            let body = read(answer, MAX_ANSWER).await?;
            serde_json::from_slice(&body).map_err(|e| ControlError::Decode(e.to_string()))
        };
        if request.followup.is_empty() { self.at_once(ask).await } else { ask.await }
    }

    /// A lite update (`Stream: false, OmitPeers: true`).
    ///
    /// # Errors
    /// Transport faults and statuses.
    pub async fn update(&self, request: &MapRequest) -> Result<(), ControlError> {
        self.at_once(async {
            let answer = self.post("/machine/map", request).await?;
            read(answer, MAX_ANSWER).await.map(drop)
        })
        .await
    }

    /// Opens the long poll.
    ///
    /// # Errors
    /// Transport faults and statuses.
    pub async fn poll(&self, request: &MapRequest) -> Result<MapStream, ControlError> {
        // The watchdog also covers the wait for the answer's head.
        let deadline = Instant::now() + map::WATCHDOG;
        let answer = timeout_at(deadline, self.post("/machine/map", request))
            .await
            .map_err(|_| ControlError::Silent)??;
        let zstd = request.compress == "zstd";
        Ok(MapStream::new(answer.into_body().boxed(), zstd, deadline))
    }

    /// Answers a `PingRequest` (HEAD or POST to its URL, over Noise when it says so).
    ///
    /// # Errors
    /// Transport faults, and a URL of another host.
    pub async fn answer_ping(
        &self,
        url: &str,
        over_noise: bool,
        body: Option<Vec<u8>>,
    ) -> Result<(), ControlError> {
        let bad = || ControlError::Url(url.to_owned());
        let uri: http::Uri = url.parse().map_err(|_| bad())?;
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let method = if body.is_some() { Method::POST } else { Method::HEAD };
        let body = Bytes::from(body.unwrap_or_default());
        self.at_once(async {
            if over_noise {
                let answer = self.over_noise(method, path, body).await?;
                judge(answer).await.map(drop)
            } else {
                let origin = format!(
                    "{}://{}",
                    uri.scheme_str().unwrap_or_default(),
                    uri.authority().map_or("", |a| a.as_str())
                );
                let target = Target::parse(&origin).ok_or_else(bad)?;
                // Only the server itself is answered: whoever steers the map stream must not make this
                // node knock at machines that only it can reach (RELIABILITY.md row 103).
                if !target.host.eq_ignore_ascii_case(&self.target.host) {
                    return Err(ControlError::Foreign(target.host));
                }
                plain_http(&target, &self.options, method, path, body).await.map(drop)
            }
        })
        .await
    }

    /// Forgets the connection, after a network change. Open polls end with an error.
    pub fn reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
        self.conn.lock().take();
    }

    async fn at_once<T>(
        &self,
        ask: impl Future<Output = Result<T, ControlError>>,
    ) -> Result<T, ControlError> {
        let late = || self.unreachable(format!("no answer within {} s", REQUEST.as_secs()));
        timeout(REQUEST, ask).await.unwrap_or_else(|_| Err(late()))
    }

    fn unreachable(&self, why: String) -> ControlError {
        ControlError::Unreachable { url: self.target.url.clone(), why }
    }

    async fn post(
        &self,
        path: &str,
        request: &impl serde::Serialize,
    ) -> Result<Response<Incoming>, ControlError> {
        let body = serde_json::to_vec(request)
            .map_err(|e| self.unreachable(format!("our request cannot be written: {e}")))?;
        let answer = self.over_noise(Method::POST, path, body.into()).await?;
        judge(answer).await
    }

    /// One request over the shared connection; dialled anew once when the connection turned out to be
    /// closed before the request left.
    async fn over_noise(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ControlError> {
        let uri = format!("https://{}{path}", self.target.authority);
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .body(Full::new(body))
            .map_err(|e| self.unreachable(e.to_string()))?;
        let mut tries = 2;
        loop {
            tries -= 1;
            let mut send = self.connection().await?;
            match send.try_send_request(request).await {
                Ok(answer) => return Ok(answer),
                Err(mut fault) => match fault.take_message() {
                    Some(unsent) if tries > 0 => request = unsent,
                    _ => return Err(self.unreachable(fault.into_error().to_string())),
                },
            }
        }
    }

    async fn connection(&self) -> Result<http2::SendRequest<Full<Bytes>>, ControlError> {
        let open = || {
            let mut conn = self.conn.lock();
            if conn.as_ref().is_some_and(|c| c.send.is_closed()) {
                conn.take();
            }
            conn.as_ref().map(|c| c.send.clone())
        };
        if let Some(send) = open() {
            return Ok(send);
        }
        let _turn = self.dialling.lock().await;
        if let Some(send) = open() {
            return Ok(send);
        }
        let resets = self.resets.load(Ordering::SeqCst);
        let key = self.server_key().await?;
        let conn = self.dial(key).await?;
        let send = conn.send.clone();
        let mut slot = self.conn.lock();
        if self.resets.load(Ordering::SeqCst) != resets {
            // The network changed under the dial: what it made may lead nowhere.
            return Err(self.unreachable("the network changed while dialling".to_owned()));
        }
        *slot = Some(conn);
        Ok(send)
    }

    /// `GET /key`, once (control.md 2). For an `https` server the certificate is verified here, and
    /// with it the key that everything after rests on.
    async fn server_key(&self) -> Result<&MachinePublic, ControlError> {
        self.key.get_or_try_init(|| self.fetch_key()).await
    }

    async fn fetch_key(&self) -> Result<MachinePublic, ControlError> {
        let path = format!("/key?v={}", CapVer::OURS);
        let none = Bytes::new();
        let fetch = plain_http(&self.target, &self.options, Method::GET, &path, none);
        let body = timeout(dial::DIAL, fetch)
            .await
            .map_err(|_| self.unreachable("no answer to /key within 10 s".to_owned()))??;
        let keys: ServerKeys =
            serde_json::from_slice(&body).map_err(|e| ControlError::Decode(format!("/key: {e}")))?;
        if keys.public_key.is_zero() {
            return Err(ControlError::Decode("/key holds no Noise key: the server is too old".to_owned()));
        }
        Ok(keys.public_key)
    }

    async fn dial(&self, key: &MachinePublic) -> Result<Conn, ControlError> {
        let ways = self.target.ways(*self.last.lock());
        let (noise, way) =
            dial::race(ways, |way| self.attempt(way, key)).await.map_err(|why| self.unreachable(why))?;
        *self.last.lock() = Some(way);
        tracing::debug!(server = %self.target.url, %way, "connected to the coordination server");
        let tasks = Arc::new(Mutex::new(JoinSet::new()));
        let (send, conn) = http2::Builder::new(Owned(Arc::downgrade(&tasks)))
            .timer(TokioTimer::new())
            .keep_alive_interval(H2_PING)
            .keep_alive_timeout(H2_PONG)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .handshake(TokioIo::new(noise))
            .await
            .map_err(|e| self.unreachable(e.to_string()))?;
        tasks.lock().spawn(async move {
            if let Err(e) = conn.await {
                tracing::debug!("the control connection ended: {e}");
            }
        });
        Ok(Conn { send, _tasks: tasks })
    }

    async fn attempt(&self, way: Way, key: &MachinePublic) -> Result<NoiseStream<dial::Stream>, String> {
        let mut io = dial::open(&self.target.host, way, &self.options, false).await?;
        let (handshake, initiation) =
            ClientHandshake::new(&self.machine, key, CapVer::OURS, &mut self.rng.lock());
        dial::upgrade(&mut io, &self.target.authority, &initiation).await?;
        handshake.finish(io).await.map_err(|e| e.to_string())
    }
}

/// The body of one ordinary HTTP/1.1 request on its own connection, with a verified certificate when
/// `https`. Redirects are not followed: whoever answers them would choose the server's key.
async fn plain_http(
    target: &Target,
    options: &DialOptions,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Bytes, ControlError> {
    let fault = |why: String| ControlError::Unreachable { url: target.url.clone(), why };
    let way = target.own_way();
    let io = dial::open(&target.host, way, options, true).await.map_err(|e| fault(format!("{way}: {e}")))?;
    let (mut send, conn) = http1::handshake(TokioIo::new(io)).await.map_err(|e| fault(e.to_string()))?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, &target.authority)
        .header(header::CONNECTION, "close")
        .body(Full::new(body))
        .map_err(|e| fault(e.to_string()))?;
    let mut driver = JoinSet::new();
    driver.spawn(conn);
    let answer = send.send_request(request).await.map_err(|e| fault(e.to_string()))?;
    read(judge(answer).await?, MAX_KEY).await
}

/// Lets good answers pass and makes the others an error with their text.
async fn judge(answer: Response<Incoming>) -> Result<Response<Incoming>, ControlError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    if let (true, Some(to)) = (status.is_redirection(), answer.headers().get(header::LOCATION)) {
        let to = excerpt(to.as_bytes());
        return Err(ControlError::Status {
            status: status.as_u16(),
            text: format!("it redirects to {to}: use that address as the server's URL"),
            retry_after: None,
        });
    }
    let retry_after = (status == StatusCode::TOO_MANY_REQUESTS)
        .then(|| answer.headers().get(header::RETRY_AFTER))
        .flatten()
        .and_then(|v| v.to_str().ok())
        .and_then(|v| parse_retry_after(v, Now::read()));
    // Whatever is readable of the text; an error in reading it must not hide the status.
    let text = Limited::new(answer.into_body(), MAX_FAULT).collect();
    let text = match timeout(Duration::from_secs(5), text).await {
        Ok(Ok(body)) => excerpt(&body.to_bytes()),
        _ => String::new(),
    };
    Err(ControlError::Status { status: status.as_u16(), text, retry_after })
}

async fn read(answer: Response<Incoming>, limit: usize) -> Result<Bytes, ControlError> {
    let body = Limited::new(answer.into_body(), limit).collect().await;
    body.map(http_body_util::Collected::to_bytes)
        .map_err(|e| ControlError::Decode(format!("{e} (at most {limit} bytes are read)")))
}

/// Seconds or a date (RFC 9110 10.2.3); nothing when it is past or unreasonable.
fn parse_retry_after(text: &str, now: Now) -> Option<Duration> {
    let wait = match text.trim().parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = chrono::DateTime::parse_from_rfc2822(text.trim()).ok()?;
            at.signed_duration_since(now.wall).to_std().ok()?
        }
    };
    (!wait.is_zero() && wait <= MAX_RETRY_AFTER).then_some(wait)
}

/// The first 200 characters, on one line.
fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let shown = text.trim().chars().take(200);
    shown.map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests;
