//! Finds the way to each peer: disco pings and pongs, call-me-maybe, the best direct address, and the relay
//! while there is none. Owns one [`PeerPaths`] per peer and the boxes shared with their disco keys. Packets
//! pass through [`Magicsock::route`], which answers where to send and starts what is missing
//! (dataplane.md 4.3, 4.4).

mod path;
mod peer;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{DateTime, Utc};

use self::peer::{HEARTBEAT, PING_TIMEOUT, PeerPaths, SESSION, SentPing};
use super::disco::{self, MAX_ENDPOINTS, Message, Sealed};
use super::engine::{EngineEvent, Path, PingOutcome};
use super::hash::FastMap;
use super::outbox::Ctx;
use crate::clock::Now;
use crate::keys::{DiscoPrivate, DiscoPublic, NodeId, NodePublic, RegionId, SharedBox};
use crate::wire::Node;

/// Own endpoints older than this are measured anew before a call-me-maybe.
const ENDPOINTS_FRESH: Duration = Duration::from_secs(27);
/// Peers looked for at once after a network change; the others when there is a packet for them.
const MAX_SEARCH: usize = 256;
/// Pings of the command line under way.
const MAX_CLI: usize = 256;

/// Where a packet goes; both while the direct path is not trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    /// To whom.
    pub(crate) key: NodePublic,
    /// Directly.
    pub(crate) udp: Option<SocketAddr>,
    /// By a relay.
    pub(crate) derp: Option<RegionId>,
}

#[derive(Debug)]
struct DiscoPeer {
    shared: Option<SharedBox>,
    nodes: Vec<NodeId>,
}

#[derive(Debug, Clone, Copy)]
struct CliPing {
    deadline: Instant,
    answered: bool,
}

/// The paths to all peers.
#[derive(Debug)]
pub(crate) struct Magicsock {
    disco: DiscoPrivate,
    disco_public: DiscoPublic,
    node_public: NodePublic,
    peers: FastMap<NodeId, PeerPaths>,
    by_key: HashMap<NodePublic, NodeId>,
    by_disco: HashMap<DiscoPublic, DiscoPeer>,
    timers: BTreeSet<(Instant, NodeId)>,
    endpoints: Vec<SocketAddr>,
    endpoints_at: Option<Instant>,
    wants_netcheck: bool,
    cli: BTreeMap<u64, CliPing>,
    next_cli: u64,
    /// The last user packet to anyone.
    last_user: Option<Instant>,
    /// Peers to which a direct way just opened.
    opened: Vec<NodeId>,
    /// Peers that just pinged us directly.
    heard: Vec<NodeId>,
}

/// What changed with a peer of the netmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerUpdate {
    /// Nothing that matters to its sessions.
    Same,
    /// It restarted: its WireGuard session is worthless.
    Restarted,
    /// It may be reached where it could not before.
    NewWays,
}

impl Magicsock {
    /// Without peers.
    pub(crate) fn new(disco: DiscoPrivate, node_public: NodePublic) -> Self {
        Self {
            disco_public: disco.public(),
            disco,
            node_public,
            peers: FastMap::default(),
            by_key: HashMap::new(),
            by_disco: HashMap::new(),
            timers: BTreeSet::new(),
            endpoints: Vec::new(),
            endpoints_at: None,
            wants_netcheck: false,
            cli: BTreeMap::new(),
            next_cli: 1,
            last_user: None,
            opened: Vec::new(),
            heard: Vec::new(),
        }
    }

    /// A peer to which a direct way opened since the last call.
    pub(crate) fn take_opened(&mut self) -> Option<NodeId> {
        self.opened.pop()
    }

    /// A peer that pinged us directly since the last call.
    pub(crate) fn take_heard(&mut self) -> Option<NodeId> {
        self.heard.pop()
    }

    /// A peer that may stand at this address. Walks over all peers: not for every packet.
    pub(crate) fn by_addr(&self, addr: SocketAddr) -> Option<NodeId> {
        self.peers.iter().filter(|(_, p)| p.may_be_at(addr)).map(|(id, _)| *id).min()
    }

    /// The peers that packets reach by this relay region.
    pub(crate) fn reached_by(&self, region: RegionId) -> Vec<NodeId> {
        self.peers.iter().filter(|(_, p)| p.relay() == Some(region)).map(|(id, _)| *id).collect()
    }

