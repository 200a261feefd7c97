//! Policies and networks that grow what a device is sent, where a careless engine would count addresses,
//! ports or pairs (RELIABILITY.md 85, 88). Sizes are asserted, not times; `benches/policy` has those.

use std::fmt::Write as _;

use super::*;

/// So many devices of so many people, in turn.
fn crowd(people: u32, devices: u32) -> World {
    let mut world = World::default();
    for n in 1..=people {
        let id = UserId(u64::from(n));
        world.users.insert(id, WorldUser { id, name: format!("u{n}"), role: Role::Member });
    }
    for n in 1..=devices {
        let id = NodeId(u64::from(n));
        let node = WorldNode {
            id,
            name: format!("n{n}"),
            owner: Owner::User(UserId(u64::from(n % people + 1))),
            ipv4: Ipv4Addr::from(0x6440_0000 + n),
            ipv6: Ipv6Addr::from(0xfd7a_115c_a1e0_u128 << 80 | u128::from(n)),
            served_routes: Vec::new(),
            attributes: BTreeMap::new(),
        };
        world.nodes.insert(id, node);
    }
    world
}

#[test]
fn five_thousand_devices_of_one_person_are_one_range_to_each() {
    let text =
        r#"{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}"#;
    let mut world = crowd(1, 5000);
    let policy = Policy::parse(text).unwrap();
    let compiled = policy.compile(&world);
    for id in world.nodes.keys() {
        let rules = compiled.filter_rules(*id);
        let [rule] = &rules[..] else { panic!("{rules:?}") };
        assert_eq!((rule.src_ips.len(), rule.dst_ports.len()), (2, 2), "one range and one address a family");
    }
    assert_eq!(compiled.peers(NodeId(1)).len(), 4999);
    // One more of theirs.
    let id = NodeId(5001);
    let node = WorldNode { id, ..crowd(1, 5001).nodes.remove(&id).unwrap() };
    world.nodes.insert(id, node.clone());
    let (after, touched) =
        compiled.update(&WorldChange { nodes: [(id, Some(node))].into(), ..WorldChange::default() });
    assert!(touched.nodes.contains(&id) && (touched.all || touched.filters.len() >= 5000), "all are told");
    let scratch = policy.compile(&world);
    for id in [NodeId(1), NodeId(5000), id] {
        assert_eq!(after.filter_rules(id), scratch.filter_rules(id));
        assert_eq!(after.peers(id).len(), 5000);
    }
}

#[test]
fn wide_networks_and_all_ports_one_by_one_cost_what_is_written() {
    let ports: Vec<String> = (1..=65_535).map(|p| p.to_string()).collect();
    let ports = ports.join(",");
    let text = format!(
        r#"{{"acls": [{{"action": "accept", "src": ["10.0.0.0/8", "::/0"], "dst": ["10.0.0.0/8:22", "autogroup:member:{ports}"]}}]}}"#
    );
    let compiled = Policy::parse(&text).unwrap().compile(&crowd(10, 100));
    let rules = compiled.filter_rules(NodeId(1));
    let [rule] = &rules[..] else { panic!("{} rules", rules.len()) };
    assert_eq!(texts(&rule.src_ips), ["10.0.0.0/8", "::/0"]);
    assert_eq!(rule.dst_ports.len(), 2 * 65_535, "each port of each own address, and nobody else's");
}

#[test]
fn thousands_of_overlapping_groups_cost_their_members() {
    const GROUPS: usize = 10_000;
    let mut text = String::from("{\"groups\": {");
    for g in 0..GROUPS {
        let members: Vec<String> = (0..5).map(|n| format!("\"u{}@\"", (g + n * 7) % 200 + 1)).collect();
        let _ = write!(text, "\"group:g{g}\": [{}],", members.join(","));
    }
    text.push_str("}, \"grants\": [");
    for g in 0..GROUPS {
        let to = (g * 7919) % GROUPS;
        let _ =
            write!(text, r#"{{"src": ["group:g{g}"], "dst": ["group:g{to}"], "ip": ["tcp:{}"]}},"#, g + 1);
    }
    text.push_str("]}");
    let world = crowd(200, 400);
    let compiled = Policy::parse(&text).unwrap().compile(&world);
    let rules = compiled.filter_rules(NodeId(1));
    let ports: usize = rules.iter().map(|r| r.dst_ports.len()).sum();
    // One group in forty is a destination with this device's person, for two addresses; equal sources merge.
    assert_eq!(ports, 2 * GROUPS / 40);
    assert!(rules.len() <= 200, "{} rules", rules.len());
}
