//! The owner of the engine: one task that reads sockets, TUN and relays, feeds the engine and does
//! what it says. Everybody else talks to it by bounded commands and reads its news from a watch
//! channel, in which only the latest counts.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::derp::{DerpSet, RegionNews, Tagged};
use super::dns_forward;
use super::engine::{
    Engine, EngineConfig, EngineEvent, EngineStatus, IoStats, OsConfig, Output, PingOutcome, Through,
    Underlay,
};
use super::tun::Tun;
use super::udp::Udp;
use crate::clock::{Now, Rng};
use crate::derp::client::{self, DerpEvent, DialOptions};
use crate::derp::frame::GONE_NOT_HERE;
use crate::keys::{NodeId, RegionId};
use crate::wire::{DerpMap, EndpointType, MapResponse, NetInfo, Node, UserProfile};

/// Commands waiting at most; callers wait.
const COMMANDS: usize = 64;
/// Relay events waiting at most; the relay readers wait.
const RELAY_EVENTS: usize = 256;
/// DNS queries under way at most; more are refused at once.
const MAX_DNS: usize = 256;
/// Reads of one source before the others get their turn.
const TURN: usize = 16;
/// Pings that wait for an answer at most.
const MAX_PINGS: usize = 64;

/// What the owner is told.
#[derive(Debug)]
pub enum Command {
    /// A new identity (or none): everything starts anew, with this netmap when there is one.
    Configure(Option<Box<(EngineConfig, Option<MapResponse>)>>),
    /// A message of the map stream.
    Map(Box<MapResponse>, bool),
    /// Preferences that matter to packets: routes, DNS, shields.
    Prefs(bool, bool, bool),
    /// The underlay changed.
    Underlay(Underlay),
    /// Ping a tailnet address once, beside the tunnel (disco) or through it.
    Ping(IpAddr, Option<Through>, oneshot::Sender<Result<PingOutcome, String>>),
    /// Everything `status` shows.
    Status(oneshot::Sender<EngineStatus>),
    /// Whose address is it.
    Whois(IpAddr, oneshot::Sender<Option<(Node, Option<UserProfile>)>>),
    /// The whole netmap, for keeping.
    Netmap(oneshot::Sender<Option<MapResponse>>),
    /// Measure the underlay now.
    Netcheck,
}

/// The latest of everything the owner has to tell.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct News {
    /// Counts identities; news of an older one are stale.
    pub generation: u64,
    /// Home region.
    pub home: Option<RegionId>,
    /// Our endpoints.
    pub endpoints: Vec<(SocketAddr, EndpointType)>,
    /// The last netcheck.
    pub net_info: Option<NetInfo>,
    /// Counts netchecks.
    pub netchecks: u64,
    /// How the OS should look.
    pub os: OsConfig,
    /// Our key expired.
    pub expired: bool,
    /// Connected relay regions.
    pub relays: Vec<RegionId>,
    /// The relay map in use.
    pub derp_map: DerpMap,
    /// What relays say of their health.
    pub relay_health: BTreeMap<RegionId, String>,
    /// A packet came from a peer directly or by relay since the identity was set.
    pub heard: bool,
}

/// A way to the owner.
#[derive(Debug, Clone)]
pub struct CoreHandle {
    commands: mpsc::Sender<Command>,
    news: watch::Receiver<News>,
}

/// The owner is gone, which happens only while the daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node is shutting down")]
pub struct CoreGone;

impl CoreHandle {
    /// A handle whose owner is gone, for tests of what stands above it.
    #[cfg(test)]
    pub(crate) fn gone() -> Self {
        Self { commands: mpsc::channel(1).0, news: watch::channel(News::default()).1 }
    }

    /// Gives a command; waits while the queue is full.
    ///
    /// # Errors
    /// While the daemon ends.
    pub async fn tell(&self, command: Command) -> Result<(), CoreGone> {
        self.commands.send(command).await.map_err(|_| CoreGone)
    }

