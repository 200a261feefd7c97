//! Measures the underlay: STUN to every relay node, what addresses we have, which region is nearest. Pure:
//! sends probes through the outbox, takes answers and times; gives a report, our endpoints and the home
//! region (dataplane.md 1.9, 3).

mod home;
mod report;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::home::{History, Sample};
pub(crate) use self::report::Report;
use super::engine::EngineEvent;
use super::outbox::Ctx;
use crate::keys::RegionId;
use crate::stun::message;
use crate::wire::{DerpMap, EndpointType};

/// The STUN phase.
const STUN_TIME: Duration = Duration::from_secs(3);
/// Without any answer for this long, relays are asked by HTTPS.
const HTTPS_AFTER: Duration = Duration::from_secs(1);
/// And waited for that long.
const OVERALL: Duration = Duration::from_secs(5);
/// Retransmissions of a first measurement, and of a later one.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY: Duration = Duration::from_millis(200);
const TRIES: u32 = 3;
/// A full measurement of all regions at least this often.
const FULL_EVERY: Duration = Duration::from_secs(300);
/// Other families get this long after a region answered by one.
const OTHER_FAMILY: Duration = Duration::from_millis(250);
/// STUN addresses are kept as endpoints although a later report lacks them.
const REMEMBER: Duration = Duration::from_secs(300);
/// Regions and nodes taken from control (RELIABILITY.md row 103).
const MAX_REGIONS: usize = 500;
const MAX_NODES: usize = 20;
/// Regions of an incremental measurement, beside the home.
const FASTEST: usize = 3;
/// Own endpoints told to control.
const MAX_ENDPOINTS: usize = 64;

#[derive(Debug, Clone)]
struct Target {
    name: String,
    host: String,
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
    /// The map gives literals or `none`: names are not looked up.
    fixed: (bool, bool),
    port: Option<u16>,
}

#[derive(Debug, Clone)]
struct Region {
    targets: Vec<Target>,
    measure: bool,
    avoid: bool,
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    region: RegionId,
    to: SocketAddr,
    sent: Instant,
}

#[derive(Debug)]
struct Running {
    started: Instant,
    full: bool,
    /// Probes to send, soonest last.
    plan: Vec<(Instant, RegionId, SocketAddr)>,
    pending: HashMap<[u8; 12], Probe>,
    wanted: BTreeSet<(RegionId, bool)>,
    report: Report,
    answered: Option<Instant>,
    https_asked: Option<BTreeSet<RegionId>>,
}

/// What a finished measurement found.
#[derive(Debug)]
pub(crate) struct Finished {
    /// The report.
    pub(crate) report: Report,
    /// Our endpoints in order of preference.
    pub(crate) endpoints: Vec<(SocketAddr, EndpointType)>,
}

/// The measurer.
#[derive(Debug)]
pub(crate) struct Netcheck {
    regions: BTreeMap<RegionId, Region>,
    resolved: BTreeMap<String, Vec<IpAddr>>,
    scores: BTreeMap<RegionId, f64>,
    interfaces: Vec<IpAddr>,
    ports: (Option<u16>, Option<u16>),
    own: Vec<IpAddr>,
    running: Option<Running>,
    history: History,
    last_full: Option<Instant>,
    last_had_udp: bool,
    seen: BTreeMap<SocketAddr, Instant>,
    home: Option<RegionId>,
    next_at: Option<Instant>,
    again: bool,
    frames: VecDeque<(RegionId, Instant)>,
    /// Picks the same region each time when nothing can be measured.
    fallback: u64,
}

impl Netcheck {
    /// Knows nothing yet. `fallback` is random and picks a home when nothing can be measured.
    pub(crate) fn new(fallback: u64) -> Self {
        Self {
            regions: BTreeMap::new(),
            resolved: BTreeMap::new(),
            scores: BTreeMap::new(),
            interfaces: Vec::new(),
            ports: (None, None),
            own: Vec::new(),
            running: None,
            history: History::default(),
            last_full: None,
            last_had_udp: false,
            seen: BTreeMap::new(),
            home: None,
            next_at: None,
            again: false,
            frames: VecDeque::new(),
            fallback,
        }
    }

    /// The home region.
    pub(crate) const fn home(&self) -> Option<RegionId> {
        self.home
    }

    /// Takes the relays of the netmap.
    pub(crate) fn set_map(&mut self, map: &DerpMap) {
        self.regions.clear();
        for (id, region) in map.regions.iter().take(MAX_REGIONS) {
            let nodes = region.nodes.iter().take(MAX_NODES);
            let targets = nodes.map(|n| self.target(n)).collect();
            self.regions
                .insert(*id, Region { targets, measure: !region.no_measure_no_home, avoid: region.avoid });
        }
        self.scores = map.home_params.as_ref().map(|h| h.region_score.clone()).unwrap_or_default();
        if self.home.is_some_and(|h| !self.regions.contains_key(&h)) {
            self.home = None;
        }
    }

