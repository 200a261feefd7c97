//! Engines on a simulated network. Time is virtual for everything but gotatun's own timers, which read the
//! real clock: sessions stay young however far the simulation runs, and a lost handshake is repeated only as
//! often as we add to it.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::clock::Rng;
use crate::keys::DiscoPublic;
use crate::node::packet::tests::{echo, tcp, udp};
use crate::node::packet::{Headers, Proto, build_ip};
use crate::stun::message;
use crate::wire::{
    CapVer, DerpMap, DerpNode, DerpRegion, DnsConfig, FilterRule, NetPortRange, PeerChange, PortRange,
};

const HOME: RegionId = RegionId(900);
const STUN: &str = "203.0.113.1:3478";
const IPS: [&str; 3] = ["100.64.0.1", "100.64.0.2", "100.64.0.3"];

struct Host {
    engine: Engine,
    keys: (NodePrivate, DiscoPrivate),
    inside: SocketAddr,
    /// Outside address of its NAT, which is easy to traverse: one mapping, filtered by address and port.
    nat: Option<SocketAddr>,
    open_to: BTreeSet<SocketAddr>,
    udp: bool,
    tun: Vec<Bytes>,
    events: Vec<EngineEvent>,
    sent_udp: usize,
    sent_derp: usize,
}

enum Flight {
    Udp(SocketAddr, Bytes),
    Derp(NodePublic, Bytes),
    Https(RegionId),
}

struct Sim {
    now: Now,
    hosts: Vec<Host>,
    flights: BTreeMap<(Instant, u64), (usize, Flight)>,
    serial: u64,
    /// Tells peers about endpoints, as control would.
    control: bool,
}

fn config(keys: &(NodePrivate, DiscoPrivate)) -> EngineConfig {
    EngineConfig {
        node_key: keys.0.clone(),
        disco_key: keys.1.clone(),
        accept_routes: false,
        accept_dns: true,
        shields_up: false,
    }
}

fn id(i: usize) -> NodeId {
    NodeId(i as u64 + 1)
}

fn allow(dst: &str, first: u16, last: u16) -> FilterRule {
    FilterRule {
        src_ips: ["*"].into_iter().collect(),
        dst_ports: vec![NetPortRange { ip: dst.into(), ports: PortRange { first, last } }],
        ..FilterRule::default()
    }
}

