//! Proof 8, without a network: every parser of bytes from outside under mutated good input and plain
//! noise, for `TSD_FUZZ_SECONDS` (2 by default) each. A panic, or an answer larger than its bound,
//! fails; the seed that did it is printed.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]
#![allow(clippy::disallowed_methods)]

use std::time::{Duration, Instant};

use tsd::clock::{Now, Rng};
use tsd::keys::{DiscoPrivate, NodePrivate, RegionId};

fn seconds() -> Duration {
    Duration::from_secs(std::env::var("TSD_FUZZ_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(2))
}

/// Calls `target` with mutations of `corpus` until the time is up.
fn fuzz(name: &str, corpus: &[Vec<u8>], mut target: impl FnMut(&[u8])) {
    let seed: [u8; 32] = Rng::from_os().bytes();
    let mut rng = Rng::from_seed(seed);
    let start = Instant::now();
    let mut runs = 0_u64;
    struct Seed(&'static str, [u8; 32]);
    impl Drop for Seed {
        fn drop(&mut self) {
            if std::thread::panicking() {
                println!("{}: failed with seed {:?}", self.0, self.1);
            }
        }
    }
    let _seed = Seed(Box::leak(name.to_owned().into_boxed_str()), seed);
    while start.elapsed() < seconds() {
        for _ in 0..64 {
            target(&mutate(corpus, &mut rng));
            runs += 1;
        }
    }
    println!("{name}: {runs} inputs");
    assert!(runs >= 64);
}

fn mutate(corpus: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let pick = |rng: &mut Rng, n: usize| usize::try_from(rng.below(n.max(1) as u64)).unwrap();
    if corpus.is_empty() || rng.below(8) == 0 {
        let mut noise = vec![0; pick(rng, 400)];
        rng.fill(&mut noise);
        return noise;
    }
    let mut bytes = corpus[pick(rng, corpus.len())].clone();
    for _ in 0..=rng.below(4) {
        let at = pick(rng, bytes.len());
        match rng.below(7) {
            0 => bytes.truncate(at),
            1 if !bytes.is_empty() => bytes[at] ^= 1 << rng.below(8),
            2 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][pick(rng, 5)],
            3 => bytes.insert(at, rng.bytes::<1>()[0]),
            4 => {
                let end = (at + pick(rng, 40)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            5 => {
                let end = (at + pick(rng, 20)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let other = &corpus[pick(rng, corpus.len())];
                let from = pick(rng, other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
        bytes.truncate(100_000);
    }
    bytes
}

#[test]
fn stun() {
    let request = tsd::stun::message::request([1; 12]);
    let v4 = tsd::stun::message::response([1; 12], "203.0.113.7:41641".parse().unwrap());
    let v6 = tsd::stun::message::response([2; 12], "[2001:db8::1]:9".parse().unwrap());
    fuzz("stun", &[request, v4, v6], |bytes| {
        if let Some(txid) = tsd::stun::message::parse_request(bytes) {
            let answer = tsd::stun::message::response(txid, "[2001:db8::1]:1".parse().unwrap());
            assert!(answer.len() <= bytes.len() + 4, "amplifies");
        }
        let _ = tsd::stun::message::parse_response(bytes);
        let _ = tsd::stun::message::is_stun(bytes);
    });
}

#[test]
fn hujson_and_policy() {
    let corpus: Vec<Vec<u8>> = [
        r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#,
        r#"{ // c
          "groups": {"group:a": ["a@", "b@example.com"]}, "hosts": {"h": "10.0.0.0/8",},
          "tagOwners": {"tag:x": ["group:a"]},
          "acls": [{"action": "accept", "proto": "tcp", "src": ["group:a", "tag:x"], "dst": ["h:22,80-90", "autogroup:self:*"]}] /* d */ }"#,
        "{\"acls\": [[[[[[1e400, 0x1, 'a', \"\\ud800\", null, true]]]]]]}",
    ]
    .into_iter()
    .map(|t| t.as_bytes().to_vec())
    .collect();
    fuzz("policy", &corpus, |bytes| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            match tsd::acl::Policy::parse(text) {
                Ok(policy) => drop(policy.compile(&tsd::acl::World::default())),
                Err(faults) => {
                    assert!(!faults.is_empty() && faults.len() <= 51);
                    assert!(faults.iter().all(|f| f.line >= 1 && f.column >= 1));
                }
            }
        }
    });
}

#[test]
fn register_and_map_bodies() {
    let corpus: Vec<Vec<u8>> = [
        format!(r#"{{"Version":145,"NodeKey":"nodekey:{}","Auth":{{"AuthKey":"x"}},"Hostinfo":{{"Hostname":"a","NetInfo":{{"PreferredDERP":900}}}},"Expiry":"0001-01-01T00:00:00Z"}}"#, "ab".repeat(32)),
        format!(r#"{{"version":145,"nodekey":"nodekey:{}","HostInfo":null,"Endpoints":["1.2.3.4:5","bad"],"EndpointTypes":[1,2],"Stream":true}}"#, "cd".repeat(32)),
    ]
    .map(String::into_bytes)
    .to_vec();
    fuzz("register and map bodies", &corpus, |bytes| {
        let _ = tsd::wire::decode_request::<tsd::wire::RegisterRequest>(bytes);
        let _ = tsd::wire::decode_request::<tsd::wire::MapRequest>(bytes);
        let _ = serde_json::from_slice::<tsd::wire::MapResponse>(bytes);
    });
}

#[test]
fn datagrams_and_packets_into_the_engine() {
    let mut rng = Rng::from_os();
    let config = tsd::node::engine::EngineConfig {
        node_key: NodePrivate::generate(&mut rng),
        disco_key: DiscoPrivate::generate(&mut rng),
        accept_routes: true,
        accept_dns: true,
        shields_up: false,
    };
    let me = config.node_key.public();
    let my_disco = config.disco_key.public();
    let peer_key = NodePrivate::generate(&mut rng);
    let peer_disco = DiscoPrivate::generate(&mut rng);
    let now = Now::read();
    let mut engine = tsd::node::engine::Engine::new(config, rng.fork(), now);
    let node = |id: u64, key, disco| tsd::wire::Node {
        id: tsd::keys::NodeId(id),
        name: format!("n{id}.tail.internal."),
        key,
        disco_key: disco,
        addresses: vec![format!("100.64.0.{id}/32").parse().unwrap()],
        machine_authorized: true,
        ..Default::default()
    };
    let map = tsd::wire::MapResponse {
        node: Some(node(1, me, my_disco)),
        peers: Some(vec![node(2, peer_key.public(), peer_disco.public())]),
        dns_config: Some(tsd::wire::DnsConfig {
            proxied: true,
            domains: vec!["tail.internal".into()],
            ..Default::default()
        }),
        packet_filter: Some(vec![tsd::wire::FilterRule {
            src_ips: vec!["*".into()],
            dst_ports: vec![tsd::wire::NetPortRange { ip: "*".into(), ports: tsd::wire::PortRange::ANY }],
            ..Default::default()
        }]),
        ..Default::default()
    };
    engine.handle_map(&map, true, now);
    let sealed = {
        let nonce = [3; 24];
        let mut inner = vec![1, 0];
        inner.extend_from_slice(&[9; 12]);
        inner.extend_from_slice(peer_key.public().as_bytes());
        let mut packet = b"TS\xf0\x9f\x92\xac".to_vec();
        packet.extend_from_slice(peer_disco.public().as_bytes());
        packet.extend_from_slice(&nonce);
        packet.extend_from_slice(&peer_disco.shared(&my_disco).seal(&nonce, &inner));
        packet
    };
    let dns = {
        let mut p = vec![
            0x45, 0, 0, 60, 0, 0, 0, 0, 64, 17, 0, 0, 100, 64, 0, 1, 100, 100, 100, 100, 0x30, 0x39, 0, 53,
            0, 40, 0, 0,
        ];
        p.extend_from_slice(&[
            0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2, b'n', b'2', 4, b't', b'a', b'i', b'l', 8,
        ]);
        p.extend_from_slice(b"internal\0\0\x01\0\x01");
        p
    };
    let tcp = vec![
        0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 100, 64, 0, 2, 100, 64, 0, 1, 0, 80, 0, 80, 0, 0, 0, 0, 0,
        0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0,
    ];
    let mut handshake = vec![0; 148];
    handshake[0] = 1;
    let mut data = vec![0; 96];
    data[0] = 4;
    let stun = tsd::stun::message::response([1; 12], "203.0.113.7:41641".parse().unwrap());
    let corpus = [sealed, dns, tcp, handshake, data, stun];
    let mut wheel = 0_u8;
    fuzz("engine", &corpus, |bytes| {
        wheel = wheel.wrapping_add(1);
        match wheel % 3 {
            0 => engine.handle_tun(bytes, now),
            1 => engine.handle_udp("198.51.100.9:1234".parse().unwrap(), bytes, now),
            _ => engine.handle_derp(RegionId(900), peer_key.public(), bytes, now),
        }
        let mut outputs = 0;
        while engine.poll_output().is_some() {
            outputs += 1;
            assert!(outputs < 10_000, "one input makes endless output");
        }
    });
}

#[test]
fn dns_messages() {
    let query = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x02n2\x04tail\x08internal\0\0\x01\0\x01".to_vec();
    let looped = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\xc0\x0c\0\x01\0\x01".to_vec();
    let node = tsd::wire::Node {
        name: "n2.tail.internal.".into(),
        addresses: vec!["100.64.0.2/32".parse().unwrap()],
        ..Default::default()
    };
    let config =
        tsd::wire::DnsConfig { proxied: true, domains: vec!["tail.internal".into()], ..Default::default() };
    let zone = tsd::dns::Zone::build(&node, std::iter::empty(), &config);
    fuzz("dns", &[query, looped], |bytes| {
        let _ = zone.handle(bytes, false);
        let _ = zone.handle(bytes, true);
    });
}
