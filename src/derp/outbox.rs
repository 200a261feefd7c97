//! What waits to be written to one connection, and the loop that writes it.
//!
//! Disco and data have a queue of 32 each; a full queue drops its oldest packet, so that fresh ones
//! get through (dataplane.md 1.4). Control frames have a bounded queue of their own, pongs a depth of
//! one. The writer takes everything that waits, writes it in pieces of about one TLS record, and
//! flushes only when nothing waits any more.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::frame::{Frame, is_disco, put_packet};
use super::limits::{CONTROL_QUEUE, HANDSHAKE_DEADLINE, KEEP_ALIVE_JITTER_MS, QUEUE};
use crate::clock::Rng;
use crate::keys::NodePublic;

/// Bytes gathered before they are handed to the stream; a TLS record holds 16 KiB.
const PIECE: usize = 16 << 10;
/// Memory for gathering that an idle connection may keep.
const IDLE_PIECE: usize = 2 << 10;

/// A packet and the key it is from (on a relay) or for (on a client).
type Packet = (NodePublic, Bytes);

#[derive(Default)]
struct Waiting {
    control: VecDeque<Frame>,
    disco: VecDeque<Packet>,
    data: VecDeque<Packet>,
    pong: Option<[u8; 8]>,
    last: Option<Frame>,
    closed: bool,
    cut: bool,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.control.is_empty()
            && self.disco.is_empty()
            && self.data.is_empty()
            && self.pong.is_none()
            && !self.closed
    }
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pushed {
    /// It waits.
    Queued,
    /// It waits, and the oldest one, of this many bytes, was dropped for it.
    DroppedOldest(usize),
    /// The connection is closing.
    Closed,
}

/// The queues of one connection.
#[derive(Default)]
pub(super) struct Outbox {
    waiting: Mutex<Waiting>,
    wake: Notify,
    /// Notified when the connection must end at once.
    cut: Notify,
    /// Set while other connections have the same key.
    pub(super) duplicate: AtomicBool,
}

impl Outbox {
    /// Queues a packet.
    pub(super) fn push(&self, key: NodePublic, packet: Bytes) -> Pushed {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Pushed::Closed;
        }
        let queue = if is_disco(&packet) { &mut waiting.disco } else { &mut waiting.data };
        let dropped = if queue.len() >= QUEUE { queue.pop_front() } else { None };
        queue.push_back((key, packet));
        drop(waiting);
        self.wake.notify_one();
        dropped.map_or(Pushed::Queued, |(_, old)| Pushed::DroppedOldest(old.len()))
    }

    /// Queues a control frame; beyond the bound the oldest is dropped.
    pub(super) fn control(&self, frame: Frame) {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return;
        }
        if waiting.control.len() >= CONTROL_QUEUE {
            waiting.control.pop_front();
        }
        waiting.control.push_back(frame);
        drop(waiting);
        self.wake.notify_one();
    }

    /// Answers a ping, unless the answer to an earlier one still waits.
    pub(super) fn pong(&self, data: [u8; 8]) {
        self.waiting.lock().pong.get_or_insert(data);
        self.wake.notify_one();
    }

    /// Ends the connection; what waits is dropped, `last` is still written.
    pub(super) fn close(&self, last: Option<Frame>) {
        let mut waiting = self.waiting.lock();
        if !waiting.closed {
            *waiting = Waiting { closed: true, cut: last.is_none(), last, ..Waiting::default() };
        }
        drop(waiting);
        self.wake.notify_one();
        self.cut.notify_waiters();
    }

    /// Returns when the connection must end at once, without a last frame.
    pub(super) async fn cut(&self) {
        loop {
            let cut = self.cut.notified();
            tokio::pin!(cut);
            cut.as_mut().enable();
            if self.waiting.lock().cut {
                return;
            }
            cut.await;
        }
    }

    /// Everything that waits. Taking the queues whole also gives their memory back.
    fn take(&self) -> Option<Waiting> {
        let mut waiting = self.waiting.lock();
        if waiting.is_empty() {
            return None;
        }
        let taken = std::mem::take(&mut *waiting);
        waiting.closed = taken.closed;
        waiting.cut = taken.cut;
        Some(taken)
    }

    #[cfg(test)]
    pub(super) fn queued(&self) -> (usize, usize) {
        let waiting = self.waiting.lock();
        (waiting.disco.len(), waiting.data.len())
    }
}

/// How a writer behaves.
pub(super) struct Pace {
    /// Frame type of packets: `SEND_PACKET` or `RECV_PACKET`.
    pub(super) kind: u8,
    /// How long one write may block.
    pub(super) write: Duration,
    /// Interval of keepalives and the source of their jitter.
    pub(super) keep_alive: Option<(Duration, Rng)>,
}

/// Writes what waits in `outbox` until it is closed (`Ok`), or a write fails or is too slow.
pub(super) async fn write_loop<W: AsyncWrite + Unpin>(
    io: W,
    outbox: &Outbox,
    mut pace: Pace,
) -> std::io::Result<()> {
    let mut pen = Pen { io, gathered: Vec::new(), kind: pace.kind, limit: pace.write };
    let timer = sleep_until(next_keep_alive(&mut pace));
    tokio::pin!(timer);
    loop {
        tokio::select! {
            biased;
            () = outbox.wake.notified() => {}
            () = &mut timer, if pace.keep_alive.is_some() => {
                timer.as_mut().reset(next_keep_alive(&mut pace));
                outbox.control(Frame::KeepAlive);
            }
        }
        while let Some(waiting) = outbox.take() {
            let closed = waiting.closed;
            pen.write(waiting).await?;
            if closed {
                return pen.close().await;
            }
        }
        pen.flush().await?;
    }
}

