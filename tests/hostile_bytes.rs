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

/// All sections and most words of the policy language.
const WHOLE_POLICY: &str = r#"{ // c
  "groups": {"group:a": ["a@", "b@example.com"], "group:b": []},
  "hosts": {"h": "10.0.0.0/8", "one": "100.64.0.1",},
  "ipsets": {"ipset:s": ["10.0.0.0/8", "remove 10.1.0.0/16", "add host:h"], "ipset:t": ["ipset:s", "1.0.0.0-2.0.0.0"]},
  "tagOwners": {"tag:x": ["group:a", "tag:x"], "tag:y": ["autogroup:member"]},
  "postures": {"posture:p": ["node:os == 'linux'", "node:tsVersion >= '1.80'", "custom:x IN ['a', 'b']", "ip:country NOT SET"]},
  "defaultSrcPosture": ["posture:p"],
  "acls": [
    {"action": "accept", "proto": "tcp", "src": ["group:a", "tag:x", "*"], "dst": ["h:22,80-90", "[fd7a:115c:a1e0::1]:*"]},
    {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*", "ipset:t:443"], "srcPosture": []},
    {"Action": "accept", "Users": ["autogroup:danger-all"], "Ports": ["autogroup:internet:*"]}],
  "grants": [
    {"src": ["a@", "user:*@example.com"], "dst": ["tag:y"], "ip": ["tcp:443", "icmp:*", "80-90", "*"],
     "app": {"tailscale.com/cap/drive": [{"shares": ["*"]}], "example.com/x": []}},
    {"src": ["100.64.0.1-100.64.0.9"], "dst": ["10.0.0.0/16"], "ip": ["22"], "via": ["tag:x"], "srcPosture": ["posture:p"]}],
  "ssh": [
    {"action": "check", "checkPeriod": "12h", "src": ["autogroup:member"], "dst": ["tag:x", "autogroup:self"],
     "users": ["root", "autogroup:nonroot", "localpart:*@example.com"], "acceptEnv": ["LANG_*"]}],
  "nodeAttrs": [{"target": ["tag:x", "*"], "attr": ["funnel", "disable-ipv4"], "ipPool": ["100.80.0.0/16"],
     "app": {"tailscale.com/app-connectors": [{"name": "n", "domains": ["d"], "connectors": ["tag:x"]}]}}],
  "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:x"]}, "exitNode": ["group:a"], "services": {"svc:w": ["tag:x"]}},
  "tests": [{"src": "a@", "proto": "tcp", "accept": ["tag:y:443"], "deny": ["h:22"], "srcPostureAttrs": {"node:os": "linux"}}],
  "sshTests": [{"src": "a@", "dst": ["tag:x"], "accept": ["root"], "deny": ["x"], "check": ["y"]}],
  "derpMap": {"OmitDefaultRegions": false, "Regions": {"900": null}},
  "disableIPv4": false, "OneCGNATRoute": "mac-always", "randomizeClientPort": true /* d */ }"#;

