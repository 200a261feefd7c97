//! Tests of the room as a whole: errors with their places, ownership, words of a diff, and the
//! properties that hold for any policy (`naive`).

mod approve;
mod asserts;
mod attrs;
mod diff;
mod explain;
mod guide;
mod hostile;
mod language;
mod sizes;
mod ssh;

use super::*;
use crate::model::{Role, Tags};

/// A world of `alice` (1: two devices), `bob@example.com` (2: one), a tagged server and a router.
pub(super) fn world() -> World {
    let mut world = World::default();
    for (id, name) in [(1, "alice"), (2, "bob@example.com")] {
        let id = UserId(id);
        let name = name.to_owned();
        world.users.insert(id, WorldUser { id, name, role: Role::Member });
    }
    let tagged = |tag: &str| Owner::Tags(Tags::new([Tag::parse(tag).unwrap()]).unwrap());
    add(&mut world, 1, Owner::User(UserId(1)), &[]);
    add(&mut world, 2, Owner::User(UserId(1)), &[]);
    add(&mut world, 3, Owner::User(UserId(2)), &[]);
    add(&mut world, 4, tagged("tag:server"), &[]);
    add(&mut world, 5, tagged("tag:router"), &["10.33.0.0/16"]);
    add(&mut world, 6, tagged("tag:exit"), &["0.0.0.0/0", "::/0"]);
    world
}

pub(super) fn add(world: &mut World, number: u8, owner: Owner, routes: &[&str]) {
    let id = NodeId(u64::from(number));
    world.nodes.insert(
        id,
        WorldNode {
            name: format!("n{number}"),
            attributes: Default::default(),
            id,
            owner,
            ipv4: Ipv4Addr::new(100, 64, 1, number * 2),
            ipv6: Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 1, u16::from(number) * 2),
            served_routes: routes.iter().map(|r| r.parse().unwrap()).collect(),
        },
    );
}

fn texts(list: &[Arc<str>]) -> Vec<&str> {
    list.iter().map(|t| &**t).collect()
}

fn faults(text: &str) -> Vec<PolicyError> {
    Policy::parse(text).unwrap_err()
}

fn compiled(text: &str) -> Compiled {
    Policy::parse(text).unwrap().compile(&world())
}

fn ids(list: &[u64]) -> Vec<NodeId> {
    list.iter().copied().map(NodeId).collect()
}

#[test]
fn an_unknown_tag_is_placed_and_the_near_one_named() {
    let text = "{\n  \"tagOwners\": {\"tag:server\": []},\n  \"acls\": [\n    {\"action\": \"accept\", \"src\": [\"tag:sever\"], \"dst\": [\"tag:server:22\"]}\n  ]\n}";
    let found = faults(text);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].code, found[0].line, found[0].column), ("unknown-tag", 4, 34));
    assert_eq!(found[0].message, "src=tag not found: \"tag:sever\"");
    assert_eq!(found[0].hint, "tag:sever is declared by nobody; did you mean tag:server?");
}

#[test]
fn every_fault_of_a_file_is_told_in_order_and_at_most_fifty() {
    let text = r#"{
        "acl": [],
        "groups": {"group:a": ["group:b", "carol"]},
        "tagOwners": {"tag:1x": [], "tag:x": ["tag:y"]},
        "hosts": {"web": "10.0.0.300"},
        "acls": [
            {"action": "deny", "src": ["*"], "dst": ["tag:x:ssh"]},
            {"action": "accept", "proto": "*", "src": ["*"], "dst": ["*:*"]},
            {"action": "accept", "src": ["autogroup:self"], "dst": ["autogroup:danger-all:*"]},
            {"action": "accept", "src": ["tag:x"], "dst": ["autogroup:self:*"], "extra": 1},
            {"action": "accept", "proto": "icmp", "src": ["group:aa"], "dst": ["nohost:22"]}
        ]
    }"#;
    let found = faults(text);
    let codes: Vec<_> = found.iter().map(|f| f.code).collect();
    assert_eq!(
        codes,
        [
            "unknown-field",
            "nested-group",
            "user-name",
            "tag-name",
            "unknown-tag",
            "host-address",
            "action",
            "ports",
            "protocol",
            "alias-place",
            "alias-place",
            "self-sources",
            "unknown-field",
            "unknown-group",
            "ports",
            "unknown-host",
        ]
    );
    assert!(found[0].hint.contains("acls"), "{}", found[0].hint);
    assert!(found.iter().all(|f| !f.hint.is_empty()));
    let many = format!("{{\"acls\": [{}]}}", "{\"action\": \"no\"},".repeat(200));
    assert_eq!(faults(&many).len(), 50);
}