/// Writes a login frame with the login's deadline.
pub(super) async fn write_now<W: AsyncWrite + Unpin>(io: &mut W, frame: &Frame) -> std::io::Result<()> {
    let bytes = frame.encode();
    let write = async {
        io.write_all(&bytes).await?;
        io.flush().await
    };
    timeout(HANDSHAKE_DEADLINE, write).await?
}

/// Gathers frames and writes them under a deadline.
struct Pen<W> {
    io: W,
    gathered: Vec<u8>,
    kind: u8,
    limit: Duration,
}

impl<W: AsyncWrite + Unpin> Pen<W> {
    async fn write(&mut self, waiting: Waiting) -> std::io::Result<()> {
        for frame in waiting.control {
            frame.encode_into(&mut self.gathered);
        }
        if let Some(data) = waiting.pong {
            Frame::Pong(data).encode_into(&mut self.gathered);
        }
        for (key, packet) in waiting.disco.into_iter().chain(waiting.data) {
            if self.gathered.len() + packet.len() > PIECE {
                self.write_gathered().await?;
            }
            put_packet(&mut self.gathered, self.kind, &key, &packet);
        }
        if let Some(last) = waiting.last {
            last.encode_into(&mut self.gathered);
        }
        Ok(())
    }

    async fn write_gathered(&mut self) -> std::io::Result<()> {
        if !self.gathered.is_empty() {
            timeout(self.limit, self.io.write_all(&self.gathered)).await??;
            self.gathered.clear();
        }
        Ok(())
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        self.write_gathered().await?;
        timeout(self.limit, self.io.flush()).await??;
        if self.gathered.capacity() > IDLE_PIECE {
            self.gathered = Vec::new();
        }
        Ok(())
    }

    async fn close(&mut self) -> std::io::Result<()> {
        self.flush().await?;
        timeout(self.limit, self.io.shutdown()).await?
    }
}

fn next_keep_alive(pace: &mut Pace) -> Instant {
    let now = Instant::now();
    let Some((interval, rng)) = &mut pace.keep_alive else {
        return now;
    };
    now + *interval + Duration::from_millis(rng.below(KEEP_ALIVE_JITTER_MS))
}

impl Outbox {
    /// Sets whether other connections have the same key.
    pub(super) fn set_duplicate(&self, duplicate: bool) {
        self.duplicate.store(duplicate, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derp::frame::kind;
    use crate::derp::limits::KEEP_ALIVE;

    const KEY: NodePublic = NodePublic::from_bytes([1; 32]);

    fn disco() -> Bytes {
        let mut bytes = vec![0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac];
        bytes.resize(100, 0);
        bytes.into()
    }

    #[test]
    fn a_full_queue_drops_its_oldest_and_disco_is_separate() {
        let outbox = Outbox::default();
        for n in 0..40_u8 {
            let pushed = outbox.push(KEY, vec![n; 2].into());
            assert_eq!(pushed == Pushed::DroppedOldest(2), n >= 32);
        }
        assert_eq!(outbox.push(KEY, disco()), Pushed::Queued);
        assert_eq!(outbox.queued(), (1, 32));
        let waiting = outbox.take().unwrap();
        assert_eq!(waiting.data.front().unwrap().1, vec![8; 2]);
    }

    #[test]
    fn control_frames_are_bounded_and_pongs_have_depth_one() {
        let outbox = Outbox::default();
        for _ in 0..2 * CONTROL_QUEUE {
            outbox.control(Frame::KeepAlive);
        }
        outbox.pong([1; 8]);
        outbox.pong([2; 8]);
        let waiting = outbox.take().unwrap();
        assert_eq!(waiting.control.len(), CONTROL_QUEUE);
        assert_eq!(waiting.pong, Some([1; 8]));
        assert!(outbox.take().is_none());
    }

    fn pace(keep_alive: Option<Duration>) -> Pace {
        Pace {
            kind: kind::RECV_PACKET,
            write: Duration::from_millis(20),
            keep_alive: keep_alive.map(|every| (every, Rng::from_seed([1; 32]))),
        }
    }

    #[tokio::test]
    async fn a_reader_that_stopped_is_cut_after_the_write_deadline() {
        let (near, _far) = tokio::io::duplex(10);
        let outbox = Outbox::default();
        outbox.push(KEY, vec![0; 100].into());
        let ended = write_loop(near, &outbox, pace(None)).await;
        assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn what_waits_is_written_before_the_end() {
        let (near, mut far) = tokio::io::duplex(1000);
        let outbox = Outbox::default();
        outbox.push(KEY, vec![0; 100].into());
        let last = Frame::Restarting { reconnect_in: 1, try_for: 2 };
        outbox.close(Some(last.clone()));
        assert_eq!(outbox.push(KEY, Bytes::new()), Pushed::Closed);
        write_loop(near, &outbox, pace(None)).await.unwrap();
        let mut got = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut far, &mut got).await.unwrap();
        assert_eq!(got, last.encode());
    }

    #[test]
    fn keep_alives_are_spread_over_the_jitter() {
        let started = next_keep_alive(&mut pace(None));
        let mut pace = pace(Some(KEEP_ALIVE));
        let due: Vec<_> = (0..50).map(|_| (next_keep_alive(&mut pace) - started).as_secs()).collect();
        assert!(due.iter().all(|s| (60..=65).contains(s)));
        assert!(due.iter().any(|s| *s < 62) && due.iter().any(|s| *s > 62));
    }
}
