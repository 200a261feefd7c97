//! The node's packet filter: nanoseconds per lookup beside the plain loop over all rules, which it must
//! equal, and the cost of building it. `cargo bench --bench filter`; prints a table, asserts equality.
//!
//! The filter is no public part of the library: its files are taken in as they are.
#![allow(missing_docs, dead_code, unused_imports, unreachable_pub, unused_qualifications)]
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

#[path = "../src/node/filter/build.rs"]
mod build;
#[path = "../src/node/filter/grid.rs"]
mod grid;
#[path = "../src/node/filter/index.rs"]
mod index;
#[path = "../src/node/filter/ranges.rs"]
mod ranges;
#[path = "../src/node/filter/rows.rs"]
mod rows;
#[path = "../src/node/filter/rules.rs"]
mod rules;
#[path = "../src/node/filter/starts.rs"]
mod starts;

use std::collections::HashMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use ranges::IpSet;
use rules::Rule;
use tsd::wire;
use wire::{FilterRule, NetPortRange, PortRange};

/// Packets judged in turn: more than a branch predictor remembers.
const PACKETS: usize = 1 << 16;
const ME_V4: u32 = 0x6440_0001;
const ME_V6: u128 = 0xfd7a_115c_a1e0_0000_0000_0000_6440_0001;

struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from((self.0 >> 16) % u64::from(n)).unwrap()
    }
}