#[test]
fn absent_rules_allow_and_empty_rules_deny() {
    let all = ids(&[2, 3, 4, 5, 6]);
    assert_eq!(compiled("{}").peers(NodeId(1)), all);
    assert_eq!(compiled("{\"acls\": null}").peers(NodeId(1)), all);
    for nothing in ["{\"acls\": []}", "{\"grants\": []}", "{\"acls\": [], \"grants\": null}"] {
        assert!(compiled(nothing).peers(NodeId(1)).is_empty(), "{nothing}");
        assert!(compiled(nothing).filter_rules(NodeId(1)).is_empty(), "{nothing}");
    }
    let default = Policy::hosted_default().compile(&world());
    let rules = default.filter_rules(NodeId(4));
    assert_eq!(rules.len(), 1);
    assert_eq!(
        texts(&rules[0].src_ips),
        ["10.33.0.0/16", "100.115.94.0-100.127.255.255", "100.64.0.0-100.115.91.255", "fd7a:115c:a1e0::/48",]
    );
    assert_eq!(&*rules[0].dst_ports[0].ip, "*");
    assert!(Arc::ptr_eq(&rules, &default.filter_rules(NodeId(1))), "equal nodes share their rules");
}

/// SEMANTICS.md 6.3: nothing is taken out of `DstPorts`, neither of an ACL nor of a grant.
#[test]
fn destinations_written_twice_are_told_twice() {
    for section in [
        r#""acls": [{"action": "accept", "src": ["*"], "dst": ["tag:server:22", "tag:server:22"]}]"#,
        r#""acls": [{"action": "accept", "src": ["*"], "dst": ["tag:server:22,22"]}]"#,
        r#""grants": [{"src": ["*"], "dst": ["tag:server", "tag:server"], "ip": ["22"]}]"#,
        r#""grants": [{"src": ["*"], "dst": ["tag:server"], "ip": ["22", "22"]}]"#,
    ] {
        let rules = compiled(&format!(r#"{{"tagOwners": {{"tag:server": []}}, {section}}}"#))
            .filter_rules(NodeId(4))
            .to_vec();
        assert_eq!((rules.len(), rules[0].dst_ports.len()), (1, 4), "{section}");
    }
}

/// SEMANTICS.md 8.2, 9.1: a companion's destinations are the sources, all of them; what is wider than a
/// device is narrowed to it, and kept as it is where routes lie in it.
#[test]
fn the_companion_of_all_addresses_reaches_behind_routers() {
    let compiled = compiled(
        r#"{"tagOwners": {"tag:server": []}, "grants": [
            {"src": ["autogroup:danger-all"], "dst": ["tag:server"], "app": {"tailscale.com/cap/drive": []}}]}"#,
    );
    let dsts = |node| -> Vec<String> {
        let rules = compiled.filter_rules(NodeId(node));
        rules.last().unwrap().cap_grant[0].dsts.iter().map(ToString::to_string).collect()
    };
    assert_eq!(dsts(1), ["100.64.1.2/32", "fd7a:115c:a1e0::1:2/128"]);
    assert_eq!(dsts(5), ["0.0.0.0/0", "100.64.1.10/32", "fd7a:115c:a1e0::1:a/128"]);
    assert_eq!(dsts(6).len(), 2, "exit routes are no subnet routes");
}

