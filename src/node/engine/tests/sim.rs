//! Engines on a simulated network. Time is virtual for everything but gotatun's own timers, which read the
//! real clock: sessions stay young however far the simulation runs, and a lost handshake is repeated only as
//! often as we add to it.

use super::*;

pub(super) const HOME: RegionId = RegionId(900);
pub(super) const STUN: &str = "203.0.113.1:3478";
pub(super) const IPS: [&str; 3] = ["100.64.0.1", "100.64.0.2", "100.64.0.3"];

pub(super) struct Host {
    pub(super) engine: Engine,
    pub(super) keys: (NodePrivate, DiscoPrivate),
    pub(super) inside: SocketAddr,
    /// Outside address of its NAT, which is easy to traverse: one mapping, filtered by address and port.
    pub(super) nat: Option<SocketAddr>,
    pub(super) open_to: BTreeSet<SocketAddr>,
    pub(super) udp: bool,
    pub(super) tun: Vec<Bytes>,
    pub(super) events: Vec<EngineEvent>,
    pub(super) sent_udp: usize,
    pub(super) sent_derp: usize,
}

pub(super) enum Flight {
    Udp(SocketAddr, Bytes),
    Derp(NodePublic, Bytes),
    Https(RegionId),
}

pub(super) struct Sim {
    pub(super) now: Now,
    pub(super) hosts: Vec<Host>,
    pub(super) flights: BTreeMap<(Instant, u64), (usize, Flight)>,
    pub(super) serial: u64,
    /// Tells peers about endpoints, as control would.
    pub(super) control: bool,
}

pub(super) fn config(keys: &(NodePrivate, DiscoPrivate)) -> EngineConfig {
    EngineConfig {
        node_key: keys.0.clone(),
        disco_key: keys.1.clone(),
        accept_routes: false,
        accept_dns: true,
        shields_up: false,
    }
}

pub(super) fn id(i: usize) -> NodeId {
    NodeId(i as u64 + 1)
}

pub(super) fn allow(dst: &str, first: u16, last: u16) -> FilterRule {
    FilterRule {
        src_ips: ["*"].into_iter().collect(),
        dst_ports: vec![NetPortRange { ip: dst.into(), ports: PortRange { first, last } }],
        ..FilterRule::default()
    }
}

pub(super) fn derp_map() -> DerpMap {
    let node = DerpNode {
        name: "900a".to_owned(),
        region_id: HOME,
        host_name: "203.0.113.1".to_owned(),
        ..DerpNode::default()
    };
    let region = DerpRegion { region_id: HOME, nodes: vec![node], ..DerpRegion::default() };
    DerpMap { regions: BTreeMap::from([(HOME, region)]), ..DerpMap::default() }
}

impl Sim {
    /// `n` hosts, each on an address of its own of one LAN.
    pub(super) fn new(n: usize) -> Self {
        let now = Now::read();
        let hosts = (0..n)
            .map(|i| {
                let mut rng = Rng::from_seed([i as u8 + 1; 32]);
                let keys = (NodePrivate::generate(&mut rng), DiscoPrivate::generate(&mut rng));
                Host {
                    engine: Engine::new(config(&keys), rng, now),
                    keys,
                    inside: SocketAddr::from(([192, 168, 1, i as u8 + 1], 41641)),
                    nat: None,
                    open_to: BTreeSet::new(),
                    udp: true,
                    tun: Vec::new(),
                    events: Vec::new(),
                    sent_udp: 0,
                    sent_derp: 0,
                }
            })
            .collect();
        Self { now, hosts, flights: BTreeMap::new(), serial: 0, control: true }
    }

    /// Puts every host behind an easy NAT of its own.
    pub(super) fn behind_nats(mut self) -> Self {
        for (i, h) in self.hosts.iter_mut().enumerate() {
            h.inside = SocketAddr::from(([192, 168, i as u8 + 10, 2], 41641));
            h.nat = Some(SocketAddr::from(([198, 51, 100, i as u8 + 1], 5000)));
        }
        self
    }

    pub(super) fn node(&self, i: usize) -> Node {
        let h = &self.hosts[i];
        Node {
            id: id(i),
            key: h.keys.0.public(),
            disco_key: h.keys.1.public(),
            name: format!("n{i}.tail.internal."),
            addresses: vec![format!("{}/32", IPS[i]).parse().unwrap()],
            home_derp: HOME,
            cap: CapVer::OURS,
            ..Node::default()
        }
    }

    pub(super) fn map(&self, i: usize) -> MapResponse {
        let peers = (0..self.hosts.len()).filter(|j| *j != i).map(|j| self.node(j));
        MapResponse {
            node: Some(self.node(i)),
            derp_map: Some(derp_map()),
            peers: Some(peers.collect()),
            dns_config: Some(DnsConfig { proxied: true, ..DnsConfig::default() }),
            packet_filter: Some(vec![allow("*", 0, 65535)]),
            ..MapResponse::default()
        }
    }

    pub(super) fn start(mut self) -> Self {
        for i in 0..self.hosts.len() {
            self.plug_in(i);
            let map = self.map(i);
            let now = self.now;
            self.hosts[i].engine.handle_map(&map, true, now);
            self.drain(i);
        }
        self
    }

    pub(super) fn plug_in(&mut self, i: usize) {
        let now = self.now;
        let h = &mut self.hosts[i];
        let news = Underlay::Interfaces {
            addresses: vec![h.inside.ip()],
            port_v4: Some(h.inside.port()),
            port_v6: None,
            major: false,
        };
        h.engine.handle_underlay(Underlay::ControlUp(true), now);
        h.engine.handle_underlay(news, now);
        self.drain(i);
    }

