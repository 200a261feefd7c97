//! Against a server made of the other half of the channel: a listener on loopback, `noise::stream::accept`
//! and hyper's HTTP/2.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;

use base64::Engine as _;
use futures_util::StreamExt as _;
use http_body_util::StreamBody;
use http_body_util::combinators::BoxBody;
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::noise::stream::accept;

type Body = BoxBody<Bytes, Infallible>;

/// What the fake server saw and how it behaves.
struct Fake {
    private: MachinePrivate,
    /// What `/key` says; another key than `private`'s is a server in the middle.
    shown: MachinePublic,
    upgrade_status: u16,
    handshakes: AtomicUsize,
    keys: AtomicUsize,
    paths: Mutex<Vec<String>>,
    machine: Mutex<Option<MachinePublic>>,
    /// Open connections, to cut them.
    open: Mutex<JoinSet<()>>,
}

fn machine() -> MachinePrivate {
    MachinePrivate::from_bytes([0x22; 32])
}

fn fake() -> Fake {
    let private = MachinePrivate::from_bytes([0x11; 32]);
    Fake {
        shown: private.public(),
        private,
        upgrade_status: 101,
        handshakes: AtomicUsize::new(0),
        keys: AtomicUsize::new(0),
        paths: Mutex::new(Vec::new()),
        machine: Mutex::new(None),
        open: Mutex::new(JoinSet::new()),
    }
}

/// Serves `fake`; ends when the set is dropped.
async fn serve(fake: &Arc<Fake>) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut task = JoinSet::new();
    let fake = Arc::clone(fake);
    task.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let one = connection(Arc::clone(&fake), stream);
            fake.open.lock().spawn(one);
        }
    });
    (address, task)
}

async fn connection(fake: Arc<Fake>, stream: TcpStream) {
    let mut io = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if io.read_line(&mut head).await.unwrap() == 0 {
            return;
        }
    }
    if !head.starts_with("POST /ts2021 HTTP/1.1\r\n") {
        fake.paths.lock().push(head.lines().next().unwrap().to_owned());
        fake.keys.fetch_add(1, Ordering::SeqCst);
        let keys = ServerKeys { public_key: fake.shown, ..ServerKeys::default() };
        let json = serde_json::to_string(&keys).unwrap();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{json}", json.len());
        io.write_all(answer.as_bytes()).await.unwrap();
        return;
    }
    if fake.upgrade_status != 101 {
        let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 12\r\n\r\nno such page";
        io.write_all(answer.as_bytes()).await.unwrap();
        return;
    }
    assert!(head.contains("\r\nUpgrade: tailscale-control-protocol\r\n"));
    let line = head.lines().find_map(|l| l.strip_prefix("X-Tailscale-Handshake: "));
    let standard = base64::engine::general_purpose::STANDARD;
    let initiation = standard.decode(line.unwrap()).unwrap();
    io.write_all(b"HTTP/1.1 101 x\r\nUpgrade: tailscale-control-protocol\r\n\r\n").await.unwrap();
    let mut rng = Rng::from_seed([3; 32]);
    let early = Some(&b"{}"[..]);
    let Ok((noise, peer)) = accept(io, &initiation, &fake.private, early, &mut rng).await else {
        return;
    };
    *fake.machine.lock() = Some(peer.machine());
    fake.handshakes.fetch_add(1, Ordering::SeqCst);
    let service = service_fn(|request| answer(Arc::clone(&fake), request));
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(noise), service)
        .await;
}

fn whole(status: u16, body: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(body.to_owned())).boxed();
    Response::builder().status(status).body(body).unwrap()
}

async fn answer(fake: Arc<Fake>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    fake.paths.lock().push(format!("{method} {path}"));
    let body = request.into_body().collect().await.unwrap().to_bytes();
    Ok(match path.as_str() {
        "/machine/register" => {
            let asked: RegisterRequest = serde_json::from_slice(&body).unwrap();
            match asked.tailnet.as_str() {
                "limited" => {
                    let mut answer = whole(429, "slowly\nplease");
                    let wait = http::HeaderValue::from_static("7");
                    answer.headers_mut().insert(header::RETRY_AFTER, wait);
                    answer
                }
                "huge" => whole(200, &" ".repeat(MAX_ANSWER + 1)),
                _ => whole(200, r#"{"MachineAuthorized":true,"AuthURL":"https://a/b?c=1&d=2"}"#),
            }
        }
        "/machine/map" => {
            let asked: MapRequest = serde_json::from_slice(&body).unwrap();
            if asked.omit_peers {
                return Ok(whole(200, ""));
            }
            if asked.compress.is_empty() {
                return Ok(whole(404, "no such node"));
            }
            let frames = [r#"{"KeepAlive":true}"#, r#"{"Domain":"tail.example"}"#].map(|json| {
                let packed = zstd::bulk::compress(json.as_bytes(), 3).unwrap();
                let framed = [&(packed.len() as u32).to_le_bytes()[..], &packed].concat();
                Ok(Frame::data(Bytes::from(framed)))
            });
            let frames = futures_util::stream::iter(frames).chain(futures_util::stream::pending());
            Response::new(http_body_util::BodyExt::boxed(StreamBody::new(frames)))
        }
        "/ping" => whole(200, ""),
        _ => whole(501, "not here"),
    })
}

