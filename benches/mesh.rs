//! First figures of the whole thing: `tsd node` pairs beside official pairs, in one run, in turn.
//!
//! `scripts/bench mesh` builds with optimisation and runs it as root. Printed: median over the rounds of
//! throughput (one TCP stream by iperf3), throughput per CPU-second of both daemons together, peak
//! memory of a daemon, time from `up` to the first answered ping; and the server's ready time.
#![allow(missing_docs, dead_code, unused_qualifications, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::print_stdout)]
#![allow(clippy::disallowed_methods)]

#[path = "../tests/lab/official.rs"]
mod official;
#[path = "../tests/lab/peers.rs"]
mod peers;
#[path = "../tests/lab/server.rs"]
mod server;
#[path = "../tests/lab/world.rs"]
mod world;

use std::time::{Duration, Instant};

use peers::{Kind, OFFICIAL, Peer};
use server::Server;
use world::Lab;

#[derive(Debug, Default, Clone)]
struct Figures {
    gbit_s: Vec<f64>,
    gbit_per_cpu_s: Vec<f64>,
    rss_mib: Vec<f64>,
    join_ms: Vec<f64>,
    ping_us: Vec<f64>,
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// CPU seconds of a process so far, children's threads included.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after = stat.rsplit(") ").next().unwrap();
    let fields: Vec<&str> = after.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap().unwrap();
    ticks as f64 / per_second as f64
}

fn peak_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

fn round(kind: Kind, figures: &mut Figures, seconds: u32) {
    let lab = Lab::new("bench");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let mut a = Peer::join(&lab.host("a"), kind, &server.url, &key);
    let mut b = Peer::start(&lab.host("b"), kind);
    let ip_a = a.ip4();
    let start = Instant::now();
    b.ok(&["up", "--login-server", &server.url, "--auth-key", &key, "--hostname=b", "--timeout=30s"]);
    b.wait_icmp(&ip_a, Duration::from_secs(20));
    figures.join_ms.push(start.elapsed().as_secs_f64() * 1e3);
    let path = b.ping_until_direct(&ip_a);
    assert!(!path.contains("DERP"), "{path}");

    let listen = {
        let mut command = a.host.command("iperf3");
        // To a pipe iperf3 would say that it listens only when it ends.
        command.args(["-s", "-1", "--forceflush"]);
        a.host.spawn("iperf3", command)
    };
    world::eventually("iperf3 listens", Duration::from_secs(5), || {
        if listen.text().contains("listening") { Ok(()) } else { Err(listen.text()) }
    });
    let pids = [a.daemon().pid(), b.daemon().pid()];
    let before: f64 = pids.iter().map(|p| cpu_seconds(*p)).sum();
    let out = b.host.output_within(
        "iperf3",
        &["-c", &ip_a, "-t", &seconds.to_string(), "-J"],
        Duration::from_secs(u64::from(seconds) + 20),
    );
    let spent: f64 = pids.iter().map(|p| cpu_seconds(*p)).sum::<f64>() - before;
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let bits = json["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or_else(|| panic!("{json}"));
    let bytes = json["end"]["sum_received"]["bytes"].as_f64().unwrap();
    figures.gbit_s.push(bits / 1e9);
    figures.gbit_per_cpu_s.push(bytes * 8.0 / 1e9 / spent);
    figures.rss_mib.push(pids.iter().map(|p| peak_mib(*p)).fold(0.0, f64::max));

    let ping = b.host.ok("ping", &["-n", "-q", "-c", "200", "-i", "0.01", &ip_a]);
    if let Some(avg) =
        ping.lines().find(|l| l.starts_with("rtt")).and_then(|l| l.split('/').nth(4)?.parse::<f64>().ok())
    {
        figures.ping_us.push(avg * 1e3);
    }
}

fn ready_time() -> f64 {
    let lab = Lab::new("ready");
    let host = lab.host_at("srv", "203.0.113.10");
    let start = Instant::now();
    let server = Server::start(&host);
    let took = start.elapsed().as_secs_f64() * 1e3;
    drop(server);
    took
}

fn main() {
    if std::env::args().any(|a| a == "--test" || a == "--list") {
        return;
    }
    let number =
        |name: &str, default: u32| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (rounds, seconds) = (number("TSD_BENCH_ROUNDS", 3), number("TSD_BENCH_SECONDS", 6));
    let (mut official, mut ours) = (Figures::default(), Figures::default());
    for _ in 0..rounds {
        round(OFFICIAL, &mut official, seconds);
        round(Kind::Tsd, &mut ours, seconds);
    }
    let ready: Vec<f64> = (0..rounds).map(|_| ready_time()).collect();
    println!("rounds {rounds}, {seconds} s each, both ends on one machine; medians");
    println!("| figure | official 1.102.5 | tsd | ratio |");
    println!("|---|---|---|---|");
    let row = |name: &str, pick: fn(&Figures) -> &Vec<f64>| {
        let (theirs, our) = (median(pick(&official)), median(pick(&ours)));
        println!("| {name} | {theirs:.2} | {our:.2} | {:.2} |", our / theirs);
    };
    row("throughput, Gbit/s", |f| &f.gbit_s);
    row("throughput per CPU-second of both daemons, Gbit", |f| &f.gbit_per_cpu_s);
    row("peak memory of a daemon, MiB", |f| &f.rss_mib);
    row("`up` to first answered ping, ms", |f| &f.join_ms);
    row("ping through the tunnel, µs", |f| &f.ping_us);
    println!("server start to first answered command: {:.0} ms", median(&ready));
}
