//! What breaks under us: the disk, the clock, our own parts.

use std::time::Duration;

use serde_json::json;

use super::super::state::Draft;
use super::super::timers;
use super::super::types::AdminError;
use super::super::wall::Wall;
use super::deltas::beginning;
use super::{Client, World, by};
use crate::clock::{Now, Rng};
use crate::keys::NodeId;

#[tokio::test]
async fn on_a_full_disk_what_is_there_works_on_and_what_is_new_hears_why() {
    let world = World::new().await;
    let (a, b) = (world.joined(1, "a").await, world.joined(2, "b").await);
    let key = world.key(true, false, &[]).await;
    let mut stream = a.poll().await;
    stream.next().await.unwrap();
    let store = &world.control.shared().store;
    store.test(|conn| conn.execute_batch("PRAGMA max_page_count = 1").unwrap()).await;

    // New things are refused in a sentence that names the directory, until one says why.
    let mut refused = None;
    for seed in 10..250_u8 {
        let client = Client::new(&world.control, seed).await;
        let long = format!("{seed}{}", "x".repeat(200));
        let answer = client.register(&long, &key, json!({})).await;
        if answer["MachineAuthorized"] != true {
            refused = Some((client, long, answer["Error"].as_str().unwrap().to_owned()));
            break;
        }
    }
    let (client, name, error) = refused.expect("the database is full at some time");
    assert!(error.contains("disk is full") && error.contains(world.dir.path().to_str().unwrap()), "{error}");
    let text = format!("{{\"acls\": []}} // {}", "x".repeat(50_000));
    let set = world.control.set_policy(&by(), &text, "", true, None).await;
    assert!(matches!(&set, Err(AdminError::Internal(e)) if e.contains("disk is full")), "{set:?}");
    assert_eq!(world.control.policy().version, 0, "what is not on disk did not happen");
    let before = world.control.nodes().len();
    assert!(world.control.warnings().iter().any(|w| w.contains("disk is full")));

    // Endpoints and presence go on from memory.
    b.update("b", 2, json!({"Endpoints": ["198.51.100.9:9"]})).await;
    let told = |m: &serde_json::Value, what: &str| m["PeersChangedPatch"][0].get(what).is_some();
    stream.until(|m| told(m, "Endpoints")).await;
    let mut other = b.poll().await;
    assert_eq!(other.next().await.unwrap()["Peers"][0]["ID"], 1);
    stream.until(|m| m["PeersChangedPatch"][0]["Online"] == true).await;
    assert_eq!(b.register("b", "", json!({})).await["MachineAuthorized"], true, "a restart of b");

    // Space returns: no restart is needed, nothing was lost, nothing half done.
    store.test(|conn| conn.execute_batch("PRAGMA max_page_count = 1000000").unwrap()).await;
    assert_eq!(client.register(&name, &key, json!({})).await["MachineAuthorized"], true);
    assert!(world.control.warnings().is_empty());
    store
        .test(|conn| {
            let verdict: String = conn.query_row("PRAGMA integrity_check", [], |r| r.get(0)).unwrap();
            assert_eq!(verdict, "ok");
        })
        .await;
    let again = world.after_crash().await;
    assert_eq!(again.control.nodes().len(), before + 1);
}

#[tokio::test]
async fn a_command_that_breaks_is_dropped_alone_and_a_broken_part_is_told() {
    let world = World::new().await;
    let broken = world.control.run::<()>(|_| panic!("a fault of ours")).await;
    assert!(matches!(broken, Err(AdminError::Internal(_))), "{broken:?}");
    world.control.create_user(&by(), "bob").await.unwrap();
    let control = world.control.clone();
    let failed = tokio::spawn(async move { control.failed().await });
    assert!(!failed.is_finished());
    // An answer that breaks takes the owner down: nothing it holds can be trusted to be whole.
    world.control.break_owner().await;
    assert_eq!(failed.await.unwrap(), "owner of the state");
    assert!(world.control.create_user(&by(), "carol").await.is_err(), "no call hangs");
}

#[tokio::test]
async fn a_writer_that_breaks_is_told_and_an_orderly_end_is_not() {
    let world = World::new().await;
    world.control.shared().store.test(|_| panic!("a fault of ours")).await;
    assert_eq!(world.control.failed().await, "database writer");
    assert!(world.control.create_user(&by(), "bob").await.is_err(), "no call hangs");

    let other = World::new().await;
    other.control.shutdown().await;
    assert!(futures_util::FutureExt::now_or_never(other.control.failed()).is_none());
}

#[test]
fn a_clock_that_jumps_logs_nobody_out_until_it_has_stood() {
    let start = Now::read();
    let mut wall = Wall::default();
    let mut draft = Draft::new(beginning(start), wall.look(start), Rng::from_seed([9; 32]));
    let mut node = (*draft.net.nodes[&NodeId(1)]).clone();
    node.expiry = Some(start.wall + chrono::Duration::days(1));
    draft.put_node(node);
    let at = |seconds: u64, jump: i64| {
        let now = start.after(Duration::from_secs(seconds));
        Now { wall: now.wall + chrono::Duration::days(jump), ..now }
    };
    let mut expired_at = |seconds, jump| {
        draft.now = wall.look(at(seconds, jump));
        timers::tick(&mut draft, start.wall);
        draft.net.expired.contains(&NodeId(1))
    };
    assert!(!expired_at(1, 0));
    assert!(!expired_at(2, 400), "the clock ran away");
    assert!(!expired_at(300, 400));
    assert!(!expired_at(301, 0), "and was put right");
    assert!(!expired_at(1000, 0));
    assert!(!expired_at(1001, 400), "it ran away again");
    assert!(expired_at(1602, 400), "and stays: so it is");
}
