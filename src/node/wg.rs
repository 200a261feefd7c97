//! WireGuard by gotatun, behind our own seam: no type of it gets out. Owns one lazy session per peer, the
//! map from receiver index to peer, the under-load protection, and when each session must be ticked.
//!
//! gotatun reads the clock itself; this is the one pure file excused from the rule on time. An idle session
//! is not ticked at all: it is brought up to date when the next packet wants it, and dropped after ten
//! minutes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::noise::{Tunn, TunnResult};
use gotatun::packet::{Packet, WgKind};
use gotatun::tun::MtuWatcher;
use gotatun::x25519::{PublicKey, StaticSecret};

use super::hash::FastMap;
use crate::keys::{NodeId, NodePrivate, NodePublic};

/// How often a busy session is ticked.
const TICK: Duration = Duration::from_millis(250);
/// A session with no data either way for this long needs no ticks: passive keepalive (10 s) and the new
/// handshake after silence (15 s) are over.
const BUSY: Duration = Duration::from_secs(20);
/// A handshake is given up after 90 s; then nothing is due.
const HANDSHAKING: Duration = Duration::from_secs(92);
/// Keys are worthless after 180 s; the rest of a session is dropped then some.
const FORGET: Duration = Duration::from_secs(600);
/// Handshakes per second and source before a cookie is asked for.
const PER_SOURCE: u64 = 100;
/// Handshakes per second from all sources before a cookie is asked of everyone: spoofed sources would
/// each have their own budget (RELIABILITY.md row 49).
const OVERALL: u32 = 200;
/// Why a datagram of no session of ours is dropped: its sender has one that we lost.
pub(crate) const UNKNOWN_SESSION: &str = "unknown session";
/// Between two initiations that such datagrams cause.
const RENEW_SPACING: Duration = Duration::from_secs(5);
/// Between two initiations when a way to the peer just opened: its flood guard drops closer ones.
const RETRY_SPACING: Duration = Duration::from_millis(50);
/// Our own first repeats of an initiation, while no session exists: WireGuard alone would wait five seconds,
/// and the start of a session is where initiations get lost (a peer that has just joined has no relay yet,
/// or does not know us). Not sooner, because an answer under way would be made worthless.
/// Counted from the first initiation.
const REPEATS: [Duration; 4] = [
    Duration::from_millis(500),
    Duration::from_millis(1000),
    Duration::from_millis(2000),
    Duration::from_millis(3500),
];
/// After the relay said that an initiation could not be delivered, doubled each time.
const UNDELIVERED_REPEAT: Duration = Duration::from_millis(50);
/// Repeats in one handshake that others prompt: the relay, or the peer by its pings.
const PROMPTED_REPEATS: u32 = 7;
/// Receiver indices remembered per peer: eight sessions and the tries of a handshake.
const INDICES: usize = 32;
/// Plaintext is padded to 16 bytes, but never beyond the interface's MTU.
const MTU: u16 = 1280;

/// What came of an incoming datagram or a tick.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The peer, once it is known for sure.
    pub(crate) peer: Option<NodeId>,
    /// Datagrams for the peer.
    pub(crate) send: Vec<Bytes>,
    /// A cookie reply for whoever sent the datagram, known or not.
    pub(crate) reply: Option<Bytes>,
    /// A decrypted packet, not yet checked.
    pub(crate) packet: Option<Bytes>,
    /// A session was established.
    pub(crate) established: bool,
    /// Why nothing came of it.
    pub(crate) dropped: Option<&'static str>,
}

impl Outcome {
    fn drop(reason: &'static str) -> Self {
        Self { dropped: Some(reason), ..Self::default() }
    }
}

/// Counters of a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    /// Ciphertext and handshakes received.
    pub(crate) rx_bytes: u64,
    /// Ciphertext and handshakes sent.
    pub(crate) tx_bytes: u64,
    /// Time since the last handshake.
    pub(crate) since_handshake: Option<Duration>,
}

