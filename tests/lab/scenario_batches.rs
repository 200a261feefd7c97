//! Bulk traffic travels in batches at every step of the way: the shape on which the node's speed rests.

use std::time::Duration;

use crate::flows::transfer;
use crate::official::{Version, program};
use crate::peers::{Kind, Peer};
use crate::server::Server;
use crate::world::Lab;

/// Packets and calls of one way, by the node's own counters.
fn counters(peer: &Peer, road: &str, way: &str) -> (f64, f64) {
    let cli = program(Version::Newest, "tailscale");
    let text = peer.host.ok(cli.to_str().unwrap(), &["--socket", "/run/tsd/node.sock", "metrics", "print"]);
    let value = |what: &str| {
        let name = format!("tsd_node_io_{what}_total{{road=\"{road}\",way=\"{way}\"}} ");
        let line = text.lines().find_map(|l| l.strip_prefix(&name));
        line.unwrap_or_else(|| panic!("no {name}in\n{text}")).parse::<f64>().unwrap()
    };
    (value("packets"), value("calls"))
}

#[test]
fn bulk_travels_in_batches_at_every_step() {
    let lab = Lab::new("batches");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let a = Peer::join(&lab.host("a"), Kind::Tsd, &server.url, &key);
    let b = Peer::join(&lab.host("b"), Kind::Tsd, &server.url, &key);
    let ip = b.ip4();
    a.wait_icmp(&ip, Duration::from_secs(10));
    let path = a.ping_until_direct(&ip);
    assert!(!path.contains("DERP"), "{path}");

    let roads = [(&a, "tun", "in"), (&a, "udp", "out"), (&b, "udp", "in"), (&b, "tun", "out")];
    let before = roads.map(|(peer, road, way)| counters(peer, road, way));
    transfer(&a.host, &b.host, &ip, 30 << 20);
    for ((peer, road, way), (packets, calls)) in roads.into_iter().zip(before) {
        let after = counters(peer, road, way);
        let mean = (after.0 - packets) / (after.1 - calls).max(1.0);
        println!("{} {road} {way}: {mean:.1} packets a call", peer.name());
        assert!(after.0 - packets > 20_000.0, "{road} {way}: {} packets", after.0 - packets);
        assert!(mean > 8.0, "{} {road} {way}: {mean:.1} packets a call", peer.name());
    }
}
