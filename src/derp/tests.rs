//! Server and client together, over in-memory streams and loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::client::{
    DerpClientError, DerpEvent, DerpReceiver, DerpSender, DialOptions, connect, latency, login,
};
use super::frame::{self, Frame, GONE_DISCONNECTED, GONE_NOT_HERE, Header};
use super::handshake::{ClientInfo, client_info};
use super::limits::QUEUE;
use super::server::{Admission, DerpServer};
use super::stream::FrameReader;
use crate::clock::Rng;
use crate::keys::{DerpPrivate, NodePrivate, NodePublic, RegionId};
use crate::wire::{DerpNode, DerpRegion};

/// Admits all but the listed keys.
#[derive(Default)]
struct Except(Mutex<Vec<NodePublic>>);

impl Admission for Except {
    fn admit(&self, key: &NodePublic, _from: SocketAddr) -> bool {
        !self.0.lock().contains(key)
    }
}

struct Relay {
    server: DerpServer,
    refused: Arc<Except>,
    rng: Rng,
}

type Client = (DerpSender, DerpReceiver);

impl Relay {
    fn new() -> Self {
        let mut rng = Rng::from_seed([5; 32]);
        let refused = Arc::new(Except::default());
        Self { server: DerpServer::new(DerpPrivate::generate(&mut rng), refused.clone()), refused, rng }
    }

    fn dial(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(4096);
        let server = self.server.clone();
        tokio::spawn(async move { server.serve(far, remote()).await });
        near
    }

    fn key(&mut self) -> NodePrivate {
        NodePrivate::generate(&mut self.rng)
    }

    async fn join(&mut self, key: &NodePrivate) -> Result<Client, DerpClientError> {
        let near = self.dial();
        login(near, &[], key, &mut self.rng).await
    }

    async fn client(&mut self) -> (NodePublic, DerpSender, DerpReceiver) {
        let key = self.key();
        let (sender, receiver) = self.join(&key).await.unwrap();
        (key.public(), sender, receiver)
    }

    /// Logs in by hand, so that a test can misbehave afterwards.
    async fn raw(&mut self, key: &NodePrivate) -> FrameReader<DuplexStream> {
        let mut near = self.dial();
        let hello = client_info(key, &self.server.public_key(), &ClientInfo::ours(), &mut self.rng);
        near.write_all(&hello.encode()).await.unwrap();
        let mut frames = FrameReader::new(near, &[], frame::plan_from_server);
        assert!(matches!(frames.next().await, Ok(Frame::ServerKey(_))));
        assert!(matches!(frames.next().await, Ok(Frame::ServerInfo(_))));
        frames
    }
}

fn remote() -> SocketAddr {
    "127.0.0.1:9".parse().unwrap()
}

fn disco() -> Bytes {
    let mut bytes = vec![0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac];
    bytes.resize(100, 0);
    bytes.into()
}

async fn next(receiver: &mut DerpReceiver) -> DerpEvent {
    timeout(Duration::from_secs(5), receiver.recv()).await.unwrap().unwrap()
}

async fn ended(receiver: &mut DerpReceiver) {
    let end = timeout(Duration::from_secs(5), receiver.recv()).await.unwrap();
    assert!(end.is_err(), "{end:?}");
}

fn packet(from: NodePublic, bytes: &'static [u8]) -> DerpEvent {
    DerpEvent::Packet { from, bytes: Bytes::from_static(bytes) }
}

#[tokio::test]
async fn packets_are_relayed_both_ways() {
    let mut relay = Relay::new();
    let (a, a_tx, mut a_rx) = relay.client().await;
    let (b, b_tx, mut b_rx) = relay.client().await;

    a_tx.note_preferred(true);
    a_tx.send(b, Bytes::from_static(b"hello"));
    assert_eq!(next(&mut b_rx).await, packet(a, b"hello"));
    b_tx.send(a, Bytes::from_static(b"back"));
    assert_eq!(next(&mut a_rx).await, packet(b, b"back"));

    let stats = relay.server.stats();
    assert_eq!((stats.connections, stats.packets, stats.bytes, stats.dropped), (2, 2, 9, 0));
    assert_eq!(relay.server.home_connections(), 1);
}