struct Session {
    tunn: Tunn,
    key: NodePublic,
    indices: VecDeque<u32>,
    last_data: Instant,
    handshake_since: Option<Instant>,
    /// The last initiation we made.
    last_init: Option<Instant>,
    /// When to repeat the initiation, before WireGuard would.
    retry_at: Option<Instant>,
    /// How often others had it repeated in this handshake.
    prompted: u32,
    /// Our index in the newest handshake that was answered.
    answered: Option<u32>,
    tick_at: Instant,
    last_tick: Instant,
    /// We answered a handshake; the first packet that decrypts shows that the initiator has our answer.
    unconfirmed: bool,
    /// Ended, and without ticks until a packet wants it again.
    parked: bool,
}

impl Session {
    /// Moves gotatun's notion of now, which it takes from ticks alone; an idle session has had none.
    fn catch_up(&mut self, now: Instant, out: &mut Vec<Bytes>) {
        if now >= self.last_tick + TICK {
            self.tick(now, out);
        }
    }

    fn handshaking(&self, now: Instant) -> bool {
        self.handshake_since.is_some_and(|t| now < t + HANDSHAKING)
    }

    /// Repeats the initiation once that is due.
    fn repeat(&mut self, now: Instant, out: &mut Vec<Bytes>) {
        if self.retry_at.is_none_or(|t| now < t) {
            return;
        }
        self.retry_at = None;
        if self.handshaking(now) {
            out.extend(self.tunn.format_handshake_initiation(true).map(|p| freeze(p.into())));
            self.plan_repeat(now);
        }
    }

    /// Plans the next repeat of an initiation that has just been made.
    fn plan_repeat(&mut self, now: Instant) {
        let since = self.handshake_since.filter(|_| !self.tunn.has_active_session());
        self.retry_at = since.and_then(|t| REPEATS.iter().map(|d| t + *d).find(|at| *at > now));
    }

    /// A handshake begins.
    fn begin(&mut self, now: Instant) {
        self.handshake_since = Some(now);
        self.prompted = 0;
        self.plan_repeat(now);
    }

    /// Whether an answer is to an older initiation than one that was answered already. The peer keeps the
    /// session of the newest one it saw: to go back would be to speak to nobody.
    fn is_late(&self, answer: &WgKind) -> bool {
        let WgKind::HandshakeResp(answer) = answer else {
            return false;
        };
        let place = |index: u32| self.indices.iter().position(|i| *i == index);
        let (this, newest) = (place(answer.receiver_idx.get()), self.answered.and_then(place));
        matches!((this, newest), (Some(this), Some(newest)) if this < newest)
    }

    /// When to tick next, while there is something to do.
    fn next_tick(&self, now: Instant) -> Instant {
        self.retry_at.map_or(now + TICK, |t| t.min(now + TICK))
    }

    fn tick(&mut self, now: Instant, out: &mut Vec<Bytes>) {
        self.last_tick = now;
        match self.tunn.update_timers() {
            Ok(sent) => out.extend(sent.map(freeze)),
            // Given up, or the keys are past use: the next packet starts over.
            Err(_) => self.handshake_since = None,
        }
    }
}

/// All sessions of this node.
pub(crate) struct WireGuard {
    secret: StaticSecret,
    public: PublicKey,
    sessions: FastMap<NodeId, Session>,
    by_index: FastMap<u32, NodeId>,
    timers: BTreeSet<(Instant, NodeId)>,
    /// Counters of sessions under former keys.
    past: BTreeMap<NodeId, (u64, u64)>,
    table: IndexTable,
    limiter: Arc<RateLimiter>,
    /// Demands a cookie from everyone; used while the overall limit is passed.
    strict: RateLimiter,
    window: Option<Instant>,
    in_window: u32,
    mtu: MtuWatcher,
}

impl std::fmt::Debug for WireGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WireGuard").field("sessions", &self.sessions.len()).finish_non_exhaustive()
    }
}

