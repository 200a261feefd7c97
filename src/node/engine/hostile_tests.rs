//! A hostile server: maps that are too large or lie (RELIABILITY.md row 103).

use std::collections::BTreeMap;

use super::*;
use crate::keys::DiscoPrivate;
use crate::wire::{DerpMap, DerpNode, DerpRegion, DnsConfig};

fn node(id: u64) -> Node {
    let [.., a, b, c] = id.to_be_bytes();
    let mut key = [7; 32];
    key[..8].copy_from_slice(&id.to_be_bytes());
    Node {
        id: NodeId(id),
        key: NodePublic::from_bytes(key),
        name: format!("n{id}.tail.internal."),
        addresses: vec![format!("100.{}.{b}.{c}/32", 64 + (a & 0x3f)).parse().unwrap()],
        ..Node::default()
    }
}

fn first() -> MapResponse {
    MapResponse { node: Some(node(1)), packet_filter: Some(Vec::new()), ..MapResponse::default() }
}

fn engine(map: &MapResponse) -> (Engine, Now) {
    let mut rng = Rng::from_seed([5; 32]);
    let config = EngineConfig {
        node_key: NodePrivate::generate(&mut rng),
        disco_key: DiscoPrivate::generate(&mut rng),
        accept_routes: true,
        accept_dns: true,
        shields_up: false,
    };
    let now = Now::read();
    let mut engine = Engine::new(config, rng, now);
    engine.handle_map(map, true, now);
    (engine, now)
}

#[test]
fn more_peers_than_any_network_has_are_left_out() {
    let map = MapResponse { peers: Some((2..100_002).map(node).collect()), ..first() };
    let (engine, now) = engine(&map);
    assert_eq!(engine.status(now).peers.len(), 20_000);
    // So many hosts are two routes for the OS.
    assert!(engine.os_config().routes.len() < 10, "{}", engine.os_config().routes.len());
}

#[test]
fn a_million_routes_are_cut_to_what_one_node_may_offer() {
    let route = |n: u32| IpAddr::from((0x0b00_0000_u32 + n).to_be_bytes());
    let mut peer = node(2);
    let own = peer.addresses.clone();
    peer.allowed_ips = Some(own.into_iter().chain((0..1_000_000).map(|n| route(n).into())).collect());
    peer.endpoints = vec!["203.0.113.1:1".parse().unwrap(); 100_000];
    let map = MapResponse { peers: Some(vec![peer]), ..first() };
    let (engine, now) = engine(&map);
    assert!(engine.os_config().routes.len() <= 10_003);
    let kept = engine.status(now).peers[&NodeId(2)].node.clone();
    assert_eq!(kept.allowed_ips.unwrap().len(), 10_000);
    assert!(kept.endpoints.len() <= 256);
}

#[test]
fn a_peer_with_our_own_address_or_the_resolvers_gets_nothing_of_ours() {
    let mut thief = node(2);
    let stolen = [node(1).addresses[0], "100.100.100.100/32".parse().unwrap()];
    thief.addresses.extend(stolen);
    thief.allowed_ips = Some(thief.addresses.clone());
    let map = MapResponse { peers: Some(vec![thief]), ..first() };
    let (mut engine, now) = engine(&map);
    assert!(engine.router.find(stolen[0].addr()).is_none());
    assert!(engine.router.find(stolen[1].addr()).is_none());
    assert!(!engine.os_config().routes.contains(&stolen[0]), "our address is not routed away");
    assert!(engine.ping(stolen[0].addr(), now).unwrap_err().contains("is local"));
}

#[test]
fn search_domains_are_bounded_and_cannot_write_lines_into_the_hosts_files() {
    let domains = (0..10_000).map(|n| format!("d{n}.example"));
    let evil = ["a\nnameserver 6.6.6.6", "b c", "--all", "", ".", "x#y"].map(str::to_owned);
    let dns = DnsConfig {
        proxied: true,
        domains: evil.iter().cloned().chain(domains).collect(),
        routes: evil.iter().map(|d| (d.clone(), Vec::new())).collect(),
        ..DnsConfig::default()
    };
    let (engine, _) = engine(&MapResponse { dns_config: Some(dns), ..first() });
    let os = engine.os_config().dns.unwrap();
    assert_eq!(os.search.len(), 100);
    assert_eq!(os.search[0], "d0.example");
    for name in os.search.iter().chain(&os.match_domains) {
        assert!(!evil.contains(name), "{name:?}");
    }
}

#[test]
fn five_hundred_relays_do_not_make_a_flood() {
    let region = |n: u64| {
        let nodes = (0..50)
            .map(|i| DerpNode {
                name: format!("{n}-{i}"),
                region_id: RegionId(n),
                host_name: "127.0.0.1".to_owned(),
                ipv4: "127.0.0.1".to_owned(),
                ..DerpNode::default()
            })
            .collect();
        (RegionId(n), DerpRegion { region_id: RegionId(n), nodes, ..DerpRegion::default() })
    };
    let derp_map =
        DerpMap { regions: (1..=500).map(region).collect::<BTreeMap<_, _>>(), ..DerpMap::default() };
    let (mut engine, mut now) = engine(&MapResponse { derp_map: Some(derp_map), ..first() });
    let interfaces = Underlay::Interfaces {
        addresses: vec!["203.0.113.9".parse().unwrap()],
        port_v4: Some(41641),
        port_v6: None,
        major: false,
    };
    engine.handle_underlay(interfaces, now);
    let (mut datagrams, mut worst) = (0, 0);
    for _ in 0..100 {
        let mut burst = 0;
        while let Some(output) = engine.poll_output() {
            burst += usize::from(matches!(output, Output::Udp { .. }));
        }
        datagrams += burst;
        worst = worst.max(burst);
        now = now.after(Duration::from_millis(100));
        engine.handle_timeout(now);
    }
    assert!(datagrams <= 3_000 && worst <= 1_500, "{datagrams} datagrams, {worst} at once");
}