#[tokio::test]
async fn the_largest_packet_passes_and_a_larger_one_ends_the_connection() {
    let mut relay = Relay::new();
    let (a, a_tx, _a_rx) = relay.client().await;
    let (b, _b_tx, mut b_rx) = relay.client().await;
    let largest = Bytes::from(vec![9; 65_536]);
    a_tx.send(b, largest.clone());
    assert_eq!(next(&mut b_rx).await, DerpEvent::Packet { from: a, bytes: largest });

    let key = relay.key();
    let mut near = relay.dial();
    let hello = client_info(&key, &relay.server.public_key(), &ClientInfo::ours(), &mut relay.rng);
    near.write_all(&hello.encode()).await.unwrap();
    let header = Header { kind: frame::kind::SEND_PACKET, len: 65_536 + 33 };
    near.write_all(&header.encode()).await.unwrap();
    let mut rest = Vec::new();
    timeout(Duration::from_secs(5), near.read_to_end(&mut rest)).await.unwrap().unwrap();
}

#[tokio::test]
async fn those_who_sent_hear_that_a_peer_left() {
    let mut relay = Relay::new();
    let (_a, a_tx, mut a_rx) = relay.client().await;
    let (b, _b_tx, mut b_rx) = relay.client().await;
    a_tx.send(b, Bytes::from_static(b"x"));
    next(&mut b_rx).await;

    drop(b_rx);

    assert_eq!(next(&mut a_rx).await, DerpEvent::PeerGone { key: b, reason: GONE_DISCONNECTED });
}

#[tokio::test]
async fn only_disco_to_an_unknown_peer_is_answered_and_only_three_times() {
    let mut relay = Relay::new();
    let (a, a_tx, mut a_rx) = relay.client().await;
    let unknown = relay.key().public();
    a_tx.send(unknown, Bytes::from_static(b"data"));
    for _ in 0..10 {
        a_tx.send(unknown, disco());
    }
    // To ourselves, as data: comes after the answers, which precede packets.
    a_tx.send(a, Bytes::from_static(b"end"));
    let mut gone = 0;
    loop {
        match next(&mut a_rx).await {
            DerpEvent::PeerGone { key, reason } => {
                assert_eq!((key, reason), (unknown, GONE_NOT_HERE));
                gone += 1;
            }
            other => {
                assert_eq!(other, packet(a, b"end"));
                break;
            }
        }
    }
    assert_eq!(gone, 3);
    assert_eq!(relay.server.drops().unknown_dest, 11);
}

#[tokio::test]
async fn a_reader_that_stopped_loses_the_oldest_and_holds_no_more_than_its_queue() {
    let mut relay = Relay::new();
    let stuck_key = relay.key();
    // Never read from here on: 4 KiB of stream, then the queue.
    let stuck = relay.raw(&stuck_key).await;
    let (a, a_tx, mut a_rx) = relay.client().await;

    let big = Bytes::from(vec![1; 8192]);
    for _ in 0..4 * QUEUE {
        // Echo through ourselves, so that each packet has arrived before the next one goes.
        a_tx.send(stuck_key.public(), big.clone());
        a_tx.send(a, Bytes::from_static(b"tick"));
        assert_eq!(next(&mut a_rx).await, packet(a, b"tick"));
    }

    // One batch is being written, one queue waits; all else was dropped.
    let dropped = relay.server.drops().queue_head;
    assert!(dropped >= 2 * QUEUE as u64, "{dropped}");
    // The write deadline cuts the stuck reader, which its sender hears.
    assert_eq!(
        next(&mut a_rx).await,
        DerpEvent::PeerGone { key: stuck_key.public(), reason: GONE_DISCONNECTED }
    );
    assert_eq!(relay.server.drops().write_error, 1);
    drop(stuck);
}

#[tokio::test]
async fn the_latest_duplicate_receives_until_the_other_one_speaks() {
    let mut relay = Relay::new();
    let twin = relay.key();
    let (old_tx, mut old_rx) = relay.join(&twin).await.unwrap();
    let (_new_tx, mut new_rx) = relay.join(&twin).await.unwrap();
    let (a, a_tx, mut a_rx) = relay.client().await;

    a_tx.send(twin.public(), Bytes::from_static(b"1"));
    assert_eq!(next(&mut new_rx).await, packet(a, b"1"));
    old_tx.send(a, Bytes::from_static(b"here"));
    assert_eq!(next(&mut a_rx).await, packet(twin.public(), b"here"));
    a_tx.send(twin.public(), Bytes::from_static(b"2"));
    assert_eq!(next(&mut old_rx).await, packet(a, b"2"));
    assert_eq!(relay.server.stats().connections, 3);
}

