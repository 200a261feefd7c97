//! Streams over in-memory pipes, with the network cutting bytes wherever it likes.

use tokio::io::{DuplexStream, duplex};

use super::*;

fn rng() -> Rng {
    Rng::from_seed([5; 32])
}

fn server() -> MachinePrivate {
    MachinePrivate::from_bytes([0x11; 32])
}

fn machine() -> MachinePrivate {
    MachinePrivate::from_bytes([0x22; 32])
}

fn start() -> (ClientHandshake, [u8; 101]) {
    ClientHandshake::new(&machine(), &server().public(), CapVer(145), &mut rng())
}

async fn pair(pipe: usize, early: Option<&[u8]>) -> (NoiseStream<DuplexStream>, NoiseStream<DuplexStream>) {
    let (a, b) = duplex(pipe);
    let (handshake, initiation) = start();
    let key = server();
    let mut rng = rng();
    let (client, accepted) = tokio::join!(handshake.finish(a), accept(b, &initiation, &key, early, &mut rng));
    let (stream, peer) = accepted.unwrap();
    assert_eq!(peer.machine(), machine().public());
    assert_eq!(peer.capver(), CapVer(145));
    (client.unwrap(), stream)
}

async fn carries<S: AsyncRead + AsyncWrite + Unpin>(from: &mut S, to: &mut S, text: &[u8]) {
    let mut got = vec![0; text.len()];
    let write = async {
        from.write_all(text).await.unwrap();
        from.flush().await.unwrap();
    };
    let (_, read) = tokio::join!(write, to.read_exact(&mut got));
    read.unwrap();
    assert!(got == text);
}

#[tokio::test]
async fn bytes_pass_both_ways_whatever_the_pipe_cuts() {
    let text: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    // 7 bytes: every header and every record is torn apart; 1 MiB: many records come at once.
    for pipe in [7, 4096, 1 << 20] {
        let (mut client, mut server) = pair(pipe, None).await;
        carries(&mut client, &mut server, &text).await;
        carries(&mut server, &mut client, &text).await;
        for _ in 0..300 {
            carries(&mut client, &mut server, b"x").await;
        }
    }
}

#[tokio::test]
async fn an_early_payload_is_skipped_and_other_bytes_are_given_back() {
    let settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    for early in [None, Some(&b"{\"nodeKeyChallenge\":\"chalpub:00\"}"[..]), Some(&b""[..])] {
        let (mut client, mut server) = pair(1 << 16, early).await;
        carries(&mut server, &mut client, settings).await;
        carries(&mut server, &mut client, b"and more").await;
    }
    // Bytes that look like the magic at first belong to HTTP/2 all the same.
    let (mut client, mut server) = pair(1 << 16, None).await;
    carries(&mut server, &mut client, b"\xff\xff\xffTx....rest").await;
}

#[tokio::test]
async fn a_short_beginning_before_the_end_is_given_back() {
    let (mut client, mut server) = pair(1 << 16, None).await;
    server.write_all(b"\xff\xff").await.unwrap();
    server.shutdown().await.unwrap();
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"\xff\xff");
}

#[tokio::test]
async fn response_and_early_payload_are_one_write() {
    let (handshake, initiation) = start();
    let (a, b) = duplex(1 << 16);
    let json = b"{}";
    let (stream, _) = accept(b, &initiation, &server(), Some(json), &mut rng()).await.unwrap();
    drop(stream);
    // 51 bytes of response, then one record of 9 + 2 bytes.
    let mut seen = Counting { io: a, writes: vec![] };
    let mut all = vec![0; 4096];
    let n = seen.read(&mut all).await.unwrap();
    assert_eq!(n, 51 + 3 + 9 + 2 + 16);
    assert!(handshake.state.unwrap().finish(&all[..51]).is_ok());
    let too_long = early_payload(&[0; MAX_EARLY_SENT + 1]);
    assert!(matches!(too_long, Err(NoiseError::EarlyTooLong { .. })));
}