    fn target(&self, node: &crate::wire::DerpNode) -> Target {
        let literal = |text: &str| text.parse::<IpAddr>().ok();
        let host = literal(node.host());
        let pick = |field: &str, v4: bool| {
            literal(field).or_else(|| host.filter(|_| field.is_empty())).filter(|a| a.is_ipv4() == v4)
        };
        let (mut v4, mut v6) = (pick(&node.ipv4, true), pick(&node.ipv6, false));
        let mut fixed = (!node.ipv4.is_empty() || host.is_some(), !node.ipv6.is_empty() || host.is_some());
        if let Some(test) = literal(&node.stun_test_ip) {
            v4 = Some(test).filter(IpAddr::is_ipv4);
            v6 = Some(test).filter(IpAddr::is_ipv6);
            fixed = (true, true);
        }
        Target {
            name: node.name.clone(),
            host: node.host().to_owned(),
            v4,
            v6,
            fixed,
            port: match node.stun_port {
                0 => Some(3478),
                n => u16::try_from(n).ok(),
            },
        }
    }

    /// Takes resolved addresses of relay nodes; true when one of them was missing before.
    pub(crate) fn set_resolved(&mut self, addrs: BTreeMap<String, Vec<IpAddr>>) -> bool {
        let new = addrs.iter().any(|(name, list)| !list.is_empty() && !self.resolved.contains_key(name));
        self.resolved.extend(addrs);
        while self.resolved.len() > MAX_REGIONS * MAX_NODES {
            self.resolved.pop_first();
        }
        new
    }

    /// Takes the interfaces and bound ports; false when they are as before.
    pub(crate) fn set_interfaces(
        &mut self,
        mut addrs: Vec<IpAddr>,
        v4: Option<u16>,
        v6: Option<u16>,
    ) -> bool {
        addrs.truncate(MAX_ENDPOINTS);
        let changed = self.interfaces != addrs || self.ports != (v4, v6);
        self.interfaces = addrs;
        self.ports = (v4, v6);
        changed
    }

    /// Our tailnet addresses, which are never endpoints.
    pub(crate) fn set_own(&mut self, own: Vec<IpAddr>) {
        self.own = own;
    }

    /// The network is another: addresses seen before mean nothing.
    pub(crate) fn forget_network(&mut self) {
        self.seen.clear();
        self.running = None;
        self.last_full = None;
    }

    /// Notes that a region is alive: a frame came by it.
    pub(crate) fn note_frame(&mut self, region: RegionId, now: Instant) {
        match self.frames.iter_mut().find(|(r, _)| *r == region) {
            Some(entry) => entry.1 = now,
            None => {
                if self.frames.len() >= 16 {
                    self.frames.pop_front();
                }
                self.frames.push_back((region, now));
            }
        }
    }

    fn addr_of(&self, t: &Target, v4: bool) -> Option<SocketAddr> {
        let port = t.port?;
        let (known, fixed) = if v4 { (t.v4, t.fixed.0) } else { (t.v6, t.fixed.1) };
        let looked_up = || {
            let list = self.resolved.get(&t.name).or_else(|| self.resolved.get(&t.host))?;
            list.iter().copied().find(|a| a.is_ipv4() == v4)
        };
        let ip = known.or_else(|| if fixed { None } else { looked_up() })?;
        Some(SocketAddr::new(ip, port))
    }

    /// Starts a measurement. One under way goes on, and another follows it when `force` is set.
    pub(crate) fn start(&mut self, force: bool, ctx: &mut Ctx<'_>) {
        if let Some(run) = &self.running {
            // One that found nothing to probe is worth nothing once there is something.
            if !run.wanted.is_empty() || !run.pending.is_empty() {
                self.again |= force;
                return;
            }
        }
        let now = ctx.now.mono;
        self.next_at = None;
        let full = force || !self.last_had_udp || self.last_full.is_none_or(|t| now >= t + FULL_EVERY);
        let has_v6 = self.interfaces.iter().any(|a| matches!(a, IpAddr::V6(a) if !a.is_unicast_link_local()));
        let families: &[bool] = if has_v6 { &[true, false] } else { &[true] };
        let chosen = self.history.fastest(FASTEST);
        let retry = if self.last_full.is_none() { RETRY_FIRST } else { RETRY };
        let mut plan = Vec::new();
        let mut wanted = BTreeSet::new();
        for (id, region) in &self.regions {
            let skip = !full && !chosen.contains(id) && self.home != Some(*id);
            if !region.measure || skip {
                continue;
            }
            for &v4 in families {
                let addrs: Vec<SocketAddr> =
                    region.targets.iter().filter_map(|t| self.addr_of(t, v4)).collect();
                for (n, addr) in (0..TRIES).zip(addrs.iter().cycle()) {
                    wanted.insert((*id, v4));
                    plan.push((now + retry * n, *id, *addr));
                }
            }
        }
        plan.sort_by(|a, b| b.cmp(a));
        self.running = Some(Running {
            started: now,
            full,
            plan,
            pending: HashMap::new(),
            wanted,
            report: Report::default(),
            answered: None,
            https_asked: None,
        });
        self.handle_probes(ctx);
    }

