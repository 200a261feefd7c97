//! Registration flows.

use std::sync::Arc;

use serde_json::json;

use super::{Client, World, by, node_key};

#[tokio::test]
async fn a_single_use_key_lets_exactly_one_of_64_in() {
    let world = World::new().await;
    let key = Arc::new(world.key(false, false, &[]).await);
    let mut tasks = tokio::task::JoinSet::new();
    for seed in 0..64 {
        let (control, key) = (world.control.clone(), Arc::clone(&key));
        tasks.spawn(async move {
            let client = Client::new(&control, seed).await;
            client.register("box", &key, json!({})).await
        });
    }
    let answers = tasks.join_all().await;
    let won = answers.iter().filter(|a| a["MachineAuthorized"] == true);
    assert_eq!(won.count(), 1);
    let lost = answers.iter().filter(|a| a["Error"].as_str().unwrap().contains("already used"));
    assert_eq!(lost.count(), 63);
    assert_eq!(world.control.nodes().len(), 1);
    assert_eq!(world.after_crash().await.control.auth_keys()[0].state, "used");
}

#[tokio::test]
async fn bad_keys_are_told_apart_only_to_who_holds_the_secret() {
    let world = World::new().await;
    let client = Client::new(&world.control, 1).await;
    let key = world.key(true, false, &[]).await;
    let mut forged = key.clone();
    forged.pop();
    forged.push('z');
    for (text, word) in
        [("tskey-auth-99-00", "unknown key"), ("nonsense", "unknown key"), (forged.as_str(), "unknown key")]
    {
        let answer = client.register("a", text, json!({})).await;
        assert!(answer["Error"].as_str().unwrap().contains(word), "{answer}");
        assert!(answer["Error"].as_str().unwrap().contains("tsd authkeys create"));
    }
    world.control.revoke_auth_key(&by(), &key).await.unwrap();
    let answer = client.register("a", &key, json!({})).await;
    assert!(answer["Error"].as_str().unwrap().contains("revoked"));
    assert!(world.control.nodes().is_empty());
}

#[tokio::test]
async fn a_restarted_container_does_not_need_its_spent_key_again() {
    let world = World::new().await;
    let key = world.key(false, false, &[]).await;
    let client = Client::new(&world.control, 1).await;
    client.register("a", &key, json!({})).await;

    let again = client.register("a", &key, json!({})).await;
    let bare = client.register("a", "", json!({})).await;

    assert_eq!(again["MachineAuthorized"], true);
    assert_eq!(again, bare);
    assert_eq!(again["Login"]["LoginName"], "alice");
    assert_eq!(world.control.auth_keys()[0].uses, 1);
}

#[tokio::test]
async fn a_node_key_of_another_machine_is_refused_everywhere() {
    let world = World::new().await;
    let owner = world.joined(1, "a").await;
    let mut thief = Client::new(&world.control, 2).await;
    thief.node = owner.node;
    let key = world.key(true, false, &[]).await;

    let answer = thief.register("a", &key, json!({})).await;
    let logout = thief.register("a", "", json!({"Expiry": "1970-01-01T00:02:03Z"})).await;
    let poll = thief.poll_response(json!({})).await;

    assert!(answer["Error"].as_str().unwrap().contains("another machine"));
    assert!(logout["Error"].as_str().unwrap().contains("another machine"));
    assert_eq!(poll.status(), 403);
    assert!(world.control.knows_node(&owner.node));
}

#[tokio::test]
async fn a_login_waits_survives_a_crash_and_is_let_in() {
    let world = World::new().await;
    let client = Client::new(&world.control, 1).await;
    let first = client.register("a", "", json!({})).await;
    let url = first["AuthURL"].as_str().unwrap().to_owned();
    assert!(url.starts_with("http://192.0.2.1:8080/a/"), "{url}");
    assert_eq!(client.register("a", "", json!({})).await["AuthURL"], url.as_str());

    let world = world.after_crash().await;
    let client = Client::new(&world.control, 1).await;
    let asked = json!({"Followup": url.clone()});
    let actor = by();
    let (answer, node) =
        tokio::join!(client.register("a", "", asked), world.control.approve_login(&actor, &url, None));

    assert_eq!(answer["MachineAuthorized"], true);
    assert_eq!(answer["AuthURL"], "");
    assert_eq!(node.unwrap().user.as_deref(), Some("alice"));
    assert!(world.control.logins().is_empty());
}

#[tokio::test]
async fn a_rejected_login_hears_it_and_a_lost_one_gets_a_new_url() {
    let world = World::new().await;
    let client = Client::new(&world.control, 1).await;
    let first = client.register("a", "", json!({})).await;
    let url = first["AuthURL"].as_str().unwrap().to_owned();
    world.control.reject_login(&by(), &url).await.unwrap();

    let answer = client.register("a", "", json!({"Followup": url})).await;
    let lost = client.register("a", "", json!({"Followup": "http://192.0.2.1:8080/a/00"})).await;

    assert!(answer["Error"].as_str().unwrap().contains("turned away"));
    assert!(lost["AuthURL"].as_str().unwrap().contains("/a/"));
    assert_ne!(lost["AuthURL"], url.as_str());
}

