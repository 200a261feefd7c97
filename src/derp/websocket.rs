//! Carries the DERP byte stream in binary WebSocket messages (dataplane.md 1.1), for clients that
//! live in a browser. Message boundaries mean nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::frame::MAX_PACKET;

/// A frame with the largest packet and what stands before it: clients write one in a message at most, and
/// it is held before anybody has logged in.
const MAX_MESSAGE: usize = MAX_PACKET + (4 << 10);
/// Longest message we send: the official client (1.102.5) refuses more than 32 KiB in one.
const PIECE: usize = 16 << 10;

/// A byte stream over WebSocket messages; the server's end.
pub(super) struct WebSocketIo<S> {
    inner: WebSocketStream<S>,
    rest: Bytes,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocketIo<S> {
    /// Wraps a stream whose HTTP part is done.
    pub(super) async fn new(io: S) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(4 << 10)
            .write_buffer_size(0)
            .max_write_buffer_size(MAX_MESSAGE)
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        Self {
            inner: WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await,
            rest: Bytes::new(),
        }
    }

    /// Tells a client that asked for another subprotocol why it is turned away.
    pub(super) async fn refuse(mut self) {
        let frame = CloseFrame {
            code: CloseCode::Policy,
            reason: "this server speaks the derp subprotocol only".into(),
        };
        let _ = self.inner.close(Some(frame)).await;
    }
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(io) => io,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocketIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes,
                // Pings are answered by the library.
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Text(_) | Message::Frame(_))) => {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let n = self.rest.len().min(buf.remaining());
        if let Some(head) = self.rest.get(..n) {
            buf.put_slice(head);
        }
        self.rest.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocketIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.inner).poll_ready(cx)).map_err(broken)?;
        let piece = buf.get(..buf.len().min(PIECE)).unwrap_or(buf);
        let message = Message::Binary(Bytes::copy_from_slice(piece));
        Pin::new(&mut self.inner).start_send(message).map_err(broken)?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx).map_err(broken)
    }
}

/// What comes out of the adapter for these bytes of a client; a door for `tests/hostile_bytes.rs`.
#[doc(hidden)]
pub async fn fuzz(input: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut io = WebSocketIo::new(tokio::io::join(input, tokio::io::sink())).await;
    // An error is as good an end as any.
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut io, &mut out).await;
    out
}
