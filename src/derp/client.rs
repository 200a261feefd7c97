//! A client of one relay region (dataplane.md 1.8).
//!
//! [`connect`] tries the nodes of a region in order. What is sent waits in bounded queues that drop
//! their oldest packet, so sending never blocks; a task owned by the receiver writes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::frame::{self, Frame, FrameError, MAX_PACKET};
use super::handshake::{ClientInfo, HandshakeError, client_info, open_server_info};
use super::limits::{SILENCE, WRITE_DEADLINE};
use super::outbox::{Outbox, Pace, write_loop, write_now};
use super::stream::{FrameReader, ReadError};
use super::tls::{TlsSetupError, client_config};
use crate::clock::Rng;
use crate::keys::{NodePrivate, NodePublic, RegionId};
use crate::wire::{DerpNode, DerpRegion};

/// All of [`connect`] (dataplane.md 1.1).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// TCP connection to one node while others could be tried.
const NODE_TIMEOUT: Duration = Duration::from_millis(1500);
/// TCP, TLS and login of one node while others could be tried.
const TRY_TIMEOUT: Duration = Duration::from_secs(4);
/// Head start of each address over the next one.
const STAGGER: Duration = Duration::from_millis(200);
/// All of [`latency`].
const LATENCY_TIMEOUT: Duration = Duration::from_secs(5);
/// Unacknowledged data kills a TCP connection after this (dataplane.md 1.4).
const USER_TIMEOUT: Duration = Duration::from_secs(15);
const MAX_HEAD: usize = 8 << 10;
const MAX_ADDRESSES: usize = 8;

/// Why a relay connection failed or ended.
#[derive(Debug, thiserror::Error)]
pub enum DerpClientError {
    /// The stream broke.
    #[error("the relay connection broke: {0}")]
    Io(#[from] std::io::Error),
    /// A frame was malformed.
    #[error("the relay sent a bad frame: {0}")]
    Frame(#[from] FrameError),
    /// The login failed.
    #[error("the relay login failed: {0}")]
    Handshake(#[from] HandshakeError),
    /// The node cannot be verified as the map describes it.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    /// The relay did not answer the upgrade.
    #[error("the relay answered {0:?} instead of upgrading; is this a DERP server?")]
    Http(String),
    /// Too slow.
    #[error("the relay did not answer in time")]
    Timeout,
    /// 120 s without a frame.
    #[error("the relay was silent for 120 s")]
    Silence,
    /// Nothing to dial.
    #[error("DERP node {0:?} has no address to dial; fix the DERP map or DNS")]
    NoAddress(String),
    /// No node relays.
    #[error("DERP region {0} has no node that relays; fix the DERP map")]
    NoNode(RegionId),
    /// We ended it.
    #[error("the relay connection is closed")]
    Closed,
}

impl From<ReadError> for DerpClientError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(io) => io.into(),
            ReadError::Frame(frame) => frame.into(),
        }
    }
}

/// What a relay says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DerpEvent {
    /// A packet of a peer.
    Packet {
        /// Sender.
        from: NodePublic,
        /// Payload.
        bytes: Bytes,
    },
    /// A peer left (reason 0) or was never here (reason 1).
    PeerGone {
        /// Who.
        key: NodePublic,
        /// Why.
        reason: u8,
    },
    /// A text about the relay's health; empty is healthy.
    Health(String),
    /// The relay restarts; connection loss is expected.
    Restarting,
}

/// The sending half; cheap to clone, never blocks: a full queue drops its oldest packet.
#[derive(Clone)]
pub struct DerpSender {
    outbox: Arc<Outbox>,
    pongs: Arc<watch::Sender<u64>>,
}

impl DerpSender {
    /// Queues a packet for `to`. Packets no relay takes, and all after the end, are dropped.
    pub fn send(&self, to: NodePublic, bytes: Bytes) {
        if bytes.len() <= MAX_PACKET {
            self.outbox.push(to, bytes);
        }
    }

