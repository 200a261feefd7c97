//! Paths that come and go: a direct path that dies falls back to the relay without a lost ping for
//! long, and comes back by itself.

use std::time::{Duration, Instant};

use crate::peers::{Kind, OFFICIAL, Peer};
use crate::server::Server;
use crate::world::{Lab, Nat, eventually};

#[test]
fn a_dead_direct_path_gives_way_to_the_relay_and_comes_back() {
    let lab = Lab::new("paths");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let router = lab.router("n1", Nat::Easy);
    let t1 = Peer::join(&router.host("t1"), Kind::Tsd, &server.url, &key);
    let t2 = Peer::join(&lab.router("n2", Nat::Easy).host("t2"), Kind::Tsd, &server.url, &key);
    let o1 = Peer::join(&lab.router("n3", Nat::Easy).host("o1"), OFFICIAL, &server.url, &key);
    for other in [&t2, &o1] {
        let ip = other.ip4();
        let line = t1.ping_until_direct(&ip);
        assert!(!line.contains("DERP"), "{line}");
        router.block_udp();
        let cut = Instant::now();
        t1.wait_icmp(&ip, Duration::from_secs(15));
        println!("{}: answered again {:?} after the path died", other.name(), cut.elapsed());
        assert!(t1.mesh_ping(&ip).contains("DERP(tsd)"));
        router.unblock_udp();
        eventually("the direct path is back", Duration::from_secs(40), || {
            t1.icmp(&ip)?;
            let line = t1.ping_until_direct(&ip);
            if line.contains("DERP") || !line.starts_with("pong") { Err(line) } else { Ok(()) }
        });
    }
}