/// SEMANTICS.md 9.5: only a rule that opens ports of the route leads past `via`. The way back of a rule from
/// `*` does not, or it would lead to a router that lets nobody in.
#[test]
fn a_way_back_does_not_lead_past_via() {
    let mut world = world();
    let spare = Tags::new([Tag::parse("tag:spare").unwrap()]).unwrap();
    add(&mut world, 7, Owner::Tags(spare), &["10.33.0.0/16"]);
    let shown = |acls: &str| {
        let text = format!(
            r#"{{"tagOwners": {{"tag:router": [], "tag:spare": []}}, "acls": [{acls}], "grants": [
                {{"src": ["alice@"], "dst": ["10.33.0.0/16"], "ip": ["*"], "via": ["tag:spare"]}}]}}"#
        );
        let policy = Policy::parse(&text).unwrap().compile(&world);
        let by = |peer| policy.shown_routes(NodeId(1), NodeId(peer), &|_, all| all.first().copied()).len();
        (by(5), by(7))
    };
    let rule = |dst: &str| format!(r#"{{"action": "accept", "src": ["*"], "dst": ["{dst}"]}}"#);
    assert_eq!(shown(""), (0, 1));
    assert_eq!(shown(&rule("alice@:22")), (0, 1), "answers may come from there, nothing goes there");
    assert_eq!(shown(&rule("10.33.4.4:22")), (1, 0), "any router will do");
}

/// SEMANTICS.md 6.1 and 8.2, read for lists of both kinds: what a grant gives others stands before what it
/// gives `autogroup:self`, and a companion of nobody is told like capabilities from nobody.
#[test]
fn a_grant_gives_others_first_and_companions_even_of_nobody() {
    let grant = |dst: &str, rest: &str| {
        let text = format!(
            r#"{{"groups": {{"group:e": []}}, "grants": [{{"src": ["alice@"], "dst": {dst}, {rest}}}]}}"#
        );
        compiled(&text).filter_rules(NodeId(1)).to_vec()
    };
    let both = r#""ip": ["tcp:1", "udp:2"], "app": {"tailscale.com/cap/drive": [{}]}"#;
    let alone = grant(r#"["alice@"]"#, both);
    let own = grant(r#"["autogroup:self"]"#, both);
    let mixed = grant(r#"["autogroup:self", "alice@"]"#, both);
    assert_eq!((alone.len(), own.len()), (4, 4));
    // Ports with the same sources merge into the first place (6.7); capabilities never do.
    let caps = |rules: &[FilterRule]| -> Vec<FilterRule> {
        rules.iter().filter(|r| !r.cap_grant.is_empty()).cloned().collect()
    };
    assert_eq!(caps(&mixed), [caps(&alone), caps(&own)].concat());

    let nobody = grant(r#"["group:e"]"#, r#""app": {"tailscale.com/cap/relay": []}"#);
    assert_eq!(nobody.len(), 1, "{nobody:?}");
    assert!(nobody[0].src_ips.is_empty());
    assert!(nobody[0].cap_grant[0].cap_map.contains_key("tailscale.com/cap/relay-target"));
}

#[test]
fn old_spellings_and_comment_members_are_read() {
    let text = r##"{"ACLs": [{"#note": 1, "action": "accept", "users": ["alice@"], "ports": ["bob@example.com:22"]}]}"##;
    let rules = compiled(text).filter_rules(NodeId(3));
    assert_eq!(rules[0].src_ips.len(), 4);
    let both = r#"{"acls": [{"action": "accept", "users": ["*"], "src": ["*"], "dst": ["*:*"]}]}"#;
    assert_eq!(faults(both)[0].code, "duplicate-key");
    assert_eq!(faults("{\"acls\": [], \"ACLs\": []}")[0].code, "duplicate-key");
}

#[test]
fn self_reaches_own_devices_only() {
    let text =
        r#"{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}"#;
    let policy = compiled(text);
    assert_eq!(policy.peers(NodeId(1)), ids(&[2]));
    assert!(policy.peers(NodeId(3)).is_empty());
    assert!(policy.filter_rules(NodeId(4)).is_empty());
    let rules = policy.filter_rules(NodeId(2));
    assert_eq!(
        texts(&rules[0].src_ips),
        ["100.64.1.2", "100.64.1.4", "fd7a:115c:a1e0::1:2", "fd7a:115c:a1e0::1:4"]
    );
    assert_eq!(rules[0].dst_ports.len(), 2);
}

#[test]
fn self_part_before_an_equal_rule_takes_its_place_in_the_list() {
    let text = r#"{"acls": [
        {"action": "accept", "src": ["alice@"], "dst": ["autogroup:self:1"]},
        {"action": "accept", "src": ["bob@example.com"], "dst": ["alice@:2"]},
        {"action": "accept", "src": ["alice@"], "dst": ["alice@:3"]}
    ]}"#;
    let rules = compiled(text).filter_rules(NodeId(1));
    let ports: Vec<Vec<u16>> =
        rules.iter().map(|r| r.dst_ports.iter().map(|p| p.ports.first).collect()).collect();
    assert_eq!(ports, [vec![1, 1, 3, 3], vec![2, 2]]);
}

#[test]
fn routes_are_shown_to_those_who_may_use_them() {
    let text = r#"{"acls": [
        {"action": "accept", "src": ["alice@"], "dst": ["10.33.0.0/16:*"]},
        {"action": "accept", "src": ["bob@example.com"], "dst": ["autogroup:internet:*"]}
    ]}"#;
    let policy = compiled(text);
    let route: IpNet = "10.33.0.0/16".parse().unwrap();
    assert_eq!(policy.shown_routes(NodeId(1), NodeId(5), &|_, all| all.first().copied()), [route]);
    assert!(policy.shown_routes(NodeId(3), NodeId(5), &|_, all| all.first().copied()).is_empty());
    assert_eq!(policy.shown_routes(NodeId(3), NodeId(6), &|_, all| all.first().copied()).len(), 2);
    assert!(policy.shown_routes(NodeId(1), NodeId(6), &|_, all| all.first().copied()).is_empty());
    assert_eq!(policy.filter_rules(NodeId(6))[0].dst_ports.len(), 7);
}