    /// Says whether this region is our home.
    pub fn note_preferred(&self, home: bool) {
        self.outbox.control(Frame::NotePreferred(home));
    }

    /// Whether the relay answers a ping within `wait`; how to test a connection after a network
    /// change. Somebody must be in [`DerpReceiver::recv`] meanwhile.
    pub async fn ping(&self, wait: Duration) -> bool {
        let mut pongs = self.pongs.subscribe();
        self.outbox.control(Frame::Ping([0; 8]));
        matches!(timeout(wait, pongs.changed()).await, Ok(Ok(())))
    }
}

/// The receiving half. Dropping it ends the connection.
pub struct DerpReceiver {
    frames: FrameReader<Box<dyn AsyncRead + Send + Unpin>>,
    outbox: Arc<Outbox>,
    pongs: Arc<watch::Sender<u64>>,
    // One task; aborted on drop.
    writer: JoinSet<std::io::Result<()>>,
    silent_at: Instant,
}

impl Drop for DerpReceiver {
    fn drop(&mut self) {
        self.outbox.close(None);
    }
}

impl DerpReceiver {
    /// The next event; answers pings by itself; an error after 120 s of silence. May be dropped and
    /// called again without losing events.
    ///
    /// # Errors
    /// When the connection ended.
    pub async fn recv(&mut self) -> Result<DerpEvent, DerpClientError> {
        loop {
            let frame = tokio::select! {
                frame = timeout_at(self.silent_at, self.frames.next()) => {
                    frame.map_err(|_| DerpClientError::Silence)??
                }
                ended = self.writer.join_next() => {
                    return Err(match ended {
                        Some(Ok(Err(error))) => error.into(),
                        _ => DerpClientError::Closed,
                    });
                }
            };
            self.silent_at = in_future(SILENCE);
            return Ok(match frame {
                Frame::RecvPacket { from, packet } => DerpEvent::Packet { from, bytes: packet },
                Frame::PeerGone { key, reason } => DerpEvent::PeerGone { key, reason },
                Frame::Health(text) => DerpEvent::Health(text),
                Frame::Restarting { .. } => DerpEvent::Restarting,
                Frame::Ping(data) => {
                    self.outbox.pong(data);
                    continue;
                }
                Frame::Pong(_) => {
                    self.pongs.send_modify(|seen| *seen = seen.wrapping_add(1));
                    continue;
                }
                // Keepalives only count as life; a ServerKey comes late after a fast start.
                _ => continue,
            });
        }
    }
}

/// How to reach the outside: marks sockets so that they bypass the tunnel, and which roots to trust.
#[derive(Clone)]
pub struct DialOptions {
    /// `SO_MARK` for every socket, when we may set it.
    pub mark: Option<u32>,
    /// Roots for ordinary certificates.
    pub roots: Arc<rustls::RootCertStore>,
}

/// Connects to the first node of `region` that answers: TCP, TLS (name, `sha256-raw:` pin or
/// insecure), upgrade, DERP handshake; 10 s in all.
///
/// # Errors
/// When no node of the region could be reached or verified.
pub async fn connect(
    region: &DerpRegion,
    key: &NodePrivate,
    options: &DialOptions,
    rng: &mut Rng,
) -> Result<(DerpSender, DerpReceiver), DerpClientError> {
    let nodes: Vec<_> = region.nodes.iter().filter(|n| !n.stun_only).collect();
    let ideal = region.nodes.first().map(|n| n.name.as_str());
    let all = async {
        let mut error = DerpClientError::NoNode(region.region_id);
        for (index, node) in nodes.iter().enumerate() {
            let more = index + 1 < nodes.len();
            let (dial, whole) =
                if more { (NODE_TIMEOUT, TRY_TIMEOUT) } else { (CONNECT_TIMEOUT, CONNECT_TIMEOUT) };
            let ideal = ideal.filter(|ideal| *ideal != node.name);
            let attempt = connect_node(node, ideal, key, options, rng, dial);
            match timeout(whole, attempt).await {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(failed)) => {
                    tracing::debug!(node = node.name, error = %failed, "DERP node failed");
                    error = failed;
                }
                Err(_) => error = DerpClientError::Timeout,
            }
        }
        Err(error)
    };
    timeout(CONNECT_TIMEOUT, all).await.map_err(|_| DerpClientError::Timeout)?
}

