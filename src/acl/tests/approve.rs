//! Automatic approval of routes (SEMANTICS.md 11).

use super::*;

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|n| n.parse().unwrap()).collect()
}

fn approved(policy: &str, node: u64, offered: &[&str]) -> Vec<String> {
    let approved = compiled(policy).auto_approved(NodeId(node), &nets(offered));
    approved.iter().map(ToString::to_string).collect()
}

const TAGS: &str = r#""tagOwners": {"tag:router": [], "tag:exit": []}"#;

#[test]
fn parts_of_a_network_are_approved_and_more_than_it_is_not() {
    let policy = format!(r#"{{{TAGS}, "autoApprovers": {{"routes": {{"10.0.0.0/8": ["tag:router"]}}}}}}"#);
    let offered = ["10.33.0.0/16", "10.0.0.0/8", "10.0.0.0/7", "192.168.0.0/24", "10.33.0.0/16"];
    assert_eq!(approved(&policy, 5, &offered), ["10.0.0.0/8", "10.33.0.0/16"], "sorted, each once");
    assert!(approved(&policy, 6, &offered).is_empty(), "another tag");
    assert!(approved(&policy, 1, &offered).is_empty(), "a person's device");
    assert!(approved(&policy, 99, &offered).is_empty(), "a node nobody knows");
}

#[test]
fn exit_routes_are_approved_as_exit_routes_only() {
    let everything = ["0.0.0.0/0", "::/0", "10.0.0.0/8"];
    let routes = format!(
        r#"{{{TAGS}, "autoApprovers": {{"routes": {{"0.0.0.0/0": ["tag:exit"], "::/0": ["tag:exit"]}}}}}}"#
    );
    assert_eq!(approved(&routes, 6, &everything), ["10.0.0.0/8"], "no network stands for an exit route");
    let exit = format!(r#"{{{TAGS}, "autoApprovers": {{"exitNode": ["tag:exit"]}}}}"#);
    assert_eq!(approved(&exit, 6, &everything), ["0.0.0.0/0", "::/0"], "and an exit node is nothing else");
    assert_eq!(approved(&exit, 6, &["::/0"]), ["::/0"], "what is not offered is not approved");
    assert!(approved(&exit, 5, &everything).is_empty());
}

#[test]
fn people_groups_and_roles_approve_for_their_own_devices() {
    let policy = r#"{"groups": {"group:ops": ["alice@"]},
        "autoApprovers": {"routes": {"10.0.0.0/8": ["group:ops"], "172.16.0.0/12": ["autogroup:admin"]},
                          "exitNode": ["bob@example.com"]}}"#;
    assert_eq!(approved(policy, 2, &["10.1.0.0/16"]), ["10.1.0.0/16"]);
    assert!(approved(policy, 4, &["10.1.0.0/16"]).is_empty(), "a tagged node is nobody's device");
    assert_eq!(approved(policy, 3, &["0.0.0.0/0", "10.1.0.0/16"]), ["0.0.0.0/0"]);
    let mut world = world();
    world.users.get_mut(&UserId(2)).unwrap().role = Role::Owner;
    let compiled = Policy::parse(policy).unwrap().compile(&world);
    assert_eq!(compiled.auto_approved(NodeId(3), &nets(&["172.16.1.0/24"])).len(), 1, "owners are admins");
    assert!(compiled.auto_approved(NodeId(1), &nets(&["172.16.1.0/24"])).is_empty());
}

#[test]
fn nobodys_address_is_given_to_another() {
    let policy = r#"{"tagOwners": {"tag:router": []}, "autoApprovers": {"routes": {"0.0.0.0/0": ["tag:router"], "::/0": ["tag:router"]}}}"#;
    let offered =
        ["100.64.1.2/32", "fd7a:115c:a1e0::1:2/128", "100.64.1.0/24", "100.99.0.1/32", "10.0.0.1/32"];
    // A node's own address stays the more precise one beside a network around it.
    assert_eq!(approved(policy, 5, &offered), ["10.0.0.1/32", "100.64.1.0/24", "100.99.0.1/32"]);
}