fn derp_map() -> DerpMap {
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
    fn new(n: usize) -> Self {
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
    fn behind_nats(mut self) -> Self {
        for (i, h) in self.hosts.iter_mut().enumerate() {
            h.inside = SocketAddr::from(([192, 168, i as u8 + 10, 2], 41641));
            h.nat = Some(SocketAddr::from(([198, 51, 100, i as u8 + 1], 5000)));
        }
        self
    }

    fn node(&self, i: usize) -> Node {
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

    fn map(&self, i: usize) -> MapResponse {
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

    fn start(mut self) -> Self {
        for i in 0..self.hosts.len() {
            self.plug_in(i);
            let map = self.map(i);
            let now = self.now;
            self.hosts[i].engine.handle_map(&map, true, now);
            self.drain(i);
        }
        self
    }

    fn plug_in(&mut self, i: usize) {
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

    fn fly(&mut self, after_ms: u64, to: usize, flight: Flight) {
        self.serial += 1;
        let at = self.now.mono + Duration::from_millis(after_ms);
        self.flights.insert((at, self.serial), (to, flight));
    }

    fn drain(&mut self, i: usize) {
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

    fn tell_endpoints(&mut self, i: usize, endpoints: Vec<SocketAddr>) {
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

    fn send_udp(&mut self, i: usize, to: SocketAddr, bytes: Bytes) {
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

    fn run(&mut self, time: Duration) {
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

    fn secs(&mut self, n: u64) {
        self.run(Duration::from_secs(n));
    }

    fn send(&mut self, i: usize, packet: &[u8]) {
        let now = self.now;
        self.hosts[i].engine.handle_tun(packet, now);
        self.drain(i);
    }

    /// Sends a datagram from `i` to `j` and says whether it arrived within a second.
    fn passes(&mut self, i: usize, j: usize, text: &[u8]) -> bool {
        let packet = udp(IPS[i], IPS[j], (7, 9), text);
        self.send(i, &packet);
        self.secs(1);
        self.hosts[j].tun.iter().any(|p| **p == *packet)
    }

    fn cur_addr(&self, i: usize, j: usize) -> Option<SocketAddr> {
        self.hosts[i].engine.status(self.now).peers[&id(j)].cur_addr
    }

    fn pings(&self, i: usize) -> Vec<&Result<(Path, Duration), String>> {
        let events = self.hosts[i].events.iter();
        events
            .filter_map(|e| match e {
                EngineEvent::Ping(p) => Some(&p.result),
                _ => None,
            })
            .collect()
    }
}

#[test]
fn on_a_lan_packets_pass_both_ways_and_go_direct() {
    let mut s = Sim::new(2).start();
    s.secs(1);
    assert!(s.passes(0, 1, b"there"));
    assert!(s.passes(1, 0, b"and back"));
    assert_eq!(s.cur_addr(0, 1), Some(s.hosts[1].inside));
    let relayed = s.hosts[0].sent_derp;
    assert!(s.passes(0, 1, b"direct"));
    assert_eq!(s.hosts[0].sent_derp, relayed);
    let status = s.hosts[0].engine.status(s.now);
    let peer = &status.peers[&id(1)];
    assert!(peer.active && peer.last_handshake.is_some());
    assert!(peer.rx_bytes > 0 && peer.tx_bytes > 0);
}

/// A peer of which the netmap knows neither relay nor addresses yet: it has just joined.
fn homeless(s: &mut Sim, i: usize, j: usize) {
    let node = Node { home_derp: RegionId(0), ..s.node(j) };
    let delta = MapResponse { peers_changed: Some(vec![node]), ..MapResponse::default() };
    let now = s.now;
    s.hosts[i].engine.handle_map(&delta, false, now);
    s.drain(i);
}

#[test]
fn a_packet_to_a_peer_that_just_joined_goes_when_its_relay_is_known() {
    let mut s = Sim::new(2).behind_nats();
    s.control = false;
    let mut s = s.start();
    homeless(&mut s, 0, 1);
    s.secs(1);
    let packet = udp(IPS[0], IPS[1], (7, 9), b"early");
    s.send(0, &packet);
    s.run(Duration::from_millis(100));
    assert_eq!(s.hosts[0].engine.status(s.now).drops["no path to the peer"], 1);
    let change = PeerChange { node_id: id(1), derp_region: HOME, ..PeerChange::default() };
    let delta = MapResponse { peers_changed_patch: Some(vec![change]), ..MapResponse::default() };
    let now = s.now;
    s.hosts[0].engine.handle_map(&delta, false, now);
    s.drain(0);
    s.run(Duration::from_millis(200));
    assert!(s.hosts[1].tun.iter().any(|p| **p == *packet), "at once");
}

#[test]
fn a_packet_to_a_peer_that_is_not_at_its_relay_yet_goes_when_it_is() {
    let mut s = Sim::new(2).behind_nats();
    s.control = false;
    let mut s = s.start();
    s.secs(1);
    let key = s.hosts[1].keys.0.public();
    let packet = udp(IPS[0], IPS[1], (7, 9), b"early");
    s.send(0, &packet);
    // The relay knows nobody by this name.
    s.flights.retain(|_, (to, flight)| *to != 1 || !matches!(flight, Flight::Derp(..)));
    let gone = Underlay::DerpPeerGone { region: HOME, key, reason: GONE_NOT_HERE };
    let now = s.now;
    s.hosts[0].engine.handle_underlay(gone, now);
    s.drain(0);
    s.run(Duration::from_millis(200));
    assert!(s.hosts[1].tun.iter().any(|p| **p == *packet), "by the next try");
}

#[test]
fn a_lost_first_initiation_costs_half_a_second() {
    let mut s = Sim::new(2).start();
    s.secs(1);
    let packet = udp(IPS[0], IPS[1], (7, 9), b"early");
    s.send(0, &packet);
    s.flights.retain(|_, (to, _)| *to != 1);
    s.run(Duration::from_millis(600));
    assert!(s.hosts[1].tun.iter().any(|p| **p == *packet));
}

#[test]
fn the_only_region_is_home_at_once_and_stun_gives_the_endpoints() {
    let mut s = Sim::new(1).behind_nats().start();
    assert!(s.hosts[0].events.contains(&EngineEvent::HomeDerp(HOME)));
    s.secs(1);
    let endpoints = s.hosts[0].engine.status(s.now).endpoints;
    assert_eq!(endpoints, [s.hosts[0].nat.unwrap(), s.hosts[0].inside]);
    let info = s.hosts[0].events.iter().find_map(|e| match e {
        EngineEvent::NetInfo(i) => Some(i),
        _ => None,
    });
    assert_eq!(info.unwrap().working_udp, Some(true));
    assert_eq!(info.unwrap().preferred_derp, HOME);
}

#[test]
fn two_easy_nats_are_traversed_with_the_relay_carrying_until_then() {
    let mut s = Sim::new(2).behind_nats().start();
    s.secs(1);
    assert!(s.passes(0, 1, b"first"));
    s.secs(8);
    assert!(s.passes(0, 1, b"more"));
    assert!(s.passes(1, 0, b"and back"));
    assert_eq!(s.cur_addr(0, 1), s.hosts[1].nat);
    assert_eq!(s.cur_addr(1, 0), s.hosts[0].nat);
}

#[test]
fn call_me_maybe_alone_tells_the_addresses() {
    let mut s = Sim::new(2).behind_nats();
    s.control = false;
    let mut s = s.start();
    s.secs(1);
    // Only one side knows addresses of the other.
    s.control = true;
    let known = s.hosts[1].engine.status(s.now).endpoints;
    let delta = MapResponse {
        peers_changed_patch: Some(vec![PeerChange {
            node_id: id(1),
            endpoints: known,
            ..PeerChange::default()
        }]),
        ..MapResponse::default()
    };
    let now = s.now;
    s.hosts[0].engine.handle_map(&delta, false, now);
    for n in 0..12 {
        assert!(s.passes(0, 1, &[n]));
    }
    assert_eq!(s.cur_addr(0, 1), s.hosts[1].nat);
}

#[test]
fn with_udp_blocked_everything_goes_by_the_relay() {
    let mut s = Sim::new(2);
    for h in &mut s.hosts {
        h.udp = false;
    }
    let mut s = s.start();
    s.secs(2);
    let info = s.hosts[0].events.iter().find_map(|e| match e {
        EngineEvent::NetInfo(i) => Some((i.working_udp, i.preferred_derp)),
        _ => None,
    });
    assert_eq!(info, Some((Some(false), HOME)));
    assert!(s.passes(0, 1, b"there"));
    assert!(s.passes(1, 0, b"and back"));
    assert_eq!(s.cur_addr(0, 1), None);
}

#[test]
fn the_relay_works_without_disco_keys() {
    let mut s = Sim::new(2).start();
    for i in 0..2 {
        let mut map = s.map(i);
        for p in map.peers.iter_mut().flatten() {
            p.disco_key = DiscoPublic::default();
        }
        let now = s.now;
        s.hosts[i].engine.handle_map(&map, true, now);
    }
    assert!(s.passes(0, 1, b"there"));
    assert_eq!(s.cur_addr(0, 1), None);
}

#[test]
fn a_dead_direct_path_falls_back_to_the_relay() {
    let mut s = Sim::new(2).start();
    s.secs(1);
    assert!(s.passes(0, 1, b"x"));
    assert!(s.passes(0, 1, b"y"));
    assert!(s.cur_addr(0, 1).is_some());
    s.hosts[1].udp = false;
    let mut lost = 0;
    for n in 0..20 {
        lost += u32::from(!s.passes(0, 1, &[n, 1, 2]));
    }
    // Trust runs out 6.5 s after the last pong; from then on the relay carries.
    assert!((1..=8).contains(&lost), "{lost}");
    assert_eq!(s.cur_addr(0, 1), None);
    s.hosts[1].udp = true;
    for n in 0..10 {
        assert!(s.passes(0, 1, &[n, 3]));
    }
    assert!(s.cur_addr(0, 1).is_some());
}

#[test]
fn the_filter_closes_and_opens_within_a_delta() {
    let mut s = Sim::new(2).start();
    s.secs(1);
    let syn = |port| tcp(IPS[0], IPS[1], (4000, port), 2);
    let rules = |s: &mut Sim, list: Vec<FilterRule>| {
        let delta = MapResponse {
            packet_filters: Some(BTreeMap::from([("*".to_owned(), None), ("a".to_owned(), Some(list))])),
            ..MapResponse::default()
        };
        let now = s.now;
        s.hosts[1].engine.handle_map(&delta, false, now);
        s.hosts[1].tun.clear();
    };
    rules(&mut s, vec![allow(IPS[1], 22, 22)]);
    for p in [syn(22), syn(23), echo(IPS[0], IPS[1], 8)] {
        s.send(0, &p);
    }
    s.secs(1);
    assert_eq!(s.hosts[1].tun, [syn(22), echo(IPS[0], IPS[1], 8)]);
    assert_eq!(s.hosts[1].engine.status(s.now).drops["acl"], 1);
    rules(&mut s, Vec::new());
    s.send(0, &syn(22));
    s.send(0, &echo(IPS[0], IPS[1], 8));
    s.secs(1);
    assert!(s.hosts[1].tun.is_empty());
    rules(&mut s, vec![allow("*", 0, 65535)]);
    s.send(0, &syn(23));
    s.secs(1);
    assert_eq!(s.hosts[1].tun, [syn(23)]);
}

#[test]
fn a_removed_peer_can_neither_be_sent_to_nor_send() {
    let mut s = Sim::new(3).start();
    s.secs(1);
    assert!(s.passes(0, 1, b"before"));
    let gone = MapResponse { peers_removed: Some(vec![id(1)]), ..MapResponse::default() };
    let now = s.now;
    s.hosts[0].engine.handle_map(&gone, false, now);
    assert!(!s.passes(0, 1, b"after"));
    assert!(!s.passes(1, 0, b"back"));
    assert!(s.passes(2, 0, b"others go on"));
    assert!(s.hosts[0].engine.status(s.now).drops.contains_key("no peer"));
}

#[test]
fn a_resent_peer_keeps_its_session_and_a_new_disco_key_resets_it() {
    let mut s = Sim::new(2).start();
    s.secs(1);
    assert!(s.passes(0, 1, b"x"));
    let mut delta = MapResponse { peers_changed: Some(vec![s.node(1)]), ..MapResponse::default() };
    let now = s.now;
    s.hosts[0].engine.handle_map(&delta, false, now);
    let peer = |s: &Sim| s.hosts[0].engine.status(s.now).peers[&id(1)].clone();
    assert!(peer(&s).cur_addr.is_some() && peer(&s).last_handshake.is_some());
    delta.peers_changed.as_mut().unwrap()[0].disco_key = DiscoPublic::from_bytes([7; 32]);
    s.hosts[0].engine.handle_map(&delta, false, now);
    assert!(peer(&s).cur_addr.is_none() && peer(&s).last_handshake.is_none());
}

#[test]
fn a_node_restarted_from_its_own_netmap_talks_without_control() {
    let mut s = Sim::new(2).start();
    s.secs(1);
    assert!(s.passes(0, 1, b"x"));
    let kept = s.hosts[1].engine.netmap().unwrap();
    let text = serde_json::to_vec(&kept).unwrap();
    s.control = false;
    let cfg = config(&s.hosts[1].keys);
    s.hosts[1].engine = Engine::new(cfg, Rng::from_seed([99; 32]), s.now);
    s.hosts[1].tun.clear();
    let now = s.now;
    let kept: MapResponse = serde_json::from_slice(&text).unwrap();
    s.hosts[1].engine.handle_map(&kept, true, now);
    s.plug_in(1);
    assert_eq!(s.hosts[1].engine.netmap(), Some(kept));
    assert!(s.passes(1, 0, b"I am back"));
    assert!(s.passes(0, 1, b"welcome"));
    s.secs(1);
    assert!(s.cur_addr(1, 0).is_some());
}

#[test]
fn a_new_disco_key_comes_through_the_tunnel_when_control_is_cut_off() {
    let mut s = Sim::new(2).start();
    s.secs(1);
    assert!(s.passes(0, 1, b"x"));
    s.control = false;
    let kept = s.hosts[1].engine.netmap().unwrap();
    s.hosts[1].keys.1 = DiscoPrivate::from_bytes([42; 32]);
    let cfg = config(&s.hosts[1].keys);
    s.hosts[1].engine = Engine::new(cfg, Rng::from_seed([98; 32]), s.now);
    let now = s.now;
    s.hosts[1].engine.handle_map(&kept, true, now);
    s.plug_in(1);
    assert!(s.passes(1, 0, b"I am back"));
    let known = &s.hosts[0].engine.status(s.now).peers[&id(1)].node;
    assert_eq!(known.disco_key, s.hosts[1].keys.1.public());
    s.secs(8);
    assert!(s.passes(1, 0, b"direct again"));
    assert!(s.cur_addr(1, 0).is_some());
}

#[test]
fn ping_tells_the_way_and_fails_with_a_reason() {
    let mut s = Sim::new(3).start();
    s.secs(1);
    let now = s.now;
    let ping = |s: &mut Sim, to: &str| {
        let now = s.now;
        let r = s.hosts[0].engine.ping(to.parse().unwrap(), now);
        s.drain(0);
        r
    };
    ping(&mut s, IPS[1]).unwrap();
    s.secs(1);
    let direct = Path::Direct(s.hosts[1].inside);
    let paths: Vec<Path> = s.pings(0).iter().map(|r| r.as_ref().unwrap().0).collect();
    assert_eq!(paths, [direct, Path::Derp(HOME)]);
    s.hosts[0].events.clear();
    ping(&mut s, IPS[1]).unwrap();
    s.secs(1);
    assert_eq!(s.pings(0).len(), 1);
    s.hosts[0].events.clear();
    // A host that is off.
    s.hosts[2].keys.0 = NodePrivate::from_bytes([77; 32]);
    s.hosts[2].udp = false;
    ping(&mut s, IPS[2]).unwrap();
    s.secs(6);
    assert!(matches!(s.pings(0)[..], [Err(_)]));
    assert!(ping(&mut s, IPS[0]).unwrap_err().contains("is local"));
    assert!(ping(&mut s, "100.64.9.9").unwrap_err().contains("no peer"));
    assert!(now.mono < s.now.mono);
}

#[test]
fn pings_through_the_tunnel_are_answered_by_engine_and_host() {
    let mut s = Sim::new(2).start();
    s.secs(1);
    let to: IpAddr = IPS[1].parse().unwrap();
    let now = s.now;
    s.hosts[0].engine.ping_through(to, Through::Tsmp, now).unwrap();
    s.drain(0);
    s.secs(1);
    assert!(matches!(s.pings(0)[..], [Ok(_)]), "{:?}", s.pings(0));
    s.hosts[0].events.clear();

    let now = s.now;
    s.hosts[0].engine.ping_through(to, Through::Icmp, now).unwrap();
    s.drain(0);
    s.secs(1);
    // The other host answers what its TUN got.
    let request = s.hosts[1].tun.iter().find(|p| p[9] == Proto::ICMPV4.0).unwrap().clone();
    assert_eq!(request[20], 8);
    let mut answer = request[20..].to_vec();
    answer[0] = 0;
    let reply = |from: &str| {
        build_ip(from.parse().unwrap(), IPS[0].parse().unwrap(), Proto::ICMPV4, &answer).unwrap()
    };
    s.send(1, &reply(IPS[1]));
    s.secs(1);
    assert!(
        matches!(s.pings(0)[..], [Ok((_, took))] if *took >= Duration::from_millis(10)),
        "{:?}",
        s.pings(0)
    );
    assert!(s.hosts[0].tun.iter().all(|p| p[9] != Proto::ICMPV4.0), "the answer is ours, not the host's");
    s.hosts[0].events.clear();
    // An answer nobody waits for goes to the host.
    s.send(1, &reply(IPS[1]));
    s.secs(1);
    assert_eq!(s.hosts[0].tun.iter().filter(|p| p[9] == Proto::ICMPV4.0).count(), 1);

    let now = s.now;
    s.hosts[0].engine.ping_through(to, Through::Icmp, now).unwrap();
    s.drain(0);
    s.secs(6);
    assert!(matches!(s.pings(0)[..], [Err(_)]), "no host answered: {:?}", s.pings(0));
    let now = s.now;
    assert!(s.hosts[0].engine.ping_through("fd7a::9".parse().unwrap(), Through::Tsmp, now).is_err());
}

#[test]
fn an_expired_peer_and_an_expired_self_are_cut_off() {
    let mut s = Sim::new(2).start();
    s.secs(1);
    assert!(s.passes(0, 1, b"x"));
    let soon = s.now.wall + chrono::Duration::seconds(5);
    let patch = |key_expiry| MapResponse {
        peers_changed_patch: Some(vec![PeerChange {
            node_id: id(1),
            key_expiry: Some(key_expiry),
            ..PeerChange::default()
        }]),
        ..MapResponse::default()
    };
    let now = s.now;
    s.hosts[0].engine.handle_map(&patch(Some(soon)), false, now);
    assert!(s.passes(0, 1, b"still"));
    s.secs(6);
    assert!(!s.passes(0, 1, b"expired"));
    assert!(!s.passes(1, 0, b"not even back"));
    assert!(s.hosts[0].engine.status(s.now).peers[&id(1)].expired);
    let now = s.now;
    s.hosts[0].engine.handle_map(&patch(None), false, now);
    assert!(s.passes(0, 1, b"extended"));
    let mut own = s.node(0);
    own.key_expiry = Some(s.now.wall - chrono::Duration::seconds(1));
    let delta = MapResponse { node: Some(own), ..MapResponse::default() };
    s.hosts[0].engine.handle_map(&delta, false, now);
    s.drain(0);
    assert!(s.hosts[0].events.contains(&EngineEvent::Expired));
    assert!(!s.passes(0, 1, b"self expired"));
    assert_eq!(s.hosts[0].engine.os_config(), OsConfig::default());
}

#[test]
fn a_peer_cannot_use_another_ones_address() {
    let mut s = Sim::new(3).start();
    s.secs(1);
    assert!(s.passes(1, 0, b"x"));
    let forged = udp(IPS[2], IPS[0], (7, 9), b"forged");
    s.send(1, &forged);
    s.secs(1);
    assert!(!s.hosts[0].tun.iter().any(|p| **p == *forged));
    assert_eq!(s.hosts[0].engine.status(s.now).drops["source not of the peer"], 1);
}

#[test]
fn a_wide_route_gives_a_peer_neither_our_address_nor_the_resolvers() {
    let mut s = Sim::new(2).start();
    s.secs(1);
    let mut peer = s.node(1);
    let nets = ["100.64.0.2/32", "100.64.0.0/10", "fd7a:115c:a1e0::/48"];
    peer.allowed_ips = Some(nets.iter().map(|n| n.parse().unwrap()).collect());
    let delta = MapResponse { peers_changed: Some(vec![peer]), ..MapResponse::default() };
    let now = s.now;
    let e = &mut s.hosts[0].engine;
    e.handle_map(&delta, false, now);
    e.set_prefs(true, true, false, now);
    s.secs(1);
    assert!(s.passes(1, 0, b"x"));
    let send = |s: &mut Sim, src: &str| {
        s.hosts[0].tun.clear();
        let dst = if src.contains(':') { "fd7a:115c:a1e0::1" } else { IPS[0] };
        let packet = udp(src, dst, (53, 9), b"forged");
        let now = s.now;
        s.hosts[1].engine.send_plain(id(0), &packet, false, now);
        s.drain(1);
        s.secs(1);
        s.hosts[0].engine.status(s.now).drops.get("source not of the peer").copied().unwrap_or_default()
    };
    assert_eq!(send(&mut s, "100.64.9.9"), 0, "what it routes it may send from");
    assert_eq!(s.hosts[0].tun.len(), 1);
    assert_eq!(send(&mut s, "100.100.100.100"), 1);
    assert_eq!(send(&mut s, IPS[0]), 2);
    assert_eq!(send(&mut s, "fd7a:115c:a1e0::53"), 3);
    assert_eq!(send(&mut s, "2001:db8::1"), 4);
    assert!(s.hosts[0].tun.is_empty());
}

#[test]
fn tsmp_pings_are_answered_to_the_peer_and_never_reach_the_host() {
    let mut s = Sim::new(2).start();
    s.secs(1);
    assert!(s.passes(0, 1, b"x"));
    s.hosts[1].tun.clear();
    let (src, dst) = (IPS[0].parse().unwrap(), IPS[1].parse().unwrap());
    let ping = build_ip(src, dst, Proto::TSMP, b"p12345678").unwrap();
    let sent = s.hosts[1].engine.status(s.now).peers[&id(0)].tx_bytes;
    // From the host it may not leave.
    s.send(0, &ping);
    assert_eq!(s.hosts[0].engine.status(s.now).drops["tsmp from host"], 1);
    let now = s.now;
    s.hosts[0].engine.send_plain(id(1), &ping, false, now);
    s.drain(0);
    s.secs(1);
    assert!(s.hosts[1].tun.is_empty());
    assert!(s.hosts[1].engine.status(s.now).peers[&id(0)].tx_bytes > sent);
}

#[test]
fn names_are_answered_forwarded_and_fail_in_time() {
    let mut s = Sim::new(2).start();
    let query = |name: &[u8]| {
        let mut q = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split(|b| *b == b'.') {
            q.push(label.len() as u8);
            q.extend_from_slice(label);
        }
        q.extend_from_slice(&[0, 0, 1, 0, 1]);
        udp(IPS[0], "100.100.100.100", (4000, 53), &q)
    };
    s.send(0, &query(b"n1.tail.internal"));
    let answer = s.hosts[0].tun.pop().unwrap();
    let h = Headers::parse(&answer).unwrap();
    assert_eq!((h.src_port, h.dst_port), (53, 4000));
    assert_eq!(&answer[answer.len() - 4..], &[100, 64, 0, 2]);
    let now = s.now;
    s.hosts[0].engine.handle_tun(&query(b"example.com"), now);
    let Some(Output::DnsForward { id, query: q, .. }) = s.hosts[0].engine.poll_output() else {
        panic!("a forwarded query");
    };
    let mut answer = q.to_vec();
    answer[2] |= 0x80;
    s.hosts[0].engine.handle_dns_answer(id, Some(&answer), now);
    s.hosts[0].engine.handle_dns_answer(id, Some(&answer), now);
    s.drain(0);
    assert_eq!(s.hosts[0].tun.len(), 1);
    s.hosts[0].tun.clear();
    s.send(0, &query(b"example.com"));
    s.secs(9);
    assert!(s.hosts[0].tun.is_empty());
    s.secs(2);
    // SERVFAIL.
    assert_eq!(s.hosts[0].tun[0][28 + 3] & 0x0f, 2);
    s.hosts[0].tun.clear();
    s.send(0, &tcp(IPS[0], "100.100.100.100", (4000, 53), 2));
    assert!(Headers::parse(&s.hosts[0].tun[0]).unwrap().is_tcp_rst());
}

#[test]
fn a_resolver_that_asks_us_what_we_ask_it_is_told_of_the_loop() {
    let mut s = Sim::new(2).start();
    let mut question = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01".to_vec();
    let now = s.now;
    let mut forwards = 0;
    for n in 0..100 {
        question[1] = n;
        let packet = udp(IPS[0], "100.100.100.100", (4000, 53), &question);
        s.hosts[0].engine.handle_tun(&packet, now);
        while let Some(output) = s.hosts[0].engine.poll_output() {
            match output {
                Output::DnsForward { .. } => forwards += 1,
                Output::Tun(answer) => assert_eq!(answer[28 + 3] & 0x0f, 2, "SERVFAIL"),
                _ => {}
            }
        }
    }
    assert_eq!(forwards, 16);
    assert_eq!(s.hosts[0].engine.status(now).drops["dns loop"], 84);
    question[13] = b'X';
    s.hosts[0].engine.handle_tun(&udp(IPS[0], "100.100.100.100", (4000, 53), &question), now);
    assert!(matches!(s.hosts[0].engine.poll_output(), Some(Output::DnsForward { .. })));
}

#[test]
fn an_idle_engine_sleeps() {
    let mut s = Sim::new(2).start();
    s.secs(1);
    assert!(s.passes(0, 1, b"x"));
    s.secs(120);
    for h in &s.hosts {
        let wait = h.engine.poll_timeout().map(|(t, _)| t.saturating_duration_since(s.now.mono));
        assert!(wait.is_none_or(|w| w > Duration::from_secs(120)), "{:?}", h.engine.poll_timeout());
    }
    assert!(s.passes(0, 1, b"awake"));
}

#[test]
fn os_config_names_addresses_routes_and_resolver() {
    let s = Sim::new(3).start();
    assert!(s.hosts[0].events.contains(&EngineEvent::OsConfig));
    let os = s.hosts[0].engine.os_config();
    assert_eq!(os.addresses, ["100.64.0.1/32".parse().unwrap()]);
    let routes: Vec<String> = os.routes.iter().map(ToString::to_string).collect();
    assert_eq!(routes, ["100.64.0.2/32", "100.64.0.3/32", "100.100.100.100/32"]);
    let domains = os.dns.unwrap().match_domains;
    assert!(domains.contains(&"tail.internal".to_owned()));
    assert_eq!(s.hosts[0].engine.whois(IPS[2].parse().unwrap()).unwrap().0.id, id(2));
}

#[test]
fn routes_of_peers_count_only_when_accepted_and_defaults_never() {
    let mut s = Sim::new(2).start();
    let mut peer = s.node(1);
    let nets = ["100.64.0.2/32", "10.1.0.0/16", "0.0.0.0/0", "100.64.0.1/32"];
    peer.allowed_ips = Some(nets.iter().map(|n| n.parse().unwrap()).collect());
    let delta = MapResponse { peers_changed: Some(vec![peer]), ..MapResponse::default() };
    let now = s.now;
    let e = &mut s.hosts[0].engine;
    e.handle_map(&delta, false, now);
    let find = |e: &Engine, a: &str| e.router.find(a.parse().unwrap());
    assert_eq!(find(e, "10.1.2.3"), None);
    e.set_prefs(true, true, false, now);
    assert_eq!(find(e, "10.1.2.3"), Some(id(1)));
    assert_eq!(find(e, "8.8.8.8"), None);
    assert_eq!(find(e, IPS[0]), None);
}

#[test]
fn an_idle_region_is_reported_but_not_the_home() {
    let mut s = Sim::new(2).start();
    s.secs(1);
    let far = RegionId(7);
    let now = s.now;
    s.hosts[0].engine.out.derp(far, NodePublic::default(), Bytes::new(), now);
    s.hosts[0].engine.out.derp(HOME, NodePublic::default(), Bytes::new(), now);
    while s.hosts[0].engine.poll_output().is_some() {}
    s.secs(61);
    let idle: Vec<_> = s.hosts[0].events.iter().filter(|e| matches!(e, EngineEvent::DerpIdle(_))).collect();
    assert_eq!(idle, [&EngineEvent::DerpIdle(far)]);
}

/// A disco datagram from one key to host 0.
fn disco_to(s: &Sim, from: &DiscoPrivate, message: &disco::Message) -> Vec<u8> {
    let to = s.hosts[0].keys.1.public();
    disco::seal(&from.public(), &from.shared(&to), &[9; 24], message)
}

#[test]
fn disco_of_strangers_is_dropped_and_pings_alone_make_no_path() {
    let mut s = Sim::new(2).start();
    s.secs(1);
    let now = s.now;
    let other: SocketAddr = "203.0.113.77:7".parse().unwrap();
    let ping = disco::Message::Ping { tx: [4; 12], node_key: Some(s.hosts[1].keys.0.public()) };
    let stranger = DiscoPrivate::from_bytes([3; 32]);
    let datagram = disco_to(&s, &stranger, &ping);
    s.hosts[0].engine.handle_udp(other, &datagram, now);
    assert_eq!(s.hosts[0].engine.poll_output(), None);
    let datagram = disco_to(&s, &s.hosts[1].keys.1, &ping);
    s.hosts[0].engine.handle_udp(other, &datagram, now);
    let pong = s.hosts[0].engine.poll_output();
    assert!(matches!(pong, Some(Output::Udp { to, .. }) if to == other));
    // Once only, and the address is no path.
    s.hosts[0].engine.handle_udp(other, &datagram, now);
    assert_eq!(s.hosts[0].engine.poll_output(), None);
    assert_eq!(s.cur_addr(0, 1), None);
    let pong = disco::Message::Pong { tx: [4; 12], src: other };
    let datagram = disco_to(&s, &s.hosts[1].keys.1, &pong);
    s.hosts[0].engine.handle_udp(other, &datagram, now);
    assert_eq!(s.cur_addr(0, 1), None);
    assert_eq!(s.hosts[0].engine.status(now).drops["pong without ping"], 1);
}

#[test]
fn call_me_maybe_counts_only_by_the_relay_and_probes_no_groups() {
    let mut s = Sim::new(2).start();
    s.secs(1);
    let now = s.now;
    let list = ["203.0.113.7:1", "224.0.0.1:1", "255.255.255.255:9"];
    let call = disco::Message::CallMeMaybe(list.iter().map(|a| a.parse().unwrap()).collect());
    let datagram = disco_to(&s, &s.hosts[1].keys.1, &call);
    s.hosts[0].engine.handle_udp("203.0.113.7:1".parse().unwrap(), &datagram, now);
    assert_eq!(s.hosts[0].engine.poll_output(), None);
    let peer = s.hosts[1].keys.0.public();
    s.hosts[0].engine.handle_derp(HOME, peer, &datagram, now);
    let mut to = Vec::new();
    while let Some(output) = s.hosts[0].engine.poll_output() {
        if let Output::Udp { to: addr, .. } = output {
            to.push(addr);
        }
    }
    let inside = s.hosts[1].inside;
    assert_eq!(to, [inside, list[0].parse().unwrap()]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn arbitrary_input_never_panics(all in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..160), 0_u8..6), 1..12)) {
        let mut s = Sim::new(2).start();
        let now = s.now;
        let peer = s.hosts[1].keys.0.public();
        let e = &mut s.hosts[0].engine;
        for (mut b, kind) in all {
            match kind {
                0 => e.handle_tun(&b, now),
                1 => e.handle_udp("10.0.0.1:1".parse().unwrap(), &b, now),
                2 => e.handle_derp(HOME, peer, &b, now),
                3 => {
                    if let Some(first) = b.first_mut() { *first = 0x45; }
                    e.handle_tun(&b, now);
                }
                4 => {
                    let mut d = disco::MAGIC.to_vec();
                    d.extend_from_slice(&b);
                    e.handle_udp("10.0.0.1:1".parse().unwrap(), &d, now);
                }
                _ => {
                    if let Some(first) = b.first_mut() { *first = 1 + *first % 4; }
                    b.resize(148, 0);
                    e.handle_derp(HOME, peer, &b, now);
                }
            }
        }
        while e.poll_output().is_some() {}
    }
}
