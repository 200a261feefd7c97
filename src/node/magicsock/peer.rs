//! The paths to one peer: candidate addresses, pings under way, the best address and how long it is
//! trusted. Decides when to ping whom; sealing and sending is the parent's work. Constants: dataplane.md 4.2.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use super::path::{Best, GOOD_ENOUGH, is_better, may_probe};
use crate::keys::{DiscoPublic, NodePublic, RegionId};
use crate::node::disco::TxId;
use crate::node::engine::Path;

/// No user traffic for this long: the peer is idle.
pub(crate) const SESSION: Duration = Duration::from_secs(45);
/// Between pings of the best path while there is traffic.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(3);
/// How long a pong vouches for an address.
pub(crate) const TRUST: Duration = Duration::from_millis(6500);
/// Between searches for something better than a slow direct path.
const UPGRADE: Duration = Duration::from_secs(60);
/// A ping without pong.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two unforced pings of one candidate.
const PING_SPACING: Duration = Duration::from_secs(5);
/// Between two pings of a candidate that answer its own.
const PING_BACK_SPACING: Duration = Duration::from_secs(1);
/// Candidates kept.
const MAX_CANDIDATES: usize = 100;
/// Pings under way at most; the oldest is given up for a new one.
const MAX_PINGS: usize = 256;
/// Received pings remembered, to answer each once.
const MAX_SEEN: usize = 64;
/// Between two call-me-maybes taken from one peer (RELIABILITY.md row 47).
const CMM_SPACING: Duration = Duration::from_secs(1);
/// The best path must answer within this long once the peer shows up elsewhere.
const DOUBT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, Default)]
struct Candidate {
    netmap: bool,
    call_me_maybe: bool,
    last_ping: Option<Instant>,
    /// The last ping that answered a ping.
    last_back: Option<Instant>,
    /// Last sign: a pong of it, or a ping from it.
    heard: Option<Instant>,
}

/// A ping that waits for its pong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SentPing {
    /// Where it went; what a pong validates.
    pub(crate) to: Path,
    /// When.
    pub(crate) at: Instant,
    /// For `ping` of the command line.
    pub(crate) cli: Option<u64>,
}

/// Everything about reaching one peer.
#[derive(Debug)]
pub(crate) struct PeerPaths {
    pub(crate) key: NodePublic,
    pub(crate) disco: Option<DiscoPublic>,
    pub(crate) home: Option<RegionId>,
    /// The region the peer last reached us by.
    pub(crate) reverse: Option<RegionId>,
    candidates: BTreeMap<SocketAddr, Candidate>,
    pub(crate) best: Option<Best>,
    /// Validated too, but not better; takes over when the best goes silent.
    second: Option<Best>,
    last_doubt: Option<Instant>,
    pings: BTreeMap<TxId, SentPing>,
    seen: VecDeque<(TxId, Path)>,
    last_full_ping: Option<Instant>,
    /// No candidate is due before; spares the walk over them per packet.
    full_ping_from: Option<Instant>,
    pub(crate) last_user: Option<Instant>,
    pub(crate) last_write: Option<DateTime<Utc>>,
    pub(crate) heartbeat_at: Option<Instant>,
    /// A call-me-maybe waits for fresh endpoints.
    pub(crate) cmm_waits: bool,
    last_cmm: Option<Instant>,
    /// The deadline this peer is registered under at the parent.
    pub(crate) armed: Option<Instant>,
}

impl PeerPaths {
    /// Nothing known but the key.
    pub(crate) const fn new(key: NodePublic, disco: Option<DiscoPublic>) -> Self {
        Self {
            key,
            disco,
            home: None,
            reverse: None,
            candidates: BTreeMap::new(),
            best: None,
            second: None,
            last_doubt: None,
            pings: BTreeMap::new(),
            seen: VecDeque::new(),
            last_full_ping: None,
            full_ping_from: None,
            last_user: None,
            last_write: None,
            heartbeat_at: None,
            cmm_waits: false,
            last_cmm: None,
            armed: None,
        }
    }

