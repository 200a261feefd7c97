//! The relay's registry (dataplane.md 1.4): who is connected, who must hear what.
//!
//! A key may be connected several times. The latest connection becomes active, and afterwards
//! whichever connection last sent a frame; only the active one receives. The switch decides and
//! answers with handles; delivering, closing and telling is the shell's. Every set is bounded.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::keys::NodePublic;

/// Connections kept per key; one more closes the oldest.
pub const MAX_DUPLICATES: usize = 8;
/// Peers whose leaving one connection is told of; further ones are relayed but not watched.
pub const MAX_WATCHED: usize = 8192;

/// Names one connection; never reused within a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// What the shell has to do after [`Switch::register`].
#[derive(Debug, PartialEq, Eq)]
pub struct Registered<H> {
    /// All connections of the key now, ours among them; duplicates when more than one.
    pub same_key: Vec<H>,
    /// A connection pushed out by [`MAX_DUPLICATES`], to be closed.
    pub evicted: Option<H>,
}

/// What the shell has to do after [`Switch::unregister`].
#[derive(Debug, PartialEq, Eq)]
pub struct Unregistered<H> {
    /// Connections of the key that remain.
    pub same_key: Vec<H>,
    /// Who must hear PeerGone, because the key left and they had sent to it.
    pub tell: Vec<H>,
}

struct Peer<H> {
    // In order of arrival.
    conns: Vec<(ConnId, H)>,
    active: ConnId,
    epoch: u64,
    watchers: BTreeSet<ConnId>,
}

struct Conn<H> {
    handle: H,
    watching: BTreeSet<NodePublic>,
}

/// The registry; `H` is how the shell reaches a connection.
pub struct Switch<H> {
    peers: HashMap<NodePublic, Peer<H>>,
    conns: HashMap<ConnId, Conn<H>>,
    epoch: u64,
}

impl<H: Clone> Default for Switch<H> {
    fn default() -> Self {
        Self { peers: HashMap::new(), conns: HashMap::new(), epoch: 0 }
    }
}

impl<H: Clone> Switch<H> {
    /// Adds a connection and makes it active for its key.
    pub fn register(&mut self, key: NodePublic, id: ConnId, handle: H) -> Registered<H> {
        self.conns.insert(id, Conn { handle: handle.clone(), watching: BTreeSet::new() });
        let epoch = self.epoch;
        let peer = self.peers.entry(key).or_insert_with(|| Peer {
            conns: Vec::new(),
            active: id,
            epoch,
            watchers: BTreeSet::new(),
        });
        if peer.conns.is_empty() {
            self.epoch += 1;
        }
        peer.conns.push((id, handle));
        peer.active = id;
        // The evicted connection stays registered until its own task ends and unregisters it.
        let evicted =
            (peer.conns.len() > MAX_DUPLICATES).then(|| peer.conns.first().map(|(_, h)| h.clone())).flatten();
        Registered { same_key: handles(&peer.conns), evicted }
    }

    /// Removes a connection; a late call for one that is gone does nothing.
    pub fn unregister(&mut self, key: &NodePublic, id: ConnId) -> Unregistered<H> {
        let mut out = Unregistered { same_key: Vec::new(), tell: Vec::new() };
        if let Some(conn) = self.conns.remove(&id) {
            for watched in &conn.watching {
                if let Some(peer) = self.peers.get_mut(watched) {
                    peer.watchers.remove(&id);
                }
            }
        }
        let Some(peer) = self.peers.get_mut(key) else {
            return out;
        };
        peer.conns.retain(|(conn, _)| *conn != id);
        if let Some((latest, _)) = peer.conns.last() {
            if peer.active == id {
                peer.active = *latest;
            }
            out.same_key = handles(&peer.conns);
            return out;
        }
        let watchers = std::mem::take(&mut peer.watchers);
        self.peers.remove(key);
        for watcher in watchers {
            if let Some(conn) = self.conns.get_mut(&watcher) {
                conn.watching.remove(key);
                out.tell.push(conn.handle.clone());
            }
        }
        out
    }

