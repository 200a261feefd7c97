//! Policies and worlds that are meant to hurt: they end with a place and a reason, or are compiled for
//! what they are. The sizes are those a debug build does in a second; `benches/policy` has the large ones.

use std::net::IpAddr;

use super::*;

fn first(text: &str) -> PolicyError {
    faults(text).remove(0)
}

#[test]
fn whatever_is_wrong_has_a_place() {
    let deep = format!("{{\"acls\": {}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let groups: Vec<String> = (0..10_000).map(|n| format!("\"group:{n}\": [\"group:{}\"]", n + 1)).collect();
    let groups = format!("{{\"groups\": {{\n{}}}}}", groups.join(",\n"));
    let rule = |src: &str, dst: &str| {
        format!(
            "{{\"acls\": [\r\n\t{{\"action\": \"accept\", \"src\": [\"{src}\"], \"dst\": [\"{dst}:*\"]}},\r\n]}}"
        )
    };
    let mut wrong = Vec::new();
    for (text, code, place) in [
        (deep.as_str(), "syntax", (1, 9 + 64)),
        (groups.as_str(), "nested-group", (2, 13)),
        (
            "{\"groups\": {\"group:a\": [\"group:b\"],\r\n\"group:b\": [\"group:a\"]}}",
            "nested-group",
            (1, 25),
        ),
        ("{\"groups\": {\"group:a\": [\"group:a\"]}}", "nested-group", (1, 25)),
        (&rule("tag:none", "*"), "unknown-tag", (2, 31)),
        (&rule("group:none", "*"), "unknown-group", (2, 31)),
        (&rule("*", "nowhere"), "unknown-host", (2, 45)),
        ("\u{feff}\u{feff}{}", "syntax", (1, 1)),
        ("{\r\n\"acls\": [\r\n}", "syntax", (3, 1)),
        ("{\"acls\": []", "syntax", (1, 12)),
        ("{\"ipsets\": {\"ipset:a\": [\"ipset:b\"], \"ipset:b\": [\"ipset:a\"]}}", "ipset-cycle", (1, 49)),
    ] {
        let found = first(text);
        if (found.code, (found.line, found.column)) != (code, place) {
            wrong.push((text.chars().take(60).collect::<String>(), found));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let text = rule("*", "*").replace("acls", "\u{feff}acls");
    assert_eq!(first(&text).code, "unknown-field", "a mark in the middle is a letter like any other");
    assert!(Policy::parse(&format!("\u{feff}{}", rule("*", "*"))).is_ok());
}

#[test]
fn a_hundred_megabytes_are_refused_before_they_are_read() {
    let found = first(&" ".repeat(100 << 20));
    assert_eq!((found.code, found.line, found.column), ("too-large", 1, 1));
    assert!(found.message.contains("104857600") && found.hint.contains("64 MiB"), "{found:?}");
}

#[test]
fn long_chains_of_names_end() {
    let chain = |last: &str| {
        let sets: Vec<String> =
            (0..10_000).map(|n| format!("\"ipset:{n}\": [\"ipset:{}\"]", n + 1)).collect();
        format!("{{\"ipsets\": {{{}, \"ipset:10000\": [\"{last}\"]}}}}", sets.join(","))
    };
    for last in ["10.0.0.0/8", "ipset:0"] {
        if let Err(found) = Policy::parse(&chain(last)) {
            assert!(matches!(found[0].code, "too-large" | "ipset-cycle"), "{:?}", found[0]);
        } else {
            assert_eq!(last, "10.0.0.0/8", "a cycle is none the less one for being long");
        }
    }
    let owners: Vec<String> =
        (0..10_000).map(|n| format!("\"tag:t{n}\": [\"tag:t{}\"]", (n + 1) % 10_000)).collect();
    let policy = Policy::parse(&format!("{{\"tagOwners\": {{{}}}}}", owners.join(","))).unwrap();
    assert!(!policy.may_apply(&Tag::parse("tag:t0").unwrap(), Some(("alice", Role::Owner)), &[]));
    assert!(policy.may_apply(&Tag::parse("tag:t0").unwrap(), None, &[Tag::parse("tag:t9999").unwrap()]));
}

#[test]
fn wide_networks_and_every_port_singly_are_compiled_as_they_are() {
    let ports: Vec<String> = (1..=65_535).map(|p| p.to_string()).collect();
    let text = format!(
        "{{\"acls\": [{{\"action\": \"accept\", \"src\": [\"10.0.0.0/8\", \"::/0\"], \"dst\": [\"100.64.1.2:{}\", \"[::/0]:1\"]}}]}}",
        ports.join(",")
    )
    .replace("[::/0]:1", "[::]/0:1");
    let rules = compiled(&text).filter_rules(NodeId(1));
    assert_eq!(rules.len(), 1);
    assert_eq!(texts(&rules[0].src_ips), ["10.0.0.0/8", "::/0"]);
    assert_eq!(rules[0].dst_ports.len(), 65_536);
}

#[test]
fn many_groups_that_overlap_are_compiled() {
    let mut world = World::default();
    for n in 1..=50_u8 {
        let (id, name) = (UserId(u64::from(n)), format!("u{n}@example.com"));
        world.users.insert(id, WorldUser { id, name, role: Role::Member });
        add(&mut world, n, Owner::User(id), &[]);
    }
    let groups: Vec<String> = (0..2000)
        .map(|g| {
            let members: Vec<String> =
                (0..20).map(|m| format!("\"u{}@example.com\"", 1 + (g * 7 + m * (1 + g % 3)) % 50)).collect();
            format!("\"group:g{g}\": [{}]", members.join(","))
        })
        .collect();
    let rules: Vec<String> = (0..2000)
        .map(|g| {
            format!(
                "{{\"action\": \"accept\", \"src\": [\"group:g{g}\"], \"dst\": [\"group:g{}:{}\"]}}",
                (g + 1) % 2000,
                1 + g
            )
        })
        .collect();
    let text = format!("{{\"groups\": {{{}}}, \"acls\": [{}]}}", groups.join(","), rules.join(","));
    let policy = Policy::parse(&text).unwrap().compile(&world);
    let is_member = |g: usize, user: usize| (0..20).any(|m| 1 + (g * 7 + m * (1 + g % 3)) % 50 == user);
    let opened: usize = policy.filter_rules(NodeId(9)).iter().map(|r| r.dst_ports.len()).sum();
    let wanted = (0..2000).filter(|g| is_member((g + 1) % 2000, 9)).count();
    assert_eq!(opened, 2 * wanted, "both addresses for each rule that leads to user 9");
}

/// So many devices of one person, of which the first is a server with a tag.
fn crowd(devices: u64) -> World {
    let mut world = World::default();
    let id = UserId(1);
    world.users.insert(id, WorldUser { id, name: "alice".to_owned(), role: Role::Owner });
    add(&mut world, 1, Owner::Tags(Tags::new([Tag::parse("tag:server").unwrap()]).unwrap()), &[]);
    let model = world.nodes[&NodeId(1)].clone();
    for n in 2..=devices + 1 {
        let low = u16::try_from(n).unwrap();
        world.nodes.insert(
            NodeId(n),
            WorldNode {
                id: NodeId(n),
                name: format!("n{n}"),
                owner: Owner::User(id),
                ipv4: Ipv4Addr::from(0x6440_0000 + 2 * u32::from(low)),
                ipv6: Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 2, 2 * low),
                ..model.clone()
            },
        );
    }
    world
}