    fn handle_probes(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now.mono;
        let Some(run) = &mut self.running else {
            return;
        };
        while let Some((at, region, to)) = run.plan.last().copied() {
            if at > now {
                break;
            }
            run.plan.pop();
            // A retry adds nothing once the region answered by this family.
            if !run.wanted.contains(&(region, to.is_ipv4())) {
                continue;
            }
            let tx: [u8; 12] = ctx.rng.bytes();
            run.pending.insert(tx, Probe { region, to, sent: now });
            ctx.out.udp(to, Bytes::from(message::request(tx)));
        }
    }

    /// Handles a STUN answer; false when it answers nothing of ours.
    pub(crate) fn handle_stun(&mut self, from: SocketAddr, bytes: &[u8], now: Instant) -> bool {
        let Some((tx, seen)) = message::parse_response(bytes) else {
            return false;
        };
        let Some(run) = &mut self.running else {
            return false;
        };
        if run.pending.get(&tx).is_none_or(|p| p.to != from) {
            return false;
        }
        let Some(probe) = run.pending.remove(&tx) else {
            return false;
        };
        let latency = now.saturating_duration_since(probe.sent);
        run.report.note_stun(probe.region, from, seen, latency);
        run.wanted.remove(&(probe.region, from.is_ipv4()));
        run.answered.get_or_insert(now);
        self.seen.insert(seen, now);
        true
    }

    /// Takes a round trip by HTTPS.
    pub(crate) fn note_https(&mut self, region: RegionId, latency: Duration) {
        if let Some(run) = &mut self.running {
            run.report.note_https(region, latency);
            if let Some(asked) = &mut run.https_asked {
                asked.remove(&region);
            }
        }
    }

    fn done_at(&self) -> Option<Instant> {
        let run = self.running.as_ref()?;
        if run.wanted.is_empty() && !run.report.latency.is_empty() {
            return Some(run.started);
        }
        if run.wanted.is_empty() && run.https_asked.is_none() && run.plan.is_empty() {
            // Nothing can be probed by UDP; names of relays may still be looked up.
            let wait = if self.regions.is_empty() { Duration::ZERO } else { HTTPS_AFTER };
            return Some(run.started + wait);
        }
        if let Some(asked) = &run.https_asked {
            return Some(if asked.is_empty() { run.started } else { run.started + OVERALL });
        }
        let regions: BTreeSet<RegionId> = run.wanted.iter().map(|(r, _)| *r).collect();
        let all = regions.iter().all(|r| run.report.latency.contains_key(r));
        let enough = run.report.latency.len() >= FASTEST;
        match (run.answered, run.report.latency.values().max()) {
            (Some(first), Some(slowest)) if all || enough => {
                let factor = if run.full { 2 } else { 1 };
                Some((first + OTHER_FAMILY + *slowest * factor).min(run.started + STUN_TIME))
            }
            (Some(_), _) => Some(run.started + STUN_TIME),
            (None, _) => Some(run.started + HTTPS_AFTER),
        }
    }

