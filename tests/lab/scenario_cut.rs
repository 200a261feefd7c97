//! RELIABILITY.md row 89: a policy that takes access away in mid-flow ends what flows.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::peers::{Kind, OFFICIAL, Peer};
use crate::server::Server;
use crate::world::{Lab, eventually};

const OPEN: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;
const WITHOUT_8002: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:8001", "*:9001"]}]}"#;

/// A latency promised is asserted with three times slack.
const PROMISED: Duration = Duration::from_secs(1);

/// A stream of bytes from one machine to a port of another, until it breaks or is dropped.
struct Stream {
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    sender: Option<JoinHandle<String>>,
    receiver: Option<JoinHandle<String>>,
}

impl Stream {
    fn start(from: &Peer, to: &Peer, port: u16) -> Self {
        let (received, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let count = received.clone();
        let receiver = to.host.inside(move || {
            let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
            ready.send(()).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            let mut room = [0; 4096];
            loop {
                match stream.read(&mut room) {
                    Ok(0) => return "end".to_owned(),
                    Ok(n) => drop(count.fetch_add(n as u64, Ordering::Relaxed)),
                    Err(e) => return e.kind().to_string(),
                }
            }
        });
        is_ready.recv().unwrap();
        let (addr, stopped) = (SocketAddr::new(to.ip4().parse().unwrap(), port), stop.clone());
        let sender = from.host.inside(move || {
            let mut stream = eventually("the stream connects", Duration::from_secs(10), || {
                TcpStream::connect_timeout(&addr, PROMISED).map_err(|e| e.to_string())
            });
            while !stopped.load(Ordering::Relaxed) {
                if let Err(e) = stream.write_all(&[7; 512]) {
                    return e.kind().to_string();
                }
                // A steady trickle, so that a stop is seen at once.
                std::thread::sleep(Duration::from_millis(2));
            }
            "end".to_owned()
        });
        let stream = Self { received, stop, sender: Some(sender), receiver: Some(receiver) };
        stream.flows();
        stream
    }

    fn bytes(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes arrive.
    fn flows(&self) {
        let before = self.bytes();
        eventually("bytes arrive", Duration::from_secs(10), || {
            if self.bytes() > before + 10_000 { Ok(()) } else { Err(self.bytes().to_string()) }
        });
    }

    /// Waits until both ends were told that the connection is gone; gives what each was told.
    fn ended(&mut self) -> (String, String) {
        eventually("both ends learn it", PROMISED * 5, || {
            let done = |t: &Option<JoinHandle<_>>| t.as_ref().is_none_or(JoinHandle::is_finished);
            if done(&self.sender) && done(&self.receiver) { Ok(()) } else { Err("still open".into()) }
        });
        let told = |t: &mut Option<JoinHandle<String>>| t.take().unwrap().join().unwrap();
        (told(&mut self.sender), told(&mut self.receiver))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if !std::thread::panicking() {
            for thread in [self.sender.take(), self.receiver.take()].into_iter().flatten() {
                let _ = thread.join();
            }
        }
    }
}

#[test]
fn a_policy_that_takes_a_port_away_cuts_its_connections_and_no_others() {
    let lab = Lab::new("cut");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let o1 = Peer::join(&lab.host("o1"), OFFICIAL, &server.url, &key);
    let t1 = Peer::join(&lab.host("t1"), Kind::Tsd, &server.url, &key);
    server.set_policy(OPEN);
    o1.wait_icmp(&t1.ip4(), Duration::from_secs(10));
    let mut lost = Stream::start(&o1, &t1, 8002);
    let kept = Stream::start(&o1, &t1, 8001);
    let own = Stream::start(&t1, &o1, 9001);

    server.set_policy(WITHOUT_8002);
    let since = Instant::now();
    // The last byte: none for as long as the trickle would have brought a hundred times more.
    let (mut bytes, mut last) = (lost.bytes(), since);
    while last.elapsed() < Duration::from_millis(500) {
        assert!(since.elapsed() < PROMISED * 5, "bytes still arrive");
        if lost.bytes() != bytes {
            (bytes, last) = (lost.bytes(), Instant::now());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("the last byte came {:?} after the policy", last - since);
    assert!(last - since < PROMISED * 3, "{:?}", last - since);

    println!("sender and receiver were told: {:?}", lost.ended());
    kept.flows();
    own.flows();
    assert_eq!(lost.bytes(), bytes);

    // Given back, new connections are as good as before.
    server.set_policy(OPEN);
    Stream::start(&o1, &t1, 8002).flows();
}