    /// Gives a command and waits for its answer.
    ///
    /// # Errors
    /// While the daemon ends.
    pub async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, CoreGone> {
        let (tx, rx) = oneshot::channel();
        self.tell(command(tx)).await?;
        rx.await.map_err(|_| CoreGone)
    }

    /// The news.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<News> {
        self.news.clone()
    }
}

/// What the owner is made from.
pub struct CoreParts {
    /// The sockets.
    pub udp: Udp,
    /// The device.
    pub tun: Tun,
    /// How relays are dialled.
    pub options: DialOptions,
    /// Where the host's own resolvers are read.
    pub resolv: super::os::resolv::ResolvConf,
    /// Randomness.
    pub rng: Rng,
}

impl std::fmt::Debug for CoreParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CoreParts").field("udp", &self.udp).field("tun", &self.tun).finish_non_exhaustive()
    }
}

enum Job {
    Dns(u64, Option<Bytes>),
    Addrs(u64, BTreeMap<String, Vec<IpAddr>>),
    Latency(RegionId, Option<Duration>),
}

struct Core {
    udp: Udp,
    tun: Tun,
    options: DialOptions,
    resolv: super::os::resolv::ResolvConf,
    rng: Rng,
    engine: Option<Engine>,
    relays: Option<DerpSet>,
    relay_tx: mpsc::Sender<Tagged>,
    jobs: JoinSet<Job>,
    news: watch::Sender<News>,
    underlay: Option<Underlay>,
    control_up: bool,
    pings: BTreeMap<u64, oneshot::Sender<Result<PingOutcome, String>>>,
    generation: u64,
    udp_out: Vec<(SocketAddr, Bytes)>,
    tun_out: Vec<Bytes>,
}

/// Starts the owner in `tasks`; it ends when every handle is dropped.
pub fn start(parts: CoreParts, tasks: &mut JoinSet<()>) -> CoreHandle {
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let (relay_tx, relay_rx) = mpsc::channel(RELAY_EVENTS);
    let (news_tx, news) = watch::channel(News::default());
    let core = Core {
        udp: parts.udp,
        tun: parts.tun,
        options: parts.options,
        resolv: parts.resolv,
        rng: parts.rng,
        engine: None,
        relays: None,
        relay_tx,
        jobs: JoinSet::new(),
        news: news_tx,
        underlay: None,
        control_up: false,
        pings: BTreeMap::new(),
        generation: 0,
        udp_out: Vec::new(),
        tun_out: Vec::new(),
    };
    tasks.spawn(core.run(inbox, relay_rx));
    CoreHandle { commands, news }
}

impl Core {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>, mut relays: mpsc::Receiver<Tagged>) {
        loop {
            let due = self.engine.as_ref().and_then(Engine::poll_timeout);
            let sleep = async {
                match due {
                    Some((at, _)) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.udp.readable() => self.read_udp(),
                ready = self.tun.readable() => {
                    if let Err(e) = ready.and_then(|()| self.read_tun()) {
                        tracing::error!("the TUN interface is gone: {e}");
                        return;
                    }
                }
                Some(tagged) = relays.recv() => self.relay(tagged),
                Some(done) = self.jobs.join_next(), if !self.jobs.is_empty() => {
                    if let Ok(job) = done {
                        self.job(job);
                    }
                }
                command = inbox.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                () = sleep => {
                    if let Some(engine) = &mut self.engine {
                        engine.handle_timeout(Now::read());
                    }
                }
            }
            self.drain().await;
        }
    }

    fn read_udp(&mut self) {
        let now = Now::read();
        let Some(engine) = &mut self.engine else {
            self.udp.recv(|_, _| {});
            return;
        };
        for _ in 0..TURN {
            if !self.udp.recv(|from, bytes| engine.feed_udp(from, bytes, now)) {
                break;
            }
        }
        engine.end_batch(now);
    }

