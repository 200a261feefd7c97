//! Connections to a server: marked TCP to the first address that answers, TLS, and the race of
//! control.md 3.1 up to a finished Noise channel.
//!
//! On the `/ts2021` dial any certificate is taken, because Noise proves the server's key; `/key`, which
//! that key comes from, is fetched with full verification ([`https`]).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::derp::client::DialOptions;

/// The plain try's head start over TLS (control.md 3.1).
const HEAD_START: Duration = Duration::from_millis(500);
/// One TCP address gets this long before the next one is tried beside it (RFC 8305 5).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
const CONNECT: Duration = Duration::from_secs(5);
/// The whole race.
pub(super) const DIAL: Duration = Duration::from_secs(10);
/// Most addresses of a name that are tried.
const MAX_ADDRESSES: usize = 16;
/// Longest head of an upgrade's answer.
const MAX_HEAD: u64 = 16 << 10;
const UPGRADE: &str = "tailscale-control-protocol";

/// Any byte stream a server is reached over.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A stream of any kind; buffered, so that what follows an HTTP head is not lost.
pub(super) type Stream = BufReader<Box<dyn Io>>;

/// A server URL, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// As the person wrote it, for messages.
    pub(super) url: String,
    pub(super) https: bool,
    /// Without brackets.
    pub(super) host: String,
    /// `host[:port]` as written.
    pub(super) authority: String,
    pub(super) plain_port: u16,
    pub(super) tls_port: Option<u16>,
}

/// One of the two ways to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// HTTP on this port.
    Plain(u16),
    /// HTTP in TLS on this port.
    Tls(u16),
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plain(port) => write!(f, "http on port {port}"),
            Self::Tls(port) => write!(f, "https on port {port}"),
        }
    }
}

