//! Map streams: first message, deltas, ends.

use http::StatusCode;
use serde_json::json;

use super::{Client, World, by};

#[tokio::test]
async fn the_first_message_is_whole() {
    let world = World::new().await;
    let a = world.joined(1, "a").await;
    let _b = world.joined(2, "Büro/../<b>").await;

    let message = a.poll().await.next().await.unwrap();

    let node = &message["Node"];
    assert_eq!(node["Name"], "a.tail.internal.");
    assert_eq!(node["Addresses"][0], "100.64.0.1/32");
    assert_eq!(node["MachineAuthorized"], true);
    assert!(node["CapMap"].get("https://tailscale.com/cap/file-sharing").is_some());
    assert_eq!(message["DERPMap"]["Regions"]["900"]["RegionCode"], "tsd");
    assert_eq!(message["DNSConfig"]["Proxied"], true);
    assert_eq!(message["DNSConfig"]["Routes"]["tail.internal"], json!([]));
    assert_eq!(message["DNSConfig"]["Domains"], json!(["tail.internal", "corp.example"]));
    assert_eq!(message["Debug"]["DisableLogTail"], true);
    assert_eq!(message["CollectServices"], false);
    assert_eq!(message["Domain"], "home");
    assert!(message["PacketFilters"]["*"].is_null());
    assert!(message["PacketFilters"]["base"].is_array());
    assert_eq!(message["UserProfiles"][0]["LoginName"], "alice");
    assert!(message.get("ControlTime").is_some());
    let peer = &message["Peers"][0];
    assert_eq!(peer["HomeDERP"], 900);
    assert_eq!(peer["Online"], false);
    assert_eq!(peer["Endpoints"], json!(["192.0.2.2:41641"]));
    assert_eq!(peer["Hostinfo"]["Services"], json!([{"Proto": "peerapi4", "Port": 1234}]));
    assert!(peer["Hostinfo"].get("NetInfo").is_none());
}

#[tokio::test]
async fn zstd_frames_hold_the_same_json() {
    let world = World::new().await;
    let a = world.joined(1, "a").await;
    let response = a.poll_response(json!({"Compress": "zstd"})).await;
    let mut stream = super::Stream { body: response.into_body(), buffer: Vec::new() };
    let raw = stream.raw().await.unwrap();
    let text = zstd::bulk::decompress(&raw, 1 << 20).unwrap();
    let message: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(message["Node"]["Name"], "a.tail.internal.");
}

#[tokio::test]
async fn a_second_node_comes_as_a_delta_and_then_as_patches() {
    let world = World::new().await;
    let a = world.joined(1, "a").await;
    let mut stream = a.poll().await;
    assert!(stream.next().await.unwrap().get("Peers").is_none());

    let b = world.joined(2, "b").await;
    let joined = stream.until(|m| m.get("PeersChanged").is_some()).await;
    assert_eq!(joined["PeersChanged"][0]["Name"], "b.tail.internal.");
    assert!(joined.get("Peers").is_none());

    let held = b.poll().await;
    let online = stream.until(|m| m.get("PeersChangedPatch").is_some()).await;
    assert_eq!(online["PeersChangedPatch"][0]["Online"], true);

    b.update("b", 2, json!({"Endpoints": ["198.51.100.1:5", "127.0.0.1:9"]})).await;
    let moved = stream.until(|m| m.get("PeersChangedPatch").is_some()).await;
    assert_eq!(moved["PeersChangedPatch"][0]["Endpoints"], json!(["198.51.100.1:5"]));
    assert!(moved.get("Node").is_none());

    b.update("new name", 2, json!({})).await;
    let renamed = stream.until(|m| m.get("PeersChanged").is_some()).await;
    assert_eq!(
        renamed["PeersChanged"][0]["Name"],
        format!("{}.tail.internal.", crate::dns::sanitize_label("new name"))
    );
    drop(held);
}

#[tokio::test]
async fn a_long_poll_does_not_overwrite_what_the_update_said() {
    let world = World::new().await;
    let a = world.joined(1, "a").await;
    let stale = json!({"Endpoints": [], "DiscoKey": format!("discokey:{}", "9".repeat(64)),
        "Hostinfo": {"Hostname": "other"}});
    let _response = a.poll_response(stale).await;
    a.update("a", 1, json!({"Hostinfo": {"Hostname": "a", "OS": "linux"}})).await;
    let view = world.control.node("a").unwrap();
    assert_eq!(view.endpoints.len(), 1);
    assert_eq!(view.home_derp, 900, "an absent NetInfo is unchanged");
}

