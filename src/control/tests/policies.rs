//! The policy's life: who may go in, what is kept, what is refused, and what reaches clients.

use serde_json::{Value, json};

use super::super::routes;
use super::super::types::AdminError;
use super::{Actor, Client, World, by, settings};
use crate::acl::PolicyError;
use crate::keys::NodeId;
use crate::model::{Role, Tag};

const ALL: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;

async fn put(world: &World, text: &str) -> u64 {
    world.control.set_policy(&by(), text, "", true, None).await.unwrap().version
}

fn codes(error: AdminError) -> Vec<PolicyError> {
    let AdminError::Policy(faults) = error else { panic!("{error}") };
    faults
}

fn has_cap(node: &Value, name: &str) -> bool {
    node["CapMap"].get(format!("https://tailscale.com/cap/{name}")).is_some()
}

#[tokio::test]
async fn the_first_user_owns_the_tailnet_and_a_role_reaches_devices_at_once() {
    let world = World::new().await;
    world.control.create_user(&by(), "bob").await.unwrap();
    let a = world.joined(1, "a").await;
    let mut stream = a.poll().await;
    let first = stream.next().await.unwrap();
    assert!(has_cap(&first["Node"], "is-owner") && has_cap(&first["Node"], "is-admin"), "{first}");

    world.control.set_role(&by(), "bob", Role::Owner).await.unwrap();
    let alice = world.control.set_role(&by(), "alice", Role::Member).await.unwrap();
    assert_eq!(alice.role, Role::Member);
    let told = stream.until(|m| m["Node"].is_object()).await;
    assert!(!has_cap(&told["Node"], "is-owner") && !has_cap(&told["Node"], "is-admin"), "{told}");

    world.control.set_role(&by(), "alice", Role::Admin).await.unwrap();
    let told = stream.until(|m| m["Node"].is_object()).await;
    assert!(!has_cap(&told["Node"], "is-owner") && has_cap(&told["Node"], "is-admin"), "{told}");
    let kept: Vec<Role> = world.after_crash().await.control.users().iter().map(|u| u.role).collect();
    assert_eq!(kept, [Role::Admin, Role::Owner]);
}

#[tokio::test]
async fn there_is_always_an_owner() {
    let world = World::new().await;
    let control = &world.control;
    let refused = control.set_role(&by(), "alice", Role::Admin).await.unwrap_err().to_string();
    assert!(refused.contains("only owner") && refused.contains("users role NAME owner"), "{refused}");
    assert_eq!(control.create_user(&by(), "bob").await.unwrap().role, Role::Member);
    assert!(matches!(control.delete_user(&by(), "alice").await, Err(AdminError::Conflict(_))));
    control.set_role(&by(), "bob", Role::Owner).await.unwrap();
    control.delete_user(&by(), "alice").await.unwrap();
    control.delete_user(&by(), "bob").await.unwrap();
    assert_eq!(control.create_user(&by(), "carol").await.unwrap().role, Role::Owner);
}

#[tokio::test]
async fn ssh_rules_come_and_go_and_going_is_said() {
    let world = World::new().await;
    let a = world.joined(1, "a").await;
    let mut stream = a.poll().await;
    assert!(stream.next().await.unwrap().get("SSHPolicy").is_none(), "clients begin without any");
    let rule = |users: &str| {
        format!(
            r#"{{"ssh": [{{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["{users}"]}}]}}"#
        )
    };
    put(&world, &rule("root")).await;
    let told = stream.until(|m| m.get("SSHPolicy").is_some()).await;
    assert_eq!(told["SSHPolicy"]["rules"][0]["sshUsers"]["root"], "root", "{told}");
    assert!(told.get("PacketFilters").is_none(), "nothing else differs: {told}");
    put(&world, &rule("ubuntu")).await;
    let told = stream.until(|m| m.get("SSHPolicy").is_some()).await;
    assert_eq!(told["SSHPolicy"]["rules"][0]["sshUsers"]["ubuntu"], "ubuntu", "{told}");
    let whole = a.poll().await.next().await.unwrap();
    assert_eq!(whole["SSHPolicy"], told["SSHPolicy"]);
    let mut stream = a.poll().await;
    stream.next().await.unwrap();
    put(&world, ALL).await;
    let told = stream.until(|m| m.get("SSHPolicy").is_some()).await;
    assert_eq!(told["SSHPolicy"]["rules"], json!([]), "absent would mean unchanged");
}