    /// Starts over after the peer restarted; home and counters stay.
    pub(crate) fn reset(&mut self, key: NodePublic, disco: Option<DiscoPublic>) {
        *self = Self {
            home: self.home,
            reverse: self.reverse.filter(|_| self.key == key),
            last_user: self.last_user,
            last_write: self.last_write,
            armed: self.armed,
            ..Self::new(key, disco)
        };
    }

    /// The relay region to use: where the peer last reached us, else its home.
    pub(crate) fn relay(&self) -> Option<RegionId> {
        self.reverse.or(self.home)
    }

    /// User traffic within the session time.
    pub(crate) fn active(&self, now: Instant) -> bool {
        self.last_user.is_some_and(|t| now < t + SESSION)
    }

    /// The best address and whether it is trusted.
    pub(crate) fn best_at(&self, now: Instant) -> Option<(SocketAddr, bool)> {
        self.best.map(|b| (b.addr, now <= b.trust_until))
    }

    /// Takes the netmap's endpoints; whether there are new ones among them.
    pub(crate) fn set_netmap(&mut self, endpoints: &[SocketAddr]) -> bool {
        for c in self.candidates.values_mut() {
            c.netmap = false;
        }
        let known = self.candidates.len();
        for addr in endpoints.iter().take(MAX_CANDIDATES) {
            if may_probe(*addr) {
                self.candidates.entry(*addr).or_default().netmap = true;
            }
        }
        let more = self.candidates.len() > known;
        self.prune();
        self.full_ping_from = None;
        more
    }

    /// Takes a call-me-maybe: its endpoints replace those of the last one and may be pinged at once. False
    /// when it came too soon.
    pub(crate) fn set_call_me_maybe(&mut self, endpoints: &[SocketAddr], now: Instant) -> bool {
        if self.last_cmm.is_some_and(|t| now < t + CMM_SPACING) {
            return false;
        }
        self.last_cmm = Some(now);
        for c in self.candidates.values_mut() {
            c.call_me_maybe = false;
        }
        for addr in endpoints.iter().take(MAX_CANDIDATES) {
            if may_probe(*addr) {
                let c = self.candidates.entry(*addr).or_default();
                c.call_me_maybe = true;
                c.last_ping = None;
            }
        }
        self.prune();
        self.full_ping_from = None;
        true
    }

    /// Notes a ping from the peer; false when it was answered already.
    pub(crate) fn note_ping(&mut self, tx: TxId, from: Path, now: Instant) -> bool {
        if self.seen.contains(&(tx, from)) {
            return false;
        }
        if self.seen.len() >= MAX_SEEN {
            self.seen.pop_front();
        }
        self.seen.push_back((tx, from));
        if let Path::Direct(addr) = from
            && may_probe(addr)
        {
            let known = self.candidates.len();
            self.candidates.entry(addr).or_default().heard = Some(now);
            if self.candidates.len() != known {
                self.full_ping_from = None;
                self.prune();
            }
        }
        true
    }

    /// Keeps the candidates bounded: first go those nobody vouches for, the longest unheard first.
    fn prune(&mut self) {
        let best = self.best.map(|b| b.addr);
        self.candidates.retain(|a, c| c.netmap || c.call_me_maybe || c.heard.is_some() || Some(*a) == best);
        while self.candidates.len() > MAX_CANDIDATES {
            let worst = self
                .candidates
                .iter()
                .filter(|(a, _)| Some(**a) != best)
                .min_by_key(|(_, c)| (c.netmap || c.call_me_maybe, c.heard))
                .map(|(a, _)| *a);
            let Some(worst) = worst else {
                break;
            };
            self.candidates.remove(&worst);
        }
    }

