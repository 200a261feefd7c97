//! What happens by the clock: ephemeral devices leave, keys expire, who is away is shown so.

use std::process::Command;
use std::time::Duration;

use crate::official::{Version, program};
use crate::peers::{Kind, OFFICIAL, Peer};
use crate::server::Server;
use crate::world::{Host, Lab, Process, eventually};

/// A server with lines in its configuration file.
fn server(lab: &Lab, config: &str) -> Server {
    let host = lab.host_at("srv", "203.0.113.10");
    std::fs::write(host.path("/run/tsd.toml"), config).unwrap();
    let url = format!("http://{}:8080", host.addr);
    Server::start_with(&host, &url, &["--config", "/run/tsd.toml"])
}

/// The official client as a container runs it: nothing kept on disk.
fn forgetful(host: &Host) -> Process {
    let mut command: Command = host.command(program(Version::Newest, "tailscaled"));
    command.args(["--state=mem:", "--no-logs-no-support"]);
    let daemon = host.spawn("tailscaled", command);
    eventually("the forgetful daemon answers", Duration::from_secs(15), || {
        let out =
            host.output(&program(Version::Newest, "tailscale").display().to_string(), &["status", "--json"]);
        if out.stdout.starts_with(b"{") {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&out.stderr).into_owned())
        }
    });
    daemon
}

#[test]
fn ephemeral_devices_leave_when_they_stop_and_when_they_are_killed() {
    let lab = Lab::new("ephemeral");
    let server = server(&lab, "ephemeral_timeout = \"20s\"\n");
    let key = server.key(&["--reusable"]);
    let stays = Peer::join(&lab.host("stays"), OFFICIAL, &server.url, &key);
    let host = lab.host("mem");
    let mut daemon = forgetful(&host);
    let tailscale = program(Version::Newest, "tailscale").display().to_string();
    let up = ["up", "--login-server", &server.url, "--auth-key", &key, "--hostname=mem", "--timeout=40s"];
    host.ok(&tailscale, &up);
    stays.wait_sees(&["mem"], Duration::from_secs(10));
    assert!(server.json(&["nodes", "show", "mem"])["key"].as_str().unwrap().starts_with("nodekey:"));
    // An orderly stop logs it out, which is its end.
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.wait(Duration::from_secs(10));
    stays.wait_gone("mem", Duration::from_secs(10));
    assert!(server.node("mem").is_none());

    let ephemeral = server.key(&["--reusable", "--ephemeral"]);
    let mut killed = Vec::new();
    for (name, kind) in [("eo", OFFICIAL), ("et", Kind::Tsd)] {
        killed.push(Peer::join(&lab.host(name), kind, &server.url, &ephemeral));
    }
    stays.wait_sees(&["eo", "et"], Duration::from_secs(10));
    for peer in &mut killed {
        peer.kill9();
    }
    for name in ["eo", "et"] {
        // Not before a minute after joining, and the timeout after the 10 s of grace.
        stays.wait_gone(name, Duration::from_secs(100));
        assert!(server.node(name).is_none());
    }
    assert!(server.node("stays").is_some());
}

#[test]
fn keys_expire_by_the_clock_and_a_new_login_keeps_the_address() {
    let lab = Lab::new("key expiry");
    let server = server(&lab, "key_expiry = \"1m\"\n");
    let key = server.key(&["--reusable"]);
    let peers = [("o1", OFFICIAL), ("t1", Kind::Tsd)]
        .map(|(name, kind)| Peer::join(&lab.host(name), kind, &server.url, &key));
    // Last, so that it still sees the others expire.
    let policy = r#"{"tagOwners": {"tag:watch": ["admin@"]}, "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;
    server.set_policy(policy);
    let tagged = server.key(&["--reusable", "--tags", "tag:watch"]);
    let watchers = [("wo", OFFICIAL), ("wt", Kind::Tsd)]
        .map(|(name, kind)| Peer::join(&lab.host(name), kind, &server.url, &tagged));
    let addresses = peers.each_ref().map(Peer::ip4);
    for peer in &peers {
        peer.wait_state("NeedsLogin", Duration::from_secs(90));
        for watcher in &watchers {
            eventually("the peer is shown expired", Duration::from_secs(10), || {
                match watcher.peer_entry(peer.name()) {
                    Some(entry) if entry["Expired"] == true => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            });
        }
    }
    for (peer, address) in peers.iter().zip(&addresses) {
        peer.up(&server.url, &key);
        assert_eq!(&peer.ip4(), address, "{} keeps its address", peer.name());
        watchers[0].wait_icmp(address, Duration::from_secs(10));
    }
}

#[test]
fn who_was_killed_is_shown_offline_after_the_grace_and_not_before() {
    let lab = Lab::new("offline");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let watchers = [("wo", OFFICIAL), ("wt", Kind::Tsd)]
        .map(|(name, kind)| Peer::join(&lab.host(name), kind, &server.url, &key));
    for (name, kind) in [("ko", OFFICIAL), ("kt", Kind::Tsd)] {
        let mut peer = Peer::join(&lab.host(name), kind, &server.url, &key);
        let online = |watcher: &Peer, wanted: bool, limit: u64| {
            eventually(&format!("{name} online={wanted}"), Duration::from_secs(limit), || {
                match watcher.peer_entry(name) {
                    Some(entry) if entry["Online"] == wanted => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            });
        };
        watchers.iter().for_each(|w| online(w, true, 10));
        // A restart within the grace is no absence.
        peer.kill9();
        peer.start_daemon();
        peer.wait_running(Duration::from_secs(10));
        assert_eq!(server.node(name).unwrap()["online"], true);
        peer.kill9();
        assert_eq!(watchers[0].peer_entry(name).unwrap()["Online"], true, "the grace has begun");
        watchers.iter().for_each(|w| online(w, false, 20));
        assert!(server.node(name).unwrap()["last_seen"].is_string());
    }
}
