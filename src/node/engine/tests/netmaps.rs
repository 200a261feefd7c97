//! What a changed netmap does to peers, filter, routes and addresses.

use super::*;

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