    /// The candidates due for a ping, marked as pinged. A peer of which no address is known counts as due as
    /// often: it can still be asked for its addresses.
    pub(crate) fn take_due_candidates(&mut self, now: Instant) -> Option<Vec<SocketAddr>> {
        if self.full_ping_from.is_some_and(|t| now < t) {
            return None;
        }
        self.last_full_ping = Some(now);
        let mut due = Vec::new();
        let mut from = now + PING_SPACING;
        for (addr, c) in &mut self.candidates {
            match c.last_ping {
                Some(t) if now < t + PING_SPACING => from = from.min(t + PING_SPACING),
                _ => {
                    c.last_ping = Some(now);
                    due.push(*addr);
                }
            }
        }
        self.full_ping_from = Some(from);
        Some(due).filter(|due| !due.is_empty() || self.candidates.is_empty())
    }

    /// Lets every candidate be pinged again at once.
    pub(crate) fn forget_pings(&mut self) {
        self.full_ping_from = None;
        for c in self.candidates.values_mut() {
            c.last_ping = None;
        }
    }

    /// The peer pinged us from an address while we talk to it by no trusted way: what lies between lets our ping
    /// through now, which it may not have done before.
    pub(crate) fn ping_back(&mut self, from: Path, now: Instant) -> Option<SocketAddr> {
        let Path::Direct(addr) = from else {
            return None;
        };
        if !self.active(now) || self.best_at(now).is_some_and(|(_, trusted)| trusted) {
            return None;
        }
        let c = self.candidates.get_mut(&addr)?;
        if c.last_back.is_some_and(|t| now < t + PING_BACK_SPACING) {
            return None;
        }
        c.last_back = Some(now);
        c.last_ping = Some(now);
        Some(addr)
    }

    /// Whether an address is one of the candidates.
    pub(crate) fn may_be_at(&self, addr: SocketAddr) -> bool {
        self.candidates.contains_key(&addr)
    }

    /// All candidates, whatever was pinged when.
    pub(crate) fn candidates(&self) -> Vec<SocketAddr> {
        self.candidates.keys().copied().collect()
    }

    /// Whether something better than the best should be looked for.
    pub(crate) fn wants_full_ping(&self, now: Instant) -> bool {
        let (Some(best), Some(last)) = (self.best, self.last_full_ping) else {
            return true;
        };
        now > best.trust_until || (best.latency > GOOD_ENOUGH && now >= last + UPGRADE)
    }

    /// Registers a ping that is being sent.
    pub(crate) fn note_sent(&mut self, tx: TxId, ping: SentPing) {
        if self.pings.len() >= MAX_PINGS {
            let oldest = self.pings.iter().min_by_key(|(_, p)| p.at).map(|(t, _)| *t);
            if let Some(oldest) = oldest {
                self.pings.remove(&oldest);
            }
        }
        self.pings.insert(tx, ping);
    }

    /// Takes a pong: which ping it answers; a direct path may become the best.
    pub(crate) fn take_pong(&mut self, tx: &TxId, now: Instant) -> Option<SentPing> {
        let ping = self.pings.remove(tx)?;
        let Path::Direct(addr) = ping.to else {
            return Some(ping);
        };
        let latency = now.saturating_duration_since(ping.at);
        self.candidates.entry(addr).or_default().heard = Some(now);
        let trusted = self.best.filter(|b| now <= b.trust_until);
        let better = is_better((addr, latency), trusted.map(|b| (b.addr, b.latency)));
        if better || self.best.is_some_and(|b| b.addr == addr) {
            self.best = Some(Best { addr, latency, trust_until: now + TRUST });
            self.second = self.second.filter(|s| s.addr != addr);
        } else {
            self.second = Some(Best { addr, latency, trust_until: now + TRUST });
        }
        Some(ping)
    }

    /// The peer pinged us from elsewhere than where we send to: it may have moved. Its best path has to prove
    /// itself anew, soon, beside the new one; the official client would wait for the trust to run out.
    pub(crate) fn doubt_best(&mut self, from: Path, now: Instant) -> [Option<SocketAddr>; 2] {
        let (Path::Direct(addr), Some(best)) = (from, self.best.as_mut()) else {
            return [None, None];
        };
        let lately = self.last_doubt.is_some_and(|t| now < t + DOUBT);
        if best.addr == addr || lately || !may_probe(addr) {
            return [None, None];
        }
        self.last_doubt = Some(now);
        best.trust_until = best.trust_until.min(now + DOUBT.max(best.latency * 3));
        if let Some(c) = self.candidates.get_mut(&addr) {
            c.last_ping = Some(now);
        }
        [Some(best.addr), Some(addr)]
    }

