//! A matrix of flows that a policy predicts, tried between machines: official clients and ours as senders
//! and receivers, ports, UDP, ping, own devices, tags, groups; subnet routes, `via` and an exit node on
//! official routers.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::flows::Listener;
use crate::peers::{Kind, OFFICIAL, Peer};
use crate::server::Server;
use crate::world::{Host, Lab, eventually};

const POLICY: &str = r#"{
  // alice is on call, bob only sends metrics
  "groups": {"group:ops": ["alice@"]},
  "hosts": {"behind": "10.77.0.1"},
  "tagOwners": {"tag:server": ["group:ops"], "tag:router": ["group:ops"], "tag:via": ["group:ops"]},
  "grants": [
    {"src": ["group:ops"], "dst": ["tag:server"], "ip": ["tcp:8001", "udp:9001", "icmp:*"]},
    {"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["tcp:8002", "udp:9001"]},
    {"src": ["bob@"], "dst": ["tag:server"], "ip": ["udp:9001"]},
    {"src": ["tag:server"], "dst": ["alice@"], "ip": ["tcp:8001-8002"]},
    {"src": ["alice@"], "dst": ["behind"], "ip": ["tcp:8001"]},
    {"src": ["bob@"], "dst": ["10.77.0.0/24"], "ip": ["icmp:*"]},
    {"src": ["alice@"], "dst": ["10.88.0.0/24"], "ip": ["tcp:8001"], "via": ["tag:via"]},
    {"src": ["alice@"], "dst": ["autogroup:internet"], "ip": ["tcp:8001"]},
  ],
}"#;

/// Behind `gw`; behind `gw` and `via`, but only the latter may carry it; the internet behind `gw`.
const SUBNET: &str = "10.77.0.1";
const STEERED: &str = "10.88.0.1";
const INTERNET: &str = "198.51.100.1";

type Flow = (&'static str, &'static str, &'static str);

/// From, to (a machine, or an address and the machine that delivers it), what.
const FLOWS: [Flow; 48] = [
    ("o1", "so", "tcp 8001"),
    ("o1", "so", "tcp 8002"),
    ("o1", "so", "udp 9001"),
    ("o1", "so", "udp 9002"),
    ("o1", "so", "ping"),
    ("t1", "st", "tcp 8001"),
    ("t1", "st", "tcp 8002"),
    ("t1", "st", "udp 9001"),
    ("t1", "st", "udp 9002"),
    ("t1", "st", "ping"),
    ("o1", "st", "tcp 8001"),
    ("o1", "st", "tcp 8002"),
    ("o1", "st", "udp 9001"),
    ("t1", "so", "tcp 8001"),
    ("t1", "so", "tcp 8002"),
    ("t1", "so", "udp 9002"),
    ("o1", "t1", "tcp 8002"),
    ("o1", "t1", "tcp 8001"),
    ("o1", "t1", "udp 9001"),
    ("t1", "o1", "tcp 8002"),
    ("t1", "o1", "tcp 8001"),
    ("t1", "o1", "udp 9002"),
    ("o2", "t2", "tcp 8002"),
    ("t2", "o2", "udp 9001"),
    ("t2", "o2", "ping"),
    ("o1", "o2", "tcp 8002"),
    ("t2", "t1", "tcp 8002"),
    ("t2", "o1", "ping"),
    ("o2", "so", "udp 9001"),
    ("o2", "so", "tcp 8001"),
    ("t2", "st", "udp 9001"),
    ("t2", "st", "tcp 8001"),
    ("t2", "st", "ping"),
    ("so", "o1", "tcp 8001"),
    ("so", "t1", "tcp 8002"),
    ("st", "o1", "udp 9001"),
    ("st", "o2", "tcp 8001"),
    ("so", "st", "tcp 8001"),
    ("o1", "10.77.0.1 gw", "tcp 8001"),
    ("o1", "10.77.0.1 gw", "tcp 8002"),
    ("t1", "10.77.0.1 gw", "tcp 8001"),
    ("o2", "10.77.0.1 gw", "tcp 8001"),
    ("o2", "10.77.0.1 gw", "ping"),
    ("o1", "10.88.0.1 via", "tcp 8001"),
    ("t1", "10.88.0.1 via", "tcp 8001"),
    ("t1", "10.88.0.1 via", "tcp 8002"),
    ("o2", "10.88.0.1 via", "tcp 8001"),
    ("o2", "198.51.100.1 gw", "tcp 8001"),
];

/// With `o1` behind the exit node: nobody else has a way to this address.
const EXIT_FLOWS: [Flow; 3] =
    [("o1", "198.51.100.1 gw", "tcp 8001"), ("o1", "198.51.100.1 gw", "tcp 8002"), ("o1", "so", "tcp 8001")];

/// What `tsd policy explain` says of flows between the machines as they are now.
struct Prediction<'a> {
    server: &'a Server,
    /// IPv4 addresses by name.
    addresses: BTreeMap<String, String>,
}