#[tokio::test]
async fn a_living_relay_answers_pings_and_a_gone_one_does_not() {
    let mut relay = Relay::new();
    let (_a, tx, mut rx) = relay.client().await;
    tokio::spawn(async move { while rx.recv().await.is_ok() {} });
    assert!(tx.ping(Duration::from_secs(5)).await);
    relay.server.shutdown().await;
    assert!(!tx.ping(Duration::from_millis(20)).await);
}

#[tokio::test]
async fn a_refused_key_does_not_get_in() {
    let mut relay = Relay::new();
    let key = relay.key();
    relay.refused.0.lock().push(key.public());
    assert!(relay.join(&key).await.is_err());
    assert_eq!(relay.server.drops().refused, 1);
    assert_eq!(relay.server.stats().connections, 0);
}

#[tokio::test]
async fn a_key_that_cannot_be_proven_does_not_get_in() {
    let mut relay = Relay::new();
    let victim = relay.key().public();
    let thief = relay.key();
    let Frame::ClientInfo { sealed, .. } =
        client_info(&thief, &relay.server.public_key(), &ClientInfo::ours(), &mut relay.rng)
    else {
        panic!("another frame");
    };
    let mut near = relay.dial();
    let stolen = Frame::ClientInfo { key: victim, sealed };
    near.write_all(&stolen.encode()).await.unwrap();
    let mut got = Vec::new();
    near.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, Frame::ServerKey(relay.server.public_key()).encode());
    assert_eq!(relay.server.drops().bad_login, 1);
}

#[tokio::test]
async fn a_removed_node_is_cut() {
    let mut relay = Relay::new();
    let (a, _a_tx, mut a_rx) = relay.client().await;
    let (_b, _b_tx, mut b_rx) = relay.client().await;
    relay.server.close_node(&a);
    ended(&mut a_rx).await;
    let quiet = timeout(Duration::from_millis(20), b_rx.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

#[tokio::test]
async fn mesh_frames_are_refused_and_unknown_ones_skipped() {
    for mesh in [
        Frame::WatchConns,
        Frame::ClosePeer(NodePublic::from_bytes([1; 32])),
        Frame::ForwardPacket {
            from: NodePublic::from_bytes([1; 32]),
            to: NodePublic::from_bytes([2; 32]),
            packet: Bytes::new(),
        },
    ] {
        let mut relay = Relay::new();
        let key = relay.key();
        let mut near = relay.dial();
        let hello = client_info(&key, &relay.server.public_key(), &ClientInfo::ours(), &mut relay.rng);
        let mut bytes = hello.encode();
        Frame::Unknown(0x77).encode_into(&mut bytes);
        Frame::Ping([8; 8]).encode_into(&mut bytes);
        near.write_all(&bytes).await.unwrap();
        let mut frames = FrameReader::new(&mut near, &[], frame::plan_from_server);
        assert!(matches!(frames.next().await, Ok(Frame::ServerKey(_))));
        assert!(matches!(frames.next().await, Ok(Frame::ServerInfo(_))));
        assert_eq!(frames.next().await.unwrap(), Frame::Pong([8; 8]));
        drop(frames);
        near.write_all(&mesh.encode()).await.unwrap();
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, Vec::<u8>::new());
    }
}

#[tokio::test]
async fn shutdown_says_so_and_lets_nobody_in() {
    let mut relay = Relay::new();
    let (_a, _a_tx, mut a_rx) = relay.client().await;
    relay.server.shutdown().await;
    assert_eq!(next(&mut a_rx).await, DerpEvent::Restarting);
    ended(&mut a_rx).await;
    let key = relay.key();
    assert!(relay.join(&key).await.is_err());
}

/// Serves the relay's HTTP face on loopback, with TLS when a certificate is given.
async fn listen(server: &DerpServer, tls: Option<Arc<rustls::ServerConfig>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = server.clone();
    tokio::spawn(async move {
        loop {
            let (tcp, remote) = listener.accept().await.unwrap();
            let (server, tls) = (server.clone(), tls.clone());
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request| {
                    let answer = server.http(request, remote);
                    async move { Ok::<_, std::convert::Infallible>(answer) }
                });
                let http = hyper::server::conn::http1::Builder::new();
                if let Some(config) = tls {
                    let acceptor = tokio_rustls::TlsAcceptor::from(config);
                    if let Ok(io) = acceptor.accept(tcp).await {
                        let served = http.serve_connection(TokioIo::new(io), service);
                        let _ = served.with_upgrades().await;
                    }
                } else {
                    let served = http.serve_connection(TokioIo::new(tcp), service);
                    let _ = served.with_upgrades().await;
                }
            });
        }
    });
    addr
}

