//! The one task that changes the tailnet. It takes all commands that wait, works on a draft, has the
//! rows written in one transaction, publishes, and only then answers: durable before visible. While the
//! disk works, the next commands gather.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::RwLock;
use tokio::sync::{mpsc, watch};

use super::health::Health;
use super::policies::Addresses;
use super::presence::Hub;
use super::sources::Sources;
use super::state::{Draft, Tailnet};
use super::timers;
use crate::acl::PolicyError;
use crate::clock::{Now, Rng};
use crate::keys::{NodeId, NodePublic};
use crate::model::rows::Write;
use crate::store::Store;

/// Answers a command once its fate is known: `Err` carries why nothing was kept.
pub(super) type Reply = Box<dyn FnOnce(Result<(), String>) + Send>;
/// A command: works on the draft, leaves its answer.
pub(super) type Command = Box<dyn FnOnce(&mut Draft) -> Reply + Send>;
/// Called with node keys that lost their place.
pub(super) type RevokedHook = Arc<dyn Fn(NodePublic) + Send + Sync>;

/// Commands waiting at most; callers wait when it is full.
pub(super) const QUEUE: usize = 1024;
/// Commands in one draft at most.
const ROUND: usize = 512;
/// How often the clock is looked at.
const TICK: Duration = Duration::from_secs(1);
/// Lagging rows are written this many ticks apart.
const FLUSH_TICKS: u32 = 3;

/// What readers see without asking the owner.
pub(super) struct Shared {
    pub(super) net: ArcSwap<Tailnet>,
    pub(super) hub: Arc<Hub>,
    pub(super) store: Store,
    pub(super) health: Arc<Health>,
    pub(super) sources: Sources,
    pub(super) hook: RwLock<Option<RevokedHook>>,
    /// Counts publications in which waiting logins changed; follow-ups wait on it.
    pub(super) logins: watch::Sender<u64>,
    /// Counts publications in which the policy in force changed, or what it is resolved against.
    pub(super) worlds: watch::Sender<u64>,
    /// Tests of the policy that do not hold.
    pub(super) broken: watch::Sender<Arc<Vec<PolicyError>>>,
    /// Tells the addresses of this machine.
    pub(super) addresses: RwLock<Option<Addresses>>,
}

impl Shared {
    /// The moment, by the clock as it is believed.
    pub(super) fn now(&self) -> Now {
        self.health.now()
    }
}

/// The owner's own state.
pub(super) struct Owner {
    pub(super) shared: Arc<Shared>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) rng: Rng,
    pub(super) started: Now,
    pub(super) lagging: BTreeSet<NodeId>,
}

impl Owner {
    /// Runs until all handles are gone or shutdown is said.
    pub(super) async fn run(mut self, mut end: watch::Receiver<bool>) {
        // Whatever ends this task before its last line is a fault that ends the server.
        let fuse = self.shared.health.fuse("owner of the state");
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ticks = 0_u32;
        loop {
            let mut round = Vec::new();
            let mut due = false;
            tokio::select! {
                n = self.commands.recv_many(&mut round, ROUND) => if n == 0 { break },
                () = self.shared.hub.wake.notified() => {}
                _ = tick.tick() => { due = true; ticks = ticks.wrapping_add(1); }
                _ = end.wait_for(|e| *e) => break,
            }
            self.round(round, due).await;
            if due && ticks.is_multiple_of(FLUSH_TICKS) {
                self.flush().await;
            }
        }
        self.commands.close();
        let mut rest = Vec::new();
        while self.commands.recv_many(&mut rest, ROUND).await > 0 {
            self.round(std::mem::take(&mut rest), false).await;
        }
        self.round(vec![Box::new(everybody_leaves)], false).await;
        self.flush().await;
        fuse.defuse();
    }

