//! Proof 4, the client's side: what a person reads when a key is no good. (The race of 64
//! registrations is in `tests/system`.)

use std::time::Duration;

use crate::machines::{Machine, block_inside};
use crate::peers::{Kind, OFFICIAL, Peer, lossy};
use crate::server::Server;
use crate::world::Lab;

#[test]
fn clients_show_why_a_key_is_refused() {
    let lab = Lab::new("key sentences");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let used = server.key(&[]);
    let first = Peer::join(&lab.host("first"), OFFICIAL, &server.url, &used);
    let revoked = server.key(&["--reusable"]);
    server.ok(&["authkeys", "revoke", &revoked]);
    let short = server.key(&["--reusable", "--expires", "1s"]);
    let unknown = format!("{}0000", used.get(..used.len() - 4).unwrap());
    std::thread::sleep(Duration::from_millis(1100));
    for kind in [OFFICIAL, Kind::Tsd] {
        let name = if kind == Kind::Tsd { "t" } else { "o" };
        let host = lab.host(name);
        let peer = Peer::start(&host, kind);
        for (key, sentence) in
            [(&used, "already used"), (&revoked, "revoked"), (&short, "expired"), (&unknown, "unknown key")]
        {
            let out = peer.cli(&["up", "--login-server", &server.url, "--auth-key", key, "--timeout=15s"]);
            let text = lossy(&out.stdout) + &lossy(&out.stderr);
            assert!(!out.status.success(), "{kind:?} joined with a key that is {sentence}");
            assert!(text.contains(sentence), "{kind:?}, {sentence}: {text}");
        }
        // The same daemon still joins with a good key.
        peer.up(&server.url, &server.key(&[]));
    }
    // A container starts with its spent key every time: the same install must get in again.
    first.ok(&["down"]);
    first.ok(&[
        "up",
        "--login-server",
        &server.url,
        "--auth-key",
        &used,
        "--hostname=first",
        "--timeout=20s",
    ]);
    assert_eq!(server.nodes().len(), 3);
}

#[test]
fn of_many_registrations_with_a_single_use_key_one_succeeds() {
    let lab = Lab::new("single-use race");
    let srv = lab.host_at("srv", "203.0.113.10");
    let server = Server::start(&srv);
    let host = lab.host("crowd");
    for round in 0..20 {
        let key = server.key(&[]);
        let url = server.url.clone();
        let (joined, refused) = block_inside(&host, move || async move {
            let mut tasks = tokio::task::JoinSet::new();
            for n in 0..64 {
                let (url, key) = (url.clone(), key.clone());
                tasks.spawn(async move { Machine::new(&format!("r{round}-{n}")).register(&url, &key).await });
            }
            let (mut joined, mut refused) = (0, Vec::new());
            while let Some(done) = tasks.join_next().await {
                let answer = done.unwrap().unwrap();
                if answer.error.is_empty() && answer.auth_url.is_empty() {
                    joined += 1;
                } else {
                    refused.push(answer.error);
                }
            }
            (joined, refused)
        });
        assert_eq!(joined, 1, "round {round}: {refused:?}");
        assert!(refused.iter().all(|e| e.contains("already used")), "round {round}: {refused:?}");
        assert_eq!(server.nodes().len(), round + 1);
    }
}