async fn ask(addr: SocketAddr, request: &str) -> String {
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    let request = format!("{request}Host: x\r\nConnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut got = String::new();
    tcp.read_to_string(&mut got).await.unwrap();
    got
}

#[tokio::test]
async fn the_http_face_answers_as_clients_expect() {
    let relay = Relay::new();
    let addr = listen(&relay.server, None).await;
    for (request, want) in [
        ("GET /derp HTTP/1.1\r\n", "HTTP/1.1 426 "),
        ("GET /derp/probe HTTP/1.1\r\n", "HTTP/1.1 200 "),
        ("HEAD /derp/latency-check HTTP/1.1\r\n", "HTTP/1.1 200 "),
        ("POST /derp/probe HTTP/1.1\r\n", "HTTP/1.1 405 "),
        ("GET /other HTTP/1.1\r\n", "HTTP/1.1 404 "),
    ] {
        let got = ask(addr, request).await;
        assert!(got.starts_with(want), "{request} {got}");
        assert_eq!(got.contains("access-control-allow-origin: *"), want.contains("200"), "{got}");
    }
    let challenge = "GET /generate_204 HTTP/1.1\r\nX-Tailscale-Challenge: ts_a.b:1-2\r\n";
    let got = ask(addr, challenge).await;
    assert!(got.starts_with("HTTP/1.1 204 "), "{got}");
    assert!(got.contains("x-tailscale-response: response ts_a.b:1-2\r\n"));
    let bad = "GET /generate_204 HTTP/1.1\r\nX-Tailscale-Challenge: <script>\r\n";
    assert!(!ask(addr, bad).await.contains("response"));
}

fn tls_of(name: &str) -> (Arc<rustls::ServerConfig>, rustls_pki_types::CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let der = made.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![der.clone()], key.into())
        .unwrap();
    (Arc::new(config), der)
}

fn region(addr: SocketAddr, change: impl FnOnce(&mut DerpNode)) -> DerpRegion {
    let mut node = DerpNode {
        name: "1a".into(),
        host_name: "relay.example".into(),
        ipv4: addr.ip().to_string(),
        derp_port: addr.port(),
        ..DerpNode::default()
    };
    change(&mut node);
    DerpRegion { region_id: RegionId(1), nodes: vec![node], ..DerpRegion::default() }
}

fn options(root: Option<&rustls_pki_types::CertificateDer<'static>>) -> DialOptions {
    let mut roots = rustls::RootCertStore::empty();
    // A store without roots cannot be used at all.
    let (_, other) = tls_of("other.example");
    roots.add(root.cloned().unwrap_or(other)).unwrap();
    DialOptions { mark: None, roots: Arc::new(roots) }
}

fn pin(der: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    format!("sha256-raw:{}", hex::encode(digest))
}