/// Reads a policy; if it is one, compiles it for a few nodes, asks everything, and goes on by a step.
fn judge(text: &str) {
    use tsd::acl::{Policy, World, WorldChange, WorldNode, WorldUser};
    use tsd::keys::{NodeId, UserId};
    use tsd::model::{Owner, Role, Tag, Tags};
    let policy = match Policy::parse(text) {
        Ok(policy) => policy,
        Err(faults) => {
            assert!(!faults.is_empty() && faults.len() <= 51);
            assert!(faults.iter().all(|f| f.line >= 1 && f.column >= 1));
            return;
        }
    };
    let mut world = World { domains: ["example.com".to_owned()].into(), ..World::default() };
    let user = WorldUser { id: UserId(1), name: "a".into(), role: Role::Owner };
    world.users.insert(user.id, user);
    let tags = |text| Owner::Tags(Tags::new([Tag::parse(text).unwrap()]).unwrap());
    for (id, owner) in (1..).zip([Owner::User(UserId(1)), tags("tag:x"), tags("tag:y")]) {
        let node = WorldNode {
            id: NodeId(id),
            name: format!("n{id}"),
            owner,
            ipv4: std::net::Ipv4Addr::from(0x6440_0000 + u32::try_from(id).unwrap()),
            ipv6: std::net::Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, u16::try_from(id).unwrap()),
            served_routes: ["10.1.0.0/16", "0.0.0.0/0"].map(|r| r.parse().unwrap())
                [..usize::from(id == 2) * 2]
                .to_vec(),
            attributes: std::collections::BTreeMap::new(),
        };
        world.nodes.insert(node.id, node);
    }
    drop((policy.warnings(&world), policy.mistakes(&world)));
    let mut compiled = policy.compile(&world);
    let gone = WorldChange { nodes: [(NodeId(3), None)].into(), ..WorldChange::default() };
    for _ in 0..2 {
        for node in world.nodes.keys().copied() {
            let routes: Vec<_> = world.nodes[&node].served_routes.clone();
            drop((
                compiled.filter_rules(node),
                compiled.ssh_rules(node, "https://x"),
                compiled.self_caps(node),
            ));
            drop((compiled.auto_approved(node, &routes), compiled.ip_pool(node), compiled.peer_caps(node)));
            for peer in compiled.peers(node) {
                assert!(compiled.visible(peer, node), "{node:?} and {peer:?} do not see each other alike");
                drop(compiled.shown_routes(node, peer, &|_, among| among.first().copied()));
            }
        }
        drop(compiled.failing_tests());
        compiled = compiled.update(&gone).0;
    }
}

#[test]
fn hujson_and_policy() {
    let corpus: Vec<Vec<u8>> = [
        r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#,
        WHOLE_POLICY,
        "{\"acls\": [[[[[[1e400, 0x1, 'a', \"\\ud800\", null, true]]]]]]}",
    ]
    .into_iter()
    .map(|t| t.as_bytes().to_vec())
    .collect();
    fuzz("policy", &corpus, |bytes| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            judge(text);
        }
    });
}