    /// Lets the second path take over from a best one that is not trusted any more.
    pub(crate) fn settle_best(&mut self, now: Instant) {
        if self.best.is_some_and(|b| now <= b.trust_until) {
            return;
        }
        if let Some(second) = self.second.take().filter(|s| now <= s.trust_until) {
            self.best = Some(second);
        }
    }

    /// Gives up pings that are too old, and the best address when it went silent.
    pub(crate) fn expire_pings(&mut self, now: Instant) {
        let best = self.best;
        let mut silent = false;
        self.pings.retain(|_, p| {
            let keep = now < p.at + PING_TIMEOUT;
            if !keep && best.is_some_and(|b| p.to == Path::Direct(b.addr) && now > b.trust_until) {
                silent = true;
            }
            keep
        });
        if silent {
            self.best = None;
        }
        self.settle_best(now);
    }

    /// All paths are doubtful.
    pub(crate) fn distrust(&mut self) {
        self.best = None;
        self.second = None;
        self.forget_pings();
    }

    /// When this peer next needs time.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let ping = self.pings.values().map(|p| p.at + PING_TIMEOUT).min();
        [ping, self.heartbeat_at].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Now;

    fn addr(n: u16) -> SocketAddr {
        format!("203.0.113.1:{n}").parse().unwrap()
    }

    fn peer() -> PeerPaths {
        PeerPaths::new(NodePublic::from_bytes([1; 32]), None)
    }

    fn ping(p: &mut PeerPaths, n: u8, to: SocketAddr, at: Instant) {
        p.note_sent([n; 12], SentPing { to: Path::Direct(to), at, cli: None });
    }

    #[test]
    fn the_pinged_address_is_validated_and_trust_runs_out() {
        let now = Now::read().mono;
        let mut p = peer();
        ping(&mut p, 1, addr(1), now);
        let pong = now + Duration::from_millis(10);
        assert!(p.take_pong(&[9; 12], pong).is_none());
        assert!(p.take_pong(&[1; 12], pong).is_some());
        assert_eq!(p.best_at(pong + TRUST), Some((addr(1), true)));
        assert_eq!(p.best_at(pong + TRUST + TRUST), Some((addr(1), false)));
    }

    #[test]
    fn a_silent_best_is_dropped_only_after_its_trust() {
        let now = Now::read().mono;
        let mut p = peer();
        ping(&mut p, 1, addr(1), now);
        p.take_pong(&[1; 12], now).unwrap();
        ping(&mut p, 2, addr(1), now + HEARTBEAT);
        p.expire_pings(now + HEARTBEAT + PING_TIMEOUT);
        assert!(p.best.is_none());
        ping(&mut p, 3, addr(1), now);
        p.take_pong(&[3; 12], now).unwrap();
        ping(&mut p, 4, addr(1), now);
        p.expire_pings(now + PING_TIMEOUT);
        assert!(p.best.is_some());
    }

    #[test]
    fn a_peer_that_shows_up_elsewhere_is_followed_when_the_old_way_is_silent() {
        let now = Now::read().mono;
        let mut p = peer();
        ping(&mut p, 1, addr(1), now);
        p.take_pong(&[1; 12], now).unwrap();
        assert!(p.note_ping([7; 12], Path::Direct(addr(2)), now));
        assert_eq!(p.doubt_best(Path::Direct(addr(2)), now), [Some(addr(1)), Some(addr(2))]);
        assert_eq!(p.doubt_best(Path::Direct(addr(2)), now), [None, None], "once a second");
        ping(&mut p, 2, addr(2), now);
        p.take_pong(&[2; 12], now).unwrap();
        assert_eq!(p.best_at(now), Some((addr(1), true)), "not better, so far");
        let later = now + DOUBT + Duration::from_millis(1);
        p.settle_best(later);
        assert_eq!(p.best_at(later), Some((addr(2), true)));
    }

