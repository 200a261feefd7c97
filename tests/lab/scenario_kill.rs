//! Proof 7: `kill -9` under registrations. What was acknowledged is there after every restart, no
//! address is held twice, and the database is sound. (1000 cycles: `scripts/bench kill`.)

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::machines::Machine;
use crate::server::Server;
use crate::world::Lab;

fn cycles() -> u32 {
    std::env::var("TSD_KILL_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(50)
}

#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    let lab = Lab::new("kill -9");
    let srv = lab.host_at("srv", "203.0.113.10");
    let mut server = Server::start(&srv);
    let key = server.key(&["--reusable"]);
    let host = lab.host("crowd");
    let acknowledged: Arc<Mutex<Vec<String>>> = Arc::default();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (acknowledged, stop, url, host) =
            (acknowledged.clone(), stop.clone(), server.url.clone(), host.clone());
        let inner = move || async move {
            let mut tasks = tokio::task::JoinSet::new();
            for lane in 0..4 {
                let (acknowledged, stop, url, key) =
                    (acknowledged.clone(), stop.clone(), url.clone(), key.clone());
                tasks.spawn(async move {
                    for n in 0_u32.. {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let mut machine = Machine::new(&format!("m{lane}-{n}"));
                        match tokio::time::timeout(Duration::from_secs(5), machine.register(&url, &key)).await
                        {
                            Ok(Ok(answer)) if answer.error.is_empty() => {
                                acknowledged.lock().unwrap().push(machine.hostname.clone());
                            }
                            // The server is down: the event awaited is its return.
                            Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                        }
                    }
                });
            }
            while tasks.join_next().await.is_some() {}
        };
        host.inside(move || {
            let _ = rustls::crypto::ring::default_provider().install_default();
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(inner());
        })
    };
    let mut addresses: BTreeMap<u64, String> = BTreeMap::new();
    let mut random = tsd::clock::Rng::from_os();
    for cycle in 0..cycles() {
        std::thread::sleep(Duration::from_millis(30 + random.below(150)));
        server.kill9();
        let before = acknowledged.lock().unwrap().clone();
        check_database(&srv.path("/var/lib/tsd"));
        server.restart();
        let nodes = server.nodes();
        let mut seen = std::collections::BTreeSet::new();
        for node in &nodes {
            assert!(
                seen.insert(node["ipv4"].as_str().unwrap().to_owned()),
                "cycle {cycle}: address twice: {node}"
            );
            assert!(
                seen.insert(node["ipv6"].as_str().unwrap().to_owned()),
                "cycle {cycle}: address twice: {node}"
            );
            let id = node["id"].as_u64().unwrap();
            let ip = node["ipv4"].as_str().unwrap().to_owned();
            let old = addresses.entry(id).or_insert_with(|| ip.clone());
            assert_eq!(*old, ip, "cycle {cycle}: node {id} changed its address");
        }
        let names: std::collections::BTreeSet<&str> =
            nodes.iter().filter_map(|n| n["name"].as_str()).collect();
        for name in &before {
            assert!(
                names.contains(name.as_str()),
                "cycle {cycle}: acknowledged {name} is lost ({} nodes)",
                nodes.len()
            );
        }
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    let total = acknowledged.lock().unwrap().len();
    println!("{} cycles, {total} registrations acknowledged, none lost", cycles());
    assert!(total as u32 > cycles(), "only {total} registrations: the load is too thin to prove anything");
}

fn check_database(dir: &std::path::Path) {
    let file = std::fs::read_dir(dir)
        .unwrap()
        .filter_map(|e| Some(e.ok()?.path()))
        .find(|p| p.extension().is_some_and(|e| e == "db" || e == "sqlite" || e == "sqlite3"))
        .expect("a database file");
    let copy = tempfile::tempdir().unwrap();
    // A copy, so that looking does not mend.
    for suffix in ["", "-wal"] {
        let from = std::path::PathBuf::from(format!("{}{suffix}", file.display()));
        if from.exists() {
            std::fs::copy(&from, copy.path().join(format!("check.db{suffix}"))).unwrap();
        }
    }
    let db = rusqlite::Connection::open(copy.path().join("check.db")).unwrap();
    let verdict: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
}