/// A device of a tailnet, by its number.
fn device(shape: Shape, n: u32, v6: bool) -> IpAddr {
    if shape == Shape::Scattered {
        let lot = u128::from(n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        let v4 = u32::try_from(lot >> 106).unwrap();
        let v4 = Ipv4Addr::from_bits(0x6440_0000 | v4);
        return if v6 { Ipv6Addr::from_bits(ME_V6 >> 80 << 80 | lot >> 48).into() } else { v4.into() };
    }
    if v6 {
        Ipv6Addr::from_bits(ME_V6 + 1 + u128::from(n)).into()
    } else {
        Ipv4Addr::from_bits(ME_V4 + 1 + n).into()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// A tailnet's policy: groups of devices, single ports, some ranges, some open to all.
    Policy,
    /// The same where addresses are drawn by lot from the whole of 100.64.0.0/10, and of the tailnet's /48.
    Scattered,
    /// One source per rule and a random range of ports: every cell has its own large set of sources.
    Ranges,
}

fn make(shape: Shape, count: u32, dice: &mut Dice) -> Vec<FilterRule> {
    let devices = 10_000;
    (0..count)
        .map(|n| {
            let (sources, ports) = match shape {
                Shape::Ranges => {
                    let (a, b) = (dice.below(65_536) as u16, dice.below(65_536) as u16);
                    (vec![(n * 2, 0)], (a.min(b), a.max(b)))
                }
                Shape::Policy | Shape::Scattered => {
                    let wide = if shape == Shape::Policy { 4 } else { 1 };
                    let sources: Vec<_> =
                        (0..1 + dice.below(8)).map(|_| (dice.below(devices), dice.below(wide))).collect();
                    let port = 1 + dice.below(30_000) as u16;
                    let ports = match dice.below(20) {
                        0 => (port, port + 100),
                        1 if n % 50 == 0 => (0, 65_535),
                        _ => (port, port),
                    };
                    (sources, ports)
                }
            };
            let spelled = |v6| {
                let sources = sources.clone();
                sources.into_iter().map(move |(from, more)| match more {
                    0 => device(shape, from, v6).to_string(),
                    _ => format!("{}-{}", device(shape, from, v6), device(shape, from + more, v6)),
                })
            };
            let ports = PortRange { first: ports.0, last: ports.1 };
            let to = |ip: IpAddr| NetPortRange { ip: ip.to_string().into(), ports };
            let protos = [vec![], vec![6], vec![17], vec![6, 17]];
            FilterRule {
                src_ips: spelled(false).chain(spelled(true)).collect(),
                dst_ports: vec![to(Ipv4Addr::from_bits(ME_V4).into()), to(Ipv6Addr::from_bits(ME_V6).into())],
                ip_proto: protos[dice.below(4) as usize].clone(),
                ..FilterRule::default()
            }
        })
        .collect()
}

type Packet = (IpAddr, IpAddr, u8, u16);

/// Half of the packets are such that some rule permits them.
fn packets(shape: Shape, rules: &[FilterRule], v6: bool, dice: &mut Dice) -> Vec<Packet> {
    let me: IpAddr = if v6 { Ipv6Addr::from_bits(ME_V6).into() } else { Ipv4Addr::from_bits(ME_V4).into() };
    (0..PACKETS)
        .map(|n| {
            let proto = if dice.below(2) == 0 { 6 } else { 17 };
            let rule = &rules[dice.below(u32::try_from(rules.len()).unwrap()) as usize];
            let port = rule.dst_ports[0].ports.first;
            let text = &rule.src_ips[if v6 { rule.src_ips.len() - 1 } else { 0 }];
            let src = text.split('-').next().unwrap().parse().unwrap();
            if n % 2 == 0 {
                (src, me, proto, port)
            } else {
                (device(shape, dice.below(10_000), v6), me, proto, port)
            }
        })
        .collect()
}

/// The loop that the matrix stands for.
fn plain(rules: &[Rule], &(src, dst, proto, port): &Packet) -> bool {
    rules.iter().any(|r| {
        rules::has_proto(&r.protos, proto)
            && r.sources().contains(src)
            && r.dsts.iter().any(|(set, ports)| ports.contains(port) && set.contains(dst))
    })
}

/// Nanoseconds per packet. The packets are timed in 64 pieces, the best time of each piece counts, and all
/// others run in between: what other programs take of the cores drops out, cold memory does not.
fn time(packets: &[Packet], mut judge: impl FnMut(&Packet) -> bool) -> f64 {
    let piece = packets.len() / 64;
    let mut best = [f64::INFINITY; 64];
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(700) {
        for (best, piece) in best.iter_mut().zip(packets.chunks_exact(piece)) {
            let round = Instant::now();
            for p in piece {
                black_box(judge(black_box(p)));
            }
            *best = best.min(round.elapsed().as_secs_f64() * 1e9 / piece.len() as f64);
        }
    }
    best.iter().sum::<f64>() / 64.0
}

/// Milliseconds of processor time, the best of five.
fn once<T>(mut make: impl FnMut() -> T) -> (T, f64) {
    let spent = || {
        let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
        (usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e3
    };
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = spent();
        drop(make());
        best = best.min(spent() - start);
    }
    (make(), best)
}

fn main() {
    println!("Lookups: 65536 packets in turn (cold), and 1024 again and again (warm).");
    println!(
        "| rules | shape | family | plain loop ns | cold ns | warm ns | read ms | build ms | KiB | parts | permitted |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for shape in [Shape::Policy, Shape::Scattered, Shape::Ranges] {
        for count in [10, 1000, 10_000] {
            let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
            let wire = make(shape, count, &mut dice);
            let mut local = IpSet::default();
            local.add(IpAddr::from(Ipv4Addr::from_bits(ME_V4)).into());
            local.add(IpAddr::from(Ipv6Addr::from_bits(ME_V6)).into());
            let local = local.seal();
            let reader = || wire.iter().filter_map(|r| Rule::read(r, &HashMap::new())).collect();
            let (read, read_ms): (Vec<Rule>, f64) = once(reader);
            let (index, build_ms) = once(|| build::build(&read, &local, build::Budget::NODE));
            for v6 in [false, true] {
                let all = packets(shape, &wire, v6, &mut dice);
                let judge = |p: &Packet| index.port(p.0, p.1, p.2, p.3);
                let few: Vec<Packet> = all.iter().take(4096).copied().collect();
                for p in &few {
                    assert_eq!(judge(p), plain(&read, p), "{p:?}");
                }
                let permitted = all.iter().filter(|p| judge(p)).count();
                println!(
                    "| {count} | {shape:?} | {} | {:.0} | {:.0} | {:.0} | {read_ms:.1} | {build_ms:.1} | {} | {} | {} % |",
                    if v6 { "v6" } else { "v4" },
                    time(&few[..512], |p| plain(&read, p)),
                    time(&all, judge),
                    time(&few[..1024], judge),
                    index.size().0 / 1024,
                    index.size().1,
                    permitted * 100 / all.len()
                );
            }
        }
    }
}
