//! Relay connections: one task per region in use (dataplane.md 1.8).
//!
//! The set belongs to the engine's owner; a task reports by a bounded channel and waits when that is
//! full, so a busy engine stops the reading. Packets for a region that is not connected yet wait in a
//! queue of 32 that drops its oldest.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::clock::Rng;
use crate::derp::client::{self, DerpEvent, DerpSender, DialOptions};
use crate::keys::{NodePrivate, NodePublic, RegionId};
use crate::wire::{DerpMap, DerpRegion};

/// Waiting packets per region.
const PENDING: usize = 32;
/// Reconnecting never waits longer.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// What a region's task reports.
#[derive(Clone)]
pub enum RegionNews {
    /// Connected; here is the way to send.
    Up(DerpSender),
    /// The connection ended or could not be made.
    Down(String),
    /// Something came.
    Event(DerpEvent),
}

impl std::fmt::Debug for RegionNews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Up(_) => "Up",
            Self::Down(_) => "Down",
            Self::Event(_) => "Event",
        })
    }
}

/// News with the region and the connection generation they belong to.
pub type Tagged = (RegionId, u64, RegionNews);

struct Region {
    definition: DerpRegion,
    generation: u64,
    sender: Option<DerpSender>,
    pending: VecDeque<(NodePublic, Bytes)>,
    task: JoinHandle<()>,
}

impl Drop for Region {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// All regions in use.
pub struct DerpSet {
    key: NodePrivate,
    options: DialOptions,
    rng: Rng,
    map: DerpMap,
    home: Option<RegionId>,
    regions: BTreeMap<RegionId, Region>,
    generation: u64,
    news: mpsc::Sender<Tagged>,
}

impl std::fmt::Debug for DerpSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DerpSet")
            .field("home", &self.home)
            .field("regions", &self.regions.keys())
            .finish_non_exhaustive()
    }
}

impl DerpSet {
    /// An empty set; news go to `news`.
    #[must_use]
    pub fn new(key: NodePrivate, options: DialOptions, rng: Rng, news: mpsc::Sender<Tagged>) -> Self {
        Self {
            key,
            options,
            rng,
            map: DerpMap::default(),
            home: None,
            regions: BTreeMap::new(),
            generation: 0,
            news,
        }
    }

    /// The map in use.
    #[must_use]
    pub const fn map(&self) -> &DerpMap {
        &self.map
    }

    /// Regions with a live connection.
    #[must_use]
    pub fn connected(&self) -> Vec<RegionId> {
        self.regions.iter().filter(|(_, r)| r.sender.is_some()).map(|(id, _)| *id).collect()
    }

    /// Takes a new map; returns the regions whose connection ended because their definition changed.
    pub fn set_map(&mut self, map: DerpMap) -> Vec<RegionId> {
        self.map = map;
        let gone: Vec<RegionId> = self
            .regions
            .iter()
            .filter(|(id, r)| self.map.regions.get(id) != Some(&r.definition))
            .map(|(id, _)| *id)
            .collect();
        for id in &gone {
            self.regions.remove(id);
        }
        if let Some(home) = self.home {
            self.ensure(home);
        }
        gone
    }

    /// The home region changed: it is connected now and kept.
    pub fn set_home(&mut self, home: RegionId) {
        self.home = Some(home).filter(|h| h.0 != 0);
        self.ensure(home);
        for (id, region) in &self.regions {
            if let Some(sender) = &region.sender {
                sender.note_preferred(*id == home);
            }
        }
    }

    /// Closes a region that is idle, unless it is home.
    pub fn idle(&mut self, id: RegionId) -> bool {
        self.home != Some(id) && self.regions.remove(&id).is_some()
    }

    /// Dials everything anew, after a network change.
    pub fn reconnect(&mut self) -> Vec<RegionId> {
        let ids: Vec<RegionId> = self.regions.keys().copied().collect();
        self.regions.clear();
        for id in &ids {
            self.ensure(*id);
        }
        ids
    }

    /// Sends, connecting first when needed.
    pub fn send(&mut self, id: RegionId, to: NodePublic, bytes: Bytes) {
        self.ensure(id);
        let Some(region) = self.regions.get_mut(&id) else {
            return;
        };
        if let Some(sender) = &region.sender {
            sender.send(to, bytes);
            return;
        }
        if region.pending.len() >= PENDING {
            region.pending.pop_front();
        }
        region.pending.push_back((to, bytes));
    }

    /// Books a connection's state; false when the news is of a connection that is no longer ours.
    pub fn note(&mut self, id: RegionId, generation: u64, news: &RegionNews) -> bool {
        let home = self.home == Some(id);
        let Some(region) = self.regions.get_mut(&id) else {
            return false;
        };
        if region.generation != generation {
            return false;
        }
        match news {
            RegionNews::Up(sender) => {
                sender.note_preferred(home);
                for (to, bytes) in region.pending.drain(..) {
                    sender.send(to, bytes);
                }
                region.sender = Some(sender.clone());
            }
            RegionNews::Down(_) => region.sender = None,
            RegionNews::Event(_) => {}
        }
        true
    }

    fn ensure(&mut self, id: RegionId) {
        if self.regions.contains_key(&id) {
            return;
        }
        let Some(definition) = self.map.regions.get(&id).cloned() else {
            return;
        };
        self.generation += 1;
        let task = tokio::spawn(keep_connected(
            id,
            self.generation,
            definition.clone(),
            self.key.clone(),
            self.options.clone(),
            self.rng.fork(),
            self.news.clone(),
        ));
        self.regions.insert(
            id,
            Region { definition, generation: self.generation, sender: None, pending: VecDeque::new(), task },
        );
    }
}

async fn keep_connected(
    id: RegionId,
    generation: u64,
    region: DerpRegion,
    key: NodePrivate,
    options: DialOptions,
    mut rng: Rng,
    news: mpsc::Sender<Tagged>,
) {
    let mut failures: u32 = 0;
    loop {
        let why = match client::connect(&region, &key, &options, &mut rng).await {
            Ok((sender, mut receiver)) => {
                failures = 0;
                if news.send((id, generation, RegionNews::Up(sender))).await.is_err() {
                    return;
                }
                loop {
                    match receiver.recv().await {
                        Ok(event) => {
                            let event = (id, generation, RegionNews::Event(event));
                            if news.send(event).await.is_err() {
                                return;
                            }
                        }
                        Err(e) => break e.to_string(),
                    }
                }
            }
            Err(e) => e.to_string(),
        };
        failures = failures.saturating_add(1);
        tracing::debug!("relay region {id}: {why}");
        let down = (id, generation, RegionNews::Down(why));
        if news.send(down).await.is_err() {
            return;
        }
        tokio::time::sleep(backoff(failures, &mut rng)).await;
    }
}

/// 100 ms, doubling, at most 5 s, times a random half to one and a half.
fn backoff(failures: u32, rng: &mut Rng) -> Duration {
    let base = 50_u64.saturating_mul(1 << failures.min(10));
    let jitter = 500 + rng.below(1000);
    Duration::from_millis(base.saturating_mul(jitter) / 1000).min(MAX_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_five_seconds_and_no_further() {
        let mut rng = Rng::from_seed([1; 32]);
        assert!(backoff(1, &mut rng) <= Duration::from_millis(150));
        for n in 0..100 {
            assert!(backoff(n, &mut rng) <= MAX_BACKOFF);
        }
        assert!(backoff(50, &mut rng) >= MAX_BACKOFF);
    }
}
