//! Async byte streams over Noise records.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::MachinePeer;
use crate::clock::Rng;
use crate::keys::{MachinePrivate, MachinePublic};
use crate::wire::CapVer;

/// Why a channel could not be made or ended.
#[derive(Debug, thiserror::Error)]
pub enum NoiseError {
    /// Placeholder.
    #[error("noise: {0}")]
    Io(#[from] std::io::Error),
}

/// Plain bytes in, records out, over any stream.
pub struct NoiseStream<S> {
    _io: S,
}

/// Server side: consumes the 101-byte initiation taken from `X-Tailscale-Handshake`, writes response
/// and (when `early` is given) the early payload in one write.
///
/// # Errors
/// When the initiation is malformed, its version below [`CapVer::OLDEST`], or the stream breaks.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    _io: S,
    _initiation: &[u8],
    _server: &MachinePrivate,
    _early: Option<&[u8]>,
    _rng: &mut Rng,
) -> Result<(NoiseStream<S>, MachinePeer), NoiseError> {
    todo!()
}

/// Client side, step 1: the bytes for `X-Tailscale-Handshake` and the state to go on with.
pub struct ClientHandshake {
    _state: (),
}

impl ClientHandshake {
    /// Starts a handshake with `server`.
    #[must_use]
    pub fn new(
        _machine: &MachinePrivate,
        _server: &MachinePublic,
        _capver: CapVer,
        _rng: &mut Rng,
    ) -> (Self, [u8; 101]) {
        todo!()
    }

    /// Step 2, after the 101 answer: reads the response (and an early payload, if any) from `io`.
    ///
    /// # Errors
    /// When the server is not the one whose key we hold, or the stream breaks.
    pub async fn finish<S: AsyncRead + AsyncWrite + Unpin>(
        self,
        _io: S,
    ) -> Result<NoiseStream<S>, NoiseError> {
        todo!()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for NoiseStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        _buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        todo!()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for NoiseStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        _buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        todo!()
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        todo!()
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        todo!()
    }
}