/// A policy that stays JSON: its words change places, take parts of others, or go.
#[test]
fn policy_of_other_words() {
    fn slots<'a>(value: &'a mut serde_json::Value, out: &mut Vec<&'a mut serde_json::Value>) {
        match value {
            serde_json::Value::Array(items) => items.iter_mut().for_each(|v| slots(v, out)),
            serde_json::Value::Object(items) => items.values_mut().for_each(|v| slots(v, out)),
            leaf => out.push(leaf),
        }
    }
    let plain = WHOLE_POLICY.replace("// c", "").replace("/* d */", "").replace(",}", "}");
    let whole: serde_json::Value = serde_json::from_str(&plain).unwrap();
    let mut copy = whole.clone();
    let mut words = Vec::new();
    slots(&mut copy, &mut words);
    let words: Vec<serde_json::Value> = words.into_iter().map(|w| w.clone()).collect();
    judge(WHOLE_POLICY);
    fuzz("policy words", &[], |bytes| {
        let mut policy = whole.clone();
        let mut places = Vec::new();
        slots(&mut policy, &mut places);
        for choice in bytes.chunks_exact(4).take(4) {
            let place = usize::from(choice[0]) % places.len();
            let word = &words[usize::from(choice[1]) % words.len()];
            let new = match (choice[2] % 4, &*places[place], word) {
                (0, serde_json::Value::String(old), serde_json::Value::String(other)) => {
                    let cut = usize::from(choice[3]) % (old.len() + 1);
                    let head = old.get(..cut).unwrap_or_default();
                    serde_json::Value::String(format!("{head}{other}"))
                }
                (1, _, _) => serde_json::Value::Null,
                _ => word.clone(),
            };
            *places[place] = new;
        }
        judge(&policy.to_string());
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
            src_ips: ["*"].into_iter().collect(),
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

/// Runs async targets, one input after the other.
fn block<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

mod noise {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tsd::keys::MachinePrivate;
    use tsd::noise::handshake::{Initiator, RESPONSE_LEN, error_frame, respond};
    use tsd::noise::stream::{ClientHandshake, accept};
    use tsd::wire::CapVer;

    use super::{Rng, block, fuzz};

    fn server() -> MachinePrivate {
        MachinePrivate::from_bytes([0x11; 32])
    }

    fn machine() -> MachinePrivate {
        MachinePrivate::from_bytes([0x22; 32])
    }

    fn initiation() -> (Initiator, [u8; 101]) {
        Initiator::new(&machine(), &server().public(), CapVer::OURS, [0x33; 32].into()).unwrap()
    }

    #[test]
    fn initiations() {
        let (_, good) = initiation();
        fuzz("noise initiation", &[good.to_vec()], |bytes| {
            if let Ok(accepted) = respond(bytes, &server(), [0x44; 32].into()) {
                assert_eq!(bytes, good, "a changed initiation was taken");
                assert_eq!(accepted.machine, machine().public());
            }
        });
    }

    #[test]
    fn responses() {
        let (_, sent) = initiation();
        let good = respond(&sent, &server(), [0x44; 32].into()).unwrap().response;
        fuzz("noise response", &[good.to_vec(), error_frame("no")], |bytes| {
            let (state, _) = initiation();
            assert!(state.finish(bytes).is_err() || bytes == good, "a changed response was taken");
        });
    }

    #[test]
    fn what_a_server_answers() {
        let (handshake, first) =
            ClientHandshake::new(&machine(), &server().public(), CapVer::OURS, &mut Rng::from_seed([5; 32]));
        drop(handshake);
        let mut corpus = vec![error_frame("no")];
        let mut whole = respond(&first, &server(), [0x44; 32].into()).unwrap();
        let mut bytes = whole.response.to_vec();
        let early = [b"\xff\xff\xffTS\0\0\0\x02{}", b"hello to the client".as_slice()].concat();
        whole.channel.sealer.seal(&early, &mut bytes).unwrap();
        corpus.push(bytes);
        fuzz("noise server answer", &corpus, |bytes| {
            let (handshake, _) = ClientHandshake::new(
                &machine(),
                &server().public(),
                CapVer::OURS,
                &mut Rng::from_seed([5; 32]),
            );
            let mut got = Vec::new();
            block(async {
                let io = tokio::io::join(bytes, tokio::io::sink());
                if let Ok(mut stream) = handshake.finish(io).await {
                    let _ = stream.read_to_end(&mut got).await;
                }
            });
            assert!(b"hello to the client".starts_with(&got), "not what was sealed: {got:?}");
        });
    }

    #[test]
    fn records() {
        // What the server reads out of mutated records is a prefix of what was sealed, whatever was done.
        let text: Vec<u8> = (0..9000_u32).map(|n| (n % 251) as u8).collect();
        let (state, first) = initiation();
        let mut rng = Rng::from_seed([7; 32]);
        let response = block(async {
            let (mut near, far) = tokio::io::duplex(4096);
            let accepted = accept(far, &first, &server(), None, &mut Rng::from_seed([9; 32])).await;
            drop(accepted.unwrap());
            let mut response = [0; RESPONSE_LEN];
            near.read_exact(&mut response).await.unwrap();
            response
        });
        let mut sealer = state.finish(&response).unwrap().sealer;
        let mut records = Vec::new();
        for part in text.chunks(2500) {
            sealer.seal(part, &mut records).unwrap();
        }
        let mut swapped = records[2519..].to_vec();
        swapped.extend_from_slice(&records[..2519]);
        let mut longest = 0;
        fuzz("noise records", &[records.clone(), swapped], |bytes| {
            let cut = usize::try_from(rng.below(bytes.len().max(1) as u64)).unwrap();
            let mut got = Vec::new();
            block(async {
                let (near, far) = tokio::io::duplex(200_000);
                let accepted = accept(far, &first, &server(), None, &mut Rng::from_seed([9; 32])).await;
                let (mut stream, _) = accepted.unwrap();
                let mut near = near;
                let (head, tail) = bytes.split_at(cut);
                near.write_all(head).await.unwrap();
                near.write_all(tail).await.unwrap();
                near.shutdown().await.unwrap();
                let _ = stream.read_to_end(&mut got).await;
            });
            longest = longest.max(got.len());
            assert!(text.starts_with(&got), "not what was sealed");
            // All of it only when all records are there untouched; what follows them is refused by itself.
            assert!(bytes.starts_with(&records) || got.len() < text.len());
        });
        assert!(longest > 0, "no input got past the first record");
    }
}

mod derp {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use bytes::Bytes;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tsd::derp::frame::{Frame, HEADER_LEN, Header, Plan, plan_from_client, plan_from_server};
    use tsd::derp::handshake::{ClientInfo, client_info, open_client_info};
    use tsd::derp::server::{Admission, DerpServer};
    use tsd::keys::{DerpPrivate, NodePrivate, NodePublic};

    use super::{Rng, block, fuzz};

    struct Only(NodePublic);

    impl Admission for Only {
        fn admit(&self, key: &NodePublic, _from: SocketAddr) -> bool {
            *key == self.0
        }
    }

    fn traffic(to: NodePublic) -> Vec<u8> {
        let mut out = Vec::new();
        for frame in [
            Frame::NotePreferred(true),
            Frame::SendPacket { to, packet: Bytes::from(vec![7; 300]) },
            Frame::Ping([1; 8]),
            Frame::SendPacket { to: NodePublic::from_bytes([9; 32]), packet: Bytes::from(vec![8; 80]) },
            Frame::Unknown(0x77),
            Frame::Pong([2; 8]),
        ] {
            frame.encode_into(&mut out);
        }
        out
    }

    #[test]
    fn frames() {
        let key = NodePublic::from_bytes([3; 32]);
        let mut corpus = vec![traffic(key)];
        for frame in [
            Frame::PeerPresent { key, addr: Some("192.0.2.1:7".parse().unwrap()), flags: 1 },
            Frame::ForwardPacket { from: key, to: key, packet: Bytes::from_static(b"x") },
            Frame::Health("slow".into()),
            Frame::Restarting { reconnect_in: 1, try_for: 2 },
        ] {
            corpus.push(frame.encode());
        }
        fuzz("derp frames", &corpus, |bytes| {
            let Some(header) = Header::parse(bytes) else { return };
            for plan in [plan_from_client(header), plan_from_server(header)] {
                let Ok(Plan::Take(len)) = plan else { continue };
                assert!(len <= 1 << 20, "a payload of {len} bytes would be held");
                let payload = bytes.get(HEADER_LEN..HEADER_LEN + len).map(Bytes::copy_from_slice);
                if let Some(Ok(frame)) = payload.map(|p| Frame::parse(header.kind, p)) {
                    let again = frame.encode();
                    let back = Frame::parse(header.kind, Bytes::from(again).slice(HEADER_LEN..));
                    assert_eq!(back.as_ref(), Ok(&frame));
                }
            }
        });
    }

    #[test]
    fn logins() {
        let mut rng = Rng::from_seed([3; 32]);
        let relay = DerpPrivate::generate(&mut rng);
        let node = NodePrivate::generate(&mut rng);
        let Frame::ClientInfo { key, sealed } =
            client_info(&node, &relay.public(), &ClientInfo::ours(), &mut rng)
        else {
            panic!("another frame");
        };
        let good = [key.as_bytes().as_slice(), &sealed].concat();
        fuzz("derp login", std::slice::from_ref(&good), |bytes| {
            let Some((key, sealed)) = bytes.split_first_chunk::<32>() else { return };
            let frame = Frame::ClientInfo {
                key: NodePublic::from_bytes(*key),
                sealed: Bytes::copy_from_slice(sealed),
            };
            assert!(open_client_info(&relay, &frame).is_err() || bytes == good, "a changed box opened");
        });
    }

    #[test]
    fn connections() {
        // A whole connection: login, then whatever comes. It always ends, and leaves no trace.
        let mut rng = Rng::from_seed([3; 32]);
        let relay = DerpPrivate::generate(&mut rng);
        let node = NodePrivate::generate(&mut rng);
        let hello = client_info(&node, &relay.public(), &ClientInfo::ours(), &mut rng).encode();
        let server = DerpServer::new(relay, Arc::new(Only(node.public())));
        let whole = [hello.clone(), traffic(node.public())].concat();
        let corpus = [whole, hello.clone()];
        let mut relayed = 0;
        fuzz("derp connection", &corpus, |bytes| {
            // Half of the inputs keep the login, so that the mutation meets what comes after it.
            let input = if rng.below(2) == 0 { bytes.to_vec() } else { [&hello, bytes].concat() };
            block(async {
                let (mut near, far) = tokio::io::duplex(300_000);
                near.write_all(&input).await.unwrap();
                near.shutdown().await.unwrap();
                let served = server.serve(far, "127.0.0.1:9".parse().unwrap());
                let limit = std::time::Duration::from_secs(20);
                tokio::time::timeout(limit, served).await.expect("a connection that ended is still served");
                let mut answers = Vec::new();
                near.read_to_end(&mut answers).await.unwrap();
                assert!(answers.len() <= 300_000);
            });
            let stats = server.stats();
            assert_eq!(stats.connections, 0);
            relayed = stats.packets;
        });
        assert!(relayed > 0, "no input got past the login");
    }

    #[test]
    fn websockets() {
        // RFC 6455 5.2: final binary frames, masked with zeros.
        let frame = |payload: &[u8]| {
            let len = u16::try_from(payload.len()).unwrap().to_be_bytes();
            [&[0x82, 0x80 | 126, len[0], len[1], 0, 0, 0, 0], payload].concat()
        };
        let two = [frame(&[5; 300]), frame(&[6; 10])].concat();
        let huge = [0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0].to_vec();
        let unmasked = [0x82, 3, 1, 2, 3].to_vec();
        block(async {
            assert_eq!(tsd::derp::fuzz_websocket(&two).await.len(), 310);
            assert!(tsd::derp::fuzz_websocket(&huge).await.is_empty(), "a message of 2^63 bytes");
            assert!(tsd::derp::fuzz_websocket(&unmasked).await.is_empty(), "an unmasked message");
        });
        fuzz("derp websocket", &[two, huge, unmasked], |bytes| {
            let out = block(tsd::derp::fuzz_websocket(bytes));
            assert!(out.len() <= bytes.len());
        });
    }
}

#[test]
fn heads_of_connections() {
    let fast = b"GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Fast-Start: 1\r\n\r\n\x02\0\0rest".to_vec();
    let slow = b"GET /derp HTTP/1.1\r\nUpgrade: DERP\r\n\r\n".to_vec();
    let long = [b"GET /derp HTTP/1.1\r\nA: ".to_vec(), vec![b'x'; 20_000]].concat();
    let mut fasts = 0;
    fuzz("heads", &[fast, slow, long], |bytes| {
        let (fast, out) = block(tsd::serve::fuzz_sniff(bytes));
        // Nothing is lost and nothing is made up.
        assert!(bytes.ends_with(&out));
        assert!(fast || out.len() == bytes.len());
        fasts += u64::from(fast);
    });
    assert!(fasts > 0, "no input was a fast start");
}

#[test]
fn maps_of_a_server() {
    let json = br#"{"KeepAlive":false,"Domain":"d","Peers":[{"ID":1,"Name":"a.b."}]}"#;
    let framed = |body: &[u8]| [&u32::try_from(body.len()).unwrap().to_le_bytes(), body].concat();
    let packed = zstd::bulk::compress(json, 3).unwrap();
    // Row 19 from the server's side: 70 MB of spaces in some KB.
    let bomb = zstd::bulk::compress(&vec![b' '; 70 << 20], 19).unwrap();
    assert!(bomb.len() < 100_000);
    assert_eq!(tsd::node::control::fuzz_map(&framed(&bomb), true), 0);
    assert_eq!(tsd::node::control::fuzz_map(&framed(&packed), true), 1);
    let corpus = [framed(json), framed(&packed), [framed(&packed), framed(&packed)].concat()];
    let mut wheel = false;
    fuzz("map messages", &corpus, |bytes| {
        wheel = !wheel;
        let _ = tsd::node::control::fuzz_map(bytes, wheel);
    });
}