#[test]
fn unknown_nodes_get_nothing() {
    let policy = compiled("{}");
    assert!(policy.filter_rules(NodeId(99)).is_empty());
    assert!(policy.peers(NodeId(99)).is_empty());
    assert!(!policy.visible(NodeId(1), NodeId(99)));
    assert!(!policy.visible(NodeId(1), NodeId(1)));
}

#[test]
fn tags_may_be_applied_by_owners_their_groups_and_holders() {
    let policy = Policy::parse(
        r#"{"groups": {"group:ops": ["bob@example.com"]},
            "tagOwners": {"tag:a": ["alice@"], "tag:b": ["group:ops"], "tag:c": ["tag:b", "tag:c"],
                          "tag:d": [], "tag:e": ["autogroup:member"], "tag:f": ["tag:d"]}}"#,
    )
    .unwrap();
    let tag = |t: &str| Tag::parse(t).unwrap();
    let may = |t: &str, user: Option<&str>, held: &[Tag]| {
        policy.may_apply(&tag(t), user.map(|name| (name, Role::Member)), held)
    };
    assert!(may("tag:a", Some("alice"), &[]));
    assert!(!may("tag:a", Some("bob@example.com"), &[]));
    assert!(!may("tag:a", None, &[]));
    assert!(may("tag:b", Some("bob@example.com"), &[]));
    assert!(may("tag:c", Some("bob@example.com"), &[]), "owner tags resolve transitively");
    assert!(may("tag:c", None, &[tag("tag:b")]));
    assert!(!may("tag:c", Some("alice"), &[tag("tag:a")]));
    assert!(!may("tag:d", Some("alice"), &[]));
    assert!(may("tag:d", None, &[tag("tag:d")]));
    assert!(may("tag:f", None, &[tag("tag:d")]));
    assert!(may("tag:e", Some("carol"), &[]));
    assert!(!may("tag:e", None, &[]));
    assert!(!may("tag:z", Some("alice"), &[tag("tag:z")]), "undeclared tags belong to nobody");
    assert!(policy.declares(&tag("tag:d")) && !policy.declares(&tag("tag:z")));
}