fn freeze(kind: WgKind) -> Bytes {
    let mut packet: Packet = kind.into();
    std::mem::take(packet.buf_mut()).freeze()
}

/// The address a relayed peer's handshakes are counted under: one per node key.
pub(crate) fn relay_source(key: &NodePublic) -> SocketAddr {
    let mut ip = [0_u8; 16];
    ip.copy_from_slice(key.as_bytes().first_chunk::<16>().unwrap_or(&[0; 16]));
    ip[0] = 0xfc;
    SocketAddr::new(IpAddr::V6(Ipv6Addr::from(ip)), 1)
}

/// Whether a datagram begins a handshake.
pub(crate) fn is_initiation(datagram: &[u8]) -> bool {
    datagram.first() == Some(&1)
}

fn sender_index(datagram: &[u8]) -> Option<u32> {
    match datagram.first()? {
        1 | 2 => Some(u32::from_le_bytes(*datagram.get(4..)?.first_chunk()?)),
        _ => None,
    }
}

impl WireGuard {
    /// Sessions of the node with this key.
    pub(crate) fn new(key: &NodePrivate) -> Self {
        let secret = StaticSecret::from(*key.expose());
        let public = PublicKey::from(&secret);
        Self {
            limiter: Arc::new(RateLimiter::new(&public, PER_SOURCE)),
            strict: RateLimiter::new(&public, 0),
            secret,
            public,
            sessions: FastMap::default(),
            by_index: FastMap::default(),
            timers: BTreeSet::new(),
            past: BTreeMap::new(),
            table: IndexTable::from_os_rng(),
            window: None,
            in_window: 0,
            mtu: MtuWatcher::new(MTU),
        }
    }

    /// Ends a peer's session: it restarted, expired or was idle for long. The time of its last handshake
    /// stays known, so that a recorded one is still refused.
    pub(crate) fn remove(&mut self, id: NodeId) {
        if let Some(s) = self.sessions.get_mut(&id) {
            self.timers.remove(&(s.tick_at, id));
            for i in s.indices.drain(..) {
                self.by_index.remove(&i);
            }
            s.tunn.reset();
            s.handshake_since = None;
            s.unconfirmed = false;
            s.parked = true;
        }
    }

    /// Forgets a peer wholly: it is no peer any more, or has a new key.
    pub(crate) fn forget(&mut self, id: NodeId) {
        self.remove(id);
        self.sessions.remove(&id);
        self.past.remove(&id);
    }

    /// Drops the session of a former key, but keeps what it counted.
    fn replace(&mut self, id: NodeId) {
        self.remove(id);
        if let Some(s) = self.sessions.remove(&id) {
            let (_, tx, rx, _, _) = s.tunn.stats();
            let past = self.past.entry(id).or_default();
            past.0 += u64::try_from(rx).unwrap_or_default();
            past.1 += u64::try_from(tx).unwrap_or_default();
        }
    }

    /// Counters of a peer.
    pub(crate) fn stats(&self, id: NodeId) -> Stats {
        let (past_rx, past_tx) = self.past.get(&id).copied().unwrap_or_default();
        let now = self.sessions.get(&id).map(|s| s.tunn.stats());
        let (since, tx, rx, _, _) = now.unwrap_or_default();
        Stats {
            rx_bytes: past_rx + u64::try_from(rx).unwrap_or_default(),
            tx_bytes: past_tx + u64::try_from(tx).unwrap_or_default(),
            since_handshake: since,
        }
    }

    /// When to tick next.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// The peer whose tick is due, if any.
    pub(crate) fn due(&self, now: Instant) -> Option<NodeId> {
        self.timers.first().filter(|(at, _)| *at <= now).map(|(_, id)| *id)
    }

