//! The official client's own diagnostics find nothing to complain about, with a certificate of an
//! authority and with the pinned one of our own.

use std::time::Duration;

use crate::authority::serve_with_ca;
use crate::peers::{OFFICIAL, Peer, lossy};
use crate::server::Server;
use crate::world::{Lab, eventually};

fn diagnose(peer: &Peer, debug_relay: bool) {
    let netcheck = peer.ok(&["netcheck"]);
    assert!(netcheck.contains("UDP: true"), "{netcheck}");
    assert!(netcheck.contains("Nearest DERP: tsd") && netcheck.contains("- tsd: "), "{netcheck}");
    eventually("the health list is empty", Duration::from_secs(15), || {
        let status = peer.status();
        match status["Health"].as_array() {
            Some(list) if !list.is_empty() => Err(status["Health"].to_string()),
            _ => Ok(()),
        }
    });
    let status = peer.status();
    assert_eq!(status["Self"]["Relay"], "tsd", "{status}");
    assert_eq!(status["MagicDNSSuffix"], "tail.internal", "{status}");
    assert!(status["Self"]["DNSName"].as_str().unwrap().ends_with(".tail.internal."), "{status}");
    if debug_relay {
        let out = peer.cli(&["debug", "derp", "900"]);
        let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
        // The tool dials the word that switches a family off as if it were a name.
        let errors = report["Errors"].as_array().cloned().unwrap_or_default();
        let real = errors.iter().filter(|e| !e.as_str().is_some_and(|e| e.contains("none:443"))).count();
        let info = report["Info"].to_string();
        assert!(real == 0 && info.contains("Successfully established a DERP connection"), "{report}");
    }
}

#[test]
fn official_diagnostics_are_content_with_an_authority() {
    let lab = Lab::new("diagnostics, CA");
    let srv = lab.host_at("srv", "203.0.113.10");
    let (server, ca) = serve_with_ca(&srv);
    let host = lab.host("o1");
    std::fs::write(host.path("/etc/lab-ca.pem"), &ca).unwrap();
    let peer = Peer::start_with(&host, OFFICIAL, &[("SSL_CERT_FILE", "/etc/lab-ca.pem")]);
    peer.up(&server.url, &server.key(&[]));
    diagnose(&peer, true);
    let mut command = peer.command(&["debug", "ts2021", "--verbose", "--host=203.0.113.10"]);
    command.env("SSL_CERT_FILE", "/etc/lab-ca.pem");
    let out = command.output().unwrap();
    let text = lossy(&out.stdout) + &lossy(&out.stderr);
    assert!(out.status.success(), "{text}");
    assert!(text.contains("did noise handshake"), "{text}");
}

#[test]
fn official_diagnostics_are_content_with_the_pinned_certificate() {
    let lab = Lab::new("diagnostics, pinned");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let peer = Peer::join(&lab.host("o1"), OFFICIAL, &server.url, &server.key(&[]));
    diagnose(&peer, false);
}