#[tokio::test]
async fn clients_connect_by_name_pin_and_other_name_and_refuse_the_rest() {
    let mut relay = Relay::new();
    let (config, der) = tls_of("relay.example");
    let addr = listen(&relay.server, Some(config)).await;
    let (trusting, strange) = (options(Some(&der)), options(None));
    let right = pin(&der);
    let wrong = pin(b"another certificate");
    type Change<'a> = &'a dyn Fn(&mut DerpNode);
    let cases: [(&DialOptions, Change<'_>, bool); 8] = [
        (&trusting, &|_| {}, true),
        (&strange, &|_| {}, false),
        (&trusting, &|n| n.host_name = "x.example".into(), false),
        (&strange, &|n| n.cert_name.clone_from(&right), true),
        (&strange, &|n| n.cert_name.clone_from(&wrong), false),
        (&strange, &|n| n.cert_name = "sha256-raw:12".into(), false),
        (&strange, &|n| n.insecure_for_tests = true, true),
        (
            &trusting,
            &|n| {
                n.host_name = "x.example".into();
                n.cert_name = "relay.example".into();
            },
            true,
        ),
    ];
    for (index, (options, change, good)) in cases.into_iter().enumerate() {
        let key = relay.key();
        let got = connect(&region(addr, change), &key, options, &mut relay.rng).await;
        assert_eq!(got.is_ok(), good, "{index} {:?}", got.err());
        if let Ok((sender, mut receiver)) = got {
            sender.send(key.public(), Bytes::from_static(b"me"));
            assert_eq!(next(&mut receiver).await, packet(key.public(), b"me"));
        }
    }
    let node = region(addr, |_| {}).nodes.remove(0);
    assert!(latency(&node, &trusting).await.unwrap() < Duration::from_secs(5));
    assert!(latency(&node, &strange).await.is_err());
}

#[tokio::test]
async fn a_dead_first_node_is_passed_over() {
    let mut relay = Relay::new();
    let (config, der) = tls_of("relay.example");
    let addr = listen(&relay.server, Some(config)).await;
    let mut region = region(addr, |_| {});
    // Bound but never listening: refused at once.
    let unused = tokio::net::TcpSocket::new_v4().unwrap();
    unused.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut dead = region.nodes[0].clone();
    dead.name = "1dead".into();
    dead.derp_port = unused.local_addr().unwrap().port();
    let mut stun = dead.clone();
    stun.stun_only = true;
    region.nodes.splice(0..0, [stun, dead]);
    let key = relay.key();
    assert!(connect(&region, &key, &options(Some(&der)), &mut relay.rng).await.is_ok());
    region.nodes.truncate(1);
    let none = connect(&region, &key, &options(Some(&der)), &mut relay.rng).await;
    assert!(matches!(none.err(), Some(DerpClientError::NoNode(RegionId(1)))));
}

mod browser {
    use super::*;
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::client::IntoClientRequest;

    async fn open(relay: &Relay, protocol: &'static str) -> tokio_tungstenite::WebSocketStream<TcpStream> {
        let addr = listen(&relay.server, None).await;
        let mut request = "ws://relay.example/derp".into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", http::HeaderValue::from_static(protocol));
        let tcp = TcpStream::connect(addr).await.unwrap();
        tokio_tungstenite::client_async(request, tcp).await.unwrap().0
    }

    #[tokio::test]
    async fn a_browser_logs_in_over_binary_messages() {
        let mut relay = Relay::new();
        let key = relay.key();
        let mut socket = open(&relay, "other, derp").await;
        let hello = client_info(&key, &relay.server.public_key(), &ClientInfo::ours(), &mut relay.rng);
        let mut got = Vec::new();
        // The later ones arrive when the server already waits for them.
        for round in 0..3 {
            let mut bytes = if round == 0 { hello.encode() } else { Vec::new() };
            Frame::Ping([round; 8]).encode_into(&mut bytes);
            // Message boundaries mean nothing.
            for piece in bytes.chunks(50) {
                let message = Message::Binary(Bytes::copy_from_slice(piece));
                socket.send(message).await.unwrap();
            }
            let pong = Frame::Pong([round; 8]).encode();
            while !got.ends_with(&pong) {
                let message = timeout(Duration::from_secs(5), socket.next()).await;
                got.extend_from_slice(&message.unwrap().unwrap().unwrap().into_data());
            }
        }
        assert!(got.starts_with(&Frame::ServerKey(relay.server.public_key()).encode()));

        // The official client refuses messages over 32 KiB.
        let (_, sender, _receiver) = relay.client().await;
        sender.send(key.public(), vec![9; 65_536].into());
        let mut left = frame::HEADER_LEN + 32 + 65_536;
        while left > 0 {
            let message = timeout(Duration::from_secs(5), socket.next()).await;
            let data = message.unwrap().unwrap().unwrap().into_data();
            assert!(data.len() <= 32 << 10);
            left -= data.len();
        }
    }

    #[tokio::test]
    async fn text_messages_end_the_connection() {
        let relay = Relay::new();
        let mut socket = open(&relay, "derp").await;
        socket.send(Message::Text("hello".into())).await.unwrap();
        let drained = async { while let Some(Ok(_)) = socket.next().await {} };
        timeout(Duration::from_secs(5), drained).await.unwrap();
    }
}