#[test]
fn a_crowd_of_one_persons_devices_shares_its_work() {
    let world = crowd(5000);
    let text =
        r#"{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}"#;
    let policy = Policy::parse(text).unwrap().compile(&world);
    let rules = policy.filter_rules(NodeId(77));
    assert_eq!((rules.len(), rules[0].src_ips.iter().count()), (1, 10_000));
    // The list of 10 000 addresses is there once, not once for each device.
    for n in 2..=5001 {
        let other = policy.filter_rules(NodeId(n));
        assert_eq!(other.len(), 1);
        assert!(std::ptr::eq(&raw const *other[0].src_ips[0], &raw const *rules[0].src_ips[0]), "device {n}");
    }
    assert_eq!(policy.peers(NodeId(77)).len(), 4999);
    assert!(policy.filter_rules(NodeId(1)).is_empty(), "a tagged server is nobody's device");
    // One more joins, and one leaves.
    let mut new = world.nodes[&NodeId(2)].clone();
    (new.id, new.ipv4, new.ipv6) =
        (NodeId(6000), "100.65.0.1".parse().unwrap(), "fd7a:115c:a1e0::9:9".parse().unwrap());
    let change = WorldChange {
        nodes: [(NodeId(6000), Some(new.clone())), (NodeId(77), None)].into(),
        ..WorldChange::default()
    };
    let (policy, touched) = policy.update(&change);
    assert!(touched.all || touched.filters.len() >= 4999);
    assert!(policy.filter_rules(NodeId(77)).is_empty() && policy.peers(NodeId(77)).is_empty());
    let rules = policy.filter_rules(NodeId(78));
    let sources = texts(&rules[0].src_ips);
    let gone = IpAddr::V4(world.nodes[&NodeId(77)].ipv4).to_string();
    assert!(sources.contains(&"100.65.0.1") && !sources.contains(&&*gone));
}
