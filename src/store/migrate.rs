//! The schema, as an append-only list of dated steps. `user_version` counts the steps done; each runs
//! in one transaction together with its count, so a killed upgrade is either done or not begun.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::{StoreError, open::classify};

/// `tsd` and a version byte, in the header of every database of ours.
pub(super) const APPLICATION_ID: i64 = 0x7473_6401;

/// Steps in order; never edit one that was released.
pub(super) const STEPS: &[(&str, &str)] =
    &[("2026-11-21 first schema", FIRST), ("2026-11-22 roles, and why a policy was stored", ROLES)];

/// Times are microseconds since 1970, keys raw bytes, lists JSON. Ids are AUTOINCREMENT: never reused.
const FIRST: &str = "
CREATE TABLE users (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL UNIQUE,
  created INTEGER NOT NULL
) STRICT;
CREATE TABLE auth_keys (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  hash BLOB NOT NULL,
  user_id INTEGER NOT NULL,
  reusable INTEGER NOT NULL,
  ephemeral INTEGER NOT NULL,
  tags TEXT,
  created INTEGER NOT NULL,
  expires INTEGER NOT NULL,
  revoked INTEGER,
  uses INTEGER NOT NULL
) STRICT;
CREATE TABLE nodes (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  stable_id TEXT NOT NULL UNIQUE,
  machine BLOB NOT NULL,
  node_key BLOB NOT NULL UNIQUE,
  disco BLOB,
  name TEXT NOT NULL UNIQUE,
  renamed INTEGER NOT NULL,
  user_id INTEGER REFERENCES users(id),
  tags TEXT,
  made_by INTEGER REFERENCES users(id) ON DELETE SET NULL,
  ipv4 TEXT NOT NULL UNIQUE,
  ipv6 TEXT NOT NULL UNIQUE,
  created INTEGER NOT NULL,
  expiry INTEGER,
  ephemeral INTEGER NOT NULL,
  auth_key INTEGER REFERENCES auth_keys(id),
  approved_routes TEXT NOT NULL,
  hostinfo TEXT NOT NULL,
  endpoints TEXT NOT NULL,
  home_derp INTEGER,
  capver INTEGER NOT NULL,
  last_seen INTEGER,
  CHECK ((user_id IS NULL) <> (tags IS NULL))
) STRICT;
CREATE TABLE addresses (
  ipv4 TEXT PRIMARY KEY,
  node_id INTEGER NOT NULL,
  released INTEGER
) STRICT;
CREATE TABLE logins (
  id TEXT PRIMARY KEY,
  machine BLOB NOT NULL,
  node_key BLOB NOT NULL,
  hostinfo TEXT NOT NULL,
  capver INTEGER NOT NULL,
  ephemeral INTEGER NOT NULL,
  created INTEGER NOT NULL,
  expires INTEGER NOT NULL
) STRICT;
CREATE TABLE policies (
  version INTEGER PRIMARY KEY AUTOINCREMENT,
  text TEXT NOT NULL,
  author TEXT NOT NULL,
  created INTEGER NOT NULL
) STRICT;
CREATE TABLE secrets (
  kind TEXT NOT NULL,
  hash BLOB NOT NULL,
  value TEXT NOT NULL,
  expires INTEGER NOT NULL,
  PRIMARY KEY (kind, hash)
) STRICT, WITHOUT ROWID;
";

/// Who was here first owns the tailnet; everybody else was made by them.
const ROLES: &str = "
ALTER TABLE users ADD COLUMN role TEXT NOT NULL DEFAULT 'member';
UPDATE users SET role = 'owner' WHERE id = (SELECT min(id) FROM users);
ALTER TABLE policies ADD COLUMN comment TEXT NOT NULL DEFAULT '';
";

/// The schema version of this program.
pub(super) fn known() -> i64 {
    i64::try_from(STEPS.len()).unwrap_or(i64::MAX)
}

/// Runs the steps that are missing; refuses a newer schema.
pub(super) fn up(conn: &mut Connection, file: &Path) -> Result<(), StoreError> {
    let failed = |e: rusqlite::Error| classify(file, &e);
    let found: i64 = conn.query_row("PRAGMA user_version", [], |r| r.get(0)).map_err(failed)?;
    if found > known() {
        return Err(StoreError::Newer { file: file.to_owned(), found, known: known() });
    }
    if found > 0 && found < known() {
        backup(conn, file, found)?;
    }
    let done = usize::try_from(found).unwrap_or(0);
    for (index, (name, sql)) in STEPS.iter().enumerate().skip(done) {
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        tx.execute_batch(sql).map_err(failed)?;
        let next = i64::try_from(index + 1).unwrap_or(i64::MAX);
        tx.pragma_update(None, "user_version", next).map_err(failed)?;
        tx.commit().map_err(failed)?;
        tracing::info!(step = name, "database schema brought up to date");
    }
    Ok(())
}

/// A whole copy beside the file, before a schema changes; kept for the way back.
fn backup(conn: &Connection, file: &Path, version: i64) -> Result<(), StoreError> {
    let copy = file.with_extension(format!("db.before-v{}", version + 1));
    let _ = std::fs::remove_file(&copy);
    // SQLite fills an empty file but would make one that others may read.
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&copy)
        .map_err(|e| StoreError::Failed { file: copy.clone(), what: e.to_string() })?;
    conn.execute("VACUUM INTO ?1", [copy.to_string_lossy().as_ref()]).map_err(|e| classify(file, &e))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn the_copy_before_an_upgrade_is_nobody_elses_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tsd.db");
        let conn = Connection::open(&file).unwrap();
        conn.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (7);").unwrap();

        backup(&conn, &file, 1).unwrap();

        let copy = dir.path().join("tsd.db.before-v2");
        assert_eq!(std::fs::metadata(&copy).unwrap().mode() & 0o777, 0o600);
        let kept: i64 =
            Connection::open(&copy).unwrap().query_row("SELECT x FROM t", [], |r| r.get(0)).unwrap();
        assert_eq!(kept, 7);
    }

    #[test]
    fn who_was_first_owns_a_database_from_before_roles() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tsd.db");
        let mut conn = Connection::open(&file).unwrap();
        conn.execute_batch(FIRST).unwrap();
        conn.execute_batch(
            "INSERT INTO users (id, name, created) VALUES (7, 'late', 1), (3, 'first', 2);
             INSERT INTO policies (text, author, created) VALUES ('{}', 'a', 1);
             PRAGMA user_version = 1;",
        )
        .unwrap();

        up(&mut conn, &file).unwrap();

        let roles: String = conn
            .query_row(
                "SELECT group_concat(name || ' ' || role, ', ') FROM (SELECT * FROM users ORDER BY id)",
                [],
                |r| r.get(0),
            )
            .unwrap();
        assert_eq!(roles, "first owner, late member");
        let comment: String = conn.query_row("SELECT comment FROM policies", [], |r| r.get(0)).unwrap();
        assert_eq!(comment, "");
    }
}
