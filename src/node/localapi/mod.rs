//! The LocalAPI: HTTP/1.1 on a unix socket, the same paths and names as the official client
//! (dataplane.md 13.1, 13.2), so that its command line can drive this node.
//!
//! A browser can never be a caller: any `Origin` or `Referer` and any foreign `Host` is refused.
//! Root, the daemon's own user and the operator may change things; everybody else may read.

pub mod handlers;
pub mod notify;
pub mod status;

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::core::CoreHandle;
use super::host::VERSION;
use super::lifecycle::Backend;
use crate::wire::CapVer;

/// Callers served at once; further ones are hung up on. Those who may only look have places of their
/// own, so that they cannot lock root out.
const MAX_CALLERS: usize = 64;
/// What every path starts with.
pub const PREFIX: &str = "/localapi/v0/";

/// The body of every answer.
pub type Body = BoxBody<Bytes, Infallible>;

/// What handlers work with.
#[derive(Debug, Clone)]
pub struct Api {
    /// The lifecycle.
    pub backend: Backend,
    /// The engine's owner.
    pub core: CoreHandle,
}

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Look.
    Read,
    /// Look and change.
    Write,
}

/// A socket that is removed when the server ends.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Binds the socket; a dead one in its place is replaced, a live one is not.
///
/// # Errors
/// When another daemon answers there, or the directory cannot be written.
pub fn bind(path: &Path) -> io::Result<Socket> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("another daemon answers on {}; stop it or give another --socket", path.display()),
        ));
    }
    if let Some(dir) = path.parent() {
        make_dir(dir)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            let why = format!("{} is there and is no socket; give another --socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
        }
        Ok(_) => std::fs::remove_file(path)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let listener = UnixListener::bind(path)?;
    // Everybody may look; who may change is decided per caller.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(Socket { listener, path: path.to_owned() })
}

/// Makes a directory that everybody may enter and only we may change, whatever the umask.
pub(crate) fn make_dir(dir: &Path) -> io::Result<()> {
    if !dir.is_dir() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    }
    Ok(())
}

