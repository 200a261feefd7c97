//! Nodes whose surroundings change: restarts without the server, new peers, moved addresses, cut links,
//! settings of the host that somebody else undoes, and networks that speak IPv6.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::peers::{Kind, OFFICIAL, Peer, lossy};
use crate::server::Server;
use crate::world::{Host, Lab, Nat, eventually};

/// How long the system's `ping`, twenty times a second, waits for a first answer.
fn first_answer(from: &Host, target: &str) -> Duration {
    let start = Instant::now();
    let out = from.output("ping", &["-n", "-i", "0.05", "-c", "1", "-w", "15", target]);
    assert!(out.status.success(), "no answer from {target}: {}", lossy(&out.stdout));
    start.elapsed()
}

/// A TCP stream that goes on through whatever happens, and notes the longest silence at its receiver.
struct Stream {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<Duration>>,
}

impl Stream {
    fn start(from: &Host, to: &Host, to_ip: &str) -> Self {
        let ip: IpAddr = to_ip.parse().unwrap();
        let (ready, port) = std::sync::mpsc::channel();
        let receiver = to.inside(move || {
            let listener = TcpListener::bind(SocketAddr::new(ip, 0)).unwrap();
            ready.send(listener.local_addr().unwrap().port()).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let (mut buf, mut expected, mut worst) = ([0_u8; 4096], 0_u8, Duration::ZERO);
            let mut last = Instant::now();
            loop {
                let n = stream.read(&mut buf).expect("the stream broke");
                if n == 0 {
                    return worst;
                }
                worst = worst.max(last.elapsed());
                last = Instant::now();
                for byte in &buf[..n] {
                    assert_eq!(*byte, expected, "bytes were lost or changed");
                    expected = expected.wrapping_add(1);
                }
            }
        });
        let port = port.recv().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let sender = from.inside(move || {
            let mut stream =
                TcpStream::connect_timeout(&SocketAddr::new(ip, port), Duration::from_secs(15)).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
            stream.set_nodelay(true).unwrap();
            let mut next = 0_u8;
            while !stopped.load(Ordering::Relaxed) {
                let chunk: Vec<u8> = (0..200_u8).map(|i| next.wrapping_add(i)).collect();
                next = next.wrapping_add(200);
                stream.write_all(&chunk).expect("the stream broke");
                thread::sleep(Duration::from_millis(20));
            }
            Duration::ZERO
        });
        Self { stop, threads: vec![sender, receiver] }
    }

    /// Ends it; gives the longest silence.
    fn end(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|t| t.join().expect("the stream survives")).max().unwrap()
    }
}

#[test]
fn names_are_answered_at_once_every_time() {
    let lab = Lab::new("names");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let o1 = Peer::join(&lab.host("o1"), OFFICIAL, &server.url, &key);
    let t1 = Peer::join(&lab.host("t1"), Kind::Tsd, &server.url, &key);
    t1.wait_icmp(&o1.ip4(), Duration::from_secs(10));
    for name in ["o1", "o1.tail.internal", "t1"] {
        for n in 0..40 {
            let start = Instant::now();
            let out = t1.host.output("getent", &["ahosts", name]);
            assert!(out.status.success(), "{name}, try {n}: no answer after {:?}", start.elapsed());
            assert!(start.elapsed() < Duration::from_secs(2), "{name}, try {n}: {:?}", start.elapsed());
        }
    }
}

