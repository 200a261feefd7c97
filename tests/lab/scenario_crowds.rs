//! Proof 8 against the running server: crowds and races. Thousands of silent or slow connections, resets,
//! clones, keys revoked in mid-flight. Row numbers are those of docs/hostile.md.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tsd::clock::Rng;
use tsd::derp::frame::Frame;
use tsd::noise::stream::ClientHandshake;
use tsd::wire::{CapVer, MapRequest, MapResponse, Service};

use crate::machines::{Machine, block_inside};
use crate::scenario_attack::*;
use crate::scenario_hostile::{PLAIN, Scene, TLS, scene, server_key, upgrade_head};
use crate::world::{Host, eventually};

/// More addresses for a host on the internet: one source has a bounded share of the server.
fn more_addresses(host: &Host, last: std::ops::RangeInclusive<u8>) -> Vec<Ipv4Addr> {
    last.map(|n| {
        let addr = Ipv4Addr::new(203, 0, 113, n);
        host.ok("ip", &["addr", "add", &format!("{addr}/24"), "dev", "wan"]);
        addr
    })
    .collect()
}

/// A connection to the server from this address; `None` when it is refused.
async fn connect_from(source: Ipv4Addr, to: &str) -> Option<TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind((source, 0).into()).unwrap();
    timeout(SOON, socket.connect(to.parse().unwrap())).await.ok()?.ok()
}

/// The server's open connections as its own figures count them, the asking one not among them.
fn open_connections(scene: &Scene) -> u64 {
    let text = scene.server.host.ok("curl", &["-s", "http://127.0.0.1:8080/metrics"]);
    let line = text.lines().find_map(|l| l.strip_prefix("tsd_http_connections ")).unwrap();
    line.trim().parse::<u64>().unwrap() - 1
}

/// The first message of a machine's long poll.
async fn first_map(machine: &mut Machine, url: &str) -> MapResponse {
    let ask = MapRequest {
        version: CapVer::OURS,
        node_key: machine.node.public(),
        stream: true,
        ..MapRequest::default()
    };
    let client = machine.client(url);
    let mut stream = client.poll(&ask).await.unwrap();
    timeout(SOON, stream.next()).await.unwrap().unwrap().unwrap()
}

/// Row 11: five thousand connections from 21 addresses that say nothing.
#[test]
fn thousands_of_silent_connections_are_closed_and_nobody_else_is_kept_out() {
    const CROWD: usize = 5000;
    // Both ends of the crowd are on this machine; the server raises its own limit.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(hard > 6000, "this test holds 5000 sockets: `ulimit -Hn` must be above 6000");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let mut scene = scene("silent crowd");
    let sources = more_addresses(&scene.attacker, 100..=120);
    let before = peak_kib(&mut scene);
    {
        let scene = &scene;
        let (tell, told) = std::sync::mpsc::channel();
        let crowd = scene.attacker.inside(move || {
            let run = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            run.block_on(async move {
                let mut held = Vec::new();
                for (n, source) in sources.iter().cycle().take(CROWD).enumerate() {
                    let to = if n % 2 == 0 { PLAIN } else { TLS };
                    held.extend(connect_from(*source, to).await);
                }
                let opened = std::time::Instant::now();
                tell.send(held.len()).unwrap();
                let mut ends = tokio::task::JoinSet::new();
                for mut stream in held {
                    ends.spawn(async move { drain(&mut stream, Duration::from_secs(30)).await.1 });
                }
                let mut closed = 0;
                while let Some(end) = ends.join_next().await {
                    closed += usize::from(end.unwrap());
                }
                (closed, opened.elapsed())
            })
        });
        let opened = told.recv_timeout(Duration::from_secs(60)).expect("the crowd gets in");
        assert_eq!(opened, CROWD);
        let there = open_connections(scene);
        scene.still_serves("amid the silent crowd");
        let (closed, took) = crowd.join().unwrap();
        println!("{there} open at once; {closed} closed within {took:?}");
        assert!(there > 1000, "only {there} were held at once: the test tries nothing");
        assert_eq!(closed, CROWD);
        assert!(took < Duration::from_secs(15), "{took:?}");
        eventually("their places are free", Duration::from_secs(2), || match open_connections(scene) {
            0 => Ok(()),
            n => Err(n.to_string()),
        });
    }
    let grown = peak_kib(&mut scene) - before;
    println!("{grown} KiB for {CROWD} connections");
    assert!(grown < 24 * CROWD as u64, "{grown} KiB for {CROWD} connections");
}

