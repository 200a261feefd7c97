//! What changes between two policies beside who reaches whom, and the access that only shows in values,
//! checks and ways.

use super::*;
use crate::acl::ast::AttrValue;

/// `tags` of the world, and what else a policy says.
fn policy(rest: &str) -> Compiled {
    compiled(&text(rest))
}

fn text(rest: &str) -> String {
    format!(
        r#"{{"tagOwners": {{"tag:server": [], "tag:router": [], "tag:exit": [], "tag:spare": [], "tag:new": []}}, {rest}}}"#
    )
}

/// Sign, whom, what; a `!` for what has to be confirmed.
fn lines(old: &Compiled, new: &Compiled) -> Vec<String> {
    let found = diff(old, new, 100);
    assert_eq!(found.other_total, found.other.len() as u64);
    let taken = found.other.iter().filter(|c| c.takes_away).count();
    assert_eq!(found.other_lost, taken as u64);
    assert_eq!(found.changes(), found.gained_total + found.lost_total + found.other_total > 0);
    let line = |c: &OtherChange| {
        let sign = match c.effect {
            Effect::Gained => "+",
            Effect::Lost => "-",
            Effect::Changed => "~",
        };
        let takes = if c.takes_away { "!" } else { "" };
        format!("{takes}{sign} {}: {} ({})", c.who, c.what, c.devices)
    };
    found.other.iter().map(line).collect()
}

fn other(old: &str, new: &str) -> Vec<String> {
    lines(&policy(old), &policy(new))
}

#[test]
fn attributes_come_and_go_for_people_and_tags() {
    let old = r#""nodeAttrs": [{"target": ["alice@", "tag:server"], "attr": ["custom:a", "funnel"]}]"#;
    let new = r#""nodeAttrs": [
        {"target": ["alice@"], "attr": ["custom:a"]},
        {"target": ["bob@example.com"], "attr": ["custom:a", "drive:share"]},
        {"target": ["tag:new"], "attr": ["custom:a"]},
        {"target": ["*"], "attr": ["https://tailscale.com/cap/ssh"]}
    ]"#;
    assert_eq!(
        other(old, new),
        [
            "!- alice@ and tag:server: attribute funnel (3)",
            "+ bob@example.com: attribute custom:a (1)",
            "+ bob@example.com: attribute drive:share (1)",
            "- tag:server: attribute custom:a (1)",
            "+ tag:new (no device today): attribute custom:a (0)",
        ],
        "what every device has anyway is no change"
    );
    assert_eq!(other(new, new), Vec::<String>::new());
    let shared = other(new, r#""nodeAttrs": []"#);
    assert!(shared.contains(&"!- bob@example.com: attribute drive:share (1)".to_owned()), "{shared:?}");
    // One of two devices of a person is called by its name.
    let one = r#""nodeAttrs": [{"target": ["100.64.1.2"], "attr": ["x"]}]"#;
    assert_eq!(other("", one), ["+ n1 of alice@: attribute x (1)"]);
}

