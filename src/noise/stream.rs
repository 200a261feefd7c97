//! Async byte streams over Noise records.
//!
//! Both directions are buffered and bounded: what is written is gathered into full records, several
//! records go into one write, and nothing is on the wire before a flush or a full buffer (HTTP/2
//! flushes by itself). A broken rule of the channel is final: every later read fails the same way.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use zeroize::Zeroizing;

use super::MachinePeer;
pub use super::NoiseError;
use super::handshake::{
    Accepted, INITIATION_LEN, Initiator, MAX_ERROR_TEXT, RESPONSE_LEN, TYPE_ERROR, TYPE_RESPONSE,
    error_frame, respond,
};
use super::record::{HEADER_LEN, MAX_FRAME, MAX_PLAIN, Opener, Sealer};
use crate::clock::Rng;
use crate::keys::{MachinePrivate, MachinePublic};
use crate::wire::CapVer;

/// In front of an early payload, before its u32 length (control.md 3.4). As an HTTP/2 frame header
/// it would announce a length no peer accepts before SETTINGS.
pub const EARLY_MAGIC: [u8; 5] = *b"\xff\xff\xffTS";
/// Longest early payload a server may send: tailscale-rs takes no more.
pub const MAX_EARLY_SENT: usize = 1024;

const EARLY_HEADER: usize = 9;
/// Longest early payload a client skips, the official client's own limit.
const MAX_EARLY_READ: usize = 10 << 20;
/// Sealed frames held back by the network before writers must wait; with one gathered record this
/// bounds the sending buffer to about 68 KiB.
const MAX_OUT: usize = 64 << 10;
/// Bytes read from the network at a time: four full frames.
const IN_LEN: usize = 4 * MAX_FRAME;

/// Plain bytes in, records out, over any stream.
pub struct NoiseStream<S> {
    io: S,
    reading: Reading,
    writing: Writing,
}

impl<S> std::fmt::Debug for NoiseStream<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NoiseStream").finish_non_exhaustive()
    }
}

/// Frames as they come, opened in place.
struct Reading {
    opener: Opener,
    raw: Box<[u8]>,
    /// Where the frames not yet opened lie in `raw`.
    start: usize,
    end: usize,
    /// Where opened text not yet given lies in `raw`; it always ends before `start`.
    plain: std::ops::Range<usize>,
    early: Early,
    broken: Option<NoiseError>,
}

/// Plain bytes gathered to one record, and sealed frames on their way out.
struct Writing {
    sealer: Sealer,
    plain: Vec<u8>,
    out: Vec<u8>,
    sent: usize,
}

/// How far the client is with what may stand before HTTP/2.
enum Early {
    /// The first bytes, while they could still become an early payload's header.
    Header { have: usize, bytes: [u8; EARLY_HEADER] },
    /// They were something else: they go to the reader first.
    GiveBack { at: usize, have: usize, bytes: [u8; EARLY_HEADER] },
    /// Bytes of the payload still to be skipped: nobody answers the challenge (control.md 3.4).
    Skip(usize),
    /// Nothing more to look for.
    Done,
}

impl<S> NoiseStream<S> {
    fn new(io: S, sealer: Sealer, opener: Opener, early: Early) -> Self {
        Self {
            io,
            reading: Reading {
                opener,
                raw: vec![0; IN_LEN].into_boxed_slice(),
                start: 0,
                end: 0,
                plain: 0..0,
                early,
                broken: None,
            },
            writing: Writing { sealer, plain: Vec::with_capacity(MAX_PLAIN), out: Vec::new(), sent: 0 },
        }
    }
}

/// Server side: consumes the 101-byte initiation taken from `X-Tailscale-Handshake`, writes response
/// and (when `early` is given) the early payload in one write. `early` is the JSON alone; its header
/// is put in front here. A refused initiation is answered with an error frame that says why.
///
/// # Errors
/// When the initiation is malformed, its version below [`CapVer::OLDEST`], or the stream breaks.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    mut io: S,
    initiation: &[u8],
    server: &MachinePrivate,
    early: Option<&[u8]>,
    rng: &mut Rng,
) -> Result<(NoiseStream<S>, MachinePeer), NoiseError> {
    let accepted = match respond(initiation, server, Zeroizing::new(rng.bytes())) {
        Ok(accepted) => accepted,
        Err(refused) => {
            // Best effort: the refusal is the error to report, not a failure to say it.
            if io.write_all(&error_frame(&refused.to_string())).await.is_ok() {
                let _ = io.shutdown().await;
            }
            return Err(refused);
        }
    };
    let Accepted { response, mut channel, machine, capver } = accepted;
    let mut out = response.to_vec();
    if let Some(json) = early {
        channel.sealer.seal(&early_payload(json)?, &mut out)?;
    }
    io.write_all(&out).await?;
    io.flush().await?;
    let stream = NoiseStream::new(io, channel.sealer, channel.opener, Early::Done);
    Ok((stream, MachinePeer { machine, capver }))
}