/// Notes the sizes of writes that reach the network.
struct Counting<S> {
    io: S,
    writes: Vec<usize>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counting<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counting<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.writes.push(buf.len());
        Pin::new(&mut this.io).poll_write(cx, buf)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn several_records_go_into_one_write_and_small_writes_into_one_record() {
    let (_peer, b) = duplex(1 << 20);
    let (_, initiation) = start();
    let b = Counting { io: b, writes: vec![] };
    let (mut stream, _) = accept(b, &initiation, &server(), None, &mut rng()).await.unwrap();
    stream.write_all(&[1; 9]).await.unwrap();
    stream.write_all(&[2; 3 * MAX_PLAIN]).await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(stream.io.writes, [51, 3 * MAX_FRAME + 3 + 9 + 16]);
}

#[tokio::test]
async fn a_refusal_reaches_the_client_as_text() {
    let (a, b) = duplex(4096);
    let (handshake, _) = start();
    let (_, old) = ClientHandshake::new(&machine(), &server().public(), CapVer(90), &mut rng());
    let refused = accept(b, &old, &server(), None, &mut rng()).await;
    assert!(matches!(refused, Err(NoiseError::Version(CapVer(90)))));
    let told = handshake.finish(a).await.unwrap_err();
    assert!(matches!(&told, NoiseError::Refused(t) if t.contains("update the client")), "{told}");
}

#[tokio::test]
async fn a_server_with_another_key_is_refused() {
    let (a, mut b) = duplex(4096);
    let (handshake, _) = start();
    // The other server takes an initiation made for it and replays its response to ours.
    let other = MachinePrivate::from_bytes([0x55; 32]);
    let (_, theirs) = ClientHandshake::new(&machine(), &other.public(), CapVer(145), &mut rng());
    let accepted = respond(&theirs, &other, Zeroizing::new([9; 32])).unwrap();
    b.write_all(&accepted.response).await.unwrap();
    let refused = handshake.finish(a).await;
    assert!(matches!(refused, Err(NoiseError::Handshake)));
}

#[tokio::test]
async fn a_weak_server_key_is_refused_without_reading() {
    let zero = MachinePublic::default();
    let (handshake, bytes) = ClientHandshake::new(&machine(), &zero, CapVer(145), &mut rng());
    assert_eq!(bytes, [0; 101]);
    let (a, _b) = duplex(64);
    let refused = handshake.finish(a).await;
    assert!(matches!(refused, Err(NoiseError::WeakKey)));
}

#[tokio::test]
async fn a_cut_record_is_an_error_and_a_clean_end_is_not() {
    for cut in 1..25 {
        let (a, mut b) = duplex(4096);
        let (handshake, initiation) = start();
        let accepted = respond(&initiation, &server(), Zeroizing::new([9; 32])).unwrap();
        let mut sealer = accepted.channel.sealer;
        let mut bytes = accepted.response.to_vec();
        sealer.seal(b"hello first", &mut bytes).unwrap();
        let whole = bytes.len();
        sealer.seal(b"hello", &mut bytes).unwrap();
        let keep = whole + cut - 1;
        b.write_all(&bytes[..keep]).await.unwrap();
        drop(b);
        let mut stream = handshake.finish(a).await.unwrap();
        let mut got = Vec::new();
        let end = stream.read_to_end(&mut got).await;
        assert!(got.starts_with(b"hello first"));
        assert_eq!(end.is_ok(), keep == whole || keep == bytes.len(), "{cut}");
    }
}

#[tokio::test]
async fn a_tampered_stream_stays_broken() {
    let (a, mut b) = duplex(4096);
    let (handshake, initiation) = start();
    let accepted = respond(&initiation, &server(), Zeroizing::new([9; 32])).unwrap();
    let mut sealer = accepted.channel.sealer;
    let mut bytes = accepted.response.to_vec();
    sealer.seal(b"good bytes", &mut bytes).unwrap();
    let at = bytes.len();
    sealer.seal(b"bad bytes", &mut bytes).unwrap();
    bytes[at + 5] ^= 0x80;
    b.write_all(&bytes).await.unwrap();
    let mut stream = handshake.finish(a).await.unwrap();
    let mut buf = [0; 64];
    assert_eq!(stream.read(&mut buf).await.unwrap(), 10);
    for _ in 0..2 {
        let fault = stream.read(&mut buf).await.unwrap_err();
        assert_eq!(fault.kind(), io::ErrorKind::InvalidData);
    }
}

#[tokio::test]
async fn a_writer_waits_when_the_network_does() {
    let (client, _server) = pair(64, None).await;
    let mut client = client;
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let chunk = [0_u8; 8192];
    let mut taken = 0;
    let mut pending = false;
    for _ in 0..100 {
        match Pin::new(&mut client).poll_write(&mut cx, &chunk) {
            Poll::Ready(n) => taken += n.unwrap(),
            Poll::Pending => {
                pending = true;
                break;
            }
        }
    }
    assert!(pending);
    assert!(taken <= MAX_OUT + MAX_FRAME, "{taken} bytes were taken");
}
