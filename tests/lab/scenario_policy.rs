//! Proof 5: what a policy change does to connected clients, official and ours.

use std::time::{Duration, Instant};

use crate::flows::{Listener, reaches};
use crate::peers::{Kind, OFFICIAL, Peer};
use crate::server::Server;
use crate::world::{Lab, eventually};

const OPEN: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;
const ONE_PORT: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:8001"]}]}"#;
const NOTHING: &str = r#"{"acls": []}"#;

/// A latency promised is asserted with three times slack.
const PROMISED: Duration = Duration::from_secs(1);

#[test]
fn policy_changes_reach_receivers_at_once() {
    let lab = Lab::new("policy");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let o1 = Peer::join(&lab.host("o1"), OFFICIAL, &server.url, &key);
    let o2 = Peer::join(&lab.host("o2"), OFFICIAL, &server.url, &key);
    let t1 = Peer::join(&lab.host("t1"), Kind::Tsd, &server.url, &key);
    let listeners: Vec<Listener> = [&o1, &o2, &t1]
        .iter()
        .flat_map(|p| [Listener::start(&p.host, 8001), Listener::start(&p.host, 8002)])
        .collect();
    let short = Duration::from_millis(700);
    let pairs = [(&o1, &o2), (&o1, &t1), (&t1, &o1)];
    let reach = |a: &Peer, b: &Peer, port| reaches(&a.host, &b.ip4(), port, short);
    let becomes = |what: &str, a: &Peer, b: &Peer, port: u16, open: bool, since: Instant| {
        eventually(&format!("{what}: {} to {}:{port} open={open}", a.name(), b.name()), PROMISED * 8, || {
            let got = reach(a, b, port);
            if got.is_ok() == open { Ok(()) } else { Err(format!("{got:?}")) }
        });
        println!("{what}: {} -> {}:{port} after {:?}", a.name(), b.name(), since.elapsed());
    };

    for (a, b) in pairs {
        becomes("default", a, b, 8001, true, Instant::now());
        becomes("default", a, b, 8002, true, Instant::now());
    }

    for (a, b) in pairs {
        server.set_policy(OPEN);
        becomes("open", a, b, 8002, true, Instant::now());
        server.set_policy(ONE_PORT);
        let since = Instant::now();
        becomes("one port", a, b, 8002, false, since);
        assert!(since.elapsed() < PROMISED * 3 + short, "closing took {:?}", since.elapsed());
        becomes("one port", a, b, 8001, true, since);
        a.wait_icmp(&b.ip4(), Duration::from_secs(3));
        server.set_policy(OPEN);
        let since = Instant::now();
        becomes("open again", a, b, 8002, true, since);
        assert!(since.elapsed() < PROMISED * 3 + short, "opening took {:?}", since.elapsed());
    }

    // A refused policy changes nothing.
    let bad = server
        .policy_file("{\"acls\": [{\"action\": \"accept\", \"src\": [\"tag:nope\"], \"dst\": [\"*:*\"]}]}");
    let out = server.admin(&["policy", "set", bad.to_str().unwrap(), "--yes"]);
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(text.contains("/run/policy.hujson:1:"), "{text}");
    becomes("after a refused policy", &o1, &t1, 8002, true, Instant::now());

    // Taking access away without a terminal and without --yes: exit 1, nothing changed.
    let file = server.policy_file(NOTHING);
    let out = server.admin(&["policy", "set", file.to_str().unwrap()]);
    assert_eq!(out.status.code(), Some(1), "{}", String::from_utf8_lossy(&out.stderr));
    becomes("after an unconfirmed policy", &o1, &t1, 8002, true, Instant::now());

    // A policy that gives nothing closes ping too.
    server.set_policy(NOTHING);
    for (a, b) in pairs {
        eventually("ping is closed", PROMISED * 5, || match a.icmp(&b.ip4()) {
            Ok(()) => Err("still answered".into()),
            Err(_) => Ok(()),
        });
    }
    server.set_policy(OPEN);
    for (a, b) in pairs {
        a.wait_icmp(&b.ip4(), Duration::from_secs(8));
    }
    drop(listeners);
}
