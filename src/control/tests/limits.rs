//! What strangers may ask for, and how often; machines that contest one identity.

use http::StatusCode;
use http_body_util::BodyExt;
use serde_json::json;

use super::{Client, World, node_key};

#[tokio::test]
async fn logins_without_a_key_are_limited_by_place_and_nobody_else_is() {
    let world = World::new().await;
    let stranger = Client::from(&world.control, 1, "192.0.2.1").await;
    for n in 0..60_u8 {
        let fresh = json!({"NodeKey": node_key(n)});
        assert_eq!(stranger.register_response("x", "", fresh).await.status(), StatusCode::OK, "{n}");
    }
    let neighbour = Client::from(&world.control, 2, "192.0.2.200").await;
    let refused = neighbour.register_response("x", "", json!({})).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    let text = refused.into_body().collect().await.unwrap().to_bytes();
    assert!(text.starts_with(b"too many logins"), "{text:?}");
    assert_eq!(world.control.logins().len(), 60);

    // A key, another place, this machine: none of them pays for it.
    let key = world.key(true, false, &[]).await;
    assert_eq!(neighbour.register("x", &key, json!({})).await["MachineAuthorized"], true);
    assert_eq!(neighbour.register("x", "", json!({})).await["MachineAuthorized"], true, "it is known");
    for (seed, ip) in [(3, "198.51.100.1"), (4, "2001:db8::1"), (5, "127.0.0.1"), (6, "::1")] {
        let other = Client::from(&world.control, seed, ip).await;
        assert_eq!(other.register_response("x", "", json!({})).await.status(), StatusCode::OK, "{ip}");
    }
}

#[tokio::test]
async fn guessed_follow_ups_are_limited_and_a_waiting_one_is_not() {
    let world = World::new().await;
    let guesser = Client::from(&world.control, 1, "192.0.2.1").await;
    let ask = |n: u32| json!({"Followup": format!("http://192.0.2.1:8080/a/{n:032x}")});
    let mut answered = 0;
    while guesser.register_response("x", "", ask(answered)).await.status() == StatusCode::OK {
        answered += 1;
        assert!(answered <= 31, "guessing goes on");
    }
    assert_eq!(answered, 30);
    let honest = Client::from(&world.control, 2, "192.0.2.2").await;
    let url = honest.register("a", "", json!({})).await["AuthURL"].as_str().unwrap().to_owned();
    let actor = super::by();
    let (answer, _) = tokio::join!(
        honest.register("a", "", json!({"Followup": url.clone()})),
        world.control.approve_login(&actor, &url, None)
    );
    assert_eq!(answer["MachineAuthorized"], true);
}

#[tokio::test]
async fn two_machines_with_one_identity_are_slowed_down_and_named() {
    let world = World::new().await;
    let a = world.joined(1, "twin").await;
    assert!(world.control.warnings().is_empty());
    let mut streams = Vec::new();
    loop {
        // Pushes the stream before it out; once slowed down, no answer comes for half a minute.
        let poll = tokio::time::timeout(std::time::Duration::from_secs(3), a.poll()).await;
        let Ok(mut stream) = poll else { break };
        stream.next().await.unwrap();
        streams.push(stream);
        assert!(streams.len() < 50, "they push each other out at full speed");
    }
    let warnings = world.control.warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("twin (100.64.0.1)"), "{warnings:?}");
    assert!(world.control.node("twin").unwrap().online);
    // Its last stream ends: the one that waits gets in at once.
    streams.clear();
    let mut stream = a.poll().await;
    stream.next().await.unwrap();
}
