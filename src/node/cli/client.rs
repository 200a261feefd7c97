//! The LocalAPI's other end.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::Failure;
use crate::node::localapi::PREFIX;

/// Largest answer: a status with ten thousand peers is far below.
const MAX_ANSWER: usize = 64 << 20;

/// Calls one daemon.
#[derive(Debug, Clone)]
pub(super) struct Client {
    socket: PathBuf,
}

/// Why a call failed.
#[derive(Debug)]
pub(super) enum CallError {
    /// No daemon answers.
    NoDaemon(io::Error),
    /// It answered with an error.
    Status(StatusCode, String),
    /// The connection broke.
    Broken(String),
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::NoDaemon(e) => Self::Yours(format!(
                "no daemon answers ({e}); start it with `tsd node up` or `tsd node run`, or name its --socket"
            )),
            CallError::Status(StatusCode::FORBIDDEN, _) => Self::Yours("access denied; use sudo".to_owned()),
            CallError::Status(_, text) => Self::Yours(text),
            CallError::Broken(e) => Self::Ours(format!("the daemon hung up: {e}")),
        }
    }
}

/// A stream of notifications.
#[derive(Debug)]
pub(super) struct Watch {
    body: Incoming,
    rest: Vec<u8>,
}

impl Watch {
    /// The next notification; `None` when the daemon hung up.
    pub(super) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                if let Ok(value) = serde_json::from_slice(&line) {
                    return Some(value);
                }
                continue;
            }
            if self.rest.len() > MAX_ANSWER {
                return None;
            }
            let frame = self.body.frame().await?.ok()?;
            if let Ok(data) = frame.into_data() {
                self.rest.extend_from_slice(&data);
            }
        }
    }
}

impl Client {
    pub(super) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<http::Response<Incoming>, CallError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(CallError::NoDaemon)?;
        let broken = |e: hyper::Error| CallError::Broken(e.to_string());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(format!("{PREFIX}{path}"))
            .header(http::header::HOST, "local-tailscaled.sock")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| CallError::Broken(e.to_string()))?;
        sender.send_request(request).await.map_err(broken)
    }

    /// One call; the answer's bytes.
    pub(super) async fn call(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes, CallError> {
        let response = self.send(method, path, body).await?;
        let status = response.status();
        let bytes = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|e| CallError::Broken(e.to_string()))?
            .to_bytes();
        if status.is_success() {
            return Ok(bytes);
        }
        let text = String::from_utf8_lossy(&bytes).trim().to_owned();
        let said = serde_json::from_str::<Value>(&text)
            .ok()
            .and_then(|v| Some(v.get("Error").or(v.get("error"))?.as_str()?.to_owned()));
        Err(CallError::Status(status, said.unwrap_or(text)))
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value, CallError> {
        let bytes = self.call(Method::GET, path, Vec::new()).await?;
        serde_json::from_slice(&bytes).map_err(|e| CallError::Broken(e.to_string()))
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Bytes, CallError> {
        let bytes = serde_json::to_vec(body).unwrap_or_default();
        self.call(Method::POST, path, bytes).await
    }

    pub(super) async fn patch_prefs(&self, masked: &Value) -> Result<(), CallError> {
        let bytes = serde_json::to_vec(masked).unwrap_or_default();
        self.call(Method::PATCH, "prefs", bytes).await.map(drop)
    }

    /// Watches the bus; the initial state and login link come first.
    pub(super) async fn watch(&self) -> Result<Watch, CallError> {
        let response = self.send(Method::GET, "watch-ipn-bus?mask=2", Vec::new()).await?;
        if !response.status().is_success() {
            return Err(CallError::Status(response.status(), "the daemon does not let us watch".to_owned()));
        }
        Ok(Watch { body: response.into_body(), rest: Vec::new() })
    }
}