impl Target {
    /// Takes a URL apart; `None` when it is no `http(s)://host[:port]`.
    pub(super) fn parse(url: &str) -> Option<Self> {
        let uri: http::Uri = url.trim().parse().ok()?;
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?;
        if authority.as_str().contains('@') || !matches!(uri.path(), "" | "/") {
            return None;
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16();
        let after_host = authority.as_str().strip_prefix(authority.host());
        if host.is_empty() || (after_host != Some("") && port.is_none()) {
            return None;
        }
        // The table of control.md 3.1.
        let (plain_port, tls_port) = match (https, port) {
            (true, port) => (80, Some(port.unwrap_or(443))),
            (false, port) if is_private(&host) => (port.unwrap_or(80), None),
            (false, port) => (port.unwrap_or(80), Some(443)),
        };
        Some(Self {
            url: url.trim().trim_end_matches('/').to_owned(),
            https,
            host,
            authority: authority.as_str().to_owned(),
            plain_port,
            tls_port,
        })
    }

    /// Where ordinary requests of this URL go, `/key` above all.
    pub(super) fn own_way(&self) -> Way {
        match self.tls_port {
            Some(port) if self.https => Way::Tls(port),
            _ => Way::Plain(self.plain_port),
        }
    }

    /// The two ways of the race, `last` (which worked before) first.
    pub(super) fn ways(&self, last: Option<Way>) -> (Way, Option<Way>) {
        let plain = Way::Plain(self.plain_port);
        match self.tls_port.map(Way::Tls) {
            Some(tls) if last == Some(tls) => (tls, Some(plain)),
            tls => (plain, tls),
        }
    }
}

/// A literal of a private network, or `localhost` (control.md 3.1).
fn is_private(host: &str) -> bool {
    match host.parse() {
        Ok(IpAddr::V4(ip)) => ip.is_private() || ip.is_loopback(),
        Ok(IpAddr::V6(ip)) => ip.is_unique_local() || ip.is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

/// Runs `attempt` on both ways: the second starts after 500 ms or when the first fails; the first
/// success wins.
///
/// # Errors
/// What went wrong on each way, or that time ran out.
pub(super) async fn race<T, F: Future<Output = Result<T, String>>>(
    (first, second): (Way, Option<Way>),
    attempt: impl Fn(Way) -> F,
) -> Result<(T, Way), String> {
    let both = async {
        let mut one = Box::pin(attempt(first));
        let Some(second) = second else {
            let made = one.await;
            return made.map(|t| (t, first)).map_err(|e| format!("{first}: {e}"));
        };
        let failed = tokio::select! {
            made = &mut one => match made {
                Ok(t) => return Ok((t, first)),
                Err(e) => Some(e),
            },
            () = sleep(HEAD_START) => None,
        };
        let mut two = Box::pin(attempt(second));
        let (e1, e2) = if let Some(e1) = failed {
            match two.await {
                Ok(t) => return Ok((t, second)),
                Err(e2) => (e1, e2),
            }
        } else {
            tokio::select! {
                made = &mut one => match (made, two) {
                    (Ok(t), _) => return Ok((t, first)),
                    (Err(e1), two) => match two.await {
                        Ok(t) => return Ok((t, second)),
                        Err(e2) => (e1, e2),
                    },
                },
                made = &mut two => match (made, one) {
                    (Ok(t), _) => return Ok((t, second)),
                    (Err(e2), one) => match one.await {
                        Ok(t) => return Ok((t, first)),
                        Err(e1) => (e1, e2),
                    },
                },
            }
        };
        Err(format!("{first}: {e1}; {second}: {e2}"))
    };
    match timeout(DIAL, both).await {
        Ok(made) => made,
        Err(_) => Err(format!("no answer within {} s", DIAL.as_secs())),
    }
}

/// A TCP connection to the first address of `host` that answers, marked so that it bypasses the tunnel.
///
/// # Errors
/// When the name has no address, or none of them answers.
pub(super) async fn tcp(host: &str, port: u16, mark: Option<u32>) -> std::io::Result<TcpStream> {
    let found = tokio::net::lookup_host((host, port)).await?;
    let mut waiting = in_turns(found.take(MAX_ADDRESSES).collect()).into_iter();
    let mut trying = FuturesUnordered::new();
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    loop {
        if let Some(address) = waiting.next() {
            trying.push(connect(address, mark));
        } else if trying.is_empty() {
            return Err(last);
        }
        let more = waiting.len() > 0;
        tokio::select! {
            Some(made) = trying.next() => match made {
                Ok(stream) => return Ok(stream),
                Err(e) => last = e,
            },
            () = sleep(NEXT_ADDRESS), if more => {}
            else => {}
        }
    }
}

/// Families in turns, the resolver's first choice in front.
fn in_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (ours, others): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|a| a.is_ipv6() == first_v6);
    let mut out = Vec::with_capacity(ours.len() + others.len());
    let (mut ours, mut others) = (ours.into_iter(), others.into_iter());
    loop {
        let turn = (ours.next(), others.next());
        if turn == (None, None) {
            return out;
        }
        out.extend(turn.0);
        out.extend(turn.1);
    }
}

async fn connect(address: SocketAddr, mark: Option<u32>) -> std::io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(mark) = mark {
        socket2::SockRef::from(&socket).set_mark(mark)?;
    }
    let stream = timeout(CONNECT, socket.connect(address))
        .await
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Opens `way` to `host`; with TLS, `verified` says whether the certificate must be good.
pub(super) async fn open(
    host: &str,
    way: Way,
    options: &DialOptions,
    verified: bool,
) -> Result<Stream, String> {
    let (port, tls) = match way {
        Way::Plain(port) => (port, false),
        Way::Tls(port) => (port, true),
    };
    let tcp = tcp(host, port, options.mark).await.map_err(|e| e.to_string())?;
    if !tls {
        return Ok(BufReader::new(Box::new(tcp)));
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
    let connector = TlsConnector::from(Arc::new(tls_config(options, verified)?));
    let stream = timeout(CONNECT, connector.connect(name, tcp))
        .await
        .map_err(|_| "the TLS handshake timed out".to_owned())?
        .map_err(|e| format!("TLS failed: {e}"))?;
    Ok(BufReader::new(Box::new(stream)))
}

fn tls_config(options: &DialOptions, verified: bool) -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    // No ALPN in either case: the upgrade needs HTTP/1.1.
    Ok(if verified {
        builder.with_root_certificates(Arc::clone(&options.roots)).with_no_client_auth()
    } else {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(NoiseProves(provider)))
            .with_no_client_auth()
    })
}

