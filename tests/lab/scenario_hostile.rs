//! Proof 8 against the running server: hostile bytes, hostile bodies, strangers. Row numbers are those
//! of the project's table of hostile inputs. After each attack an honest machine must still get in.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tsd::clock::Rng;
use tsd::derp::client::{DerpEvent, DialOptions};
use tsd::keys::{MachinePublic, NodePrivate};
use tsd::noise::stream::ClientHandshake;
use tsd::wire::{CapVer, DerpMap, MapRequest, ServerKeys};

use crate::machines::{Machine, block_inside};
use crate::peers::{Kind, OFFICIAL, Peer};
use crate::server::Server;
use crate::world::{Host, Lab, eventually};

pub const PLAIN: &str = "203.0.113.10:8080";
pub const TLS: &str = "203.0.113.10:443";

pub struct Scene {
    pub lab: Lab,
    pub server: Server,
    pub attacker: Host,
    pub key: String,
}

pub fn scene(title: &'static str) -> Scene {
    let lab = Lab::new(title);
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let attacker = lab.host("mallory");
    let key = server.key(&["--reusable"]);
    Scene { lab, server, attacker, key }
}

impl Scene {
    /// An honest registration from the attacker's network still works.
    pub fn still_serves(&self, what: &str) {
        let (url, key, name) = (self.server.url.clone(), self.key.clone(), what.replace(' ', "-"));
        let answer =
            block_inside(
                &self.attacker,
                move || async move { Machine::new(&name).register(&url, &key).await },
            );
        let answer = answer.unwrap_or_else(|e| panic!("after {what}: {e}"));
        assert!(answer.error.is_empty() && answer.auth_url.is_empty(), "after {what}: {answer:?}");
    }
}

/// Sends bytes; gives what came back until the server closed, and how long that took.
fn throw(addr: &str, bytes: &[u8], limit: Duration) -> (Vec<u8>, Duration) {
    let start = Instant::now();
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(limit)).unwrap();
    let _ = stream.write_all(bytes);
    let mut got = Vec::new();
    let mut buf = [0_u8; 4096];
    loop {
        match stream.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => got.extend_from_slice(&buf[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("{addr} still open after {limit:?}")
            }
            Err(_) => break,
        }
    }
    (got, start.elapsed())
}

