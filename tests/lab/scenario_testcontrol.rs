//! Proof 9: `tsd node` joins a control server that tsd did not write, and talks to official clients
//! there, directly and by the official relay.

use std::time::Duration;

use crate::official::{Version, program};
use crate::peers::{Kind, OFFICIAL, Peer};
use crate::world::{Host, Lab, Nat, Process, eventually};

const URL: &str = "http://203.0.113.10:8080";

fn labcontrol(host: &Host) -> Process {
    let mut command = host.command(program(Version::Newest, "labcontrol"));
    command.args(["-addr", &host.addr, "-auth-key", "lab-key"]).env("TS_NO_LOGS_NO_SUPPORT", "true");
    let process = host.spawn("labcontrol", command);
    eventually("labcontrol is ready", Duration::from_secs(10), || {
        if process.text().contains("ready") { Ok(()) } else { Err(process.text()) }
    });
    process
}

#[test]
fn ours_joins_the_official_test_control_server() {
    let lab = Lab::new("official test control");
    let srv = lab.host_at("srv", "203.0.113.10");
    let _control = labcontrol(&srv);
    let t1 = Peer::join(&lab.router("n1", Nat::Easy).host("t1"), Kind::Tsd, URL, "lab-key");
    let t2 = Peer::join(&lab.router("n2", Nat::Easy).host("t2"), Kind::Tsd, URL, "lab-key");
    let o1 = Peer::join(&lab.router("n3", Nat::Easy).host("o1"), OFFICIAL, URL, "lab-key");
    let peers = [&t1, &t2, &o1];
    let ips = peers.map(Peer::ip4);
    for (i, from) in peers.iter().enumerate() {
        for (j, ip) in ips.iter().enumerate() {
            if i != j {
                from.wait_icmp(ip, Duration::from_secs(15));
                let line = from.ping_until_direct(ip);
                assert!(!line.contains("DERP"), "{line}");
            }
        }
    }
}

#[test]
fn the_lab_itself_lets_official_clients_talk() {
    let lab = Lab::new("lab check");
    let srv = lab.host_at("srv", "203.0.113.10");
    let _control = labcontrol(&srv);
    let o1 = Peer::join(&lab.router("n1", Nat::Easy).host("o1"), OFFICIAL, URL, "lab-key");
    let o2 = Peer::join(&lab.router("n2", Nat::Easy).host("o2"), OFFICIAL, URL, "lab-key");
    let hard = Peer::join(&lab.router("n3", Nat::Hard).host("o3"), OFFICIAL, URL, "lab-key");
    let harder = Peer::join(&lab.router("n4", Nat::Hard).host("o4"), OFFICIAL, URL, "lab-key");
    let line = o1.ping_until_direct(&o2.ip4());
    assert!(line.starts_with("pong from") && !line.contains("DERP"), "easy NATs: {line}");
    let line = hard.ping_until_direct(&harder.ip4());
    assert!(line.contains("DERP(lab)"), "hard NATs: {line}");
}
