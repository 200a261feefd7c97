//! Looks at the first bytes of a connection before hyper does. DERP's fast start wants no HTTP answer
//! at all (dataplane.md 1.1), which hyper cannot do; everything else is handed on with its bytes put
//! back in front.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use super::limits::MAX_HEAD;

/// What a fast start begins with; the rest of the head decides.
const PREFIX: &[u8] = b"GET /derp";

/// A stream with bytes put back in front.
#[derive(Debug)]
pub(super) struct Rewound<S> {
    front: Bytes,
    io: S,
}

impl<S> Rewound<S> {
    /// Puts `front` before what `io` still has.
    pub(super) const fn new(front: Bytes, io: S) -> Self {
        Self { front, io }
    }
}

/// What a connection turned out to be.
#[derive(Debug)]
pub(super) enum Sniffed<S> {
    /// DERP without an answer; the stream begins behind the request's head.
    FastStart(Rewound<S>),
    /// HTTP, whole.
    Http(Rewound<S>),
}

/// Reads until it is clear what the connection is. The caller bounds the time.
///
/// # Errors
/// When the connection breaks before it said anything.
pub(super) async fn sniff<S: AsyncRead + AsyncWrite + Unpin>(mut io: S) -> io::Result<Sniffed<S>> {
    let mut buf = BytesMut::with_capacity(1024);
    loop {
        let seen = buf.len().min(PREFIX.len());
        let plain = buf.get(..seen) != PREFIX.get(..seen);
        // A head that is too long is hyper's to refuse.
        if plain || buf.len() > MAX_HEAD {
            break;
        }
        if let Some(head) = head_len(&buf) {
            if wants_fast_start(buf.get(..head).unwrap_or_default()) {
                buf.advance(head);
                return Ok(Sniffed::FastStart(Rewound::new(buf.freeze(), io)));
            }
            break;
        }
        if io.read_buf(&mut buf).await? == 0 {
            if buf.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            break;
        }
    }
    Ok(Sniffed::Http(Rewound::new(buf.freeze(), io)))
}

/// The length of the request's head, its empty line included.
fn head_len(buf: &[u8]) -> Option<usize> {
    buf.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4)
}

fn wants_fast_start(head: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(head) else {
        return false;
    };
    let mut lines = text.split("\r\n");
    let path = lines.next().and_then(|l| l.split(' ').nth(1));
    let (mut fast, mut derp) = (false, false);
    for (name, value) in lines.filter_map(|l| l.split_once(':')) {
        let value = value.trim();
        fast |= name.eq_ignore_ascii_case("derp-fast-start") && value == "1";
        derp |= name.eq_ignore_ascii_case("upgrade") && value.eq_ignore_ascii_case("derp");
    }
    path == Some("/derp") && fast && derp
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.front.is_empty() {
            return Pin::new(&mut this.io).poll_read(cx, out);
        }
        let front = this.front.split_to(this.front.len().min(out.remaining()));
        out.put_slice(&front);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// Whether these bytes are a fast start, and what is handed on; a door for `tests/hostile_bytes.rs`.
#[doc(hidden)]
pub async fn fuzz(input: &[u8]) -> (bool, Vec<u8>) {
    let (fast, mut rest) = match sniff(tokio::io::join(input, tokio::io::sink())).await {
        Ok(Sniffed::FastStart(rest)) => (true, rest),
        Ok(Sniffed::Http(rest)) => (false, rest),
        Err(_) => return (false, Vec::new()),
    };
    let mut out = Vec::new();
    let _ = rest.read_to_end(&mut out).await;
    (fast, out)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    async fn run(input: &[u8], chunk: usize) -> (bool, Vec<u8>) {
        let (mut near, far) = tokio::io::duplex(chunk);
        let feed = async {
            near.write_all(input).await.unwrap();
            near.shutdown().await.unwrap();
            // Held open until the reader is through.
            near
        };
        let read = async {
            let (fast, mut rest) = match sniff(far).await.unwrap() {
                Sniffed::FastStart(rest) => (true, rest),
                Sniffed::Http(rest) => (false, rest),
            };
            let mut out = Vec::new();
            rest.read_to_end(&mut out).await.unwrap();
            (fast, out)
        };
        tokio::join!(feed, read).1
    }

    #[tokio::test]
    async fn fast_start_keeps_what_was_pipelined() {
        let head = b"GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Fast-Start: 1\r\n\r\n";
        let input = [&head[..], b"\x02\x00\x00frame"].concat();
        for chunk in [1, 7, 4096] {
            assert_eq!(run(&input, chunk).await, (true, b"\x02\x00\x00frame".to_vec()));
        }
    }

    #[tokio::test]
    async fn everything_else_is_handed_on_whole() {
        let long = [b"GET /derp HTTP/1.1\r\nA: ".to_vec(), vec![b'x'; 3 * MAX_HEAD]].concat();
        let inputs: [&[u8]; 6] = [
            b"GET /derp HTTP/1.1\r\nUpgrade: DERP\r\n\r\nrest",
            b"GET /derp/probe HTTP/1.1\r\nUpgrade: DERP\r\nDerp-Fast-Start: 1\r\n\r\n",
            b"POST /ts2021 HTTP/1.1\r\n\r\n",
            b"GET /de",
            b"\x16\x03\x01garbage",
            &long,
        ];
        for input in inputs {
            for chunk in [1, 4096] {
                assert_eq!(run(input, chunk).await, (false, input.to_vec()));
            }
        }
    }
}
