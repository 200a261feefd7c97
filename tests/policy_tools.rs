//! The policy tools as people and scripts run them: the real binary, files, exit statuses, JSON; and a
//! policy's life on a running server that only has its admin socket to speak with.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

const NET: &str = r#"{
  "tailnet": {"domains": ["example.com"], "settings": {"devices_auto_updates_on": true}, "dns": {}},
  "users": [
    {"id": 1, "name": "odin", "email": "odin@example.com"},
    {"id": 2, "name": "freya", "email": "freya@example.com"}
  ],
  "nodes": {
    "desk":    {"hostname": "desk", "user": "odin", "tags": null, "ipv4": "100.64.0.1", "ipv6": "fd7a:115c:a1e0::1"},
    "phone":   {"user": "freya", "ipv4": "100.64.0.2", "ipv6": "fd7a:115c:a1e0::2", "routable_ips": null},
    "server":  {"tags": ["tag:server"], "ipv4": "100.64.0.3", "ipv6": "fd7a:115c:a1e0::3"},
    "router1": {"tags": ["tag:router"], "ipv4": "100.64.0.4", "ipv6": "fd7a:115c:a1e0::4",
                "routable_ips": ["10.33.0.0/16", "10.44.0.0/16"], "approved_routes": ["10.33.0.0/16"]},
    "router2": {"tags": ["tag:router"], "ipv4": "100.64.0.5", "ipv6": "fd7a:115c:a1e0::5",
                "routable_ips": ["10.33.0.0/16"], "approved_routes": ["10.33.0.0/16"],
                "primary_routes": ["10.33.0.0/16"]}
  }
}"#;

const POLICY: &str = r#"{
	// Who is who.
	"groups": {"group:admins": ["odin@example.com"]},
	"tagOwners": {"tag:server": ["group:admins"], "tag:router": ["group:admins"]},
	"autoApprovers": {"routes": {"10.0.0.0/8": ["tag:router"]}},
	"acls": [
		{"action": "accept", "src": ["group:admins"], "dst": ["tag:server:22,443", "10.33.0.0/16:*"]},
	],
	"ssh": [
		{"action": "check", "src": ["group:admins"], "dst": ["tag:server"], "users": ["root"]},
	],
	"nodeAttrs": [{"target": ["freya@example.com"], "attr": ["disable-ipv4", "custom:x"]}],
	"tests": [{"src": "odin@example.com", "accept": ["tag:server:22"], "deny": ["tag:router:22"]}],
}
"#;

struct Room(tempfile::TempDir);

impl Room {
    fn new() -> Self {
        let room = Self(tempfile::tempdir().unwrap());
        room.put("net.json", NET);
        room.put("policy.hujson", POLICY);
        room
    }

    fn put(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tsd"));
        command.args(line.split(' ')).current_dir(self.0.path()).stdin(Stdio::null());
        command.env("TSD_STATE_DIR", self.path("state"));
        command
    }

    /// Exit status, stdout, stderr.
    fn run(&self, line: &str) -> (i32, String, String) {
        told(self.command(line).output().unwrap())
    }

    fn run_with(&self, line: &str, input: &str) -> (i32, String, String) {
        let mut command = self.command(line);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        told(child.wait_with_output().unwrap())
    }

    fn json(&self, line: &str) -> Value {
        let (status, out, err) = self.run(line);
        assert_eq!(status, 0, "{line}: {out}{err}");
        serde_json::from_str(&out).unwrap()
    }
}