    #[test]
    fn a_best_way_that_answers_is_kept_however_the_peer_pings() {
        let now = Now::read().mono;
        let mut p = peer();
        ping(&mut p, 1, addr(1), now);
        p.take_pong(&[1; 12], now).unwrap();
        p.doubt_best(Path::Direct(addr(2)), now);
        ping(&mut p, 2, addr(1), now);
        p.take_pong(&[2; 12], now).unwrap();
        let later = now + DOUBT + Duration::from_millis(1);
        p.settle_best(later);
        assert_eq!(p.best_at(later), Some((addr(1), true)));
        assert_eq!(p.doubt_best(Path::Direct(addr(1)), later), [None, None]);
    }

    #[test]
    fn candidates_are_pinged_every_five_seconds_and_a_ping_is_answered_once() {
        let now = Now::read().mono;
        let mut p = peer();
        p.set_netmap(&[addr(1), addr(2)]);
        assert_eq!(p.take_due_candidates(now).unwrap(), [addr(1), addr(2)]);
        assert!(p.take_due_candidates(now + HEARTBEAT).is_none());
        assert!(p.note_ping([1; 12], Path::Direct(addr(3)), now));
        assert!(!p.note_ping([1; 12], Path::Direct(addr(3)), now));
        assert_eq!(p.take_due_candidates(now + HEARTBEAT).unwrap(), [addr(3)]);
        assert_eq!(p.take_due_candidates(now + PING_SPACING).unwrap(), [addr(1), addr(2)]);
    }

    #[test]
    fn candidates_and_call_me_maybes_are_bounded() {
        let now = Now::read().mono;
        let mut p = peer();
        p.set_netmap(&[addr(1)]);
        for n in 2..500 {
            p.note_ping([(n % 250) as u8; 12], Path::Direct(addr(n)), now);
        }
        assert!(p.candidates.len() <= MAX_CANDIDATES);
        assert!(p.candidates.contains_key(&addr(1)));
        assert!(p.set_call_me_maybe(&[addr(9)], now));
        assert!(!p.set_call_me_maybe(&[addr(10)], now + Duration::from_millis(900)));
    }

    #[test]
    fn a_ping_is_pinged_back_only_while_nothing_better_is_known() {
        let now = Now::read().mono;
        let mut p = peer();
        assert!(p.note_ping([1; 12], Path::Direct(addr(1)), now));
        assert_eq!(p.ping_back(Path::Direct(addr(1)), now), None, "we have nothing to say");
        p.last_user = Some(now);
        assert_eq!(p.ping_back(Path::Direct(addr(1)), now), Some(addr(1)));
        assert_eq!(p.ping_back(Path::Direct(addr(1)), now), None, "once a second");
        assert_eq!(p.ping_back(Path::Direct(addr(2)), now), None, "not one of its addresses");
        assert_eq!(p.ping_back(Path::Derp(RegionId(1)), now), None);
        ping(&mut p, 2, addr(1), now);
        p.take_pong(&[2; 12], now).unwrap();
        assert_eq!(p.ping_back(Path::Direct(addr(1)), now + PING_BACK_SPACING), None, "trusted");
        p.forget_pings();
        assert_eq!(p.take_due_candidates(now).unwrap(), [addr(1)], "forgotten pings may be sent again");
    }

    #[test]
    fn a_peer_without_addresses_is_asked_for_them_as_often_as_others_are_pinged() {
        let now = Now::read().mono;
        let mut p = peer();
        assert_eq!(p.take_due_candidates(now).unwrap(), []);
        assert!(p.take_due_candidates(now + HEARTBEAT).is_none());
        assert_eq!(p.take_due_candidates(now + PING_SPACING).unwrap(), []);
        assert!(p.set_netmap(&[addr(1)]), "a new one");
        assert!(!p.set_netmap(&[addr(1)]));
        assert_eq!(p.take_due_candidates(now + PING_SPACING).unwrap(), [addr(1)]);
    }
}
