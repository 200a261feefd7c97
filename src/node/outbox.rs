//! What waits to be done by the shell, and which relay regions were written to when. Bounded: a shell that
//! does not drain loses the newest packets, counted.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::engine::{EngineEvent, Output, Path};
use super::packet::Permitted;
use crate::clock::{Now, Rng};
use crate::keys::{NodePublic, RegionId};

/// Outputs kept between two drains; one input makes a few hundred at most.
const MAX: usize = 16_384;
/// A region's connection is idle after this long without a write (dataplane.md 1.8).
const DERP_IDLE: Duration = Duration::from_secs(60);

/// The queue of outputs.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: VecDeque<Output>,
    derp_used: BTreeMap<RegionId, Instant>,
    drops: BTreeMap<&'static str, u64>,
}

impl Outbox {
    fn push(&mut self, output: Output) {
        if self.queue.len() < MAX {
            self.queue.push_back(output);
        } else {
            self.dropped("output queue full");
        }
    }

    /// The next output.
    pub(crate) fn pop(&mut self) -> Option<Output> {
        self.queue.pop_front()
    }

    /// Counts a drop.
    pub(crate) fn dropped(&mut self, reason: &'static str) {
        *self.drops.entry(reason).or_default() += 1;
        tracing::trace!(reason, "a packet was dropped");
    }

    /// Drops by reason.
    pub(crate) const fn drops(&self) -> &BTreeMap<&'static str, u64> {
        &self.drops
    }

    /// Sends by UDP.
    pub(crate) fn udp(&mut self, to: SocketAddr, bytes: Bytes) {
        self.push(Output::Udp { to, bytes });
    }

    /// Sends by a relay region.
    pub(crate) fn derp(&mut self, region: RegionId, to: NodePublic, bytes: Bytes, now: Now) {
        self.derp_used.insert(region, now.mono);
        self.push(Output::Derp { region, to, bytes });
    }

    /// Sends on a path to the node with `key`.
    pub(crate) fn send(&mut self, path: Path, key: NodePublic, bytes: Bytes, now: Now) {
        match path {
            Path::Direct(to) => self.udp(to, bytes),
            Path::Derp(region) => self.derp(region, key, bytes, now),
        }
    }

    /// Hands a permitted packet to the host.
    pub(crate) fn tun(&mut self, packet: Permitted) {
        self.push(Output::Tun(packet.into_bytes()));
    }

    /// Asks the host's resolver.
    pub(crate) fn dns(&mut self, id: u64, resolvers: Vec<SocketAddr>, query: Bytes) {
        self.push(Output::DnsForward { id, resolvers, query, tcp: false });
    }

    /// Tells the shell; never dropped for packets' sake.
    pub(crate) fn event(&mut self, event: EngineEvent) {
        self.queue.push_back(Output::Event(event));
    }

    /// When the first region but `home` becomes idle.
    pub(crate) fn idle_at(&self, home: Option<RegionId>) -> Option<Instant> {
        self.derp_used
            .iter()
            .filter(|(region, _)| Some(**region) != home)
            .map(|(_, used)| *used + DERP_IDLE)
            .min()
    }

    /// Reports regions that became idle, and gives them.
    pub(crate) fn sweep(&mut self, home: Option<RegionId>, now: Now) -> Vec<RegionId> {
        let idle: Vec<RegionId> = self
            .derp_used
            .iter()
            .filter(|(region, used)| Some(**region) != home && now.mono >= **used + DERP_IDLE)
            .map(|(region, _)| *region)
            .collect();
        for region in &idle {
            self.derp_used.remove(region);
            self.event(EngineEvent::DerpIdle(*region));
        }
        idle
    }

    /// A connection ended: nothing of it can become idle.
    pub(crate) fn derp_lost(&mut self, region: RegionId) {
        self.derp_used.remove(&region);
    }
}

/// What every step of the engine needs: the time, randomness and the way out.
pub(crate) struct Ctx<'a> {
    /// The moment of the input.
    pub(crate) now: Now,
    /// Randomness.
    pub(crate) rng: &'a mut Rng,
    /// Outputs.
    pub(crate) out: &'a mut Outbox,
}