    /// Pings the peers that had traffic lately, and lets them ping us.
    pub(crate) fn search_active(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now.mono;
        let mut active: Vec<(Option<Instant>, NodeId)> =
            self.peers.iter().filter(|(_, p)| p.active(now)).map(|(id, p)| (p.last_user, *id)).collect();
        active.sort_unstable_by(|a, b| b.cmp(a));
        for (_, id) in active.into_iter().take(MAX_SEARCH) {
            self.full_ping(id, true, ctx);
        }
    }

    /// The peer with this node key.
    pub(crate) fn by_key(&self, key: &NodePublic) -> Option<NodeId> {
        self.by_key.get(key).copied()
    }

    /// The node key of a peer.
    pub(crate) fn key_of(&self, id: NodeId) -> Option<NodePublic> {
        self.peers.get(&id).map(|p| p.key)
    }

    /// Our own disco key.
    pub(crate) const fn disco_public(&self) -> DiscoPublic {
        self.disco_public
    }

    fn link_disco(&mut self, id: NodeId, disco: Option<DiscoPublic>) {
        let Some(key) = disco else {
            return;
        };
        let entry = self.by_disco.entry(key).or_insert_with(|| DiscoPeer { shared: None, nodes: Vec::new() });
        if !entry.nodes.contains(&id) {
            entry.nodes.push(id);
        }
    }

    fn unlink_disco(&mut self, id: NodeId, disco: Option<DiscoPublic>) {
        let Some(key) = disco else {
            return;
        };
        if let Some(entry) = self.by_disco.get_mut(&key) {
            entry.nodes.retain(|n| *n != id);
            if entry.nodes.is_empty() {
                self.by_disco.remove(&key);
            }
        }
    }

    /// Takes a peer of the netmap, new or changed.
    pub(crate) fn set_peer(&mut self, node: &Node) -> PeerUpdate {
        let disco = Some(node.disco_key).filter(|k| !k.is_zero());
        let mut update = self.set_keys(node.id, node.key, disco);
        if let Some(p) = self.peers.get_mut(&node.id) {
            let home = home_of(node);
            let moved = home.is_some() && p.home != home;
            p.home = home;
            let more = p.set_netmap(&node.endpoints);
            if update == PeerUpdate::Same && (moved || more) {
                update = PeerUpdate::NewWays;
            }
        }
        update
    }

    fn set_keys(&mut self, id: NodeId, key: NodePublic, disco: Option<DiscoPublic>) -> PeerUpdate {
        let (update, old) = match self.peers.get_mut(&id) {
            Some(p) if p.key == key && p.disco == disco => (PeerUpdate::Same, None),
            Some(p) => {
                let old = (p.key, p.disco);
                p.reset(key, disco);
                (PeerUpdate::Restarted, Some(old))
            }
            None => {
                self.peers.insert(id, PeerPaths::new(key, disco));
                (PeerUpdate::Same, None)
            }
        };
        if let Some((old_key, old_disco)) = old {
            if self.by_key.get(&old_key) == Some(&id) {
                self.by_key.remove(&old_key);
            }
            self.unlink_disco(id, old_disco);
        }
        self.by_key.insert(key, id);
        self.link_disco(id, disco);
        update
    }

    /// Takes a disco key that the peer itself told us by its tunnel.
    pub(crate) fn set_disco(&mut self, id: NodeId, disco: DiscoPublic) -> PeerUpdate {
        match self.key_of(id) {
            Some(key) if !disco.is_zero() => self.set_keys(id, key, Some(disco)),
            _ => PeerUpdate::Same,
        }
    }

    /// Forgets a peer.
    pub(crate) fn remove_peer(&mut self, id: NodeId) {
        if let Some(p) = self.peers.remove(&id) {
            if self.by_key.get(&p.key) == Some(&id) {
                self.by_key.remove(&p.key);
            }
            self.unlink_disco(id, p.disco);
            if let Some(at) = p.armed {
                self.timers.remove(&(at, id));
            }
        }
    }

    /// Where the next packet to a peer goes. `user` traffic keeps the paths alive.
    pub(crate) fn route(&mut self, id: NodeId, user: bool, ctx: &mut Ctx<'_>) -> Option<Route> {
        let now = ctx.now.mono;
        let p = self.peers.get_mut(&id)?;
        p.settle_best(now);
        let mut wake = false;
        if user {
            p.last_user = Some(now);
            p.last_write = Some(ctx.now.wall);
            self.last_user = Some(now);
            wake = p.heartbeat_at.is_none() && p.disco.is_some();
            if wake {
                p.heartbeat_at = Some(now + HEARTBEAT);
            }
        }
        let best = p.best_at(now);
        let trusted = best.is_some_and(|(_, trusted)| trusted);
        let route =
            Route { key: p.key, udp: best.map(|(addr, _)| addr), derp: p.relay().filter(|_| !trusted) };
        if wake {
            self.arm(id);
        }
        if !trusted {
            self.full_ping(id, true, ctx);
        }
        Some(route)
    }