#[tokio::test]
async fn the_relays_of_the_policy_reach_clients() {
    let world = World::new().await;
    let a = world.joined(1, "a").await;
    let mut stream = a.poll().await;
    assert!(stream.next().await.unwrap()["DERPMap"]["Regions"].get("900").is_some());
    put(
        &world,
        r#"{"derpMap": {"Regions": {"900": null, "901": {"RegionID": 901, "RegionCode": "own", "RegionName": "Own",
            "Nodes": [{"Name": "901a", "RegionID": 901, "HostName": "relay.example.com"}]}}}}"#,
    )
    .await;
    let told = stream.until(|m| m.get("DERPMap").is_some()).await;
    let regions = told["DERPMap"]["Regions"].as_object().unwrap();
    assert_eq!(regions.keys().collect::<Vec<_>>(), ["901"]);
    assert_eq!(a.poll().await.next().await.unwrap()["DERPMap"], told["DERPMap"]);
}

const APPROVERS: &str = r#"{"tagOwners": {"tag:r": ["alice@"]},
    "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:r"]}, "exitNode": ["alice@"]}}"#;

fn offer(routes: &[&str]) -> Value {
    json!({"Hostinfo": {"Hostname": "r", "RoutableIPs": routes, "NetInfo": {"PreferredDERP": 900}}})
}

