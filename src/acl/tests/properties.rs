//! Properties of random small policies: the compiled rules let in exactly what the naive reading lets
//! in, visibility is symmetric and covers access, a diff is empty exactly where access is equal, and
//! no text makes the reader panic.

use std::net::IpAddr;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::naive::{Packet, allows, mine};
use super::*;

const SOURCES: [&str; 14] = [
    "*",
    "alice@",
    "bob@example.com",
    "group:g",
    "group:none",
    "tag:server",
    "autogroup:member",
    "autogroup:tagged",
    "autogroup:danger-all",
    "100.64.1.2",
    "100.64.1.0/29",
    "10.33.0.0/16",
    "net",
    "fd7a:115c:a1e0::1:2",
];
const DESTINATIONS: [&str; 15] = [
    "*",
    "alice@",
    "bob@example.com",
    "group:g",
    "tag:server",
    "tag:router",
    "autogroup:member",
    "autogroup:tagged",
    "autogroup:self",
    "autogroup:internet",
    "100.64.1.8",
    "100.64.1.0/29",
    "10.33.7.0/24",
    "net",
    "0.0.0.0/0",
];
const PORTS: [&str; 5] = ["*", "22", "80-90", "22,443", "85-100,22"];

fn rule() -> impl Strategy<Value = String> {
    let dst = (select(&DESTINATIONS[..]), select(&PORTS[..]));
    (
        subsequence(&SOURCES[..], 0..=3),
        prop::collection::vec(dst, 0..4),
        select(&["", "tcp", "udp", "132"][..]),
    )
        .prop_map(|(mut src, dst, proto)| {
            if dst.iter().any(|(d, _)| *d == "autogroup:self") {
                src.retain(|s| {
                    s.ends_with('@')
                        || s.contains("example")
                        || s.starts_with("group:")
                        || *s == "*"
                        || *s == "autogroup:member"
                });
            }
            let dst: Vec<String> = dst.iter().map(|(d, p)| format!("{d}:{p}")).collect();
            format!("{{\"action\": \"accept\", \"src\": {src:?}, \"dst\": {dst:?}, \"proto\": {proto:?}}}")
        })
}

fn policy() -> impl Strategy<Value = String> {
    prop::collection::vec(rule(), 0..5).prop_map(|rules| {
        format!(
            "{{\"groups\": {{\"group:g\": [\"alice@\", \"nobody@\"], \"group:none\": []}},
              \"hosts\": {{\"net\": \"10.0.0.0/8\"}},
              \"tagOwners\": {{\"tag:server\": [], \"tag:router\": []}}, \"acls\": [{}]}}",
            rules.join(",")
        )
    })
}

/// Seven nodes: each of alice, bob, a server, a router (of two prefixes) or an exit node.
fn worlds() -> impl Strategy<Value = World> {
    prop::collection::vec(0..5u8, 7).prop_map(|kinds| {
        let mut out = World { users: world().users, ..World::default() };
        let tagged = |tag: &str| Owner::Tags(Tags::new([Tag::parse(tag).unwrap()]).unwrap());
        for (number, kind) in (1..).zip(kinds) {
            let (owner, routes): (Owner, &[&str]) = match kind {
                0 => (Owner::User(UserId(1)), &[]),
                1 => (Owner::User(UserId(2)), &[]),
                2 => (tagged("tag:server"), &[]),
                3 => (tagged("tag:router"), &["10.33.0.0/16", "192.168.1.0/24"]),
                _ => (Owner::User(UserId(1)), &["0.0.0.0/0", "::/0"]),
            };
            add(&mut out, number, owner, routes);
        }
        out
    })
}

/// Whether a client that was given `rules` lets `packet` in.
fn enforced(rules: &[FilterRule], packet: Packet) -> bool {
    rules.iter().any(|rule| {
        let protocols: &[i32] = if rule.ip_proto.is_empty() { &[1, 6, 17, 58] } else { &rule.ip_proto };
        protocols.contains(&i32::from(packet.protocol))
            && rule.src_ips.iter().any(|s| matches(s, packet.from))
            && rule.dst_ports.iter().any(|d| matches(&d.ip, packet.to) && d.ports.contains(packet.port))
    })
}

fn matches(text: &str, ip: IpAddr) -> bool {
    if text == "*" {
        return true;
    }
    if let Some((low, high)) = text.split_once('-') {
        let (low, high): (IpAddr, IpAddr) = (low.parse().unwrap(), high.parse().unwrap());
        return low.is_ipv4() == ip.is_ipv4() && low <= ip && ip <= high;
    }
    match text.parse::<IpNet>() {
        Ok(net) => net.contains(&ip),
        Err(_) => text.parse::<IpAddr>().unwrap() == ip,
    }
}

