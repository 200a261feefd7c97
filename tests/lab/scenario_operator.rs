//! `tsd serve` and its admin commands as scripts and people use them: listeners, variables, flags in any
//! position, JSON, exit statuses, questions and pipes.

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use crate::peers::{Kind, Peer, lossy};
use crate::server::{Server, TSD};
use crate::world::{Host, Lab, Process, eventually};

const URL: &str = "http://203.0.113.10:8080";

/// Starts `tsd serve` and waits for its start page.
fn serve(host: &Host, args: &[&str], env: &[(&str, &str)]) -> (Process, String) {
    let mut command = host.command(TSD);
    command.arg("serve").args(args).envs(env.iter().copied());
    let process = host.spawn("serve", command);
    let page = eventually("the start page", Duration::from_secs(10), || {
        let text = process.text();
        let whole =
            text.contains("State: ") && (text.contains("tsd console link") || text.contains("Console ("));
        if whole { Ok(text) } else { Err(text) }
    });
    (process, page)
}

/// What follows a word on the page, up to a comma or bracket: an address of a listener.
fn listener(page: &str, name: &str) -> String {
    let at = page.find(&format!("{name} ")).unwrap_or_else(|| panic!("no {name} in {page}"));
    let rest = &page[at + name.len() + 1..];
    rest.split([',', ')']).next().unwrap().to_owned()
}

#[test]
fn each_listener_can_be_off_and_says_what_stops_working() {
    let lab = Lab::new("listeners off");
    let host = lab.host_at("srv", "203.0.113.10");
    let cases = [
        ("--listen", "(http off", "first join"),
        ("--tls-listen", "tls off", "no relay"),
        ("--stun-listen", "stun off", "most pairs stay relayed"),
    ];
    for (flag, shown, warning) in cases {
        let (process, _) = serve(&host, &["--url", URL, flag, "off"], &[]);
        let page = eventually("the warning", Duration::from_secs(5), || {
            let text = process.text();
            if text.contains("Warning: ") { Ok(text) } else { Err(text) }
        });
        assert!(page.contains(shown) && page.contains(warning), "{flag}: {page}");
        let status = host.output(TSD, &["status"]);
        assert!(lossy(&status.stderr).contains(warning), "{flag}: {}", lossy(&status.stderr));
    }
    let out = host.output(TSD, &["serve", "--url", URL, "--listen", "off", "--tls-listen", "off"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(lossy(&out.stderr).contains("leave one on"), "{}", lossy(&out.stderr));
}

#[test]
fn port_0_is_free_and_printed_and_variables_stand_below_flags() {
    let lab = Lab::new("port 0");
    let host = lab.host_at("srv", "203.0.113.10");
    std::fs::write(
        host.path("/etc/tsd.toml"),
        "listen = \"off\"\ntls_listen = \"off\"\n[dns]\nbase_domain = \"file.test\"\n",
    )
    .unwrap();
    let env = [
        ("TSD_CONFIG", "/etc/tsd.toml"),
        ("TSD_LISTEN", "127.0.0.1:0"),
        ("TSD_STUN_LISTEN", "off"),
        ("TSD_TLS_LISTEN", "127.0.0.1:0"),
        ("TSD_STATE_DIR", "/run/state"),
        ("TSD_LOG_FORMAT", "json"),
        ("TSD_LISTN", "x"),
    ];
    let (_process, page) = serve(&host, &["--stun-listen", "127.0.0.1:0"], &env);
    for name in ["http", "tls", "stun"] {
        let addr: std::net::SocketAddr = listener(&page, name).parse().unwrap();
        assert!(addr.ip().is_loopback() && addr.port() != 0, "{name}: {page}");
    }
    let http = listener(&page, "http");
    assert_eq!(
        host.ok("curl", &["-s", "-o", "/dev/null", "-w", "%{http_code}", &format!("http://{http}/healthz")]),
        "200"
    );
    assert!(page.contains("/run/state"), "{page}");
    assert!(page.contains("\"TSD_LISTN\""), "an unknown variable is told, as JSON: {page}");
    host.ok(TSD, &["--state-dir", "/run/state", "status"]);
}

#[test]
fn busy_addresses_and_second_servers_name_the_holder() {
    let lab = Lab::new("holders");
    let host = lab.host_at("srv", "203.0.113.10");
    let mut server = Server::start(&host);
    let pid = server.process().pid().to_string();
    // The same directory: the first server is named, and not its ports.
    let out = host.output(TSD, &["serve"]);
    let said = lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("process {pid}")) && said.contains("/var/lib/tsd"), "{said}");
    // Another directory, each listener given and busy.
    let free = ["--listen", "127.0.0.1:0", "--tls-listen", "127.0.0.1:0", "--stun-listen", "127.0.0.1:0"];
    for (at, port) in [(0, 8080), (2, 443), (4, 3478)] {
        let addr = format!("[::]:{port}");
        let mut args = vec!["--state-dir", "/run/second", "serve"];
        args.extend_from_slice(&free);
        args[at + 4] = &addr;
        let out = host.output(TSD, &args);
        let said = lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{said}");
        let flag = free[at];
        assert!(said.contains(&format!("tsd (process {pid})")) && said.contains(flag), "{flag}: {said}");
        assert!(!host.path("/run/second").exists(), "a server without its ports made a directory");
    }
}