    /// Pings every candidate that is due; then lets the peer ping us.
    fn full_ping(&mut self, id: NodeId, call: bool, ctx: &mut Ctx<'_>) {
        let Some(p) = self.peers.get_mut(&id).filter(|p| p.disco.is_some()) else {
            return;
        };
        let Some(due) = p.take_due_candidates(ctx.now.mono) else {
            return;
        };
        for addr in due {
            self.ping_path(id, Path::Direct(addr), None, ctx);
        }
        if call {
            self.call_me_maybe(id, ctx);
        }
    }

    /// The next packet to a peer without a trusted path looks for one at once, whenever it was last tried.
    pub(crate) fn search_again(&mut self, id: NodeId) {
        if let Some(p) = self.peers.get_mut(&id) {
            p.forget_pings();
        }
    }

    fn call_me_maybe(&mut self, id: NodeId, ctx: &mut Ctx<'_>) {
        let now = ctx.now.mono;
        let fresh = self.endpoints_at.is_some_and(|t| now < t + ENDPOINTS_FRESH);
        let Some(p) = self.peers.get_mut(&id) else {
            return;
        };
        if !fresh {
            p.cmm_waits = true;
            self.wants_netcheck = true;
            return;
        }
        p.cmm_waits = false;
        let Some(region) = p.relay() else {
            return;
        };
        let mine = self.endpoints.iter().take(MAX_ENDPOINTS).copied().collect();
        self.send(id, Path::Derp(region), &Message::CallMeMaybe(mine), ctx);
    }

    /// Takes our own endpoints after a netcheck and sends the call-me-maybes that waited for them.
    pub(crate) fn set_endpoints(&mut self, endpoints: Vec<SocketAddr>, ctx: &mut Ctx<'_>) {
        self.endpoints = endpoints;
        self.endpoints_at = Some(ctx.now.mono);
        let mut waiting: Vec<NodeId> =
            self.peers.iter().filter(|(_, p)| p.cmm_waits).map(|(id, _)| *id).collect();
        waiting.sort_unstable();
        for id in waiting {
            self.call_me_maybe(id, ctx);
        }
    }

    /// Whether fresh endpoints are wanted; asks once.
    pub(crate) const fn take_netcheck_wish(&mut self) -> bool {
        std::mem::replace(&mut self.wants_netcheck, false)
    }

    fn ping_path(&mut self, id: NodeId, to: Path, cli: Option<u64>, ctx: &mut Ctx<'_>) {
        let tx = ctx.rng.bytes();
        let ping = Message::Ping { tx, node_key: Some(self.node_public) };
        if self.send(id, to, &ping, ctx)
            && let Some(p) = self.peers.get_mut(&id)
        {
            p.note_sent(tx, SentPing { to, at: ctx.now.mono, cli });
            self.arm(id);
        }
    }

    fn send(&mut self, id: NodeId, to: Path, message: &Message, ctx: &mut Ctx<'_>) -> bool {
        let Some((key, disco)) = self.peers.get(&id).and_then(|p| Some((p.key, p.disco?))) else {
            return false;
        };
        let Some(entry) = self.by_disco.get_mut(&disco) else {
            return false;
        };
        let shared = entry.shared.get_or_insert_with(|| self.disco.shared(&disco));
        let datagram = disco::seal(&self.disco_public, shared, &ctx.rng.bytes(), message);
        ctx.out.send(to, key, Bytes::from(datagram), ctx.now);
        true
    }

    /// Registers the peer's next deadline.
    fn arm(&mut self, id: NodeId) {
        let Some(p) = self.peers.get_mut(&id) else {
            return;
        };
        let next = p.deadline();
        if next == p.armed {
            return;
        }
        if let Some(at) = p.armed {
            self.timers.remove(&(at, id));
        }
        if let Some(at) = next {
            self.timers.insert((at, id));
        }
        p.armed = next;
    }

    /// Notes by which region a peer reached us; answers go the same way.
    pub(crate) fn note_relay(&mut self, id: NodeId, region: RegionId) {
        if let Some(p) = self.peers.get_mut(&id) {
            p.reverse = Some(region);
        }
    }

    /// A peer is not at a region any more.
    pub(crate) fn peer_gone(&mut self, key: &NodePublic, region: RegionId) {
        let id = self.by_key(key);
        if let Some(p) = id.and_then(|id| self.peers.get_mut(&id))
            && p.reverse == Some(region)
        {
            p.reverse = None;
        }
    }

