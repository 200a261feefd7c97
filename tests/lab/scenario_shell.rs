//! The node's commands when something is wrong, and the official command line in depth.

use std::time::Duration;

use crate::flows::{Listener, reaches};
use crate::official::{Version, program};
use crate::peers::{Kind, OFFICIAL, Peer, lossy};
use crate::server::{Server, TSD};
use crate::world::{Host, Lab, eventually};

/// A run of the official command line against our daemon: success and everything it said.
fn official(host: &Host, args: &[&str]) -> (bool, String) {
    let tailscale = program(Version::Newest, "tailscale").display().to_string();
    let all: Vec<&str> = ["--socket=/run/tsd/node.sock"].iter().chain(args).copied().collect();
    let out = host.output(&tailscale, &all);
    (out.status.success(), lossy(&out.stdout) + &lossy(&out.stderr))
}

/// A run of `tsd node …`: exit code and everything it said.
fn node(host: &Host, args: &[&str]) -> (Option<i32>, String) {
    let all: Vec<&str> = ["node"].iter().chain(args).copied().collect();
    let out = host.output(TSD, &all);
    (out.status.code(), lossy(&out.stdout) + &lossy(&out.stderr))
}

#[test]
fn the_official_command_line_finds_what_it_asks_for() {
    let lab = Lab::new("official CLI in depth");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let o1 = Peer::join(&lab.host("o1"), OFFICIAL, &server.url, &key);
    let t1 = Peer::join(&lab.host("t1"), Kind::Tsd, &server.url, &key);
    let host = &t1.host;
    t1.wait_icmp(&o1.ip4(), Duration::from_secs(10));
    let ok = |args: &[&str], part: &str| {
        let (good, said) = official(host, args);
        assert!(good && said.contains(part), "{args:?}: {said}");
    };
    let ip = o1.ip4();
    ok(&["ping", "--tsmp", &ip], "via TSMP");
    ok(&["ping", "--icmp", &ip], "via ICMP");
    ok(&["ping", "--c=3", "o1"], "pong from o1");
    ok(&["status", "--json"], "\"Running\"");
    ok(&["whois", "--json", &ip], "\"UserProfile\"");
    ok(&["switch", "--list"], "*");
    ok(&["ip", "-6", "o1"], "fd7a:115c:a1e0:");
    ok(&["version", "--daemon"], "Daemon");
    ok(&["debug", "prefs"], "ControlURL");
    ok(&["debug", "derp-map"], "Regions");
    ok(&["debug", "watch-ipn", "--count=1", "--initial-status"], "BackendState");
    ok(&["dns", "status"], "MagicDNS");
    for args in [&["bugreport"][..], &["ping", "--peerapi", &ip]] {
        let (good, said) = official(host, args);
        assert!(!good && said.contains("not supported"), "{args:?}: {said}");
    }

    // Settings: each alone, and `up` that forgets one is stopped by the official revert check.
    ok(&["set", "--hostname=pantry"], "");
    eventually("the name changes at the server", Duration::from_secs(5), || {
        server.node("pantry").map(drop).ok_or_else(|| format!("{:?}", server.nodes()))
    });
    ok(&["set", "--accept-routes"], "");
    // A bare `up` brings back what was, and keeps what was set.
    ok(&["down"], "");
    ok(&["up"], "");
    t1.wait_running(Duration::from_secs(10));
    ok(&["debug", "prefs"], "\"RouteAll\": true");
    let (good, said) = official(host, &["up", "--login-server", &server.url, "--hostname=pantry"]);
    assert!(!good && said.contains("--accept-routes"), "{said}");
    let resolv = || std::fs::read_to_string(host.path("/etc/resolv.conf")).unwrap();
    assert!(resolv().contains("100.100.100.100"));
    ok(&["set", "--accept-dns=false"], "");
    eventually("DNS is given back", Duration::from_secs(5), || {
        if resolv().contains("100.100.100.100") { Err(resolv()) } else { Ok(()) }
    });
    ok(&["set", "--accept-dns=true"], "");
    eventually("DNS is ours again", Duration::from_secs(5), || {
        if resolv().contains("100.100.100.100") { Ok(()) } else { Err(resolv()) }
    });

    let _listener = Listener::start(host, 7001);
    let second = Duration::from_secs(1);
    eventually("open", Duration::from_secs(5), || reaches(&o1.host, &t1.ip4(), 7001, second));
    ok(&["set", "--shields-up"], "");
    eventually("closed", Duration::from_secs(5), || match reaches(&o1.host, &t1.ip4(), 7001, second) {
        Ok(()) => Err("still open".into()),
        Err(_) => Ok(()),
    });
    t1.wait_icmp(&ip, Duration::from_secs(5));
    ok(&["set", "--shields-up=false"], "");
    eventually("open again", Duration::from_secs(5), || reaches(&o1.host, &t1.ip4(), 7001, second));
}