    pub(super) fn fly(&mut self, after_ms: u64, to: usize, flight: Flight) {
        self.serial += 1;
        let at = self.now.mono + Duration::from_millis(after_ms);
        self.flights.insert((at, self.serial), (to, flight));
    }

    pub(super) fn drain(&mut self, i: usize) {
        while let Some(output) = self.hosts[i].engine.poll_output() {
            match output {
                Output::Udp { to, bytes } => self.send_udp(i, to, bytes),
                Output::Derp { region, to, bytes } => {
                    assert_eq!(region, HOME);
                    self.hosts[i].sent_derp += 1;
                    let from = self.hosts[i].keys.0.public();
                    let j = self.hosts.iter().position(|h| h.keys.0.public() == to);
                    if let Some(j) = j {
                        self.fly(20, j, Flight::Derp(from, bytes));
                    }
                }
                Output::Tun(packet) => self.hosts[i].tun.push(packet),
                Output::DnsForward { .. } => {}
                Output::Event(EngineEvent::NeedHttpsLatency(regions)) => {
                    for r in regions {
                        self.fly(50, i, Flight::Https(r));
                    }
                }
                Output::Event(event) => {
                    if let EngineEvent::Endpoints(list) = &event {
                        self.tell_endpoints(i, list.iter().map(|e| e.0).collect());
                    }
                    self.hosts[i].events.push(event);
                }
            }
        }
    }

    pub(super) fn tell_endpoints(&mut self, i: usize, endpoints: Vec<SocketAddr>) {
        if !self.control {
            return;
        }
        let delta = MapResponse {
            peers_changed_patch: Some(vec![PeerChange {
                node_id: id(i),
                endpoints,
                ..PeerChange::default()
            }]),
            ..MapResponse::default()
        };
        let now = self.now;
        for j in (0..self.hosts.len()).filter(|j| *j != i) {
            self.hosts[j].engine.handle_map(&delta, false, now);
        }
    }

    pub(super) fn send_udp(&mut self, i: usize, to: SocketAddr, bytes: Bytes) {
        let h = &mut self.hosts[i];
        h.sent_udp += 1;
        if !h.udp {
            return;
        }
        h.open_to.insert(to);
        let lan = h.nat.is_none();
        let seen = h.nat.unwrap_or(h.inside);
        if to == STUN.parse().unwrap() {
            let tx = message::parse_request(&bytes).unwrap();
            self.fly(10, i, Flight::Udp(to, message::response(tx, seen).into()));
            return;
        }
        let j = self.hosts.iter().position(|o| match o.nat {
            Some(outside) => outside == to && o.open_to.contains(&seen),
            None => lan && o.inside == to,
        });
        if let Some(j) = j.filter(|j| self.hosts[*j].udp) {
            self.fly(5, j, Flight::Udp(seen, bytes));
        }
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now.mono + time;
        loop {
            let flight = self.flights.first_key_value().map(|(k, _)| k.0);
            let timers = self.hosts.iter().filter_map(|h| h.engine.poll_timeout()).map(|t| t.0);
            let next = timers.chain(flight).min().filter(|t| *t <= end);
            let step = next.unwrap_or(end).saturating_duration_since(self.now.mono);
            self.now = self.now.after(step);
            let now = self.now;
            if next.is_none() {
                return;
            }
            if flight.is_some_and(|t| t <= now.mono) {
                let (_, (i, flight)) = self.flights.pop_first().unwrap();
                let engine = &mut self.hosts[i].engine;
                match flight {
                    Flight::Udp(from, bytes) => engine.handle_udp(from, &bytes, now),
                    Flight::Derp(from, bytes) => engine.handle_derp(HOME, from, &bytes, now),
                    Flight::Https(r) => {
                        engine.handle_underlay(Underlay::HttpsLatency(r, Duration::from_millis(50)), now)
                    }
                }
                self.drain(i);
            }
            for i in 0..self.hosts.len() {
                let due = self.hosts[i].engine.poll_timeout();
                if due.is_some_and(|(t, _)| t <= now.mono) {
                    self.hosts[i].engine.handle_timeout(now);
                    self.drain(i);
                }
            }
        }
    }

    pub(super) fn secs(&mut self, n: u64) {
        self.run(Duration::from_secs(n));
    }

    pub(super) fn send(&mut self, i: usize, packet: &[u8]) {
        let now = self.now;
        self.hosts[i].engine.handle_tun(packet, now);
        self.drain(i);
    }

    /// Sends a datagram from `i` to `j` and says whether it arrived within a second.
    pub(super) fn passes(&mut self, i: usize, j: usize, text: &[u8]) -> bool {
        let packet = udp(IPS[i], IPS[j], (7, 9), text);
        self.send(i, &packet);
        self.secs(1);
        self.hosts[j].tun.iter().any(|p| **p == *packet)
    }

    pub(super) fn cur_addr(&self, i: usize, j: usize) -> Option<SocketAddr> {
        self.hosts[i].engine.status(self.now).peers[&id(j)].cur_addr
    }

    pub(super) fn pings(&self, i: usize) -> Vec<&Result<(Path, Duration), String>> {
        let events = self.hosts[i].events.iter();
        events
            .filter_map(|e| match e {
                EngineEvent::Ping(p) => Some(&p.result),
                _ => None,
            })
            .collect()
    }
}