    fn read_tun(&mut self) -> std::io::Result<()> {
        let now = Now::read();
        let mut result = Ok(());
        for _ in 0..TURN {
            let engine = &mut self.engine;
            let more = self.tun.recv(|packet| {
                if let Some(engine) = engine {
                    engine.feed_tun(packet, now);
                }
            });
            match more {
                Ok(true) => {}
                Ok(false) => break,
                Err(e) => {
                    result = Err(e);
                    break;
                }
            }
        }
        if let Some(engine) = &mut self.engine {
            engine.end_batch(now);
        }
        result
    }

    fn relay(&mut self, (region, generation, news): Tagged) {
        let (Some(engine), Some(relays)) = (&mut self.engine, &mut self.relays) else {
            return;
        };
        if !relays.note(region, generation, &news) {
            return;
        }
        let now = Now::read();
        match news {
            RegionNews::Up(_) => {
                engine.handle_underlay(Underlay::DerpConnected(region), now);
                self.tell_relays();
            }
            RegionNews::Down(_) => {
                engine.handle_underlay(Underlay::DerpLost(region), now);
                self.tell_relays();
            }
            RegionNews::Event(DerpEvent::Packet { from, bytes }) => {
                engine.handle_derp(region, from, &bytes, now);
            }
            RegionNews::Event(DerpEvent::PeerGone { key, reason }) => {
                let undelivered = reason == GONE_NOT_HERE;
                let gone = Underlay::DerpPeerGone { region, key, undelivered };
                engine.handle_underlay(gone, now);
            }
            RegionNews::Event(DerpEvent::Health(text)) => {
                self.news.send_modify(|n| {
                    if text.is_empty() {
                        n.relay_health.remove(&region);
                    } else {
                        n.relay_health.insert(region, text);
                    }
                });
            }
            RegionNews::Event(DerpEvent::Restarting) => {
                tracing::info!("relay region {region} restarts");
            }
        }
    }

    fn tell_relays(&self) {
        let connected = self.relays.as_ref().map(DerpSet::connected);
        self.news.send_modify(|n| n.relays = connected.unwrap_or_default());
    }

    fn job(&mut self, job: Job) {
        let Some(engine) = &mut self.engine else {
            return;
        };
        let now = Now::read();
        match job {
            Job::Dns(id, answer) => engine.handle_dns_answer(id, answer.as_deref(), now),
            Job::Addrs(generation, addrs) if generation == self.generation => {
                engine.handle_underlay(Underlay::DerpAddrs(addrs), now);
            }
            Job::Latency(region, Some(round_trip)) => {
                engine.handle_underlay(Underlay::HttpsLatency(region, round_trip), now);
            }
            Job::Addrs(..) | Job::Latency(_, None) => {}
        }
    }

    fn command(&mut self, command: Command) {
        let now = Now::read();
        match command {
            Command::Configure(config) => self.configure(config, now),
            Command::Map(map, fresh) => self.map(&map, fresh, now),
            Command::Prefs(routes, dns, shields) => {
                if let Some(engine) = &mut self.engine {
                    engine.set_prefs(routes, dns, shields, now);
                }
            }
            Command::Underlay(news) => self.underlay(news, now),
            Command::Ping(ip, through, reply) => self.ping(ip, through, reply, now),
            Command::Status(reply) => {
                let mut status = self.engine.as_ref().map(|e| e.status(now)).unwrap_or_default();
                status.io = IoStats { tun: self.tun.stats(), udp: self.udp.stats() };
                let _ = reply.send(status);
            }
            Command::Whois(ip, reply) => {
                let _ = reply.send(self.engine.as_ref().and_then(|e| e.whois(ip)));
            }
            Command::Netmap(reply) => {
                let _ = reply.send(self.engine.as_ref().and_then(Engine::netmap));
            }
            Command::Netcheck => {
                if let Some(engine) = &mut self.engine {
                    engine.netcheck(now);
                }
            }
        }
    }

