//! The traps of control.md 12, each with what guards it here.
//!
//! | Trap | Guarded by |
//! |---|---|
//! | 1 nonce endianness | `noise::handshake_tests::both_directions_carry_records_beyond_counter_256`, and every official client in the lab |
//! | 2 frame header of the initiation | `noise::handshake_tests::messages_cut_or_grown_are_refused_by_size`, the vector test beside it |
//! | 3 case of JSON members | `members_are_found_whatever_their_case` |
//! | 4 escapes, 5 every member present | `register_answers_are_plain_and_whole`; `/key`: `public::the_key_needs_a_version_and_has_both_members` |
//! | 6 compression as asked | `map::zstd_frames_hold_the_same_json`; plain: every other stream here |
//! | 7 no empty `Peers` | `map::a_second_node_comes_as_a_delta_and_then_as_patches`, `the_last_peer_goes_by_removal_and_nothing_reads_as_none` |
//! | 8 empty filter | `the_last_peer_goes_by_removal_and_nothing_reads_as_none` |
//! | 9 trailing dot | `map::the_first_message_is_whole` |
//! | 10 no empty 200 | `a_map_that_cannot_be_had_is_an_error_with_words` |
//! | 11 streams overwrite nothing, 12 absent NetInfo | `map::a_long_poll_does_not_overwrite_what_the_update_said`; a cancelled update has the order of its connection only |
//! | 13 no disco key | `a_peer_is_held_back_until_it_can_be_reached` |
//! | 14 zero times | `registering::zero_times_mean_nothing_and_old_clients_hear_why` |
//! | 15 log out with a key | `registering::logging_out_wins_over_a_key_and_the_key_lets_back_in` |
//! | 16 spent keys | `registering::a_restarted_container_does_not_need_its_spent_key_again` |
//! | 17 node key and machine key | `registering::a_node_key_of_another_machine_is_refused_everywhere`, lab `a_node_cannot_speak_for_another` |
//! | 18 overlapping streams | `presence::an_old_stream_that_ends_late_does_not_take_the_new_one_down`, `map::the_newest_stream_replaces_the_older_one_and_updates_do_not` |
//! | 19 online and last seen | `last_seen_is_said_of_those_who_are_away_only` |
//! | 20 keep-alive | constants in `session`: at most 59 s, the text in one place; lab streams live longer |
//! | 21 GET with a body, 23 noise URLs, 31 pings | such functions are not offered (501, `map::unknown_and_oversized_requests_are_answered`) |
//! | 22 `:authority` | all clients of these tests call the server `unused` |
//! | 24 served at the root | the paths of these tests |
//! | 25 port 80 | not listened on unless configured |
//! | 26 noise key | kept in a file of its own; lab `a_killed_server_comes_back_and_nobody_stops_talking` |
//! | 27, 32 filter rules | `tests/conformance`, captured from the official policy engine |
//! | 28 `service-host`, 30 audit logs, 34 capability values | `only_chosen_capabilities_are_given_and_each_is_meant` |
//! | 29 region numbers | `config::tests` |
//! | 33 WebSocket | `public::the_websocket_form_works_and_needs_its_subprotocol` |
//! | 35 status codes | `registering::bad_keys_are_told_apart_only_to_who_holds_the_secret`, `map::unknown_and_oversized_requests_are_answered` |

use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::{Client, World, by};

#[tokio::test]
async fn members_are_found_whatever_their_case() {
    let world = World::new().await;
    let client = Client::new(&world.control, 1).await;
    let key = world.key(true, false, &[]).await;
    let body = json!({"version": 130, "nodekey": client.node, "AUTH": {"authkey": key},
        "hostinfo": {"HOSTNAME": "small", "os": "linux"}});
    let answer = client.post("/machine/register", body.to_string()).await;
    let answer: Value =
        serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(answer["MachineAuthorized"], true, "{answer}");
    assert_eq!(world.control.node("small").unwrap().os, "linux");
}

#[tokio::test]
async fn register_answers_are_plain_and_whole() {
    let world = World::new().await;
    let client = Client::new(&world.control, 1).await;
    let answer = client.register_response("<a>&\u{2028}", "", json!({})).await;
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(!bytes.contains(&b'\\'), "{bytes:?}");
    let answer: Value = serde_json::from_slice(&bytes).unwrap();
    let members =
        ["User", "Login", "NodeKeyExpired", "MachineAuthorized", "AuthURL", "NodeKeySignature", "Error"];
    for member in members {
        assert!(answer.get(member).is_some(), "{member} is missing");
    }
}

#[tokio::test]
async fn the_last_peer_goes_by_removal_and_nothing_reads_as_none() {
    let world = World::new().await;
    let a = world.joined(1, "a").await;
    let _b = world.joined(2, "b").await;
    let mut stream = a.poll().await;
    assert_eq!(stream.next().await.unwrap()["Peers"].as_array().unwrap().len(), 1);
    world.control.set_policy(&by(), r#"{"acls": []}"#, "", true, None).await.unwrap();
    let told = stream.next().await.unwrap();
    assert_eq!(told["PeersRemoved"], json!([2]));
    assert!(told.get("Peers").is_none());
    assert_eq!(told["PacketFilters"], json!({"*": null, "base": []}));
}

#[tokio::test]
async fn a_map_that_cannot_be_had_is_an_error_with_words() {
    let world = World::new().await;
    let stranger = Client::new(&world.control, 1).await;
    for more in [json!({}), json!({"Stream": false}), json!({"Stream": false, "OmitPeers": true})] {
        let answer = stranger.poll_response(more.clone()).await;
        assert_eq!(answer.status(), 404, "{more}");
        assert!(!answer.into_body().collect().await.unwrap().to_bytes().is_empty());
    }
}

#[tokio::test]
async fn a_peer_is_held_back_until_it_can_be_reached() {
    let world = World::new().await;
    let a = world.joined(1, "a").await;
    let key = world.key(true, false, &[]).await;
    let b = Client::new(&world.control, 2).await;
    assert_eq!(b.register("b", &key, json!({})).await["MachineAuthorized"], true);
    let mut stream = a.poll().await;
    assert!(stream.next().await.unwrap().get("Peers").is_none());
    b.update("b", 2, json!({})).await;
    let told = stream.until(|m| m.get("PeersChanged").is_some()).await;
    assert!(!told["PeersChanged"][0]["DiscoKey"].as_str().unwrap().ends_with(&"0".repeat(64)));
}

#[tokio::test]
async fn last_seen_is_said_of_those_who_are_away_only() {
    let world = World::new().await;
    let (a, b) = (world.joined(1, "a").await, world.joined(2, "b").await);
    let mut held = b.poll().await;
    held.next().await.unwrap();
    let mut watching = a.poll().await;
    let mut peer = watching.next().await.unwrap()["Peers"][0].clone();
    if peer["Online"] != true {
        peer = watching.until(|m| m["PeersChangedPatch"][0]["Online"] == true).await["PeersChangedPatch"][0]
            .clone();
    }
    assert!(peer.get("LastSeen").is_none(), "{peer}");
}

#[tokio::test]
async fn only_chosen_capabilities_are_given_and_each_is_meant() {
    let world = World::new().await;
    let a = world.joined(1, "a").await;
    let first = a.poll().await.next().await.unwrap();
    let caps = first["Node"]["CapMap"].as_object().unwrap();
    for name in caps.keys() {
        assert!(!name.contains("audit") && !name.contains("service-host"), "{name}");
    }
    // Present means on, whatever the value; what is off is absent.
    assert!(caps["https://tailscale.com/cap/ssh"].is_null());
}