fn client(address: SocketAddr) -> ControlClient {
    let options = DialOptions { mark: None, roots: Arc::new(rustls::RootCertStore::empty()) };
    let url = format!("http://{address}");
    ControlClient::new(&url, machine(), options, Rng::from_seed([4; 32])).unwrap()
}

fn long_poll() -> MapRequest {
    MapRequest { stream: true, compress: "zstd".to_owned(), ..MapRequest::default() }
}

#[tokio::test]
async fn register_update_and_poll_share_one_connection_and_one_key() {
    let fake = Arc::new(fake());
    let (address, _server) = serve(&fake).await;
    let client = client(address);

    let registered = client.register(&RegisterRequest::default()).await.unwrap();
    assert!(registered.machine_authorized);
    assert_eq!(registered.auth_url, "https://a/b?c=1&d=2");
    let lite = MapRequest { omit_peers: true, ..MapRequest::default() };
    client.update(&lite).await.unwrap();
    let mut stream = client.poll(&long_poll()).await.unwrap();
    assert!(stream.next().await.unwrap().unwrap().keep_alive);
    assert_eq!(stream.next().await.unwrap().unwrap().domain, "tail.example");
    client.answer_ping("https://unused/ping", true, None).await.unwrap();
    let body = Some(b"HTTP/1.1 200 OK\r\n\r\n".to_vec());
    client.answer_ping("https://unused/ping", true, body).await.unwrap();

    assert_eq!(*fake.machine.lock(), Some(machine().public()));
    assert_eq!(fake.handshakes.load(Ordering::SeqCst), 1);
    assert_eq!(fake.keys.load(Ordering::SeqCst), 1);
    assert_eq!(
        *fake.paths.lock(),
        [
            "GET /key?v=145 HTTP/1.1",
            "POST /machine/register",
            "POST /machine/map",
            "POST /machine/map",
            "HEAD /ping",
            "POST /ping"
        ]
    );
}

#[tokio::test]
async fn a_ping_outside_noise_goes_over_http() {
    let fake = Arc::new(fake());
    let (address, _server) = serve(&fake).await;
    let url = format!("http://{address}/pong?x=1");
    client(address).answer_ping(&url, false, None).await.unwrap();
    assert_eq!(*fake.paths.lock(), ["HEAD /pong?x=1 HTTP/1.1"]);
    assert_eq!(fake.handshakes.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_ping_to_another_host_is_refused() {
    let fake = Arc::new(fake());
    let (address, _server) = serve(&fake).await;
    for url in ["http://169.254.169.254/latest/meta-data/", "http://localhost:22/", "http://127.0.0.2/"] {
        let refused = client(address).answer_ping(url, false, Some(Vec::new())).await.unwrap_err();
        assert!(matches!(refused, ControlError::Foreign(_)), "{url}: {refused}");
    }
    assert!(fake.paths.lock().is_empty());
}

#[tokio::test]
async fn a_lost_or_reset_connection_is_dialled_anew_with_the_same_key() {
    let fake = Arc::new(fake());
    let (address, _server) = serve(&fake).await;
    let client = client(address);
    let mut stream = client.poll(&long_poll()).await.unwrap();
    assert!(stream.next().await.unwrap().is_some());
    assert!(stream.next().await.unwrap().is_some());

    fake.open.lock().abort_all();
    assert!(stream.next().await.is_err(), "the poll ends with its connection");
    client.register(&RegisterRequest::default()).await.unwrap();
    assert_eq!(fake.handshakes.load(Ordering::SeqCst), 2);

    let mut stream = client.poll(&long_poll()).await.unwrap();
    client.reset();
    let ended = async { while let Ok(Some(_)) = stream.next().await {} };
    ended.await;
    client.register(&RegisterRequest::default()).await.unwrap();
    assert_eq!(fake.handshakes.load(Ordering::SeqCst), 3);
    assert_eq!(fake.keys.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn statuses_come_with_their_text_and_wait() {
    let fake = Arc::new(fake());
    let (address, _server) = serve(&fake).await;
    let client = client(address);
    let plain = MapRequest { compress: String::new(), ..long_poll() };
    let refused = client.poll(&plain).await.unwrap_err();
    assert_eq!(refused.to_string(), "the server answered 404: no such node");

    let limited = RegisterRequest { tailnet: "limited".to_owned(), ..RegisterRequest::default() };
    match client.register(&limited).await.unwrap_err() {
        ControlError::Status { status, text, retry_after } => {
            assert_eq!((status, text.as_str()), (429, "slowly please"));
            assert_eq!(retry_after, Some(Duration::from_secs(7)));
        }
        other => panic!("{other}"),
    }
    let huge = RegisterRequest { tailnet: "huge".to_owned(), ..RegisterRequest::default() };
    let refused = client.register(&huge).await;
    assert!(matches!(refused, Err(ControlError::Decode(_))));
}

#[tokio::test]
async fn a_server_that_does_not_hold_the_key_is_refused() {
    let mut fake = fake();
    fake.shown = MachinePrivate::from_bytes([0x55; 32]).public();
    let fake = Arc::new(fake);
    let (address, _server) = serve(&fake).await;
    let refused = client(address).register(&RegisterRequest::default()).await;
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("do not agree on the server's key"), "{text}");
    assert_eq!(fake.handshakes.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_server_without_a_key_is_too_old() {
    let mut fake = fake();
    fake.shown = MachinePublic::default();
    let (address, _server) = serve(&Arc::new(fake)).await;
    let refused = client(address).register(&RegisterRequest::default()).await;
    assert!(refused.unwrap_err().to_string().contains("too old"));
}

#[tokio::test]
async fn a_404_to_the_upgrade_is_told_with_the_server() {
    let mut fake = fake();
    fake.upgrade_status = 404;
    let (address, _server) = serve(&Arc::new(fake)).await;
    let refused = client(address).register(&RegisterRequest::default()).await;
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("it answered 404: no such page"), "{text}");
    assert!(text.contains(&address.to_string()));
}

#[tokio::test]
async fn nobody_listening_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let refused = client(address).register(&RegisterRequest::default()).await;
    assert!(matches!(refused, Err(ControlError::Unreachable { .. })));
}

/// A TLS listener with a certificate of its own making, that answers as `fake` does.
async fn serve_tls(fake: &Arc<Fake>) -> (SocketAddr, rustls::RootCertStore, JoinSet<()>) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (inner, mut tasks) = serve(fake).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move {
        let mut all = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            all.spawn(async move {
                let Ok(mut tls) = acceptor.accept(stream).await else {
                    return;
                };
                let mut tcp = TcpStream::connect(inner).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut tls, &mut tcp).await;
            });
        }
    });
    (address, roots, tasks)
}