#[test]
fn up_says_what_is_wrong_and_what_to_do() {
    let lab = Lab::new("up in trouble");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let mut t1 = Peer::start(&lab.host("t1"), Kind::Tsd);
    let host = t1.host.clone();
    let wrong = |args: &[&str], parts: &[&str]| {
        let (code, said) = node(&host, args);
        assert_eq!(code, Some(1), "{args:?}: {said}");
        for part in parts {
            assert!(said.contains(part), "{args:?} does not say {part:?}: {said}");
        }
    };
    wrong(&["up"], &["--login-server"]);
    wrong(&["up", "--login-server", "ftp://x", "--auth-key", &key], &["ftp://x", "http"]);
    let away = ["up", "--login-server", "http://203.0.113.77:8080", "--auth-key", &key, "--timeout", "5s"];
    wrong(&away, &["gave up after 5 s", "the server to answer", "203.0.113.77"]);
    wrong(&["up", "--login-server", &server.url, "--auth-key", "tskey-auth-no", "--timeout=20s"], &["key"]);
    wrong(&["up", "--login-server", &server.url, "--auth-key", "file:/no/key"], &["/no/key"]);

    t1.up(&server.url, &key);
    let ip = t1.ip4();
    let other = "http://203.0.113.78:8080";
    wrong(&["up", "--login-server", other], &[&server.url, other, "--force-reauth"]);
    assert_eq!(t1.ip4(), ip, "the login stays");
    assert_eq!(node(&host, &["up"]).0, Some(0));

    // Somebody without rights may look, not change.
    let nobody = |args: &[&str]| {
        let mut all = vec!["--reuid=65534", "--regid=65534", "--clear-groups", TSD, "node"];
        all.extend_from_slice(args);
        let out = host.output("setpriv", &all);
        (out.status.code(), lossy(&out.stdout) + &lossy(&out.stderr))
    };
    assert_eq!(nobody(&["status"]).0, Some(0));
    let (code, said) = nobody(&["down"]);
    assert!(code == Some(1) && said.contains("sudo"), "{said}");
    let (code, said) = nobody(&["run", "--state-dir", "/var/lib/mine", "--socket", "/run/mine.sock"]);
    assert!(code == Some(1) && said.contains("root"), "{said}");
    let up = ["up", "--socket", "/run/mine/s.sock", "--login-server", &server.url, "--auth-key", &key];
    let (code, said) = nobody(&up);
    assert!(code == Some(1) && said.contains("sudo"), "{said}");
    t1.kill9();
    wrong(&["status"], &["no daemon answers", "tsd node up"]);

    // The interface's name is another one's; a daemon started by `up` that dies is explained.
    host.ok("ip", &["link", "add", "taken0", "type", "bridge"]);
    let run = ["run", "--tun", "taken0", "--state-dir", "/var/lib/other", "--socket", "/run/other.sock"];
    wrong(&run, &["taken0", "--tun"]);
    host.ok("ip", &["link", "add", "tsd0", "type", "bridge"]);
    wrong(&["up", "--timeout=20s"], &["ended at once", "tsd0", "--tun"]);
}

#[test]
fn a_daemon_that_dies_under_up_is_told() {
    let lab = Lab::new("up and a dying daemon");
    let mut t1 = Peer::start(&lab.host("t1"), Kind::Tsd);
    let mut command = t1.command(&["up", "--login-server", "http://203.0.113.77:8080", "--auth-key", "k"]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let up = command.spawn().unwrap();
    eventually("up waits for the server", Duration::from_secs(10), || {
        let prefs = official(&t1.host, &["debug", "prefs"]).1;
        if prefs.contains("203.0.113.77") { Ok(()) } else { Err(prefs) }
    });
    t1.kill9();
    let out = up.wait_with_output().unwrap();
    let said = lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{said}");
    assert!(said.contains("daemon"), "{said}");
}

#[test]
fn a_second_node_in_one_network_namespace_refuses() {
    let lab = Lab::new("two nodes");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let host = lab.host("t1");
    let mut t1 = Peer::join(&host, Kind::Tsd, &server.url, &key);
    let rules = host.ok("ip", &["rule"]);
    let pid = t1.daemon().pid().to_string();
    let args = ["run", "--state-dir", "/var/lib/two", "--socket", "/run/two.sock", "--tun", "two0"];
    let (code, said) = node(&host, &args);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&pid) && said.contains("namespace"), "{said}");
    assert_eq!(host.ok("ip", &["rule"]), rules, "the first one is left alone");
    // Its claim ends with it, however it ends.
    t1.kill9();
    t1.start_daemon();
    t1.wait_running(Duration::from_secs(10));
    // The same for another client that has its interface there.
    t1.kill9();
    host.ok("ip", &["link", "add", "tailscale0", "type", "bridge"]);
    let (code, said) = node(&host, &args);
    assert!(code == Some(1) && said.contains("tailscale0"), "{said}");
}
