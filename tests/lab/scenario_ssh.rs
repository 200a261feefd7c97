//! SSH by the policy, into an official client's SSH server: who is let in, who is not, and what a rule
//! that asks first says as long as there is nobody to ask.

use std::time::Duration;

use crate::peers::{OFFICIAL, Peer, lossy};
use crate::server::Server;
use crate::world::{Lab, eventually};

const POLICY: &str = r#"{
  "tagOwners": {"tag:server": []},
  "grants": [{"src": ["*"], "dst": ["tag:server"], "ip": ["tcp:22"]}],
  "ssh": [
    {"action": "accept", "src": ["alice@"], "dst": ["tag:server"], "users": ["root"]},
    {"action": "check", "src": ["alice@"], "dst": ["tag:server"], "users": ["daemon"]},
  ],
}"#;

/// An SSH session from `from`; its status, and all it said.
fn ssh(from: &Peer, login: &str, to: &str) -> (bool, String) {
    let target = format!("{login}@{to}");
    let options = [
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "GlobalKnownHostsFile=/dev/null",
        "-o",
        "BatchMode=yes",
        "-o",
        "ConnectTimeout=10",
    ];
    let mut all: Vec<&str> = options.to_vec();
    all.extend([target.as_str(), "echo let-in-as-$(id -un)"]);
    let out = from.host.output("ssh", &all);
    (out.status.success(), format!("{}{}", lossy(&out.stdout), lossy(&out.stderr)))
}

#[test]
fn ssh_rules_hold_at_an_official_server() {
    let lab = Lab::new("ssh");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    server.ok(&["users", "create", "alice"]);
    server.set_policy(POLICY);
    let key = |more: &[&str]| {
        let all = [&["authkeys", "create", "--user", "alice"], more].concat();
        server.json(&all)["key"].as_str().unwrap().to_owned()
    };
    let alice = Peer::join(&lab.host("o1"), OFFICIAL, &server.url, &key(&[]));
    let target = Peer::join(&lab.host("so"), OFFICIAL, &server.url, &key(&["--tags", "tag:server"]));
    target.ok(&["set", "--ssh"]);
    let to = target.ip4();
    alice.wait_sees(&["so"], Duration::from_secs(10));

    eventually("root is let in", Duration::from_secs(20), || {
        let (good, said) = ssh(&alice, "root", &to);
        if good && said.contains("let-in-as-root") { Ok(()) } else { Err(said) }
    });
    // No rule names this login.
    let (good, said) = ssh(&alice, "nobody", &to);
    assert!(!good && !said.contains("let-in"), "{said}");
    // A rule that asks first has nobody to ask yet: it says so and lets nobody in.
    let (good, said) = ssh(&alice, "daemon", &to);
    assert!(!good && !said.contains("let-in") && said.contains("check"), "{said}");

    // The rule goes, and so does the way in.
    server.set_policy(&POLICY.replace(r#""users": ["root"]"#, r#""users": ["sync"]"#));
    eventually("root is turned away", Duration::from_secs(10), || {
        let (good, said) = ssh(&alice, "root", &to);
        if good { Err(said) } else { Ok(()) }
    });
}