#[tokio::test]
async fn the_key_needs_a_good_certificate_and_the_channel_none() {
    let fake = Arc::new(fake());
    let (address, roots, _server) = serve_tls(&fake).await;
    let url = format!("https://{address}");
    let none = DialOptions { mark: None, roots: Arc::new(rustls::RootCertStore::empty()) };
    let rng = Rng::from_seed([4; 32]);
    let client = ControlClient::new(&url, machine(), none.clone(), rng.clone()).unwrap();
    let refused = client.register(&RegisterRequest::default()).await;
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("TLS failed"), "{text}");
    assert_eq!(fake.keys.load(Ordering::SeqCst), 0);

    let known = DialOptions { mark: None, roots: Arc::new(roots) };
    let mut client = ControlClient::new(&url, machine(), known, rng).unwrap();
    client.fetch_key().await.unwrap();
    // With no roots at all from here on, the channel itself still comes up.
    client.key = tokio::sync::OnceCell::new_with(Some(fake.private.public()));
    client.options = none;
    client.register(&RegisterRequest::default()).await.unwrap();
    assert_eq!(*client.last.lock(), Some(Way::Tls(address.port())));
}

#[test]
fn retry_after_is_seconds_or_a_date_within_an_hour() {
    let now = Now { wall: "2026-01-01T00:00:00Z".parse().unwrap(), ..Now::read() };
    let wait = |text| parse_retry_after(text, now).map(|d| d.as_secs());
    assert_eq!(wait("30"), Some(30));
    assert_eq!(wait("Thu, 01 Jan 2026 00:01:00 GMT"), Some(60));
    for none in ["0", "-1", "3601", "Wed, 31 Dec 2025 23:59:00 GMT", "soon"] {
        assert_eq!(wait(none), None, "{none}");
    }
}

#[test]
fn a_fault_is_shown_on_one_line_of_two_hundred_characters() {
    assert_eq!(excerpt(b" a\nb\x1b[0m "), "a b [0m");
    assert_eq!(excerpt("ü".repeat(300).as_bytes()).chars().count(), 200);
}

#[test]
fn what_is_asked_may_be_asked_from_any_task() {
    fn sendable<T: Send>(_: &T) {}
    fn shareable<T: Send + Sync + 'static>() {}
    shareable::<ControlClient>();
    shareable::<MapStream>();
    let client = client(SocketAddr::from(([127, 0, 0, 1], 1)));
    let (request, poll) = (RegisterRequest::default(), long_poll());
    sendable(&client.register(&request));
    sendable(&client.poll(&poll));
    sendable(&client.answer_ping("", true, None));
}
