//! A running server through its days: reloads that fail whole, certificates that change, a proxy in
//! front, names that are not ours, and logs without secrets.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::authority::test_ca;
use crate::machines::{Machine, block_inside};
use crate::peers::{Kind, OFFICIAL, Peer, lossy};
use crate::scenario_browser::{CONSOLE, browse, link, shots, sign_in};
use crate::server::{Server, TSD};
use crate::world::{Host, Lab, Process, eventually};

const URL: &str = "http://203.0.113.10:8080";
const ALL: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;
const SSH: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:22"]}]}"#;

fn write(host: &Host, path: &str, text: &str) {
    std::fs::write(host.path(path), text).unwrap();
}

/// How often the log says that a reload was done or refused.
fn reloads(server: &Server) -> usize {
    let text = server.text();
    text.matches("are reloaded").count() + text.matches("reload changed nothing").count()
}

/// SIGHUP, and what the log says of it.
fn hup(server: &mut Server) -> String {
    let before = server.text().len();
    let seen = reloads(server);
    server.process().signal(Signal::SIGHUP);
    eventually("the reload is through", Duration::from_secs(8), || {
        if reloads(server) > seen { Ok(()) } else { Err(server.text()) }
    });
    server.text().get(before..).unwrap().to_owned()
}

fn code(host: &Host, args: &[&str]) -> String {
    let mut all = vec!["-sk", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "10"];
    all.extend_from_slice(args);
    host.ok("curl", &all)
}

#[test]
fn what_is_open_to_this_machine_alone_refuses_foreign_names() {
    let lab = Lab::new("foreign names");
    let host = lab.host_at("srv", "203.0.113.10");
    let _server = Server::start(&host);
    for page in ["/", "/login", "/devices", "/keys", "/metrics"] {
        let url = format!("http://127.0.0.1:8080{page}");
        let foreign = code(&host, &["-H", "Host: evil.test", &url]);
        assert_eq!(foreign, "421", "{page}");
        let none = code(&host, &["-0", "-H", "Host:", &url]);
        assert!(none.starts_with('4'), "{page} without a Host: {none}");
        let ours = code(&host, &[&url]);
        assert!(ours.starts_with('2') || ours.starts_with('3'), "{page}: {ours}");
    }
    assert_eq!(code(&host, &["-H", "Host: evil.test", "https://127.0.0.1/metrics"]), "421");
    // Machine endpoints go by any name: a client may know the server by one of its own.
    assert_eq!(code(&host, &["-H", "Host: evil.test", "http://127.0.0.1:8080/key?v=145"]), "200");
}

#[test]
fn the_process_keeps_its_memory_to_itself() {
    let lab = Lab::new("hardened process");
    let mut server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let pid = server.process().pid();
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    assert!(read("status").contains("NoNewPrivs:\t1"), "{}", read("status"));
    let limits = read("limits");
    let core = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
    assert!(core.split_whitespace().filter(|w| *w == "0").count() >= 2, "{core}");
    let metrics = server.host.ok("curl", &["-s", "http://127.0.0.1:8080/metrics"]);
    assert!(metrics.contains("tsd_panics_total 0"), "{metrics}");
}

