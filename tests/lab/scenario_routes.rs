//! Subnet routes of an official router: nobody sees them before they are approved, everybody who may
//! and wants to uses them afterwards, and tags and groups decide who may.

use std::time::Duration;

use crate::peers::{Kind, OFFICIAL, Peer};
use crate::server::Server;
use crate::world::{Lab, eventually};

const BEHIND: &str = "10.77.0.1";

#[test]
fn an_approved_subnet_route_is_used_by_official_and_by_our_clients() {
    let lab = Lab::new("subnet route");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let gateway = lab.host("gw");
    gateway.ok("ip", &["link", "add", "d0", "type", "bridge"]);
    gateway.ok("ip", &["addr", "add", "10.77.0.1/24", "dev", "d0"]);
    gateway.ok("ip", &["link", "set", "d0", "up"]);
    gateway.ok("sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
    let gw = Peer::start(&gateway, OFFICIAL);
    let up = |peer: &Peer, more: &[&str]| {
        let hostname = format!("--hostname={}", peer.name());
        let mut args = vec!["up", "--login-server", &server.url, "--auth-key", &key, &hostname];
        args.extend_from_slice(more);
        peer.ok(&args);
        peer.wait_running(Duration::from_secs(10));
    };
    up(&gw, &["--advertise-routes=10.77.0.0/24"]);
    let o1 = Peer::start(&lab.host("o1"), OFFICIAL);
    up(&o1, &["--accept-routes"]);
    let t1 = Peer::start(&lab.host("t1"), Kind::Tsd);
    up(&t1, &["--accept-routes"]);
    let plain = Peer::join(&lab.host("t2"), Kind::Tsd, &server.url, &key);
    o1.wait_icmp(&gw.ip4(), Duration::from_secs(10));
    t1.wait_icmp(&gw.ip4(), Duration::from_secs(10));
    assert!(
        o1.icmp(BEHIND).is_err() && t1.icmp(BEHIND).is_err(),
        "an offered route works before its approval"
    );

    server.ok(&["nodes", "approve-routes", "gw"]);
    o1.wait_icmp(BEHIND, Duration::from_secs(5));
    t1.wait_icmp(BEHIND, Duration::from_secs(5));
    assert!(plain.icmp(BEHIND).is_err(), "a node that does not take routes uses one");

    server.ok(&["nodes", "approve-routes", "gw", "--none"]);
    for peer in [&o1, &t1] {
        eventually("the withdrawn route is gone", Duration::from_secs(5), || match peer.icmp(BEHIND) {
            Ok(()) => Err("still answers".into()),
            Err(_) => Ok(()),
        });
    }
}

#[test]
fn tags_groups_and_self_decide_who_reaches_whom() {
    let lab = Lab::new("tags and groups");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    server.ok(&["users", "create", "alice"]);
    server.ok(&["users", "create", "bob"]);
    server.set_policy(
        r#"{
          // alice's group reaches the servers; everybody reaches their own devices
          "groups": {"group:ops": ["alice@"]},
          "tagOwners": {"tag:server": ["group:ops"]},
          "acls": [
            {"action": "accept", "src": ["group:ops"], "dst": ["tag:server:*"]},
            {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]},
          ],
        }"#,
    );
    let key = |user: &str, more: &[&str]| {
        let mut args = vec!["authkeys", "create", "--user", user, "--reusable"];
        args.extend_from_slice(more);
        server.json(&args)["key"].as_str().unwrap().to_owned()
    };
    let (alice, bob, tagged) = (key("alice", &[]), key("bob", &[]), key("alice", &["--tags", "tag:server"]));
    let a1 = Peer::join(&lab.host("a1"), OFFICIAL, &server.url, &alice);
    let a2 = Peer::join(&lab.host("a2"), Kind::Tsd, &server.url, &alice);
    let b1 = Peer::join(&lab.host("b1"), OFFICIAL, &server.url, &bob);
    let b2 = Peer::join(&lab.host("b2"), Kind::Tsd, &server.url, &bob);
    let s1 = Peer::join(&lab.host("s1"), OFFICIAL, &server.url, &tagged);
    let s2 = Peer::join(&lab.host("s2"), Kind::Tsd, &server.url, &tagged);
    for (from, to) in
        [(&a1, &a2), (&a2, &a1), (&b1, &b2), (&b2, &b1), (&a1, &s1), (&a1, &s2), (&a2, &s1), (&a2, &s2)]
    {
        from.wait_icmp(&to.ip4(), Duration::from_secs(10));
    }
    for (from, to) in [(&s1, &a1), (&s2, &a2), (&b1, &a1), (&b2, &s2), (&b1, &s1), (&s1, &s2)] {
        assert!(from.icmp(&to.ip4()).is_err(), "{} reaches {}", from.name(), to.name());
    }
    // Who cannot talk at all does not even see the other.
    for (viewer, hidden) in [(&b1, "a1"), (&b2, "s2"), (&s1, "s2"), (&a1, "b1")] {
        assert!(viewer.peer_entry(hidden).is_none(), "{} sees {hidden}", viewer.name());
    }
    assert_eq!(server.node("s1").unwrap()["user"], serde_json::Value::Null);
    // A tag that the key's user owns may be asked for by the client itself.
    let asks = Peer::start(&lab.host("s3"), OFFICIAL);
    asks.ok(&[
        "up",
        "--login-server",
        &server.url,
        "--auth-key",
        &alice,
        "--advertise-tags=tag:server",
        "--hostname=s3",
    ]);
    assert_eq!(server.node("s3").unwrap()["tags"][0], "tag:server");
    a2.wait_icmp(&asks.ip4(), Duration::from_secs(10));
    let refused = Peer::start(&lab.host("s4"), OFFICIAL);
    let out = refused.cli(&[
        "up",
        "--login-server",
        &server.url,
        "--auth-key",
        &bob,
        "--advertise-tags=tag:server",
        "--timeout=10s",
    ]);
    assert!(!out.status.success());
    assert!(crate::peers::lossy(&out.stderr).contains("tag:server"), "{}", crate::peers::lossy(&out.stderr));
}
