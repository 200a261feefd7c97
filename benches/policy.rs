//! What the policy engine costs: text to compiled policy, memory, one node's rules and all of them, joins and
//! other changes, a one-line change of the policy, and growth as log-log slopes.
//!
//! `scripts/bench policy`. Every figure comes from a process of its own, so that its peak memory is its
//! own; `cargo bench --bench policy -- TEXT` runs only the lines that contain TEXT. Prints tables,
//! asserts nothing about time.
#![allow(missing_docs, unused_qualifications, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::print_stdout)]
#![allow(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tsd::acl::explain::{Asked, Question};
use tsd::acl::{Compiled, Policy, World, WorldChange, WorldNode, WorldUser, diff};
use tsd::keys::{NodeId, UserId};
use tsd::model::{Owner, Role, Tag, Tags};

/// How a policy and its network look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Every rule's group and tag are few rules' only.
    Disjoint,
    /// Every rule's group is a tenth of all people.
    Overlapping,
    /// All to all, and rules beside it.
    AllowAll,
    /// `autogroup:self`, people with so many devices.
    Own(usize),
    /// Networks behind routers, parts of a /8.
    Subnets,
    /// The same, steered.
    Via,
}

const SHAPES: [(&str, Shape); 8] = [
    ("disjoint groups", Shape::Disjoint),
    ("overlapping groups", Shape::Overlapping),
    ("allow all", Shape::AllowAll),
    ("self, 5 devices", Shape::Own(5)),
    ("self, 50 devices", Shape::Own(50)),
    ("self, 5000 devices", Shape::Own(5000)),
    ("/8 subnets", Shape::Subnets),
    ("via", Shape::Via),
];
const NODES: [usize; 3] = [100, 1000, 10_000];
const RULES: [usize; 4] = [10, 1000, 15_000, 100_000];
/// Above this many rules only some nodes are rendered.
const RENDER_ALL: usize = 15_000;
const TAGS: usize = 100;

/// A choice that looks random and is always the same.
fn mixed(n: usize) -> usize {
    let mut x = (n as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 1) as usize
}

fn tag(n: usize) -> String {
    format!("tag:t{}", n % TAGS)
}

fn people(shape: Shape, nodes: usize) -> usize {
    match shape {
        Shape::Own(devices) => (nodes / devices).max(1),
        _ => (nodes / 10).max(1),
    }
}

/// Nodes: people's devices, a third tagged, one in fifty a router.
fn world(shape: Shape, nodes: usize) -> World {
    let mut world = World::default();
    for n in 0..people(shape, nodes) {
        let id = UserId(n as u64 + 1);
        world.users.insert(id, WorldUser { id, name: format!("u{n}@example.com"), role: Role::Member });
    }
    for n in 0..nodes {
        let node = node(shape, nodes, n);
        world.nodes.insert(node.id, node);
    }
    world
}

fn node(shape: Shape, nodes: usize, n: usize) -> WorldNode {
    let tagged = !matches!(shape, Shape::Own(_)) && n.is_multiple_of(3);
    let owner = if tagged {
        Owner::Tags(Tags::new([Tag::parse(&tag(n / 3)).unwrap()]).unwrap())
    } else {
        Owner::User(UserId((n % people(shape, nodes)) as u64 + 1))
    };
    let router = n.is_multiple_of(48) && matches!(shape, Shape::Subnets | Shape::Via);
    WorldNode {
        id: NodeId(n as u64 + 1),
        name: format!("n{n}"),
        owner,
        ipv4: Ipv4Addr::from(0x6440_0001 + n as u32),
        ipv6: Ipv6Addr::from(0xfd7a_115c_a1e0_0000_0000_0000_0000_0001 + n as u128),
        served_routes: if router { vec![route(n / 48)] } else { Vec::new() },
        attributes: BTreeMap::new(),
    }
}

fn route(n: usize) -> IpNet {
    format!("10.{}.0.0/16", n % 250).parse().unwrap()
}

fn groups(out: &mut String, count: usize, members: usize, users: usize) {
    out.push_str("\"groups\": {");
    for g in 0..count {
        let _ = write!(out, "\n\"group:g{g}\": [");
        let who: BTreeSet<usize> = (0..members).map(|m| mixed(g * 100_003 + m) % users).collect();
        let names: Vec<String> = who.iter().map(|u| format!("\"u{u}@example.com\"")).collect();
        let _ = write!(out, "{}],", names.join(", "));
    }
    out.push_str("},\n");
}

