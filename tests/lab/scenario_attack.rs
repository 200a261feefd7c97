//! Proof 8 against the running server, one layer deeper than `scenario_hostile`: records, HTTP/2 frames,
//! upgrades and relay frames that break the rules, and what a node may make its peers see. Row numbers are
//! those of docs/hostile.md. After each attack an honest machine still gets in and memory has stayed flat.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http_body_util::{BodyExt as _, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tsd::clock::Rng;
use tsd::derp::frame::{Frame, HEADER_LEN, Header, kind};
use tsd::derp::handshake::{ClientInfo, client_info};
use tsd::keys::{NodePrivate, NodePublic};
use tsd::noise::handshake::{Channel as Keys, Initiator, RESPONSE_LEN};
use tsd::noise::record::Opener;
use tsd::noise::stream::ClientHandshake;
use tsd::wire::{CapVer, MapRequest, MapResponse, Service};

use crate::machines::{Machine, block_inside};
use crate::scenario_hostile::{Channel, PLAIN, Scene, TLS, scene, server_key, upgrade_head};
use crate::world::{Host, eventually};

/// Memory the attacks of one test may leave behind or need.
const FLAT_KIB: u64 = 48 << 10;

/// The most memory the server ever held.
fn peak_kib(scene: &mut Scene) -> u64 {
    let pid = scene.server.process().pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Runs an attack and asserts that the server's memory stays flat and that it still serves.
fn flat(scene: &mut Scene, what: &str, attack: impl FnOnce(&Scene)) {
    let before = peak_kib(scene);
    attack(scene);
    let after = peak_kib(scene);
    println!("{what}: {before} KiB before, {after} KiB after");
    assert!(after < before + FLAT_KIB, "{what}: memory went from {before} to {after} KiB");
    scene.still_serves(what);
}

/// A Noise connection in the raw, behind the handshake.
async fn raw() -> (TcpStream, Keys) {
    let machine = Machine::new("mallory").machine;
    let ephemeral = Rng::from_os().bytes::<32>().into();
    let (state, initiation) = Initiator::new(&machine, &server_key().await, CapVer::OURS, ephemeral).unwrap();
    let mut stream = TcpStream::connect(PLAIN).await.unwrap();
    stream.write_all(&upgrade_head(&initiation)).await.unwrap();
    skip_head(&mut stream, "HTTP/1.1 101").await;
    let mut response = [0; RESPONSE_LEN];
    stream.read_exact(&mut response).await.unwrap();
    (stream, state.finish(&response).unwrap())
}

async fn skip_head(stream: &mut TcpStream, want: &str) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    assert!(head.starts_with(want), "{head}");
}

/// What comes until the server closes, or for `limit`; whether it closed.
async fn drain(stream: &mut (impl tokio::io::AsyncRead + Unpin), limit: Duration) -> (Vec<u8>, bool) {
    let mut got = Vec::new();
    let read = async {
        let mut part = [0; 16 << 10];
        while let Ok(n @ 1..) = stream.read(&mut part).await {
            got.extend_from_slice(&part[..n]);
        }
    };
    let closed = timeout(limit, read).await.is_ok();
    (got, closed)
}

fn opened(opener: &mut Opener, mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Ok(Some(len)) = Opener::frame_len(bytes) {
        let Some((frame, rest)) = bytes.split_at_checked(len) else { break };
        let mut frame = frame.to_vec();
        let text = opener.open(&mut frame).unwrap();
        out.extend_from_slice(&frame[3..3 + text]);
        bytes = rest;
    }
    out
}

/// One HTTP/2 frame (RFC 9113 4.1).
fn h2(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut out = vec![len[1], len[2], len[3], kind, flags];
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

fn preface() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), h2(4, 0, 0, &[])].concat()
}

/// `POST https://x/machine/map` by the static table (RFC 7541 appendix A).
fn post_map() -> Vec<u8> {
    [&[0x83, 0x87, 0x04, 12], b"/machine/map".as_slice(), &[0x01, 1, b'x']].concat()
}

