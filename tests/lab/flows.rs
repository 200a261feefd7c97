//! Traffic between machines: bulk transfers with hashes and single connection attempts, made by
//! threads inside the machines' networks.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::world::{Host, eventually};

/// What came of a transfer.
#[derive(Debug, Clone, Copy)]
pub struct Transfer {
    pub bytes: usize,
    pub took: Duration,
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    let mut state = u64::from(seed) | 0x9e37_79b9_7f4a_7c15;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

fn digest(bytes: &[u8]) -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().to_vec()
}

/// Sends `bytes` over TCP from one machine to another and compares the hashes of both ends.
pub fn transfer(from: &Host, to: &Host, to_ip: &str, bytes: usize) -> Transfer {
    let ip: IpAddr = to_ip.parse().unwrap();
    let (ready, port) = mpsc::channel();
    let receiver = to.inside(move || {
        let listener = TcpListener::bind(SocketAddr::new(ip, 0)).unwrap();
        ready.send(listener.local_addr().unwrap().port()).unwrap();
        let (mut stream, _) = accept_within(&listener, Duration::from_secs(20));
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut got = Vec::with_capacity(bytes);
        stream.read_to_end(&mut got).unwrap();
        let hash = digest(&got);
        stream.write_all(&hash).unwrap();
        (got.len(), hash)
    });
    let port = port.recv().unwrap();
    let sender = from.inside(move || {
        let data = pattern(bytes, port.to_le_bytes()[0]);
        let start = Instant::now();
        let mut stream =
            TcpStream::connect_timeout(&SocketAddr::new(ip, port), Duration::from_secs(15)).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(&data).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut theirs = Vec::new();
        stream.read_to_end(&mut theirs).unwrap();
        assert_eq!(theirs, digest(&data), "the receiver's hash differs");
        start.elapsed()
    });
    let took = sender.join().expect("the sender");
    let (len, _) = receiver.join().expect("the receiver");
    assert_eq!(len, bytes);
    Transfer { bytes, took }
}

fn accept_within(listener: &TcpListener, limit: Duration) -> (TcpStream, SocketAddr) {
    listener.set_nonblocking(true).unwrap();
    let got = eventually("a connection arrives", limit, || match listener.accept() {
        Ok(pair) => Ok(pair),
        Err(e) => Err(e.to_string()),
    });
    got.0.set_nonblocking(false).unwrap();
    got
}

/// A TCP listener on a machine that answers every connection with `ok` until dropped.
pub struct Listener {
    stop: mpsc::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Listener {
    /// Listens on all addresses of `host`.
    pub fn start(host: &Host, port: u16) -> Self {
        let (stop, stopped) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        let thread = host.inside(move || {
            let listener =
                TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port))).unwrap();
            listener.set_nonblocking(true).unwrap();
            ready.send(()).unwrap();
            while let Err(mpsc::TryRecvError::Empty) = stopped.try_recv() {
                match listener.accept() {
                    Ok((mut stream, _)) => drop(stream.write_all(b"ok")),
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        is_ready.recv().unwrap();
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether a TCP connection to a [`Listener`] gets its answer within `limit`.
pub fn reaches(from: &Host, ip: &str, port: u16, limit: Duration) -> Result<(), String> {
    let addr = SocketAddr::new(ip.parse().unwrap(), port);
    from.inside(move || {
        let mut stream = TcpStream::connect_timeout(&addr, limit).map_err(|e| e.to_string())?;
        stream.set_read_timeout(Some(limit)).map_err(|e| e.to_string())?;
        let mut answer = [0; 2];
        match stream.read_exact(&mut answer) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Err("closed without answer".into()),
            Err(e) => Err(e.to_string()),
        }
    })
    .join()
    .unwrap()
}