fn approved(world: &World, node: &str) -> Vec<String> {
    world.control.node(node).unwrap().approved_routes.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn the_policy_approves_routes_and_never_takes_them_back() {
    let world = World::new().await;
    put(&world, APPROVERS).await;
    let r = world.joined(1, "r").await;
    let c = world.joined(2, "c").await;
    let mut watching = c.poll().await;
    watching.next().await.unwrap();
    // Alice's device may be an exit node, and serves a network only with the tag.
    r.update("r", 1, offer(&["0.0.0.0/0", "::/0", "10.1.0.0/16", "192.168.0.0/16"])).await;
    assert_eq!(approved(&world, "r"), ["0.0.0.0/0", "::/0"]);
    world.control.tag_node(&by(), "r", &[Tag::parse("tag:r").unwrap()]).await.unwrap();
    assert_eq!(approved(&world, "r"), ["0.0.0.0/0", "10.1.0.0/16", "::/0"], "added, not taken");
    let shown = |m: &Value| {
        m["PeersChanged"]
            .as_array()
            .is_some_and(|p| p.iter().any(|p| p["PrimaryRoutes"] == json!(["10.1.0.0/16"])))
    };
    watching.until(shown).await;

    // What a person took back stays back until the device comes with something new.
    world.control.approve_routes(&by(), "r", Some(&[])).await.unwrap();
    r.update("r", 1, offer(&["0.0.0.0/0", "::/0", "10.1.0.0/16", "192.168.0.0/16"])).await;
    assert!(approved(&world, "r").is_empty());
    r.update("r", 1, offer(&["10.1.0.0/16", "10.2.0.0/16"])).await;
    assert_eq!(approved(&world, "r"), ["10.1.0.0/16", "10.2.0.0/16"]);

    put(&world, r#"{"tagOwners": {"tag:r": []}}"#).await;
    assert_eq!(approved(&world, "r").len(), 2, "an approver who went withdraws nothing");
    world.control.approve_routes(&by(), "r", Some(&[])).await.unwrap();
    put(&world, APPROVERS).await;
    assert_eq!(approved(&world, "r").len(), 2, "a policy put in force approves");
    assert_eq!(approved(&world.after_crash().await, "r").len(), 2);
}

#[tokio::test]
async fn a_device_that_joins_with_routes_has_them_approved_and_addresses_from_its_pool() {
    let world = World::new().await;
    put(
        &world,
        r#"{"tagOwners": {"tag:r": ["alice@"]}, "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:r"]}},
            "nodeAttrs": [{"target": ["tag:r"], "ipPool": ["100.81.0.0/16"]}]}"#,
    )
    .await;
    let tagged = world.key(true, false, &["tag:r"]).await;
    let plain = world.key(true, false, &[]).await;
    for (seed, name, key) in [(1, "r", &tagged), (2, "p", &plain), (3, "s", &tagged)] {
        let client = Client::new(&world.control, seed).await;
        let info = json!({"Hostinfo": {"Hostname": name, "RoutableIPs": ["10.3.0.0/16"]}});
        assert_eq!(client.register(name, key, info).await["MachineAuthorized"], true);
    }
    assert_eq!(approved(&world, "r"), ["10.3.0.0/16"]);
    assert!(approved(&world, "p").is_empty());
    let ip = |n: &str| world.control.node(n).unwrap().ipv4.to_string();
    assert_eq!([ip("r"), ip("p"), ip("s")], ["100.81.0.1", "100.64.0.1", "100.81.0.2"]);
}

#[tokio::test]
async fn without_ipv4_a_device_has_none_and_is_shown_none() {
    let world = World::new().await;
    let a = world.joined(1, "a").await;
    let b = world.joined(2, "b").await;
    let (mut sa, mut sb) = (a.poll().await, b.poll().await);
    sa.next().await.unwrap();
    sb.next().await.unwrap();
    let four =
        |list: &Value| list.as_array().unwrap().iter().any(|t| t.as_str().unwrap().starts_with("100."));
    put(&world, r#"{"nodeAttrs": [{"target": ["100.64.0.1"], "attr": ["disable-ipv4"]}]}"#).await;
    let own = sa.until(|m| m["Node"].is_object() && m["PeersChanged"].is_array()).await;
    for list in [&own["Node"]["Addresses"], &own["Node"]["AllowedIPs"], &own["PeersChanged"][0]["AllowedIPs"]]
    {
        assert!(!four(list), "{own}");
    }
    let other = sb.until(|m| m["PeersChanged"].is_array()).await;
    assert!(!four(&other["PeersChanged"][0]["Addresses"]), "{other}");
    assert!(other.get("Node").is_none(), "b itself keeps its own");
    put(&world, ALL).await;
    let own = sa.until(|m| m["Node"].is_object() && m["PeersChanged"].is_array()).await;
    assert!(four(&own["Node"]["Addresses"]) && four(&own["PeersChanged"][0]["Addresses"]));
}

#[tokio::test]
async fn each_via_group_has_a_carrier_of_its_own_that_does_not_flap() {
    let world = World::new().await;
    put(
        &world,
        r#"{"tagOwners": {"tag:v": ["alice@"]},
            "grants": [{"src": ["alice@"], "dst": ["10.1.0.0/16"], "ip": ["*"], "via": ["tag:v"]}]}"#,
    )
    .await;
    let (_c, tag) = (world.joined(1, "c").await, Tag::parse("tag:v").unwrap());
    for (seed, name) in [(2, "plain"), (3, "v3"), (4, "v4")] {
        let router = world.joined(seed, name).await;
        let info = json!({"Hostinfo": {"Hostname": name, "RoutableIPs": ["10.1.0.0/16"]}});
        router.update(name, seed, info).await;
        if name != "plain" {
            world.control.tag_node(&by(), name, std::slice::from_ref(&tag)).await.unwrap();
        }
        world.control.approve_routes(&by(), name, None).await.unwrap();
    }
    let online = async |id: u64, on: bool| {
        let done = world.control.run(move |draft| {
            draft.set_online(NodeId(id), on);
            Ok(())
        });
        done.await.unwrap();
    };
    let carriers = || {
        let net = world.control.net();
        let route = "10.1.0.0/16".parse().unwrap();
        let shows = |id: &u64| !routes::shown(&net, NodeId(1), NodeId(*id)).is_empty();
        (net.primaries.primary(&route).unwrap().0, (2..=4).filter(shows).collect::<Vec<_>>())
    };
    for id in 2..=4 {
        online(id, true).await;
    }
    assert_eq!(carriers(), (2, vec![3]), "the lowest of all, and the lowest of the tagged");
    online(3, false).await;
    assert_eq!(carriers(), (2, vec![4]));
    online(3, true).await;
    assert_eq!(carriers(), (2, vec![4]), "who carries goes on carrying");
    online(2, false).await;
    assert_eq!(carriers().1, [4], "the others' election is none of theirs");
}

const TESTED: &str = r#"{"groups": {"group:g": ["bob@"]},
    "acls": [{"action": "accept", "src": ["group:g"], "dst": ["*:22"]}],
    "tests": [{"src": "bob@", "accept": ["100.64.0.1:22"]}]}"#;