#[test]
fn without_ipv4_is_a_loss_whether_by_attribute_or_for_all() {
    let some = r#""nodeAttrs": [{"target": ["alice@"], "attr": ["disable-ipv4", "randomize-client-port"]}]"#;
    assert_eq!(
        other("", some),
        ["!- alice@: IPv4 (attribute disable-ipv4) (2)", "+ alice@: attribute randomize-client-port (2)"]
    );
    let all = format!(r#"{some}, "disableIPv4": true, "randomizeClientPort": true"#);
    assert_eq!(
        other("", &all),
        [
            "!- the whole network: IPv4 (disableIPv4) (6)",
            "+ the whole network: a random UDP port (randomizeClientPort) (6)"
        ]
    );
    // Who went without anyway loses nothing by it.
    let rest = other(some, &all);
    assert_eq!(rest.len(), 2, "{rest:?}");
    assert!(
        rest[0].starts_with("!- bob@example.com, tag:exit, tag:router and tag:server: IPv4 (dis"),
        "{rest:?}"
    );
    assert_eq!(other(&all, r#""disableIPv4": true, "randomizeClientPort": true"#), Vec::<String>::new());
    assert_eq!(
        other(r#""disableIPv4": true"#, ""),
        ["+ the whole network: IPv4 (no disableIPv4 any more) (6)"]
    );
}

#[test]
fn apps_are_told_with_what_changes_in_them() {
    let app = |target: &str, value: &str| {
        format!(
            r#""nodeAttrs": [{{"target": ["{target}"], "app": {{"tailscale.com/app-connectors": [{value}]}}}}]"#
        )
    };
    let (wiki, docs) = (r#"{"name":"wiki"}"#, r#"{"name":"docs"}"#);
    let name = "app tailscale.com/app-connectors";
    assert_eq!(other("", &app("*", wiki)), [format!("+ all 6 devices: {name} {wiki} (6)")]);
    assert_eq!(other(&app("*", wiki), ""), [format!("!- all 6 devices: {name} (6)")]);
    assert_eq!(
        other(&app("*", wiki), &app("*", docs)),
        [format!("~ all 6 devices: {name} {docs} instead of {wiki} (6)")]
    );
    let both = format!("{wiki}, {docs}");
    assert_eq!(
        other(&app("*", wiki), &app("*", &both)),
        [format!("~ all 6 devices: {name} also {docs} (6)")]
    );
    assert_eq!(
        other(&app("*", wiki), &app("alice@", &both)),
        [
            format!("!- bob@example.com, tag:exit, tag:router and tag:server: {name} (4)"),
            format!("~ alice@: {name} also {docs} (2)")
        ]
    );
}

#[test]
fn pools_are_told_for_new_addresses_only() {
    let pool =
        |net: &str| format!(r#""nodeAttrs": [{{"target": ["bob@example.com"], "ipPool": ["{net}"]}}]"#);
    assert_eq!(
        other(&pool("100.96.0.0/16"), &pool("100.97.0.0/16")),
        [
            "~ bob@example.com: new addresses from 100.97.0.0/16 instead of 100.96.0.0/16 (those given stay) (1)"
        ]
    );
    assert_eq!(
        other(&pool("100.96.0.0/16"), ""),
        [
            "~ bob@example.com: new addresses from the server's own pool instead of 100.96.0.0/16 (those given stay) (1)"
        ]
    );
}

#[test]
fn approval_is_told_once_for_the_widest_network() {
    let old = r#""autoApprovers": {"routes": {"10.33.0.0/16": ["tag:router"]}, "exitNode": ["tag:exit"]}"#;
    let new = r#""autoApprovers": {
        "routes": {"10.0.0.0/8": ["tag:router"], "10.33.0.0/16": ["tag:router", "bob@example.com"],
                   "10.33.1.0/24": ["bob@example.com"], "fd00::/8": ["tag:new"]},
        "services": {"svc:web": ["tag:server"]}
    }"#;
    let within = |net: &str| format!("automatic approval of routes within {net}");
    assert_eq!(
        other(old, new),
        [
            "!- tag:exit: automatic approval as an exit node (what is approved stays) (1)".to_owned(),
            format!("+ bob@example.com: {} (1)", within("10.33.0.0/16")),
            format!("+ tag:router: {} (1)", within("10.0.0.0/8")),
            "+ tag:server: automatic approval for svc:web (without effect yet) (1)".to_owned(),
            format!("+ tag:new (no device today): {} (0)", within("fd00::/8")),
        ]
    );
    // A part that is kept is no gain; of the whole that goes the loss is told.
    assert_eq!(
        other(
            r#""autoApprovers": {"routes": {"10.0.0.0/8": ["tag:router"]}}"#,
            r#""autoApprovers": {"routes": {"10.33.0.0/16": ["tag:router"]}}"#
        ),
        [format!("!- tag:router: {} (what is approved stays) (1)", within("10.0.0.0/8"))]
    );
}

#[test]
fn who_may_put_tags_on_devices_is_told() {
    let with = |owners: &str, members: &str| {
        compiled(&format!(
            r#"{{"groups": {{"group:dev": [{members}]}}, "tagOwners": {{"tag:server": ["group:dev"], "tag:web": [{owners}], "tag:db": ["tag:web"]}}}}"#
        ))
    };
    let right =
        |sign: &str, who: &str, tags: &str| format!("{sign} {who}: the right to put {tags} on devices (0)");
    let (one, two) = (with(r#""alice@""#, r#""alice@""#), with(r#""bob@example.com""#, r#""alice@""#));
    assert_eq!(
        lines(&one, &two),
        [right("+", "bob@example.com", "tag:db and tag:web"), right("-", "alice@", "tag:db and tag:web")]
    );
    // Whoever comes into a group owns what the group owns; another word for the same people is no change.
    let more = with(r#""alice@""#, r#""alice@", "bob@example.com""#);
    assert_eq!(lines(&one, &more), [right("+", "bob@example.com", "tag:server")]);
    assert_eq!(lines(&one, &with(r#""group:dev""#, r#""alice@""#)), Vec::<String>::new());
    let (none, by_tag) = (with("", r#""alice@""#), with(r#""tag:server""#, r#""alice@""#));
    assert_eq!(
        lines(&none, &by_tag),
        [right("+", "alice@ and devices with tag:server", "tag:db and tag:web"),]
    );
}

#[test]
fn relays_and_options_concern_the_whole_network() {
    let region = |id: u64, code: &str, host: &str| {
        format!(
            r#""{id}": {{"RegionID": {id}, "RegionCode": "{code}", "RegionName": "x", "Nodes": [{{"Name": "{id}a", "RegionID": {id}, "HostName": "{host}"}}]}}"#
        )
    };
    let map = |omit: bool, regions: &str| {
        format!(r#""derpMap": {{"OmitDefaultRegions": {omit}, "Regions": {{{regions}}}}}"#)
    };
    let far = region(901, "far", "relay.example.com");
    let here = |line: &str| format!("{line} (6)").replacen(' ', " the whole network: ", 1);
    assert_eq!(other("", &map(false, &far)), [here("+ relay region 901 far (relay.example.com)")]);
    assert_eq!(other(&map(false, &far), ""), [here("!- relay region 901 far (relay.example.com)")]);
    assert_eq!(
        other(&map(false, &far), &map(false, &region(901, "far", "new.example.com"))),
        [here("!~ relay region 901 far (new.example.com), before 901 far (relay.example.com)")]
    );
    assert_eq!(
        other(&map(false, &far), &map(false, &region(901, "near", "relay.example.com"))),
        [here("~ relay region 901 near (relay.example.com), before 901 far (relay.example.com)")]
    );
    assert_eq!(other("", &map(false, r#""900": null"#)), [here("!- relay region 900 of this server")]);
    assert_eq!(other(&map(false, r#""900": null"#), ""), [here("+ relay region 900 of this server")]);
    assert_eq!(
        other("", &map(true, &format!(r#"{far}, "900": null"#))),
        [
            here("!- the relays of this server (OmitDefaultRegions)"),
            here("+ relay region 901 far (relay.example.com)")
        ]
    );
    assert_eq!(
        other(r#""OneCGNATRoute": "mac-never""#, r#""OneCGNATRoute": "mac-always""#),
        [here(
            "~ one route for 100.64.0.0/10 always on macOS (mac-always) instead of never on macOS (mac-never) (OneCGNATRoute)"
        )]
    );
}

/// The world with a second router of the same network, and what `alice@`'s first device says of itself.
fn wider() -> World {
    let mut world = world();
    let tags = Tags::new(["tag:router", "tag:spare"].map(|t| Tag::parse(t).unwrap())).unwrap();
    add(&mut world, 7, Owner::Tags(tags), &["10.33.0.0/16"]);
    for node in world.nodes.values_mut() {
        node.attributes.insert("node:os".into(), AttrValue::Text("linux".into()));
    }
    world
}

fn in_wider(old: &str, new: &str) -> (Vec<String>, AccessDiff) {
    let world = wider();
    let [old, new] = [old, new].map(|rest| Policy::parse(&text(rest)).unwrap().compile(&world));
    (lines(&old, &new), diff(&old, &new, 100))
}

#[test]
fn another_way_is_told_also_where_access_is_equal() {
    let via = |tag: &str| {
        format!(
            r#""grants": [
            {{"src": ["alice@"], "dst": ["10.33.0.0/16"], "ip": ["22"], "via": ["tag:{tag}"]}},
            {{"src": ["tag:server"], "dst": ["10.33.0.0/16"], "ip": ["22"]}}
        ]"#
        )
    };
    let (told, _) = in_wider(&via("spare"), &via("router"));
    assert_eq!(told, ["~ alice@: 10.33.0.0/16 through n5 or n7 instead of n7 (2)"]);
    // All routers let the same through, so nobody gains or loses: only the way is another one.
    let two = |more: &str| {
        format!(
            r#""grants": [
            {{"src": ["alice@"], "dst": ["10.33.0.0/16"], "ip": ["22"], "via": ["tag:router"]}},
            {{"src": ["alice@"], "dst": ["10.33.0.0/16"], "ip": ["22"], "via": ["tag:spare"]}}{more}
        ]"#
        )
    };
    let one =
        r#""grants": [{"src": ["alice@"], "dst": ["10.33.0.0/16"], "ip": ["22"], "via": ["tag:router"]}]"#;
    let (told, access) = in_wider(&two(""), one);
    assert_eq!((access.gained_total, access.lost_total), (0, 0));
    assert_eq!(told, ["~ alice@: 10.33.0.0/16 through n5 or n7 instead of n5 or n7 and n7 (2)"]);
    // A plain rule for one port opens the route through any router, and the rest is not open there.
    let plain = |more: &str| {
        format!(
            r#""grants": [
            {{"src": ["alice@"], "dst": ["10.33.0.0/16"], "ip": ["*"], "via": ["tag:spare"]}}{more}
        ]"#
        )
    };
    let (told, access) =
        in_wider(&plain(""), &plain(r#", {"src": ["alice@"], "dst": ["10.33.0.0/16"], "ip": ["80"]}"#));
    assert_eq!(access.lost_total, 0);
    assert_eq!(told, ["!~ alice@: 10.33.0.0/16 through n5 or n7, where less is open instead of n7 (2)"]);
    assert!(access.takes_away());
    // The way back of another rule leads nobody there.
    let (told, _) = in_wider(&plain(""), &plain(r#", {"src": ["*"], "dst": ["alice@"], "ip": ["22"]}"#));
    assert!(told.is_empty(), "{told:?}");
}

#[test]
fn a_posture_that_all_satisfy_today_is_told() {
    let rule = |posture: &str| {
        format!(
            r#""postures": {{"posture:linux": ["node:os == 'linux'"], "posture:too": ["node:os == 'linux'"], "posture:new": ["node:tsVersion >= '1.90'"]}},
               "acls": [{{"action": "accept", "src": ["alice@"], "dst": ["tag:server:443"]{posture}}}],
               "ssh": [{{"action": "accept", "src": ["alice@"], "dst": ["tag:server"], "users": ["root"]{posture}}}]"#
        )
    };
    let asks = |names: &str| rule(&format!(r#", "srcPosture": [{names}]"#));
    let (linux, too) = (asks(r#""posture:linux""#), asks(r#""posture:too""#));
    let (told, access) = in_wider(&rule(""), &linux);
    assert_eq!((access.gained_total, access.lost_total), (0, 0), "all are linux");
    let what = "posture:linux (node:os == 'linux') instead of no posture, for port 443 at tag:server and ssh to tag:server as root";
    assert_eq!(told, [format!("!~ alice@: {what} (2)")]);
    let (told, _) = in_wider(&linux, &rule(""));
    assert_eq!(told.len(), 1);
    assert!(told[0].starts_with("~ alice@: no posture instead of posture:linux"), "{told:?}");
    // Another name for the same demand is no change; one more that is enough takes nothing away.
    assert_eq!(in_wider(&linux, &too).0, Vec::<String>::new());
    let (told, _) = in_wider(&linux, &asks(r#""posture:linux", "posture:new""#));
    assert!(told[0].starts_with("~ alice@: posture:linux (node:os == 'linux') or posture:new"), "{told:?}");
    let (told, _) = in_wider(&asks(r#""posture:linux", "posture:new""#), &linux);
    assert!(told[0].starts_with("!~ alice@"), "{told:?}");
    // A rule that stays counts for what it shares with one that goes.
    let twice = |more: &str| {
        let rule = |posture: &str| {
            format!(
                r#"{{"action": "accept", "src": ["alice@"], "dst": ["tag:server:443"], "srcPosture": [{posture}]}}"#
            )
        };
        let rules = format!(
            "{}{}",
            rule(r#""posture:linux""#),
            if more.is_empty() { String::new() } else { format!(", {}", rule(more)) }
        );
        format!(
            r#""postures": {{"posture:linux": ["node:os == 'linux'"], "posture:new": ["node:tsVersion >= '1.90'"]}}, "acls": [{rules}]"#
        )
    };
    let (told, _) = in_wider(&twice(r#""posture:new""#), &twice(""));
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("posture:linux (node:os == 'linux') instead of posture:linux"), "{told:?}");
    assert_eq!(in_wider(&twice(r#""posture:new""#), &twice("")).1.other_lost, 1);
    // Beside a rule that asks nothing another posture says nothing.
    assert_eq!(in_wider(&twice(""), &twice("")).0, Vec::<String>::new());
    assert_eq!(
        in_wider(&twice(r#""posture:new""#), &twice("").replace(r#", "srcPosture": ["posture:linux"]"#, ""))
            .0
            .len(),
        1
    );
    // A default counts for rules without a posture, also for the rule of an absent policy.
    let default =
        r#""postures": {"posture:linux": ["node:os == 'linux'"]}, "defaultSrcPosture": ["posture:linux"]"#;
    let (told, _) = in_wider("", default);
    assert_eq!(
        told,
        ["!~ *: posture:linux (node:os == 'linux') instead of no posture, for all ports at * (7)"]
    );
}

#[test]
fn values_of_capabilities_and_checks_of_logins_are_access() {
    let grant = |value: &str| {
        format!(
            r#""grants": [{{"src": ["bob@example.com"], "dst": ["tag:server"], "app": {{"example.com/cap/db": [{value}]}}}}]"#
        )
    };
    let entry = |c: &AccessChange| format!("{} > {}: {}", c.from, c.to, c.what);
    let found = diff(&policy(&grant(r#"{"write":true}"#)), &policy(&grant(r#"{"write":false}"#)), 10);
    let all: Vec<String> = found.lost.iter().chain(&found.gained).map(entry).collect();
    assert_eq!(
        all,
        [
            r#"bob@example.com > tag:server: capability example.com/cap/db {"write":true}"#,
            r#"bob@example.com > tag:server: capability example.com/cap/db {"write":false}"#
        ]
    );
    let found = diff(&policy(&grant("1")), &policy(r#""grants": []"#), 10);
    assert_eq!(entry(&found.lost[0]), "bob@example.com > tag:server: capability example.com/cap/db");

    let rule = |action: &str| {
        format!(
            r#"{{"action": "{action}", "src": ["bob@example.com"], "dst": ["tag:server"], "users": ["root", "ops"]}}"#
        )
    };
    let ssh = |rules: &str| policy(&format!(r#""acls": [], "ssh": [{rules}]"#));
    let (free, checked) = (ssh(&rule("accept")), ssh(&rule("check")));
    // A check that is set beside a rule which stays takes as much.
    let both = ssh(&format!("{}, {}", rule("accept"), rule("check")));
    for stricter in [&checked, &both] {
        let found = diff(&free, stricter, 10);
        let lost: BTreeSet<String> = found.lost.iter().map(entry).collect();
        let want =
            ["ops", "root"].map(|l| format!("bob@example.com > tag:server: ssh as {l} without a check"));
        assert_eq!(lost, want.into());
        assert_eq!((found.lost_total, found.gained_total), (2, 0));
        assert_eq!(diff(stricter, &free, 10).gained_total, 2);
    }
    assert!(!diff(&checked, &both, 10).changes());
}

#[test]
fn what_is_gained_one_way_is_lost_the_other() {
    let grants = |via: &str| {
        format!(r#""grants": [{{"src": ["alice@"], "dst": ["10.33.0.0/16"], "ip": ["22"]{via}}}]"#)
    };
    let all = [
        String::new(),
        r#""nodeAttrs": [{"target": ["alice@"], "attr": ["a", "disable-ipv4"]}, {"target": ["*"], "attr": ["b"]}]"#.into(),
        r#""nodeAttrs": [{"target": ["tag:server", "tag:new"], "attr": ["a", "funnel"], "ipPool": ["100.96.0.0/16"]}], "disableIPv4": true"#.into(),
        r#""nodeAttrs": [{"target": ["*"], "app": {"tailscale.com/app-connectors": [{"name": "x"}]}}], "randomizeClientPort": true"#.into(),
        r#""autoApprovers": {"routes": {"10.0.0.0/8": ["tag:router"], "10.1.0.0/16": ["tag:server"]}, "exitNode": ["alice@"]}"#.into(),
        r#""autoApprovers": {"routes": {"10.1.0.0/16": ["tag:router"]}, "services": {"svc:x": ["tag:new"]}}"#.into(),
        r#""derpMap": {"OmitDefaultRegions": true, "Regions": {"901": null}}, "OneCGNATRoute": "mac-never""#.into(),
        grants(""),
        grants(r#", "via": ["tag:router"]"#),
        grants(r#", "via": ["tag:spare"]"#),
    ];
    let world = wider();
    let all: Vec<Compiled> = all.iter().map(|t| Policy::parse(&text(t)).unwrap().compile(&world)).collect();
    for (a, b) in all.iter().flat_map(|a| all.iter().map(move |b| (a, b))) {
        let (there, back) = (diff(a, b, 1000), diff(b, a, 1000));
        let count = |found: &AccessDiff, effect| -> Vec<(OtherKind, String, u64)> {
            let rows = found.other.iter().filter(|c| c.effect == effect);
            let mut rows: Vec<_> = rows.map(|c| (c.kind, c.who.clone(), c.devices)).collect();
            rows.sort();
            rows
        };
        assert_eq!(count(&there, Effect::Gained), count(&back, Effect::Lost));
        assert_eq!(count(&there, Effect::Changed), count(&back, Effect::Changed));
        assert_eq!(there.other_total, back.other_total);
        assert!(!std::ptr::eq(a, b) || !there.changes(), "{there:?}");
    }
}

/// Whether `from` loses a port of `to`, read off the rules that `to` is sent.
fn loses_by_rules(old: &Compiled, new: &Compiled, from: &WorldNode, to: &WorldNode) -> bool {
    let covers = |text: &str, node: &WorldNode| {
        let ips = [std::net::IpAddr::V4(node.ipv4), std::net::IpAddr::V6(node.ipv6)];
        let ends = text.split_once('-').map(|(a, b)| (a.parse().unwrap(), b.parse().unwrap()));
        ips.map(|ip| {
            text == "*"
                || text.parse::<std::net::IpAddr>().is_ok_and(|one| one == ip)
                || text.parse::<IpNet>().is_ok_and(|net| net.contains(&ip))
                || ends.is_some_and(|(a, b): (std::net::IpAddr, std::net::IpAddr)| {
                    a.is_ipv4() == ip.is_ipv4() && a <= ip && ip <= b
                })
        })
    };
    let open = |policy: &Compiled, protocol: i32, port: u16| {
        policy.filter_rules(to.id).iter().any(|rule| {
            let default = rule.ip_proto.is_empty() && [1, 6, 17, 58].contains(&protocol);
            (default || rule.ip_proto.contains(&protocol))
                && rule.dst_ports.iter().filter(|dst| dst.ports.contains(port)).any(|dst| {
                    (0..2).any(|family| {
                        covers(&dst.ip, to)[family]
                            && rule.src_ips.iter().any(|src| covers(src, from)[family])
                    })
                })
        })
    };
    // The ports that the rules name, and their neighbours.
    let ports = [0, 21, 22, 23, 53, 54, 79, 80, 90, 91, 443, 444, 65535];
    let each = [1, 6, 17, 58].into_iter().flat_map(|p| ports.map(|port| (p, port)));
    each.into_iter().any(|(protocol, port)| open(old, protocol, port) && !open(new, protocol, port))
}

#[test]
fn ports_between_two_devices_are_those_of_the_rules_they_are_sent() {
    let rules = [
        r#""acls": []"#,
        r#""acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]"#,
        r#""acls": [{"action": "accept", "src": ["*"], "dst": ["100.64.1.8:22,80-90"]}]"#,
        r#""acls": [{"action": "accept", "src": ["alice@"], "dst": ["tag:server:22"]}, {"action": "accept", "src": ["100.64.1.0/24"], "dst": ["tag:server:80-90"]}]"#,
        r#""acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]"#,
        r#""acls": [{"action": "accept", "proto": "tcp", "src": ["alice@"], "dst": ["alice@:22", "10.33.0.0/16:*"]}]"#,
        r#""grants": [{"src": ["autogroup:member"], "dst": ["tag:server", "autogroup:internet"], "ip": ["tcp:22", "udp:53", "icmp:*"]}]"#,
        r#""grants": [{"src": ["autogroup:danger-all"], "dst": ["autogroup:tagged"], "ip": ["443"]}]"#,
        r#""grants": [{"src": ["100.64.1.2-100.64.1.4"], "dst": ["bob@example.com", "10.33.0.0/16"], "ip": ["*"], "via": ["tag:router"]}]"#,
    ];
    let world = world();
    let all = rules.map(|rest| Policy::parse(&text(rest)).unwrap().compile(&world));
    let mut spoken = 0;
    for (old, new) in all.iter().flat_map(|old| all.iter().map(move |new| (old, new))) {
        for (from, to) in world.nodes.values().flat_map(|f| world.nodes.values().map(move |t| (f, t))) {
            if from.id != to.id {
                let want = loses_by_rules(old, new, from, to);
                assert_eq!(old.opens_beyond(new, from.id, to.id), want, "{} to {}", from.name, to.name);
                spoken += usize::from(want);
            }
        }
    }
    assert!(spoken > 100, "{spoken}");
}
