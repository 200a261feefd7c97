//! Proof 8 against the running server, one layer deeper than `scenario_hostile`: records, HTTP/2 frames,
//! upgrades and relay frames that break the rules, and what a node may make its peers see. Row numbers are
//! those of docs/hostile.md. After each attack an honest machine still gets in and memory has stayed flat.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http_body_util::StreamBody;
use hyper_util::rt::{TokioExecutor, TokioIo};
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
use tsd::wire::{CapVer, MapRequest, MapResponse};

use crate::machines::{Machine, block_inside};
use crate::scenario_hostile::{Channel, PLAIN, Scene, scene, server_key, upgrade_head};
use crate::world::eventually;

/// Memory the attacks of one test may leave behind or need.
pub const FLAT_KIB: u64 = 48 << 10;

/// The most memory the server ever held.
pub fn peak_kib(scene: &mut Scene) -> u64 {
    let pid = scene.server.process().pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Sockets a process holds: also counts what was upgraded, which `tsd_http_connections` does not.
pub fn sockets(pid: u32) -> usize {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = files.filter_map(|f| std::fs::read_link(f.ok()?.path()).ok());
    targets.filter(|t| t.to_string_lossy().starts_with("socket:")).count()
}

pub fn wait_sockets(pid: u32, idle: usize) {
    eventually("reset connections are gone", Duration::from_secs(1), || match sockets(pid) {
        n if n <= idle => Ok(()),
        n => Err(format!("{n} sockets, {idle} before")),
    });
}

/// Runs an attack and asserts that the server's memory stays flat and that it still serves.
pub fn flat(scene: &mut Scene, what: &str, attack: impl FnOnce(&Scene)) {
    let before = peak_kib(scene);
    attack(scene);
    let after = peak_kib(scene);
    println!("{what}: {before} KiB before, {after} KiB after");
    assert!(after < before + FLAT_KIB, "{what}: memory went from {before} to {after} KiB");
    scene.still_serves(what);
}

/// A Noise connection in the raw, behind the handshake.
pub async fn raw() -> (TcpStream, Keys) {
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

pub async fn skip_head(stream: &mut TcpStream, want: &str) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    assert!(head.starts_with(want), "{head}");
}

/// What comes until the server closes, or for `limit`; whether it closed.
pub async fn drain(stream: &mut (impl tokio::io::AsyncRead + Unpin), limit: Duration) -> (Vec<u8>, bool) {
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

pub fn opened(opener: &mut Opener, mut bytes: &[u8]) -> Vec<u8> {
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
pub fn h2(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut out = vec![len[1], len[2], len[3], kind, flags];
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

pub fn preface() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), h2(4, 0, 0, &[])].concat()
}

/// `POST https://x/machine/map` by the static table (RFC 7541 appendix A).
pub fn post_map() -> Vec<u8> {
    [&[0x83, 0x87, 0x04, 12], b"/machine/map".as_slice(), &[0x01, 1, b'x']].concat()
}

/// The frames in what came back, without the early payload.
pub fn frames(text: &[u8]) -> Vec<(u8, u8, Vec<u8>)> {
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

pub const SOON: Duration = Duration::from_secs(5);

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
pub async fn h2_attack(parts: impl Iterator<Item = Vec<u8>>) -> (Vec<(u8, u8, Vec<u8>)>, bool) {
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

pub fn goaway(frames: &[(u8, u8, Vec<u8>)]) -> Option<u32> {
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
pub async fn stalling() -> hyper::client::conn::http2::SendRequest<Stalled> {
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
pub async fn first_line(request: &[u8]) -> String {
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
pub async fn derp() -> (TcpStream, tsd::keys::DerpPublic) {
    let mut stream = TcpStream::connect(PLAIN).await.unwrap();
    let head = "GET /derp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    skip_head(&mut stream, "HTTP/1.1 101").await;
    match next_frame(&mut stream).await.unwrap() {
        Frame::ServerKey(key) => (stream, key),
        other => panic!("{other:?}"),
    }
}

pub async fn next_frame(stream: &mut TcpStream) -> Option<Frame> {
    let mut head = [0; HEADER_LEN];
    stream.read_exact(&mut head).await.ok()?;
    let header = Header::parse(&head)?;
    let mut payload = vec![0; header.len as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Frame::parse(header.kind, payload.into()).ok()
}

pub async fn logged_in(key: &NodePrivate) -> TcpStream {
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
