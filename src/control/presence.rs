//! Who has a map stream open. Counted per node, never a flag: the end of an old stream may come after
//! the start of a new one (trap 18). A stream holds a [`Guard`]; its drop is the one release.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::change::Change;
use super::contest::Contest;
use super::mapper;
use super::state::Tailnet;
use crate::keys::NodeId;

/// How long a node without stream still counts as online (control.md 10.4).
const GRACE: Duration = Duration::from_secs(10);

/// One stream's letter box: what changed since it last looked. One slot that merges, never a queue.
#[derive(Default)]
pub(super) struct Slot {
    change: Mutex<Change>,
    replaced: std::sync::atomic::AtomicBool,
    wake: Notify,
}

impl Slot {
    /// Waits until there is something, and takes it. `None`: a newer stream took this one's place.
    pub(super) async fn next(&self) -> Option<Change> {
        loop {
            let wake = self.wake.notified();
            if self.replaced.load(std::sync::atomic::Ordering::Acquire) {
                return None;
            }
            let change = std::mem::take(&mut *self.change.lock());
            if !change.is_empty() {
                return Some(change);
            }
            wake.await;
        }
    }

    /// Takes what is there now.
    pub(super) fn take(&self) -> Change {
        std::mem::take(&mut *self.change.lock())
    }

    fn put(&self, change: &Change) {
        self.change.lock().merge(change);
        self.wake.notify_one();
    }
}

struct Entry {
    sessions: BTreeSet<u64>,
    slot: Arc<Slot>,
    /// When the grace ends, once no session is left.
    until: Option<Instant>,
    /// Streams that pushed each other out.
    contest: Contest,
    /// Counts moments at which the last session ended.
    freed: watch::Sender<u64>,
}

/// Why a stream has to wait for its turn: two machines with one identity contest it.
pub(super) struct Wait {
    /// Its turn comes at the latest then.
    pub(super) until: Instant,
    /// Changes when the other stream ended by itself.
    pub(super) freed: watch::Receiver<u64>,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<NodeId, Entry>,
    next: u64,
    dirty: BTreeSet<NodeId>,
}

/// All streams.
#[derive(Default)]
pub(super) struct Hub {
    inner: Mutex<Inner>,
    /// Somebody came or went.
    pub(super) wake: Notify,
}

/// Holds a node's presence; released exactly once, by dropping it.
pub(super) struct Guard {
    hub: Arc<Hub>,
    node: NodeId,
    session: u64,
    slot: Arc<Slot>,
    clock: fn() -> Instant,
}

impl Guard {
    /// The letter box.
    #[must_use]
    pub(super) fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut inner = self.hub.inner.lock();
        if let Some(entry) = inner.entries.get_mut(&self.node) {
            entry.sessions.remove(&self.session);
            if entry.sessions.is_empty() {
                entry.until = Some((self.clock)() + GRACE);
                entry.freed.send_modify(|n| *n = n.wrapping_add(1));
            }
        }
        drop(inner);
        self.hub.wake.notify_one();
    }
}

impl Hub {
    /// A stream begins; an older one of the same node is told to end.
    ///
    /// # Errors
    /// When streams of this node keep pushing each other out: the newest wins only now and then.
    pub(super) fn connect(self: &Arc<Self>, node: NodeId, clock: fn() -> Instant) -> Result<Guard, Wait> {
        let slot = Arc::new(Slot::default());
        let mut inner = self.inner.lock();
        if let Some(entry) = inner.entries.get_mut(&node)
            && !entry.sessions.is_empty()
        {
            let calm = !entry.contest.on();
            let verdict = entry.contest.replace(clock());
            if calm && entry.contest.on() {
                tracing::warn!(%node, "two machines use this device's identity at once (a cloned disk?); the newest stream wins every 30 s only");
            }
            if let Err(until) = verdict {
                return Err(Wait { until, freed: entry.freed.subscribe() });
            }
        }
        inner.next += 1;
        let session = inner.next;
        inner.dirty.insert(node);
        let entry = inner.entries.entry(node).or_insert_with(|| Entry {
            sessions: BTreeSet::new(),
            slot: Arc::clone(&slot),
            until: None,
            contest: Contest::default(),
            freed: watch::Sender::new(0),
        });
        if !Arc::ptr_eq(&entry.slot, &slot) {
            let old = std::mem::replace(&mut entry.slot, Arc::clone(&slot));
            old.replaced.store(true, std::sync::atomic::Ordering::Release);
            old.wake.notify_one();
        }
        entry.sessions.insert(session);
        entry.until = None;
        drop(inner);
        self.wake.notify_one();
        Ok(Guard { hub: Arc::clone(self), node, session, slot, clock })
    }