async fn connect_node(
    node: &DerpNode,
    ideal: Option<&str>,
    key: &NodePrivate,
    options: &DialOptions,
    rng: &mut Rng,
    dial_timeout: Duration,
) -> Result<(DerpSender, DerpReceiver), DerpClientError> {
    let mut tls = dial_tls(node, options, dial_timeout).await?;
    let ideal = ideal.map_or_else(String::new, |name| format!("Ideal-Node: {name}\r\n"));
    let request = format!(
        "GET /derp HTTP/1.1\r\nHost: {}\r\n{ideal}Upgrade: DERP\r\nConnection: Upgrade\r\n\r\n",
        host(node)
    );
    let (head, rest) = http_exchange(&mut tls, &request).await?;
    if status(&head) != Some("101") {
        return Err(DerpClientError::Http(first_line(&head)));
    }
    login(tls, &rest, key, rng).await
}

/// Logs in on a stream whose HTTP part is done; `read_ahead` are bytes that came with its head.
pub(super) async fn login<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    io: S,
    read_ahead: &[u8],
    key: &NodePrivate,
    rng: &mut Rng,
) -> Result<(DerpSender, DerpReceiver), DerpClientError> {
    let (reading, mut writing) = split(io);
    let reading: Box<dyn AsyncRead + Send + Unpin> = Box::new(reading);
    let mut frames = FrameReader::new(reading, read_ahead, frame::plan_from_server);
    let Frame::ServerKey(relay) = frames.next().await? else {
        return Err(HandshakeError::Unexpected(frame::kind::SERVER_KEY).into());
    };
    let hello = client_info(key, &relay, &ClientInfo::ours(), rng);
    write_now(&mut writing, &hello).await?;
    open_server_info(key, &relay, &frames.next().await?)?;
    let outbox = Arc::new(Outbox::default());
    let mut writer = JoinSet::new();
    let queue = Arc::clone(&outbox);
    writer.spawn(async move {
        let pace = Pace { kind: frame::kind::SEND_PACKET, write: WRITE_DEADLINE * 5, keep_alive: None };
        let ended = write_loop(writing, &queue, pace).await;
        queue.close(None);
        ended
    });
    let pongs = Arc::new(watch::Sender::new(0));
    let sender = DerpSender { outbox: Arc::clone(&outbox), pongs: Arc::clone(&pongs) };
    let receiver = DerpReceiver { frames, outbox, pongs, writer, silent_at: in_future(SILENCE) };
    Ok((sender, receiver))
}

/// The round trip of `GET /derp/latency-check` on an established TLS connection, for netcheck when
/// UDP is blocked; 5 s in all.
///
/// # Errors
/// When the node cannot be reached, verified, or answers with an error.
pub async fn latency(node: &DerpNode, options: &DialOptions) -> Result<Duration, DerpClientError> {
    let measure = async {
        let mut tls = dial_tls(node, options, LATENCY_TIMEOUT).await?;
        let request =
            format!("GET /derp/latency-check HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", host(node));
        let started = in_future(Duration::ZERO);
        let (head, _) = http_exchange(&mut tls, &request).await?;
        let took = started.elapsed();
        // Any status over 299 counts as unreachable (control.md 4.2).
        if status(&head).is_some_and(|code| code.starts_with('2')) {
            Ok(took)
        } else {
            Err(DerpClientError::Http(first_line(&head)))
        }
    };
    timeout(LATENCY_TIMEOUT, measure).await.map_err(|_| DerpClientError::Timeout)?
}