fn told(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

const COMPILE: &str = "policy compile --policy policy.hujson --topology net.json --json";

#[test]
fn compile_prints_what_every_node_is_given() {
    let room = Room::new();
    let answer = room.json(COMPILE);
    assert_eq!(answer["ok"], true);
    assert_eq!(answer.get("stats"), None);
    let nodes = &answer["nodes"];
    assert_eq!(nodes.as_object().unwrap().len(), 5);
    let port = |ip: &str, port: u16| json!({"IP": ip, "Ports": {"First": port, "Last": port}});
    let admins = json!(["100.64.0.1", "fd7a:115c:a1e0::1"]);
    assert_eq!(
        nodes["server"]["packet_filter_rules"],
        json!([{
            "SrcIPs": admins,
            "DstPorts": [
                port("100.64.0.3", 22), port("100.64.0.3", 443),
                port("fd7a:115c:a1e0::3", 22), port("fd7a:115c:a1e0::3", 443),
            ],
        }])
    );
    for router in ["router1", "router2"] {
        let range = json!({"IP": "10.33.0.0/16", "Ports": {"First": 0, "Last": 65535}});
        assert_eq!(
            nodes[router]["packet_filter_rules"],
            json!([{"SrcIPs": admins, "DstPorts": [range]}]),
            "{router}"
        );
    }
    assert_eq!(nodes["desk"]["packet_filter_rules"], json!([]));
    assert_eq!(nodes["desk"]["peers"], json!(["router1", "router2", "server"]));
    assert_eq!(nodes["phone"]["peers"], json!([]));
    // The second router says that it carries the route.
    let addresses = |n: u8| vec![format!("100.64.0.{n}/32"), format!("fd7a:115c:a1e0::{n}/128")];
    let seen = &nodes["desk"]["allowed_ips"];
    assert_eq!(seen["router1"], json!(addresses(4)));
    assert_eq!(seen["router2"], json!([addresses(5), vec!["10.33.0.0/16".to_owned()]].concat()));
    assert_eq!(nodes["router1"]["auto_approved"], json!(["10.33.0.0/16", "10.44.0.0/16"]));
    assert_eq!(nodes["server"]["auto_approved"], json!([]));
    let ssh = &nodes["server"]["ssh_rules"][0];
    assert_eq!(ssh["principals"], json!([{"nodeIP": "100.64.0.1"}, {"nodeIP": "fd7a:115c:a1e0::1"}]));
    assert!(ssh["action"]["holdAndDelegate"].as_str().unwrap().starts_with("https://unused/"), "{ssh}");
    assert_eq!(nodes["desk"]["ssh_rules"], json!([]));
    assert_eq!(nodes["phone"]["cap_map"]["custom:x"], json!(null));
    assert_eq!(nodes["phone"]["cap_map"]["default-auto-update"], json!([true]));
    assert!(nodes["desk"]["cap_map"].get("custom:x").is_none());
    assert_eq!(nodes["desk"]["peer_cap_map"]["server"], json!({}));
}

#[test]
fn compile_for_one_node_with_figures_and_for_people() {
    let room = Room::new();
    let answer = room.json(&format!("{COMPILE} --node server --stats"));
    let names: Vec<&String> = answer["nodes"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["server"]);
    assert_eq!((&answer["stats"]["nodes"], &answer["stats"]["filter_rules"]), (&json!(5), &json!(3)));
    assert_eq!(answer["stats"]["peers"], json!(6));
    let (status, out, _) = room.run("policy compile --policy policy.hujson --topology net.json");
    assert_eq!(status, 0);
    assert!(
        out.lines().any(|l| l.starts_with("router1 ") && l.ends_with("10.33.0.0/16,10.44.0.0/16")),
        "{out}"
    );
}

#[test]
fn without_ipv4_neither_side_sees_the_others() {
    let room = Room::new();
    room.put(
        "policy.hujson",
        POLICY.replace("\"group:admins\"], \"dst\"", "\"freya@example.com\"], \"dst\""),
    );
    room.put("policy.hujson", room.text("policy.hujson").replace("\"src\": \"odin", "\"src\": \"freya"));
    let nodes = &room.json(COMPILE)["nodes"];
    assert_eq!(nodes["phone"]["allowed_ips"]["server"], json!(["fd7a:115c:a1e0::3/128"]));
    assert_eq!(nodes["server"]["allowed_ips"]["phone"], json!(["fd7a:115c:a1e0::2/128"]));
    // Routes of the other family stay.
    let router = json!(["fd7a:115c:a1e0::5/128", "10.33.0.0/16"]);
    assert_eq!(nodes["phone"]["allowed_ips"]["router2"], router);
}

#[test]
fn a_refused_policy_exits_with_1_and_its_faults() {
    let room = Room::new();
    let rule = |what: &str| format!("{{\"acls\": [\n{{\"action\": \"accept\", {what}}}]}}");
    let cases: [(Vec<u8>, &str, u64, &str); 5] = [
        (
            rule("\"src\": [\"tag:sever\"], \"dst\": [\"*:*\"]").into(),
            "unknown-tag",
            2,
            "src=tag not found: \"tag:sever\"",
        ),
        (
            rule("\"src\": [\"user:*@x.example\"], \"dst\": [\"*:*\"]").into(),
            "",
            2,
            "x.example is not associated with this Tailnet",
        ),
        (POLICY.replace("tag:router:22\"]}]", "tag:server:22\"]}]").into(), "", 13, "test(s) failed"),
        (b"{\n\n \"acls\": [,]}".to_vec(), "syntax", 3, ""),
        (b"{\n\"a\": \"\xff\"}".to_vec(), "syntax", 2, "invalid UTF-8"),
    ];
    for (text, code, line, message) in cases {
        room.put("policy.hujson", &text);
        let (status, out, _) = room.run(COMPILE);
        assert_eq!(status, 1, "{out}");
        let answer: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(answer["ok"], false);
        let first = &answer["errors"][0];
        assert!(code.is_empty() || first["code"] == code, "{first}");
        assert_eq!(first["line"], line, "{first}");
        assert!(first["column"].as_u64().unwrap() > 0 && first["hint"].is_string(), "{first}");
        assert!(first["message"].as_str().unwrap().contains(message), "{first}");
        // For people: places on stderr, nothing on stdout.
        let (status, out, err) = room.run(COMPILE.strip_suffix(" --json").unwrap());
        assert_eq!((status, out.as_str()), (1, ""));
        assert!(err.starts_with(&format!("policy.hujson:{line}:")), "{err}");
    }
}

#[test]
fn a_question_that_cannot_be_asked_exits_with_2() {
    let room = Room::new();
    for (net, place) in [
        ("{", "line 1, column 1"),
        ("{\n  \"nodes\": {\"a\": {\"ipv4\": \"100.64\"}}}", "line 2, column"),
        ("{\"nodes\": {\"a\": {}}}", "nodes.a"),
        ("{\"nodes\": {\"a\": {\"user\": \"odin\"}}}", "nodes.a.user"),
        ("[]", "line 1"),
    ] {
        room.put("bad.json", net);
        let (status, out, err) = room.run("policy compile --policy policy.hujson --topology bad.json --json");
        assert_eq!((status, out.as_str()), (2, ""), "{net}");
        assert!(err.contains("bad.json") && err.contains(place), "{net}: {err}");
    }
    for (line, what) in [
        ("policy compile --policy policy.hujson --topology none.json --json", "none.json"),
        ("policy compile --policy none.hujson --topology net.json --json", "none.hujson"),
        (&format!("{COMPILE} --node servr"), "did you mean server?"),
    ] {
        let (status, out, err) = room.run(line);
        assert_eq!((status, out.as_str()), (2, ""), "{line}");
        assert!(err.contains(what), "{line}: {err}");
    }
}

#[test]
fn check_without_a_server_runs_the_tests_on_a_topology() {
    let room = Room::new();
    let (status, out, err) = room.run("policy check policy.hujson --topology net.json");
    assert_eq!((status, out.as_str()), (0, "the policy is good and its tests hold\n"), "{err}");
    let broken = POLICY.replace("\"accept\": [\"tag:server:22\"]", "\"accept\": [\"tag:server:23\"]");
    let (status, out, _) = room.run_with("policy check - --topology net.json --json", &broken);
    assert_eq!(status, 1);
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert!(answer["errors"][0]["message"].as_str().unwrap().contains("test(s) failed"), "{answer}");
    let stranger = POLICY.replace("[\"odin@example.com\"]", "[\"odin@example.com\", \"oidn@example.com\"]");
    let (status, _, err) = room.run_with("policy check - --topology net.json", &stranger);
    assert_eq!(status, 0);
    assert!(
        err.contains("warning: standard input:3:") && err.contains("did you mean odin@example.com?"),
        "{err}"
    );
    let (status, out, err) = room.run_with("policy check -", "{\"acls\": []}");
    assert_eq!((status, out.as_str()), (0, "the policy is well-formed\n"));
    assert!(err.contains("only the language was checked"), "{err}");
}

#[test]
fn fmt_prints_checks_and_writes() {
    let room = Room::new();
    let ugly = "{\"acls\":[ // all\n{\"action\":\"accept\",\"src\":[\"*\"],\"dst\":[\"*:*\"]}]}";
    let good = "{\n\t\"acls\": [ // all\n\t\t{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:*\"]},\n\t],\n}\n";
    room.put("p", ugly);
    assert_eq!(room.run("policy fmt p"), (0, good.to_owned(), String::new()));
    assert_eq!(room.text("p"), ugly);
    let (status, out, err) = room.run("policy fmt p --check");
    assert_eq!((status, out.as_str()), (1, ""));
    assert!(err.starts_with("p:1: not in canonical form"), "{err}");
    assert_eq!(room.run("policy fmt p -w").0, 0);
    assert_eq!(room.text("p"), good);
    assert_eq!(room.run("policy fmt p --check").0, 0);
    assert_eq!(fs::read_dir(room.0.path()).unwrap().count(), 3, "nothing else is left behind");
    let (status, out, err) = room.run_with("policy fmt -", "{\"a\" 1}");
    assert_eq!((status, out.as_str()), (1, ""));
    assert!(err.starts_with("standard input:1:"), "{err}");
}

#[test]
fn edit_changes_a_file_and_nothing_else() {
    let room = Room::new();
    let line = "policy edit policy.hujson --add-user-to-group freya@example.com admins";
    let want = POLICY.replace("[\"odin@example.com\"]}", "[\"odin@example.com\", \"freya@example.com\"]}");
    assert_eq!(room.run(line), (0, want.clone(), String::new()));
    assert_eq!(room.text("policy.hujson"), POLICY);
    let answer = room.json(&format!("{line} --write --json"));
    assert_eq!((&answer["changed"], &answer["text"]), (&json!(true), &json!(want)));
    assert_eq!(room.text("policy.hujson"), want);
    assert_eq!(room.json(&format!("{line} --write --json"))["changed"], false);
    let (status, out, err) =
        room.run("policy edit policy.hujson --remove-user-from-group fryea@example.com admins");
    assert_eq!((status, out.as_str()), (1, ""));
    assert!(err.starts_with("policy.hujson:3:") && err.contains("did you mean freya@example.com?"), "{err}");
    let (status, out, _) = room.run("policy edit policy.hujson --add-rule tag:nobody tag:server --json");
    assert_eq!(status, 1);
    assert!(out.contains("tag not found"), "{out}");
}

#[test]
fn explain_and_stats_answer_from_files() {
    let room = Room::new();
    let files = "--draft policy.hujson --topology net.json";
    let (status, out, err) = room.run(&format!("policy explain --from desk --to server --port 22 {files}"));
    assert_eq!(status, 0, "{err}");
    assert!(out.contains("rule: acls, line 7, column 3"), "{out}");
    let answer = room.json(&format!("policy explain --from phone --to server --port 22 {files} --json"));
    assert_eq!(answer["verdict"], "refused");
    assert_eq!(answer["misses"][0]["rule"]["line"], 7);
    let (status, out, err) = room.run(&format!("policy explain --from dsek --to server {files}"));
    assert_eq!((status, out.as_str()), (1, ""));
    assert!(err.starts_with("from: ") && err.contains("desk"), "{err}");
    let stats = room.json("policy stats policy.hujson --topology net.json --json");
    assert_eq!((&stats["nodes"], &stats["rules"]), (&json!(5), &json!(1)));
    assert_eq!((&stats["per_rule"][0]["sources"], &stats["per_rule"][0]["edges"]), (&json!(1), &json!(3)));
    let (_, out, _) = room.run("policy stats policy.hujson --topology net.json");
    assert!(out.lines().nth(1).is_some_and(|l| l.starts_with("acls:7 ")), "{out}");
    assert_eq!(room.run("policy stats --topology net.json").0, 1);
    assert_eq!(room.run("policy explain --from a --to b --topology net.json").0, 1);
}

/// Takes an approver, an attribute and a rule away, and gives others.
fn next() -> String {
    POLICY
        .replace("\"attr\": [\"disable-ipv4\", \"custom:x\"]", "\"attr\": [\"custom:x\", \"custom:y\"]")
        .replace("\"10.0.0.0/8\": [\"tag:router\"]", "\"10.0.0.0/8\": [\"tag:server\"]")
        .replace("tag:server:22,443", "tag:server:22")
}

#[test]
fn diff_names_attributes_and_approval_beside_access() {
    let room = Room::new();
    room.put("next", next());
    let line = "policy diff policy.hujson next --topology net.json";
    let (status, out, err) = room.run(line);
    assert_eq!((status, err.as_str()), (0, ""));
    let want = [
        "- odin@example.com to tag:server: port 443",
        "- tag:router: automatic approval of routes within 10.0.0.0/8 (what is approved stays)",
        "+ freya@example.com: IPv4 (no attribute disable-ipv4 any more)",
        "+ freya@example.com: attribute custom:y",
        "+ tag:server: automatic approval of routes within 10.0.0.0/8",
        "from A to B: 0 pair(s) gain access, 1 lose access, 4 other changes",
    ];
    assert_eq!(out.lines().collect::<Vec<_>>(), want);
    let answer = room.json(&format!("{line} --json"));
    assert_eq!(
        answer["lost"],
        json!([{"from": "odin@example.com", "to": "tag:server", "what": "port 443", "pairs": 1}])
    );
    assert_eq!(
        answer["other"][0],
        json!({
            "kind": "approval", "effect": "lost", "who": "tag:router", "devices": 2, "takes_away": true,
            "what": "automatic approval of routes within 10.0.0.0/8 (what is approved stays)",
        })
    );
    assert_eq!((&answer["other_total"], &answer["other_lost"]), (&json!(4), &json!(1)));
    assert_eq!((&answer["exact"], &answer["failing_tests"]), (&json!(true), &json!({"a": [], "b": []})));
}

#[test]
fn diff_is_told_before_the_tests_that_fail() {
    let room = Room::new();
    room.put("next", POLICY.replace("tag:server:22,443", "tag:server:443"));
    let line = "policy diff policy.hujson next --topology net.json";
    let (status, out, err) = room.run(line);
    assert_eq!(status, 1, "{err}");
    assert!(out.starts_with("- odin@example.com to tag:server: port 22\n"), "{out}");
    assert!(out.ends_with("from A to B: 0 pair(s) gain access, 1 lose access\n"), "{out}");
    let lines: Vec<&str> = err.lines().collect();
    assert!(lines[0].starts_with("next:13:") && lines[0].contains("test(s) failed"), "{err}");
    assert_eq!(lines[1..], ["1 test does not hold in next: `tsd policy set` would refuse it"]);
    let (status, out, _) = room.run(&format!("{line} --json"));
    let answer: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, &answer["lost_total"]), (1, &json!(1)));
    assert_eq!(answer["failing_tests"]["a"], json!([]));
    assert_eq!(answer["failing_tests"]["b"][0]["code"], "test-failed");
    // Of the older one it is a warning: it is left behind.
    let (status, out, err) = room.run("policy diff next policy.hujson --topology net.json");
    assert_eq!(status, 0);
    assert!(out.starts_with("+ odin@example.com to tag:server: port 22\n"), "{out}");
    assert!(err.starts_with("warning: next:13:"), "{err}");
    // What cannot be read is refused still.
    room.put("next", "{\"acls\": [{}]}");
    let (status, out, err) = room.run(line);
    assert_eq!((status, out.as_str()), (1, ""));
    assert!(err.starts_with("next:1:"), "{err}");
}

