//! Proof 3: the newest official client, the oldest we serve and the first that pins, in one mesh.

use std::process::Command;
use std::time::Duration;

use crate::authority::{serve_with_ca, test_ca};
use crate::official::Version;
use crate::peers::{Kind, OFFICIAL, Peer};
use crate::server::Server;
use crate::world::Lab;

#[test]
fn newest_and_oldest_join_one_mesh_with_a_ca() {
    let lab = Lab::new("versions, CA");
    let srv = lab.host_at("srv", "203.0.113.10");
    let (server, ca) = serve_with_ca(&srv);
    let auth = server.key(&["--reusable"]);
    let environment = [("SSL_CERT_FILE", "/etc/lab-ca.pem")];
    let peers: Vec<Peer> = [("new", OFFICIAL), ("old", Kind::Official(Version::Oldest)), ("ours", Kind::Tsd)]
        .into_iter()
        .map(|(name, kind)| {
            let host = lab.host(name);
            host.block_udp();
            std::fs::write(host.path("/etc/lab-ca.pem"), &ca).unwrap();
            let peer = Peer::start_with(&host, kind, &environment);
            peer.up(&server.url, &auth);
            peer
        })
        .collect();
    all_ping(&peers);
}

#[test]
fn the_first_pinning_client_joins_without_any_ca() {
    let lab = Lab::new("versions, pinned");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let auth = server.key(&["--reusable"]);
    let peers: Vec<Peer> =
        [("new", OFFICIAL), ("pin", Kind::Official(Version::FirstPinning)), ("ours", Kind::Tsd)]
            .into_iter()
            .map(|(name, kind)| {
                let host = lab.host(name);
                host.block_udp();
                Peer::join(&host, kind, &server.url, &auth)
            })
            .collect();
    all_ping(&peers);
}

/// Every peer reaches every other one by relay.
fn all_ping(peers: &[Peer]) {
    for from in peers {
        for to in peers.iter().filter(|p| p.name() != from.name()) {
            from.wait_sees(&[to.name()], Duration::from_secs(10));
            let line = from.mesh_ping(&to.ip4());
            assert!(line.contains("via DERP(tsd)"), "{} to {}: {line}", from.name(), to.name());
            from.wait_icmp(to.name(), Duration::from_secs(10));
        }
    }
}

#[test]
fn the_test_ca_is_a_real_chain() {
    let (ca, cert, _) = test_ca("203.0.113.10");
    let dir = std::env::temp_dir().join(format!("tsd-ca-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("ca.pem"), ca).unwrap();
    std::fs::write(dir.join("cert.pem"), cert).unwrap();
    let out = Command::new("openssl")
        .args(["verify", "-CAfile"])
        .args([dir.join("ca.pem"), dir.join("cert.pem")])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    std::fs::remove_dir_all(dir).unwrap();
}
