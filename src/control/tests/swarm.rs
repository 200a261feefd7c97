//! Many devices at once: they join, hold their streams, and one change reaches all of them. The figures
//! are printed; what is asserted is that the work is done and that a change costs what it must.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Client, Stream, World};
use crate::clock::Now;

/// Unoptimised code shows what grows with the square as well.
const DEVICES: usize = if cfg!(debug_assertions) { 100 } else { 1000 };

async fn join(world: &World, n: usize, key: &str) -> (Client, Stream, Duration) {
    let client = Client::numbered(&world.control, n as u32).await;
    let name = format!("d{n}");
    let answer = client.register(&name, key, json!({})).await;
    assert_eq!(answer["MachineAuthorized"], true, "{answer}");
    client.update_at(&name, n as u32, 41641).await;
    let asked = Now::read().mono;
    let mut stream = client.poll().await;
    let first = stream.next().await.unwrap();
    assert!(first["Node"].is_object());
    (client, stream, asked.elapsed())
}

fn tells_of(message: &Value, port: u16) -> bool {
    let ending = format!(":{port}");
    let patches = message["PeersChangedPatch"].as_array().into_iter().flatten();
    let mut endpoints = patches.flat_map(|p| p["Endpoints"].as_array().into_iter().flatten());
    endpoints.any(|e| e.as_str().unwrap().ends_with(&ending))
}

#[expect(clippy::print_stdout, reason = "the figures are what a person runs this for")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swarm_joins_and_each_hears_of_one_change_in_one_small_message() {
    let world = World::new().await;
    let key = world.key(true, false, &[]).await;
    let begun = Now::read().mono;
    let joins = (1..=DEVICES).map(|n| join(&world, n, &key));
    let joined = futures_util::future::join_all(joins).await;
    let took = begun.elapsed();
    let mut firsts: Vec<Duration> = joined.iter().map(|(_, _, first)| *first).collect();
    firsts.sort_unstable();
    println!(
        "{DEVICES} devices joined in {took:?} ({:.0}/s), first map p50 {:?}, p99 {:?}",
        DEVICES as f64 / took.as_secs_f64(),
        firsts[DEVICES / 2],
        firsts[DEVICES * 99 / 100]
    );
    let (clients, mut streams): (Vec<Client>, Vec<Stream>) =
        joined.into_iter().map(|(client, stream, _)| (client, stream)).unzip();

    for port in [7001, 7002, 7003] {
        let begun = Now::read().mono;
        clients[0].update_at("d1", 1, port).await;
        let reads = streams.iter_mut().skip(1).map(|s| async move {
            let message = s.raw_until(|m| tells_of(m, port)).await;
            assert!(message < 1000, "{message} bytes for one endpoint");
        });
        futures_util::future::join_all(reads).await;
        println!("one endpoint was told to {} devices in {:?}", DEVICES - 1, begun.elapsed());
    }
}