fn early_payload(json: &[u8]) -> Result<Vec<u8>, NoiseError> {
    let too_long = || NoiseError::EarlyTooLong { got: json.len(), max: MAX_EARLY_SENT };
    if json.len() > MAX_EARLY_SENT {
        return Err(too_long());
    }
    let len = u32::try_from(json.len()).map_err(|_| too_long())?;
    Ok([&EARLY_MAGIC[..], &len.to_be_bytes(), json].concat())
}

/// Client side, step 1: the bytes for `X-Tailscale-Handshake` and the state to go on with.
pub struct ClientHandshake {
    state: Result<Initiator, NoiseError>,
}

impl std::fmt::Debug for ClientHandshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientHandshake(***)")
    }
}

impl ClientHandshake {
    /// Starts a handshake with `server`. A weak server key gives zero bytes here, which no server
    /// takes, and an error from [`Self::finish`].
    #[must_use]
    pub fn new(
        machine: &MachinePrivate,
        server: &MachinePublic,
        capver: CapVer,
        rng: &mut Rng,
    ) -> (Self, [u8; 101]) {
        match Initiator::new(machine, server, capver, Zeroizing::new(rng.bytes())) {
            Ok((state, initiation)) => (Self { state: Ok(state) }, initiation),
            Err(e) => (Self { state: Err(e) }, [0; INITIATION_LEN]),
        }
    }

    /// Step 2, after the 101 answer: reads the response from `io`. An early payload is skipped by the
    /// first read of the stream, so that a server which waits for our first byte is not waited for.
    ///
    /// # Errors
    /// When the server is not the one whose key we hold, or the stream breaks.
    pub async fn finish<S: AsyncRead + AsyncWrite + Unpin>(
        self,
        mut io: S,
    ) -> Result<NoiseStream<S>, NoiseError> {
        let state = self.state?;
        let mut response = [0_u8; RESPONSE_LEN];
        let (header, body) = response.split_at_mut(HEADER_LEN);
        io.read_exact(header).await?;
        let (kind, len) = match *header {
            [kind, hi, lo] => (kind, usize::from(u16::from_be_bytes([hi, lo]))),
            _ => return Err(NoiseError::Handshake),
        };
        match kind {
            TYPE_RESPONSE if len == body.len() => {
                io.read_exact(body).await?;
            }
            TYPE_RESPONSE => {
                return Err(NoiseError::Size { what: "response", want: RESPONSE_LEN, got: HEADER_LEN + len });
            }
            TYPE_ERROR => {
                let mut text = Vec::new();
                let limit = len.min(MAX_ERROR_TEXT) as u64;
                (&mut io).take(limit).read_to_end(&mut text).await?;
                let text = String::from_utf8_lossy(&text);
                return Err(NoiseError::Refused(text.trim().to_owned()));
            }
            got => {
                return Err(NoiseError::Kind { want: "response", got });
            }
        }
        let channel = state.finish(&response)?;
        let early = Early::Header { have: 0, bytes: [0; EARLY_HEADER] };
        Ok(NoiseStream::new(io, channel.sealer, channel.opener, early))
    }
}

impl Reading {
    /// Opens the next whole frame of the buffer. `false`: more bytes are needed.
    fn open_next(&mut self) -> Result<bool, NoiseError> {
        let waiting = self.raw.get(self.start..self.end).unwrap_or_default();
        let Some(whole) = Opener::frame_len(waiting)? else {
            return Ok(false);
        };
        let until = self.start + whole;
        if until > self.end {
            return Ok(false);
        }
        let Some(frame) = self.raw.get_mut(self.start..until) else {
            return Ok(false);
        };
        let text = self.opener.open(frame)?;
        let from = self.start + HEADER_LEN;
        self.start = until;
        self.plain = from..from + text;
        self.strip_early()?;
        Ok(true)
    }

    /// Takes what belongs to the early payload off the front of the opened text.
    fn strip_early(&mut self) -> Result<(), NoiseError> {
        loop {
            if self.plain.is_empty() {
                return Ok(());
            }
            match &mut self.early {
                Early::Done | Early::GiveBack { .. } => return Ok(()),
                Early::Skip(left) => {
                    let n = self.plain.len().min(*left);
                    self.plain.start += n;
                    *left -= n;
                    if *left == 0 {
                        self.early = Early::Done;
                    }
                }
                Early::Header { have, bytes } => {
                    if let (Some(slot), Some(&byte)) = (bytes.get_mut(*have), self.raw.get(self.plain.start))
                    {
                        *slot = byte;
                        *have += 1;
                        self.plain.start += 1;
                    }
                    let (have, bytes) = (*have, *bytes);
                    self.early = judge_early(have, bytes)?;
                }
            }
        }
    }

