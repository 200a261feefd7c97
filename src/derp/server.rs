//! The relay's shell: one task per connection, bounded queues, admission by a callback.
//!
//! A connection's task reads frames and, beside it, writes its outbox; either end ends both. The
//! registry is locked for a moment per packet and never across an await. Limits are in `limits`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use parking_lot::{Mutex, RwLock};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::frame::{self, Frame, GONE_DISCONNECTED, GONE_NOT_HERE, is_disco};
use super::handshake::{ServerInfo, open_client_info, server_info};
use super::limits::{
    Gate, HANDSHAKE_DEADLINE, KEEP_ALIVE, RECONNECT_IN_MS, SHUTDOWN_GRACE, TRY_FOR_MS, WRITE_DEADLINE,
};
use super::outbox::{Outbox, Pace, Pushed, write_loop, write_now};
use super::stream::FrameReader;
use super::switch::{ConnId, NotHereLimit, SentTo, Switch};
use crate::clock::{Now, Rng};
use crate::keys::{DerpPrivate, DerpPublic, NodePublic};

/// Whether a node key may use the relay. Answers from memory, never blocks.
pub trait Admission: Send + Sync + 'static {
    /// True lets the connection in.
    fn admit(&self, key: &NodePublic, from: SocketAddr) -> bool;
}

/// A running relay; clones share it. Dropping the last clone ends the connections it spawned.
#[derive(Clone)]
pub struct DerpServer {
    shared: Arc<Shared>,
    tasks: Arc<Mutex<JoinSet<()>>>,
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

/// Packets dropped and connections refused since start, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct DerpDrops {
    /// The destination is not connected.
    pub unknown_dest: u64,
    /// The destination was just leaving.
    pub gone_disconnected: u64,
    /// The oldest packet of a full queue.
    pub queue_head: u64,
    /// Connections cut because a write failed or took too long.
    pub write_error: u64,
    /// Frames of an unknown type that were skipped.
    pub unknown_frames: u64,
    /// Connections refused by the limits per network or in all.
    pub limited: u64,
    /// Connections refused by admission.
    pub refused: u64,
    /// Connections that broke the login.
    pub bad_login: u64,
}

#[derive(Default)]
struct Counters {
    packets: AtomicU64,
    bytes: AtomicU64,
    unknown_dest: AtomicU64,
    gone_disconnected: AtomicU64,
    queue_head: AtomicU64,
    write_error: AtomicU64,
    unknown_frames: AtomicU64,
    limited: AtomicU64,
    refused: AtomicU64,
    bad_login: AtomicU64,
    homes: AtomicU64,
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// What the tasks of a relay share.
pub(super) struct Shared {
    key: DerpPrivate,
    public: DerpPublic,
    admission: Arc<dyn Admission>,
    switch: RwLock<Switch<Arc<Outbox>>>,
    gate: Mutex<Gate>,
    rng: Mutex<Rng>,
    next_id: AtomicU64,
    counters: Counters,
    stopping: watch::Sender<bool>,
}

impl DerpServer {
    /// Makes a relay with this identity.
    #[must_use]
    pub fn new(key: DerpPrivate, admission: Arc<dyn Admission>) -> Self {
        Self {
            shared: Arc::new(Shared {
                public: key.public(),
                key,
                admission,
                switch: RwLock::default(),
                gate: Mutex::default(),
                rng: Mutex::new(Rng::from_os()),
                next_id: AtomicU64::new(1),
                counters: Counters::default(),
                stopping: watch::Sender::new(false),
            }),
            tasks: Arc::default(),
        }
    }

    /// Its public key.
    #[must_use]
    pub fn public_key(&self) -> DerpPublic {
        self.shared.public
    }

    /// Serves `/derp` (upgrade to DERP or WebSocket), `/derp/probe`, `/derp/latency-check` and
    /// `/generate_204`; 404 for everything else. Spawns the upgraded half itself.
    pub fn http(
        &self,
        request: Request<Incoming>,
        remote: SocketAddr,
    ) -> Response<http_body_util::Full<Bytes>> {
        super::http::answer(self, request, remote)
    }

    /// Serves one DERP connection on a raw stream after fast start (no HTTP answer), until it ends.
    pub async fn serve<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(&self, io: S, remote: SocketAddr) {
        self.shared.serve(io, remote).await;
    }

    /// Drops all connections of a key (removed, expired).
    pub fn close_node(&self, key: &NodePublic) {
        let connections = self.shared.switch.read().of_key(key);
        for outbox in connections {
            outbox.close(None);
        }
    }

    /// Figures.
    #[must_use]
    pub fn stats(&self) -> DerpStats {
        let drops = self.drops();
        DerpStats {
            connections: self.shared.switch.read().len() as u64,
            packets: read(&self.shared.counters.packets),
            bytes: read(&self.shared.counters.bytes),
            dropped: drops.unknown_dest + drops.gone_disconnected + drops.queue_head,
        }
    }