/// A policy of `rules` rules, each on a line of its own.
fn policy(shape: Shape, nodes: usize, rules: usize) -> String {
    let users = people(shape, nodes);
    let mut out = String::from("{\n");
    let count = (users / 5).clamp(1, 1000);
    let members = if shape == Shape::Overlapping { (users / 10).max(1) } else { 5 };
    groups(&mut out, count, members, users);
    let owners: Vec<String> = (0..TAGS).map(|t| format!("\"{}\": [\"group:g0\"]", tag(t))).collect();
    let _ = write!(out, "\"tagOwners\": {{{}}},\n\"grants\": [\n", owners.join(", "));
    for n in 0..rules {
        let (group, port) = (mixed(n) % count, 1 + mixed(n) % 60_000);
        let _ = match shape {
            Shape::AllowAll if n == 0 => writeln!(out, r#"{{"src": ["*"], "dst": ["*"], "ip": ["*"]}},"#),
            Shape::Disjoint | Shape::Overlapping | Shape::AllowAll => {
                let to = tag(mixed(n + 7));
                writeln!(out, r#"{{"src": ["group:g{group}"], "dst": ["{to}"], "ip": ["tcp:{port}"]}},"#)
            }
            Shape::Own(_) if n == 0 => {
                writeln!(out, r#"{{"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["*"]}},"#)
            }
            Shape::Own(_) => {
                writeln!(
                    out,
                    r#"{{"src": ["group:g{group}"], "dst": ["autogroup:self"], "ip": ["tcp:{port}"]}},"#
                )
            }
            Shape::Subnets | Shape::Via => {
                let via =
                    if shape == Shape::Via { format!(r#", "via": ["{}"]"#, tag(n)) } else { String::new() };
                let net = if n == 0 {
                    "10.0.0.0/8".to_owned()
                } else {
                    format!("10.{}.{}.0/24", n % 250, n / 250 % 250)
                };
                writeln!(
                    out,
                    r#"{{"src": ["group:g{group}"], "dst": ["{net}"], "ip": ["tcp:{port}"]{via}}},"#
                )
            }
        };
    }
    out.push_str("]}\n");
    out
}

fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let value = black_box(work());
    (value, start.elapsed())
}

/// A value of the sorted list: 0.5 is the median.
fn at(values: &mut [Duration], part: f64) -> Duration {
    values.sort_unstable();
    let place = (values.len() as f64 * part) as usize;
    values[place.min(values.len() - 1)]
}

/// What one process measured, by name, in milliseconds or MiB.
type Figures = BTreeMap<String, f64>;

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

/// What happens to one node, by its name.
type Change<'a> = (&'a str, &'a dyn Fn(usize) -> Option<WorldNode>);

/// Compiles and measures; the first word of a refusal is all that is left of it.
fn measure(shape: Shape, nodes: usize, rules: usize) -> Figures {
    let (text, world) = (policy(shape, nodes, rules), world(shape, nodes));
    let mut figures = Figures::new();
    let mut put = |name: &str, value: f64| {
        figures.insert(name.to_owned(), value);
    };
    put("base MiB", peak_mib());
    let (policy, parse) = timed(|| Policy::parse(&text).map_err(|e| e[0].clone()));
    let policy = match policy {
        Ok(policy) => policy,
        Err(fault) => {
            eprintln!("{nodes} x {rules} refused after {parse:.0?}: {}", fault.message);
            put("refused ms", ms(parse));
            return figures;
        }
    };
    let (compiled, compile) = timed(|| policy.compile(&world));
    put("parse", ms(parse));
    put("compile", ms(compile));
    put("in force", ms(parse + compile));
    put("MiB", peak_mib());

    let some: Vec<NodeId> = world.nodes.keys().copied().step_by((nodes / 200).max(1)).collect();
    let mut one: Vec<Duration> = some.iter().map(|n| timed(|| compiled.filter_rules(*n)).1).collect();
    put("one node's rules", ms(at(&mut one, 0.5)));
    put("one node's rules p99", ms(at(&mut one, 0.99)));
    let mut peers: Vec<Duration> = some.iter().map(|n| timed(|| compiled.peers(*n)).1).collect();
    put("peers of one", ms(at(&mut peers, 0.5)));
    if rules <= RENDER_ALL {
        let fresh = policy.compile(&world);
        let all = timed(|| world.nodes.keys().map(|n| fresh.filter_rules(*n).len()).sum::<usize>()).1;
        put("all rendered", ms(all));
        put("MiB, all rendered", peak_mib());
    }

    let join = |n: usize| Some(node(shape, nodes, nodes + n));
    let retag = |n: usize| {
        let mut node = node(shape, nodes, n);
        node.owner = Owner::Tags(Tags::new([Tag::parse(&tag(mixed(n))).unwrap()]).unwrap());
        Some(node)
    };
    let reroute = |n: usize| {
        let mut node = node(shape, nodes, n);
        node.served_routes = vec![route(mixed(n))];
        Some(node)
    };
    let changes: [Change<'_>; 3] = [("join", &join), ("tags", &retag), ("routes", &reroute)];
    for (name, change) in changes {
        let (mut took, mut seen) = (Vec::new(), compiled.clone());
        for n in 0..100 {
            let node = change(mixed(n) % nodes).unwrap();
            let mut change = WorldChange::default();
            let id = if name == "join" { NodeId((nodes + n) as u64 + 1) } else { node.id };
            let mut node = WorldNode { id, ..node };
            if name == "join" {
                node.ipv4 = Ipv4Addr::from(0x6450_0001 + n as u32);
                node.ipv6 = Ipv6Addr::from(0xfd7a_115c_a1e0_0000_0000_0001_0000_0001 + n as u128);
            }
            change.nodes.insert(id, Some(node));
            let ((next, _), time) = timed(|| seen.update(&change));
            took.push(time);
            seen = next;
            if took.iter().sum::<Duration>() > Duration::from_secs(10) {
                break;
            }
        }
        put(name, ms(at(&mut took, 0.5)));
        put(&format!("{name} p99"), ms(at(&mut took, 0.99)));
    }

    let ask = |n: usize| {
        let (from, to) = (some[n % some.len()], some[mixed(n) % some.len()]);
        let address = |id: &NodeId| world.nodes[id].ipv4.to_string();
        let (port, protocol) = (Some("443".to_owned()), Some("tcp".to_owned()));
        let asked = Asked { from: address(&from), to: address(&to), port, protocol, ssh_user: None };
        timed(|| Question::parse(&compiled, &asked).map(|q| compiled.explain(&q))).1
    };
    let mut explained: Vec<Duration> = (0..50).map(ask).collect();
    put("explain", ms(at(&mut explained, 0.5)));
    put("explain p99", ms(at(&mut explained, 0.99)));

    // One more port in a rule in the middle.
    let line = text.lines().filter(|l| l.contains("tcp:")).nth(rules / 2).unwrap_or_default();
    let edited = text.replacen(line, &line.replacen("tcp:", "udp:53\", \"tcp:", 1), 1);
    let (_, change) = timed(|| {
        let next: Compiled = Policy::parse(&edited).unwrap().compile_beside(&compiled);
        diff(&compiled, &next, 100)
    });
    put("one line", ms(change));
    put("MiB at the end", peak_mib());
    figures
}

/// The extremes: a million rules, all ports one by one, ten thousand groups of the same people.
fn extreme(name: &str) -> Figures {
    let (text, world) = match name {
        "a million rules" => (policy(Shape::Disjoint, 10_000, 1_000_000), world(Shape::Disjoint, 10_000)),
        "a /8, ::/0 and all ports one by one" => {
            let ports: Vec<String> = (1..=65_535).map(|p| p.to_string()).collect();
            let ports = ports.join(",");
            let acl = |dst: &str| {
                format!(r#"{{"action": "accept", "src": ["10.0.0.0/8", "::/0"], "dst": ["{dst}:{ports}"]}}"#)
            };
            let text = format!("{{\"acls\": [{}, {}]}}", acl("10.0.0.0/8"), acl("autogroup:member"));
            (text, world(Shape::Subnets, 10_000))
        }
        _ => {
            let mut text = String::from("{");
            groups(&mut text, 10_000, 200, 1000);
            text.push_str("\"grants\": [\n");
            for g in 0..10_000 {
                let to = mixed(g) % 10_000;
                let _ = writeln!(
                    text,
                    r#"{{"src": ["group:g{g}"], "dst": ["group:g{to}"], "ip": ["tcp:{}"]}},"#,
                    1 + g
                );
            }
            text.push_str("]}");
            (text, world(Shape::Disjoint, 10_000))
        }
    };
    let mut figures = Figures::new();
    figures.insert("text MiB".into(), text.len() as f64 / 1_048_576.0);
    let (policy, parse) = timed(|| Policy::parse(&text).map_err(|e| e[0].clone()));
    figures.insert("parse".into(), ms(parse));
    match policy {
        Ok(policy) => {
            let (compiled, compile) = timed(|| policy.compile(&world));
            figures.insert("in force".into(), ms(parse + compile));
            let mut one: Vec<Duration> =
                (1..=20).map(|n| timed(|| compiled.filter_rules(NodeId(n))).1).collect();
            figures.insert("one node's rules".into(), ms(at(&mut one, 0.5)));
        }
        Err(fault) => eprintln!("{name}: refused: {}", fault.message),
    }
    figures.insert("MiB".into(), peak_mib());
    figures
}

const EXTREMES: [&str; 3] =
    ["a million rules", "a /8, ::/0 and all ports one by one", "10 000 overlapping groups"];

/// Runs one measurement in a process of its own.
fn child(arguments: &[&str]) -> Figures {
    let out = Command::new(std::env::current_exe().unwrap()).arg("--one").args(arguments).output().unwrap();
    eprint!("{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout);
    let pair = |l: &str| l.split_once('=').and_then(|(k, v)| Some((k.to_owned(), v.parse().ok()?)));
    if !out.status.success() {
        println!("{arguments:?} ended with {}", out.status);
    }
    text.lines().filter_map(pair).collect()
}

/// How the logarithm of a figure grows with that of a size: 1 is in proportion.
fn slope(points: &[(f64, f64)]) -> f64 {
    let logs: Vec<(f64, f64)> = points.iter().map(|(x, y)| (x.ln(), y.max(1e-6).ln())).collect();
    let n = logs.len() as f64;
    let (mx, my) = (logs.iter().map(|p| p.0).sum::<f64>() / n, logs.iter().map(|p| p.1).sum::<f64>() / n);
    let over: f64 = logs.iter().map(|(x, y)| (x - mx) * (y - my)).sum();
    over / logs.iter().map(|(x, _)| (x - mx).powi(2)).sum::<f64>()
}

const COLUMNS: [&str; 18] = [
    "parse",
    "compile",
    "in force",
    "MiB",
    "one node's rules",
    "one node's rules p99",
    "peers of one",
    "all rendered",
    "MiB, all rendered",
    "join",
    "join p99",
    "tags",
    "tags p99",
    "routes",
    "routes p99",
    "one line",
    "explain",
    "explain p99",
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if let Some(["--one", which, rest @ ..]) =
        arguments.iter().map(String::as_str).collect::<Vec<_>>().get(..)
    {
        let figures = match rest {
            [nodes, rules] => {
                let shape = SHAPES.iter().find(|(name, _)| name == which).unwrap().1;
                measure(shape, nodes.parse().unwrap(), rules.parse().unwrap())
            }
            _ => extreme(which),
        };
        figures.iter().for_each(|(name, value)| println!("{name}={value}"));
        return;
    }
    let only = arguments.first().cloned().unwrap_or_default();
    let largest = std::env::var("TSD_BENCH_LARGEST").ok().and_then(|t| t.parse().ok()).unwrap_or(usize::MAX);
    println!("milliseconds; {}", COLUMNS.join(" | "));
    let mut all: BTreeMap<(&str, usize, usize), Figures> = BTreeMap::new();
    for (name, _) in SHAPES {
        for nodes in NODES.into_iter().filter(|n| *n <= largest) {
            for rules in RULES.into_iter().filter(|r| *r <= largest) {
                let line = format!("{name}, {nodes} nodes, {rules} rules");
                if !line.contains(&only) {
                    continue;
                }
                let figures = child(&[name, &nodes.to_string(), &rules.to_string()]);
                let cells = COLUMNS.map(|c| figures.get(c).map_or("-".to_owned(), |v| format!("{v:.3}")));
                println!("{line} | {}", cells.join(" | "));
                all.insert((name, nodes, rules), figures);
            }
        }
    }
    println!(
        "\nslopes of \"in force\", one node's rules and a join: in nodes at 1000 rules, in rules at 1000 nodes"
    );
    for (name, _) in SHAPES {
        let cell = |column: &str, by_nodes: bool| {
            let points: Vec<(f64, f64)> = all
                .iter()
                .filter(|((n, nodes, rules), _)| {
                    n == &name && if by_nodes { *rules == 1000 } else { *nodes == 1000 && *rules >= 1000 }
                })
                .filter_map(|((_, nodes, rules), f)| {
                    Some((if by_nodes { *nodes } else { *rules } as f64, *f.get(column)?))
                })
                .collect();
            if points.len() > 1 { format!("{:.2}", slope(&points)) } else { "-".to_owned() }
        };
        let columns = ["in force", "one node's rules", "join"];
        let cells = columns.map(|c| format!("{} {}", cell(c, true), cell(c, false)));
        println!("{name} | {}", cells.join(" | "));
    }
    for name in EXTREMES.iter().filter(|n| n.contains(&only) && largest == usize::MAX) {
        let cells: Vec<String> = child(&[name]).iter().map(|(k, v)| format!("{k} {v:.1}")).collect();
        println!("{name}: {}", cells.join(", "));
    }
}
