//! What others do to a running node: its interface is removed under it.

use std::time::Duration;

use crate::peers::{Kind, Peer};
use crate::server::Server;
use crate::world::Lab;

#[test]
fn a_node_whose_interface_was_removed_ends_with_the_machine_put_back() {
    let lab = Lab::new("interface removed");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let host = lab.host("t1");
    let before = (host.ok("ip", &["rule"]), std::fs::read_to_string(host.path("/etc/resolv.conf")).unwrap());
    let mut node = Peer::join(&host, Kind::Tsd, &server.url, &key);
    assert_ne!(host.ok("ip", &["rule"]), before.0);
    let links = host.ok("ip", &["-o", "link", "show", "type", "tun"]);
    let name = links.split(": ").nth(1).expect("the interface").to_owned();
    host.ok("ip", &["link", "del", &name]);
    // Not one that is there, does nothing and turns in circles.
    let status = node.daemon().wait(Duration::from_secs(6));
    assert_eq!(status.code(), Some(2));
    assert!(node.daemon().text().contains("the TUN interface is gone"));
    let after = (host.ok("ip", &["rule"]), std::fs::read_to_string(host.path("/etc/resolv.conf")).unwrap());
    assert_eq!(after, before);
    node.start_daemon();
    node.wait_running(Duration::from_secs(10));
}