/// The frames in what came back, without the early payload.
fn frames(text: &[u8]) -> Vec<(u8, u8, Vec<u8>)> {
    let mut rest = text;
    if let Some(early) = rest.strip_prefix(b"\xff\xff\xffTS") {
        let (len, body) = early.split_first_chunk::<4>().unwrap();
        rest = &body[u32::from_be_bytes(*len) as usize..];
    }
    let mut out = Vec::new();
    while let Some(([a, b, c, kind, flags, ..], body)) = rest.split_first_chunk::<9>() {
        let len = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let Some((payload, next)) = body.split_at_checked(len) else { break };
        out.push((*kind, *flags, payload.to_vec()));
        rest = next;
    }
    out
}

const SOON: Duration = Duration::from_secs(5);

#[test]
fn records_that_break_the_rules_end_the_connection() {
    let mut scene = scene("hostile records");
    let pid = scene.server.process().pid();
    let idle = sockets(pid);
    flat(&mut scene, "records", |scene| {
        block_inside(&scene.attacker, || async {
            // Row 6: lengths 0, 4097 and 65535; another type.
            for bad in [[4, 0, 0], [4, 0x0f, 0xfe], [4, 0xff, 0xff], [3, 0, 20], [1, 0, 96]] {
                let (mut stream, _) = raw().await;
                stream.write_all(&bad).await.unwrap();
                assert!(drain(&mut stream, SOON).await.1, "{bad:?} is not refused");
            }
            // Rows 7 and 9: a changed tag and a swapped pair; nothing behind them is looked at.
            let ping = h2(6, 0, 0, b"row seve");
            for swap in [false, true] {
                let (mut stream, mut keys) = raw().await;
                let (mut first, mut second, mut third) = (Vec::new(), Vec::new(), Vec::new());
                keys.sealer.seal(&preface(), &mut first).unwrap();
                keys.sealer.seal(&ping, &mut second).unwrap();
                keys.sealer.seal(&ping, &mut third).unwrap();
                if swap {
                    std::mem::swap(&mut second, &mut third);
                } else {
                    *second.last_mut().unwrap() ^= 1;
                }
                stream.write_all(&[first, second, third].concat()).await.unwrap();
                let (got, closed) = drain(&mut stream, SOON).await;
                assert!(closed, "swap={swap}: still open");
                let text = opened(&mut keys.opener, &got);
                assert!(!frames(&text).iter().any(|(kind, flags, _)| (*kind, *flags) == (6, 1)), "answered");
            }
            // Row 8: a hundred thousand records of one byte are as good as one large one.
            let (mut stream, mut keys) = raw().await;
            let mut text = preface();
            for _ in 0..6 {
                text.extend(h2(0xfe, 0, 0, &[0; 16_384]));
            }
            text.extend(h2(6, 0, 0, b"row 8888"));
            let mut records = Vec::new();
            for byte in &text {
                keys.sealer.seal(std::slice::from_ref(byte), &mut records).unwrap();
            }
            let (mut reading, mut writing) = stream.split();
            let write = async {
                writing.write_all(&records).await.unwrap();
            };
            let ((got, _), ()) = tokio::join!(drain(&mut reading, SOON), write);
            let answer = frames(&opened(&mut keys.opener, &got));
            assert!(answer.contains(&(6, 1, b"row 8888".to_vec())), "no answer to tiny records: {answer:?}");
            // Row 12: reset in each state.
            for state in 0..4 {
                let stream = match state {
                    0 => TcpStream::connect(PLAIN).await.unwrap(),
                    1 => {
                        let mut stream = TcpStream::connect(PLAIN).await.unwrap();
                        stream.write_all(b"POST /ts2021 HTTP/1.1\r\n").await.unwrap();
                        stream
                    }
                    2 => raw().await.0,
                    _ => {
                        let (mut stream, mut keys) = raw().await;
                        let mut out = Vec::new();
                        let open = [preface(), h2(1, 4, 1, &post_map())].concat();
                        keys.sealer.seal(&open, &mut out).unwrap();
                        stream.write_all(&out).await.unwrap();
                        stream
                    }
                };
                stream.set_zero_linger().unwrap();
                drop(stream);
            }
        });
        // Row 12: the places are given back.
        wait_sockets(pid, idle);
    });
}