#[test]
fn without_the_right_to_443_it_serves_on_8443_and_says_so() {
    let lab = Lab::new("no right");
    let host = lab.host_at("srv", "203.0.113.10");
    std::fs::create_dir_all(host.path("/run/home")).unwrap();
    host.ok("chown", &["65534", "/run/home"]);
    host.ok("chmod", &["755", "/run"]);
    let mut command = host.command("setpriv");
    command.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
        TSD,
        "serve",
        "--url",
        URL,
    ]);
    command.env("XDG_STATE_HOME", "/run/home");
    let process = host.spawn("serve", command);
    let page = eventually("the start page with its warning", Duration::from_secs(10), || {
        let text = process.text();
        if text.contains("Warning: ") { Ok(text) } else { Err(text) }
    });
    assert!(page.contains("may not take port 443") && page.contains("8443"), "{page}");
    assert!(page.contains("look for TLS on 443"), "{page}");
    assert!(page.contains("/run/home/tsd"), "state is in XDG_STATE_HOME: {page}");
    let status = host.output(TSD, &["--state-dir", "/run/home/tsd", "status"]);
    assert!(lossy(&status.stderr).contains("8443"), "{}", lossy(&status.stderr));
}

#[test]
fn pages_that_are_not_there_answer_at_once() {
    let lab = Lab::new("no such page");
    let host = lab.host_at("srv", "203.0.113.10");
    let _server = Server::start(&host);
    let ask = |args: &[&str]| {
        let mut all = vec!["-sk", "--max-time", "5", "-w", "\n%{http_code}"];
        all.extend_from_slice(args);
        host.ok("curl", &all)
    };
    for base in ["http://203.0.113.10:8080", "https://203.0.113.10"] {
        for path in ["/nothing", "/machine/register", "/api/v2/tailnet", "/.git/config", "/device"] {
            let got = ask(&[&format!("{base}{path}")]);
            assert!(got.ends_with("404") && got.len() > 10, "{base}{path}: {got}");
        }
        assert!(ask(&["-I", &format!("{base}/healthz")]).contains("200"), "HEAD {base}");
        assert!(ask(&["-I", &format!("{base}/derp/probe")]).ends_with("200"), "HEAD probe {base}");
        assert!(ask(&[&format!("{base}/generate_204")]).ends_with("204"));
        assert!(ask(&[&format!("{base}/derp/latency-check")]).ends_with("200"));
        let ts = ask(&[&format!("{base}/ts2021")]);
        assert!(ts.ends_with("400") || ts.ends_with("405") || ts.ends_with("426"), "{ts}");
    }
}