    /// Connections that call this relay their home.
    #[must_use]
    pub fn home_connections(&self) -> u64 {
        read(&self.shared.counters.homes)
    }

    /// Drops and refusals by reason.
    #[must_use]
    pub fn drops(&self) -> DerpDrops {
        let c = &self.shared.counters;
        DerpDrops {
            unknown_dest: read(&c.unknown_dest),
            gone_disconnected: read(&c.gone_disconnected),
            queue_head: read(&c.queue_head),
            write_error: read(&c.write_error),
            unknown_frames: read(&c.unknown_frames),
            limited: read(&c.limited),
            refused: read(&c.refused),
            bad_login: read(&c.bad_login),
        }
    }

    /// Tells clients that we restart and closes all connections.
    pub async fn shutdown(&self) {
        self.shared.stopping.send_replace(true);
        let connections = self.shared.switch.read().all();
        for outbox in connections {
            outbox.close(Some(RESTARTING));
        }
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        let all = async { while tasks.join_next().await.is_some() {} };
        if timeout(SHUTDOWN_GRACE, all).await.is_err() {
            tracing::warn!("some relay connections did not end in time and are cut");
        }
        tasks.shutdown().await;
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Runs a connection that this relay owns.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        // Reap what has ended, so that the set does not grow with connections gone by.
        while tasks.try_join_next().is_some() {}
        if !*self.shared.stopping.borrow() {
            tasks.spawn(task);
        }
    }
}

const RESTARTING: Frame = Frame::Restarting { reconnect_in: RECONNECT_IN_MS, try_for: TRY_FOR_MS };

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("login: {0}")]
    Login(String),
    #[error("the node key is not admitted")]
    Refused,
    #[error("reading: {0}")]
    Read(#[from] super::stream::ReadError),
    #[error("writing: {0}")]
    Write(std::io::Error),
    #[error("mesh frames need a mesh, and there is none")]
    Mesh,
    #[error("closed by us")]
    Closed,
}

/// Holds a place in the gate.
struct Place<'a> {
    shared: &'a Shared,
    from: IpAddr,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.shared.gate.lock().leave(self.from);
    }
}

/// A logged-in connection; dropping it unregisters it, once.
struct Member<'a> {
    shared: &'a Shared,
    key: NodePublic,
    id: ConnId,
    outbox: Arc<Outbox>,
    sent_to: SentTo,
    not_here: NotHereLimit,
    home: bool,
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        // Packets in flight to us are dropped as gone from here on.
        self.outbox.close(None);
        self.set_home(false);
        let left = self.shared.switch.write().unregister(&self.key, self.id);
        for outbox in &left.same_key {
            outbox.set_duplicate(left.same_key.len() > 1);
        }
        for outbox in left.tell {
            outbox.control(Frame::PeerGone { key: self.key, reason: GONE_DISCONNECTED });
        }
    }
}

impl Shared {
    /// Serves one connection until it ends.
    pub(super) async fn serve<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        &self,
        io: S,
        remote: SocketAddr,
    ) {
        let from = remote.ip();
        if !self.gate.lock().enter(from, Now::read().mono) {
            count(&self.counters.limited, 1);
            return;
        }
        let _place = Place { shared: self, from };
        let mut stopping = self.stopping.subscribe();
        let (reading, mut writing) = tokio::io::split(io);
        let mut frames = FrameReader::new(reading, &[], frame::plan_from_client);
        let login = tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => return,
            login = self.login(&mut frames, &mut writing, remote) => login,
        };
        let mut member = match login {
            Ok(member) => member,
            Err(end) => {
                let counter = match end {
                    End::Refused => &self.counters.refused,
                    _ => &self.counters.bad_login,
                };
                count(counter, 1);
                tracing::debug!(%remote, %end, "DERP login failed");
                return;
            }
        };
        let key = member.key.short();
        tracing::debug!(%remote, key, "DERP connection begins");
        let outbox = Arc::clone(&member.outbox);
        let pace = Pace {
            kind: frame::kind::RECV_PACKET,
            write: WRITE_DEADLINE,
            keep_alive: Some((KEEP_ALIVE, self.rng.lock().fork())),
        };
        let end = tokio::select! {
            wrote = write_loop(writing, &outbox, pace) => match wrote {
                Ok(()) => End::Closed,
                Err(error) => End::Write(error),
            },
            end = member.read_loop(&mut frames) => end,
            () = outbox.cut() => End::Closed,
        };
        count(&self.counters.unknown_frames, frames.skipped());
        if matches!(end, End::Write(_)) {
            count(&self.counters.write_error, 1);
        }
        tracing::debug!(%remote, key, %end, "DERP connection ends");
    }

    async fn login<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &self,
        frames: &mut FrameReader<R>,
        writing: &mut W,
        remote: SocketAddr,
    ) -> Result<Member<'_>, End> {
        write_now(writing, &Frame::ServerKey(self.public)).await.map_err(End::Write)?;
        let hello = timeout(HANDSHAKE_DEADLINE, frames.next())
            .await
            .map_err(|_| End::Login("no ClientInfo in time".to_owned()))??;
        let (key, _info) = open_client_info(&self.key, &hello).map_err(|e| End::Login(e.to_string()))?;
        if !self.admission.admit(&key, remote) {
            return Err(End::Refused);
        }
        let info = {
            let mut rng = self.rng.lock();
            server_info(&self.key, &key, &ServerInfo::ours(), &mut rng)
        };
        // Registered before the login ends: once the client knows that it is in, it can be reached.
        let member = self.join(key);
        // A node that was removed meanwhile was not there yet for close_node to find.
        if !self.admission.admit(&key, remote) {
            return Err(End::Refused);
        }
        if *self.stopping.borrow() {
            return Err(End::Closed);
        }
        write_now(writing, &info).await.map_err(End::Write)?;
        Ok(member)
    }

    fn join(&self, key: NodePublic) -> Member<'_> {
        let id = ConnId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let outbox = Arc::new(Outbox::default());
        let joined = self.switch.write().register(key, id, Arc::clone(&outbox));
        for other in &joined.same_key {
            other.set_duplicate(joined.same_key.len() > 1);
        }
        if let Some(evicted) = joined.evicted {
            evicted.close(None);
        }
        Member {
            shared: self,
            key,
            id,
            outbox,
            sent_to: SentTo::default(),
            not_here: NotHereLimit::default(),
            home: false,
        }
    }
}

