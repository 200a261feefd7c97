//! One map stream (control.md 6.2): the whole map, then deltas as they come, keep-alives between. It is
//! pulled by HTTP/2: while the client does not read, nothing is built, and changes merge in the slot.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use hyper::body::Frame;
use tokio::sync::watch;
use tokio::time::Instant;

use super::mapper::{self, Delta, Sent};
use super::nodes::{self, MapRefusal};
use super::presence::Guard;
use super::service::Control;
use crate::clock::{Now, Rng};
use crate::keys::{MachinePublic, NodeId, NodePublic};
use crate::wire::MapResponse;

/// As the reference servers: 50 s and up to 9 s more; clients give up at 120 s (control.md 6.2).
const KEEP_ALIVE: Duration = Duration::from_secs(50);
const JITTER_MS: u64 = 9_000;
/// Deltas of one stream are at least this far apart; a storm becomes a few larger messages.
const SPACING: Duration = Duration::from_millis(100);
/// Byte for byte what clients remember and skip.
const KEEP_ALIVE_TEXT: &[u8] = br#"{"KeepAlive":true}"#;
/// Above this, compression takes long enough to choose the fast level.
const LARGE: usize = 64 << 10;

/// Why a stream could not begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error(transparent)]
    Refused(#[from] MapRefusal),
    #[error("the map cannot be built now")]
    Failed,
}

/// One message as it goes out: length, then the bytes.
fn frame(json: &[u8], compress: bool) -> Option<Bytes> {
    let packed;
    let body = if compress {
        let level = if json.len() > LARGE { 1 } else { 3 };
        packed = zstd::bulk::compress(json, level).ok()?;
        packed.as_slice()
    } else {
        json
    };
    let mut out = Vec::with_capacity(body.len() + 4);
    out.extend(u32::try_from(body.len()).ok()?.to_le_bytes());
    out.extend(body);
    Some(out.into())
}

fn encode(message: &MapResponse, compress: bool) -> Option<Bytes> {
    match serde_json::to_vec(message) {
        Ok(json) => frame(&json, compress),
        Err(error) => {
            tracing::error!(%error, "a map message cannot be written as JSON");
            None
        }
    }
}

/// Builds a first message away from the reactor, as many at a time as there are processors.
async fn first(control: &Control, me: NodeId, compress: bool) -> Option<(Bytes, Sent)> {
    let _permit = control.maps().acquire().await.ok()?;
    let (net, now) = (control.net(), control.now());
    let built = tokio::task::spawn_blocking(move || {
        let (message, sent) = mapper::full(&net, me, now.wall)?;
        Some((encode(&message, compress)?, sent))
    });
    built.await.ok()?
}

/// A single whole map, for the one-shot form of the request.
pub(super) async fn once(control: &Control, me: NodeId, compress: bool) -> Option<Bytes> {
    Some(first(control, me, compress).await?.0)
}

/// The node's place, when its turn has come; `None` when the server stops before.
async fn turn(control: &Control, me: NodeId) -> Option<Guard> {
    let mut stop = control.stopping();
    loop {
        let wait = match control.shared().hub.connect(me, || Now::read().mono) {
            Ok(guard) => return Some(guard),
            Err(wait) => wait,
        };
        let mut freed = wait.freed;
        tokio::select! {
            _ = stop.wait_for(|s| *s) => return None,
            _ = freed.changed() => {}
            () = tokio::time::sleep_until(wait.until.into()) => {}
        }
    }
}

/// An open stream.
pub(super) struct Session {
    control: Control,
    guard: Guard,
    sent: Sent,
    compress: bool,
    first: Option<Bytes>,
    over: bool,
    last: Instant,
    keep_alive: Instant,
    rng: Rng,
    stop: watch::Receiver<bool>,
}

impl Session {
    /// Begins a stream for the node with this key.
    pub(super) async fn start(
        control: &Control,
        machine: MachinePublic,
        key: NodePublic,
        compress: bool,
    ) -> Result<Self, StartError> {
        let me = nodes::find(&control.net(), machine, &key)?.id;
        // Listening begins before the snapshot is read, so that nothing falls between.
        let guard = turn(control, me).await.ok_or(StartError::Failed)?;
        // While it waited the node may have gone.
        nodes::find(&control.net(), machine, &key)?;
        let (bytes, sent) = first(control, me, compress).await.ok_or(StartError::Failed)?;
        let mut session = Self {
            control: control.clone(),
            guard,
            sent,
            compress,
            first: Some(bytes),
            over: false,
            last: Instant::now(),
            keep_alive: Instant::now(),
            rng: Rng::from_os(),
            stop: control.stopping(),
        };
        session.wrote();
        Ok(session)
    }

    fn wrote(&mut self) {
        self.last = Instant::now();
        let jitter = Duration::from_millis(self.rng.below(JITTER_MS));
        self.keep_alive = self.last + KEEP_ALIVE + jitter;
    }

    /// The stream of frames for the response body.
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send {
        futures_util::stream::unfold(self, |mut session| async move {
            let bytes = session.next().await?;
            Some((Ok(Frame::data(bytes)), session))
        })
    }

    async fn next(&mut self) -> Option<Bytes> {
        if let Some(bytes) = self.first.take() {
            self.wrote();
            return Some(bytes);
        }
        while !self.over {
            let woken = tokio::select! {
                biased;
                _ = self.stop.wait_for(|s| *s) => return None,
                change = self.guard.slot().next() => Some(change?),
                () = tokio::time::sleep_until(self.keep_alive) => None,
            };
            let Some(mut change) = woken else {
                self.wrote();
                return frame(KEEP_ALIVE_TEXT, self.compress);
            };
            let spaced = self.last + SPACING;
            if spaced > Instant::now() {
                tokio::time::sleep_until(spaced).await;
                change.merge(&self.guard.slot().take());
            }
            let net = self.control.net();
            let message = match mapper::delta(&mut self.sent, &net, &change, self.control.now().wall) {
                Delta::Nothing => continue,
                Delta::Message(message) => message,
                Delta::Last(message) => {
                    self.over = true;
                    message
                }
            };
            self.wrote();
            return encode(&message, self.compress);
        }
        None
    }
}