#[test]
fn a_reload_is_all_or_nothing() {
    let lab = Lab::new("reload");
    let host = lab.host_at("srv", "203.0.113.10");
    let config = |ip: &str| {
        format!(
            "policy_file = \"/etc/policy.hujson\"\n[dns]\nextra_records = [{{ name = \"printer.tail.internal\", value = \"{ip}\" }}]\n"
        )
    };
    let bad = "{\n  \"acls\": [\n    {\"action\": \"accept\", \"src\": [\"tag:sever\"], \"dst\": [\"*:*\"]}\n  ]\n}";
    // At the start: a bad file is refused at its place, a good one is in force.
    write(&host, "/etc/tsd.toml", &config("192.0.2.1"));
    write(&host, "/etc/policy.hujson", bad);
    let out = host.output(TSD, &["serve", "--url", URL, "--config", "/etc/tsd.toml"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(lossy(&out.stderr).contains("/etc/policy.hujson:3:"), "{}", lossy(&out.stderr));
    write(&host, "/etc/policy.hujson", ALL);
    let mut server = Server::start_with(&host, URL, &["--config", "/etc/tsd.toml"]);
    assert_eq!(server.ok(&["policy", "get"]).trim(), ALL);
    let key = server.key(&["--reusable"]);
    let t1 = Peer::join(&lab.host("t1"), Kind::Tsd, URL, &key);
    let printer = || lossy(&t1.host.output("getent", &["ahostsv4", "printer.tail.internal"]).stdout);
    eventually("the record resolves", Duration::from_secs(8), || {
        if printer().contains("192.0.2.1") { Ok(()) } else { Err(printer()) }
    });

    // Good settings beside a bad policy: neither.
    write(&host, "/etc/tsd.toml", &config("192.0.2.2"));
    write(&host, "/etc/policy.hujson", bad);
    let said = hup(&mut server);
    assert!(said.contains("/etc/policy.hujson:3:") && said.contains("changed nothing"), "{said}");
    // A good policy beside bad settings: neither.
    write(&host, "/etc/tsd.toml", "policy_file = \"/etc/policy.hujson\"\nlistn = \"x\"\n");
    write(&host, "/etc/policy.hujson", SSH);
    let said = hup(&mut server);
    assert!(said.contains("/etc/tsd.toml:2") && said.contains("listn"), "{said}");
    // What needs a restart is said, and nothing else is taken either.
    write(&host, "/etc/tsd.toml", &format!("listen = \"[::]:9999\"\n{}", config("192.0.2.2")));
    let said = hup(&mut server);
    assert!(said.contains("listen") && said.contains("restart"), "{said}");
    // A policy file that went away.
    write(&host, "/etc/tsd.toml", &config("192.0.2.2"));
    std::fs::remove_file(host.path("/etc/policy.hujson")).unwrap();
    let said = hup(&mut server);
    assert!(said.contains("/etc/policy.hujson") && said.contains("changed nothing"), "{said}");
    assert_eq!(server.ok(&["policy", "get"]).trim(), ALL);
    assert!(printer().contains("192.0.2.1"), "{}", printer());
    let status = server.admin(&["status"]);
    assert!(lossy(&status.stderr).contains("the last reload changed nothing"), "{}", lossy(&status.stderr));

    write(&host, "/etc/policy.hujson", SSH);
    let said = hup(&mut server);
    assert!(said.contains("are reloaded"), "{said}");
    assert_eq!(server.ok(&["policy", "get"]).trim(), SSH);
    eventually("the new record resolves", Duration::from_secs(8), || {
        if printer().contains("192.0.2.2") { Ok(()) } else { Err(printer()) }
    });
    let status = server.admin(&["status"]);
    assert!(!lossy(&status.stderr).contains("last reload"), "{}", lossy(&status.stderr));
}

/// SHA-256 of the certificate that the TLS listener presents.
fn presented(host: &Host) -> String {
    let script = "openssl s_client -connect 203.0.113.10:443 </dev/null 2>/dev/null | openssl x509 -outform der | sha256sum";
    host.ok("sh", &["-c", script]).split_whitespace().next().unwrap().to_owned()
}

#[test]
fn certificate_files_are_read_again_and_bad_ones_refused() {
    let lab = Lab::new("certificate files");
    let host = lab.host_at("srv", "203.0.113.10");
    let install = || {
        let (_, cert, key) = test_ca("203.0.113.10");
        write(&host, "/etc/cert.pem", &cert);
        write(&host, "/etc/key.pem", &key);
    };
    install();
    let args = ["--tls-cert", "/etc/cert.pem", "--tls-key", "/etc/key.pem"];
    let mut server = Server::start_with(&host, "https://203.0.113.10", &args);
    let first = presented(&host);
    install();
    let said = hup(&mut server);
    assert!(said.contains("are reloaded"), "{said}");
    let second = presented(&host);
    assert_ne!(first, second);
    assert!(server.json(&["status"])["fingerprint"] == second.as_str(), "{second}");
    write(&host, "/etc/key.pem", "no key\n");
    let said = hup(&mut server);
    assert!(said.contains("/etc/key.pem") && said.contains("changed nothing"), "{said}");
    assert_eq!(presented(&host), second);
}

fn derp_node(peer: &Peer) -> serde_json::Value {
    let url = "http://local-tailscaled.sock/localapi/v0/derpmap";
    let text = peer.host.ok("curl", &["-s", "--unix-socket", "/run/tsd/node.sock", url]);
    let map: serde_json::Value = serde_json::from_str(&text).unwrap();
    let regions = map["Regions"].as_object().unwrap();
    regions.values().next().unwrap()["Nodes"][0].clone()
}

#[test]
fn a_new_host_in_the_url_makes_a_new_certificate_and_a_new_pin() {
    let lab = Lab::new("new host");
    let host = lab.host_at("srv", "203.0.113.10");
    write(&host, "/etc/tsd.toml", "url = \"http://203.0.113.10:8080\"\n");
    let mut command = host.command(TSD);
    command.args(["serve", "--config", "/etc/tsd.toml"]);
    let process = host.spawn("serve", command);
    eventually("the server answers", Duration::from_secs(10), || {
        let out = host.output(TSD, &["status"]);
        if out.status.success() { Ok(()) } else { Err(lossy(&out.stderr)) }
    });
    let key = host.ok(TSD, &["authkeys", "create", "--user", "admin"]);
    let t1 = Peer::join(&lab.host("t1"), Kind::Tsd, URL, key.trim());
    let first = presented(&host);
    assert_eq!(derp_node(&t1)["CertName"], format!("sha256-raw:{first}"));
    write(
        &host,
        "/etc/tsd.toml",
        "url = \"http://vpn.lab.test:8080\"\n[derp]\npublic_port = 4443\n[stun]\npublic_port = 5478\n",
    );
    process.signal(Signal::SIGHUP);
    eventually("the new pin arrives", Duration::from_secs(8), || {
        let node = derp_node(&t1);
        let now = presented(&host);
        let fits = now != first && node["CertName"] == format!("sha256-raw:{now}");
        if fits { Ok(()) } else { Err(node.to_string()) }
    });
    // The ports that clients are told may differ from the listeners.
    let node = derp_node(&t1);
    assert_eq!((&node["DERPPort"], &node["STUNPort"]), (&4443.into(), &5478.into()), "{node}");
    assert_eq!(node["HostName"], "vpn.lab.test");
}

#[test]
fn official_clients_join_through_a_proxy_in_front() {
    let lab = Lab::new("proxy");
    let host = lab.host_at("srv", "203.0.113.10");
    let (ca, cert, key) = test_ca("203.0.113.10");
    write(&host, "/etc/cert.pem", &cert);
    write(&host, "/etc/key.pem", &key);
    write(
        &host,
        "/etc/tsd.toml",
        "trusted_proxies = [\"127.0.0.1\"]\nlisten = \"127.0.0.1:8080\"\ntls_listen = \"off\"\n",
    );
    write(
        &host,
        "/etc/proxy.conf",
        "user root; daemon off; pid /run/nginx.pid; error_log /run/nginx.log;
         events {}
         http {
           access_log off;
           client_body_temp_path /run/n1; proxy_temp_path /run/n2; fastcgi_temp_path /run/n3; uwsgi_temp_path /run/n4; scgi_temp_path /run/n5;
           map $http_upgrade $connection_upgrade { default upgrade; '' close; }
           server {
             listen 80; listen 443 ssl; ssl_certificate /etc/cert.pem; ssl_certificate_key /etc/key.pem;
             location / {
               proxy_pass http://127.0.0.1:8080; proxy_http_version 1.1; proxy_buffering off; proxy_read_timeout 1d;
               proxy_set_header Host $host; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
               proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme;
             }
           }
         }",
    );
    let server = Server::start_with(&host, "https://203.0.113.10", &["--config", "/etc/tsd.toml"]);
    let mut nginx = host.command("nginx");
    nginx.args(["-c", "/etc/proxy.conf"]);
    let _nginx = host.spawn("nginx", nginx);
    let outside = lab.host("outside");
    eventually("the proxy passes requests on", Duration::from_secs(10), || {
        let got = code(&outside, &["https://203.0.113.10/key?v=145"]);
        if got == "200" { Ok(()) } else { Err(got) }
    });
    let auth = server.key(&["--reusable"]);
    let peers: Vec<Peer> = [("o1", OFFICIAL), ("t1", Kind::Tsd)]
        .into_iter()
        .map(|(name, kind)| {
            let machine = lab.host(name);
            // The relay goes through the proxy too.
            machine.block_udp();
            write(&machine, "/etc/lab-ca.pem", &ca);
            let peer = Peer::start_with(&machine, kind, &[("SSL_CERT_FILE", "/etc/lab-ca.pem")]);
            peer.up(&server.url, &auth);
            peer
        })
        .collect();
    peers[0].wait_sees(&["t1"], Duration::from_secs(10));
    let line = peers[0].mesh_ping(&peers[1].ip4());
    assert!(line.contains("via DERP(tsd)"), "{line}");
    // Visitors of the proxy are not this machine: no figures, a login, and no console in the clear.
    assert_eq!(code(&outside, &["https://203.0.113.10/metrics"]), "404");
    assert!(code(&outside, &["https://203.0.113.10/devices"]).starts_with("30"));
    let plain =
        outside.ok("curl", &["-s", "-o", "/dev/null", "-w", "%{redirect_url}", "http://203.0.113.10/login"]);
    assert_eq!(plain, "https://203.0.113.10/login");
}

/// Every secret in a state directory: private keys as text, and the lines of a PEM private key.
fn secrets_in(dir: &Path, out: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            secrets_in(&path, out);
            continue;
        }
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        for (at, _) in text.match_indices("privkey:") {
            out.push(text[at + 8..].chars().take_while(char::is_ascii_hexdigit).collect());
        }
        if let Some((_, rest)) = text.split_once("PRIVATE KEY-----") {
            out.extend(rest.lines().filter(|l| l.len() > 30 && !l.contains("-----")).map(str::to_owned));
        }
    }
}

