//! How the way to a peer is found, lost and found again.

use super::*;

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
    let gone = Underlay::DerpPeerGone { region: HOME, key, undelivered: true };
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
