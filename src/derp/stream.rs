//! Cuts frames out of a byte stream.
//!
//! Large packets are slices of the read buffer and are not copied; small ones are, so that a queued
//! packet never pins a buffer many times its size. An idle connection holds only a small buffer.
//! [`FrameReader::next`] may be dropped at any await without losing bytes.

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::frame::{Frame, FrameError, HEADER_LEN, Header, Plan};

const IDLE_BUFFER: usize = 2 << 10;
const BUSY_BUFFER: usize = 32 << 10;
/// Frames shorter than this are copied out of the read buffer.
const COPY_BELOW: usize = 1 << 10;

/// Decides about a frame by its header.
pub(super) type Planner = fn(Header) -> Result<Plan, FrameError>;

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl From<ReadError> for std::io::Error {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(io) => io,
            ReadError::Frame(frame) => Self::new(std::io::ErrorKind::InvalidData, frame),
        }
    }
}

/// The reading half of a connection.
pub(super) struct FrameReader<R> {
    io: R,
    planner: Planner,
    buffer: BytesMut,
    want: usize,
    skip: usize,
    unknown: u64,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// `read_ahead` are bytes that were already read from `io`.
    pub(super) fn new(io: R, read_ahead: &[u8], planner: Planner) -> Self {
        Self { io, planner, buffer: BytesMut::from(read_ahead), want: IDLE_BUFFER, skip: 0, unknown: 0 }
    }

    /// Frames that were skipped because nobody knows them.
    pub(super) const fn skipped(&self) -> u64 {
        self.unknown
    }

    /// The next known frame.
    pub(super) async fn next(&mut self) -> Result<Frame, ReadError> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    /// A frame that is already here in full.
    pub(super) fn buffered(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            let skipped = self.skip.min(self.buffer.len());
            let _ = self.buffer.split_to(skipped);
            self.skip -= skipped;
            if self.skip > 0 {
                return Ok(None);
            }
            let Some(header) = Header::parse(&self.buffer) else {
                return Ok(None);
            };
            let len = match (self.planner)(header)? {
                Plan::Skip(len) => {
                    self.unknown += 1;
                    let _ = self.buffer.split_to(HEADER_LEN);
                    self.skip = len;
                    continue;
                }
                Plan::Take(len) => len,
            };
            if self.buffer.len() < HEADER_LEN + len {
                return Ok(None);
            }
            let whole = self.buffer.split_to(HEADER_LEN + len);
            let payload = match whole.get(HEADER_LEN..) {
                Some(short) if short.len() < COPY_BELOW => Bytes::copy_from_slice(short),
                _ => whole.freeze().split_off(HEADER_LEN),
            };
            return Frame::parse(header.kind, payload).map(Some);
        }
    }

    async fn fill(&mut self) -> Result<(), ReadError> {
        let read = if self.buffer.is_empty() {
            self.fill_empty().await?
        } else {
            // Room for what is still missing grows with what came, never with what a header claims.
            self.buffer.reserve(self.want.max(self.buffer.len().min(BUSY_BUFFER)));
            self.io.read_buf(&mut self.buffer).await?
        };
        if read == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        if read >= self.want {
            self.want = (self.want * 4).min(BUSY_BUFFER);
        } else if read < self.want / 8 {
            self.want = (self.want / 2).max(IDLE_BUFFER);
        }
        Ok(())
    }

    /// Reads with a large buffer only while there is something to read.
    async fn fill_empty(&mut self) -> Result<usize, std::io::Error> {
        if self.want > IDLE_BUFFER {
            self.buffer.reserve(self.want);
            if let Some(ready) = self.io.read_buf(&mut self.buffer).now_or_never() {
                return ready;
            }
        }
        self.buffer.reserve(IDLE_BUFFER);
        if self.buffer.capacity() > IDLE_BUFFER {
            self.buffer = BytesMut::with_capacity(IDLE_BUFFER);
        }
        self.io.read_buf(&mut self.buffer).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derp::frame::{kind, plan_from_client};
    use crate::keys::NodePublic;
    use tokio::io::AsyncWriteExt;

    fn packet(len: usize) -> Frame {
        Frame::SendPacket { to: NodePublic::from_bytes([4; 32]), packet: vec![7; len].into() }
    }

    #[tokio::test]
    async fn frames_of_all_sizes_come_out_in_order_and_unknown_ones_do_not() {
        let (mut near, far) = tokio::io::duplex(777);
        let sizes = [0, 1, 1400, 65_536, 3, 20_000, 1400];
        let writer = async {
            for len in sizes {
                let mut bytes = packet(len).encode();
                bytes.extend(Header { kind: 0x99, len: 5000 }.encode());
                bytes.extend(vec![kind::PING; 5000]);
                near.write_all(&bytes).await.unwrap();
            }
            drop(near);
        };
        let reader = async {
            let mut reader = FrameReader::new(far, &[], plan_from_client);
            for len in sizes {
                assert_eq!(reader.next().await.unwrap(), packet(len));
            }
            assert!(matches!(reader.next().await, Err(ReadError::Io(_))));
            assert_eq!(reader.skipped(), 7);
        };
        tokio::join!(writer, reader);
    }

    #[tokio::test]
    async fn bytes_read_ahead_are_the_first_input() {
        let bytes = packet(10).encode();
        let (head, tail) = bytes.split_at(8);
        let mut reader = FrameReader::new(tail, head, plan_from_client);
        assert_eq!(reader.next().await.unwrap(), packet(10));
    }

    #[tokio::test]
    async fn a_too_long_frame_ends_the_stream_at_once() {
        let header = Header { kind: kind::SEND_PACKET, len: u32::MAX };
        let bytes = header.encode();
        let mut reader = FrameReader::new(&bytes[..], &[], plan_from_client);
        assert!(matches!(reader.next().await, Err(ReadError::Frame(_))));
    }
}