/// Row 10: three hundred heads that grow by one byte a second. The deadline is for the whole head.
#[test]
fn hundreds_of_slow_senders_are_cut_off_at_the_deadline() {
    let mut scene = scene("slow senders");
    flat(&mut scene, "slow senders", |scene| {
        let slow = scene.attacker.inside(|| {
            let run = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            run.block_on(async {
                let mut senders = tokio::task::JoinSet::new();
                for n in 0..300_u32 {
                    senders.spawn(async move {
                        let to = if n % 3 == 0 { TLS } else { PLAIN };
                        let mut stream = TcpStream::connect(to).await.unwrap();
                        // For TLS the head of a record that promises 512 bytes of a handshake.
                        let start: &[u8] = if n % 3 == 0 { &[22, 3, 1, 2, 0, 1] } else { b"GET /key?v=1" };
                        stream.write_all(start).await.unwrap();
                        let begun = std::time::Instant::now();
                        let (mut reading, mut writing) = stream.split();
                        let drip = async {
                            let mut beat = tokio::time::interval(Duration::from_secs(1));
                            loop {
                                beat.tick().await;
                                if writing.write_all(b"0").await.is_err() {
                                    std::future::pending::<()>().await;
                                }
                            }
                        };
                        let (got, closed) = tokio::select! {
                            end = drain(&mut reading, Duration::from_secs(25)) => end,
                            () = drip => unreachable!("a drip has no end"),
                        };
                        assert!(!got.starts_with(b"HTTP/1.1 2"), "a head without end was served");
                        (closed, begun.elapsed())
                    });
                }
                let ends = senders.join_all().await;
                assert!(ends.iter().all(|(closed, _)| *closed), "a slow sender is still connected");
                ends.iter().map(|(_, took)| *took).max().unwrap()
            })
        });
        scene.still_serves("amid slow senders");
        let longest = slow.join().unwrap();
        println!("the last was cut off after {longest:?}");
        assert!(longest < Duration::from_secs(15), "{longest:?}");
    });
}

/// Row 16: a length and a chunked body in one request, in either order; whoever stands in front of us
/// may have read the other one, so nothing behind it may be taken for a request.
#[test]
fn nothing_is_read_behind_a_request_with_two_lengths() {
    let scene = scene("two framings");
    let answers = block_inside(&scene.attacker, || async {
        let mut answers = Vec::new();
        let (length, coding) = ("Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n");
        for fields in [[length, coding], [coding, length]] {
            let smuggled = "GET /key?v=145 HTTP/1.1\r\nHost: x\r\n\r\n";
            let text =
                format!("POST /nothing HTTP/1.1\r\nHost: x\r\n{}\r\n0\r\n\r\n{smuggled}", fields.concat());
            let mut stream = TcpStream::connect(PLAIN).await.unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
            let (got, closed) = drain(&mut stream, SOON).await;
            answers.push((fields, String::from_utf8_lossy(&got).into_owned(), closed));
        }
        answers
    });
    for (fields, text, closed) in answers {
        assert!(closed, "{fields:?}: still open: {text}");
        assert!(text.matches("HTTP/1.1 ").count() <= 1, "{fields:?}: the smuggled request was read: {text}");
        assert!(!text.contains("publicKey"), "{fields:?}: {text}");
    }
}

/// A lite update: peers are shown a node once it has a disco key.
async fn announce(machine: &mut Machine, url: &str) {
    let request = MapRequest {
        version: CapVer::OURS,
        node_key: machine.node.public(),
        disco_key: tsd::keys::DiscoPrivate::generate(&mut Rng::from_os()).public(),
        omit_peers: true,
        ..MapRequest::default()
    };
    machine.client(url).update(&request).await.unwrap();
}