    fn session(&mut self, id: NodeId, key: &NodePublic, now: Instant) -> &mut Session {
        if self.sessions.get(&id).is_some_and(|s| s.key != *key) {
            self.replace(id);
        }
        let (timers, sessions) = (&mut self.timers, &mut self.sessions);
        sessions.entry(id).or_insert_with(|| {
            timers.insert((now, id));
            Session {
                tunn: Tunn::new(
                    self.secret.clone(),
                    PublicKey::from(*key.as_bytes()),
                    None,
                    None,
                    self.table.clone(),
                    Arc::clone(&self.limiter),
                ),
                key: *key,
                indices: VecDeque::new(),
                last_data: now,
                handshake_since: None,
                last_init: None,
                retry_at: None,
                prompted: 0,
                answered: None,
                tick_at: now,
                last_tick: now,
                unconfirmed: false,
                parked: false,
            }
        })
    }

    /// Moves the session's tick to `at`.
    fn arm(&mut self, id: NodeId, at: Instant) {
        if let Some(s) = self.sessions.get_mut(&id) {
            if s.tick_at != at {
                self.timers.remove(&(s.tick_at, id));
                s.tick_at = at;
            }
            self.timers.insert((at, id));
        }
    }

    /// Notes the index of a handshake message we send, and since when we are at it.
    fn note_sent(&mut self, id: NodeId, datagram: &[u8], now: Instant) {
        let Some(index) = sender_index(datagram) else {
            return;
        };
        let initiation = is_initiation(datagram);
        self.by_index.insert(index, id);
        if let Some(s) = self.sessions.get_mut(&id) {
            let over = s.handshake_since.is_none_or(|t| now >= t + HANDSHAKING);
            if initiation && over {
                s.begin(now);
            }
            if initiation {
                s.last_init = Some(now);
            }
            s.indices.push_back(index);
            if s.indices.len() > INDICES {
                // First those no session holds any more, then the oldest.
                let at = s.indices.iter().position(|i| !self.table.in_use(*i));
                if let Some(old) = s.indices.remove(at.unwrap_or(0)) {
                    self.by_index.remove(&old);
                }
            }
        }
    }

    /// Encrypts `plain` for a peer, or starts a handshake and keeps it until that is done.
    pub(crate) fn encapsulate(
        &mut self,
        id: NodeId,
        key: &NodePublic,
        plain: &[u8],
        now: Instant,
        out: &mut Vec<Bytes>,
    ) {
        if self.sessions.get(&id).is_none_or(|s| s.key != *key) {
            self.session(id, key, now);
        }
        let Some(s) = self.sessions.get_mut(&id) else {
            return;
        };
        let before = out.len();
        s.catch_up(now, out);
        let mut buf = BytesMut::with_capacity(plain.len().next_multiple_of(16));
        buf.extend_from_slice(plain);
        let sent = s.tunn.handle_outgoing_packet(Packet::from_bytes(buf), Some(&mut self.mtu));
        out.extend(sent.map(freeze));
        s.last_data = now;
        if std::mem::take(&mut s.parked) || s.tick_at > now + TICK {
            self.arm(id, now + TICK);
        }
        self.note_all(id, out.get(before..).unwrap_or_default(), now);
    }

    fn note_all(&mut self, id: NodeId, sent: &[Bytes], now: Instant) {
        for datagram in sent {
            self.note_sent(id, datagram, now);
        }
    }

    /// A way to the peer opened: an initiation sent before may be lost, and WireGuard alone would repeat it
    /// only after five seconds. Answers it, or puts it off when the last one has just been made.
    pub(crate) fn retry(&mut self, id: NodeId, now: Instant) -> Vec<Bytes> {
        let mut out = Vec::new();
        let Some(s) = self.sessions.get_mut(&id).filter(|s| s.handshaking(now)) else {
            return out;
        };
        let at = s.last_init.map_or(now, |t| (t + RETRY_SPACING).max(now));
        s.retry_at = Some(at);
        s.repeat(now, &mut out);
        if out.is_empty() && at < s.tick_at {
            self.arm(id, at);
        }
        self.note_all(id, &out, now);
        out
    }

