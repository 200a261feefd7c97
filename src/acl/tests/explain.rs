//! Answers of `explain` and `stats`: words for people, and the property that every verdict is the one the
//! receiver's packet filter gives.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::acl::explain::{Asked, Explanation, Facts, Question, SshVerdict, Verdict};
use crate::model::Tags;

fn asked(from: &str, to: &str, port: &str, protocol: &str) -> Asked {
    let filled = |t: &str| (!t.is_empty()).then(|| t.to_owned());
    Asked {
        from: from.to_owned(),
        to: to.to_owned(),
        port: filled(port),
        protocol: filled(protocol),
        ssh_user: None,
    }
}

fn ask(policy: &Compiled, from: &str, to: &str, port: &str, protocol: &str) -> Explanation {
    policy.explain(&Question::parse(policy, &asked(from, to, port, protocol)).unwrap())
}

/// A world with more of everything: two routers of one route, one of a part of it, an exit node, postures.
fn wide() -> World {
    let mut world = world();
    let tagged = |tag: &str| Owner::Tags(Tags::new([Tag::parse(tag).unwrap()]).unwrap());
    add(&mut world, 7, tagged("tag:router"), &["10.33.0.0/16", "fd00:33::/64"]);
    add(&mut world, 8, tagged("tag:server"), &["10.33.7.0/24"]);
    add(&mut world, 9, Owner::User(UserId(2)), &[]);
    for (id, os) in [(1, "linux"), (3, "windows")] {
        let node = world.nodes.get_mut(&NodeId(id)).unwrap();
        node.attributes.insert("node:os".to_owned(), ast::AttrValue::Text(os.to_owned()));
    }
    world
}

const HEAD: &str = r#"
    "groups": {"group:dev": ["alice@"], "group:ops": ["bob@example.com", "alice@"]},
    "hosts": {"web": "100.64.1.8", "lan": "10.33.0.0/16", "pair": "100.64.1.2/31"},
    "tagOwners": {"tag:server": [], "tag:router": [], "tag:exit": []},
    "ipsets": {"ipset:some": ["10.33.0.0/16", "remove 10.33.9.0/24", "100.64.1.6"]},
    "postures": {"posture:linux": ["node:os == 'linux'"]},
"#;

fn policy(rules: &str) -> Compiled {
    let text = format!("{{{HEAD}{rules}}}");
    Policy::parse(&text).unwrap_or_else(|faults| panic!("{faults:?}\n{text}")).compile(&wide())
}