#[tokio::test]
async fn a_new_node_key_keeps_id_addresses_and_name() {
    let world = World::new().await;
    let mut client = world.joined(1, "a").await;
    let before = world.control.node("a").unwrap();
    let old_key = client.node;
    client.node = node_key(99);
    let key = world.key(true, false, &[]).await;

    client.register("a", &key, json!({"OldNodeKey": old_key})).await;

    let after = world.control.node("a").unwrap();
    assert_eq!((before.id, before.ipv4, before.ipv6), (after.id, after.ipv4, after.ipv6));
    assert_eq!(after.key, client.node);
    assert!(!world.control.knows_node(&old_key));
    assert!(world.control.knows_node(&client.node));
}

#[tokio::test]
async fn logging_out_wins_over_a_key_and_the_key_lets_back_in() {
    let world = World::new().await;
    let key = world.key(true, false, &[]).await;
    let client = Client::new(&world.control, 1).await;
    client.register("a", &key, json!({})).await;

    client.register("a", &key, json!({"Expiry": "1970-01-01T00:02:03Z"})).await;

    assert!(world.control.node("a").unwrap().expired);
    assert!(!world.control.knows_node(&client.node));
    assert_eq!(client.register("a", "", json!({})).await["NodeKeyExpired"], true);
    assert_eq!(client.register("a", &key, json!({})).await["MachineAuthorized"], true);
    assert!(!world.control.node("a").unwrap().expired);
}

#[tokio::test]
async fn zero_times_mean_nothing_and_old_clients_hear_why() {
    let world = World::new().await;
    let client = world.joined(1, "a").await;
    let zero = client.register("a", "", json!({"Expiry": "0001-01-01T00:00:00Z"})).await;
    assert_eq!(zero["MachineAuthorized"], true);
    assert!(!world.control.node("a").unwrap().expired);
    let old = client.register("a", "", json!({"Version": 90})).await;
    assert!(old["Error"].as_str().unwrap().contains("113"), "{old}");
}

#[tokio::test]
async fn tags_need_an_owner() {
    let world = World::new().await;
    let policy = r#"{"tagOwners": {"tag:web": ["alice@"], "tag:db": ["bob@example.com"]},
        "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;
    world.control.set_policy(&by(), policy, "", true, None).await.unwrap();
    let key = world.key(true, false, &[]).await;
    let asking = |tag: &str| json!({"Hostinfo": {"Hostname": "a", "RequestTags": [tag]}});

    let db = Client::new(&world.control, 1).await.register("a", &key, asking("tag:db")).await;
    let none = Client::new(&world.control, 2).await.register("b", &key, asking("tag:no")).await;
    let web = Client::new(&world.control, 3).await.register("c", &key, asking("tag:web")).await;
    let tagged_key = world.key(true, false, &["tag:db"]).await;
    let by_key = Client::new(&world.control, 4).await.register("d", &tagged_key, json!({})).await;

    let error = db["Error"].as_str().unwrap();
    assert!(error.contains("tag:db") && error.contains("tagOwners"), "{error}");
    assert!(none["Error"].as_str().unwrap().contains("not declared"));
    assert_eq!(web["User"]["ID"], 2_147_455_555_u64);
    assert_eq!(by_key["Login"]["LoginName"], "tagged-devices");
    assert_eq!(world.control.nodes().len(), 2);
}

#[tokio::test]
async fn waiting_logins_are_bounded() {
    let world = World::new().await;
    let client = Client::new(&world.control, 1).await;
    let machine = client.machine;
    let ids = world
        .control
        .run(move |draft| {
            for n in 0..1500_u32 {
                let mut key = [1; 32];
                key[..4].copy_from_slice(&n.to_be_bytes());
                let request = crate::wire::RegisterRequest {
                    version: crate::wire::CapVer(130),
                    node_key: crate::keys::NodePublic::from_bytes(key),
                    ..Default::default()
                };
                super::super::register::register(draft, machine, request);
            }
            Ok(draft.net.logins.len())
        })
        .await
        .unwrap();
    assert_eq!(ids, 1000);
}

#[tokio::test]
async fn an_exhausted_pool_is_named() {
    let mut settings = super::settings();
    settings.ipv4_pool = "100.64.0.0/30".parse().unwrap();
    let world = World::with(settings).await;
    let key = world.key(true, false, &[]).await;
    for seed in 1..=2 {
        let client = Client::new(&world.control, seed).await;
        assert_eq!(client.register("a", &key, json!({})).await["MachineAuthorized"], true);
    }
    let client = Client::new(&world.control, 3).await;
    let answer = client.register("a", &key, json!({})).await;
    assert!(answer["Error"].as_str().unwrap().contains("100.64.0.0/30"));
}