#[test]
fn no_secret_appears_in_any_log() {
    let lab = Lab::new("canary");
    let host = lab.host_at("srv", "203.0.113.10");
    let mut server = Server::start(&host);
    // The first start prints secrets on stdout, on purpose; from the second on nothing may.
    server.process().signal(Signal::SIGTERM);
    assert!(server.process().wait(Duration::from_secs(10)).success());
    let mut server = Server::start_with(&host, URL, &["--log-level", "trace"]);
    let key = server.key(&["--reusable"]);
    let official = Peer::join(&lab.host("o1"), OFFICIAL, URL, &key);
    let machine = lab.host("t1");
    let mut daemon = machine.command(TSD);
    daemon.args(["node", "run"]).env("TSD_LOG", "trace");
    let daemon: Process = machine.spawn("node", daemon);
    eventually("the node's daemon answers", Duration::from_secs(10), || {
        let out = machine.output(TSD, &["node", "status", "--json"]);
        if out.stdout.starts_with(b"{") { Ok(()) } else { Err(lossy(&out.stderr)) }
    });
    machine.ok(TSD, &["node", "up", "--login-server", URL, "--auth-key", &key, "--timeout", "40s"]);
    official.wait_sees(&["t1"], Duration::from_secs(10));
    official.mesh_ping("t1");
    // A wrong key, a console sign-in, a key revoked.
    let wrong = format!("{}x", &key[..key.len() - 1]);
    let refused = Peer::start(&lab.host("o2"), OFFICIAL);
    let mut up = refused
        .host
        .spawn("up", refused.command(&["up", "--login-server", URL, "--auth-key", &wrong, "--timeout=10s"]));
    let one_time = link(&server);
    let token = one_time.split("token=").nth(1).unwrap().to_owned();
    let cookie = browse(&lab.host("admin"), 1280, move |b| {
        sign_in(b, &one_time);
        b.goto(&format!("{CONSOLE}/devices")).unwrap();
        let all = b.cookies().unwrap();
        let session = all.iter().find(|c| c["name"].as_str().unwrap().starts_with("__Host-")).unwrap();
        session["value"].as_str().unwrap().to_owned()
    });
    up.wait(Duration::from_secs(20));
    let id = server.json(&["authkeys", "list"]).as_array().unwrap().last().unwrap()["id"].to_string();
    server.ok(&["authkeys", "revoke", &id]);

    let mut secrets = vec![
        key.rsplit('-').next().unwrap().to_owned(),
        wrong.rsplit('-').next().unwrap().to_owned(),
        token,
        cookie,
    ];
    secrets_in(&host.path("/var/lib/tsd"), &mut secrets);
    secrets_in(&machine.path("/var/lib/tsd-node"), &mut secrets);
    assert!(secrets.len() >= 8, "{} secrets found", secrets.len());
    assert!(secrets.iter().all(|s| s.len() >= 20), "a secret is too short to be looked for");
    let logs = [("serve", server.text()), ("node", daemon.text())];
    for (name, text) in &logs {
        assert!(text.contains("TRACE"), "{name} logs too little for this test: {text}");
        for (n, secret) in secrets.iter().enumerate() {
            assert!(!text.contains(secret.as_str()), "secret {n} stands in the log of {name}");
        }
    }
    assert!(server.process().alive());
}