    /// The peer pinged us directly: it lives, and by our pong it has a way to answer that it may not have had
    /// when the last initiation came.
    pub(crate) fn heard(&mut self, id: NodeId, now: Instant) -> Vec<Bytes> {
        match self.sessions.get_mut(&id).filter(|s| s.handshaking(now) && s.prompted < PROMPTED_REPEATS) {
            Some(s) if !s.tunn.has_active_session() => s.prompted += 1,
            _ => return Vec::new(),
        }
        self.retry(id, now)
    }

    /// The relay says that the peer is not there: what we sent last is lost, and nothing that answers it can
    /// be under way. The peer may be about to connect.
    pub(crate) fn undelivered(&mut self, id: NodeId, now: Instant) {
        let Some(s) = self.sessions.get_mut(&id).filter(|s| s.handshaking(now)) else {
            return;
        };
        let at = now + UNDELIVERED_REPEAT * 2_u32.pow(s.prompted);
        if s.prompted < PROMPTED_REPEATS && s.retry_at.is_none_or(|t| at < t) {
            s.prompted += 1;
            s.retry_at = Some(at);
            if at < s.tick_at {
                self.arm(id, at);
            }
        }
    }

    /// A peer sends by a session we do not have: we restarted, and it cannot know. It would go on for fifteen
    /// seconds, so that we begin a session of our own.
    pub(crate) fn renew(&mut self, id: NodeId, key: &NodePublic, now: Instant) -> Vec<Bytes> {
        let s = self.session(id, key, now);
        let mut out = Vec::new();
        if s.handshaking(now) || s.last_init.is_some_and(|t| now < t + RENEW_SPACING) {
            return out;
        }
        out.extend(s.tunn.format_handshake_initiation(false).map(|p| freeze(p.into())));
        s.last_data = now;
        self.arm(id, now + TICK);
        self.note_all(id, &out, now);
        out
    }

    /// Ticks a session that is [`WireGuard::due`] and plans its next tick.
    pub(crate) fn handle_timeout(&mut self, id: NodeId, now: Instant) -> Vec<Bytes> {
        let mut out = Vec::new();
        if let Some(first) = self.timers.first().copied().filter(|(_, i)| *i == id) {
            // Whatever follows, this deadline is over.
            self.timers.remove(&first);
        }
        if let Some(s) = self.sessions.get_mut(&id) {
            s.tick(now, &mut out);
            if out.is_empty() {
                s.repeat(now, &mut out);
            }
        }
        self.note_all(id, &out, now);
        let Some(s) = self.sessions.get(&id) else {
            return out;
        };
        let idle = now.saturating_duration_since(s.last_data);
        let handshaking = s.handshaking(now);
        if idle < BUSY || handshaking {
            let at = s.next_tick(now);
            self.arm(id, at);
        } else if idle < FORGET {
            let at = s.last_data + FORGET;
            self.arm(id, at);
        } else {
            self.remove(id);
        }
        out
    }

    fn verify(&mut self, from: SocketAddr, datagram: BytesMut, now: Instant) -> Result<WgKind, Box<Outcome>> {
        let handshake = matches!(datagram.first(), Some(1 | 2));
        let packet = Packet::from_bytes(datagram);
        if !handshake {
            return packet.try_into_wg().map_err(|_| Box::new(Outcome::drop("not wireguard")));
        }
        if self.window.is_none_or(|w| now >= w + Duration::from_secs(1)) {
            self.window = Some(now);
            self.in_window = 0;
            self.limiter.try_reset_count();
            self.strict.try_reset_count();
        }
        let limiter: &RateLimiter = if self.in_window >= OVERALL { &self.strict } else { &self.limiter };
        let verified = limiter.verify_packet(from, packet);
        // Rubbish of somebody who does not even know our key must not put us under load.
        if !matches!(verified, Err(TunnResult::Err(_))) {
            self.in_window = self.in_window.saturating_add(1);
        }
        verified.map_err(|refusal| {
            Box::new(match refusal {
                TunnResult::WriteToNetwork(cookie) => Outcome {
                    reply: Some(freeze(cookie)),
                    dropped: Some("wireguard under load"),
                    ..Outcome::default()
                },
                _ => Outcome::drop("bad wireguard handshake"),
            })
        })
    }