/// Serves until cancelled.
pub async fn serve(socket: Socket, api: Api) {
    let mut callers = JoinSet::new();
    let [trusted, others] = [(); 2].map(|()| Arc::new(Semaphore::new(MAX_CALLERS)));
    loop {
        let stream = tokio::select! {
            accepted = socket.listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    tracing::warn!("LocalAPI accept: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            Some(_) = callers.join_next(), if !callers.is_empty() => continue,
        };
        let uid = match stream.peer_cred() {
            Ok(cred) => cred.uid(),
            Err(e) => {
                tracing::debug!("LocalAPI caller without credentials: {e}");
                continue;
            }
        };
        let places = if caller(uid, "") == Caller::Write { &trusted } else { &others };
        let Ok(place) = Arc::clone(places).try_acquire_owned() else {
            tracing::debug!("too many LocalAPI callers; user {uid} is hung up on");
            continue;
        };
        let api = api.clone();
        callers.spawn(async move {
            one(stream, uid, api).await;
            drop(place);
        });
    }
}

async fn one(stream: UnixStream, uid: u32, api: Api) {
    let service = service_fn(move |request| {
        let api = api.clone();
        async move { Ok::<_, Infallible>(answer(request, uid, &api).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(30))
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(e) = served {
        tracing::trace!("LocalAPI caller: {e}");
    }
}

/// A text answer.
#[must_use]
pub fn text(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    let mut text = text.into();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed());
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// A JSON answer.
#[must_use]
pub fn json<T: serde::Serialize>(status: StatusCode, value: &T) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            let mut response = Response::new(Full::new(Bytes::from(bytes)).boxed());
            *response.status_mut() = status;
            let kind = HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    }
}

/// Whether a user may change things.
#[must_use]
pub fn caller(uid: u32, operator: &str) -> Caller {
    let is_operator = || {
        let user = nix::unistd::User::from_name(operator).ok().flatten();
        !operator.is_empty() && user.is_some_and(|u| u.uid.as_raw() == uid)
    };
    if uid == 0 || uid == nix::unistd::geteuid().as_raw() || is_operator() {
        Caller::Write
    } else {
        Caller::Read
    }
}

/// Why a request is not looked at at all.
fn refusal<B>(request: &Request<B>) -> Option<&'static str> {
    let headers = request.headers();
    if headers.contains_key(header::ORIGIN) || headers.contains_key(header::REFERER) {
        return Some("browsers may not speak here");
    }
    let host = headers.get(header::HOST).map(HeaderValue::as_bytes);
    match host {
        None | Some(b"" | b"local-tailscaled.sock" | b"local-tsd.sock") => None,
        Some(_) => Some("unknown host"),
    }
}

async fn answer(request: Request<Incoming>, uid: u32, api: &Api) -> Response<Body> {
    let mut response = match refusal(&request) {
        Some(why) => text(StatusCode::FORBIDDEN, why),
        None => {
            let operator = api.backend.view().prefs.operator_user;
            handlers::route(request, caller(uid, &operator), api).await
        }
    };
    let headers = response.headers_mut();
    headers.insert("Tailscale-Version", HeaderValue::from_static(VERSION));
    headers.insert("Tailscale-Cap", HeaderValue::from(CapVer::OURS.0));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
    );
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::get("/localapi/v0/status");
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    #[test]
    fn browsers_and_foreign_hosts_are_refused() {
        assert_eq!(refusal(&request(&[("host", "local-tailscaled.sock")])), None);
        assert_eq!(refusal(&request(&[])), None);
        assert!(refusal(&request(&[("host", "evil.example")])).is_some());
        assert!(refusal(&request(&[("origin", "http://x")])).is_some());
        assert!(refusal(&request(&[("referer", "http://x")])).is_some());
    }

    #[test]
    fn only_root_the_daemons_user_and_the_operator_may_change() {
        assert_eq!(caller(0, ""), Caller::Write);
        assert_eq!(caller(nix::unistd::geteuid().as_raw(), ""), Caller::Write);
        assert_eq!(caller(54_321, ""), Caller::Read);
        assert_eq!(caller(54_321, "root"), Caller::Read);
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let live = bind(&path).unwrap();
        let error = bind(&path).unwrap_err().to_string();
        assert!(error.contains("another daemon"), "{error}");
        drop(live);
        assert!(!path.exists());
    }

    #[test]
    fn only_a_socket_is_replaced() {
        let tmp = tempfile::tempdir().unwrap();
        let file = tmp.path().join("precious");
        std::fs::write(&file, "x").unwrap();
        let link = tmp.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for path in [&file, &link] {
            let error = bind(path).unwrap_err().to_string();
            assert!(error.contains("no socket"), "{error}");
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "x");
    }

    #[tokio::test]
    async fn a_socket_is_for_all_in_a_directory_for_none() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("run/s");
        let _socket = bind(&path).unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o666);
        assert_eq!(mode(path.parent().unwrap()) & 0o022, 0);
    }

    #[tokio::test]
    async fn callers_beyond_the_limit_are_hung_up_on() {
        use tokio::io::AsyncReadExt;
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("s");
        let api = Api {
            backend: Backend::showing(super::super::lifecycle::View::default()),
            core: CoreHandle::gone(),
        };
        let server = tokio::spawn(serve(bind(&path).unwrap(), api));
        let mut idle = Vec::new();
        for _ in 0..MAX_CALLERS {
            idle.push(UnixStream::connect(&path).await.unwrap());
        }
        let mut late = UnixStream::connect(&path).await.unwrap();
        assert_eq!(late.read(&mut [0]).await.unwrap(), 0);
        server.abort();
    }

    /// Sends raw text, returns the whole answer.
    async fn exchange(path: &Path, text: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut out = String::new();
        stream.read_to_string(&mut out).await.unwrap();
        out
    }

    #[tokio::test]
    async fn answers_over_the_socket_are_those_the_official_client_expects() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("s");
        let api = Api {
            backend: Backend::showing(super::super::lifecycle::View::default()),
            core: CoreHandle::gone(),
        };
        let server = tokio::spawn(serve(bind(&path).unwrap(), api));
        let ask = |line: &str, extra: &str| {
            let text =
                format!("{line} HTTP/1.1\r\nHost: local-tailscaled.sock\r\nConnection: close\r\n{extra}\r\n");
            let path = path.clone();
            async move { exchange(&path, &text).await }
        };
        let prefs = ask("GET /localapi/v0/prefs", "").await;
        assert!(prefs.starts_with("HTTP/1.1 200"), "{prefs}");
        assert!(prefs.contains("tailscale-cap: 145"), "{prefs}");
        assert!(prefs.contains("\"CorpDNS\":true"));
        for (line, extra, status) in [
            ("GET /localapi/v0/prefs", "Origin: http://x\r\n", "403"),
            ("GET /localapi/v0/prefs", "Referer: http://x\r\n", "403"),
            ("GET /localapi/v0/nothing", "", "404"),
            ("GET /elsewhere", "", "404"),
            ("DELETE /localapi/v0/prefs", "", "405"),
            ("GET /localapi/v0/logout", "", "405"),
            ("GET /localapi/v0/files/", "", "501"),
            ("GET /localapi/v0/watch-ipn-bus?mask=65536", "", "400"),
            ("GET /localapi/v0/status", "", "503"),
        ] {
            let got = ask(line, extra).await;
            assert!(got.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {got}");
        }
        let evil = "GET /localapi/v0/prefs HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
        assert!(exchange(&path, evil).await.starts_with("HTTP/1.1 403"));
        server.abort();
    }
}