    /// A relay connection ended: no peer is reached by it before it is dialled again.
    pub(crate) fn relay_lost(&mut self, region: RegionId) {
        for p in self.peers.values_mut() {
            p.reverse = p.reverse.filter(|r| *r != region);
        }
    }

    /// The network changed: no path is trusted.
    pub(crate) fn distrust_all(&mut self) {
        self.endpoints_at = None;
        for p in self.peers.values_mut() {
            p.distrust();
        }
    }

    /// Handles a disco datagram; says why when it was dropped.
    pub(crate) fn handle_disco(
        &mut self,
        from: Path,
        relayed_by: Option<NodeId>,
        datagram: &[u8],
        ctx: &mut Ctx<'_>,
    ) -> Result<(), &'static str> {
        let sealed = Sealed::parse(datagram).ok_or("broken disco")?;
        let entry = self.by_disco.get_mut(&sealed.sender).ok_or("disco of a stranger")?;
        let shared = entry.shared.get_or_insert_with(|| self.disco.shared(&sealed.sender));
        let message = sealed.open(shared).ok_or("unreadable disco")?;
        let relayed_by = relayed_by.filter(|id| entry.nodes.contains(id));
        let nodes = entry.nodes.clone();
        match message {
            Message::Ping { tx, node_key } => {
                let by_key = node_key.and_then(|k| self.by_key(&k)).filter(|id| nodes.contains(id));
                let only = nodes.first().copied().filter(|_| nodes.len() == 1);
                let id = relayed_by.or(by_key).or(only).ok_or("ambiguous disco ping")?;
                self.handle_ping(id, tx, from, ctx);
                Ok(())
            }
            Message::Pong { tx, src } => {
                tracing::trace!(%src, "a pong says how the peer sees us");
                self.handle_pong(&nodes, &tx, ctx)
            }
            Message::CallMeMaybe(endpoints) => {
                // Only by a relay that vouches for the sender (dataplane.md 4.1).
                let id = relayed_by.ok_or("call-me-maybe off the relay")?;
                let Some(p) = self.peers.get_mut(&id) else {
                    return Err("disco of a stranger");
                };
                if !p.set_call_me_maybe(&endpoints, ctx.now.mono) {
                    return Err("call-me-maybe too soon");
                }
                self.full_ping(id, false, ctx);
                Ok(())
            }
        }
    }

    fn handle_ping(&mut self, id: NodeId, tx: disco::TxId, from: Path, ctx: &mut Ctx<'_>) {
        let Some(p) = self.peers.get_mut(&id) else {
            return;
        };
        if !p.note_ping(tx, from, ctx.now.mono) {
            return;
        }
        let src = match from {
            Path::Direct(addr) => addr,
            // The official client's fake address of a relay region.
            Path::Derp(region) => {
                SocketAddr::from(([127, 3, 3, 40], u16::try_from(region.0).unwrap_or_default()))
            }
        };
        let doubtful = p.doubt_best(from, ctx.now.mono);
        self.send(id, from, &Message::Pong { tx, src }, ctx);
        for addr in doubtful.into_iter().flatten() {
            self.ping_path(id, Path::Direct(addr), None, ctx);
        }
        if matches!(from, Path::Direct(_)) {
            self.heard.push(id);
        }
        let back = self.peers.get_mut(&id).and_then(|p| p.ping_back(from, ctx.now.mono));
        if let Some(addr) = back {
            self.ping_path(id, Path::Direct(addr), None, ctx);
        }
    }

    fn handle_pong(
        &mut self,
        nodes: &[NodeId],
        tx: &disco::TxId,
        ctx: &mut Ctx<'_>,
    ) -> Result<(), &'static str> {
        let now = ctx.now.mono;
        for id in nodes {
            let Some(p) = self.peers.get_mut(id) else {
                continue;
            };
            let before = p.best.map(|b| b.addr);
            let Some(ping) = p.take_pong(tx, now) else {
                continue;
            };
            let best = p.best.map(|b| b.addr);
            if best != before {
                self.opened.push(*id);
                tracing::debug!(peer = %p.key.short(), addr = ?best, "a better direct path");
            }
            self.arm(*id);
            if let Some(cli) = ping.cli.and_then(|n| Some((n, self.cli.get_mut(&n)?))) {
                cli.1.answered = true;
                let took = now.saturating_duration_since(ping.at);
                ctx.out.event(EngineEvent::Ping(PingOutcome { id: cli.0, result: Ok((ping.to, took)) }));
            }
            return Ok(());
        }
        Err("pong without ping")
    }

    /// Pings a peer for the command line: the trusted path, or every candidate and the relay.
    pub(crate) fn ping(&mut self, id: NodeId, ctx: &mut Ctx<'_>) -> Result<u64, String> {
        let now = ctx.now.mono;
        let Some(p) = self.peers.get(&id) else {
            return Err("the peer is gone from the netmap".to_owned());
        };
        if p.disco.is_none() {
            return Err("the peer has no disco key: it is not connected or too old".to_owned());
        }
        if self.cli.len() >= MAX_CLI {
            return Err("too many pings at once: wait for the ones under way".to_owned());
        }
        let (best, relay, candidates) = (p.best_at(now), p.relay(), p.candidates());
        let cli = self.next_cli;
        self.next_cli += 1;
        self.cli.insert(cli, CliPing { deadline: now + PING_TIMEOUT, answered: false });
        if let Some((addr, true)) = best {
            self.ping_path(id, Path::Direct(addr), Some(cli), ctx);
        } else {
            if let Some(region) = relay {
                self.ping_path(id, Path::Derp(region), Some(cli), ctx);
            }
            for addr in &candidates {
                self.ping_path(id, Path::Direct(*addr), Some(cli), ctx);
            }
            if !candidates.is_empty() {
                self.call_me_maybe(id, ctx);
            }
        }
        // A ping is traffic: the path it finds is kept for the next one.
        if let Some(p) = self.peers.get_mut(&id) {
            p.last_user = Some(now);
            self.last_user = Some(now);
            p.heartbeat_at.get_or_insert(now + HEARTBEAT);
            self.arm(id);
        }
        Ok(cli)
    }

    /// When something is due.
    pub(crate) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let peer = self.timers.first().map(|(at, _)| (*at, "disco"));
        let cli = self.cli.values().map(|c| (c.deadline, "ping")).min();
        peer.into_iter().chain(cli).min()
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now.mono;
        while let Some((at, id)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, id));
            if let Some(p) = self.peers.get_mut(&id) {
                p.armed = None;
                p.expire_pings(now);
            }
            self.heartbeat(id, ctx);
            self.arm(id);
        }
        let late: Vec<u64> = self.cli.iter().filter(|(_, c)| c.deadline <= now).map(|(id, _)| *id).collect();
        for id in late {
            if self.cli.remove(&id).is_some_and(|c| !c.answered) {
                ctx.out.event(EngineEvent::Ping(PingOutcome {
                    id,
                    result: Err("no answer within 5 s".to_owned()),
                }));
            }
        }
    }

    fn heartbeat(&mut self, id: NodeId, ctx: &mut Ctx<'_>) {
        let now = ctx.now.mono;
        let Some(p) = self.peers.get_mut(&id) else {
            return;
        };
        if p.heartbeat_at.is_none_or(|t| now < t) {
            return;
        }
        if !p.active(now) {
            // Nothing keeps an idle path warm.
            p.heartbeat_at = None;
            return;
        }
        p.heartbeat_at = Some(now + HEARTBEAT);
        let best = p.best.map(|b| b.addr);
        let full = p.wants_full_ping(now);
        if let Some(addr) = best {
            self.ping_path(id, Path::Direct(addr), None, ctx);
        }
        if full {
            self.full_ping(id, true, ctx);
        }
    }

    /// Whether any peer had user traffic within the session time.
    pub(crate) fn active(&self, now: Instant) -> bool {
        self.last_user.is_some_and(|t| now < t + SESSION)
    }

    /// What `status` shows: direct address, relay, last write and activity.
    pub(crate) fn view(
        &self,
        id: NodeId,
        now: Now,
    ) -> (Option<SocketAddr>, Option<RegionId>, Option<DateTime<Utc>>, bool) {
        let Some(p) = self.peers.get(&id) else {
            return (None, None, None, false);
        };
        let direct = p.best_at(now.mono).filter(|(_, trusted)| *trusted);
        (direct.map(|d| d.0), p.home, p.last_write, p.active(now.mono))
    }
}

/// The home region of a node, from the new field or the old.
pub(crate) fn home_of(node: &Node) -> Option<RegionId> {
    let legacy = || {
        let port = node.legacy_derp.strip_prefix("127.3.3.40:")?;
        port.parse::<RegionId>().ok()
    };
    Some(node.home_derp).filter(|r| r.0 != 0).or_else(legacy).filter(|r| r.0 != 0)
}