impl Member<'_> {
    async fn read_loop<R: AsyncRead + Unpin>(&mut self, frames: &mut FrameReader<R>) -> End {
        loop {
            let mut frame = match frames.next().await {
                Ok(frame) => frame,
                Err(error) => return error.into(),
            };
            let mut wasted = false;
            loop {
                match self.handle(frame) {
                    Ok(relayed) => wasted |= !relayed,
                    Err(end) => return end,
                }
                frame = match frames.buffered() {
                    Ok(Some(next)) => next,
                    Ok(None) => break,
                    Err(error) => return End::Read(error.into()),
                };
            }
            // Who sends faster than it can be delivered is read after all others.
            if wasted {
                tokio::task::yield_now().await;
            }
        }
    }

    /// False when a packet was dropped for it.
    fn handle(&mut self, frame: Frame) -> Result<bool, End> {
        if self.outbox.duplicate.load(Ordering::Relaxed) {
            let mut switch = self.shared.switch.write();
            switch.note_activity(&self.key, self.id);
        }
        match frame {
            Frame::SendPacket { to, packet } => return Ok(self.relay(to, packet)),
            Frame::Ping(data) => self.outbox.pong(data),
            Frame::NotePreferred(home) => self.set_home(home),
            Frame::ForwardPacket { .. } | Frame::WatchConns | Frame::ClosePeer(_) => {
                return Err(End::Mesh);
            }
            // A pong nobody asked for, a second ClientInfo: of no use, no harm.
            _ => {}
        }
        Ok(true)
    }

    fn relay(&mut self, to: NodePublic, packet: Bytes) -> bool {
        let counters = &self.shared.counters;
        let route = {
            let switch = self.shared.switch.read();
            switch.route(&to).map(|(outbox, epoch)| (Arc::clone(outbox), epoch))
        };
        let Some((outbox, epoch)) = route else {
            count(&counters.unknown_dest, 1);
            if is_disco(&packet) && self.not_here.allow(Now::read().mono) {
                self.tell_gone(to, GONE_NOT_HERE);
            }
            return false;
        };
        if self.sent_to.note(to, epoch) && !self.shared.switch.write().watch(self.id, &to) {
            self.tell_gone(to, GONE_DISCONNECTED);
        }
        let bytes = packet.len() as u64;
        match outbox.push(self.key, packet) {
            Pushed::Queued => {
                count(&counters.packets, 1);
                count(&counters.bytes, bytes);
                true
            }
            Pushed::DroppedOldest(dropped) => {
                count(&counters.queue_head, 1);
                tracing::trace!(dropped, "a full relay queue dropped its oldest packet");
                count(&counters.bytes, bytes.saturating_sub(dropped as u64));
                false
            }
            Pushed::Closed => {
                count(&counters.gone_disconnected, 1);
                false
            }
        }
    }

    fn tell_gone(&self, key: NodePublic, reason: u8) {
        self.outbox.control(Frame::PeerGone { key, reason });
    }

    fn set_home(&mut self, home: bool) {
        let homes = &self.shared.counters.homes;
        match (self.home, home) {
            (false, true) => count(homes, 1),
            (true, false) => {
                homes.fetch_sub(1, Ordering::Relaxed);
            }
            _ => {}
        }
        self.home = home;
    }
}