    /// When something is due.
    pub(crate) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let probe = self.running.as_ref().and_then(|r| r.plan.last()).map(|p| (p.0, "stun probe"));
        let done = self.done_at().map(|at| (at, "netcheck"));
        let next = self.next_at.map(|at| (at, "netcheck cadence"));
        probe.into_iter().chain(done).chain(next).min()
    }

    /// Does what is due; gives the result of a measurement that is done.
    pub(crate) fn handle_timeout(&mut self, ctx: &mut Ctx<'_>) -> Option<Finished> {
        let now = ctx.now.mono;
        if self.next_at.is_some_and(|t| t <= now) {
            self.next_at = None;
            self.start(false, ctx);
        }
        self.handle_probes(ctx);
        if self.done_at().is_none_or(|t| now < t) {
            return None;
        }
        let run = self.running.as_mut()?;
        if run.report.latency.is_empty() && run.https_asked.is_none() {
            // UDP seems blocked: relays are reached by TLS anyway.
            let ask: BTreeSet<RegionId> =
                self.regions.iter().filter(|(_, r)| r.measure && !r.avoid).map(|(id, _)| *id).collect();
            let list: Vec<RegionId> = ask.iter().copied().collect();
            run.https_asked = Some(ask);
            if !list.is_empty() {
                ctx.out.event(EngineEvent::NeedHttpsLatency(list));
                return None;
            }
        }
        let run = self.running.take()?;
        Some(self.finish(run, ctx))
    }

    fn finish(&mut self, run: Running, ctx: &mut Ctx<'_>) -> Finished {
        let now = ctx.now.mono;
        self.last_had_udp = run.report.udp;
        if run.full {
            self.last_full = Some(now);
        }
        self.history.add(now, run.started, run.report.latency.clone());
        self.seen.retain(|_, t| now < *t + REMEMBER);
        while self.seen.len() > MAX_ENDPOINTS {
            let oldest = self.seen.iter().min_by_key(|(_, t)| **t).map(|(a, _)| *a);
            if let Some(oldest) = oldest {
                self.seen.remove(&oldest);
            }
        }
        let endpoints = self.endpoints(&run.report);
        if std::mem::take(&mut self.again) {
            self.start(true, ctx);
        }
        Finished { report: run.report, endpoints }
    }

    /// Plans the next measurement while there is traffic: 20 to 26 s from now.
    pub(crate) fn plan_next(&mut self, active: bool, ctx: &mut Ctx<'_>) {
        if !active {
            self.next_at = None;
        } else if self.next_at.is_none() && self.running.is_none() {
            let wait = Duration::from_millis(20_000 + ctx.rng.below(6_000));
            self.next_at = Some(ctx.now.mono + wait);
        }
    }

    /// Chooses the home region after a report. It does not move while control cannot be told.
    pub(crate) fn choose_home(&mut self, control_up: bool, now: Instant) -> Option<RegionId> {
        let usable: Vec<RegionId> = self
            .regions
            .iter()
            .filter(|(id, r)| r.measure && (!r.avoid || self.home == Some(**id)))
            .map(|(id, _)| *id)
            .collect();
        let sample =
            Sample { usable: &usable, scores: &self.scores, frames: &self.frames, home: self.home, now };
        let choice = self.history.choose(&sample).or(self.home).or_else(|| {
            let n = u64::try_from(usable.len()).ok().filter(|n| *n > 0)?;
            usable.get(usize::try_from(self.fallback % n).ok()?).copied()
        });
        if (self.home.is_none() || control_up) && choice.is_some() {
            self.home = choice;
        }
        self.home
    }

    /// A home without measuring, when there is only one region to choose.
    pub(crate) fn only_region(&mut self) -> Option<RegionId> {
        let mut usable = self.regions.iter().filter(|(_, r)| r.measure);
        let (id, _) = usable.next()?;
        if self.home.is_some() || usable.next().is_some() {
            return None;
        }
        self.home = Some(*id);
        self.home
    }

    fn endpoints(&self, report: &Report) -> Vec<(SocketAddr, EndpointType)> {
        let mut out: Vec<(SocketAddr, EndpointType)> = Vec::new();
        let mut add = |addr: SocketAddr, kind| {
            let usable = !self.own.contains(&addr.ip()) && !addr.ip().is_unspecified();
            if usable && out.len() < MAX_ENDPOINTS && out.iter().all(|(a, _)| *a != addr) {
                out.push((addr, kind));
            }
        };
        for addr in report.globals() {
            add(addr, EndpointType::STUN);
        }
        if report.varies == Some(true)
            && let (Some(SocketAddr::V4(seen)), Some(port)) = (report.global_v4(), self.ports.0)
        {
            // A static forward of our fixed port is worth a guess behind a hard NAT.
            add((*seen.ip(), port).into(), EndpointType::STUN4_LOCAL_PORT);
        }
        for addr in self.seen.keys() {
            add(*addr, EndpointType::STUN);
        }
        let loopback_only = self.interfaces.iter().all(IpAddr::is_loopback);
        for ip in &self.interfaces {
            let (port, link_local) = match ip {
                IpAddr::V4(a) => (self.ports.0, a.is_link_local()),
                IpAddr::V6(a) => (self.ports.1, a.is_unicast_link_local()),
            };
            if let Some(port) = port
                && !link_local
                && (!ip.is_loopback() || loopback_only)
                && *ip != IpAddr::V4(Ipv4Addr::UNSPECIFIED)
            {
                add(SocketAddr::new(*ip, port), EndpointType::LOCAL);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests;
