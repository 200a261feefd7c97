//! A client of one relay region.

use std::sync::Arc;

use bytes::Bytes;

use crate::clock::Rng;
use crate::keys::{NodePrivate, NodePublic};
use crate::wire::DerpRegion;

/// Why a relay connection failed or ended.
#[derive(Debug, thiserror::Error)]
pub enum DerpClientError {
    /// The stream broke.
    #[error("the relay connection broke: {0}")]
    Io(#[from] std::io::Error),
}

/// What a relay says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DerpEvent {
    /// A packet of a peer.
    Packet {
        /// Sender.
        from: NodePublic,
        /// Payload.
        bytes: Bytes,
    },
    /// A peer left (reason 0) or was never here (reason 1).
    PeerGone {
        /// Who.
        key: NodePublic,
        /// Why.
        reason: u8,
    },
    /// A text about the relay's health; empty is healthy.
    Health(String),
    /// The relay restarts; connection loss is expected.
    Restarting,
}

/// The sending half; cheap to clone, never blocks: a full queue drops its oldest packet.
#[derive(Clone)]
pub struct DerpSender {
    _inner: Arc<()>,
}

impl DerpSender {
    /// Queues a packet for `to`.
    pub fn send(&self, _to: NodePublic, _bytes: Bytes) {
        todo!()
    }

    /// Says whether this region is our home.
    pub fn note_preferred(&self, _home: bool) {
        todo!()
    }
}

/// The receiving half. Dropping it ends the connection.
pub struct DerpReceiver {
    _inner: (),
}

impl DerpReceiver {
    /// The next event; answers pings by itself; an error after 120 s of silence.
    ///
    /// # Errors
    /// When the connection ended.
    pub async fn recv(&mut self) -> Result<DerpEvent, DerpClientError> {
        todo!()
    }
}

/// How to reach the outside: marks sockets so that they bypass the tunnel, and which roots to trust.
#[derive(Clone)]
pub struct DialOptions {
    /// `SO_MARK` for every socket, when we may set it.
    pub mark: Option<u32>,
    /// Roots for ordinary certificates.
    pub roots: Arc<rustls::RootCertStore>,
}

/// Connects to the first node of `region` that answers: TCP, TLS (name, `sha256-raw:` pin or
/// insecure), upgrade, DERP handshake; 10 s in all.
///
/// # Errors
/// When no node of the region could be reached or verified.
pub async fn connect(
    _region: &DerpRegion,
    _key: &NodePrivate,
    _options: &DialOptions,
    _rng: &mut Rng,
) -> Result<(DerpSender, DerpReceiver), DerpClientError> {
    todo!()
}