    /// The connection that receives for `key`, and the epoch of the key's presence.
    #[must_use]
    pub fn route(&self, key: &NodePublic) -> Option<(&H, u64)> {
        let peer = self.peers.get(key)?;
        let active = |(id, _): &&(ConnId, H)| *id == peer.active;
        // Nearly always one entry, and the active one is mostly the latest.
        let (_, handle) = peer.conns.iter().rev().find(active)?;
        Some((handle, peer.epoch))
    }

    /// A duplicate connection sent a frame: it receives from now on.
    pub fn note_activity(&mut self, key: &NodePublic, id: ConnId) {
        if let Some(peer) = self.peers.get_mut(key)
            && peer.conns.iter().any(|(conn, _)| *conn == id)
        {
            peer.active = id;
        }
    }

    /// Records that `id` sends to `key` and wants to hear when it leaves. False when `key` is not
    /// here (any more): the caller must be told at once.
    pub fn watch(&mut self, id: ConnId, key: &NodePublic) -> bool {
        let Some(peer) = self.peers.get_mut(key) else {
            return false;
        };
        if let Some(conn) = self.conns.get_mut(&id)
            && conn.watching.len() < MAX_WATCHED
        {
            conn.watching.insert(*key);
            peer.watchers.insert(id);
        }
        true
    }

    /// All connections of a key, to be closed.
    #[must_use]
    pub fn of_key(&self, key: &NodePublic) -> Vec<H> {
        self.peers.get(key).map_or_else(Vec::new, |peer| handles(&peer.conns))
    }

    /// All connections.
    #[must_use]
    pub fn all(&self) -> Vec<H> {
        self.conns.values().map(|c| c.handle.clone()).collect()
    }

    /// How many connections there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.conns.len()
    }

    /// True without connections.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.conns.is_empty()
    }
}

fn handles<H: Clone>(conns: &[(ConnId, H)]) -> Vec<H> {
    conns.iter().map(|(_, h)| h.clone()).collect()
}

/// One connection's own memory of whom it already watches, so that the registry is not locked for
/// writing with each packet. Full, it starts anew: watching twice is harmless.
#[derive(Debug, Default)]
pub struct SentTo(HashMap<NodePublic, u64>);

impl SentTo {
    /// True when `key` in this `epoch` is new and must be watched.
    pub fn note(&mut self, key: NodePublic, epoch: u64) -> bool {
        if self.0.get(&key) == Some(&epoch) {
            return false;
        }
        if self.0.len() >= MAX_WATCHED {
            self.0.clear();
        }
        self.0.insert(key, epoch);
        true
    }
}

/// Limits PeerGone not-here answers of one connection to one per second, three in a burst.
#[derive(Debug, Default)]
pub struct NotHereLimit {
    spent: Duration,
    at: Option<Instant>,
}

