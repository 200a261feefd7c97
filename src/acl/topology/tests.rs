//! What may be missing, what is refused, who is elected.

use super::*;

fn read(text: &str) -> Topology {
    Topology::parse(text).unwrap_or_else(|e| panic!("{e}"))
}

fn refused(text: &str) -> String {
    Topology::parse(text).unwrap_err().to_string()
}

#[test]
fn every_field_may_be_missing_or_null() {
    for text in ["{}", r#"{"tailnet":null,"users":null,"nodes":null}"#, r#"{"tailnet":{"settings":null}}"#] {
        assert_eq!(*read(text).world(), World::default());
    }
    let net = read(
        r#"{"users": [{"name": "odin", "id": 0, "email": ""}, {"name": "thor", "email": "thor@example.org"}],
            "nodes": {"b": {"user": "thor", "tags": null, "routable_ips": ["10.1.2.3/8"]},
                      "a": {"user": "odin", "ipv4": "100.64.0.1", "extra": 1}}}"#,
    );
    let world = net.world();
    let names: Vec<_> = world.users.values().map(|u| (u.id.0, u.name.as_str(), u.role)).collect();
    assert_eq!(names, [(1, "odin", Role::Owner), (2, "thor@example.org", Role::Member)]);
    let a = &world.nodes[&net.node("a").unwrap()];
    let b = &world.nodes[&net.node("b").unwrap()];
    assert_eq!((a.id, b.id), (NodeId(1), NodeId(2)));
    assert_eq!((b.owner.user(), b.served_routes.len()), (Some(UserId(2)), 0));
    assert_eq!(b.ipv4.to_string(), "100.64.0.2", "a free address, since the first is taken");
    assert_eq!(b.ipv6.to_string(), "fd7a:115c:a1e0::2");
}

#[test]
fn mail_domains_that_are_not_given_are_those_of_the_users() {
    let domains = |tailnet: &str| -> Vec<String> {
        let users = r#"[{"name": "odin", "email": "odin@example.com"}, {"name": "local"}]"#;
        let net = read(&format!(r#"{{"tailnet": {tailnet}, "users": {users}}}"#));
        net.world().domains.iter().cloned().collect()
    };
    assert_eq!(domains("null"), ["example.com"]);
    assert_eq!(domains(r#"{"domains": null}"#), ["example.com"]);
    assert_eq!(domains(r#"{"domains": ["example.org"]}"#), ["example.org"]);
    assert!(domains(r#"{"domains": []}"#).is_empty());
}

#[test]
fn faults_name_their_place() {
    assert!(refused("{\n \"nodes\": {\"a\": {\"ipv4\": \"x\"}}}").starts_with("line 2, column "));
    assert!(refused("{").starts_with("line 1, column 1: EOF"));
    assert!(refused(r#"{"nodes":{"a":{"tags":["server"]}}}"#).contains("tag:server"));
    assert!(refused(r#"{"nodes":{"a":{"routable_ips":["10.0.0.0/33"]}}}"#).contains("is no network"));
    assert!(refused(r#"{"nodes":{"a":{"tags":["tag:a"]},"a":{}}}"#).contains("\"a\" is there twice"));
    assert!(refused(r#"{"nodes":{"a":{}}}"#).contains("nodes.a: has neither a user nor tags"));
    assert_eq!(
        refused(r#"{"users":[{"name":"odin"}],"nodes":{"a":{"user":"odni"}}}"#),
        "nodes.a.user: no user is called \"odni\"; did you mean odin?"
    );
    assert!(refused(r#"{"users":[{"id":1,"name":"a"},{"id":1,"name":"b"}]}"#).starts_with("users[1].id: 1"));
    assert!(refused(r#"{"users":[{"name":"a","role":"king"}]}"#).contains("king"));
    let twice = r#"{"nodes":{"a":{"tags":["tag:a"],"ipv4":"100.64.0.1"},"b":{"tags":["tag:a"],"ipv4":"100.64.0.1"}}}"#;
    assert_eq!(refused(twice), "nodes.b: has an address of node a");
}

#[test]
fn the_file_elects_and_otherwise_the_first() {
    let net = |a: &str, b: &str| {
        read(&format!(
            r#"{{"nodes":{{
            "a":{{"tags":["tag:r"],"routable_ips":["10.0.0.0/8"],"approved_routes":["10.0.0.0/8"]{a}}},
            "b":{{"tags":["tag:r"],"routable_ips":["10.0.0.0/8"],"approved_routes":["10.0.0.0/8"]{b}}}}}}}"#
        ))
    };
    let route: IpNet = "10.0.0.0/8".parse().unwrap();
    let (a, b) = (NodeId(1), NodeId(2));
    let listed = r#","primary_routes":["10.0.0.0/8"]"#;
    let empty = r#","primary_routes":[]"#;
    assert_eq!(net("", "").elected(&route, &[a, b]), Some(a));
    assert_eq!(net("", listed).elected(&route, &[a, b]), Some(b));
    assert_eq!(net(empty, "").elected(&route, &[a, b]), Some(b));
    assert_eq!(net(empty, empty).elected(&route, &[a, b]), None);
    // A group of its own elects among its members, though another carries the route for the rest.
    assert_eq!(net(listed, empty).elected(&route, &[b]), Some(b));
}

#[test]
fn a_policy_is_refused_with_its_faults() {
    let net = read("{}");
    let faults = net.compile("{\"acls\": [{}]}").unwrap_err();
    assert_eq!(faults[0].code, "action");
    assert!(net.compile("{}").is_ok());
}