#[test]
fn the_console_shows_a_small_fleet() {
    let lab = Lab::new("fleet");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    server.ok(&["users", "create", "maria"]);
    server.ok(&["users", "create", "jonas"]);
    server.set_policy(r#"{"tagOwners": {"tag:server": ["maria@"], "tag:backup": ["maria@"]}, "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#);
    let key = |args: &[&str]| {
        let mut all = vec!["authkeys", "create", "--reusable"];
        all.extend_from_slice(args);
        server.json(&all)["key"].as_str().unwrap().to_owned()
    };
    let maria = key(&["--user", "maria"]);
    let jonas = key(&["--user", "jonas"]);
    let tagged = key(&["--user", "maria", "--tags", "tag:server"]);
    let online: Vec<Peer> =
        [("web-1", &tagged), ("nas", &tagged), ("maria-laptop", &maria), ("jonas-desktop", &jonas)]
            .into_iter()
            .map(|(name, key)| {
                let kind = if name == "nas" { OFFICIAL } else { Kind::Tsd };
                Peer::join(&lab.host(name), kind, &server.url, key)
            })
            .collect();
    let url = server.url.clone();
    let admin = lab.host("admin");
    let others = [
        ("maria-phone", "iOS", "18.1", maria.clone()),
        ("jonas-pixel", "android", "15", jonas.clone()),
        ("studio-mac", "macOS", "15.1.0", maria),
        ("office-pc", "windows", "10.0.26100", jonas),
    ];
    block_inside(&admin, move || async move {
        for (name, os, version, key) in others {
            let mut machine = Machine::new(name);
            let mut request = machine.request(&key);
            if let Some(info) = request.hostinfo.as_mut() {
                info.os = os.to_owned();
                info.os_version = version.to_owned();
                info.ipn_version = "1.102.5".to_owned();
            }
            assert!(machine.client(&url).register(&request).await.unwrap().error.is_empty());
        }
    });
    server.ok(&["nodes", "tag", "nas", "tag:server,tag:backup"]);
    let one_time = link(&server);
    browse(&admin, 1280, move |b| {
        sign_in(b, &one_time);
        b.goto(&format!("{CONSOLE}/devices")).unwrap();
        let text = b.page_text().unwrap();
        for name in ["web-1", "nas", "maria-laptop", "maria-phone", "studio-mac", "office-pc"] {
            assert!(text.contains(name), "{name}: {text}");
        }
        assert!(b.overflow().unwrap() <= 0, "the device list scrolls sideways");
        b.screenshot(&shots().join("console.png")).unwrap();
    });
    drop(online);
}