fn in_future(by: Duration) -> Instant {
    Instant::now() + by
}

fn host(node: &DerpNode) -> String {
    // The name goes into a header line.
    node.host_name.chars().filter(|c| c.is_ascii_graphic()).collect()
}

async fn http_exchange<S: AsyncRead + AsyncWrite + Unpin>(
    io: &mut S,
    request: &str,
) -> Result<(Vec<u8>, Vec<u8>), DerpClientError> {
    io.write_all(request.as_bytes()).await?;
    io.flush().await?;
    let mut head = Vec::new();
    loop {
        let mut piece = [0; 1024];
        let read = io.read(&mut piece).await?;
        head.extend_from_slice(piece.get(..read).unwrap_or_default());
        if let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") {
            let rest = head.split_off(end + 4);
            return Ok((head, rest));
        }
        if read == 0 || head.len() > MAX_HEAD {
            return Err(DerpClientError::Http(first_line(&head)));
        }
    }
}

fn first_line(head: &[u8]) -> String {
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    line.chars().filter(|c| !c.is_control()).take(100).collect()
}

fn status(head: &[u8]) -> Option<&str> {
    let (version, rest) = std::str::from_utf8(head).ok()?.split_once(' ')?;
    version.starts_with("HTTP/1.").then(|| rest.get(..3)).flatten()
}

async fn dial_tls(
    node: &DerpNode,
    options: &DialOptions,
    dial_timeout: Duration,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, DerpClientError> {
    let (config, name) = client_config(node, &options.roots)?;
    let tcp =
        timeout(dial_timeout, dial(node, options.mark)).await.map_err(|_| DerpClientError::Timeout)??;
    let connector = tokio_rustls::TlsConnector::from(config);
    Ok(connector.connect(name, tcp).await?)
}

/// The first address that answers; each has a head start over the next.
async fn dial(node: &DerpNode, mark: Option<u32>) -> Result<TcpStream, DerpClientError> {
    let addresses = addresses(node).await?;
    let mut attempts = FuturesUnordered::new();
    for (nth, address) in addresses.into_iter().take(MAX_ADDRESSES).enumerate() {
        let wait = STAGGER * u32::try_from(nth).unwrap_or(0);
        attempts.push(async move {
            sleep(wait).await;
            tcp(address, mark).await
        });
    }
    let mut error = DerpClientError::NoAddress(node.name.clone());
    while let Some(attempt) = attempts.next().await {
        match attempt {
            Ok(stream) => return Ok(stream),
            Err(failed) => error = failed.into(),
        }
    }
    Err(error)
}

/// Literals of the map come first; DNS is asked for a family the map does not settle only when there
/// is no literal at all. `none` disables a family.
async fn addresses(node: &DerpNode) -> Result<Vec<SocketAddr>, DerpClientError> {
    let port = if node.derp_port == 0 { 443 } else { node.derp_port };
    let literals: Vec<_> = [&node.ipv4, &node.ipv6]
        .into_iter()
        .filter_map(|text| text.parse::<IpAddr>().ok())
        .map(|ip| SocketAddr::new(ip, port))
        .collect();
    if !literals.is_empty() {
        return Ok(literals);
    }
    let mut found: Vec<_> = tokio::net::lookup_host((node.host(), port))
        .await?
        .filter(|a| {
            let family = if a.is_ipv4() { &node.ipv4 } else { &node.ipv6 };
            family != "none"
        })
        .collect();
    found.sort_by_key(SocketAddr::is_ipv6);
    Ok(found)
}

async fn tcp(address: SocketAddr, mark: Option<u32>) -> std::io::Result<TcpStream> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    TcpSocket::from_std_stream(socket.into()).connect(address).await
}
