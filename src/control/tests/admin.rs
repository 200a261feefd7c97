//! What people do, and what is left after a crash.

use std::time::Duration;

use serde_json::json;

use super::super::types::AdminError;
use super::{Client, World, by};

#[tokio::test]
async fn everything_acknowledged_is_there_after_a_crash() {
    let world = World::new().await;
    let a = world.joined(1, "a").await;
    world.control.rename_node(&by(), "a", "named").await.unwrap();
    let hash = [4; 32];
    let later = chrono::DateTime::<chrono::Utc>::MAX_UTC;
    world.control.put_secret("session", hash, "alice", later).await.unwrap();

    let again = world.after_crash().await;

    let (before, after) = (world.control.node("named").unwrap(), again.control.node("named").unwrap());
    assert_eq!((before.id, before.ipv4, before.key), (after.id, after.ipv4, after.key));
    assert!(again.control.knows_node(&a.node));
    let taken = again.control.take_secret("session", hash).await.unwrap();
    assert_eq!(taken.as_deref(), Some("alice"));
    assert_eq!(again.control.take_secret("session", hash).await.unwrap(), None);
    let b = again.joined(2, "b").await;
    assert_ne!(again.control.node("b").unwrap().ipv4, after.ipv4);
    drop(b);
}

#[tokio::test]
async fn shutdown_writes_what_lags_and_frees_the_directory() {
    let world = World::new().await;
    let a = world.joined(1, "a").await;
    a.update("a", 1, json!({"Endpoints": ["198.51.100.7:7"]})).await;
    let refused = super::start(world.dir.path(), super::settings()).await.err().unwrap();
    assert!(refused.to_string().contains(&std::process::id().to_string()), "{refused}");

    let mut stream = a.poll().await;
    stream.next().await.unwrap();
    world.control.shutdown().await;
    assert!(stream.next().await.is_none(), "streams end");

    let control = super::start(world.dir.path(), super::settings()).await.unwrap();
    assert_eq!(control.node("a").unwrap().endpoints[0].to_string(), "198.51.100.7:7");
    assert!(control.node("a").unwrap().last_seen.is_some());
}

#[tokio::test]
async fn users_and_names_are_checked() {
    let world = World::new().await;
    let control = &world.control;
    assert!(matches!(control.create_user(&by(), "Alice").await, Err(AdminError::Conflict(_))));
    assert!(matches!(control.create_user(&by(), "<b>").await, Err(AdminError::Invalid(_))));
    let _a = world.joined(1, "a").await;
    let _b = world.joined(2, "a").await;
    assert_eq!(control.nodes().iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["a", "a-1"]);
    assert!(matches!(control.rename_node(&by(), "a", "a-1").await, Err(AdminError::Conflict(_))));
    assert!(matches!(control.rename_node(&by(), "a", "A B").await, Err(AdminError::Invalid(_))));
    assert!(matches!(control.delete_user(&by(), "alice").await, Err(AdminError::Conflict(_))));
    assert!(matches!(control.node("zzz"), Err(AdminError::NotFound(_))));
    for name in ["a-1", "2", "100.64.0.2", "a-1.tail.internal."] {
        assert_eq!(control.node(name).unwrap().name, "a-1", "{name}");
    }
}

#[tokio::test]
async fn a_device_cannot_take_the_id_of_another_for_its_name() {
    let world = World::new().await;
    let _a = world.joined(1, "a").await;
    let thief = world.joined(2, "1").await;
    thief.update("1", 2, json!({})).await;
    assert_eq!(world.control.node("2").unwrap().name, "node-1");
    assert_eq!(world.control.delete_node(&by(), "1").await.unwrap().name, "a");
    // The id is nobody's now; the name must not answer for it.
    assert!(matches!(world.control.delete_node(&by(), "1").await, Err(AdminError::NotFound(_))));
    assert!(matches!(world.control.rename_node(&by(), "2", "7").await, Err(AdminError::Invalid(_))));
    assert!(matches!(world.control.create_user(&by(), "1").await, Err(AdminError::Invalid(_))));
    assert_eq!(world.control.rename_user(&by(), "1", "anna").await.unwrap().name, "anna");
}

