//! `tsd serve` as an operator meets it: first start, later starts, listeners, signals, commands.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::peers::{Kind, OFFICIAL, Peer, lossy};
use crate::server::{Server, TSD};
use crate::world::{Lab, eventually};

fn mode(path: &std::path::Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_first_start_needs_nothing_and_shows_how_to_join() {
    let lab = Lab::new("first start");
    let host = lab.host_at("srv", "203.0.113.10");
    let mut command = host.command(TSD);
    command.arg("serve");
    let start = Instant::now();
    let mut first = host.spawn("serve", command);
    eventually("the admin socket answers", Duration::from_secs(10), || {
        let out = host.output(TSD, &["status"]);
        if out.status.success() { Ok(()) } else { Err(lossy(&out.stderr)) }
    });
    println!("ready after {:?}", start.elapsed());
    eventually("the start page is whole", Duration::from_secs(5), || {
        let text = first.text();
        if text.contains("State:") && text.contains("--url") { Ok(()) } else { Err(text) }
    });
    let page = first.text();
    let stdout: Vec<&str> = page.lines().filter(|l| !l.contains("INFO") && !l.contains("WARN")).collect();
    assert!(stdout.len() <= 15, "{} lines:\n{page}", stdout.len());
    let line = |start: &str| {
        stdout
            .iter()
            .find_map(|l| l.find(start).map(|at| l.get(at..).unwrap().trim().to_owned()))
            .unwrap_or_else(|| panic!("no {start:?} in:\n{page}"))
    };
    let official = line("tailscale up --login-server http://203.0.113.10:8080 --auth-key tskey-auth-");
    let ours = line("tsd node up --login-server http://203.0.113.10:8080 --auth-key tskey-auth-");
    assert!(page.contains("/login?token="), "{page}");
    assert!(page.contains("/var/lib/tsd"), "{page}");
    assert!(page.contains("--url"), "{page}");
    assert!(page.contains("SHA-256"), "{page}");

    let dir = host.path("/var/lib/tsd");
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join("admin.sock")), 0o600);
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path) & 0o077, 0, "{} is open to others", path.display());
    }

    // Both printed lines work as they stand.
    for (name, kind, line) in [("o1", OFFICIAL, &official), ("t1", Kind::Tsd, &ours)] {
        let peer = Peer::start(&lab.host(name), kind);
        let words: Vec<&str> = line.split_whitespace().skip_while(|w| *w != "up").collect();
        peer.ok(&words);
        peer.wait_running(Duration::from_secs(10));
    }

    let stop = Instant::now();
    first.signal(Signal::SIGTERM);
    let status = first.wait(Duration::from_secs(15));
    assert!(status.success(), "{status}");
    assert!(stop.elapsed() < Duration::from_secs(5), "stopping took {:?}", stop.elapsed());

    let mut command = host.command(TSD);
    command.arg("serve");
    let second = host.spawn("serve", command);
    eventually("the admin socket answers again", Duration::from_secs(10), || {
        let out = host.output(TSD, &["status"]);
        if out.status.success() { Ok(()) } else { Err(lossy(&out.stderr)) }
    });
    let page = second.text();
    assert!(
        !page.contains("tskey-auth-") && !page.contains("token="),
        "a later start prints secrets:\n{page}"
    );
    assert!(page.contains("tsd console link") && page.contains("authkeys create"), "{page}");
    let nodes = host.ok(TSD, &["nodes", "list", "--json"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&nodes).unwrap().as_array().unwrap().len(), 2);
    let link = host.ok(TSD, &["console", "link"]);
    assert!(link.contains("https://203.0.113.10") && link.contains("/login?token="), "{link}");
}

#[test]
fn with_private_addresses_only_the_page_prints_the_url_line() {
    let lab = Lab::new("private");
    let host = lab.router("nat", crate::world::Nat::Easy).host("srv");
    let mut command = host.command(TSD);
    command.arg("serve");
    let serve = host.spawn("serve", command);
    eventually("the start page", Duration::from_secs(10), || {
        let text = serve.text();
        if text.contains("--url http://") { Ok(()) } else { Err(text) }
    });
}