    /// Nodes whose identity several machines use at once.
    pub(super) fn contested(&self, now: Instant) -> Vec<NodeId> {
        let mut inner = self.inner.lock();
        let entries = inner.entries.iter_mut();
        let mut out: Vec<NodeId> = entries
            .filter_map(|(id, e)| {
                e.contest.calm_down(now);
                e.contest.on().then_some(*id)
            })
            .collect();
        out.sort_unstable();
        out
    }

    /// Nodes whose presence may differ from what was published, with how it is now.
    pub(super) fn due(&self, now: Instant) -> Vec<(NodeId, bool)> {
        let mut inner = self.inner.lock();
        let mut out: Vec<(NodeId, bool)> = Vec::new();
        for id in std::mem::take(&mut inner.dirty) {
            out.push((id, inner.entries.contains_key(&id)));
        }
        inner.entries.retain(|id, entry| {
            let gone = entry.until.is_some_and(|until| until <= now);
            if gone {
                out.push((*id, false));
            }
            !gone
        });
        out
    }

    /// Puts nodes back on the list of those to look at: their draft was dropped.
    pub(super) fn mark(&self, nodes: impl IntoIterator<Item = NodeId>) {
        self.inner.lock().dirty.extend(nodes);
    }

    /// Leaves word of `change`, which leads from `before` to `net`, with every stream it may concern.
    pub(super) fn announce(&self, before: &Tailnet, net: &Tailnet, change: &Change) {
        if change.is_empty() {
            return;
        }
        let inner = self.inner.lock();
        for (id, entry) in &inner.entries {
            if !entry.sessions.is_empty() && mapper::concerns(*id, before, net, change) {
                entry.slot.put(change);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Now;

    fn clock() -> Instant {
        Now::read().mono
    }

    fn connect(hub: &Arc<Hub>) -> Guard {
        hub.connect(NodeId(1), clock).ok().unwrap()
    }

    #[tokio::test]
    async fn machines_that_contest_an_identity_take_turns_and_the_last_one_is_let_in_at_once() {
        let hub = Arc::new(Hub::default());
        let mut held = vec![connect(&hub)];
        let wait = loop {
            match hub.connect(NodeId(1), clock) {
                Ok(guard) => held.push(guard),
                Err(wait) => break wait,
            }
            assert!(held.len() < 100, "they never slow down");
        };
        assert_eq!(hub.contested(clock()), [NodeId(1)]);
        let mut freed = wait.freed;
        held.clear();
        freed.changed().await.unwrap();
        assert!(hub.connect(NodeId(1), clock).is_ok());
    }

    #[test]
    fn an_old_stream_that_ends_late_does_not_take_the_new_one_down() {
        let hub = Arc::new(Hub::default());
        let old = connect(&hub);
        let new = connect(&hub);
        assert_eq!(hub.due(clock()), [(NodeId(1), true)]);
        drop(old);
        assert!(hub.due(clock() + 2 * GRACE).is_empty());
        drop(new);
        assert!(hub.due(clock()).is_empty(), "the grace has begun");
        assert_eq!(hub.due(clock() + 2 * GRACE), [(NodeId(1), false)]);
        assert!(hub.due(clock() + 2 * GRACE).is_empty(), "said once");
    }

    #[test]
    fn coming_back_within_the_grace_is_never_offline() {
        let hub = Arc::new(Hub::default());
        drop(connect(&hub));
        let again = connect(&hub);
        assert_eq!(hub.due(clock() + 2 * GRACE), [(NodeId(1), true)]);
        drop(again);
    }

    #[test]
    fn a_dropped_draft_hears_of_presence_again() {
        let hub = Arc::new(Hub::default());
        let held = connect(&hub);
        let due = hub.due(clock());
        hub.mark(due.iter().map(|(id, _)| *id));
        assert_eq!(hub.due(clock()), due);
        drop(held);
    }

    #[tokio::test]
    async fn changes_merge_while_nobody_looks() {
        let slot = Slot::default();
        for id in 1..=3 {
            let nodes = std::iter::once(NodeId(id)).collect();
            slot.put(&Change { nodes, ..Change::default() });
        }
        let change = slot.next().await.unwrap();
        assert_eq!(change.nodes.len(), 3);
    }
}