#[tokio::test]
async fn deleting_a_node_tells_peers_ends_its_stream_and_revokes_its_key() {
    let world = World::new().await;
    let (a, b) = (world.joined(1, "a").await, world.joined(2, "b").await);
    let (tell, mut revoked) = tokio::sync::mpsc::channel(8);
    world.control.on_revoked(std::sync::Arc::new(move |key| {
        let _ = tell.try_send(key);
    }));
    let (mut sa, mut sb) = (a.poll().await, b.poll().await);
    let id = sa.next().await.unwrap()["Peers"][0]["ID"].clone();
    sb.next().await.unwrap();

    world.control.delete_node(&by(), "b").await.unwrap();

    let gone = sa.until(|m| m.get("PeersRemoved").is_some()).await;
    assert_eq!(gone["PeersRemoved"], json!([id]));
    let last = sb.until(|m| m.get("Node").is_some()).await;
    assert_eq!(last["Node"]["Expired"], true);
    assert!(sb.next().await.is_none(), "the stream ends");
    assert_eq!(revoked.recv().await, Some(b.node));
    assert!(!world.control.knows_node(&b.node));
    assert_eq!(b.poll_response(json!({})).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_expired_node_is_shown_so_and_sees_nobody() {
    let world = World::new().await;
    let (a, b) = (world.joined(1, "a").await, world.joined(2, "b").await);
    let (mut sa, mut sb) = (a.poll().await, b.poll().await);
    sa.next().await.unwrap();
    sb.next().await.unwrap();

    world.control.expire_node(&by(), "b").await.unwrap();

    let shown = sa.until(|m| m["PeersChanged"][0]["Expired"] == true).await;
    assert_eq!(shown["PeersChanged"][0]["Online"], false);
    let own = sb.until(|m| m["Node"]["Expired"] == true).await;
    assert_eq!(own["PeersRemoved"].as_array().unwrap().len(), 1);
    assert_eq!(own["PacketFilters"]["base"], json!([]));
}

#[tokio::test]
async fn a_policy_change_reaches_open_streams() {
    let world = World::new().await;
    let (a, b) = (world.joined(1, "a").await, world.joined(2, "b").await);
    let mut stream = a.poll().await;
    assert_eq!(stream.next().await.unwrap()["Peers"].as_array().unwrap().len(), 1);
    let nobody = r#"{"acls": []}"#;

    let unconfirmed = world.control.set_policy(&by(), nobody, "", false, None).await;
    let broken = world.control.set_policy(&by(), "{", "", true, None).await;
    let applied = world.control.set_policy(&by(), nobody, "", true, Some(0)).await.unwrap();
    let raced = world.control.set_policy(&by(), nobody, "", true, Some(0)).await;

    assert!(matches!(unconfirmed, Err(super::super::types::AdminError::NeedsConfirmation(_))));
    assert!(matches!(broken, Err(super::super::types::AdminError::Policy(_))));
    assert!(matches!(raced, Err(super::super::types::AdminError::Conflict(_))));
    assert_eq!((applied.version, applied.applied), (1, true));
    let told = stream.until(|m| m.get("PacketFilters").is_some()).await;
    assert_eq!(told["PacketFilters"], json!({"*": null, "base": []}));
    assert_eq!(told["PeersRemoved"].as_array().unwrap().len(), 1);
    drop(b);
    let reopened = world.after_crash().await;
    assert_eq!(reopened.control.policy().text, nobody);
    assert_eq!(reopened.control.policy_history().await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_newest_stream_replaces_the_older_one_and_updates_do_not() {
    let world = World::new().await;
    let a = world.joined(1, "a").await;
    let mut first = a.poll().await;
    first.next().await.unwrap();
    a.update("a", 1, json!({})).await;
    let mut second = a.poll().await;
    second.next().await.unwrap();
    assert!(first.next().await.is_none());
    assert!(world.control.node("a").unwrap().online);
}

#[tokio::test]
async fn settings_reach_open_streams() {
    let world = World::new().await;
    let (a, _b) = (world.joined(1, "a").await, world.joined(2, "b").await);
    let mut stream = a.poll().await;
    stream.next().await.unwrap();
    let mut new = super::settings();
    new.base_domain = "net.example".into();
    world.control.reload(new).await.unwrap();
    let told = stream.until(|m| m.get("DNSConfig").is_some()).await;
    assert_eq!(told["DNSConfig"]["Domains"][0], "net.example");
    assert_eq!(told["Node"]["Name"], "a.net.example.");
    assert_eq!(told["PeersChanged"][0]["Name"], "b.net.example.");
}

#[tokio::test]
async fn unknown_and_oversized_requests_are_answered() {
    let world = World::new().await;
    let a = Client::new(&world.control, 1).await;
    for (path, status) in [
        ("/machine/set-dns", 501),
        ("/machine/tka/init/begin", 501),
        ("/machine/nonsense", 404),
        ("/", 404),
        ("/machine/update-health", 204),
    ] {
        assert_eq!(a.post(path, "{}").await.status(), status, "{path}");
    }
    let huge = vec![b' '; (1 << 20) + 1];
    assert_eq!(a.post("/machine/register", huge).await.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let deep = "[".repeat(100_000);
    assert_eq!(a.post("/machine/map", deep).await.status(), StatusCode::BAD_REQUEST);
    let old = json!({"Version": 60, "NodeKey": a.node, "Stream": true});
    assert_eq!(a.post("/machine/map", old.to_string()).await.status(), StatusCode::BAD_REQUEST);
}