#[test]
fn listeners_that_cannot_be_had_are_named() {
    let lab = Lab::new("busy ports");
    let host = lab.host_at("srv", "203.0.113.10");
    let holder = {
        let mut command = host.command("nc");
        command.args(["-l", "-k", "-p", "443"]);
        host.spawn("nc", command)
    };
    eventually("443 is held", Duration::from_secs(5), || {
        let out = host.ok("sh", &["-c", "cat /proc/net/tcp"]);
        if out.contains(":01BB") { Ok(()) } else { Err(out) }
    });
    // The default gives way, with a warning that names the holder.
    let server = Server::start(&host);
    let text = server.text();
    assert!(text.contains("8443") && text.contains("nc"), "{text}");
    drop(server);
    // An explicit address does not.
    let out = host.output(TSD, &["serve", "--tls-listen", "0.0.0.0:443"]);
    let text = lossy(&out.stdout) + &lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(text.contains("443") && text.contains("nc"), "{text}");
    drop(holder);
}

#[test]
fn configuration_faults_say_where_and_what() {
    let lab = Lab::new("config faults");
    let host = lab.host_at("srv", "203.0.113.10");
    let cases = [
        ("listn = \"[::]:1\"\n", "listn"),
        ("listen = \"nonsense\"\n", "listen"),
        ("tls_cert = \"/etc/x.pem\"\n", "tls_key"),
        ("[dns]\nbase_domian = \"x\"\n", "base_domian"),
    ];
    for (text, word) in cases {
        std::fs::write(host.path("/etc/tsd.toml"), text).unwrap();
        let out = host.output(TSD, &["serve", "--config", "/etc/tsd.toml"]);
        let said = lossy(&out.stderr) + &lossy(&out.stdout);
        assert_eq!(out.status.code(), Some(1), "{text}: {said}");
        assert!(said.contains("/etc/tsd.toml") && said.contains(word), "{text}: {said}");
    }
}

