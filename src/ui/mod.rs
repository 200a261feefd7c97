//! The console: askama pages and plain forms over the same service calls as the command line. No
//! script is needed and none is sent. [`Ui::handle`] guards every request in one order: TLS, method,
//! where a form comes from, session; then the router; then the safety headers. `session` says who is
//! signed in, the `pages` files what is shown (pure), `routes` and `access` what a request does.

mod access;
mod access_pages;
mod assets;
mod device_pages;
mod editor;
mod history;
mod key_routes;
mod pages;
mod routes;
mod session;
mod simulator;
mod simulator_pages;
mod stop;
mod text;

#[cfg(test)]
mod live_tests;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;
use tower::ServiceExt;

use crate::clock::{Now, Rng};
use crate::control::service::{AdminError, Control};
use pages::{Frame, Notice, Room};
use session::Session;
use stop::Stop;

/// A request and its answer must be through in this time.
const REQUEST_TIME: Duration = Duration::from_secs(30);
/// Largest page or asset we send; only the editor with a text of megabytes comes near.
const MAX_ANSWER: usize = 128 << 20;
/// Form nonces remembered against double submits; the oldest go first.
const MAX_USED: usize = 1024;

/// What the Start page shows about the server.
pub trait StatusSource: Send + Sync {
    /// What needs attention, each with its remedy.
    fn warnings(&self) -> Vec<String>;
    /// Name and value of what one wants to know about this server.
    fn facts(&self) -> Vec<(String, String)>;
    /// What clients are told as login server.
    fn join_url(&self) -> String;
}

/// How a request came in.
#[derive(Debug, Clone)]
pub struct RequestInfo {
    /// The browser's address (behind a trusted proxy: the forwarded one).
    pub remote: SocketAddr,
    /// It came by TLS, over loopback, or through a trusted proxy.
    pub secure: bool,
    /// Where a plain request is redirected to: scheme and authority, no trailing slash.
    pub tls_url: Option<String>,
}

/// The console; clones share it.
#[derive(Clone)]
pub struct Ui {
    shared: Shared,
    router: Router,
}

/// What handlers work with.
#[derive(Clone)]
pub(super) struct Shared(Arc<Inner>);

struct Inner {
    control: Control,
    status: Arc<dyn StatusSource>,
    rng: Mutex<Rng>,
    used: Mutex<VecDeque<String>>,
}

impl Shared {
    fn control(&self) -> &Control {
        &self.0.control
    }

    fn status(&self) -> &dyn StatusSource {
        self.0.status.as_ref()
    }

    fn random(&self) -> [u8; 32] {
        self.0.rng.lock().bytes()
    }

    /// A value for one form that must take effect once.
    fn nonce(&self) -> String {
        hex::encode(self.0.rng.lock().bytes::<16>())
    }

    /// Whether this form is sent for the first time. Remembers the last thousand.
    fn first_time(&self, nonce: &str) -> bool {
        let nonce: String = nonce.chars().take(32).collect();
        let mut used = self.0.used.lock();
        if used.contains(&nonce) {
            return false;
        }
        if used.len() >= MAX_USED {
            used.pop_front();
        }
        used.push_back(nonce);
        true
    }
}

impl Ui {
    /// A console over `control`.
    #[must_use]
    pub fn new(control: Control, status: Arc<dyn StatusSource>) -> Self {
        let shared = Shared(Arc::new(Inner {
            control,
            status,
            rng: Mutex::new(Rng::from_os()),
            used: Mutex::new(VecDeque::new()),
        }));
        Self { router: routes::router(shared.clone()), shared }
    }