impl NotHereLimit {
    /// True when an answer may go out now.
    pub fn allow(&mut self, now: Instant) -> bool {
        const EACH: Duration = Duration::from_secs(1);
        const BURST: Duration = Duration::from_secs(3);
        if let Some(at) = self.at {
            self.spent = self.spent.saturating_sub(now.duration_since(at));
        }
        self.at = Some(now);
        if self.spent + EACH > BURST {
            return false;
        }
        self.spent += EACH;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Now;

    fn key(byte: u8) -> NodePublic {
        NodePublic::from_bytes([byte; 32])
    }

    fn switch_of(conns: &[(u8, u64)]) -> Switch<u64> {
        let mut switch = Switch::default();
        for (k, id) in conns {
            switch.register(key(*k), ConnId(*id), *id);
        }
        switch
    }

    fn active(switch: &Switch<u64>, k: u8) -> Option<u64> {
        switch.route(&key(k)).map(|(h, _)| *h)
    }

    #[test]
    fn the_latest_duplicate_is_active_and_then_the_last_sender() {
        let mut switch = switch_of(&[(1, 10), (1, 11)]);
        assert_eq!(active(&switch, 1), Some(11));
        switch.note_activity(&key(1), ConnId(10));
        assert_eq!(active(&switch, 1), Some(10));
        let left = switch.unregister(&key(1), ConnId(10));
        assert_eq!((left.same_key, left.tell), (vec![11], vec![]));
        assert_eq!(active(&switch, 1), Some(11));
    }

    #[test]
    fn a_late_goodbye_does_not_evict_the_newcomer() {
        let mut switch = switch_of(&[(1, 10)]);
        switch.unregister(&key(1), ConnId(10));
        switch.register(key(1), ConnId(11), 11);
        switch.unregister(&key(1), ConnId(10));
        switch.note_activity(&key(1), ConnId(10));
        assert_eq!(active(&switch, 1), Some(11));
    }

    #[test]
    fn only_the_last_connection_of_a_key_leaving_is_told_to_those_who_sent() {
        let mut switch = switch_of(&[(1, 10), (1, 11), (2, 20), (3, 30)]);
        assert!(switch.watch(ConnId(20), &key(1)));
        assert!(switch.unregister(&key(1), ConnId(11)).tell.is_empty());
        assert_eq!(switch.unregister(&key(1), ConnId(10)).tell, [20]);
        assert!(!switch.watch(ConnId(20), &key(1)));
        assert_eq!(active(&switch, 1), None);
    }

    #[test]
    fn one_who_left_is_told_nothing() {
        let mut switch = switch_of(&[(1, 10), (2, 20)]);
        switch.watch(ConnId(20), &key(1));
        switch.unregister(&key(2), ConnId(20));
        assert!(switch.unregister(&key(1), ConnId(10)).tell.is_empty());
        assert!(switch.is_empty());
        assert!(switch.peers.is_empty());
    }

    #[test]
    fn a_returned_key_has_a_new_epoch_and_is_watched_again() {
        let mut switch = switch_of(&[(1, 10)]);
        let mut sent = SentTo::default();
        let (_, first) = switch.route(&key(1)).unwrap();
        assert!(sent.note(key(1), first));
        assert!(!sent.note(key(1), first));
        switch.unregister(&key(1), ConnId(10));
        switch.register(key(1), ConnId(11), 11);
        let (_, second) = switch.route(&key(1)).unwrap();
        assert!(sent.note(key(1), second));
    }

    #[test]
    fn duplicates_are_bounded() {
        let mut switch = Switch::default();
        let evicted: Vec<_> = (0..=8).map(|id| switch.register(key(1), ConnId(id), id).evicted).collect();
        assert_eq!(evicted[..8], [None; 8]);
        assert_eq!(evicted[8], Some(0));
    }

    #[test]
    fn watching_is_bounded() {
        let mut switch = Switch::default();
        switch.register(key(0), ConnId(0), 0);
        for n in 1..=MAX_WATCHED as u64 + 1 {
            let mut bytes = [1; 32];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            let peer = NodePublic::from_bytes(bytes);
            switch.register(peer, ConnId(n), n);
            assert!(switch.watch(ConnId(0), &peer));
        }
        assert_eq!(switch.conns[&ConnId(0)].watching.len(), MAX_WATCHED);
        let mut sent = SentTo::default();
        for n in 0..2 * MAX_WATCHED as u64 {
            let mut bytes = [1; 32];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            sent.note(NodePublic::from_bytes(bytes), n);
        }
        assert!(sent.0.len() <= MAX_WATCHED);
    }

    #[test]
    fn not_here_answers_are_three_and_then_one_a_second() {
        let now = Now::read();
        let mut limit = NotHereLimit::default();
        let burst: Vec<_> = (0..4).map(|_| limit.allow(now.mono)).collect();
        assert_eq!(burst, [true, true, true, false]);
        let later = now.after(Duration::from_secs(1)).mono;
        assert!(limit.allow(later));
        assert!(!limit.allow(later));
    }
}