/// Takes any certificate. Only for `/ts2021`: there TLS is no more than a way through firewalls, and
/// who the server is, is proven by the Noise handshake inside (control.md 3.1).
#[derive(Debug)]
struct NoiseProves(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for NoiseProves {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Sends the upgrade of control.md 3.2 and reads the answer's head, not a byte more.
pub(super) async fn upgrade(io: &mut Stream, authority: &str, initiation: &[u8]) -> Result<(), String> {
    use base64::Engine as _;
    let handshake = base64::engine::general_purpose::STANDARD.encode(initiation);
    let request = format!(
        "POST /ts2021 HTTP/1.1\r\nHost: {authority}\r\nUpgrade: {UPGRADE}\r\n\
         Connection: upgrade\r\nX-Tailscale-Handshake: {handshake}\r\nContent-Length: 0\r\n\r\n"
    );
    let sent = async {
        io.write_all(request.as_bytes()).await?;
        io.flush().await
    };
    sent.await.map_err(|e| e.to_string())?;
    let head = read_head(io).await?;
    let mut lines = head.lines();
    let status = lines
        .next()
        .and_then(|l| l.strip_prefix("HTTP/1."))
        .and_then(|l| l.split(' ').nth(1))
        .and_then(|s| s.parse::<u16>().ok())
        .ok_or("the answer is not HTTP")?;
    let header = |name: &str| {
        head.lines().skip(1).find_map(|l| {
            let (key, value) = l.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    };
    if status != 101 {
        let len = header("content-length").and_then(|v| v.parse::<u64>().ok());
        let mut body = Vec::new();
        // The text is only for people: what does not come at once is left.
        let mut limited = io.take(len.unwrap_or(0).min(512));
        let read = limited.read_to_end(&mut body);
        let _ = timeout(Duration::from_secs(1), read).await;
        return Err(match header("location") {
            Some(to) => format!("it answered {status} and points to {to:?}"),
            None => format!("it answered {status}: {}", super::excerpt(&body)),
        });
    }
    if header("upgrade") != Some(UPGRADE) {
        return Err("it switched to another protocol: it is no tsd or Tailscale server".to_owned());
    }
    Ok(())
}

async fn read_head(io: &mut Stream) -> Result<String, String> {
    let mut limited = io.take(MAX_HEAD);
    let mut head = Vec::new();
    loop {
        let before = head.len();
        let n = limited.read_until(b'\n', &mut head).await.map_err(|e| e.to_string())?;
        match head.get(before..) {
            Some(b"\r\n" | b"\n") => {
                return String::from_utf8(head).map_err(|_| "the answer is not text".to_owned());
            }
            Some(line) if n > 0 && line.ends_with(b"\n") => {}
            _ if limited.limit() == 0 => return Err("the answer's head is too long".to_owned()),
            _ => return Err("the connection ended before an answer came".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(url: &str) -> (u16, Option<u16>) {
        let target = Target::parse(url).unwrap();
        (target.plain_port, target.tls_port)
    }

    #[test]
    fn the_table_of_ports_holds() {
        assert_eq!(ports("https://h.example"), (80, Some(443)));
        assert_eq!(ports("https://h.example:8443/"), (80, Some(8443)));
        assert_eq!(ports("http://h.example"), (80, Some(443)));
        assert_eq!(ports("http://h.example:8080"), (8080, Some(443)));
        for private in ["10.1.2.3", "127.0.0.1", "localhost", "[fd00::1]", "[::1]"] {
            assert_eq!(ports(&format!("http://{private}")), (80, None));
            assert_eq!(ports(&format!("http://{private}:81")), (81, None));
        }
        for public in ["100.64.0.1", "169.254.1.1", "nas.local"] {
            assert_eq!(ports(&format!("http://{public}")), (80, Some(443)));
        }
    }

    #[test]
    fn urls_that_are_none_are_refused() {
        for bad in [
            "",
            "h.example",
            "ftp://h.example",
            "https://",
            "https://u:p@h.example",
            "https://h.example/path",
            "https://h.example:99999",
        ] {
            assert_eq!(Target::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_worked_last_goes_first() {
        let target = Target::parse("https://h.example").unwrap();
        let (plain, tls) = (Way::Plain(80), Way::Tls(443));
        assert_eq!(target.ways(None), (plain, Some(tls)));
        assert_eq!(target.ways(Some(tls)), (tls, Some(plain)));
        assert_eq!(target.own_way(), tls);
    }

    #[test]
    fn families_take_turns() {
        let all = ["[::1]:1", "[::2]:1", "1.1.1.1:1", "[::3]:1"].map(|a| a.parse().unwrap());
        let turns: Vec<_> = in_turns(all.to_vec()).iter().map(ToString::to_string).collect();
        assert_eq!(turns, ["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]);
    }

    const BOTH: (Way, Option<Way>) = (Way::Plain(80), Some(Way::Tls(443)));

    #[tokio::test]
    async fn tls_starts_while_plain_hangs_and_may_win() {
        let (_, way) = race(BOTH, |way| async move {
            if matches!(way, Way::Plain(_)) {
                std::future::pending::<()>().await;
            }
            Ok::<_, String>(())
        })
        .await
        .unwrap();
        assert_eq!(way, Way::Tls(443));
    }

    #[tokio::test]
    async fn plain_may_still_win_after_tls_failed() {
        let tls_failed = tokio::sync::Notify::new();
        let (_, way) = race(BOTH, |way| {
            let tls_failed = &tls_failed;
            async move {
                if matches!(way, Way::Plain(_)) {
                    tls_failed.notified().await;
                    return Ok(());
                }
                tls_failed.notify_one();
                Err("refused".to_owned())
            }
        })
        .await
        .unwrap();
        assert_eq!(way, Way::Plain(80));
    }

    #[tokio::test]
    async fn both_faults_are_told_at_once() {
        let told = race(BOTH, |way| async move { Err::<(), _>(format!("no {way}")) }).await.unwrap_err();
        assert!(told.contains("no http on port 80") && told.contains("no https on port 443"));
    }

    async fn answered(answer: &[u8]) -> Result<(), String> {
        let (a, mut b) = tokio::io::duplex(1 << 16);
        b.write_all(answer).await.unwrap();
        b.shutdown().await.unwrap();
        let mut io: Stream = BufReader::new(Box::new(a));
        upgrade(&mut io, "h", &[0; 101]).await
    }

    #[tokio::test]
    async fn only_the_right_answer_upgrades() {
        let good = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: tailscale-control-protocol\r\n\r\n";
        answered(good).await.unwrap();
        let other = b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n";
        assert!(answered(other).await.unwrap_err().contains("another protocol"));
        let moved = b"HTTP/1.1 301 x\r\nLocation: https://h/\r\nContent-Length: 0\r\n\r\n";
        assert!(answered(moved).await.unwrap_err().contains("https://h/"));
        let missing = b"HTTP/1.1 404 x\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(answered(missing).await.unwrap_err(), "it answered 404: hello");
        assert!(answered(b"SSH-2.0\r\n\r\n").await.unwrap_err().contains("not HTTP"));
        assert!(answered(b"HTTP/1.1 101 x\r\n").await.unwrap_err().contains("ended"));
        let long = [b"HTTP/1.1 101 x\r\nA: ".as_slice(), &[b'a'; 20_000]].concat();
        assert!(answered(&long).await.unwrap_err().contains("too long"));
    }
}