/// Addresses that a packet to `node` can be for.
fn targets(node: &WorldNode) -> Vec<IpAddr> {
    let mut out = vec![IpAddr::V4(node.ipv4), IpAddr::V6(node.ipv6)];
    for route in &node.served_routes {
        match route.prefix_len() {
            0 => out.push(if route.addr().is_ipv4() { "8.8.8.8" } else { "2001:db8::1" }.parse().unwrap()),
            16 => out.extend(["10.33.7.7", "10.33.99.1"].map(|a| a.parse::<IpAddr>().unwrap())),
            _ => out.push("192.168.1.20".parse().unwrap()),
        }
    }
    out
}

fn packets(world: &World, node: &WorldNode) -> Vec<Packet> {
    let mut froms: Vec<IpAddr> =
        ["10.33.1.1", "10.9.9.9", "100.115.92.7", "1.2.3.4"].map(|a| a.parse().unwrap()).to_vec();
    for other in world.nodes.values() {
        froms.extend([IpAddr::V4(other.ipv4), IpAddr::V6(other.ipv6)]);
    }
    let mut out = Vec::new();
    for to in targets(node) {
        for from in froms.iter().copied().filter(|f| f.is_ipv4() == to.is_ipv4()) {
            for protocol in [6, 17, 132] {
                for port in [22, 86, 95, 443, 7777] {
                    out.push(Packet { from, to, protocol, port });
                }
            }
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn compiled_rules_equal_the_naive_reading(text in policy(), world in worlds()) {
        let policy = Policy::parse(&text).unwrap();
        let compiled = policy.compile(&world);
        for node in world.nodes.values() {
            let rules = compiled.filter_rules(node.id);
            for packet in packets(&world, node) {
                let want = allows(&policy.file, &world, node, packet);
                prop_assert_eq!(enforced(&rules, packet), want, "{:?} at {:?}: {:?}\n{}", packet, node, rules, text);
                let sender = world.nodes.values().find(|n| mine(n, packet.from));
                if let Some(sender) = sender
                    && sender.id != node.id
                    && want
                    && mine(node, packet.to)
                {
                    prop_assert!(compiled.visible(sender.id, node.id), "access without sight: {}", text);
                }
            }
        }
    }

    #[test]
    fn visibility_is_symmetric_and_shown_routes_are_served(text in policy(), world in worlds()) {
        let compiled = Policy::parse(&text).unwrap().compile(&world);
        for a in world.nodes.keys() {
            let peers = compiled.peers(*a);
            for (id, b) in &world.nodes {
                prop_assert_eq!(peers.contains(id), compiled.visible(*a, *id));
                prop_assert_eq!(compiled.visible(*a, *id), compiled.visible(*id, *a));
                let shown = compiled.shown_routes(*a, *id, &|_, _| Some(*id));
                prop_assert!(shown.iter().all(|r| b.served_routes.contains(r)));
                prop_assert!(shown.is_empty() || peers.contains(id));
            }
        }
    }

    #[test]
    fn a_diff_speaks_exactly_where_access_differs(one in policy(), two in policy(), world in worlds()) {
        let (old, new) = (Policy::parse(&one).unwrap(), Policy::parse(&two).unwrap());
        let found = diff(&old.compile(&world), &new.compile(&world), &world, 1000);
        prop_assert_eq!(found.gained.len() as u64, found.gained_total);
        prop_assert_eq!(found.lost.len() as u64, found.lost_total);
        for to in world.nodes.values() {
            let (mut lost, mut gained) = (BTreeSet::new(), BTreeSet::new());
            for packet in packets(&world, to) {
                let Some(from) = world.nodes.values().find(|n| mine(n, packet.from) && n.id != to.id) else {
                    continue;
                };
                let had = allows(&old.file, &world, to, packet);
                let has = allows(&new.file, &world, to, packet);
                if had && !has {
                    lost.insert(from.id);
                }
                if has && !had {
                    gained.insert(from.id);
                }
            }
            let told = |list: &[AccessChange]| -> BTreeSet<NodeId> {
                list.iter().filter(|c| c.to == to.id).map(|c| c.from).collect()
            };
            prop_assert!(told(&found.lost).is_superset(&lost), "lost to {}: {:?} told {:?}\n{}\n{}", to.id, lost, found.lost, one, two);
            prop_assert!(told(&found.gained).is_superset(&gained), "gained to {}: {:?} told {:?}\n{}\n{}", to.id, gained, found.gained, one, two);
        }
    }

    #[test]
    fn mutated_policies_never_panic(text in policy(), at in any::<prop::sample::Index>(), with in "\\PC{0,3}|[\\[\\]{}\":,*@/-]{1,3}", cut in 0..4usize) {
        let chars: Vec<char> = text.chars().collect();
        let at = at.index(chars.len());
        let mut mutated: String = chars[..at].iter().collect();
        mutated.push_str(&with);
        mutated.extend(chars.iter().skip(at + cut));
        match Policy::parse(&mutated) {
            Ok(policy) => drop(policy.compile(&world())),
            Err(faults) => prop_assert!(!faults.is_empty() && faults.len() <= 50),
        }
    }
}