async fn join_as(world: &World, seed: u8, user: &str) -> Client {
    let request = super::NewAuthKeyRequest {
        user: user.into(),
        reusable: false,
        ephemeral: false,
        tags: Vec::new(),
        lifetime: std::time::Duration::from_secs(60),
    };
    let key = world.control.create_auth_key(&by(), request).await.unwrap().secret;
    let client = Client::new(&world.control, seed).await;
    assert_eq!(client.register(&format!("n{seed}"), &key, json!({})).await["MachineAuthorized"], true);
    client
}

#[tokio::test]
async fn tests_stop_a_policy_and_are_asked_again_when_the_tailnet_changes() {
    let world = World::new().await;
    let control = &world.control;
    control.create_user(&by(), "bob").await.unwrap();
    let _a = world.joined(1, "a").await;
    let mut broken = control.shared().broken.subscribe();
    // Bob has no device: the source resolves to nothing.
    let refused = codes(control.set_policy(&by(), TESTED, "", true, None).await.unwrap_err());
    assert!(refused[0].message.contains("test(s) failed"), "{refused:?}");
    assert!(matches!(control.check_policy(&by(), TESTED).await, Err(AdminError::Policy(_))));
    assert_eq!(control.policy().version, 0);

    let _b = join_as(&world, 2, "bob").await;
    put(&world, TESTED).await;
    assert!(control.broken_tests().is_empty());
    control.delete_node(&by(), "n2").await.unwrap();
    broken.wait_for(|b| !b.is_empty()).await.unwrap();
    let found = control.broken_tests();
    assert_eq!((found.len(), found[0].line), (1, 3), "{found:?}");
    assert_eq!(control.stats().policy_tests_failing, 1);
    assert!(control.warnings().iter().any(|w| w.contains("line 3")), "{:?}", control.warnings());

    // At a start it is reported, and the server starts.
    let again = world.after_crash().await;
    again.control.shared().broken.subscribe().wait_for(|b| !b.is_empty()).await.unwrap();
    assert_eq!(again.control.policy().version, 1);

    let _c = join_as(&world, 3, "bob").await;
    broken.wait_for(|b| b.is_empty()).await.unwrap();
    assert!(control.warnings().is_empty());
}

#[tokio::test]
async fn a_policy_file_starts_with_failing_tests_and_may_not_be_overruled() {
    let world = World::new().await;
    let control = &world.control;
    let file = control.set_policy_from_file(&by(), TESTED, false).await;
    assert!(matches!(file, Err(AdminError::Policy(_))));
    assert_eq!(control.set_policy_from_file(&by(), TESTED, true).await.unwrap().version, 1);
    let configured = super::Settings { policy_file: Some("/etc/p.hujson".into()), ..settings() };
    control.reload(configured).await.unwrap();
    for refused in [
        control.set_policy(&by(), ALL, "", true, None).await,
        control.rollback_policy(&by(), 1, "", true, None).await,
    ] {
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("/etc/p.hujson") && text.contains("SIGHUP"), "{text}");
    }
    assert!(control.check_policy(&by(), ALL).await.is_ok(), "looking is free");
    assert_eq!(control.set_policy_from_file(&by(), ALL, false).await.unwrap().version, 2);
    control.reload(settings()).await.unwrap();
    assert_eq!(put(&world, APPROVERS).await, 3);
}

#[tokio::test]
async fn versions_carry_author_and_comment_and_can_be_gone_back_to() {
    let world = World::new().await;
    let control = &world.control;
    let text = "// exact\r\n{\"acls\": [], }\t";
    control.set_policy(&by(), text, "  nobody for now ", true, None).await.unwrap();
    put(&world, ALL).await;
    let (_a, _b) = (world.joined(1, "a").await, world.joined(2, "b").await);
    let asks = control.rollback_policy(&by(), 1, "", false, None).await;
    assert!(matches!(asks, Err(AdminError::NeedsConfirmation(_))), "the same questions");
    let done = control.rollback_policy(&by(), 1, "all was too much", true, Some(2)).await.unwrap();
    assert_eq!(done.version, 3);
    assert_eq!(control.policy().text, text, "byte for byte");
    let told = |c: Vec<crate::model::PolicySummary>| {
        c.into_iter().map(|p| (p.version, p.author, p.comment, p.bytes)).collect::<Vec<_>>()
    };
    let history = told(world.after_crash().await.control.policy_history().await.unwrap());
    let bytes = text.len() as u64;
    assert_eq!(
        history,
        [
            (3, "test".into(), "back to version 1: all was too much".into(), bytes),
            (2, "test".into(), String::new(), ALL.len() as u64),
            (1, "test".into(), "nobody for now".into(), bytes),
        ]
    );
    assert_eq!(control.policy_at(2).await.unwrap().text, ALL);
    let missing = control.policy_at(9).await.unwrap_err().to_string();
    assert!(missing.contains("tsd policy history"), "{missing}");
    let long = control.set_policy(&by(), ALL, &"x".repeat(501), true, None).await;
    assert!(matches!(long, Err(AdminError::Invalid(_))));
}