/// Sends HTTP/2 bytes; gives the frames that came, and whether the server closed.
async fn h2_attack(parts: impl Iterator<Item = Vec<u8>>) -> (Vec<(u8, u8, Vec<u8>)>, bool) {
    let (mut stream, mut keys) = raw().await;
    let (mut reading, mut writing) = stream.split();
    let mut sealer = keys.sealer;
    let write = async {
        for part in std::iter::once(preface()).chain(parts) {
            let mut out = Vec::new();
            sealer.seal(&part, &mut out).unwrap();
            if !matches!(timeout(SOON, writing.write_all(&out)).await, Ok(Ok(()))) {
                break;
            }
        }
    };
    let ((got, closed), ()) = tokio::join!(drain(&mut reading, Duration::from_secs(10)), write);
    (frames(&opened(&mut keys.opener, &got)), closed)
}

fn goaway(frames: &[(u8, u8, Vec<u8>)]) -> Option<u32> {
    let (_, _, payload) = frames.iter().find(|(kind, ..)| *kind == 7)?;
    Some(u32::from_be_bytes(payload.get(4..8)?.try_into().ok()?))
}

#[test]
fn http2_floods_are_ended_with_flat_memory() {
    let mut scene = scene("HTTP/2 floods");
    let run = |scene: &mut Scene, what: &'static str, parts: fn() -> Box<dyn Iterator<Item = Vec<u8>>>| {
        flat(scene, what, |scene| {
            let (frames, closed) =
                block_inside(&scene.attacker, move || async move { h2_attack(parts()).await });
            println!("{what}: closed={closed}, GOAWAY {:?}, {} frames", goaway(&frames), frames.len());
            assert!(goaway(&frames).is_some() || closed, "{what}: nothing ended it");
        });
    };
    // Row 13: opened and reset at once, many in one write.
    run(&mut scene, "rapid reset", || {
        Box::new((0..200_u32).map(|round| {
            let one = |n: u32| {
                let id = 2 * (round * 100 + n) + 1;
                [h2(1, 4, id, &post_map()), h2(3, 0, id, &8_u32.to_be_bytes())].concat()
            };
            (0..100).flat_map(one).collect()
        }))
    });
    // Row 14: a head that never ends, one of a megabyte, and a window beyond 2^31.
    run(&mut scene, "CONTINUATION flood", || {
        let head = h2(1, 0, 1, &post_map());
        Box::new(std::iter::once(head).chain((0..4000).map(|_| h2(9, 0, 1, &[0x00; 16_000]))))
    });
    run(&mut scene, "long header list", || {
        let field = [&[0x00, 1, b'a', 127, 0x81, 0x7c], [b'x'; 16_000].as_slice()].concat();
        let head = [post_map(), field.clone()].concat();
        let rest = (0..64).map(move |n| h2(9, if n == 63 { 4 } else { 0 }, 1, &field));
        Box::new(std::iter::once(h2(1, 0, 1, &head)).chain(rest))
    });
    run(&mut scene, "window overflow", || {
        Box::new((0..2).map(|_| h2(8, 0, 0, &0x7fff_ffff_u32.to_be_bytes())))
    });
    // PING and SETTINGS of somebody who never reads the answers: held up by TCP, then cut off.
    flat(&mut scene, "unread answers", |scene| {
        block_inside(&scene.attacker, || async {
            for flood in [h2(6, 0, 0, b"pingping"), h2(4, 0, 0, &[])] {
                let (mut stream, mut keys) = raw().await;
                let mut out = Vec::new();
                keys.sealer.seal(&preface(), &mut out).unwrap();
                keys.sealer.seal(&flood.repeat(600_000), &mut out).unwrap();
                let _ = timeout(SOON, stream.write_all(&out)).await;
            }
        });
    });
    // The budget of a connection: 64 bodies of most of a megabyte, begun and never ended.
    flat(&mut scene, "open bodies", |scene| {
        block_inside(&scene.attacker, || async {
            let mut held = Vec::new();
            for _ in 0..8 {
                let mut send = stalling().await;
                for _ in 0..64 {
                    let chunk = hyper::body::Frame::data(Bytes::from(vec![b' '; 900_000]));
                    let body = stream::iter([Ok::<_, std::io::Error>(chunk)]).chain(stream::pending());
                    let body = StreamBody::new(body.boxed());
                    let request = http::Request::post("https://unused/machine/map").body(body).unwrap();
                    held.push(tokio::spawn(send.send_request(request)));
                }
            }
            // So long that without a bound everything would be there.
            let any = futures_util::future::select_all(held);
            assert!(timeout(SOON, any).await.is_err(), "a body without end was answered");
        });
    });
}

