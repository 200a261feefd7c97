//! What the rest of the program should know about this room beyond its answers: the time it believes,
//! what an admin should mend, and that a part which everything needs has ended.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::service::Control;
use super::state::Tailnet;
use super::wall::Wall;
use crate::clock::Now;

/// Watched over by everything in the room.
pub(super) struct Health {
    wall: Mutex<Wall>,
    disk: Mutex<Option<String>>,
    failed: watch::Sender<Option<&'static str>>,
}

impl Default for Health {
    fn default() -> Self {
        Self { wall: Mutex::default(), disk: Mutex::default(), failed: watch::Sender::new(None) }
    }
}

impl Health {
    /// The moment, by the clock as it is believed.
    pub(super) fn now(&self) -> Now {
        self.wall.lock().look(Now::read())
    }

    /// Notes how writing went; logs when that changes, not each time.
    pub(super) fn disk(&self, fault: Option<&str>) {
        let mut disk = self.disk.lock();
        match (disk.as_deref(), fault) {
            (None, Some(error)) => tracing::error!(%error, "changes cannot be stored and are refused"),
            (Some(_), None) => tracing::info!("changes can be stored again"),
            _ => {}
        }
        *disk = fault.map(str::to_owned);
    }

    /// Says for good that a part ended which should not.
    pub(super) fn fail(&self, part: &'static str) {
        self.failed.send_modify(|failed| *failed = failed.or(Some(part)));
    }

    /// Something that says so when it is dropped before [`Fuse::defuse`]: by a panic, or by an abort.
    #[must_use]
    pub(super) fn fuse(self: &Arc<Self>, part: &'static str) -> Fuse {
        Fuse { health: Arc::clone(self), part: Some(part) }
    }
}

/// See [`Health::fuse`].
pub(super) struct Fuse {
    health: Arc<Health>,
    part: Option<&'static str>,
}

impl Fuse {
    /// The part ended as it should.
    pub(super) fn defuse(mut self) {
        self.part = None;
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        if let Some(part) = self.part {
            self.health.fail(part);
        }
    }
}

impl Control {
    /// Resolves, with its name, when a part ended by a fault that everything needs; never otherwise. The
    /// process should end then, for its supervisor to start it anew: half a server is worse than none.
    pub async fn failed(&self) -> &'static str {
        let mut failed = self.shared().health.failed.subscribe();
        let part = failed.wait_for(Option::is_some).await.map(|part| *part);
        match part {
            Ok(Some(part)) => part,
            _ => std::future::pending().await,
        }
    }

    /// What an admin should know and mend, in sentences.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let shared = self.shared();
        let mut out: Vec<String> = shared.health.wall.lock().warning().into_iter().collect();
        if let Some(fault) = shared.health.disk.lock().as_ref() {
            out.push(format!("changes are refused: {fault}"));
        }
        let net: Arc<Tailnet> = self.net();
        out.extend(self.policy_fault());
        let broken = self.broken_tests();
        if let Some(first) = broken.first() {
            let count = broken.len();
            out.push(format!(
                "{count} test(s) of the policy do not hold any more, the first at line {}: {}; mend the policy or what it speaks of",
                first.line, first.message
            ));
        }
        for id in shared.hub.contested(Now::read().mono) {
            if let Some(node) = net.nodes.get(&id) {
                out.push(format!(
                    "two machines use the identity of device {} ({}) at once, as after cloning a disk: delete the client's state on one of them and join it anew",
                    node.name, node.ipv4
                ));
            }
        }
        out
    }

    /// The moment, by the clock as it is believed.
    pub(super) fn now(&self) -> Now {
        self.shared().now()
    }
}