    /// Gives opened bytes to `buf`, opening as many frames as there are and fit.
    fn give(&mut self, buf: &mut ReadBuf<'_>) -> Result<(), NoiseError> {
        while buf.remaining() > 0 {
            if let Early::GiveBack { at, have, bytes } = &mut self.early {
                let back = bytes.get(*at..*have).unwrap_or_default();
                let n = back.len().min(buf.remaining());
                buf.put_slice(back.get(..n).unwrap_or_default());
                *at += n;
                if at == have {
                    self.early = Early::Done;
                }
            } else if !self.plain.is_empty() {
                let n = self.plain.len().min(buf.remaining());
                let until = self.plain.start + n;
                buf.put_slice(self.raw.get(self.plain.start..until).unwrap_or_default());
                self.plain.start = until;
            } else if !self.open_next()? {
                break;
            }
        }
        Ok(())
    }

    /// Room for the next read. Only called when nothing opened is waiting and no whole frame is in
    /// the buffer, so that less than one frame has to move.
    fn room(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.raw.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            self.plain = 0..0;
        }
        self.raw.get_mut(self.end..).unwrap_or_default()
    }

    /// The network ended: legal between records only.
    fn ended(&mut self) -> Result<(), NoiseError> {
        if let Early::Header { have, bytes } = self.early {
            // Less than a header came: whatever it is, it is not ours to swallow.
            self.early = Early::GiveBack { at: 0, have, bytes };
        }
        match (self.start == self.end, &self.early) {
            (true, Early::Skip(_)) | (false, _) => Err(NoiseError::Truncated),
            (true, _) => Ok(()),
        }
    }
}

fn judge_early(have: usize, bytes: [u8; EARLY_HEADER]) -> Result<Early, NoiseError> {
    let [m0, m1, m2, m3, m4, l3, l2, l1, l0] = bytes;
    let magic = [m0, m1, m2, m3, m4];
    let seen = have.min(EARLY_MAGIC.len());
    if magic.get(..seen) != EARLY_MAGIC.get(..seen) {
        return Ok(Early::GiveBack { at: 0, have, bytes });
    }
    if have < EARLY_HEADER {
        return Ok(Early::Header { have, bytes });
    }
    let len = usize::try_from(u32::from_be_bytes([l3, l2, l1, l0])).unwrap_or(usize::MAX);
    match len {
        0 => Ok(Early::Done),
        1..=MAX_EARLY_READ => Ok(Early::Skip(len)),
        got => Err(NoiseError::EarlyTooLong { got, max: MAX_EARLY_READ }),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for NoiseStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if let Some(broken) = &this.reading.broken {
                let text = broken.to_string();
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
            }
            if let Err(e) = this.reading.give(buf) {
                // What was opened before the fault is genuine and is given first.
                this.reading.broken = Some(e);
            }
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            if this.reading.broken.is_some() {
                continue;
            }
            let mut room = ReadBuf::new(this.reading.room());
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut room))?;
            let got = room.filled().len();
            if got == 0 {
                this.reading.ended()?;
                return match this.reading.give(buf) {
                    Ok(()) => Poll::Ready(Ok(())),
                    Err(e) => Poll::Ready(Err(e.into())),
                };
            }
            this.reading.end += got;
        }
    }
}

impl Writing {
    /// Takes bytes until the sealed frames reach their bound; says how many.
    fn take(&mut self, mut bytes: &[u8]) -> Result<usize, NoiseError> {
        let mut taken = 0;
        while !bytes.is_empty() && self.out.len() < MAX_OUT {
            let n = bytes.len().min(MAX_PLAIN - self.plain.len());
            let Some((now, rest)) = bytes.split_at_checked(n) else {
                break;
            };
            self.plain.extend_from_slice(now);
            bytes = rest;
            taken += n;
            if self.plain.len() == MAX_PLAIN {
                self.seal()?;
            }
        }
        Ok(taken)
    }

    fn seal(&mut self) -> Result<(), NoiseError> {
        self.sealer.seal(&self.plain, &mut self.out)?;
        self.plain.clear();
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> NoiseStream<S> {
    /// Writes all sealed frames.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Writing { out, sent, .. } = &mut self.writing;
        while let Some(rest) = out.get(*sent..).filter(|r| !r.is_empty()) {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, rest))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *sent += n;
        }
        out.clear();
        *sent = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for NoiseStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.writing.out.len() >= MAX_OUT {
            ready!(this.poll_drain(cx))?;
        }
        Poll::Ready(this.writing.take(buf).map_err(Into::into))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.writing.out.len() >= MAX_OUT {
            ready!(this.poll_drain(cx))?;
        }
        let mut taken = 0;
        for buf in bufs {
            let n = this.writing.take(buf)?;
            taken += n;
            if n < buf.len() {
                break;
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        // Gathering is a copy into the record either way.
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.writing.plain.is_empty() {
            this.writing.seal()?;
        }
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
