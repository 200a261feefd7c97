//! Node attributes and the options of the tailnet that reach nodes as capabilities (SEMANTICS.md 10).

use serde_json::{Value, json};

use super::*;
use crate::acl::ast::AttrValue;

const TAGS: &str = r#""tagOwners": {"tag:server": [], "tag:router": [], "tag:exit": []}"#;

fn names(caps: &crate::wire::CapMap) -> Vec<&str> {
    caps.keys().map(|name| name.rsplit('/').next().unwrap()).collect()
}

/// What a node is told beyond the baseline.
fn extra(policy: &str, node: u64) -> Vec<String> {
    let baseline = ["file-sharing", "ssh", "default-auto-update", "is-admin", "is-owner"];
    let caps = compiled(&format!("{{{TAGS}, {policy}}}")).self_caps(NodeId(node));
    names(&caps).into_iter().filter(|n| !baseline.contains(n)).map(str::to_owned).collect()
}

#[test]
fn the_baseline_follows_role_and_setting() {
    let mut world = world();
    world.users.get_mut(&UserId(1)).unwrap().role = Role::Owner;
    let policy = Policy::hosted_default();
    let caps = |world: &World, node| policy.compile(world).self_caps(NodeId(node));
    let owner = caps(&world, 1);
    assert_eq!(names(&owner), ["default-auto-update", "file-sharing", "is-admin", "is-owner", "ssh"]);
    assert_eq!(owner["default-auto-update"], Some(vec![Value::Bool(false)]));
    assert_eq!(names(&caps(&world, 3)), ["default-auto-update", "file-sharing", "ssh"], "a member");
    assert_eq!(names(&caps(&world, 4)), ["default-auto-update", "file-sharing", "is-owner", "ssh"], "tagged");
    world.auto_update = true;
    world.users.get_mut(&UserId(2)).unwrap().role = Role::Admin;
    let admin = caps(&world, 3);
    assert_eq!(names(&admin), ["default-auto-update", "file-sharing", "is-admin", "ssh"]);
    assert_eq!(admin["default-auto-update"], Some(vec![Value::Bool(true)]));
    assert!(caps(&world, 99).is_empty());
}

#[test]
fn a_node_has_the_attributes_of_every_entry_that_names_it() {
    let policy = r#""nodeAttrs": [
        {"target": ["tag:server"], "attr": ["custom:a", "custom:b"]},
        {"target": ["*"], "attr": ["custom:b"]},
        {"target": ["100.64.1.8"], "attr": ["custom:c"]},
        {"target": ["alice@"], "attr": ["https://tailscale.com/cap/ssh"]},
        {"target": [], "attr": ["custom:nobody"]}, {"target": ["*"]}]"#;
    assert_eq!(extra(policy, 4), ["custom:a", "custom:b", "custom:c"]);
    assert_eq!(extra(policy, 1), ["custom:b"]);
}

#[test]
fn values_of_applications_are_gathered() {
    let policy = format!(
        r#"{{{TAGS}, "nodeAttrs": [
            {{"target": ["tag:server"], "app": {{"tailscale.com/app-connectors": [{{"name": "a"}}]}}}},
            {{"target": ["*"], "app": {{"tailscale.com/app-connectors": [{{"name": "b"}}]}}}}]}}"#
    );
    let caps = compiled(&policy).self_caps(NodeId(4));
    let found = caps["tailscale.com/app-connectors"].clone().unwrap();
    assert_eq!(found, [json!({"name": "a"}), json!({"name": "b"})]);
    assert_eq!(
        compiled(&policy).self_caps(NodeId(1))["tailscale.com/app-connectors"].as_ref().unwrap().len(),
        1
    );
}

#[test]
fn funnel_brings_its_ports() {
    let policy = r#""nodeAttrs": [{"target": ["bob@example.com"], "attr": ["funnel"]}]"#;
    assert_eq!(extra(policy, 3), ["funnel", "funnel-ports?ports=443,8443,10000", "warn-funnel-no-https"]);
    assert!(extra(policy, 1).is_empty());
}

#[test]
fn peers_hear_of_an_exit_node_that_is_one() {
    let policy = format!(
        r#"{{{TAGS}, "nodeAttrs": [{{"target": ["*"], "attr": ["suggest-exit-node", "custom:secret"]}}]}}"#
    );
    let all = compiled(&policy);
    assert_eq!(names(&all.peer_caps(NodeId(6))), ["suggest-exit-node"]);
    assert!(all.peer_caps(NodeId(5)).is_empty(), "a router is no exit node");
    assert!(compiled("{}").peer_caps(NodeId(6)).is_empty(), "and only with the attribute");
    assert!(all.self_caps(NodeId(5)).contains_key("suggest-exit-node"));
}

#[test]
fn ipv4_can_be_taken_from_some_and_from_all() {
    let some =
        format!(r#"{{{TAGS}, "nodeAttrs": [{{"target": ["tag:server"], "attr": ["disable-ipv4"]}}]}}"#);
    assert!(compiled(&some).without_ipv4(NodeId(4)));
    assert!(!compiled(&some).without_ipv4(NodeId(1)));
    let all = compiled(r#"{"disableIPv4": true}"#);
    assert!(all.without_ipv4(NodeId(1)) && all.self_caps(NodeId(1)).contains_key("disable-ipv4"));
}

#[test]
fn pools_are_gathered_in_order() {
    let policy = format!(
        r#"{{{TAGS}, "nodeAttrs": [
            {{"target": ["tag:server"], "ipPool": ["100.85.0.0/16"]}},
            {{"target": ["*"], "ipPool": ["100.80.0.0/16", "100.85.0.0/16"]}}]}}"#
    );
    let pool =
        |node| compiled(&policy).ip_pool(NodeId(node)).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(pool(4), ["100.85.0.0/16", "100.80.0.0/16"]);
    assert_eq!(pool(1), ["100.80.0.0/16", "100.85.0.0/16"]);
    assert!(compiled("{}").ip_pool(NodeId(1)).is_empty());
}

#[test]
fn options_of_the_tailnet_reach_the_nodes_they_are_for() {
    assert_eq!(extra(r#""randomizeClientPort": true"#, 3), ["randomize-client-port"]);
    let mut world = world();
    let mac = AttrValue::Text("macos".into());
    world.nodes.get_mut(&NodeId(1)).unwrap().attributes.insert("node:os".into(), mac);
    let caps = |policy: &str, node| Policy::parse(policy).unwrap().compile(&world).self_caps(NodeId(node));
    let always = r#"{"OneCGNATRoute": "mac-always"}"#;
    assert!(caps(always, 1).contains_key("one-cgnat?v=true"));
    assert!(!caps(always, 2).contains_key("one-cgnat?v=true"), "not on other systems");
    assert!(caps(r#"{"OneCGNATRoute": "mac-never"}"#, 1).contains_key("one-cgnat?v=false"));
    let own =
        r#"{"OneCGNATRoute": "mac-never", "nodeAttrs": [{"target": ["*"], "attr": ["one-cgnat?v=true"]}]}"#;
    assert!(!caps(own, 1).contains_key("one-cgnat?v=false"), "a node's own attribute goes before");
}

#[test]
fn variables_are_passed_on_where_a_rule_lets_them() {
    let ssh = r#""ssh": [{"action": "accept", "src": ["alice@"], "dst": ["tag:server"], "users": ["root"],
                          "acceptEnv": ["LC_*"]}]"#;
    assert_eq!(extra(ssh, 4), ["ssh-env-vars"]);
}