#[tokio::test]
async fn a_policy_is_compared_beside_other_changes_not_before_them() {
    let world = World::new().await;
    world.control.create_user(&by(), "bob").await.unwrap();
    let many = world.control.run(|draft| {
        (0..1000_u32).for_each(|n| super::deltas::newcomer(draft, n as u8));
        Ok(())
    });
    many.await.unwrap();
    let rule = |n: usize| {
        format!(
            r#"{{"action": "accept", "src": ["100.64.0.{}"], "dst": ["100.64.1.{}:{n}"]}}"#,
            n % 250,
            n % 200
        )
    };
    let rules: Vec<String> = (1..=1500).map(rule).collect();
    let text = format!(r#"{{"acls": [{}]}}"#, rules.join(","));
    let control = world.control.clone();
    let set = tokio::spawn(async move { control.set_policy(&by(), &text, "", true, None).await });
    // The world changes while the comparison runs, which has it made again, once.
    tokio::task::yield_now().await;
    world.control.rename_user(&by(), "bob", "rob").await.unwrap();
    assert!(!set.is_finished(), "a small change waited for the large one");
    let outcome = set.await.unwrap().unwrap();
    assert!(outcome.applied && outcome.diff.lost_total > 0);
    let net = world.control.net();
    assert_eq!(net.policy_version.version, 1);
    let fresh = net.policy.compile(&net.world());
    for id in net.nodes.keys() {
        assert_eq!(net.compiled.filter_rules(*id), fresh.filter_rules(*id), "{id}");
    }
}

#[tokio::test]
async fn of_many_policies_at_once_each_gets_a_version_of_its_own() {
    let world = World::new().await;
    for n in 1..=100_u32 {
        let text = format!(r#"{{"acls": [{{"action": "accept", "src": ["*"], "dst": ["*:{n}"]}}]}}"#);
        assert_eq!(
            world.control.set_policy(&by(), &text, "", true, None).await.unwrap().version,
            u64::from(n)
        );
    }
    assert_eq!(world.control.policy_history().await.unwrap().len(), 100);
}

#[tokio::test]
async fn untagging_gives_a_node_back() {
    let world = World::new().await;
    let policy = r#"{"tagOwners": {"tag:web": ["alice@"]}, "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;
    world.control.set_policy(&by(), policy, "", true, None).await.unwrap();
    let _a = world.joined(1, "a").await;
    let tag = crate::model::Tag::parse("tag:web").unwrap();
    let tagged = world.control.tag_node(&by(), "a", &[tag]).await.unwrap();
    assert_eq!(tagged.user, None);
    let back = world.after_crash().await.control.tag_node(&by(), "a", &[]).await.unwrap();
    assert_eq!(back.user.as_deref(), Some("alice"));
    let unknown = crate::model::Tag::parse("tag:no").unwrap();
    let refused = world.control.tag_node(&by(), "a", &[unknown]).await;
    assert!(matches!(refused, Err(AdminError::Invalid(_))));
}

#[tokio::test]
async fn ephemeral_nodes_leave_after_their_time_and_never_before_the_first_poll() {
    let world = World::new().await;
    let key = world.key(true, true, &[]).await;
    let client = Client::new(&world.control, 1).await;
    client.register("a", &key, json!({})).await;
    let left = |after: u64| {
        world.control.run(move |draft| {
            let started = draft.now.wall;
            draft.now = draft.now.after(Duration::from_secs(after));
            let mut settings = (*draft.net.settings).clone();
            settings.ephemeral_timeout = Duration::from_secs(10);
            draft.net.settings = std::sync::Arc::new(settings);
            super::super::timers::tick(draft, started);
            Ok(draft.net.nodes.len())
        })
    };
    assert_eq!(left(59).await.unwrap(), 1);
    assert_eq!(left(61).await.unwrap(), 0);
}

#[tokio::test]
async fn one_route_has_one_primary_and_it_does_not_flap() {
    let world = World::new().await;
    let offer = json!({"Hostinfo": {"Hostname": "r", "RoutableIPs": ["10.1.0.0/16"],
        "NetInfo": {"PreferredDERP": 900}}});
    let (a, b) = (world.joined(1, "a").await, world.joined(2, "b").await);
    a.update("a", 1, offer.clone()).await;
    b.update("b", 2, offer).await;
    let c = world.joined(3, "c").await;
    for node in ["1", "2"] {
        world.control.approve_routes(&by(), node, None).await.unwrap();
    }
    let mut sb = b.poll().await;
    sb.next().await.unwrap();
    // One round of the owner: b is known to be online.
    world.control.run(|_| Ok(())).await.unwrap();
    let mut sc = c.poll().await;
    let primary = |m: &serde_json::Value| {
        let peers = m["Peers"].as_array().unwrap().clone();
        let has = |p: &&serde_json::Value| p.get("PrimaryRoutes").is_some();
        peers.iter().filter(has).map(|p| p["ID"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let first = sc.next().await.unwrap();
    let before = primary(&first);
    assert_eq!(before, [2], "{first}");
    let mut sa = a.poll().await;
    sa.next().await.unwrap();
    world.control.run(|_| Ok(())).await.unwrap();
    let mut again = c.poll().await;
    let after = primary(&again.next().await.unwrap());
    assert_eq!(after, before);
}

#[tokio::test]
async fn what_cannot_be_written_did_not_happen_and_reading_goes_on() {
    let world = World::new().await;
    let a = world.joined(1, "a").await;
    let key = world.key(false, false, &[]).await;
    let store = std::sync::Arc::clone(world.control.shared());
    tokio::task::spawn_blocking(move || store.store.close()).await.unwrap();

    let user = world.control.create_user(&by(), "bob").await;
    let late = Client::new(&world.control, 2).await;
    let body = json!({"Version": 130, "NodeKey": late.node, "Auth": {"AuthKey": key}});
    let answer = late.post("/machine/register", body.to_string()).await;

    assert!(matches!(user, Err(AdminError::Internal(_))));
    assert_eq!(answer.status(), 200, "a client shows only what is in the answer (control.md 5.3)");
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
    let answer: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert!(answer["Error"].as_str().unwrap().contains("cannot register"), "{answer}");
    assert_eq!(answer["MachineAuthorized"], false);
    assert_eq!(world.control.users().len(), 1);
    assert_eq!(world.control.nodes().len(), 1);
    assert_eq!(world.control.auth_keys()[0].uses, 0);
    assert!(a.poll().await.next().await.is_some());
}

#[tokio::test]
async fn the_text_shown_by_default_means_what_is_in_force() {
    let world = World::new().await;
    let (_a, _b) = (world.joined(1, "a").await, world.joined(2, "b").await);
    let text = world.control.policy().text;
    let outcome = world.control.check_policy(&by(), &text).await.unwrap();
    assert_eq!((outcome.diff.lost_total, outcome.diff.gained_total), (0, 0));
    assert_eq!((outcome.applied, outcome.version), (false, 0));
}