/// Row 21: thousands of services, routes, keys and tags in one registration.
#[test]
fn an_oversized_description_reaches_peers_cut_to_size() {
    let scene = scene("oversized description");
    let (url, key) = (scene.server.url.clone(), scene.key.clone());
    let asked = url.clone();
    block_inside(&scene.attacker, move || async move {
        let (url, key) = (asked, key);
        let mut evil = Machine::new("evil");
        let mut request = evil.request(&key);
        let info = request.hostinfo.as_mut().unwrap();
        info.services = (0..5000)
            .map(|port| Service { proto: "peerapi4".into(), port, description: "x".repeat(40) })
            .collect();
        info.routable_ips =
            (0..5000_u32).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256).parse().unwrap()).collect();
        info.ssh_host_keys = (0..5000).map(|n| format!("ssh-ed25519 {n}")).collect();
        // Tags nobody gave: refused as a whole.
        let mut tagged = request.clone();
        tagged.hostinfo.as_mut().unwrap().request_tags = (0..5000).map(|n| format!("tag:t{n}")).collect();
        let answer = evil.client(&url).register(&tagged).await.unwrap();
        assert!(!answer.machine_authorized && answer.error.contains("tag:t0"), "{}", answer.error);
        assert!(answer.error.len() < 1000, "an answer of {} bytes", answer.error.len());
        let answer = evil.client(&url).register(&request).await.unwrap();
        assert!(answer.machine_authorized, "{answer:?}");
        announce(&mut evil, &url).await;
    });
    // The operator approves whatever is offered.
    scene.server.ok(&["nodes", "approve-routes", "evil"]);
    let key = scene.key.clone();
    let (shown, size) = block_inside(&scene.attacker, move || async move {
        let mut good = Machine::new("good");
        good.register(&url, &key).await.unwrap();
        let map = first_map(&mut good, &url).await;
        let size = serde_json::to_vec(&map).unwrap().len();
        let peers = map.peers.unwrap();
        (peers.into_iter().find(|p| p.name.starts_with("evil")).expect("the peer is shown"), size)
    });
    let info = shown.hostinfo.expect("a description is shown");
    let counts =
        [info.services.len(), info.ssh_host_keys.len(), info.routable_ips.len(), info.request_tags.len()];
    let allowed = shown.allowed_ips.unwrap_or_default().len();
    println!("{counts:?}, {allowed} allowed, a map of {size} bytes");
    // The caps of control::hostinfo; what peers have no use for is not shown at all.
    assert_eq!(counts, [64, 16, 0, 0]);
    // All routes that were kept, and the two addresses.
    assert_eq!(allowed, 512 + 2);
    assert!(size < 128 << 10, "a map of {size} bytes");
}