type Stalled = StreamBody<stream::BoxStream<'static, Result<hyper::body::Frame<Bytes>, std::io::Error>>>;

/// An HTTP/2 client of ours that keeps to the windows it is given.
async fn stalling() -> hyper::client::conn::http2::SendRequest<Stalled> {
    let machine = Machine::new("mallory").machine;
    let (handshake, initiation) =
        ClientHandshake::new(&machine, &server_key().await, CapVer::OURS, &mut Rng::from_os());
    let mut stream = TcpStream::connect(PLAIN).await.unwrap();
    stream.write_all(&upgrade_head(&initiation)).await.unwrap();
    skip_head(&mut stream, "HTTP/1.1 101").await;
    let noise = handshake.finish(stream).await.unwrap();
    let io = TokioIo::new(noise);
    let (send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    send
}

/// One plain request; its answer's first line, or "closed".
async fn first_line(request: &[u8]) -> String {
    let mut stream = TcpStream::connect(PLAIN).await.unwrap();
    stream.write_all(request).await.unwrap();
    let (got, _) = drain(&mut stream, Duration::from_secs(2)).await;
    let text = String::from_utf8_lossy(&got).into_owned();
    text.lines().next().unwrap_or("closed").to_owned()
}

#[test]
fn smuggled_requests_and_broken_upgrades_are_refused() {
    let mut scene = scene("smuggling");
    flat(&mut scene, "smuggling", |scene| {
        block_inside(&scene.attacker, || async {
            let huge = "Transfer-Encoding: chunked\r\n\r\n8000000000000000\r\nx";
            let requests = [
                ("two lengths", "POST /keys HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde".to_owned()),
                ("odd coding", "POST /keys HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n".to_owned()),
                ("line break", "GET /key?v=1 HTTP/1.1\r\nHost: x\r\nX-A: a\n b\r\n\r\n".to_owned()),
                ("space before colon", "GET /key?v=1 HTTP/1.1\r\nHost : x\r\n\r\n".to_owned()),
                ("huge chunk", format!("POST /keys HTTP/1.1\r\nHost: x\r\n{huge}")),
                // Rows 16, 18, 96: other names and other people's addresses change nothing.
                ("absolute form", "GET http://127.0.0.1/metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-For: 127.0.0.1\r\n\r\n".to_owned()),
                ("spoofed proxy", "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-For: 127.0.0.1\r\nX-Real-IP: 127.0.0.1\r\n\r\n".to_owned()),
                ("traversal", "GET /static/../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
            ];
            for (what, request) in requests {
                let line = first_line(request.as_bytes()).await;
                let refused = ["HTTP/1.1 4", "HTTP/1.1 308", "closed"].iter().any(|s| line.starts_with(s));
                assert!(refused, "{what}: {line}");
            }
            // Row 17: what is odd but legal is served.
            for legal in [
                "GET /key?v=145 HTTP/1.0\r\nHost: x\r\n\r\n",
                "GET /key?v=145 HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n",
            ] {
                let line = first_line(legal.as_bytes()).await;
                assert!(line.contains(" 200 "), "{legal:?}: {line}");
            }
            // Row 15: the wrong subprotocol; unmasked; a message of a gigabyte.
            let ws = |path: &str, protocol: &str| {
                format!(
                    "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
                     Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
                )
            };
            let line = first_line(ws("/ts2021?X-Tailscale-Handshake=AAAA", "chat").as_bytes()).await;
            assert!(line.starts_with("HTTP/1.1 400"), "{line}");
            for bad in [
                [0x82, 3, 1, 2, 3].as_slice(),
                &[0x82, 0xff, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0],
                &[0xf2, 0x80, 0, 0, 0, 0],
            ] {
                let mut stream = TcpStream::connect(PLAIN).await.unwrap();
                stream.write_all(ws("/derp", "derp").as_bytes()).await.unwrap();
                skip_head(&mut stream, "HTTP/1.1 101").await;
                stream.write_all(bad).await.unwrap();
                assert!(drain(&mut stream, SOON).await.1, "{bad:?} is not refused");
            }
        });
    });
}

/// A relay connection in the raw, in front of the login; gives the relay's key too.
async fn derp() -> (TcpStream, tsd::keys::DerpPublic) {
    let mut stream = TcpStream::connect(PLAIN).await.unwrap();
    let head = "GET /derp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    skip_head(&mut stream, "HTTP/1.1 101").await;
    match next_frame(&mut stream).await.unwrap() {
        Frame::ServerKey(key) => (stream, key),
        other => panic!("{other:?}"),
    }
}

async fn next_frame(stream: &mut TcpStream) -> Option<Frame> {
    let mut head = [0; HEADER_LEN];
    stream.read_exact(&mut head).await.ok()?;
    let header = Header::parse(&head)?;
    let mut payload = vec![0; header.len as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Frame::parse(header.kind, payload.into()).ok()
}

async fn logged_in(key: &NodePrivate) -> TcpStream {
    let (mut stream, relay) = derp().await;
    let hello = client_info(key, &relay, &ClientInfo::ours(), &mut Rng::from_os());
    stream.write_all(&hello.encode()).await.unwrap();
    assert!(matches!(next_frame(&mut stream).await, Some(Frame::ServerInfo(_))), "the relay admits us");
    stream
}

#[test]
fn relay_frames_that_break_the_rules_and_readers_that_stop() {
    let mut scene = scene("hostile relay frames");
    flat(&mut scene, "relay", |scene| {
        let (url, key) = (scene.server.url.clone(), scene.key.clone());
        block_inside(&scene.attacker, move || async move {
            let mut rng = Rng::from_os();
            // Rows 37 and 38, before the login: other keys' boxes, other frames, absurd lengths.
            let stranger = NodePrivate::generate(&mut rng);
            let (_, relay) = derp().await;
            let Frame::ClientInfo { sealed, .. } =
                client_info(&stranger, &relay, &ClientInfo::ours(), &mut rng)
            else {
                panic!("another frame");
            };
            let stolen = Frame::ClientInfo { key: NodePublic::from_bytes([7; 32]), sealed }.encode();
            let known = client_info(&stranger, &relay, &ClientInfo::ours(), &mut rng).encode();
            let early =
                Frame::SendPacket { to: stranger.public(), packet: Bytes::from_static(b"x") }.encode();
            let long = Header { kind: kind::CLIENT_INFO, len: u32::MAX }.encode().to_vec();
            let large = Header { kind: kind::CLIENT_INFO, len: 200_000 }.encode().to_vec();
            for (what, bytes) in
                [("stolen", stolen), ("stranger", known), ("early", early), ("long", long), ("large", large)]
            {
                let (mut stream, _) = derp().await;
                stream.write_all(&bytes).await.unwrap();
                let (got, closed) = drain(&mut stream, SOON).await;
                assert!(closed && got.is_empty(), "{what}: closed={closed}, {} bytes", got.len());
            }
            let mut alice = Machine::new("alice");
            let mut bob = Machine::new("bob");
            alice.register(&url, &key).await.unwrap();
            bob.register(&url, &key).await.unwrap();
            // Row 38, logged in: absurd lengths and mesh frames end it; unknown frames are skipped.
            for bad in [
                Header { kind: kind::SEND_PACKET, len: u32::MAX }.encode().to_vec(),
                Header { kind: 0x77, len: u32::MAX }.encode().to_vec(),
                Frame::WatchConns.encode(),
                Frame::ClosePeer(bob.node.public()).encode(),
            ] {
                let mut stream = logged_in(&alice.node).await;
                stream.write_all(&bad).await.unwrap();
                assert!(drain(&mut stream, SOON).await.1, "{bad:?} is not refused");
            }
            let mut stream = logged_in(&alice.node).await;
            let mut bytes = [Header { kind: 0x77, len: 9 }.encode().to_vec(), vec![0; 9]].concat();
            // A packet to itself comes back; a thousand to nobody give a few answers.
            let to_self =
                Frame::SendPacket { to: alice.node.public(), packet: Bytes::from_static(b"to myself") };
            to_self.encode_into(&mut bytes);
            let disco = [b"TS\xf0\x9f\x92\xac".as_slice(), &[0; 100]].concat();
            for n in 0..1000_u16 {
                let mut nobody = [3; 32];
                nobody[..2].copy_from_slice(&n.to_be_bytes());
                let to = NodePublic::from_bytes(nobody);
                Frame::SendPacket { to, packet: Bytes::from(disco.clone()) }.encode_into(&mut bytes);
            }
            Frame::Ping([5; 8]).encode_into(&mut bytes);
            stream.write_all(&bytes).await.unwrap();
            let (mut gone, mut echoed) = (0, false);
            loop {
                match timeout(SOON, next_frame(&mut stream)).await.expect("the pong comes").unwrap() {
                    Frame::PeerGone { .. } => gone += 1,
                    Frame::RecvPacket { packet, .. } => echoed |= packet == b"to myself".as_slice(),
                    Frame::Pong(data) if data == [5; 8] => break,
                    _ => {}
                }
            }
            assert!(echoed && gone <= 8, "echoed={echoed}, {gone} notices");
            // Row 41: bob stops reading. He is cut off; alice still has her connection.
            let mut idle = logged_in(&bob.node).await;
            let packet =
                Frame::SendPacket { to: bob.node.public(), packet: Bytes::from(vec![1; 60_000]) }.encode();
            let start = std::time::Instant::now();
            let mut told = false;
            while !told && start.elapsed() < Duration::from_secs(20) {
                for _ in 0..20 {
                    timeout(SOON, stream.write_all(&packet))
                        .await
                        .expect("the sender is not held up")
                        .unwrap();
                }
                stream.write_all(&Frame::Ping([6; 8]).encode()).await.unwrap();
                loop {
                    match timeout(SOON, next_frame(&mut stream)).await.expect("the pong comes").unwrap() {
                        Frame::PeerGone { key, .. } => told |= key == bob.node.public(),
                        Frame::Pong(_) => break,
                        _ => {}
                    }
                }
            }
            assert!(told, "who reads nothing is still connected");
            println!("cut off after {:?}", start.elapsed());
            assert!(drain(&mut idle, SOON).await.1);
        });
    });
}

#[test]
fn what_a_node_says_of_itself_is_filtered_and_who_is_removed_is_out() {
    let scene = scene("hostile nodes");
    let (url, key) = (scene.server.url.clone(), scene.key.clone());
    let before = block_inside(&scene.attacker, move || async move {
        let mut evil = Machine::new("evil");
        let mut good = Machine::new("good");
        let map = |node: &Machine, more: MapRequest| {
            let disco = tsd::keys::DiscoPrivate::generate(&mut Rng::from_os()).public();
            let request =
                MapRequest { version: CapVer::OURS, node_key: node.node.public(), disco_key: disco, ..more };
            serde_json::to_vec(&request).unwrap()
        };
        // Row 34: a clock decades ahead; the server decides when a login ends.
        let mut request = evil.request(&key);
        request.expiry = chrono::DateTime::from_timestamp(2_100_000_000, 0);
        request.hostinfo.as_mut().unwrap().ipn_version = "secret-version".into();
        let answer = evil.client(&url).register(&request).await.unwrap();
        assert!(answer.machine_authorized, "{answer:?}");
        good.register(&url, &key).await.unwrap();
        // Row 23: ten thousand endpoints, most of them nonsense.
        let mut endpoints: Vec<std::net::SocketAddr> = (1..=10_000_u32)
            .map(|n| std::net::SocketAddr::from(((0x0101_0000 + n).to_be_bytes(), 41_641)))
            .collect();
        for bad in [
            "127.0.0.1:1",
            "[::1]:1",
            "224.0.0.1:5",
            "0.0.0.0:0",
            "255.255.255.255:9",
            "[fd7a:115c:a1e0::1]:9",
        ] {
            endpoints.insert(0, bad.parse().unwrap());
        }
        let mut channel = Channel::open(&evil, CapVer::OURS).await.unwrap();
        let update = MapRequest { endpoints, omit_peers: true, ..MapRequest::default() };
        let (status, _) = channel.post("/machine/map", map(&evil, update)).await.unwrap();
        assert_eq!(status, 200);
        let mut other = Channel::open(&good, CapVer::OURS).await.unwrap();
        let ask = map(&good, MapRequest::default());
        let (_, body) = other.post("/machine/map", ask).await.unwrap();
        let seen: MapResponse = serde_json::from_slice(&body[4..]).unwrap();
        let peers = seen.peers.unwrap();
        let shown = peers.iter().find(|p| p.name.starts_with("evil")).expect("the peer is shown");
        assert_eq!(shown.endpoints.len(), 64);
        for endpoint in &shown.endpoints {
            assert!(endpoint.ip().to_string().starts_with("1.1."), "{endpoint} is passed on");
        }
        let text = String::from_utf8_lossy(&body).into_owned();
        assert!(!text.contains("secret-version") && !text.contains("\"lab\""), "peers read too much: {text}");
        evil
    });
    assert_eq!(scene.server.nodes().len(), 2);
    scene.server.ok(&["nodes", "delete", "evil"]);
    let url = scene.server.url.clone();
    block_inside(&scene.attacker, move || async move {
        let mut evil = before;
        // Row 33: no map for who was removed. Row 26: and no way back without a login.
        let mut channel = Channel::open(&evil, CapVer::OURS).await.unwrap();
        let map = MapRequest {
            version: CapVer::OURS,
            node_key: evil.node.public(),
            stream: true,
            ..MapRequest::default()
        };
        let (status, _) = channel.post("/machine/map", serde_json::to_vec(&map).unwrap()).await.unwrap();
        assert_eq!(status, 404);
        let mut again = evil.request("");
        again.auth = None;
        let answer = evil.client(&url).register(&again).await.unwrap();
        assert!(!answer.machine_authorized && answer.auth_url.contains("/a/"), "{answer:?}");
    });
    let names: Vec<_> = scene.server.nodes().iter().map(|n| n["name"].clone()).collect();
    assert_eq!(names, ["good"], "a ghost");
}

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

/// Sockets a process holds: also counts what was upgraded, which `tsd_http_connections` does not.
fn sockets(pid: u32) -> usize {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = files.filter_map(|f| std::fs::read_link(f.ok()?.path()).ok());
    targets.filter(|t| t.to_string_lossy().starts_with("socket:")).count()
}

fn wait_sockets(pid: u32, idle: usize) {
    eventually("reset connections are gone", Duration::from_secs(1), || match sockets(pid) {
        n if n <= idle => Ok(()),
        n => Err(format!("{n} sockets, {idle} before")),
    });
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
        let ask = MapRequest {
            version: CapVer::OURS,
            node_key: good.node.public(),
            stream: true,
            ..MapRequest::default()
        };
        let client = good.client(&url);
        let mut stream = client.poll(&ask).await.unwrap();
        let map = timeout(SOON, stream.next()).await.unwrap().unwrap().unwrap();
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
        let ask = MapRequest {
            version: CapVer::OURS,
            node_key: machine.node.public(),
            stream: true,
            ..MapRequest::default()
        };
        let client = machine.client(&url);
        let mut stream = client.poll(&ask).await.unwrap();
        let map = timeout(SOON, stream.next()).await.unwrap().unwrap().unwrap();
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