#[test]
fn admin_commands_speak_json_in_any_position() {
    let lab = Lab::new("admin commands");
    let host = lab.host_at("srv", "203.0.113.10");
    let server = Server::start(&host);
    let made = server.json(&["users", "create", "alice"]);
    assert_eq!(made["name"], "alice");
    assert!(made["id"].is_u64());
    let early = host.ok(TSD, &["--json", "--state-dir", "/var/lib/tsd", "users", "list"]);
    let users: serde_json::Value = serde_json::from_str(&early).unwrap();
    assert!(users.as_array().unwrap().iter().any(|u| u["name"] == "alice"));
    let key = server.json(&["authkeys", "create", "--user", "alice", "--reusable", "--expires", "1h"]);
    for field in ["id", "key", "expires"] {
        assert!(!key[field].is_null(), "{key}");
    }
    let o1 = Peer::join(&lab.host("o1"), OFFICIAL, &server.url, key["key"].as_str().unwrap());
    let node = server.node("o1").unwrap();
    for field in ["id", "name", "user", "tags", "ipv4", "ipv6", "online", "last_seen", "version", "expires"] {
        assert!(node.get(field).is_some(), "{field} is missing: {node}");
    }
    assert_eq!(node["user"], "alice");
    assert_eq!(node["ipv4"], o1.ip4());
    server.wait_online("o1", true, Duration::from_secs(5));

    let missing = server.admin(&["nodes", "show", "nobody"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(lossy(&missing.stderr).contains("nobody"));
    let usage = server.admin(&["nodes", "frobnicate"]);
    assert_eq!(usage.status.code(), Some(1));
    let delete = server.admin(&["users", "delete", "alice"]);
    assert_eq!(delete.status.code(), Some(1), "a user with devices was deleted");
    assert!(lossy(&delete.stderr).contains("alice"));

    server.set_policy(r#"{"tagOwners": {"tag:db": ["alice@"]}, "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#);
    server.ok(&["nodes", "tag", "o1", "tag:db"]);
    assert_eq!(server.node("o1").unwrap()["tags"][0], "tag:db");
    let unknown = server.admin(&["nodes", "tag", "o1", "tag:nope"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(lossy(&unknown.stderr).contains("tag:nope"));
    assert!(server.ok(&["policy", "get"]).contains("tag:db"));
    assert!(!server.json(&["policy", "history"]).as_array().unwrap().is_empty());

    // Without a server: a sentence, exit 1.
    drop(server);
    let out = host.output(TSD, &["nodes", "list"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(lossy(&out.stderr).contains("tsd serve"), "{}", lossy(&out.stderr));
}

#[test]
fn a_waiting_login_is_approved_rejected_and_survives_a_restart() {
    let lab = Lab::new("interactive login");
    let mut server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let waiting = |server: &Server, name: &str| {
        eventually("a login waits", Duration::from_secs(15), || {
            let all = server.json(&["logins", "list"]);
            all.as_array()
                .unwrap()
                .iter()
                .find(|l| l["hostname"] == name)
                .map(|l| l["id"].as_str().unwrap().to_owned())
                .ok_or_else(|| all.to_string())
        })
    };
    for (name, kind) in [("o1", OFFICIAL), ("t1", Kind::Tsd)] {
        let peer = Peer::start(&lab.host(name), kind);
        let hostname = format!("--hostname={name}");
        let command = peer.command(&["up", "--login-server", &server.url, &hostname]);
        let mut up = peer.host.spawn("up", command);
        let id = waiting(&server, name);
        eventually("the client shows the URL", Duration::from_secs(10), || {
            let text = up.text();
            if text.contains(&id) { Ok(()) } else { Err(text) }
        });
        server.kill9();
        server.restart();
        assert_eq!(waiting(&server, name), id, "the pending login did not survive");
        server.ok(&["logins", "approve", &id]);
        assert!(up.wait(Duration::from_secs(40)).success());
        peer.wait_running(Duration::from_secs(10));
    }
    let peer = Peer::start(&lab.host("o2"), OFFICIAL);
    let up = peer.host.spawn("up", peer.command(&["up", "--login-server", &server.url, "--hostname=o2"]));
    let id = waiting(&server, "o2");
    server.ok(&["logins", "reject", &id]);
    eventually("the client hears of the refusal", Duration::from_secs(15), || {
        let text = up.text() + &peer.status().to_string();
        if text.contains("turned away") { Ok(()) } else { Err(text) }
    });
    assert!(server.node("o2").is_none());
}

#[test]
fn sighup_keeps_the_old_settings_when_the_new_ones_are_bad() {
    let lab = Lab::new("sighup");
    let host = lab.host_at("srv", "203.0.113.10");
    std::fs::write(host.path("/etc/tsd.toml"), "[dns]\nextra_records = []\n").unwrap();
    let mut server = Server::start_with(&host, "http://203.0.113.10:8080", &["--config", "/etc/tsd.toml"]);
    let key = server.key(&["--reusable"]);
    let o1 = Peer::join(&lab.host("o1"), OFFICIAL, &server.url, &key);
    std::fs::write(
        host.path("/etc/tsd.toml"),
        "[dns]\nextra_records = [{ name = \"printer.tail.internal\", value = \"192.0.2.7\" }]\n",
    )
    .unwrap();
    server.process().signal(Signal::SIGHUP);
    eventually("the extra record resolves", Duration::from_secs(8), || {
        let out = o1.host.output("getent", &["ahostsv4", "printer.tail.internal"]);
        if lossy(&out.stdout).contains("192.0.2.7") { Ok(()) } else { Err(lossy(&out.stderr)) }
    });
    std::fs::write(host.path("/etc/tsd.toml"), "nonsense\n").unwrap();
    server.process().signal(Signal::SIGHUP);
    eventually("the fault is told", Duration::from_secs(8), || {
        let text = server.text();
        if text.contains("/etc/tsd.toml") && text.contains("ERROR") { Ok(()) } else { Err(text) }
    });
    assert!(server.admin(&["status"]).status.success());
    let out = o1.host.output("getent", &["ahostsv4", "printer.tail.internal"]);
    assert!(lossy(&out.stdout).contains("192.0.2.7"), "the old settings are gone");
}