/// Row 12: a poll that is reset while its map is on the way. Its node goes offline when the grace is
/// over, not before, and the next stream is served at once.
#[test]
fn a_poll_reset_in_the_middle_of_its_map_leaves_nothing() {
    let mut scene = scene("reset in a map");
    let pid = scene.server.process().pid();
    let idle = sockets(pid);
    let (url, key) = (scene.server.url.clone(), scene.key.clone());
    let machine = block_inside(&scene.attacker, move || async move {
        let mut evil = Machine::new("evil");
        evil.register(&url, &key).await.unwrap();
        for n in 0..40 {
            // Descriptions of some size: the map of all is longer than the window the poll leaves open.
            let mut other = Machine::new(&format!("filler{n}"));
            let mut request = other.request(&key);
            request.hostinfo.as_mut().unwrap().ssh_host_keys = vec!["k".repeat(2000); 4];
            other.client(&url).register(&request).await.unwrap();
            announce(&mut other, &url).await;
        }
        evil
    });
    let (machine, resets) = block_inside(&scene.attacker, move || async move {
        let mut resets = 0;
        for _ in 0..3 {
            let (handshake, initiation) = ClientHandshake::new(
                &machine.machine,
                &server_key().await,
                CapVer::OURS,
                &mut Rng::from_os(),
            );
            let mut stream = TcpStream::connect(PLAIN).await.unwrap();
            stream.write_all(&upgrade_head(&initiation)).await.unwrap();
            skip_head(&mut stream, "HTTP/1.1 101").await;
            stream.set_zero_linger().unwrap();
            let noise = handshake.finish(stream).await.unwrap();
            let (mut send, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(16 << 10)
                .handshake::<_, http_body_util::Full<Bytes>>(TokioIo::new(noise))
                .await
                .unwrap();
            let connection = tokio::spawn(connection);
            let ask = MapRequest {
                version: CapVer::OURS,
                node_key: machine.node.public(),
                stream: true,
                ..MapRequest::default()
            };
            let body = http_body_util::Full::new(Bytes::from(serde_json::to_vec(&ask).unwrap()));
            let request = http::Request::post("https://unused/machine/map").body(body).unwrap();
            let answer = timeout(SOON, send.send_request(request)).await.unwrap().unwrap();
            assert_eq!(answer.status(), 200, "the slot of the one before is not free");
            // The first part is there, the rest waits for the window: now the socket is reset.
            let mut body = answer.into_body();
            let part = timeout(SOON, body.frame()).await.unwrap().unwrap().unwrap().into_data().unwrap();
            let whole = u32::from_le_bytes(part[..4].try_into().unwrap()) as usize;
            assert!(whole > 64 << 10 && part.len() < whole, "{} of {whole} bytes came at once", part.len());
            connection.abort();
            let _ = connection.await;
            resets += 1;
        }
        (machine, resets)
    });
    assert_eq!(resets, 3);
    wait_sockets(pid, idle);
    let start = std::time::Instant::now();
    assert_eq!(scene.server.node("evil").unwrap()["online"], true, "offline without the grace");
    scene.server.wait_online("evil", false, Duration::from_secs(15));
    println!("offline after {:?}", start.elapsed());
    assert!(start.elapsed() > Duration::from_secs(3), "offline without the grace");
    let url = scene.server.url.clone();
    let seen = block_inside(&scene.attacker, move || async move {
        let mut machine = machine;
        let map = first_map(&mut machine, &url).await;
        map.peers.unwrap().len()
    });
    assert_eq!(seen, 40);
}

/// Row 28: a key is revoked while 32 registrations with it are on the way.
#[test]
fn no_registration_succeeds_after_its_key_was_revoked() {
    let scene = scene("revocation race");
    let mut raced = 0;
    for round in 0..5 {
        let before: HashSet<String> =
            scene.server.nodes().iter().map(|n| n["name"].as_str().unwrap().to_owned()).collect();
        let key = scene.server.key(&["--reusable"]);
        let url = scene.server.url.clone();
        let (tell, told) = std::sync::mpsc::channel();
        let text = key.clone();
        let crowd = scene.attacker.inside(move || {
            let run = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            run.unwrap().block_on(async move {
                let mut tasks = tokio::task::JoinSet::new();
                for n in 0..32 {
                    let (url, key, tell) = (url.clone(), text.clone(), tell.clone());
                    let name = format!("r{round}-{n}");
                    tasks.spawn(async move {
                        let mut machine = Machine::new(&name);
                        // Spread over the time a revocation takes.
                        tokio::time::sleep(Duration::from_millis(n * 4)).await;
                        let _ = tell.send(());
                        let asked = std::time::Instant::now();
                        let answer = machine.register(&url, &key).await.unwrap();
                        (name, answer.machine_authorized, answer.error, asked)
                    });
                }
                tasks.join_all().await
            })
        });
        // Some of them are on their way.
        for _ in 0..4 {
            told.recv_timeout(SOON).unwrap();
        }
        scene.server.ok(&["authkeys", "revoke", &key]);
        let revoked = std::time::Instant::now();
        let answers = crowd.join().unwrap();
        let joined: HashSet<String> =
            answers.iter().filter(|(_, ok, ..)| *ok).map(|(name, ..)| name.clone()).collect();
        for (name, ok, error, asked) in &answers {
            assert!(*ok != error.contains("revoked"), "{name}: {ok} {error:?}");
            assert!(!ok || *asked < revoked, "{name} asked after the key was revoked and got in");
        }
        let there: HashSet<String> =
            scene.server.nodes().iter().map(|n| n["name"].as_str().unwrap().to_owned()).collect();
        let new: HashSet<String> = there.difference(&before).cloned().collect();
        assert_eq!(new, joined, "round {round}: who exists is not who was let in");
        println!("round {round}: {} of 32 let in", joined.len());
        raced += usize::from((1..32).contains(&joined.len()));
    }
    assert!(raced > 0, "no round was a race");
}

/// Row 36: an ephemeral node whose first poll comes late, under a timeout far shorter than that.
#[test]
fn a_slow_ephemeral_node_is_there_when_its_first_poll_comes() {
    let lab = crate::world::Lab::new("slow ephemeral node");
    let host = lab.host_at("srv", "203.0.113.10");
    std::fs::write(host.path("/etc/tsd.toml"), "ephemeral_timeout = \"2s\"\n").unwrap();
    let server =
        crate::server::Server::start_with(&host, "http://203.0.113.10:8080", &["--config", "/etc/tsd.toml"]);
    let key = server.key(&["--reusable", "--ephemeral"]);
    let url = server.url.clone();
    block_inside(&lab.host("slow"), move || async move {
        let mut slow = Machine::new("slow");
        slow.register(&url, &key).await.unwrap();
        // What is tried is that time alone does nothing: there is no event to wait for.
        tokio::time::sleep(Duration::from_secs(20)).await;
        let ask = MapRequest {
            version: CapVer::OURS,
            node_key: slow.node.public(),
            stream: true,
            ..MapRequest::default()
        };
        let client = slow.client(&url);
        let mut stream = client.poll(&ask).await.expect("the node is still there");
        assert!(timeout(SOON, stream.next()).await.unwrap().unwrap().unwrap().node.is_some());
    });
    // It polled and left: gone after the grace, the timeout and the rest of its first minute.
    eventually("it is removed", Duration::from_secs(70), || match server.node("slow") {
        None => Ok(()),
        Some(node) => Err(node.to_string()),
    });
}

/// Row 24: two machines with all keys in common, each of which dials again as soon as it was pushed out.
#[test]
fn clones_take_turns_and_the_operator_is_told() {
    let scene = scene("clones");
    let (url, key) = (scene.server.url.clone(), scene.key.clone());
    let (machine, maps) = block_inside(&scene.attacker, move || async move {
        let mut machine = Machine::new("disk");
        machine.register(&url, &key).await.unwrap();
        let ask = MapRequest {
            version: CapVer::OURS,
            node_key: machine.node.public(),
            stream: true,
            ..MapRequest::default()
        };
        let maps = std::cell::Cell::new(0);
        let clone = |client: tsd::node::control::ControlClient| {
            let (ask, maps) = (&ask, &maps);
            async move {
                loop {
                    if let Ok(mut stream) = client.poll(ask).await {
                        while let Ok(Some(map)) = stream.next().await {
                            maps.set(maps.get() + u32::from(map.node.is_some()));
                        }
                    }
                    // A turn that was refused at once must not keep this thread from the other one.
                    tokio::task::yield_now().await;
                }
            }
        };
        let (one, two) = (clone(machine.client(&url)), clone(machine.client(&url)));
        let fight = async { tokio::join!(one, two) };
        let fight: Result<((), ()), _> = timeout(Duration::from_secs(10), fight).await;
        assert!(fight.is_err());
        (machine, maps.get())
    });
    println!("{maps} maps in 10 s");
    assert!((2..=6).contains(&maps), "{maps} whole maps in 10 s");
    let status = scene.server.json(&["status"])["warnings"].to_string();
    assert!(status.contains("two machines use the identity of device disk"), "{status}");
    // Both are gone: whoever comes next has not to wait for a turn.
    let url = scene.server.url.clone();
    block_inside(&scene.attacker, move || async move {
        let mut machine = machine;
        let ask = MapRequest {
            version: CapVer::OURS,
            node_key: machine.node.public(),
            stream: true,
            ..MapRequest::default()
        };
        let client = machine.client(&url);
        let mut stream = timeout(SOON, client.poll(&ask)).await.expect("no turn to wait for").unwrap();
        assert!(timeout(SOON, stream.next()).await.unwrap().unwrap().unwrap().node.is_some());
    });
}

/// Row 42: one key at the relay twice. The newest connection gets the packets; when it goes the older one
/// has them again.
#[test]
fn of_two_relay_connections_of_one_key_the_newest_receives() {
    let scene = scene("one key twice");
    let (url, key) = (scene.server.url.clone(), scene.key.clone());
    block_inside(&scene.attacker, move || async move {
        let mut alice = Machine::new("alice");
        let mut bob = Machine::new("bob");
        alice.register(&url, &key).await.unwrap();
        bob.register(&url, &key).await.unwrap();
        let mut sender = logged_in(&alice.node).await;
        let mut old = logged_in(&bob.node).await;
        let send = |text: &'static [u8]| {
            Frame::SendPacket { to: bob.node.public(), packet: Bytes::from_static(text) }.encode()
        };
        let received = async |stream: &mut TcpStream| loop {
            let frame = timeout(SOON, next_frame(stream)).await.expect("a packet comes");
            if let Frame::RecvPacket { from, packet } = frame.expect("still connected") {
                assert_eq!(from, alice.node.public());
                break packet;
            }
        };
        sender.write_all(&send(b"to the first")).await.unwrap();
        assert_eq!(received(&mut old).await, b"to the first".as_slice());
        let mut new = logged_in(&bob.node).await;
        sender.write_all(&send(b"to the second")).await.unwrap();
        assert_eq!(received(&mut new).await, b"to the second".as_slice());
        drop(new);
        // The relay sees the end a moment later: asked again until the older one has it.
        let back = async {
            loop {
                sender.write_all(&send(b"to the first again")).await.unwrap();
                if let Ok(packet) = timeout(Duration::from_millis(200), received(&mut old)).await {
                    break packet;
                }
            }
        };
        // Nothing that was meant for the second came to the first.
        assert_eq!(timeout(SOON, back).await.unwrap(), b"to the first again".as_slice());
    });
}