/// Whether a text of the wire covers an address.
fn covers(text: &str, ip: IpAddr) -> bool {
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

/// What a client's packet filter does with the first packet of a flow.
fn filtered(rules: &[FilterRule], from: IpAddr, to: IpAddr, protocol: i32, port: u16) -> bool {
    rules.iter().any(|rule| {
        rule.src_ips.iter().any(|s| covers(s, from))
            && rule.dst_ports.iter().filter(|d| covers(&d.ip, to)).any(|d| {
                let speaks = if rule.ip_proto.is_empty() {
                    [1, 6, 17, 58].contains(&protocol)
                } else {
                    rule.ip_proto.contains(&protocol)
                };
                match protocol {
                    1 | 58 => true,
                    6 | 17 => speaks && d.ports.contains(port),
                    _ => speaks && d.ports == crate::wire::PortRange::ANY,
                }
            })
    })
}

const FLOWS: [(i32, u16); 6] = [(6, 22), (6, 443), (17, 53), (17, 443), (1, 0), (47, 0)];

/// Every flow of the wide world: the verdict is the filter's.
fn agrees(policy: &Compiled) -> Result<(), String> {
    let world = wide();
    let nodes: Vec<&WorldNode> = world.nodes.values().collect();
    let addresses = |n: &WorldNode| [IpAddr::V4(n.ipv4), IpAddr::V6(n.ipv6)];
    let beyond: Vec<IpAddr> =
        ["10.33.0.9", "10.33.7.9", "10.33.9.1", "fd00:33::5", "198.51.100.7", "2001:db8::9", "192.168.3.4"]
            .iter()
            .map(|t| t.parse().unwrap())
            .collect();
    let sources = nodes.iter().flat_map(|n| addresses(n)).chain(beyond.iter().copied());
    for from in sources {
        let targets = nodes.iter().flat_map(|n| addresses(n)).chain(beyond.iter().copied());
        for to in targets.filter(|to| to.is_ipv4() == from.is_ipv4()) {
            for (protocol, port) in FLOWS {
                let port_text = if port == 0 { String::new() } else { port.to_string() };
                let found =
                    ask(policy, &from.to_string(), &to.to_string(), &port_text, &protocol.to_string());
                let owner = |ip: IpAddr| nodes.iter().find(|n| addresses(n).contains(&ip));
                let expected = match (owner(from), owner(to)) {
                    (Some(a), Some(b)) if a.id == b.id => true,
                    (_, Some(node)) => {
                        let served = owner(from).is_some()
                            || nodes
                                .iter()
                                .flat_map(|n| &n.served_routes)
                                .any(|r| r.prefix_len() > 0 && r.contains(&from));
                        served && filtered(&policy.filter_rules(node.id), from, to, protocol, port)
                    }
                    (_, None) if found.sentence.contains("are both on the network") => {
                        let serves = |n: &&&WorldNode| n.served_routes.iter().any(|r| r.contains(&to));
                        let mut routers = nodes.iter().filter(serves);
                        routers.any(|n| {
                            addresses(n).contains(&from) || n.served_routes.iter().any(|r| r.contains(&from))
                        })
                    }
                    (_, None) => match &found.route {
                        Some(route) => {
                            let serves = &world.nodes[&route.node].served_routes;
                            if !serves.iter().any(|r| r.contains(&to)) {
                                return Err(format!(
                                    "{from} to {to} goes through {}, which does not serve it",
                                    route.name
                                ));
                            }
                            let passes = filtered(&policy.filter_rules(route.node), from, to, protocol, port);
                            let viewer = owner(from).map(|n| n.id);
                            let shown = viewer.is_none_or(|v| {
                                let shown =
                                    policy.shown_routes(v, route.node, &|_, all| all.first().copied());
                                shown.iter().any(|r| r.contains(&to))
                            });
                            passes && shown
                        }
                        None => false,
                    },
                };
                let allowed = found.verdict == Verdict::Allowed;
                if allowed != expected {
                    return Err(format!("{from} to {to}, protocol {protocol} port {port}: {found:#?}"));
                }
                if allowed && found.rule.is_none() && !found.sentence.contains("never meets the rules") {
                    return Err(format!("no rule named: {found:#?}"));
                }
            }
        }
    }
    Ok(())
}

const SOURCES: [&str; 13] = [
    "*",
    "alice@",
    "bob@example.com",
    "group:dev",
    "group:ops",
    "tag:server",
    "tag:router",
    "autogroup:member",
    "autogroup:tagged",
    "web",
    "lan",
    "10.33.7.0/24",
    "ipset:some",
];
const DESTS: [&str; 16] = [
    "*",
    "alice@",
    "bob@example.com",
    "group:dev",
    "tag:server",
    "tag:router",
    "autogroup:member",
    "autogroup:tagged",
    "autogroup:internet",
    "web",
    "pair",
    "lan",
    "10.33.7.0/25",
    "ipset:some",
    "8.0.0.0/5",
    "fd00:33::/48",
];
const PORTS: [&str; 5] = ["*", "22", "443,53", "1-1000", "22,80-443"];

fn rule() -> impl Strategy<Value = String> {
    let acl = (
        proptest::sample::subsequence(&SOURCES[..], 1..3),
        proptest::sample::subsequence(&DESTS[..], 1..3),
        0..PORTS.len(),
        proptest::sample::select(vec![
            "",
            "\"proto\": \"tcp\",",
            "\"proto\": \"udp\",",
            "\"srcPosture\": [\"posture:linux\"],",
        ]),
    )
        .prop_map(|(src, dst, port, extra)| {
            let dst: Vec<String> = dst.iter().map(|d| format!("{d}:{}", PORTS[port])).collect();
            format!("A{{\"action\": \"accept\", {extra} \"src\": {src:?}, \"dst\": {dst:?}}}")
        });
    let own = (proptest::sample::select(vec!["alice@", "autogroup:member", "group:ops"]), 0..PORTS.len())
        .prop_map(|(src, port)| {
            format!(
                "A{{\"action\": \"accept\", \"src\": [\"{src}\"], \"dst\": [\"autogroup:self:{}\"]}}",
                PORTS[port]
            )
        });
    let grant = (
        proptest::sample::subsequence(&SOURCES[..], 1..3),
        proptest::sample::subsequence(
            &["lan", "10.33.7.0/24", "autogroup:internet", "ipset:some", "tag:server"][..],
            1..3,
        ),
        proptest::sample::subsequence(&["22", "tcp:443", "udp:53", "icmp:*", "gre:*", "*"][..], 1..4),
        proptest::sample::select(vec![
            "",
            "\"via\": [\"tag:router\"],",
            "\"via\": [\"tag:exit\", \"tag:server\"],",
        ]),
    )
        .prop_map(|(src, dst, ip, via)| {
            format!("G{{\"src\": {src:?}, \"dst\": {dst:?}, {via} \"ip\": {ip:?}}}")
        });
    prop_oneof![3 => acl, 1 => own, 2 => grant]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn every_verdict_is_the_filters(rules in proptest::collection::vec(rule(), 0..5)) {
        let of = |kind: char| rules.iter().filter_map(|r| r.strip_prefix(kind)).collect::<Vec<_>>().join(",");
        let policy = policy(&format!("\"acls\": [{}], \"grants\": [{}]", of('A'), of('G')));
        prop_assert_eq!(agrees(&policy), Ok(()));
    }
}

#[test]
fn an_allowed_flow_names_its_rule_and_the_way_there() {
    let policy = policy(
        r#""acls": [
        {"action": "accept", "src": ["tag:router"], "dst": ["web:22"]},
        // people
        {"action": "accept", "src": ["group:dev"], "dst": ["tag:server:22,443"]}]"#,
    );
    let found = ask(&policy, "n1", "n4", "443", "");
    assert_eq!(found.verdict, Verdict::Allowed);
    assert_eq!(found.sentence, "n1 (alice@) may reach n4 (tag:server) on tcp 443.");
    let rule = found.rule.unwrap();
    assert_eq!((rule.section, rule.index, rule.line, rule.column), ("acls", 1, 10, 9));
    assert_eq!(rule.text, r#"{"action": "accept", "src": ["group:dev"], "dst": ["tag:server:22,443"]}"#);
    assert_eq!(
        found.chain,
        [
            "n1 belongs to alice@",
            "alice@ is in group:dev (line 2)",
            "group:dev is among the rule's sources (line 10)",
            "n4 carries tag:server",
            "tag:server is among the rule's destinations (line 10)",
        ]
    );
    assert_eq!(found.open, "ports 22, 443");
    assert_eq!(found.back, "Answers come back without a rule of their own. On its own n4 may not reach n1.");
    assert!(found.misses.is_empty());
    assert_eq!(
        ask(&policy, "n1.example.ts.net", "4", "", "").sentence,
        "n1 (alice@) may reach n4 (tag:server): ports 22, 443."
    );
}

#[test]
fn a_refusal_tells_what_is_nearest() {
    let policy = policy(
        r#""acls": [
        {"action": "accept", "src": ["*"], "dst": ["tag:router:*"]},
        {"action": "accept", "src": ["tag:exit"], "dst": ["tag:server:22"]},
        {"action": "accept", "src": ["group:dev"], "dst": ["tag:server:22"]},
        {"action": "accept", "src": ["autogroup:member"], "dst": ["tag:server:22"], "srcPosture": ["posture:linux"]},
        {"action": "accept", "src": ["bob@example.com"], "dst": ["tag:server:80"]}]"#,
    );
    let found = ask(&policy, "n3", "n4", "22", "");
    assert_eq!(found.verdict, Verdict::Refused);
    assert_eq!(
        found.sentence,
        "n3 (bob@example.com) may not reach n4 (tag:server) on tcp 22: the rules that join the two open only port 80."
    );
    let changes: Vec<(u32, &str)> =
        found.misses.iter().map(|m| (m.rule.as_ref().unwrap().index, m.change.as_str())).collect();
    assert_eq!(
        changes,
        [
            (4, "The rule opens only port 80: it would have to open tcp 22 too."),
            (
                3,
                "n3 does not meet the rule's device posture: posture:linux wants node:os == 'linux', and it is 'windows'."
            ),
            (2, "bob@example.com would have to be in group:dev, or among the rule's sources."),
            (1, "bob@example.com would have to be among the rule's sources."),
            (
                0,
                "The rule takes n3 and leads elsewhere: tag:server (which means n4) would have to be among its destinations."
            ),
        ]
    );
}