#[tokio::test]
async fn an_unreadable_stored_policy_does_not_keep_the_server_from_starting() {
    let world = World::new().await;
    let (_a, _b) = (world.joined(1, "a").await, world.joined(2, "b").await);
    put(&world, ALL).await;
    let spoil = |n: i64| {
        let shared = std::sync::Arc::clone(world.control.shared());
        async move {
            let sql = "UPDATE policies SET text = '{\"aclz\": 1}' WHERE version = ?1";
            shared.store.test(move |c| drop(c.execute(sql, [n]))).await;
            // Answered when that is on disk.
            shared.store.policies().await.unwrap();
        }
    };
    put(&world, r#"{"acls": []}"#).await;
    spoil(2).await;
    let again = world.after_crash().await;
    assert_eq!(again.control.policy().version, 1, "the last that can be read");
    let fault = again.control.policy_fault().unwrap();
    assert!(fault.contains("version 2") && fault.contains("aclz") && fault.contains("version 1"), "{fault}");
    assert!(again.control.warnings().contains(&fault));
    assert_eq!(again.control.policy_at(2).await.unwrap().text, r#"{"aclz": 1}"#, "to be mended");
    // The next one takes the place, under a number of its own.
    assert_eq!(again.control.set_policy(&by(), ALL, "", true, Some(1)).await.unwrap().version, 3);
    assert_eq!(again.control.policy_fault(), None);

    spoil(1).await;
    let none = world.after_crash().await;
    assert!(none.control.policy_fault().unwrap().contains("nobody reaches anybody"));
    let net = none.control.net();
    for id in net.nodes.keys() {
        assert!(net.compiled.filter_rules(*id).is_empty() && net.compiled.peers(*id).is_empty());
    }
    assert_eq!(none.control.set_policy(&by(), ALL, "", true, None).await.unwrap().version, 3);
}

#[tokio::test]
async fn of_a_storm_of_policies_the_last_one_is_what_clients_have() {
    let world = World::new().await;
    let (a, _b) = (world.joined(1, "a").await, world.joined(2, "b").await);
    let mut stream = a.poll().await;
    stream.next().await.unwrap();
    let mut last = 0;
    for n in 1..=100_u32 {
        let text = format!(r#"{{"acls": [{{"action": "accept", "src": ["*"], "dst": ["*:{n}"]}}]}}"#);
        let version = put(&world, &text).await;
        assert_eq!(version, last + 1);
        last = version;
    }
    let port = |m: &Value| m["PacketFilters"]["base"][0]["DstPorts"][0]["Ports"]["First"].as_u64();
    let mut told = Vec::new();
    while told.last() != Some(&100) {
        told.extend(port(&stream.next().await.unwrap()));
    }
    assert!(told.is_sorted(), "{told:?}");
    assert!(told.len() < 100, "they merge: {}", told.len());
}

#[tokio::test]
async fn an_author_who_would_lose_the_way_to_the_server_is_told_first() {
    let world = World::new().await;
    let control = &world.control;
    let (_here, _laptop) = (world.joined(1, "here").await, world.joined(2, "laptop").await);
    control.on_addresses(std::sync::Arc::new(|| vec!["100.64.0.1".parse().unwrap()]));
    let at = |ip: &str| Actor::at("console", ip.parse().unwrap());
    let only = |ports: &str| {
        format!(r#"{{"acls": [{{"action": "accept", "src": ["*"], "dst": ["100.64.0.1:{ports}"]}}]}}"#)
    };
    let cut =
        |by: Actor, text: String| async move { control.check_policy(&by, &text).await.unwrap().cuts_author };
    let said = cut(at("100.64.0.2"), only("22")).await.unwrap();
    assert!(said.contains("laptop") && said.contains("here") && said.contains("rollback"), "{said}");
    assert_eq!(cut(at("100.64.0.2"), ALL.into()).await, None);
    // Kept whole by two rules together, by IPv6 as well.
    assert_eq!(cut(at("fd7a:115c:a1e0::6440:2"), only("0-99,100-65535")).await, None);
    assert!(cut(at("fd7a:115c:a1e0::6440:2"), only("443")).await.is_some());
    for elsewhere in [at("192.0.2.1"), at("100.64.0.1"), by()] {
        assert_eq!(cut(elsewhere, only("22")).await, None);
    }
    let asked = control.set_policy(&at("100.64.0.2"), &only("22"), "", false, None).await.unwrap_err();
    let AdminError::NeedsConfirmation(outcome) = asked else { panic!("{asked}") };
    assert_eq!(outcome.cuts_author, Some(said));
}

#[tokio::test]
async fn the_text_in_force_is_not_stored_again() {
    let world = World::new().await;
    let control = &world.control;
    // What is in force by default was never stored, so it is stored when asked for.
    let text = control.policy().text;
    let first = control.set_policy(&by(), &text, "", false, None).await.unwrap();
    assert_eq!((first.version, first.applied, first.unchanged), (1, true, false));
    let again = control.set_policy(&by(), &text, "a comment", false, Some(1)).await.unwrap();
    assert_eq!((again.version, again.applied, again.unchanged), (1, false, true));
    assert_eq!(control.policy_history().await.unwrap().len(), 1);
    // Going back to the text in force as well; any other text, be it by a space, is a version.
    let back = control.rollback_policy(&by(), 1, "", true, None).await.unwrap();
    assert_eq!((back.version, back.unchanged), (1, true));
    let spaced = control.set_policy(&by(), &format!("{text} "), "", false, None).await.unwrap();
    assert_eq!((spaced.version, spaced.applied, spaced.unchanged), (2, true, false));
    let old = control.set_policy(&by(), &text, "", false, Some(1)).await;
    assert!(matches!(old, Err(AdminError::Conflict(_))), "another version is in force by now: {old:?}");
}

#[tokio::test]
async fn what_is_taken_away_beside_access_wants_a_word_too() {
    let world = World::new().await;
    let control = &world.control;
    let _a = world.joined(1, "a").await;
    let with =
        |rest: &str| format!(r#"{{"acls": [{{"action": "accept", "src": ["*"], "dst": ["*:*"]}}]{rest}}}"#);
    let attribute =
        |name: &str| with(&format!(r#", "nodeAttrs": [{{"target": ["*"], "attr": ["{name}"]}}]"#));
    control.set_policy(&by(), &attribute("funnel"), "", false, None).await.unwrap();
    let refused = control.set_policy(&by(), &attribute("custom:x"), "", false, None).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "this change takes something away beside access (alice@: attribute funnel)"
    );
    let outcome = control.set_policy(&by(), &attribute("custom:x"), "", true, None).await.unwrap();
    assert_eq!((outcome.diff.lost_total, outcome.diff.other_total, outcome.diff.other_lost), (0, 2, 1));
    let outcome = control.set_policy(&by(), &with(""), "", false, None).await.unwrap();
    assert!(outcome.applied, "nobody lives by such an attribute");
    assert_eq!((outcome.diff.other_total, outcome.diff.other_lost), (1, 0));
}

#[tokio::test]
async fn a_comparison_tells_of_tests_that_do_not_hold() {
    let world = World::new().await;
    let _a = world.joined(1, "a").await;
    let none = r#"{"acls": [], "tests": [{"src": "alice@", "accept": ["alice@:22"]}]}"#;
    let found = world.control.compare_policies(ALL.into(), none.into()).await.unwrap();
    let [old, new] = &found.failing;
    assert!(old.is_empty() && new.len() == 1 && new[0].code == "test-failed", "{new:?}");
    let read = world.control.compare_policies("{".into(), none.into()).await;
    assert!(matches!(read, Err(AdminError::Policy(_))), "{read:?}");
}
