//! `tsd node` as its user meets it: the official command line drives it, `down` puts everything back,
//! one daemon per state directory, and it finds its peers without its server.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::official::{Version, program};
use crate::peers::{Kind, OFFICIAL, Peer, lossy};
use crate::server::{Server, TSD};
use crate::world::{Lab, eventually};

#[test]
fn the_official_command_line_drives_our_daemon() {
    let lab = Lab::new("official CLI, our daemon");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let o1 = Peer::join(&lab.host("o1"), OFFICIAL, &server.url, &key);
    let ours = Peer::start(&lab.host("t1"), Kind::Tsd);
    let tailscale = program(Version::Newest, "tailscale").display().to_string();
    let cli = |args: &[&str]| {
        let all: Vec<&str> = ["--socket=/run/tsd/node.sock"].iter().chain(args).copied().collect();
        let out = ours.host.output(&tailscale, &all);
        assert!(out.status.success(), "{args:?}: {}{}", lossy(&out.stdout), lossy(&out.stderr));
        lossy(&out.stdout)
    };
    cli(&["up", "--login-server", &server.url, "--auth-key", &key, "--hostname=t1", "--timeout=30s"]);
    ours.wait_running(Duration::from_secs(5));
    ours.wait_sees(&["o1"], Duration::from_secs(5));
    assert_eq!(cli(&["ip", "-4"]).trim(), ours.ip4());
    assert!(cli(&["status"]).contains("o1"));
    let status: serde_json::Value = serde_json::from_str(&cli(&["status", "--json"])).unwrap();
    assert_eq!(status["BackendState"], "Running");
    let pong = cli(&["ping", "-c", "10", &o1.ip4()]);
    assert!(pong.contains(&format!("pong from o1 ({})", o1.ip4())), "{pong}");
    assert!(cli(&["whois", &o1.ip4()]).contains("o1"));
    assert!(cli(&["netcheck"]).contains("UDP: true"));
    cli(&["set", "--accept-routes"]);
    cli(&["down"]);
    ours.wait_state("Stopped", Duration::from_secs(5));
    cli(&["up"]);
    ours.wait_running(Duration::from_secs(10));
    o1.wait_icmp("t1", Duration::from_secs(10));
    cli(&["logout"]);
    ours.wait_state("NeedsLogin", Duration::from_secs(10));
}

#[test]
fn down_and_exit_put_the_machine_back() {
    let lab = Lab::new("restore");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let host = lab.host("t1");
    let picture = || {
        let resolv = std::fs::read_to_string(host.path("/etc/resolv.conf")).unwrap();
        let routes = host.ok("ip", &["route", "show", "table", "all"]);
        let rules = host.ok("ip", &["rule"]);
        let rules6 = host.ok("ip", &["-6", "rule"]);
        let addresses = host.ok("ip", &["-o", "addr"]);
        (resolv, routes, rules, rules6, addresses)
    };
    let links = || host.ok("ip", &["-o", "link"]).lines().count();
    let links_before = links();
    let before = picture();
    let mut t1 = Peer::join(&host, Kind::Tsd, &server.url, &key);
    let during = picture();
    assert!(during.0.contains("100.100.100.100"), "{}", during.0);
    assert_ne!(before.1, during.1);
    t1.ok(&["down"]);
    eventually("down restores everything", Duration::from_secs(5), || {
        let now = picture();
        if now == before { Ok(()) } else { Err(format!("{now:?} instead of {before:?}")) }
    });
    t1.ok(&["up"]);
    t1.wait_running(Duration::from_secs(10));
    t1.daemon().signal(Signal::SIGTERM);
    t1.daemon().wait(Duration::from_secs(8));
    assert_eq!(picture(), before, "exit restores everything");
    assert_eq!(links(), links_before, "the interface is gone after exit");
    // After a kill -9 the next start finds the leavings and the next stop restores the original.
    t1.start_daemon();
    t1.wait_running(Duration::from_secs(10));
    t1.kill9();
    t1.start_daemon();
    t1.wait_running(Duration::from_secs(10));
    t1.daemon().signal(Signal::SIGTERM);
    t1.daemon().wait(Duration::from_secs(8));
    assert_eq!(picture(), before, "a crash in between loses the original");
}

#[test]
fn a_second_daemon_on_one_state_directory_refuses() {
    let lab = Lab::new("two daemons");
    let host = lab.host("t1");
    let mut first = Peer::start(&host, Kind::Tsd);
    let out = host.output(TSD, &["node", "run", "--socket", "/run/other.sock"]);
    assert_eq!(out.status.code(), Some(1), "{}", lossy(&out.stderr));
    let pid = first.daemon().pid().to_string();
    assert!(lossy(&out.stderr).contains(&pid), "does not name {pid}: {}", lossy(&out.stderr));
}

#[test]
fn up_without_a_daemon_starts_one_and_says_so() {
    let lab = Lab::new("up starts");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&[]);
    let host = lab.host("t1");
    let out = host.output(TSD, &["node", "up", "--login-server", &server.url, "--auth-key", &key]);
    let text = lossy(&out.stdout) + &lossy(&out.stderr);
    assert!(out.status.success(), "{text}");
    assert!(text.to_lowercase().contains("start"), "{text}");
    server.wait_online("t1", true, Duration::from_secs(5));
    host.ok(TSD, &["node", "ip", "-4"]);
}

#[test]
fn other_names_go_to_the_hosts_resolver() {
    let lab = Lab::new("forwarding");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let resolver = lab.host_at("dns", "203.0.113.53");
    // A resolver that answers every A question with 192.0.2.99.
    let _dns = resolver.inside(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:53").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut buf = [0_u8; 1500];
        while let Ok((n, from)) = socket.recv_from(&mut buf) {
            let question_end = 12 + buf[12..n].iter().position(|b| *b == 0).unwrap_or(0) + 5;
            let mut answer = buf[..question_end.min(n)].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
            let is_a = answer[question_end - 4..question_end - 2] == [0, 1];
            if is_a {
                answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 99]);
            } else {
                answer[7] = 0;
            }
            let _ = socket.send_to(&answer, from);
        }
    });
    let t1 = Peer::join(&lab.host("t1"), Kind::Tsd, &server.url, &key);
    eventually("the forwarded name resolves", Duration::from_secs(10), || {
        let out = t1.host.output("getent", &["ahostsv4", "www.example.net"]);
        if lossy(&out.stdout).contains("192.0.2.99") { Ok(()) } else { Err(lossy(&out.stdout)) }
    });
    // Names of the tailnet never leave the node.
    let out = t1.host.output("getent", &["ahostsv4", "nobody.tail.internal"]);
    assert!(!out.status.success(), "{}", lossy(&out.stdout));
}
