//! The relay's shell: one actor per connection, bounded queues, admission by a callback.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::keys::{DerpPrivate, DerpPublic, NodePublic};

/// Whether a node key may use the relay. Answers from memory, never blocks.
pub trait Admission: Send + Sync + 'static {
    /// True lets the connection in.
    fn admit(&self, key: &NodePublic, from: SocketAddr) -> bool;
}

/// A running relay; clones share it.
#[derive(Clone)]
pub struct DerpServer {
    _inner: Arc<()>,
}

/// Figures for `/metrics` and `tsd status`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct DerpStats {
    /// Connections now.
    pub connections: u64,
    /// Packets relayed since start.
    pub packets: u64,
    /// Bytes relayed since start.
    pub bytes: u64,
    /// Packets dropped since start.
    pub dropped: u64,
}

impl DerpServer {
    /// Makes a relay with this identity.
    #[must_use]
    pub fn new(_key: DerpPrivate, _admission: Arc<dyn Admission>) -> Self {
        todo!()
    }

    /// Its public key.
    #[must_use]
    pub fn public_key(&self) -> DerpPublic {
        todo!()
    }

    /// Serves `/derp` (upgrade to DERP or WebSocket), `/derp/probe`, `/derp/latency-check` and
    /// `/generate_204`; 404 for everything else. Spawns the upgraded half itself.
    pub fn http(
        &self,
        _request: Request<Incoming>,
        _remote: SocketAddr,
    ) -> Response<http_body_util::Full<bytes::Bytes>> {
        todo!()
    }

    /// Serves one DERP connection on a raw stream after fast start (no HTTP answer), until it ends.
    pub async fn serve<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        &self,
        _io: S,
        _remote: SocketAddr,
    ) {
        todo!()
    }

    /// Drops all connections of a key (removed, expired).
    pub fn close_node(&self, _key: &NodePublic) {
        todo!()
    }

    /// Figures.
    #[must_use]
    pub fn stats(&self) -> DerpStats {
        todo!()
    }

    /// Tells clients that we restart and closes all connections.
    pub async fn shutdown(&self) {
        todo!()
    }
}