#[test]
fn a_restarted_node_talks_within_a_second_without_its_server() {
    let lab = Lab::new("restart");
    let mut server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let o1 = Peer::join(&lab.host("o1"), OFFICIAL, &server.url, &key);
    let t1 = Peer::join(&lab.host("t1"), Kind::Tsd, &server.url, &key);
    let mut t2 = Peer::join(&lab.host("t2"), Kind::Tsd, &server.url, &key);
    for peer in [&o1, &t1] {
        t2.wait_icmp(&peer.ip4(), Duration::from_secs(10));
        assert!(!t2.ping_until_direct(&peer.ip4()).contains("DERP"));
    }
    let ips = [t1.ip4(), o1.ip4()];
    // The netmap is written half a second after it changed.
    thread::sleep(Duration::from_secs(1));
    server.kill9();
    for ip in &ips {
        t2.kill9();
        t2.start_daemon();
        let took = first_answer(&t2.host, ip);
        println!("{ip}: first answer {took:?} after the daemon was back");
        // The goal is one second; three times that here, and still under WireGuard's own retry.
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
    // And when it is the others that speak first, in a session that the restarted node does not have.
    let own = t2.ip4();
    for peer in [&t1, &o1] {
        t2.wait_icmp(&peer.ip4(), Duration::from_secs(5));
        t2.kill9();
        t2.start_daemon();
        let took = first_answer(&peer.host, &own);
        println!("{}: first answer {took:?} from the node that is back", peer.name());
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
}

#[test]
fn the_first_packet_to_a_new_peer_is_fast() {
    let lab = Lab::new("new peers");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let t1 = Peer::join(&lab.host("t1"), Kind::Tsd, &server.url, &key);
    let nat = lab.router("nat", Nat::Easy);
    let mut worst = Duration::ZERO;
    for (host, kind) in [
        (lab.host("n1"), Kind::Tsd),
        (nat.host("n2"), Kind::Tsd),
        (lab.host("n3"), OFFICIAL),
        (nat.host("n4"), OFFICIAL),
    ] {
        let new = Peer::join(&host, kind, &server.url, &key);
        let ip = new.ip4();
        t1.wait_sees(&[new.name()], Duration::from_secs(5));
        let took = first_answer(&t1.host, &ip);
        println!("{}: first answer after {took:?}", new.name());
        worst = worst.max(took);
    }
    assert!(worst < Duration::from_millis(900), "{worst:?}");
}

fn moves(mover_kind: Kind, other_kind: Kind, limit: Duration) {
    let lab = Lab::new("moving");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let mover = Peer::join(&lab.host("m1"), mover_kind, &server.url, &key);
    let other = Peer::join(&lab.host("s1"), other_kind, &server.url, &key);
    mover.wait_icmp(&other.ip4(), Duration::from_secs(10));
    assert!(!mover.ping_until_direct(&other.ip4()).contains("DERP"));
    let away = Stream::start(&mover.host, &other.host, &other.ip4());
    let home = Stream::start(&other.host, &mover.host, &mover.ip4());
    thread::sleep(Duration::from_secs(1));
    let old = format!("{}/24", mover.host.addr);
    mover.host.ok("ip", &["addr", "del", &old, "dev", "wan"]);
    mover.host.ok("ip", &["addr", "add", "203.0.113.200/24", "dev", "wan"]);
    let moved = Instant::now();
    other.wait_icmp(&mover.ip4(), Duration::from_secs(20));
    println!("after a new address: answers after {:?}", moved.elapsed());
    thread::sleep(Duration::from_secs(9).saturating_sub(moved.elapsed()));
    let (away, home) = (away.end(), home.end());
    println!("longest silence of the streams: away {away:?}, home {home:?}");
    assert!(away.max(home) < limit, "away {away:?}, home {home:?}");
    let line = other.ping_until_direct(&mover.ip4());
    assert!(line.contains("203.0.113.200"), "{line}");

    let stream = Stream::start(&other.host, &mover.host, &mover.ip4());
    mover.host.ok("ip", &["link", "set", "wan", "down"]);
    thread::sleep(Duration::from_secs(1));
    mover.host.ok("ip", &["link", "set", "wan", "up"]);
    let up = Instant::now();
    other.wait_icmp(&mover.ip4(), Duration::from_secs(20));
    println!("after the link was down for a second: answers after {:?}", up.elapsed());
    thread::sleep(Duration::from_secs(4).saturating_sub(up.elapsed()));
    let silence = stream.end();
    println!("longest silence: {silence:?}");
    assert!(silence < limit + Duration::from_secs(1), "{silence:?}");
}

#[test]
fn a_node_that_moves_keeps_its_streams_with_a_node_of_ours() {
    moves(Kind::Tsd, Kind::Tsd, Duration::from_secs(4));
}

#[test]
fn a_node_that_moves_keeps_its_streams_with_an_official_client() {
    // The official client stays with an address for 6.5 s after its last pong.
    moves(Kind::Tsd, OFFICIAL, Duration::from_secs(8));
}

#[test]
fn what_others_undo_in_the_host_comes_back() {
    let lab = Lab::new("undone");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let t1 = Peer::join(&lab.host("t1"), Kind::Tsd, &server.url, &key);
    let t2 = Peer::join(&lab.host("t2"), Kind::Tsd, &server.url, &key);
    let ip = t2.ip4();
    t1.wait_icmp(&ip, Duration::from_secs(10));
    let picture = || {
        let routes = t1.host.ok("ip", &["route", "show", "table", "52"]);
        let routes6 = t1.host.ok("ip", &["-6", "route", "show", "table", "52"]);
        let rules = t1.host.ok("ip", &["rule"]);
        let rules6 = t1.host.ok("ip", &["-6", "rule"]);
        let addresses = t1.host.ok("ip", &["-4", "-o", "addr", "show", "dev", "tsd0"]);
        (routes, routes6, rules, rules6, addresses)
    };
    let before = picture();
    let own = format!("{}/32", t1.ip4());
    let undo: [&[&str]; 5] = [
        &["rule", "del", "pref", "5270"],
        &["-6", "rule", "del", "pref", "5270"],
        &["route", "flush", "table", "52"],
        &["-6", "route", "flush", "table", "52"],
        &["addr", "del", &own, "dev", "tsd0"],
    ];
    for args in undo {
        t1.host.ok("ip", args);
        eventually(&format!("{args:?} is undone"), Duration::from_secs(5), || {
            let now = picture();
            if now == before { Ok(()) } else { Err(format!("{now:?} instead of {before:?}")) }
        });
    }
    t1.wait_icmp(&ip, Duration::from_secs(5));

    let resolv = t1.host.path("/etc/resolv.conf");
    std::fs::write(&resolv, "nameserver 203.0.113.99\n").unwrap();
    eventually("resolv.conf is ours again", Duration::from_secs(10), || {
        let text = std::fs::read_to_string(&resolv).unwrap();
        if text.contains("100.100.100.100") { Ok(()) } else { Err(text) }
    });
    eventually("status warns", Duration::from_secs(5), || {
        let health = t1.status()["Health"].to_string();
        if health.contains("resolv.conf") { Ok(()) } else { Err(health) }
    });
    t1.ok(&["down"]);
    // What the other program wrote is the newest original.
    eventually("down restores what the other program wanted", Duration::from_secs(5), || {
        let text = std::fs::read_to_string(&resolv).unwrap();
        if text == "nameserver 203.0.113.99\n" { Ok(()) } else { Err(text) }
    });
}

#[test]
fn many_kills_leave_one_set_of_rules() {
    let lab = Lab::new("kills");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let host = lab.host("t1");
    let resolv = || std::fs::read_to_string(host.path("/etc/resolv.conf")).unwrap();
    let (rules, rules6, conf) = (host.ok("ip", &["rule"]), host.ok("ip", &["-6", "rule"]), resolv());
    let mut t1 = Peer::join(&host, Kind::Tsd, &server.url, &key);
    let up = host.ok("ip", &["rule"]);
    for _ in 0..4 {
        t1.kill9();
        t1.start_daemon();
        t1.wait_running(Duration::from_secs(10));
    }
    eventually("one set of rules", Duration::from_secs(5), || {
        let now = host.ok("ip", &["rule"]);
        if now == up { Ok(()) } else { Err(now) }
    });
    // Killed and never started again as this node: even a start without login cleans up.
    t1.kill9();
    let _ = std::fs::remove_dir_all(host.path("/var/lib/tsd-node").join("nothing"));
    t1.start_daemon();
    t1.ok(&["down"]);
    eventually("everything is put back", Duration::from_secs(5), || {
        let now = (host.ok("ip", &["rule"]), host.ok("ip", &["-6", "rule"]), resolv());
        if now == (rules.clone(), rules6.clone(), conf.clone()) { Ok(()) } else { Err(format!("{now:?}")) }
    });
}

/// Gives a machine an IPv6 address on the wire, beside its IPv4 one or instead of it.
fn speak_v6(host: &Host, last: u8, instead: bool) -> String {
    let addr = format!("2001:db8::{last:x}");
    host.ok("ip", &["addr", "add", &format!("{addr}/64"), "dev", "wan", "nodad"]);
    if instead {
        host.ok("ip", &["addr", "del", &format!("{}/24", host.addr), "dev", "wan"]);
    }
    addr
}

fn over_v6(only: bool) {
    let lab = Lab::new(if only { "IPv6 only" } else { "dual stack" });
    let srv = lab.host_at("srv", "203.0.113.10");
    let addr = speak_v6(&srv, 0x10, only);
    let server = Server::start_with(&srv, &format!("http://[{addr}]:8080"), &[]);
    let key = server.key(&["--reusable"]);
    let mut peers = Vec::new();
    for (n, (name, kind)) in (0x20..).zip([("t1", Kind::Tsd), ("t2", Kind::Tsd), ("o1", OFFICIAL)]) {
        let host = lab.host(name);
        speak_v6(&host, n, only);
        peers.push(Peer::join(&host, kind, &server.url, &key));
    }
    // The relay's name is an IPv6 address, of which official clients too have to make a URL.
    eventually("all three are at the relay", Duration::from_secs(15), || {
        let status = server.json(&["status"]);
        if status["derp_connections"] == 3 { Ok(()) } else { Err(status["derp_connections"].to_string()) }
    });
    let t1 = &peers[0];
    for other in &peers[1..] {
        let ip = other.ip4();
        t1.wait_icmp(&ip, Duration::from_secs(15));
        let line = t1.ping_until_direct(&ip);
        assert!(!line.contains("DERP"), "{line}");
        if only {
            assert!(line.contains("[2001:db8::"), "{line}");
        }
        let six = other.ok(&["ip", "-6"]);
        t1.wait_icmp(six.trim(), Duration::from_secs(10));
        // A name gives the IPv4 address alone, so that no flow is tried twice (dataplane.md 8.2).
        let found = t1.host.ok("getent", &["ahosts", other.name()]);
        assert!(found.contains(&ip) && !found.contains("fd7a:"), "{found}");
    }
}

#[test]
fn a_network_of_ipv6_alone_carries_the_mesh() {
    over_v6(true);
}

#[test]
fn a_network_of_both_families_carries_the_mesh() {
    over_v6(false);
}
