//! The map stream (control.md 6.2): u32 little-endian length, then that many bytes of JSON, each
//! message a zstd frame of its own when the request asked for it.

use std::io::Read as _;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use http_body_util::combinators::BoxBody;
use tokio::time::{Instant, timeout_at};

use super::ControlError;
use crate::wire::MapResponse;

/// Without a message for this long the stream is dead (control.md 6.2).
pub(super) const WATCHDOG: Duration = Duration::from_secs(120);
/// Largest message, sealed or not.
const MAX_MESSAGE: usize = 64 << 20;
/// Largest zstd window, as a power of two: no more than the largest message.
const MAX_WINDOW_LOG: u32 = 26;

/// An open long poll.
pub struct MapStream {
    body: BoxBody<Bytes, hyper::Error>,
    zstd: bool,
    buffer: BytesMut,
    deadline: Instant,
}

impl std::fmt::Debug for MapStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MapStream").finish_non_exhaustive()
    }
}

impl MapStream {
    pub(super) fn new(body: BoxBody<Bytes, hyper::Error>, zstd: bool, deadline: Instant) -> Self {
        Self { body, zstd, buffer: BytesMut::new(), deadline }
    }

    /// The next message; keep-alives are returned too. `None` when the server ended the stream. May be
    /// dropped and called again without losing anything.
    ///
    /// # Errors
    /// [`ControlError::Silent`] after 120 s, or a message that is too large or unreadable.
    pub async fn next(&mut self) -> Result<Option<MapResponse>, ControlError> {
        loop {
            if let Some(message) = take_message(&mut self.buffer)? {
                self.deadline = Instant::now() + WATCHDOG;
                return decode(&message, self.zstd).map(Some);
            }
            let frame =
                timeout_at(self.deadline, self.body.frame()).await.map_err(|_| ControlError::Silent)?;
            match frame {
                None if self.buffer.is_empty() => return Ok(None),
                None => {
                    return Err(ControlError::Decode(
                        "the map stream ended in the middle of a message".to_owned(),
                    ));
                }
                Some(Err(e)) => {
                    return Err(ControlError::Decode(format!("the map stream broke: {e}")));
                }
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
            }
        }
    }
}

/// Cuts one whole message off the front.
fn take_message(buffer: &mut BytesMut) -> Result<Option<BytesMut>, ControlError> {
    let Some(header) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let len = usize::try_from(u32::from_le_bytes(*header)).unwrap_or(usize::MAX);
    if len == 0 || len > MAX_MESSAGE {
        return Err(ControlError::Decode(format!(
            "a map message claims {len} bytes, 1 to {MAX_MESSAGE} are allowed"
        )));
    }
    if buffer.len() - 4 < len {
        return Ok(None);
    }
    buffer.advance(4);
    Ok(Some(buffer.split_to(len)))
}

fn decode(message: &[u8], zstd: bool) -> Result<MapResponse, ControlError> {
    let bad = |e: &dyn std::fmt::Display| ControlError::Decode(format!("a map message: {e}"));
    if !zstd {
        return serde_json::from_slice(message).map_err(|e| bad(&e));
    }
    let mut decoder = zstd::stream::read::Decoder::with_buffer(message).map_err(|e| bad(&e))?;
    decoder.window_log_max(MAX_WINDOW_LOG).map_err(|e| bad(&e))?;
    let mut json = Vec::new();
    decoder.take(MAX_MESSAGE as u64 + 1).read_to_end(&mut json).map_err(|e| bad(&e))?;
    if json.len() > MAX_MESSAGE {
        return Err(bad(&format_args!("it unpacks to more than {MAX_MESSAGE} bytes")));
    }
    serde_json::from_slice(&json).map_err(|e| bad(&e))
}

/// Reads all messages of these bytes, as if a server had sent them; a door for `tests/hostile_bytes.rs`.
#[doc(hidden)]
pub fn fuzz(input: &[u8], zstd: bool) -> usize {
    let mut buffer = BytesMut::from(input);
    let mut messages = 0;
    while let Ok(Some(message)) = take_message(&mut buffer) {
        messages += usize::from(decode(&message, zstd).is_ok());
    }
    messages
}

#[cfg(test)]
mod tests {
    use futures_util::stream::{self, StreamExt as _};
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use proptest::prelude::*;

    use super::*;

    /// A stream of these chunks; afterwards it ends, or stays silent.
    fn poll(chunks: Vec<Vec<u8>>, ends: bool, zstd: bool) -> MapStream {
        let chunks = stream::iter(chunks).map(|c| Ok(Frame::data(Bytes::from(c))));
        let body = if ends {
            http_body_util::BodyExt::boxed(StreamBody::new(chunks))
        } else {
            http_body_util::BodyExt::boxed(StreamBody::new(chunks.chain(stream::pending())))
        };
        MapStream::new(body, zstd, Instant::now() + WATCHDOG)
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        [&(message.len() as u32).to_le_bytes(), message].concat()
    }

    const KEEP_ALIVE: &[u8] = br#"{"KeepAlive":true}"#;

    #[tokio::test]
    async fn messages_come_out_whatever_the_chunks() {
        let two = [framed(KEEP_ALIVE), framed(br#"{"Domain":"d"}"#)].concat();
        for size in [1, 3, 7, 1000] {
            let chunks = two.chunks(size).map(<[u8]>::to_vec).collect();
            let mut stream = poll(chunks, true, false);
            assert!(stream.next().await.unwrap().unwrap().keep_alive);
            assert_eq!(stream.next().await.unwrap().unwrap().domain, "d");
            assert!(stream.next().await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn silence_ends_the_stream_and_only_a_message_puts_it_off() {
        let mut stream = poll(vec![framed(KEEP_ALIVE), vec![1]], false, false);
        // The time is over, but what has come is given first, and a message starts the time anew.
        stream.deadline = Instant::now();
        assert!(stream.next().await.unwrap().unwrap().keep_alive);
        let anew = stream.deadline;
        assert!(anew >= Instant::now() + WATCHDOG - Duration::from_secs(5));
        // A byte is no message, and a call that was dropped changes nothing.
        assert!(futures_util::FutureExt::now_or_never(stream.next()).is_none());
        assert_eq!(stream.deadline, anew);
        assert_eq!(stream.buffer.len(), 1);
        stream.deadline = Instant::now();
        let silent = stream.next().await;
        assert!(matches!(silent, Err(ControlError::Silent)));
    }

    #[tokio::test]
    async fn bad_lengths_bombs_and_cut_messages_are_refused() {
        for bad in [vec![0; 4], vec![0xff; 4]] {
            let refused = poll(vec![bad], true, false).next().await;
            assert!(matches!(refused, Err(ControlError::Decode(_))));
        }
        let cut = poll(vec![framed(KEEP_ALIVE)[..9].to_vec()], true, false).next().await;
        assert!(matches!(cut, Err(ControlError::Decode(t)) if t.contains("middle")));
        let bomb = zstd::bulk::compress(&vec![b' '; MAX_MESSAGE + 1], 1).unwrap();
        let refused = poll(vec![framed(&bomb)], true, true).next().await;
        assert!(matches!(refused, Err(ControlError::Decode(t)) if t.contains("unpacks")));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), zstd: bool) {
            let mut buffer = BytesMut::from(&bytes[..]);
            let _ = take_message(&mut buffer);
            let _ = decode(&bytes, zstd);
        }
    }
}