#[test]
fn every_command_speaks_json_with_flags_in_any_position() {
    let lab = Lab::new("json everywhere");
    let host = lab.host_at("srv", "203.0.113.10");
    let server = Server::start(&host);
    let key = server.key(&["--reusable"]);
    let t1 = Peer::join(&lab.host("t1"), Kind::Tsd, &server.url, &key);
    let waiting = Peer::start(&lab.host("t2"), Kind::Tsd);
    let _up =
        waiting.host.spawn("up", waiting.command(&["up", "--login-server", &server.url, "--hostname=t2"]));
    let login = eventually("a login waits", Duration::from_secs(15), || {
        let all = server.json(&["logins", "list"]);
        all[0]["id"].as_str().map(str::to_owned).ok_or(all.to_string())
    });
    let file = server.policy_file(r#"{"tagOwners": {"tag:a": ["admin@"]}, "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#);
    let file = file.to_str().unwrap();
    let node = server.node("t1").unwrap()["id"].to_string();
    let commands: &[&[&str]] = &[
        &["version"],
        &["status"],
        &["users", "create", "bob"],
        &["users", "rename", "bob", "rob"],
        &["users", "list"],
        &["users", "delete", "rob"],
        &["authkeys", "create", "--user", "admin", "--ephemeral"],
        &["authkeys", "list"],
        &["authkeys", "revoke", "2"],
        &["policy", "check", file],
        &["policy", "set", file],
        &["policy", "get"],
        &["policy", "history"],
        &["nodes", "list"],
        &["nodes", "show", "t1"],
        &["nodes", "rename", &node, "renamed"],
        &["nodes", "approve-routes", "renamed"],
        &["nodes", "tag", "renamed", "tag:a"],
        &["logins", "approve", &login],
        &["logins", "list"],
        &["nodes", "expire", "t2"],
        &["nodes", "delete", "renamed"],
        &["console", "link"],
    ];
    for (n, command) in commands.iter().enumerate() {
        // The global flags first, in the middle, last, in turn.
        let flags = ["--json", "--state-dir", "/var/lib/tsd"];
        let at = match n % 3 {
            0 => 0,
            1 => 1,
            _ => command.len(),
        };
        let mut args = command.to_vec();
        args.splice(at..at, flags);
        let out = host.output(TSD, &args);
        assert!(out.status.success(), "{args:?}: {}", lossy(&out.stderr));
        let value: serde_json::Value = serde_json::from_slice(&out.stdout)
            .unwrap_or_else(|e| panic!("{args:?} ({e}): {}", lossy(&out.stdout)));
        assert!(value.is_object() || value.is_array(), "{args:?}: {value}");
    }
    drop(t1);
    // Faults: yours are 1 with a sentence on stderr and nothing on stdout.
    let faults: &[&[&str]] = &[
        &["nodes", "show", "nobody", "--json"],
        &["users", "create", ""],
        &["users", "create", "admin"],
        &["users", "delete", "nobody"],
        &["authkeys", "create", "--user", "nobody"],
        &["authkeys", "create", "--user", "admin", "--expires", "never"],
        &["authkeys", "revoke", "999"],
        &["logins", "approve", "nothing"],
        &["policy", "set", "/run/absent"],
        &["nodes"],
        &["frobnicate"],
        &["--state-dir", "/run/nowhere", "status"],
    ];
    for args in faults {
        let out = host.output(TSD, args);
        assert_eq!(out.status.code(), Some(1), "{args:?}: {}", lossy(&out.stderr));
        assert!(!out.stderr.is_empty() && out.stdout.is_empty(), "{args:?}: {}", lossy(&out.stdout));
    }
    // A reader that goes away is no failure and no noise.
    let script = format!(
        "{TSD} authkeys list | true; echo ${{PIPESTATUS[0]}}; {TSD} nodes list --help | head -n0; echo ${{PIPESTATUS[0]}}"
    );
    let out = host.output("bash", &["-c", &script]);
    assert_eq!(lossy(&out.stdout), "0\n0\n", "{}", lossy(&out.stderr));
    assert!(!lossy(&out.stderr).contains("panicked"), "{}", lossy(&out.stderr));
}

/// `tsd policy set` on a terminal, with this typed.
fn on_a_terminal(host: &Host, typed: &str) -> (Option<i32>, String) {
    let mut command = host.command("timeout");
    command.args(["20", "script", "-qefc", &format!("{TSD} policy set /run/policy.hujson"), "/dev/null"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(typed.as_bytes()).unwrap();
    // Kept open: a closed one is an end of input, which is an answer too.
    let out = child.wait_with_output().unwrap();
    drop(stdin);
    (out.status.code(), lossy(&out.stdout))
}

#[test]
fn taking_access_away_asks_on_a_terminal_and_refuses_without_one() {
    let lab = Lab::new("policy asks");
    let host = lab.host_at("srv", "203.0.113.10");
    let server = Server::start(&host);
    let key = server.key(&["--reusable"]);
    let peers = ["t1", "t2"].map(|name| Peer::join(&lab.host(name), Kind::Tsd, &server.url, &key));
    let before = server.ok(&["policy", "get"]);
    let file = server.policy_file(r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:22"]}]}"#);
    let file = file.to_str().unwrap();

    let out = server.admin(&["policy", "set", file]);
    let said = lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(
        said.contains("takes access away") && said.contains("--yes") && said.contains("nothing was changed"),
        "{said}"
    );
    assert_eq!(server.ok(&["policy", "get"]), before);

    let (code, said) = on_a_terminal(&host, "n\n");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("Apply it? [y/N]") && said.contains("nothing was changed"), "{said}");
    assert_eq!(server.ok(&["policy", "get"]), before);

    let (code, said) = on_a_terminal(&host, "y\n");
    assert_eq!(code, Some(0), "{said}");
    assert!(server.ok(&["policy", "get"]).contains("*:22"));
    // Giving access asks nobody.
    server.policy_file(r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#);
    assert!(server.admin(&["policy", "set", file]).status.success());
    drop(peers);
    // A bad file: its place, and nothing changed. With the server and without.
    let bad = server.policy_file("{\n  \"acls\": [\n    {\"action\": \"accept\", \"src\": [\"tag:sever\"], \"dst\": [\"*:*\"]}\n  ]\n}");
    let bad = bad.to_str().unwrap().to_owned();
    let now = server.ok(&["policy", "get"]);
    for command in ["check", "set"] {
        let out = server.admin(&["policy", command, &bad]);
        assert_eq!(out.status.code(), Some(1));
        assert!(lossy(&out.stderr).starts_with(&format!("{bad}:3:")), "{}", lossy(&out.stderr));
    }
    assert_eq!(server.ok(&["policy", "get"]), now);
    drop(server);
    let out = host.output(TSD, &["policy", "check", &bad]);
    assert_eq!(out.status.code(), Some(1));
    assert!(lossy(&out.stderr).starts_with(&format!("{bad}:3:")), "{}", lossy(&out.stderr));
    std::fs::write(host.path("/run/good.hujson"), "// empty\n{}").unwrap();
    let out = host.output(TSD, &["policy", "check", "/run/good.hujson", "--json"]);
    assert!(out.status.success(), "{}", lossy(&out.stderr));
    assert!(lossy(&out.stderr).contains("no server answers"), "{}", lossy(&out.stderr));
    serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap();
}

#[test]
fn the_admin_socket_answers_before_a_listener_accepts() {
    let lab = Lab::new("socket first");
    let host = lab.host_at("srv", "203.0.113.10");
    for _ in 0..3 {
        let mut command = host.command(TSD);
        command.args(["serve", "--url", URL]);
        let socket = host.path("/var/lib/tsd/admin.sock");
        let watch = host.inside(move || {
            let end = std::time::Instant::now() + Duration::from_secs(10);
            // No rest between tries: the moment itself is what counts.
            while std::net::TcpStream::connect("127.0.0.1:8080").is_err() {
                assert!(std::time::Instant::now() < end, "no listener came up");
            }
            std::os::unix::net::UnixStream::connect(socket).map(drop)
        });
        let mut process = host.spawn("serve", command);
        watch.join().unwrap().expect("a listener accepted before the admin socket answered");
        process.signal(nix::sys::signal::Signal::SIGTERM);
        assert!(process.wait(Duration::from_secs(10)).success());
    }
}