    fn configure(&mut self, config: Option<Box<(EngineConfig, Option<MapResponse>)>>, now: Now) {
        self.generation += 1;
        self.pings.clear();
        // What is done but not yet read must not answer the next engine's questions.
        self.jobs = JoinSet::new();
        self.relays = None;
        self.engine = None;
        let generation = self.generation;
        self.news.send_replace(News { generation, ..News::default() });
        let Some((config, netmap)) = config.map(|c| *c) else {
            return;
        };
        self.relays = Some(DerpSet::new(
            config.node_key.clone(),
            self.options.clone(),
            self.rng.fork(),
            self.relay_tx.clone(),
        ));
        let mut engine = Engine::new(config, self.rng.fork(), now);
        if let Some(underlay) = &self.underlay {
            engine.handle_underlay(underlay.clone(), now);
        }
        engine.handle_underlay(Underlay::ControlUp(self.control_up), now);
        self.engine = Some(engine);
        if let Some(netmap) = netmap {
            self.map(&netmap, true, now);
        }
    }

    fn map(&mut self, map: &MapResponse, fresh: bool, now: Now) {
        let Some(engine) = &mut self.engine else {
            return;
        };
        engine.handle_map(map, fresh, now);
        let (Some(derp_map), Some(relays)) = (&map.derp_map, &mut self.relays) else {
            return;
        };
        if relays.map() == derp_map {
            return;
        }
        for region in relays.set_map(derp_map.clone()) {
            engine.handle_underlay(Underlay::DerpLost(region), now);
        }
        self.news.send_modify(|n| n.derp_map = derp_map.clone());
        self.tell_relays();
        self.resolve_relays();
    }

    /// Looks up the relays' names; the engine knows only addresses.
    fn resolve_relays(&mut self) {
        let Some(relays) = &self.relays else {
            return;
        };
        let map = relays.map().clone();
        let generation = self.generation;
        self.jobs.spawn(async move { Job::Addrs(generation, dns_forward::resolve_relays(&map).await) });
    }

    fn underlay(&mut self, news: Underlay, now: Now) {
        let major = matches!(news, Underlay::Interfaces { major: true, .. });
        if let Underlay::Interfaces { .. } = &news {
            let mut kept = news.clone();
            if let Underlay::Interfaces { major, .. } = &mut kept {
                *major = false;
            }
            self.underlay = Some(kept);
        }
        if let Underlay::ControlUp(up) = news {
            self.control_up = up;
        }
        let Some(engine) = &mut self.engine else {
            return;
        };
        engine.handle_underlay(news, now);
        if !major {
            return;
        }
        for region in self.relays.iter_mut().flat_map(DerpSet::reconnect) {
            engine.handle_underlay(Underlay::DerpLost(region), now);
        }
        self.tell_relays();
        self.resolve_relays();
    }

    fn ping(
        &mut self,
        ip: IpAddr,
        through: Option<Through>,
        reply: oneshot::Sender<Result<PingOutcome, String>>,
        now: Now,
    ) {
        self.pings.retain(|_, waiting| !waiting.is_closed());
        let Some(engine) = &mut self.engine else {
            let _ = reply.send(Err("the node is not up".to_owned()));
            return;
        };
        if self.pings.len() >= MAX_PINGS {
            let _ = reply.send(Err("too many pings are under way".to_owned()));
            return;
        }
        let ping = match through {
            None => engine.ping(ip, now),
            Some(through) => engine.ping_through(ip, through, now),
        };
        match ping {
            Ok(id) => {
                self.pings.insert(id, reply);
            }
            Err(e) => {
                let _ = reply.send(Err(e));
            }
        }
    }

    /// Does everything the engine asks for, in order, datagrams and packets in batches.
    async fn drain(&mut self) {
        while let Some(output) = self.engine.as_mut().and_then(Engine::poll_output) {
            match output {
                Output::Udp { to, bytes } => self.udp_out.push((to, bytes)),
                Output::Tun(packet) => self.tun_out.push(packet),
                Output::Derp { region, to, bytes } => {
                    if let Some(relays) = &mut self.relays {
                        relays.send(region, to, bytes);
                    }
                }
                Output::DnsForward { id, resolvers, query, tcp } => self.forward(id, resolvers, query, tcp),
                Output::Event(event) => self.event(event),
            }
            if self.udp_out.len() >= 256 || self.tun_out.len() >= 256 {
                self.flush().await;
            }
        }
        self.flush().await;
    }