    /// Handles a WireGuard datagram. `from` is where a cookie reply would go; `lookup` finds a peer of the
    /// netmap by the node key an initiation shows.
    pub(crate) fn decapsulate(
        &mut self,
        from: SocketAddr,
        datagram: BytesMut,
        now: Instant,
        lookup: impl FnOnce(&NodePublic) -> Option<NodeId>,
    ) -> Outcome {
        let kind = match self.verify(from, datagram, now) {
            Ok(kind) => kind,
            Err(outcome) => return *outcome,
        };
        let index = match &kind {
            WgKind::HandshakeInit(init) => {
                let half = gotatun::noise::handshake::parse_handshake_anon(&self.secret, &self.public, init);
                let Ok(half) = half else {
                    return Outcome::drop("bad wireguard handshake");
                };
                let key = NodePublic::from_bytes(half.peer_static_public);
                let Some(id) = lookup(&key) else {
                    return Outcome::drop("handshake of a stranger");
                };
                self.session(id, &key, now);
                return self.feed(id, kind, now);
            }
            WgKind::HandshakeResp(p) => p.receiver_idx.get(),
            WgKind::CookieReply(p) => p.receiver_idx.get(),
            WgKind::Data(p) => p.header.receiver_idx.get(),
        };
        match self.by_index.get(&index) {
            Some(&id) => self.feed(id, kind, now),
            None => Outcome::drop(UNKNOWN_SESSION),
        }
    }

    fn feed(&mut self, id: NodeId, kind: WgKind, now: Instant) -> Outcome {
        let mut out = Outcome::default();
        let Some(s) = self.sessions.get_mut(&id) else {
            return Outcome::drop("unknown session");
        };
        if s.is_late(&kind) {
            return Outcome::drop("late answer");
        }
        s.catch_up(now, &mut out.send);
        let response = match &kind {
            WgKind::HandshakeResp(answer) => Some(answer.receiver_idx.get()),
            _ => None,
        };
        let initiation = matches!(kind, WgKind::HandshakeInit(_));
        match s.tunn.handle_incoming_packet(kind) {
            TunnResult::Done => {}
            TunnResult::Err(e) => {
                tracing::trace!(?e, "a WireGuard datagram was refused");
                out.dropped = Some("wireguard refused");
                return out;
            }
            TunnResult::WriteToNetwork(answer) => {
                out.peer = Some(id);
                out.send.push(freeze(answer));
                if response.is_some() {
                    s.answered = response;
                    s.handshake_since = None;
                    s.retry_at = None;
                    out.established = true;
                } else if initiation {
                    s.unconfirmed = true;
                }
            }
            TunnResult::WriteToTunnel(mut packet) => {
                out.peer = Some(id);
                out.established = std::mem::take(&mut s.unconfirmed);
                if !packet.is_empty() {
                    out.packet = Some(std::mem::take(packet.buf_mut()).freeze());
                }
            }
        }
        if out.packet.is_some() || response.is_some() || initiation {
            s.last_data = now;
            if std::mem::take(&mut s.parked) || s.tick_at > now + TICK {
                self.arm(id, now + TICK);
            }
        }
        self.note_all(id, &out.send, now);
        out
    }

    /// The packets that waited for the session, encrypted; to be called when it is established.
    pub(crate) fn flush(&mut self, id: NodeId) -> Vec<Bytes> {
        let Some(s) = self.sessions.get_mut(&id) else {
            return Vec::new();
        };
        let mut out = Vec::new();
        for kind in s.tunn.get_queued_packets(&mut self.mtu) {
            let is_data = matches!(kind, WgKind::Data(_));
            out.push(freeze(kind));
            // Without a session the queue would only be turned over.
            if !is_data {
                break;
            }
        }
        out
    }
}

#[cfg(test)]
mod tests;
