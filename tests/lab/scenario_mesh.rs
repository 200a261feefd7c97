//! Proof 1: every pair of clients, on one LAN, behind two easy NATs, with UDP blocked.

use std::time::Duration;

use crate::flows::transfer;
use crate::peers::{Kind, OFFICIAL, Peer};
use crate::server::Server;
use crate::world::{Host, Lab, Nat};

const BULK: usize = 30 << 20;

#[derive(Clone, Copy, PartialEq)]
enum Expect {
    Direct,
    Relayed,
}

/// Two official clients and two of ours on the given machines; all pairs must talk.
fn mesh(server: &Server, hosts: [Host; 4], expect: Expect) {
    let key = server.key(&["--reusable"]);
    let kinds = [OFFICIAL, OFFICIAL, Kind::Tsd, Kind::Tsd];
    let peers: Vec<Peer> =
        hosts.iter().zip(kinds).map(|(host, kind)| Peer::join(host, kind, &server.url, &key)).collect();
    let names: Vec<&str> = peers.iter().map(Peer::name).collect();
    for (i, peer) in peers.iter().enumerate() {
        let others: Vec<&str> = names.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, n)| *n).collect();
        peer.wait_sees(&others, Duration::from_secs(10));
    }
    for (a, b) in [(0, 1), (0, 2), (2, 3)] {
        talk(&peers[a], &peers[b], expect);
    }
}

fn talk(a: &Peer, b: &Peer, expect: Expect) {
    let (ip_a, ip_b) = (a.ip4(), b.ip4());
    for (from, to, ip) in [(a, b, &ip_b), (b, a, &ip_a)] {
        from.wait_icmp(ip, Duration::from_secs(10));
        from.wait_icmp(&format!("{}.tail.internal", to.name()), Duration::from_secs(5));
        from.wait_icmp(to.name(), Duration::from_secs(5));
        match expect {
            Expect::Direct => {
                let line = from.ping_until_direct(ip);
                assert!(!line.contains("DERP"), "{} to {}: {line}", from.name(), to.name());
                assert!(line.starts_with(&format!("pong from {} ({ip}) via ", to.name())), "{line}");
            }
            Expect::Relayed => {
                let line = from.mesh_ping(ip);
                assert!(line.contains("via DERP(tsd)"), "{} to {}: {line}", from.name(), to.name());
            }
        }
        let done = transfer(&from.host, &to.host, ip, BULK);
        println!(
            "{} -> {}: {:.1} MB/s",
            from.name(),
            to.name(),
            done.bytes as f64 / 1e6 / done.took.as_secs_f64()
        );
    }
}

#[test]
fn all_pairs_talk_on_one_lan() {
    let lab = Lab::new("one LAN");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let router = lab.router("nat", Nat::Easy);
    mesh(&server, ["o1", "o2", "t1", "t2"].map(|n| router.host(n)), Expect::Direct);
}

#[test]
fn all_pairs_talk_directly_behind_easy_nats() {
    let lab = Lab::new("easy NATs");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let hosts = ["o1", "o2", "t1", "t2"].map(|n| lab.router(&format!("n{n}"), Nat::Easy).host(n));
    mesh(&server, hosts, Expect::Direct);
}

#[test]
fn all_pairs_talk_by_relay_with_udp_blocked() {
    let lab = Lab::new("UDP blocked");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let hosts = ["o1", "o2", "t1", "t2"].map(|n| {
        let host = lab.host(n);
        host.block_udp();
        host
    });
    mesh(&server, hosts, Expect::Relayed);
}

#[test]
fn hard_nats_fall_back_to_the_relay() {
    let lab = Lab::new("hard NATs");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let t1 = Peer::join(&lab.router("n1", Nat::Hard).host("t1"), Kind::Tsd, &server.url, &key);
    let o1 = Peer::join(&lab.router("n2", Nat::Hard).host("o1"), OFFICIAL, &server.url, &key);
    t1.wait_sees(&["o1"], Duration::from_secs(10));
    for (from, to) in [(&t1, &o1), (&o1, &t1)] {
        let line = from.mesh_ping(&to.ip4());
        assert!(line.contains("via DERP(tsd)"), "{line}");
        from.wait_icmp(to.name(), Duration::from_secs(5));
    }
}

#[test]
fn server_and_node_share_one_host() {
    let lab = Lab::new("one host");
    let host = lab.host_at("srv", "203.0.113.10");
    let server = Server::start(&host);
    let key = server.key(&["--reusable"]);
    let own = Peer::join(&host, Kind::Tsd, &server.url, &key);
    let other = Peer::join(&lab.host("o1"), OFFICIAL, &server.url, &key);
    own.wait_sees(&["o1"], Duration::from_secs(10));
    own.wait_icmp("o1", Duration::from_secs(10));
    other.wait_icmp("srv", Duration::from_secs(10));
}