/// A server with nothing but its admin socket and a listener nobody calls.
struct Server(Child);

impl Server {
    fn start(room: &Room) -> Self {
        let line = "serve --listen 127.0.0.1:0 --tls-listen off --stun-listen off --url http://127.0.0.1:9";
        let mut command = room.command(line);
        let mut server = Self(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        // It says so when it serves; the pipe is emptied for as long as it runs.
        let mut out = BufReader::new(server.0.stdout.take().unwrap());
        let mut first = String::new();
        out.read_line(&mut first).unwrap();
        assert!(first.contains("serves"), "{first}");
        std::thread::spawn(move || out.lines().for_each(drop));
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_policy_lives_on_a_server() {
    let room = Room::new();
    let _server = Server::start(&room);
    let text = "{\n\t// Nobody.\n\t\"acls\": [],  }";
    room.put("p", text);
    assert_eq!(room.run("policy set p --comment first").0, 0);
    assert_eq!(room.run("policy get").1, text, "letter for letter");
    let (status, _, err) = room
        .run("policy edit --live --add-host web 10.0.0.1 --add-rule autogroup:member web:443 --comment web");
    assert_eq!(status, 0, "{err}");
    let rule = r#"{"action": "accept", "src": ["autogroup:member"], "dst": ["web:443"]}"#;
    let now = room.run("policy get").1;
    assert!(
        now.contains(rule) && now.contains("\"web\": \"10.0.0.1\"") && now.contains("// Nobody."),
        "{now}"
    );
    let history = room.json("policy history --json");
    let entries: Vec<_> =
        history.as_array().unwrap().iter().map(|e| (e["version"].clone(), e["comment"].clone())).collect();
    assert_eq!(entries, [(json!(2), json!("web")), (json!(1), json!("first"))]);
    assert_eq!(room.run("policy show 1").1, text);
    assert_eq!(room.run("policy rollback 1 --comment back").0, 0);
    assert_eq!(room.run("policy get").1, text);
    assert_eq!(room.json("policy get --json")["version"], 3);
    assert_eq!(room.json("policy check p --json")["ok"], true);
    assert_eq!(room.json("policy stats --json")["rules"], 0);
    room.put(
        "q",
        "{\"acls\": [{\"action\": \"accept\", \"src\": [\"10.1.0.1\"], \"dst\": [\"10.2.0.1:22\"]}]}",
    );
    assert_eq!(room.json("policy stats q --json")["rules"], 1);
    let answer = room.json("policy explain --from 10.1.0.1 --to 10.2.0.1 --port 22 --json");
    assert_eq!(answer["verdict"], "refused", "{answer}");
    let (status, out, err) = room.run("policy explain --from nobody --to 10.2.0.1");
    assert_eq!((status, out.as_str()), (1, ""));
    assert!(err.starts_with("from: "), "{err}");
    room.put("r", "{\"acls\": [{}]}");
    for line in [
        "policy stats r",
        "policy diff live r",
        "policy diff r 1",
        "policy explain --from a --to b --draft r",
    ] {
        let (status, out, err) = room.run(line);
        assert_eq!((status, out.as_str()), (1, ""), "{line}");
        assert!(err.starts_with("r:1:"), "{line}: {err}");
    }
    // The very text in force is not stored again, by whatever command.
    for line in ["policy set p --comment again", "policy rollback 3 --comment again"] {
        let (status, out, _) = room.run(line);
        let want =
            "unchanged: policy 3 is in force with this text; nothing was stored, the comment neither\n";
        assert_eq!((status, out.as_str()), (0, want), "{line}");
    }
    let answer = room.json("policy set p --json");
    assert_eq!((&answer["unchanged"], &answer["applied"]), (&json!(true), &json!(false)));
    assert_eq!(
        (&answer["version"], room.json("policy history --json").as_array().unwrap().len()),
        (&json!(3), 3)
    );
    // The server's own comparison tells of failing tests too.
    room.put("f", "{\"acls\": [], \"tests\": [{\"src\": \"10.1.0.1\", \"accept\": [\"10.2.0.1:22\"]}]}");
    let (status, out, err) = room.run("policy diff live f");
    assert_eq!((status, out.as_str()), (1, "no access changes\n"), "{err}");
    assert!(err.starts_with("f:1:") && err.contains("does not hold in f"), "{err}");
    // Nothing there, nothing to change, nothing that may be.
    for (line, what) in [("policy show 9", "9"), ("policy rollback 9", "9")] {
        let (status, out, err) = room.run(line);
        assert_eq!((status, out.as_str()), (1, ""), "{line}: {err}");
        assert!(err.contains(what), "{line}: {err}");
    }
    // What is no access is shown, and what is taken of it asked for.
    let more = r#""autoApprovers": {"exitNode": ["autogroup:member"]}, "disableIPv4": true"#;
    room.put("o", format!("{{\"acls\": [], {more}}}"));
    let (status, out, err) = room.run("policy set o");
    assert_eq!((status, out.as_str()), (1, ""));
    assert!(err.contains("- the whole network: IPv4 (disableIPv4)"), "{err}");
    assert!(
        err.contains("+ autogroup:member (no device today): automatic approval as an exit node"),
        "{err}"
    );
    assert!(
        err.contains("something away beside access (the whole network: IPv4 (disableIPv4)); nothing"),
        "{err}"
    );
    assert_eq!(room.json("policy get --json")["version"], 3);
    assert_eq!(room.run("policy edit --live --add-group dev").0, 0);
    assert_eq!(room.run("policy edit --live --add-group dev").1, "nothing to change\n");
    let (status, _, err) = room.run("policy edit --live --add-rule tag:x *:*");
    assert_eq!(status, 1);
    assert!(err.starts_with("the policy in force:") && err.contains("tag:x"), "{err}");
    room.put("p", "{\"acls\": [{}]}");
    let (status, out, err) = room.run("policy set p");
    assert_eq!((status, out.as_str()), (1, ""));
    assert!(err.starts_with("p:1:"), "{err}");
    assert_eq!(room.json("policy get --json")["version"], 4);
}

#[test]
fn without_a_server_the_live_commands_say_so() {
    let room = Room::new();
    for line in [
        "policy get",
        "policy history",
        "policy show 1",
        "policy edit --live --add-group x",
        "policy set policy.hujson",
    ] {
        let (status, out, err) = room.run(line);
        assert_eq!((status, out.as_str()), (1, ""), "{line}");
        assert!(err.contains("no tsd server answers"), "{line}: {err}");
    }
    assert!(!Path::new(&room.path("state")).exists());
}