    /// Makes a one-time sign-in link, good for 15 minutes: path and query, to be put behind the
    /// console's address. Never logged.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn new_console_link(&self) -> Result<String, AdminError> {
        self.shared.make_link(chrono::Duration::minutes(15)).await
    }

    /// The same for the start page, good for 24 hours.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn new_start_link(&self) -> Result<String, AdminError> {
        self.shared.make_link(chrono::Duration::hours(24)).await
    }

    /// Whether a path is the console's.
    #[must_use]
    pub fn owns(path: &str) -> bool {
        const EXACT: [&str; 9] =
            ["/", "/login", "/logout", "/devices", "/approvals", "/people", "/keys", "/access", "/simulator"];
        const UNDER: [&str; 7] =
            ["/device/", "/people/", "/keys/", "/access/", "/simulator/", "/a/", "/static/"];
        EXACT.contains(&path) || UNDER.iter().any(|p| path.starts_with(p))
    }

    /// Answers one request. Never fails: what goes wrong becomes a page.
    pub async fn handle(
        &self,
        request: Request<hyper::body::Incoming>,
        info: RequestInfo,
    ) -> Response<Full<Bytes>> {
        self.respond(request, info).await
    }

    /// [`Ui::handle`] for any body.
    async fn respond<B>(&self, request: Request<B>, info: RequestInfo) -> Response<Full<Bytes>>
    where
        B: axum::body::HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<axum::BoxError>,
    {
        let path = request.uri().path().to_owned();
        let response = tokio::time::timeout(REQUEST_TIME, self.guard(request, info)).await;
        let response = response.unwrap_or_else(|_| Stop::Slow.page(Frame::stranger("Too slow")));
        let (mut parts, body) = response.into_parts();
        let body = match http_body_util::Limited::new(body, MAX_ANSWER).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => {
                tracing::error!(%error, %path, "console: the answer could not be put together");
                parts.status = StatusCode::INTERNAL_SERVER_ERROR;
                Bytes::new()
            }
        };
        safety_headers(&mut parts.headers);
        Response::from_parts(parts, Full::new(body))
    }

    /// TLS, method, origin, session; then the router, whose refusals become pages here.
    async fn guard<B>(&self, request: Request<B>, info: RequestInfo) -> Response
    where
        B: axum::body::HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<axum::BoxError>,
    {
        if !info.secure {
            return self.redirect_to_tls(&request, &info).await;
        }
        let path = request.uri().path();
        if let Some((kind, content)) = assets::find(path) {
            return (
                [
                    (header::CONTENT_TYPE, kind),
                    (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
                ],
                content,
            )
                .into_response();
        }
        let read = matches!(*request.method(), Method::GET | Method::HEAD);
        if !read && request.method() != Method::POST {
            return Stop::Method.page(Frame::stranger("Not possible here"));
        }
        if !read && !session::same_origin(request.headers(), host(&request)) {
            return Stop::Origin.page(Frame::stranger("Refused"));
        }
        let session = match self.shared.session(request.headers()).await {
            Ok(session) => session,
            Err(error) => return Stop::Admin(error).page(Frame::stranger("Not done")),
        };
        let open = path == "/login" || (read && path.starts_with("/a/"));
        if session.is_none() && !open {
            return if read {
                redirect("/login")
            } else {
                Stop::Ended.page(Frame::stranger("Your session has ended"))
            };
        }
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(info);
        if let Some(session) = session.clone() {
            request.extensions_mut().insert(session);
        }
        let Ok(mut response) = self.router.clone().oneshot(request).await;
        if let Some(stop) = response.extensions_mut().remove::<Stop>() {
            let frame = session.map_or_else(
                || Frame::stranger(stop.title()),
                |s| self.shared.frame(&s, Room::None, stop.title()),
            );
            return stop.page(frame);
        }
        response
    }

    /// The console is not spoken in the clear. A sign-in token that came that way is withdrawn: it
    /// may have been read on its way.
    async fn redirect_to_tls<B>(&self, request: &Request<B>, info: &RequestInfo) -> Response {
        let uri = request.uri();
        let mut target = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
        if uri.path() == "/login" {
            let token = uri.query().unwrap_or("").split('&').find_map(|p| p.strip_prefix("token="));
            if let Some(token) = token {
                if let Err(error) = self.shared.use_link(token).await {
                    return Stop::Admin(error).page(Frame::stranger("Not done"));
                }
                target = "/login?why=plain".to_owned();
            }
        }
        let Some(base) = &info.tls_url else {
            return Stop::Plain.page(Frame::stranger("Open the console by TLS"));
        };
        let Ok(location) = HeaderValue::try_from(format!("{}{target}", base.trim_end_matches('/'))) else {
            return Stop::Plain.page(Frame::stranger("Open the console by TLS"));
        };
        (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, location)]).into_response()
    }
}

/// The host a request was sent to: `:authority` in HTTP/2, Host before.
fn host<B>(request: &Request<B>) -> Option<&str> {
    let authority = request.uri().authority().map(http::uri::Authority::as_str);
    authority.or_else(|| request.headers().get(header::HOST)?.to_str().ok())
}

/// A redirect after a form, or to the sign-in: the browser goes on with GET.
fn redirect(to: &str) -> Response {
    axum::response::Redirect::to(to).into_response()
}

/// Sets what every answer carries. Nothing from elsewhere, no frames, no sniffing, no referrer.
fn safety_headers(headers: &mut HeaderMap) {
    const FIXED: [(&str, &str); 7] = [
        (
            "content-security-policy",
            "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
        ),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("permissions-policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
        ("x-frame-options", "DENY"),
    ];
    for (name, value) in FIXED {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

impl Shared {
    /// The frame of a page for `session`.
    fn frame(&self, session: &Session, room: Room, title: &str) -> Frame {
        let waiting = self.control().logins().len();
        Frame::new(session, room, title, waiting, Now::read().wall)
    }
}

/// What a redirect after a form may say: codes only, so that no text travels in an address.
fn done(code: Option<&str>) -> Option<Notice> {
    let text = match code? {
        "renamed" => "Renamed. The new name is in force.",
        "tagged" => "The tags were saved and are in force.",
        "expired" => "The key has expired. The device is cut off until somebody logs in on it.",
        "removed" => "The device was removed.",
        "routes" => "The routes were saved and are in force.",
        "approved" => "Approved. The device joins within seconds.",
        "rejected" => "Rejected. The device is told so; it stays outside.",
        "revoked" => "The key was revoked. Devices that joined with it stay.",
        "made" => "The user was made.",
        "deleted" => "The user was deleted and their keys revoked.",
        "role" => "The role was saved. Rules for roles follow it at once.",
        "back" => "The old text is in force again, as a new version.",
        "saved" => "The policy was saved and is in force.",
        "unchanged" => {
            "Unchanged: this very text is in force already, so nothing was stored and there is no new version."
        }
        _ => return None,
    };
    Some(Notice::good(text))
}