#[test]
fn tags_may_be_applied_by_people_of_a_role() {
    let policy = Policy::parse(
        r#"{"tagOwners": {"tag:a": ["autogroup:admin"], "tag:o": ["autogroup:owner"],
                          "tag:n": ["autogroup:network-admin"], "tag:b": ["tag:a"]}}"#,
    )
    .unwrap();
    let may = |tag: &str, role| policy.may_apply(&Tag::parse(tag).unwrap(), Some(("alice", role)), &[]);
    assert!(may("tag:a", Role::Admin) && may("tag:a", Role::Owner), "owners are admins too");
    assert!(may("tag:b", Role::Admin), "a role owns what its tags own");
    assert!(may("tag:n", Role::NetworkAdmin));
    assert!(!may("tag:a", Role::NetworkAdmin) && !may("tag:a", Role::Member));
    assert!(may("tag:o", Role::Owner) && !may("tag:o", Role::Admin));
    assert!(!policy.may_apply(&Tag::parse("tag:a").unwrap(), None, &[]));
}

#[test]
fn users_that_do_not_exist_are_warned_of() {
    let text =
        "{\"acls\": [{\"action\": \"accept\",\n\"src\": [\"alise@\"], \"dst\": [\"bob@example.com:*\"]}]}";
    let warnings = Policy::parse(text).unwrap().warnings(&world());
    assert_eq!(warnings.len(), 1);
    assert_eq!((warnings[0].line, warnings[0].column), (2, 9));
    assert_eq!(warnings[0].hint, "did you mean alice@?");
}

#[test]
fn a_diff_names_logins() {
    let with = |users: &str| {
        compiled(&format!(
            r#"{{"tagOwners": {{"tag:server": []}}, "ssh": [
                {{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["{users}"]}},
                {{"action": "accept", "src": ["bob@example.com"], "dst": ["tag:server"], "users": ["root", "{users}"]}}
            ]}}"#
        ))
    };
    let found = diff(&with("autogroup:nonroot"), &with("admin"), 100);
    let entry = |c: &AccessChange| format!("{} > {}: {} ({})", c.from, c.to, c.what, c.pairs);
    let lost: BTreeSet<String> = found.lost.iter().map(entry).collect();
    let want = [
        "bob@example.com > tag:server: ssh as any login but root (1)",
        "n1 of alice@ > n2 of alice@: ssh as any login but root (1)",
        "n2 of alice@ > n1 of alice@: ssh as any login but root (1)",
    ];
    assert_eq!(lost, want.map(str::to_owned).into());
    // Who could log in as anybody gains nothing by one name.
    assert_eq!(found.gained, []);
    assert!(found.exact && found.takes_away());
    let back = diff(&with("admin"), &with("autogroup:nonroot"), 100);
    assert_eq!((back.lost_total, back.gained_total), (0, 3));
}

#[test]
fn a_diff_names_pairs_and_ports() {
    let old = compiled(
        r#"{"acls": [{"action": "accept", "proto": "tcp", "src": ["alice@"], "dst": ["bob@example.com:22,443"]}]}"#,
    );
    let new = compiled(
        r#"{"acls": [
            {"action": "accept", "proto": "tcp", "src": ["alice@"], "dst": ["bob@example.com:443"]},
            {"action": "accept", "src": ["bob@example.com"], "dst": ["10.33.0.0/16:*"]},
            {"action": "accept", "src": ["alice@"], "dst": ["autogroup:self:80-90"]}
        ]}"#,
    );
    let found = diff(&old, &new, 100);
    let entry = |c: &AccessChange| format!("{} > {}: {} ({})", c.from, c.to, c.what, c.pairs);
    let lost: Vec<String> = found.lost.iter().map(entry).collect();
    assert_eq!(lost, ["alice@ > bob@example.com: tcp 22 (2)"]);
    let gained: Vec<String> = found.gained.iter().map(entry).collect();
    assert_eq!(
        gained,
        [
            "alice@ > their own devices: ports 80-90 (2)",
            "bob@example.com > tag:router: all ports at 10.33.0.0/16 (1)"
        ]
    );
    assert_eq!((found.lost_total, found.gained_total, found.exact), (2, 3, true));
    assert_eq!(diff(&new, &new, 100), AccessDiff::default());
    let cut = diff(&old, &new, 1);
    assert_eq!((cut.gained.len(), cut.gained_total), (1, 3));
}

#[test]
fn every_example_of_the_guide_is_read() {
    let (examples, questions) = guide::check();
    assert!(examples >= 15 && questions >= 60, "the guide lost its examples: {examples} and {questions}");
}
