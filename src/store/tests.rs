//! Tests of the whole room against real files.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use super::{Store, StoreError, migrate};
use crate::clock::Now;
use crate::keys::UserId;
use crate::model::rows::Write;
use crate::model::{LoginId, PolicyVersion, Role, User};

fn user(id: u64, name: &str) -> Write {
    let role = if id == 1 { Role::Owner } else { Role::Auditor };
    Write::PutUser(Arc::new(User { id: UserId(id), name: name.into(), role, created: Now::read().wall }))
}

fn refusal(dir: &std::path::Path) -> StoreError {
    Store::open(dir).err().expect("it is refused")
}

#[tokio::test]
async fn what_was_acknowledged_is_read_again_and_ids_are_not_reused() {
    let dir = tempfile::tempdir().unwrap();
    let (store, first) = Store::open(dir.path()).unwrap();
    assert_eq!(first, Default::default());
    store.commit(vec![user(1, "a"), user(2, "b")]).await.unwrap();
    store.commit(vec![Write::DeleteUser(UserId(2)), Write::DeleteLogin(LoginId("x".into()))]).await.unwrap();
    store.close();
    let (_store, stored) = Store::open(dir.path()).unwrap();
    assert_eq!(stored.users.iter().map(|u| u.role).collect::<Vec<_>>(), [Role::Owner]);
    assert_eq!(stored.last_user, 2);
    let mode = std::fs::metadata(dir.path().join("tsd.db")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_batch_is_whole_or_not_at_all_and_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let good = store.commit(vec![user(1, "a")]);
    let bad = store.commit(vec![user(2, "b"), user(3, "a")]);
    let other = store.commit(vec![user(4, "d")]);
    let (good, bad, other) = tokio::join!(good, bad, other);
    assert!(good.is_ok() && bad.is_err() && other.is_ok());
    store.close();
    let (_store, stored) = Store::open(dir.path()).unwrap();
    let names: Vec<_> = stored.users.iter().map(|u| u.name.as_str()).collect();
    assert_eq!(names, ["a", "d"]);
}

#[tokio::test]
async fn policies_are_a_history() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    for version in 1..=3 {
        let policy = PolicyVersion {
            version,
            text: format!("{{}} // {version}"),
            author: "t".into(),
            comment: format!("why {version}"),
            created: Now::read().wall,
        };
        store.commit(vec![Write::PutPolicy(Arc::new(policy))]).await.unwrap();
    }
    let all = store.policies().await.unwrap();
    let told: Vec<_> = all.iter().map(|p| (p.version, p.comment.as_str(), p.bytes)).collect();
    assert_eq!(told, [(3, "why 3", 7), (2, "why 2", 7), (1, "why 1", 7)]);
    let second = store.policy(2).await.unwrap().unwrap();
    assert_eq!((second.text.as_str(), second.summary()), ("{} // 2", all[1].clone()));
    assert_eq!(store.policy(4).await.unwrap(), None);
    store.close();
    assert_eq!(Store::open(dir.path()).unwrap().1.policy.unwrap().version, 3);
}

#[test]
fn a_second_server_is_refused_by_the_name_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let _held = Store::open(dir.path()).unwrap();
    let text = refusal(dir.path()).to_string();
    assert!(text.contains(&std::process::id().to_string()), "{text}");
}

#[test]
fn damaged_files_are_refused_and_left_alone() {
    let whole = {
        let dir = tempfile::tempdir().unwrap();
        Store::open(dir.path()).unwrap().0.close();
        std::fs::read(dir.path().join("tsd.db")).unwrap()
    };
    let mut flipped = whole.clone();
    for byte in &mut flipped[4096..4200] {
        *byte ^= 0xff;
    }
    let cases: [(&str, Vec<u8>); 4] = [
        ("empty", Vec::new()),
        ("text", b"hello, this is no database at all".to_vec()),
        ("truncated", whole[..whole.len() / 2].to_vec()),
        ("flipped", flipped),
    ];
    for (name, bytes) in cases {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tsd.db");
        std::fs::write(&file, &bytes).unwrap();
        let error = refusal(dir.path());
        assert!(matches!(error, StoreError::Damaged { .. }), "{name}: {error}");
        let text = error.to_string();
        assert!(text.contains(file.to_str().unwrap()) && text.contains("Restore"), "{text}");
        assert_eq!(std::fs::read(&file).unwrap(), bytes, "{name}");
    }
}

#[test]
fn a_missing_file_beside_its_wal_is_no_beginning() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tsd.db-wal"), b"rows").unwrap();
    assert!(matches!(refusal(dir.path()), StoreError::Damaged { .. }));
    assert!(!dir.path().join("tsd.db").exists());
}

#[test]
fn other_programs_and_newer_schemas_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    Store::open(dir.path()).unwrap().0.close();
    let conn = rusqlite::Connection::open(dir.path().join("tsd.db")).unwrap();
    conn.pragma_update(None, "user_version", 99).unwrap();
    drop(conn);
    let text = refusal(dir.path()).to_string();
    assert!(text.contains("99") && text.contains(&migrate::known().to_string()), "{text}");
    let foreign = tempfile::tempdir().unwrap();
    let conn = rusqlite::Connection::open(foreign.path().join("tsd.db")).unwrap();
    conn.execute_batch("CREATE TABLE t (x)").unwrap();
    drop(conn);
    assert!(refusal(foreign.path()).to_string().contains("another program"));
}

#[test]
fn a_directory_others_may_write_to_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(refusal(dir.path()).to_string().contains("chmod 700"));
    let fresh = dir.path().join("deep/state");
    Store::open(&fresh).unwrap().0.close();
    assert_eq!(std::fs::metadata(&fresh).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_beginning_that_was_killed_is_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut half = std::fs::File::create(dir.path().join("tsd.db.new")).unwrap();
    half.write_all(b"SQLite format 3\0").unwrap();
    Store::open(dir.path()).unwrap().0.close();
    assert!(!dir.path().join("tsd.db.new").exists());
}

#[tokio::test]
async fn of_two_takers_of_a_secret_one_gets_it_and_lapsed_ones_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let now = Now::read();
    let later = now.after(std::time::Duration::from_secs(60)).wall;
    store.put_secret("k", [1; 32], "v", later, now.wall).await.unwrap();
    let (a, b) =
        tokio::join!(store.secret("k", [1; 32], true, now.wall), store.secret("k", [1; 32], true, now.wall));
    assert_eq!([a.unwrap(), b.unwrap()].iter().flatten().count(), 1);
    store.put_secret("k", [2; 32], "v", later, now.wall).await.unwrap();
    assert_eq!(store.secret("k", [2; 32], false, later).await.unwrap(), None);
    assert_eq!(store.secret("other", [2; 32], false, now.wall).await.unwrap(), None);
}