impl<'a> Prediction<'a> {
    fn new(server: &'a Server) -> Self {
        let text = |node: &Value, field: &str| node[field].as_str().unwrap().to_owned();
        let nodes = server.nodes();
        Self { server, addresses: nodes.iter().map(|n| (text(n, "name"), text(n, "ipv4"))).collect() }
    }

    fn allowed(&self, flow: &Flow) -> bool {
        let to = self.target(flow.1).to_string();
        let mut question = vec!["policy", "explain", "--from", &self.addresses[flow.0], "--to", &to];
        match flow.2.split_once(' ') {
            Some((protocol, port)) => question.extend(["--proto", protocol, "--port", port]),
            None => question.extend(["--proto", "icmp"]),
        }
        let answer = self.server.json(&question);
        match answer["verdict"].as_str() {
            Some("allowed") => true,
            Some("refused") => false,
            other => panic!("{flow:?}: {other:?}: {answer}"),
        }
    }

    /// The address to try; what stands behind it only says who delivers it.
    fn target(&self, to: &str) -> IpAddr {
        match to.split_once(' ') {
            Some((address, _)) => address.parse().unwrap(),
            None => self.addresses[to].parse().unwrap(),
        }
    }
}

/// A UDP socket on a machine that sends back what it gets, until dropped.
struct Echo {
    stop: mpsc::Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(host: &Host, port: u16) -> Self {
        let (stop, stopped) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        let thread = host.inside(move || {
            let socket = UdpSocket::bind(("0.0.0.0", port)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            ready.send(()).unwrap();
            let mut packet = [0; 64];
            while let Err(mpsc::TryRecvError::Empty) = stopped.try_recv() {
                if let Ok((len, from)) = socket.recv_from(&mut packet) {
                    let _ = socket.send_to(&packet[..len], from);
                }
            }
        });
        is_ready.recv().unwrap();
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One attempt, begun at once; the answer is whether anything came back within `limit`.
fn attempt(from: &Peer, to: IpAddr, what: &str, limit: Duration) -> JoinHandle<bool> {
    let words: Vec<&str> = what.split(' ').collect();
    let port = words.get(1).map_or(0, |p| p.parse::<u16>().unwrap());
    let address = SocketAddr::new(to, port);
    match words[0] {
        "tcp" => from.host.inside(move || {
            let Ok(mut stream) = TcpStream::connect_timeout(&address, limit) else { return false };
            stream.set_read_timeout(Some(limit)).unwrap();
            stream.read_exact(&mut [0; 2]).is_ok()
        }),
        "udp" => from.host.inside(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(limit)).unwrap();
            let sent = socket.connect(address).and_then(|()| socket.send(b"hello"));
            sent.is_ok() && socket.recv(&mut [0; 64]).is_ok()
        }),
        _ => {
            let seconds = limit.as_secs_f32().to_string();
            let mut ping = from.host.command("ping");
            ping.args(["-n", "-c", "1", "-W", &seconds, &to.to_string()]);
            std::thread::spawn(move || ping.output().unwrap().status.success())
        }
    }
}

/// Tries all flows at once; which of them worked.
fn try_all(
    peers: &BTreeMap<&str, Peer>,
    prediction: &Prediction<'_>,
    flows: &[Flow],
    limit: Duration,
) -> Vec<bool> {
    let one = |f: &Flow| attempt(&peers[f.0], prediction.target(f.1), f.2, limit);
    let running: Vec<JoinHandle<bool>> = flows.iter().map(one).collect();
    running.into_iter().map(|r| r.join().unwrap()).collect()
}

/// What is predicted to work does before long, and then the rest does not.
fn matrix(peers: &BTreeMap<&str, Peer>, prediction: &Prediction<'_>, flows: &[Flow]) {
    let start = Instant::now();
    let (mut open, closed): (Vec<Flow>, Vec<Flow>) = flows.iter().partition(|f| prediction.allowed(f));
    println!("{} flows predicted to work, {} not to", open.len(), closed.len());
    assert!(open.len() * 3 >= flows.len() && closed.len() * 3 >= flows.len(), "a one-sided matrix");
    eventually("what the policy allows works", Duration::from_secs(20), || {
        let worked = try_all(peers, prediction, &open, Duration::from_secs(2));
        let mut worked = worked.into_iter();
        open.retain(|_| !worked.next().unwrap());
        if open.is_empty() { Ok(()) } else { Err(format!("{open:?}")) }
    });
    println!("they worked after {:?}", start.elapsed());
    let worked = try_all(peers, prediction, &closed, Duration::from_millis(1500));
    let leaks: Vec<_> = closed.iter().zip(worked).filter(|(_, worked)| *worked).collect();
    assert!(leaks.is_empty(), "predicted to be refused, and worked: {leaks:?}");
}

/// A network of its own on a router, with the router's address in it.
fn behind(host: &Host, name: &str, address: &str) {
    host.ok("ip", &["link", "add", name, "type", "bridge"]);
    host.ok("ip", &["addr", "add", &format!("{address}/24"), "dev", name]);
    host.ok("ip", &["link", "set", name, "up"]);
}

#[test]
fn flows_go_where_the_policy_predicts() {
    let lab = Lab::new("access");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    server.ok(&["users", "create", "alice"]);
    server.ok(&["users", "create", "bob"]);
    server.set_policy(POLICY);
    let key = |user: &str, tags: &str| {
        let mut args = vec!["authkeys", "create", "--user", user, "--reusable"];
        if !tags.is_empty() {
            args.extend(["--tags", tags]);
        }
        server.json(&args)["key"].as_str().unwrap().to_owned()
    };
    let machines: [(&str, Kind, &str, &str, &str); 8] = [
        ("o1", OFFICIAL, "alice", "", "--accept-routes"),
        ("t1", Kind::Tsd, "alice", "", "--accept-routes"),
        ("o2", OFFICIAL, "bob", "", "--accept-routes"),
        ("t2", Kind::Tsd, "bob", "", "--accept-routes"),
        ("so", OFFICIAL, "alice", "tag:server", "--accept-routes"),
        ("st", Kind::Tsd, "alice", "tag:server", "--accept-routes"),
        ("gw", OFFICIAL, "alice", "tag:router", "--advertise-routes=10.77.0.0/24,10.88.0.0/24"),
        ("via", OFFICIAL, "alice", "tag:via", "--advertise-routes=10.88.0.0/24"),
    ];
    let mut peers = BTreeMap::new();
    for (name, kind, user, tags, more) in machines {
        let host = lab.host(name);
        if name == "gw" || name == "via" {
            host.ok("sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
        }
        match name {
            "gw" => [("d0", SUBNET), ("d1", INTERNET)].iter().for_each(|(d, a)| behind(&host, d, a)),
            "via" => behind(&host, "d0", STEERED),
            _ => {}
        }
        let peer = Peer::start(&host, kind);
        let (key, hostname) = (key(user, tags), format!("--hostname={name}"));
        let mut args = vec!["up", "--login-server", &server.url, "--auth-key", &key, &hostname, more];
        if name == "gw" {
            args.push("--advertise-exit-node");
        }
        peer.ok(&args);
        peers.insert(name, peer);
    }
    for router in ["gw", "via"] {
        server.ok(&["nodes", "approve-routes", router]);
    }
    let tcp = peers.values().flat_map(|p| [8001, 8002].map(|port| Listener::start(&p.host, port)));
    let listeners: Vec<Listener> = tcp.collect();
    let udp = peers.values().flat_map(|p| [9001, 9002].map(|port| Echo::start(&p.host, port)));
    let echoes: Vec<Echo> = udp.collect();
    let prediction = Prediction::new(&server);

    matrix(&peers, &prediction, &FLOWS);

    eventually("the exit node is offered", Duration::from_secs(5), || {
        let out = peers["o1"].cli(&["set", "--exit-node=gw"]);
        if out.status.success() { Ok(()) } else { Err(crate::peers::lossy(&out.stderr)) }
    });
    matrix(&peers, &prediction, &EXIT_FLOWS);
    let refused = peers["o2"].cli(&["set", "--exit-node=gw"]);
    assert!(!refused.status.success(), "bob is offered an exit node");
    drop((listeners, echoes));
}
