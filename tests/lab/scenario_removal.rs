//! Proof 6: removal, logout, expiry and renaming, as peers see them.

use std::time::Duration;

use crate::peers::{Kind, OFFICIAL, Peer};
use crate::server::Server;
use crate::world::{Lab, eventually};

#[test]
fn removed_nodes_are_gone_and_cannot_send() {
    let lab = Lab::new("removal");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let o1 = Peer::join(&lab.host("o1"), OFFICIAL, &server.url, &key);
    let t1 = Peer::join(&lab.host("t1"), Kind::Tsd, &server.url, &key);
    for (name, kind) in [("go", OFFICIAL), ("gt", Kind::Tsd)] {
        let gone = Peer::join(&lab.host(name), kind, &server.url, &key);
        for peer in [&o1, &t1] {
            gone.wait_icmp(&peer.ip4(), Duration::from_secs(10));
        }
        server.ok(&["nodes", "delete", name]);
        let limit = Duration::from_secs(3);
        println!(
            "{name} gone from o1 after {:?}, from t1 after {:?}",
            o1.wait_gone(name, limit),
            t1.wait_gone(name, limit)
        );
        for peer in [&o1, &t1] {
            let ip = eventually("an address", limit, || Ok(peer.ip4()));
            assert!(gone.icmp(&ip).is_err(), "{name} still reaches {}", peer.name());
        }
        gone.wait_state("NeedsLogin", Duration::from_secs(10));
    }
}

#[test]
fn logged_out_and_expired_nodes_are_unreachable_and_shown_so() {
    let lab = Lab::new("expiry");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let o1 = Peer::join(&lab.host("o1"), OFFICIAL, &server.url, &key);
    let t1 = Peer::join(&lab.host("t1"), Kind::Tsd, &server.url, &key);
    for (name, kind) in [("lo", OFFICIAL), ("lt", Kind::Tsd)] {
        let out = Peer::join(&lab.host(name), kind, &server.url, &key);
        let ip = out.ip4();
        o1.wait_icmp(&ip, Duration::from_secs(10));
        t1.wait_icmp(&ip, Duration::from_secs(10));
        out.ok(&["logout"]);
        expect_expired(&[&o1, &t1], name, &ip);
        out.wait_state("NeedsLogin", Duration::from_secs(10));
    }
    for (name, kind) in [("eo", OFFICIAL), ("et", Kind::Tsd)] {
        let expired = Peer::join(&lab.host(name), kind, &server.url, &key);
        let ip = expired.ip4();
        o1.wait_icmp(&ip, Duration::from_secs(10));
        server.ok(&["nodes", "expire", name]);
        expect_expired(&[&o1, &t1], name, &ip);
        expired.wait_state("NeedsLogin", Duration::from_secs(10));
        // The same machine comes back as the same node.
        expired.up(&server.url, &key);
        assert_eq!(expired.ip4(), ip);
        o1.wait_icmp(&ip, Duration::from_secs(10));
    }
}

fn expect_expired(peers: &[&Peer], name: &str, ip: &str) {
    for peer in peers {
        eventually(&format!("{} shows {name} expired", peer.name()), Duration::from_secs(5), || {
            match peer.peer_entry(name) {
                Some(entry) if entry["Expired"] == true => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        assert!(peer.icmp(ip).is_err(), "{} still reaches {name}", peer.name());
    }
}

#[test]
fn a_new_name_shows_up_in_dns() {
    let lab = Lab::new("rename");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let o1 = Peer::join(&lab.host("o1"), OFFICIAL, &server.url, &key);
    let t1 = Peer::join(&lab.host("t1"), Kind::Tsd, &server.url, &key);
    o1.wait_icmp("t1", Duration::from_secs(10));
    server.ok(&["nodes", "rename", "t1", "attic"]);
    server.ok(&["nodes", "rename", "o1", "cellar"]);
    o1.wait_icmp("attic", Duration::from_secs(5));
    o1.wait_icmp("attic.tail.internal", Duration::from_secs(5));
    // A lookup before the news arrives would ask the host's resolver, which is not there.
    t1.wait_sees(&["cellar"], Duration::from_secs(5));
    t1.wait_icmp("cellar", Duration::from_secs(5));
    assert!(o1.icmp("t1").is_err(), "the old name still resolves");
}