pub async fn server_key() -> MachinePublic {
    let mut stream = tokio::net::TcpStream::connect(PLAIN).await.unwrap();
    stream.write_all(b"GET /key?v=145 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let body = text.split("\r\n\r\n").nth(1).unwrap();
    let json = body.get(body.find('{').unwrap()..=body.rfind('}').unwrap()).unwrap();
    serde_json::from_str::<ServerKeys>(json).unwrap().public_key
}

pub fn upgrade_head(initiation: &[u8]) -> Vec<u8> {
    let init = base64::engine::general_purpose::STANDARD.encode(initiation);
    format!(
        "POST /ts2021 HTTP/1.1\r\nHost: x\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\
         X-Tailscale-Handshake: {init}\r\nContent-Length: 0\r\n\r\n"
    )
    .into_bytes()
}

/// A raw HTTP/2 channel inside Noise, for bodies no client would send.
pub struct Channel {
    send: hyper::client::conn::http2::SendRequest<Full<Bytes>>,
}

impl Channel {
    pub async fn open(machine: &Machine, capver: CapVer) -> Result<Self, String> {
        let mut rng = Rng::from_os();
        let (handshake, initiation) =
            ClientHandshake::new(&machine.machine, &server_key().await, capver, &mut rng);
        let mut stream = tokio::net::TcpStream::connect(PLAIN).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(&upgrade_head(&initiation)).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.map_err(|e| format!("closed in the head: {e}"))?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        if !head.starts_with("HTTP/1.1 101") {
            let mut rest = vec![0; 500];
            let n = stream.read(&mut rest).await.unwrap_or(0);
            return Err(format!("{head}{}", String::from_utf8_lossy(&rest[..n])));
        }
        let noise = handshake.finish(stream).await.map_err(|e| e.to_string())?;
        let (send, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .handshake(TokioIo::new(noise))
            .await
            .map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        Ok(Self { send })
    }

    pub async fn post(&mut self, path: &str, body: Vec<u8>) -> Result<(u16, Bytes), String> {
        let request =
            http::Request::post(format!("https://unused{path}")).body(Full::new(Bytes::from(body))).unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(15), self.send.send_request(request))
            .await
            .map_err(|_| "hangs".to_owned())?
            .map_err(|e| e.to_string())?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
        Ok((status, body))
    }
}

#[test]
fn garbage_and_slow_senders_are_cut_off() {
    let scene = scene("hostile transport");
    let attacks = |addr: &'static str| {
        vec![
            (addr, b"\x00\xff\xfe garbage \x01\r\n\r\n".repeat(50), 15_u64),
            (addr, b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde".to_vec(), 15),
            (addr, b"POST /ts2021 HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: nonsense\r\nContent-Length: 0\r\n\r\n".to_vec(), 35),
            // Rows 10 and 11: a head that never ends, and nothing at all.
            (addr, b"GET /key".to_vec(), 15),
            (addr, Vec::new(), 15),
        ]
    };
    let threads: Vec<_> = [PLAIN, TLS]
        .into_iter()
        .flat_map(attacks)
        .map(|(addr, bytes, limit)| {
            scene.attacker.inside(move || throw(addr, &bytes, Duration::from_secs(limit)))
        })
        .collect();
    for thread in threads {
        let (got, took) = thread.join().expect("an attack was not cut off");
        let text = String::from_utf8_lossy(&got).into_owned();
        assert!(!text.starts_with("HTTP/1.1 2") && !text.starts_with("HTTP/1.1 101"), "{text}");
        println!("cut off after {took:?}: {:?}", text.lines().next());
    }
    scene.still_serves("garbage");
}

#[test]
fn broken_handshakes_leave_nothing_behind() {
    let scene = scene("hostile handshakes");
    block_inside(&scene.attacker, || async {
        let key = server_key().await;
        let machine = Machine::new("mallory");
        let mut rng = Rng::from_os();
        let (_, good) = ClientHandshake::new(&machine.machine, &key, CapVer::OURS, &mut rng);
        let mut broken: Vec<(String, Vec<u8>)> =
            (0..good.len()).step_by(7).map(|n| (format!("cut at {n}"), good[..n].to_vec())).collect();
        let mut version0 = good.to_vec();
        version0[..2].copy_from_slice(&[0, 0]);
        broken.push(("version 0".into(), version0));
        let mut zero_point = good.to_vec();
        zero_point[5..37].fill(0);
        broken.push(("zero point".into(), zero_point));
        let mut tampered = good.to_vec();
        tampered[60] ^= 1;
        broken.push(("tampered".into(), tampered));
        for (what, bytes) in broken {
            let mut stream = tokio::net::TcpStream::connect(PLAIN).await.unwrap();
            stream.write_all(&upgrade_head(&bytes)).await.unwrap();
            let mut got = Vec::new();
            let closed = tokio::time::timeout(Duration::from_secs(12), stream.read_to_end(&mut got)).await;
            let text = String::from_utf8_lossy(&got).into_owned();
            // Refused by a status, or by an error frame (type 3) and a close.
            let refused = text.starts_with("HTTP/1.1 4") || closed.is_ok();
            assert!(refused, "{what}: {text}");
        }
        // Row 5: a recorded initiation replayed gives an answer nobody can use: no map, no state.
        for _ in 0..20 {
            let mut stream = tokio::net::TcpStream::connect(PLAIN).await.unwrap();
            stream.write_all(&upgrade_head(&good)).await.unwrap();
        }
        // Row 32: far too old.
        let old = Channel::open(&machine, CapVer(50)).await.err().unwrap_or_default();
        assert!(old.contains("113") || old.contains("1.80"), "an old client reads: {old:?}");
    });
    assert!(scene.server.nodes().is_empty());
    scene.still_serves("broken handshakes");
}

#[test]
fn hostile_bodies_are_refused_and_maps_of_others_arrive() {
    let scene = scene("hostile bodies");
    let o1 = Peer::join(&scene.lab.host("o1"), OFFICIAL, &scene.server.url, &scene.key);
    let (url, key) = (scene.server.url.clone(), scene.key.clone());
    block_inside(&scene.attacker, move || async move {
        let machine = Machine::new("mallory");
        let mut channel = Channel::open(&machine, CapVer::OURS).await.unwrap();
        // Rows 19, 20: too large, too deep, not JSON.
        let deep = format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000));
        let bodies: [(&str, Vec<u8>); 5] = [
            ("2 MiB", vec![b' '; 2 << 20]),
            ("deep", deep.into_bytes()),
            ("not JSON", b"\xff\xfe{{{{".to_vec()),
            ("NaN", b"{\"Version\": NaN}".to_vec()),
            ("wrong types", b"{\"Version\": \"x\", \"NodeKey\": 5}".to_vec()),
        ];
        for path in ["/machine/register", "/machine/map"] {
            for (what, body) in &bodies {
                let answer = channel.post(path, body.clone()).await;
                match answer {
                    Ok((status, _)) => assert!((400..500).contains(&status), "{path} {what}: {status}"),
                    Err(e) => {
                        assert_ne!(e, "hangs", "{path} {what}");
                        channel = Channel::open(&machine, CapVer::OURS).await.unwrap();
                    }
                }
            }
        }
        for path in ["/machine/nothing", "/machine/set-dns", "/machine/tka/init/begin", "/other"] {
            let (status, text) = channel.post(path, b"{}".to_vec()).await.unwrap();
            assert!(status == 404 || status == 501, "{path}: {status}");
            assert!(!text.is_empty(), "{path} answers without text");
        }
        // Row 22: hostnames.
        let long = "x".repeat(300);
        let names = [
            "",
            &long,
            "😀😀",
            "../../etc/passwd",
            "<script>alert(1)</script>",
            "a\0b",
            "localhost",
            "o1",
            "---",
            "a.b.c",
            "\u{202e}evil",
        ];
        for name in names {
            let answer = Machine::new(name).register(&url, &key).await.unwrap();
            assert!(answer.error.is_empty(), "{name:?}: {}", answer.error);
        }
        // Row 29: a tag nobody gave.
        let mut tagged = Machine::new("tagged");
        let mut request = tagged.request(&key);
        request.hostinfo.as_mut().unwrap().request_tags = vec!["tag:root".into()];
        let answer = tagged.client(&url).register(&request).await.unwrap();
        assert!(answer.error.contains("tag:root"), "{answer:?}");
        // Row 31: a follow-up nobody was given.
        let mut guess = Machine::new("guess").request("");
        guess.auth = None;
        guess.followup = format!("{url}/a/0000000000000000000000000000");
        let answer = Machine::new("guess").client(&url).register(&guess).await.unwrap();
        assert!(answer.auth_url.contains("/a/") && answer.auth_url != guess.followup, "{answer:?}");
    });
    // Every name is a clean label, and the official client sees them all.
    let names: Vec<String> =
        scene.server.nodes().iter().map(|n| n["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names.len(), 12, "{names:?}");
    for name in &names {
        assert!(!name.is_empty() && name.len() <= 63, "{name:?}");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'), "{name:?}");
    }
    let last = Peer::join(&scene.lab.host("o2"), OFFICIAL, &scene.server.url, &scene.key);
    o1.wait_sees(&["o2"], Duration::from_secs(5));
    last.wait_icmp(&o1.ip4(), Duration::from_secs(10));
}

#[test]
fn a_node_cannot_speak_for_another() {
    let scene = scene("stolen identity");
    let o1 = Peer::join(&scene.lab.host("o1"), OFFICIAL, &scene.server.url, &scene.key);
    let victim = scene.server.json(&["nodes", "show", "o1"]);
    let victim_key: tsd::keys::NodePublic = victim["key"].as_str().unwrap().parse().unwrap();
    block_inside(&scene.attacker, move || async move {
        let machine = Machine::new("mallory");
        let mut channel = Channel::open(&machine, CapVer::OURS).await.unwrap();
        // Row 25: the map of a node that is not ours.
        let map = MapRequest {
            version: CapVer::OURS,
            node_key: victim_key,
            stream: false,
            ..MapRequest::default()
        };
        let (status, body) = channel.post("/machine/map", serde_json::to_vec(&map).unwrap()).await.unwrap();
        assert!((400..500).contains(&status), "{status}: {body:?}");
        // Its registration: neither its owner's name nor a logout.
        let mut register = machine.request("");
        register.auth = None;
        register.node_key = victim_key;
        register.expiry = chrono::DateTime::from_timestamp(123, 0);
        let (_, body) =
            channel.post("/machine/register", serde_json::to_vec(&register).unwrap()).await.unwrap();
        let text = String::from_utf8_lossy(&body).into_owned();
        assert!(!text.contains("\"LoginName\":\"admin"), "{text}");
        register.expiry = None;
        let (_, body) =
            channel.post("/machine/register", serde_json::to_vec(&register).unwrap()).await.unwrap();
        let text = String::from_utf8_lossy(&body).into_owned();
        assert!(!text.contains("\"MachineAuthorized\":true"), "{text}");
    });
    let now = scene.server.node("o1").unwrap();
    assert_eq!(now["online"], true, "{now}");
    assert!(now["expires"].is_null(), "{now}");
    o1.wait_running(Duration::from_secs(2));
}

#[test]
fn waiting_logins_are_bounded() {
    let scene = scene("pending flood");
    let url = scene.server.url.clone();
    block_inside(&scene.attacker, move || async move {
        let machine = Machine::new("mallory");
        let mut channel = Channel::open(&machine, CapVer::OURS).await.unwrap();
        let _ = url;
        for n in 0..1500 {
            let mut request = Machine::new(&format!("f{n}")).request("");
            request.auth = None;
            let answer = channel.post("/machine/register", serde_json::to_vec(&request).unwrap()).await;
            match answer {
                Ok((status, _)) => assert!(status == 200 || status == 429, "{status}"),
                Err(e) => {
                    assert_ne!(e, "hangs");
                    channel = Channel::open(&machine, CapVer::OURS).await.unwrap();
                }
            }
        }
    });
    let waiting = scene.server.json(&["logins", "list"]).as_array().unwrap().len();
    assert!(waiting <= 1000, "{waiting} logins wait");
    scene.still_serves("pending flood");
}

#[test]
fn strangers_get_no_relay_no_figures_and_no_console() {
    let scene = scene("strangers");
    // Row 37: a key the server does not know.
    let derp_map: DerpMap = {
        let status = Peer::join(&scene.lab.host("t1"), Kind::Tsd, &scene.server.url, &scene.key);
        let out = status.host.ok(
            "curl",
            &[
                "-s",
                "--unix-socket",
                "/run/tsd/node.sock",
                "http://local-tailscaled.sock/localapi/v0/derpmap",
            ],
        );
        serde_json::from_str(&out).unwrap()
    };
    let region = derp_map.regions.values().next().unwrap().clone();
    block_inside(&scene.attacker, move || async move {
        let mut rng = Rng::from_os();
        let key = NodePrivate::generate(&mut rng);
        let options = DialOptions { mark: None, roots: std::sync::Arc::new(rustls::RootCertStore::empty()) };
        if let Ok((sender, mut receiver)) =
            tsd::derp::client::connect(&region, &key, &options, &mut rng).await
        {
            sender.send(NodePrivate::generate(&mut rng).public(), Bytes::from_static(b"hello"));
            let end = tokio::time::timeout(Duration::from_secs(5), receiver.recv())
                .await
                .expect("the relay closes");
            assert!(!matches!(end, Ok(DerpEvent::Packet { .. })));
            assert!(end.is_err(), "{end:?}");
        }
    });
    // Rows 45, 93, 96 and plain access to the console.
    scene
        .attacker
        .inside(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
            let good = tsd::stun::message::request([7; 12]);
            let mut wrong_cookie = good.clone();
            wrong_cookie[4] ^= 1;
            for bad in
                [good[..good.len() - 1].to_vec(), wrong_cookie, vec![0; 1500], vec![1], good[..20].to_vec()]
            {
                socket.send_to(&bad, "203.0.113.10:3478").unwrap();
            }
            let mut buf = [0; 1500];
            assert!(socket.recv_from(&mut buf).is_err(), "a malformed request was answered");
            socket.send_to(&good, "203.0.113.10:3478").unwrap();
            let (n, _) = socket.recv_from(&mut buf).expect("a good request is answered");
            assert!(n <= good.len() + 4, "the answer of {n} bytes amplifies");
        })
        .join()
        .unwrap();
    let get = |url: &str, more: &[&str]| {
        let mut args =
            vec!["-sk", "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", "--max-time", "10"];
        args.extend_from_slice(more);
        args.push(url);
        scene.attacker.ok("curl", &args)
    };
    assert!(get("http://203.0.113.10:8080/metrics", &[]).starts_with("404"));
    assert!(get("https://203.0.113.10/metrics", &[]).starts_with("404"));
    assert!(get("http://203.0.113.10:8080/healthz", &[]).starts_with("200"));
    let plain = get("http://203.0.113.10:8080/devices", &[]);
    assert!(plain.starts_with("30") && plain.contains("https://203.0.113.10"), "{plain}");
    let console = get("https://203.0.113.10/devices", &[]);
    assert!(console.starts_with("30") && console.contains("/login"), "{console}");
    let post = get(
        "https://203.0.113.10/keys",
        &["-X", "POST", "-d", "user=admin", "-H", "Origin: https://evil.test"],
    );
    assert!(post.starts_with('4') || post.starts_with("30"), "{post}");
    // From the machine itself the figures are there; under another Host they are not.
    let host = &scene.server.host;
    let metrics = host.ok("curl", &["-s", "http://127.0.0.1:8080/metrics"]);
    assert!(metrics.contains("tsd_"), "{metrics}");
    eventually("a foreign Host is refused", Duration::from_secs(1), || {
        let code = host.ok(
            "curl",
            &[
                "-s",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "-H",
                "Host: evil.test",
                "http://127.0.0.1:8080/metrics",
            ],
        );
        if code.starts_with('4') { Ok(()) } else { Err(code) }
    });
    scene.still_serves("strangers");
}