/// Row 44: a thousand handshakes begun from one address. It gets its share and no more, and another
/// address gets in meanwhile.
#[test]
fn a_storm_of_handshakes_from_one_source_keeps_nobody_else_out() {
    let mut scene = scene("handshake storm");
    let honest = scene.lab.host("honest");
    let before = peak_kib(&mut scene);
    let (tell, told) = std::sync::mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let storm = scene.attacker.inside(move || {
        let run = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        run.block_on(async move {
            let mut held = Vec::new();
            for _ in 0..1000 {
                let mut stream = TcpStream::connect(TLS).await.unwrap();
                // A handshake record that promises more than comes.
                let _ = stream.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc]).await;
                held.push(stream);
            }
            tell.send(()).unwrap();
            let _ = stopped.await;
        });
    });
    told.recv_timeout(Duration::from_secs(30)).unwrap();
    let (url, key) = (scene.server.url.clone(), scene.key.clone());
    let answer =
        block_inside(
            &honest,
            move || async move { Machine::new("honest").register(&url, &key).await.unwrap() },
        );
    let there = open_connections(&scene);
    drop(stop);
    storm.join().unwrap();
    assert!(answer.machine_authorized, "{answer:?}");
    let grown = peak_kib(&mut scene) - before;
    println!("{there} open at once, {grown} KiB");
    // `serve::limits`, and what the honest machine may still have open.
    assert!((300..=512 + 2).contains(&there), "{there} are held at once");
    assert!(grown < FLAT_KIB, "{grown} KiB");
}