    async fn flush(&mut self) {
        if !self.udp_out.is_empty() {
            self.udp.send(&self.udp_out).await;
            self.udp_out.clear();
        }
        if !self.tun_out.is_empty() {
            self.tun.send(&self.tun_out).await;
            self.tun_out.clear();
            if !self.news.borrow().heard {
                self.news.send_modify(|n| n.heard = true);
            }
        }
    }

    fn forward(&mut self, id: u64, resolvers: Vec<SocketAddr>, query: Bytes, tcp: bool) {
        if self.jobs.len() >= MAX_DNS {
            if let Some(engine) = &mut self.engine {
                engine.handle_dns_answer(id, None, Now::read());
            }
            return;
        }
        let resolvers = if resolvers.is_empty() {
            let own = self.resolv.host_resolvers();
            own.into_iter().map(|ip| SocketAddr::new(ip, 53)).collect()
        } else {
            resolvers
        };
        let (mark, wire_id) = (self.options.mark, self.rng.bytes());
        self.jobs
            .spawn(async move { Job::Dns(id, dns_forward::ask(resolvers, query, wire_id, tcp, mark).await) });
    }

    /// Measures regions by HTTPS, each by its first node that answers.
    fn measure(&mut self, regions: &[RegionId]) {
        let Some(relays) = &self.relays else {
            return;
        };
        for id in regions {
            let Some(region) = relays.map().regions.get(id).cloned() else {
                continue;
            };
            let (id, options) = (*id, self.options.clone());
            self.jobs.spawn(async move {
                for node in region.nodes.iter().filter(|n| !n.stun_only) {
                    match client::latency(node, &options).await {
                        Ok(round_trip) => return Job::Latency(id, Some(round_trip)),
                        Err(e) => tracing::debug!("latency of relay {}: {e}", node.name),
                    }
                }
                Job::Latency(id, None)
            });
        }
    }

    fn event(&mut self, event: EngineEvent) {
        match event {
            EngineEvent::HomeDerp(region) => {
                if let Some(relays) = &mut self.relays {
                    relays.set_home(region);
                }
                self.news.send_modify(|n| n.home = Some(region));
            }
            EngineEvent::Endpoints(endpoints) => {
                self.news.send_modify(|n| n.endpoints = endpoints);
            }
            EngineEvent::NetInfo(info) => self.news.send_modify(|n| {
                n.net_info = Some(*info);
                n.netchecks += 1;
            }),
            EngineEvent::Ping(outcome) => {
                if let Some(reply) = self.pings.remove(&outcome.id) {
                    let _ = reply.send(Ok(outcome));
                }
            }
            EngineEvent::OsConfig => {
                let os = self.engine.as_ref().map(Engine::os_config);
                self.news.send_modify(|n| n.os = os.unwrap_or_default());
            }
            EngineEvent::DerpIdle(region) => {
                if self.relays.as_mut().is_some_and(|r| r.idle(region)) {
                    if let Some(engine) = &mut self.engine {
                        engine.handle_underlay(Underlay::DerpLost(region), Now::read());
                    }
                    self.tell_relays();
                }
            }
            EngineEvent::NeedHttpsLatency(regions) => self.measure(&regions),
            EngineEvent::Expired => self.news.send_modify(|n| n.expired = true),
        }
    }
}

/// How long a ping may wait for its answer.
pub const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Peers that are in use now.
#[must_use]
pub fn active_peers(status: &EngineStatus) -> Vec<NodeId> {
    status.peers.iter().filter(|(_, p)| p.active).map(|(id, _)| *id).collect()
}
