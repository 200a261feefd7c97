//! Proof 2: wholly unmodified clients outlive the server.

use std::thread;
use std::time::{Duration, Instant};

use crate::peers::{Kind, OFFICIAL, Peer};
use crate::server::Server;
use crate::world::Lab;

#[test]
fn a_killed_server_comes_back_and_nobody_stops_talking() {
    let lab = Lab::new("server restart");
    let mut server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let o1 = Peer::join(&lab.host("o1"), OFFICIAL, &server.url, &key);
    let o2 = Peer::join(&lab.host("o2"), OFFICIAL, &server.url, &key);
    let t1 = Peer::join(&lab.host("t1"), Kind::Tsd, &server.url, &key);
    let mut t2 = Peer::join(&lab.host("t2"), Kind::Tsd, &server.url, &key);
    let names = ["o1", "o2", "t1", "t2"];
    let ips: Vec<String> = [&o1, &o2, &t1, &t2].map(Peer::ip4).to_vec();
    o1.wait_sees(&["o2", "t1", "t2"], Duration::from_secs(10));
    t1.wait_sees(&["o1", "o2", "t2"], Duration::from_secs(10));
    for peer in [&o1, &t1, &t2] {
        for ip in ips.iter().filter(|ip| **ip != peer.ip4()) {
            peer.wait_icmp(ip, Duration::from_secs(10));
        }
    }

    server.kill9();
    let down = Instant::now();
    // Pairs go on talking; a node of ours restarted meanwhile talks too.
    t2.kill9();
    t2.start_daemon();
    t2.wait_icmp(&ips[0], Duration::from_secs(15));
    t2.wait_icmp(&ips[2], Duration::from_secs(15));
    o1.wait_icmp(&ips[1], Duration::from_secs(5));
    o1.wait_icmp(&ips[2], Duration::from_secs(5));
    t1.wait_icmp(&ips[1], Duration::from_secs(5));
    // Long enough for clients to have failed several times, at most 20 s.
    thread::sleep(Duration::from_secs(12).saturating_sub(down.elapsed()));

    server.restart();
    let back = Instant::now();
    for name in names {
        server.wait_online(name, true, Duration::from_secs(30));
    }
    let took = back.elapsed();
    println!("all streams back after {:.1} s", took.as_secs_f64());
    assert!(took < Duration::from_secs(10), "streams took {took:?}");

    let o3 = Peer::join(&lab.host("o3"), OFFICIAL, &server.url, &key);
    o3.wait_icmp("t2", Duration::from_secs(10));
    t1.wait_icmp("o3", Duration::from_secs(10));
}
