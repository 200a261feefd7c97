//! SSH rules beyond what was captured: refusals that take nothing else away, recorders, posture.

use super::*;
use crate::acl::ast::AttrValue;
use crate::wire::SshRule;

const TAGS: &str = r#""tagOwners": {"tag:server": [], "tag:router": [], "tag:exit": []}"#;

fn policy(ssh: &str) -> Policy {
    Policy::parse(&format!(
        r#"{{{TAGS}, "postures": {{"posture:linux": ["node:os == 'linux'"]}}, "ssh": [{ssh}]}}"#
    ))
    .unwrap()
}

fn rule(action: &str, src: &str, dst: &str, users: &str, more: &str) -> String {
    format!(r#"{{"action": "{action}", "src": [{src}], "dst": [{dst}], "users": [{users}]{more}}}"#)
}

/// What a client does with its rules: the first that matches, where a refusal asks for no login.
fn login(rules: &[SshRule], world: &World, from: u64, login: &str) -> Option<crate::wire::SshAction> {
    let ip = world.nodes[&NodeId(from)].ipv4.to_string();
    let matches = |rule: &&SshRule| {
        let principal = rule.principals.iter().any(|p| p.node_ip == ip);
        let local = rule.ssh_users.get(login).or_else(|| rule.ssh_users.get("*"));
        let local = local.is_some_and(|l| !l.is_empty() && (l != "=" || login != "root"));
        principal && (local || rule.action.as_ref().unwrap().reject)
    };
    rules.iter().find(matches).and_then(|r| r.action.clone())
}

fn lets_in(rules: &[SshRule], from: u64, name: &str) -> bool {
    login(rules, &world(), from, name).is_some_and(|a| a.accept)
}

#[test]
fn a_check_that_cannot_be_made_refuses_only_its_own_logins() {
    let rules = [
        rule("accept", r#""autogroup:member""#, r#""tag:server""#, r#""autogroup:nonroot", "root""#, ""),
        rule("check", r#""alice@""#, r#""tag:server""#, r#""root", "deploy""#, ""),
    ];
    let compiled = policy(&rules.join(",")).compile(&world());
    let rules = compiled.client_ssh_rules(NodeId(4));
    assert!(!lets_in(&rules, 1, "root") && !lets_in(&rules, 1, "deploy"));
    assert!(lets_in(&rules, 1, "ubuntu"), "the accept rule still holds for other logins");
    assert!(lets_in(&rules, 3, "root") && lets_in(&rules, 3, "deploy"), "and for other people");
    let refusal = login(&rules, &world(), 1, "root").unwrap();
    assert!(refusal.reject && !refusal.accept && refusal.hold_and_delegate.is_empty());
    assert!(refusal.message.contains("check"), "{}", refusal.message);
    let wire = compiled.ssh_rules(NodeId(4), "https://unused");
    assert!(wire[0].action.as_ref().unwrap().hold_and_delegate.starts_with("https://unused/machine/ssh/"));
    assert!(wire.iter().all(|r| !r.action.as_ref().unwrap().reject));
}

#[test]
fn a_check_for_all_but_root_leaves_root() {
    let rules = [
        rule("check", r#""alice@""#, r#""tag:server""#, r#""autogroup:nonroot""#, ""),
        rule("accept", r#""alice@""#, r#""tag:server""#, r#""autogroup:nonroot", "root", "deploy""#, ""),
    ];
    let rules = policy(&rules.join(",")).compile(&world()).client_ssh_rules(NodeId(4));
    assert!(lets_in(&rules, 1, "root"));
    assert!(!lets_in(&rules, 1, "deploy") && !lets_in(&rules, 1, "ubuntu"));
}

#[test]
fn whoever_asks_no_check_is_not_refused() {
    let both = [
        rule("check", r#""alice@""#, r#""tag:server""#, r#""root""#, ""),
        rule("accept", r#""bob@example.com""#, r#""tag:server""#, r#""root""#, ""),
    ];
    let compiled = policy(&both.join(",")).compile(&world());
    let rules = compiled.client_ssh_rules(NodeId(4));
    assert!(lets_in(&rules, 3, "root") && !lets_in(&rules, 1, "root"));
    let plain = policy(&both[1]).compile(&world());
    assert_eq!(plain.client_ssh_rules(NodeId(4)), plain.ssh_rules(NodeId(4), "https://unused"));
    assert!(
        compiled.client_ssh_rules(NodeId(3)).is_empty() && compiled.client_ssh_rules(NodeId(99)).is_empty()
    );
}

#[test]
fn recorders_are_named_and_missing_ones_refuse_where_enforced() {
    let with = |more: &str| {
        let rule = rule("accept", r#""alice@""#, r#""tag:server""#, r#""root""#, more);
        policy(&rule).compile(&world()).ssh_rules(NodeId(4), "https://unused")
    };
    let action = |rules: &[SshRule]| rules[0].action.clone().unwrap();
    let named = action(&with(r#", "recorder": ["tag:router"]"#));
    assert_eq!(named.recorders, ["100.64.1.10:80", "[fd7a:115c:a1e0::1:a]:80"]);
    assert!(named.accept && named.on_recording_failure.is_none());
    let enforced = action(&with(r#", "recorder": ["100.64.1.10"], "enforceRecorder": true"#));
    assert_eq!(enforced.recorders, ["100.64.1.10:80"]);
    let failure = enforced.on_recording_failure.unwrap();
    assert!(!failure.reject_session_with_message.is_empty());
    assert!(!failure.terminate_session_with_message.is_empty());
    let text = serde_json::to_string(&failure).unwrap();
    assert!(text.starts_with("{\"RejectSessionWithMessage\":"), "{text}");
}

#[test]
fn a_session_that_must_be_recorded_is_refused_where_nobody_records() {
    let mut world = world();
    world.nodes.remove(&NodeId(5));
    let rules = [
        rule(
            "accept",
            r#""alice@""#,
            r#""tag:server""#,
            r#""root""#,
            r#", "recorder": ["tag:router"], "enforceRecorder": true"#,
        ),
        rule("accept", r#""alice@""#, r#""tag:server""#, r#""root", "ubuntu""#, ""),
    ];
    let rules = policy(&rules.join(",")).compile(&world).ssh_rules(NodeId(4), "https://unused");
    assert!(lets_in(&rules, 1, "ubuntu"));
    let refusal = login(&rules, &world, 1, "root").unwrap();
    assert!(refusal.reject && refusal.message.contains("recorded"), "a rule behind it does not help");
}

#[test]
fn sources_without_the_posture_are_left_out() {
    let mut world = world();
    let os = |world: &mut World, node, os: &str| {
        let attributes = &mut world.nodes.get_mut(&NodeId(node)).unwrap().attributes;
        attributes.insert("node:os".into(), AttrValue::Text(os.into()));
    };
    os(&mut world, 1, "linux");
    os(&mut world, 2, "windows");
    let fit =
        rule("accept", r#""alice@""#, r#""tag:server""#, r#""root""#, r#", "srcPosture": ["posture:linux"]"#);
    let rules = policy(&fit).compile(&world).client_ssh_rules(NodeId(4));
    assert!(lets_in(&rules, 1, "root") && !lets_in(&rules, 2, "root"));
}

#[test]
fn a_mail_address_makes_nobody_root() {
    let mut world = world();
    world.domains.insert("example.com".into());
    world.users.get_mut(&UserId(2)).unwrap().name = "root@example.com".into();
    let local =
        rule("accept", r#""autogroup:member""#, r#""tag:server""#, r#""localpart:*@example.com""#, "");
    let rules = policy(&local).compile(&world).client_ssh_rules(NodeId(4));
    assert!(!lets_in(&rules, 3, "root"));
    world.users.get_mut(&UserId(2)).unwrap().name = "bob@example.com".into();
    let rules = policy(&local).compile(&world).client_ssh_rules(NodeId(4));
    assert!(lets_in(&rules, 3, "bob") && !lets_in(&rules, 3, "alice") && !lets_in(&rules, 1, "alice"));
}

#[test]
fn people_of_a_role_are_sources_and_destinations() {
    let mut world = world();
    world.users.get_mut(&UserId(2)).unwrap().role = Role::Owner;
    let ops = rule("accept", r#""autogroup:admin""#, r#""tag:server""#, r#""root""#, "");
    let rules = policy(&ops).compile(&world).client_ssh_rules(NodeId(4));
    assert!(lets_in(&rules, 3, "root") && !lets_in(&rules, 1, "root"));
}

#[test]
fn a_tagged_source_counts_once_for_each_of_its_tags() {
    let mut world = world();
    let both = ["tag:router", "tag:exit"].map(|t| Tag::parse(t).unwrap());
    add(&mut world, 7, Owner::Tags(Tags::new(both).unwrap()), &[]);
    let ip = world.nodes[&NodeId(7)].ipv4.to_string();
    for src in [r#""autogroup:tagged""#, r#""tag:router""#, r#""tag:router", "tag:exit""#] {
        let rule = rule("accept", src, r#""tag:server""#, r#""root""#, "");
        let rules = policy(&rule).compile(&world).ssh_rules(NodeId(4), "https://unused");
        let times = rules[0].principals.iter().filter(|p| p.node_ip == ip).count();
        assert_eq!((rules.len(), times), (1, 2), "{src}");
    }
}

/// A second tag is another principal: whoever receives the rule is to be told, though nobody entered or
/// left its sources.
#[test]
fn one_tag_more_on_a_source_concerns_the_destinations() {
    let mut world = world();
    let rules = policy(&rule("accept", r#""tag:router""#, r#""tag:server""#, r#""root""#, ""));
    let before = rules.compile(&world);
    let both = ["tag:router", "tag:exit"].map(|t| Tag::parse(t).unwrap());
    let node = world.nodes.get_mut(&NodeId(5)).unwrap();
    node.owner = Owner::Tags(Tags::new(both).unwrap());
    let change = WorldChange { nodes: [(NodeId(5), Some(node.clone()))].into(), ..WorldChange::default() };
    let (after, touched) = before.update(&change);
    let wire = |compiled: &Compiled| compiled.ssh_rules(NodeId(4), "https://unused");
    assert_ne!(wire(&before), wire(&after));
    assert_eq!(wire(&after), wire(&rules.compile(&world)));
    assert!(touched.all || touched.nodes.contains(&NodeId(4)) || touched.filters.contains(&NodeId(4)));
}

/// SEMANTICS.md 12.3: a source that is no destination is told of itself once.
#[test]
fn a_source_with_localpart_is_told_of_itself_once() {
    let mut world = world();
    let both = ["tag:router", "tag:exit"].map(|t| Tag::parse(t).unwrap());
    add(&mut world, 7, Owner::Tags(Tags::new(both).unwrap()), &[]);
    let rule = rule("accept", r#""tag:router""#, r#""tag:server""#, r#""localpart:*@example.com""#, "");
    let told = policy(&rule).compile(&world).ssh_rules(NodeId(7), "https://unused");
    assert_eq!((told.len(), told[0].principals.len()), (1, 2), "both addresses: {told:?}");
}