    async fn round(&mut self, commands: Vec<Command>, timers_due: bool) {
        let now = self.shared.now();
        let net = Tailnet::clone(&self.shared.net.load());
        let mut draft = Draft::new(net, now, self.rng.fork());
        let mut replies = Vec::with_capacity(commands.len());
        let presence = self.shared.hub.due(now.mono);
        let own = commands.is_empty();
        let done = std::panic::catch_unwind(AssertUnwindSafe(|| {
            for command in commands {
                draft.now = self.shared.now();
                replies.push(command(&mut draft));
            }
            draft.now = self.shared.now();
            if timers_due {
                timers::tick(&mut draft, self.started.wall);
            }
            for (id, online) in &presence {
                draft.set_online(*id, *online);
            }
            if !draft.heavy() {
                draft.finish();
            }
        }));
        let done = match done {
            Ok(()) if draft.heavy() => {
                // A compilation can take long; the reactor's thread is not held for it.
                let finished = tokio::task::spawn_blocking(move || {
                    draft.finish();
                    draft
                });
                finished.await.map_err(|e| e.try_into_panic().unwrap_or_else(|_| Box::new("stopped")))
            }
            Ok(()) => Ok(draft),
            Err(panic) => Err(panic),
        };
        let (verdict, draft) = match done {
            Ok(draft) if draft.writes.is_empty() => (Ok(()), Some(draft)),
            Ok(mut draft) => {
                let writes = std::mem::take(&mut draft.writes);
                let done = self.shared.store.commit(writes).await.map_err(|e| e.to_string());
                self.shared.health.disk(done.as_ref().err().map(String::as_str));
                (done, Some(draft))
            }
            // Nobody asked for anything: it would come again every second, unseen.
            Err(panic) if own => std::panic::resume_unwind(panic),
            Err(_) => (Err("an internal fault; the log has the details".to_owned()), None),
        };
        let dropped = verdict.is_err() && !presence.is_empty();
        match (&verdict, draft) {
            (Ok(()), Some(draft)) => self.publish(draft),
            (Ok(()), None) => {}
            (Err(error), _) => {
                tracing::debug!(%error, commands = replies.len(), "a round of changes was dropped");
                self.shared.hub.mark(presence.iter().map(|(id, _)| *id));
            }
        }
        for reply in replies {
            reply(verdict.clone());
        }
        if dropped {
            // Who came and went needs no disk: others learn of it all the same.
            Box::pin(self.round(Vec::new(), false)).await;
        }
    }

    fn publish(&mut self, draft: Draft) {
        let Draft { net, change, revoked, lagging, .. } = draft;
        self.lagging.extend(lagging);
        let before = self.shared.net.load_full();
        let logins_changed = !Arc::ptr_eq(&before.logins, &net.logins);
        let net = Arc::new(net);
        self.shared.net.store(Arc::clone(&net));
        self.shared.hub.announce(&before, &net, &change);
        if !Arc::ptr_eq(&before.compiled, &net.compiled) {
            self.shared.worlds.send_modify(|n| *n = n.wrapping_add(1));
        }
        if logins_changed {
            self.shared.logins.send_modify(|n| *n = n.wrapping_add(1));
        }
        let hook = self.shared.hook.read().clone();
        if let Some(hook) = hook {
            for key in revoked {
                hook(key);
            }
        }
    }

    /// Writes what may lag. What cannot be written is tried again.
    async fn flush(&mut self) {
        if self.lagging.is_empty() {
            return;
        }
        let net = self.shared.net.load_full();
        let rows = self.lagging.iter().filter_map(|id| net.nodes.get(id));
        let writes: Vec<Write> = rows.map(|n| Write::PutNode(Arc::clone(n))).collect();
        match self.shared.store.commit(writes).await {
            Ok(()) => {
                self.lagging.clear();
                self.shared.health.disk(None);
            }
            // Endpoints and last-seen times wait to be written.
            Err(error) => self.shared.health.disk(Some(&error.to_string())),
        }
    }
}

/// The last command: whoever is online was seen just now.
fn everybody_leaves(draft: &mut Draft) -> Reply {
    let online = Arc::clone(&draft.net.online);
    for id in online.iter() {
        draft.set_online(*id, false);
    }
    Box::new(|_| ())
}