#[test]
fn a_miss_mended_is_access() {
    let before = policy(r#""acls": [{"action": "accept", "src": ["group:dev"], "dst": ["tag:server:22"]}]"#);
    assert_eq!(ask(&before, "n3", "n4", "22", "").misses.len(), 1);
    let text = format!(
        "{{{}\"acls\": [{{\"action\": \"accept\", \"src\": [\"group:dev\"], \"dst\": [\"tag:server:22\"]}}]}}",
        HEAD.replace("\"group:dev\": [\"alice@\"]", "\"group:dev\": [\"alice@\", \"bob@example.com\"]")
    );
    let after = Policy::parse(&text).unwrap().compile(&wide());
    assert_eq!(ask(&after, "n3", "n4", "22", "").verdict, Verdict::Allowed);
}

#[test]
fn routes_exits_and_their_lack_are_told() {
    let policy = policy(
        r#""grants": [{"src": ["alice@"], "dst": ["lan"], "ip": ["tcp:80"], "via": ["tag:router"]}],
        "acls": [{"action": "accept", "src": ["bob@example.com"], "dst": ["autogroup:internet:*"]}]"#,
    );
    let found = ask(&policy, "n1", "10.33.1.1", "80", "");
    assert_eq!(found.verdict, Verdict::Allowed, "{found:#?}");
    let route = found.route.unwrap();
    assert_eq!((route.name.as_str(), route.net), ("n5", Some("10.33.0.0/16".parse().unwrap())));
    let found = ask(&policy, "n3", "autogroup:internet", "443", "");
    assert_eq!(found.verdict, Verdict::Allowed, "{found:#?}");
    assert_eq!(found.route.unwrap().net, None);
    assert_eq!(ask(&policy, "n1", "198.51.100.1", "443", "").verdict, Verdict::Refused);
    let question = Question::parse(&policy, &asked("n1", "172.20.0.1", "80", "")).unwrap();
    let offered = [(NodeId(4), vec!["172.20.0.0/24".parse().unwrap()])].into_iter().collect();
    let found = policy.explain(&question.with_facts(Facts { unapproved: offered, ..Facts::default() }));
    assert_eq!(
        found.sentence,
        "n1 (alice@) may not reach 172.20.0.1 on tcp 80: no approved route and no exit node leads to 172.20.0.1."
    );
    assert_eq!(
        found.misses[0].change,
        "Approve the route 172.20.0.0/24, which n4 offers: it leads to 172.20.0.1 and is not approved."
    );
}

#[test]
fn the_elected_router_is_the_one_told() {
    let policy = policy(r#""acls": [{"action": "accept", "src": ["alice@"], "dst": ["lan:*"]}]"#);
    let question = Question::parse(&policy, &asked("n1", "10.33.1.1", "80", "")).unwrap();
    let net: IpNet = "10.33.0.0/16".parse().unwrap();
    let facts = Facts { carriers: [(net, vec![NodeId(7)])].into_iter().collect(), ..Facts::default() };
    assert_eq!(policy.explain(&question.clone().with_facts(facts)).route.unwrap().node, NodeId(7));
    let facts = Facts { offline: [NodeId(5)].into_iter().collect(), ..Facts::default() };
    assert_eq!(policy.explain(&question.with_facts(facts)).route.unwrap().node, NodeId(7));
}

#[test]
fn devices_and_families_that_differ_are_told_apart() {
    let policy = policy(
        r#""acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["web:22"]},
        {"action": "accept", "src": ["bob@example.com"], "dst": ["tag:server:443"], "srcPosture": ["posture:linux"]},
        {"action": "accept", "src": ["alice@"], "dst": ["autogroup:self:*"]}]"#,
    );
    let found = ask(&policy, "n1", "n4", "22", "");
    assert_eq!(found.verdict, Verdict::Partly);
    assert_eq!(
        found.sentence,
        "n1 (alice@) may reach n4 (tag:server) on tcp 22 over IPv4 only: no rule allows it over IPv6."
    );
    let found = ask(&policy, "alice@", "tag:server", "22", "");
    assert_eq!(found.verdict, Verdict::Partly);
    assert_eq!(found.cases.len(), 2, "{found:#?}");
    let found = ask(&policy, "alice", "alice@", "9", "");
    assert_eq!((found.verdict, found.from.total), (Verdict::Allowed, 2), "{found:#?}");
    let found = ask(&policy, "n1", "n1", "", "");
    assert_eq!((found.verdict, found.rule), (Verdict::Allowed, None));
}

#[test]
fn names_that_mean_nothing_are_said_with_the_nearest() {
    let policy = policy(r#""acls": []"#);
    let faults = Question::parse(&policy, &asked("alise@", "tag:sever", "70000", "tpc")).unwrap_err();
    let told: Vec<(&str, &str)> = faults.iter().map(|f| (f.field, f.hint.as_str())).collect();
    assert_eq!(told[0], ("from", "did you mean alice@?"));
    assert_eq!(told[1], ("to", "did you mean tag:server?"));
    assert_eq!((told[2].0, told[3].0), ("port", "protocol"));
    assert_eq!(faults[0].message, "\"alise@\" is no device, person, tag or address here");
    assert_eq!(Question::parse(&policy, &asked("", "n1", "53", "icmp")).unwrap_err().len(), 2);
}

#[test]
fn capabilities_and_logins_are_told() {
    let policy = policy(
        r#""grants": [{"src": ["alice@"], "dst": ["tag:server"], "app": {"example.com/cap/x": [{"role": "admin"}]}}],
        "acls": [{"action": "accept", "src": ["alice@"], "dst": ["tag:server:443"]}],
        "ssh": [{"action": "accept", "src": ["alice@"], "dst": ["tag:server"], "users": ["root"]}]"#,
    );
    let mut asked = asked("n1", "n4", "443", "");
    asked.ssh_user = Some("root".to_owned());
    let found = policy.explain(&Question::parse(&policy, &asked).unwrap());
    assert_eq!(found.apps[0].name, "example.com/cap/x");
    assert_eq!(found.apps[0].values, [serde_json::json!({"role": "admin"})]);
    let ssh = found.ssh.unwrap();
    assert_eq!((ssh.verdict, ssh.rule.unwrap().section), (SshVerdict::Accept, "ssh"));
    assert!(ssh.sentence.contains("port 22 is closed"), "{}", ssh.sentence);
    asked.ssh_user = Some("deploy".to_owned());
    let found = policy.explain(&Question::parse(&policy, &asked).unwrap());
    assert_eq!(found.ssh.unwrap().verdict, SshVerdict::Refused);
    assert!(serde_json::to_string(&found.apps).unwrap().contains("\"role\":\"admin\""));
}

#[test]
fn a_policy_without_rules_is_named_as_such() {
    let policy = Policy::hosted_default().compile(&wide());
    let found = ask(&policy, "n1", "n4", "22", "");
    assert_eq!((found.verdict, found.rule.unwrap().section), (Verdict::Allowed, "default"));
    agrees(&policy).unwrap();
}

#[test]
fn numbers_of_rules_and_names_in_vain() {
    let policy = policy(
        r#""acls": [
        {"action": "accept", "src": ["alice@"], "dst": ["tag:server:22", "alice@:22"]},
        {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]},
        {"action": "accept", "src": ["tag:exit"], "dst": ["lan:*"]},
        {"action": "accept", "src": ["autogroup:auditor"], "dst": ["*:*"]}]"#,
    );
    let stats = policy.stats();
    let counts: Vec<_> =
        stats.per_rule.iter().map(|r| (r.sources, r.destinations, r.edges, r.matches_nothing)).collect();
    // 2 x (2 servers + 2 of their own) without the 2 that are themselves; then 2 people with 2 devices each.
    assert_eq!(counts[0], (2, 4, 6, false));
    assert_eq!(counts[1], (4, 4, 4, false));
    assert_eq!(counts[2], (1, 3, 3, false));
    assert_eq!((counts[3].0, counts[3].3), (0, true));
    assert_eq!((stats.nodes, stats.users, stats.rules, stats.idle), (9, 2, 4, 1));
    let unused: Vec<&str> = stats.unused.iter().map(|u| u.name.as_str()).collect();
    assert_eq!(
        unused,
        ["group:dev", "group:ops", "pair", "web", "ipset:some", "tag:router", "posture:linux"]
    );
    assert_eq!(stats.unused[0].line, 2);
}
