//! Asks the running server over its admin socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::exit::Failure;
use crate::api::SOCKET_NAME;
use crate::api::types::ErrorBody;

/// No answer of ours is larger.
const MAX_ANSWER: usize = 256 << 20;
/// A server that takes longer is stuck.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A way to the server.
#[derive(Debug, Clone)]
pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    /// For the server on this state directory.
    #[must_use]
    pub(super) fn new(state_dir: &Path) -> Self {
        Self { socket: state_dir.join(SOCKET_NAME) }
    }

    /// Whether a server answers.
    pub(super) async fn reachable(&self) -> bool {
        UnixStream::connect(&self.socket).await.is_ok()
    }

    /// Reads.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.call::<(), T>(Method::GET, path, None).await
    }

    /// Does something without further words.
    pub(super) async fn act<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, Failure> {
        self.call::<(), T>(method, path, None).await
    }

    /// Does something.
    pub(super) async fn send<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &B,
    ) -> Result<T, Failure> {
        self.call(method, path, Some(body)).await
    }

    async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, Failure> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.not_there(&e))?;
        let bytes = match body {
            Some(body) => serde_json::to_vec(body).map_err(|e| ours(&e))?,
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "tsd")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(bytes)))
            .map_err(|e| ours(&e))?;
        let exchange = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| ours(&e))?;
            let talk = async {
                let response = sender.send_request(request).await.map_err(|e| ours(&e))?;
                let status = response.status();
                let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
                let body = body.map_err(|e| Failure::Ours(format!("the server's answer broke off: {e}")))?;
                Ok((status, body.to_bytes()))
            };
            tokio::pin!(talk, connection);
            tokio::select! {
                result = &mut talk => result,
                // The connection may end first with the answer already read.
                _ = &mut connection => talk.await,
            }
        };
        let (status, bytes) = tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| {
            Failure::Ours(format!("the server at {} does not answer", self.socket.display()))
        })??;
        decode(status, &bytes)
    }

    fn not_there(&self, error: &io::Error) -> Failure {
        let socket = self.socket.display();
        Failure::User(match error.kind() {
            io::ErrorKind::PermissionDenied => {
                format!("this user may not open {socket}; run the command as the server's user or as root")
            }
            _ => format!(
                "no tsd server answers at {socket}; start it with `tsd serve`, or name its directory by --state-dir"
            ),
        })
    }
}

fn ours(error: &dyn std::fmt::Display) -> Failure {
    Failure::Ours(format!("talking to the server failed: {error}"))
}

fn decode<T: DeserializeOwned>(status: StatusCode, bytes: &[u8]) -> Result<T, Failure> {
    if status.is_success() {
        return serde_json::from_slice(bytes).map_err(|e| {
            Failure::Ours(format!(
                "the server's answer is not understood ({e}); are tsd and the server of one version?"
            ))
        });
    }
    Err(match serde_json::from_slice::<ErrorBody>(bytes) {
        Ok(body) => Failure::Refused(Box::new(body)),
        Err(_) => Failure::Ours(format!("the server answered {status}: {}", String::from_utf8_lossy(bytes))),
    })
}

/// A path with `arg` as one segment.
#[must_use]
pub(super) fn path(before: &str, arg: &str, after: &str) -> String {
    format!("{before}/{}{after}", utf8_percent_encode(arg, NON_ALPHANUMERIC))
}
