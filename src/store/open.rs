//! Finding, locking and checking the database file. An existing file that is not sound is never
//! replaced: the caller gets its path, what was found, and the remedy.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::{StoreError, migrate};

/// File name of the database in the state directory.
pub(super) const FILE: &str = "tsd.db";
/// First bytes of every SQLite 3 file (sqlite.org/fileformat2.html 1.3.1).
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// An open, locked, current database.
pub(super) struct Opened {
    pub(super) conn: Connection,
    pub(super) file: PathBuf,
    /// Held for its lock until the connection is closed.
    pub(super) _lock: File,
}

/// Opens or makes the database in `dir`.
pub(super) fn open(dir: &Path) -> Result<Opened, StoreError> {
    prepare_dir(dir)?;
    let lock = lock(dir)?;
    let file = dir.join(FILE);
    if !file.exists() {
        create(dir, &file)?;
    }
    check_header(&file)?;
    let mut conn = connect(&file)?;
    check_integrity(&conn, &file)?;
    migrate::up(&mut conn, &file)?;
    Ok(Opened { conn, file, _lock: lock })
}

fn directory(dir: &Path, what: String) -> StoreError {
    StoreError::Directory { dir: dir.to_owned(), what }
}

fn prepare_dir(dir: &Path) -> Result<(), StoreError> {
    if !dir.exists() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|e| directory(dir, format!("the state directory cannot be made: {e}")))?;
    }
    let meta = std::fs::metadata(dir)
        .map_err(|e| directory(dir, format!("the state directory cannot be read: {e}")))?;
    if !meta.is_dir() {
        return Err(directory(dir, "is no directory; give another --state-dir".into()));
    }
    // Whoever may write here may swap the database for another.
    if meta.mode() & 0o022 != 0 {
        return Err(directory(
            dir,
            format!(
                "other users may write to the state directory (mode {:o}); run: chmod 700 {}",
                meta.mode() & 0o777,
                dir.display()
            ),
        ));
    }
    Ok(())
}

/// The lock is on a file of its own: SQLite uses byte-range locks on the database itself, and those
/// are lost when any descriptor of the file is closed.
fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("tsd.lock");
    let fail = |e: std::io::Error| directory(dir, format!("{}: {e}", path.display()));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(fail)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = (&mut file).take(20).read_to_string(&mut pid);
            let pid = pid.trim();
            return Err(StoreError::InUse {
                dir: dir.to_owned(),
                pid: if pid.is_empty() { "unknown" } else { pid }.to_owned(),
            });
        }
        Err(std::fs::TryLockError::Error(e)) => return Err(fail(e)),
    }
    file.set_len(0).map_err(fail)?;
    file.seek(SeekFrom::Start(0)).map_err(fail)?;
    writeln!(file, "{}", std::process::id()).map_err(fail)?;
    Ok(file)
}

/// Makes a new database under another name and renames it when it is whole, so that an empty or
/// half-made `tsd.db` is always a fault and never a beginning.
fn create(dir: &Path, file: &Path) -> Result<(), StoreError> {
    for left in ["tsd.db-wal", "tsd.db-journal"] {
        let left = dir.join(left);
        if left.exists() {
            return Err(StoreError::Damaged {
                file: file.to_owned(),
                what: format!("the file is missing but {} is there", left.display()),
            });
        }
    }
    let new = dir.join("tsd.db.new");
    for part in ["tsd.db.new", "tsd.db.new-wal", "tsd.db.new-shm"] {
        let _ = std::fs::remove_file(dir.join(part));
    }
    let failed = |e: &dyn std::fmt::Display| StoreError::Failed { file: new.clone(), what: e.to_string() };
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(|e| failed(&e))?;
    let mut conn = connect(&new)?;
    conn.pragma_update(None, "application_id", migrate::APPLICATION_ID).map_err(|e| failed(&e))?;
    migrate::up(&mut conn, &new)?;
    // Closing the last connection checkpoints the WAL into the file.
    conn.close().map_err(|(_, e)| failed(&e))?;
    std::fs::rename(&new, file).map_err(|e| failed(&e))?;
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| failed(&e))
}

fn check_header(file: &Path) -> Result<(), StoreError> {
    let damaged = |what: String| StoreError::Damaged { file: file.to_owned(), what };
    let mut head = [0_u8; 16];
    let mut f = File::open(file).map_err(|e| damaged(format!("it cannot be read: {e}")))?;
    let len = f.metadata().map(|m| m.len()).unwrap_or_default();
    if len == 0 {
        return Err(damaged("the file is empty".into()));
    }
    if f.read_exact(&mut head).is_err() || &head != MAGIC {
        return Err(damaged("it does not begin like an SQLite database".into()));
    }
    Ok(())
}

fn connect(file: &Path) -> Result<Connection, StoreError> {
    let failed = |e: rusqlite::Error| classify(file, &e);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(file, flags).map_err(failed)?;
    conn.busy_timeout(std::time::Duration::from_secs(5)).map_err(failed)?;
    let mode: String = conn.query_row("PRAGMA journal_mode=WAL", [], |r| r.get(0)).map_err(failed)?;
    if mode != "wal" {
        return Err(StoreError::Failed {
            file: file.to_owned(),
            what: format!(
                "write-ahead logging is not possible here (mode {mode}); is it a network file system?"
            ),
        });
    }
    conn.execute_batch("PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;").map_err(failed)?;
    Ok(conn)
}

fn check_integrity(conn: &Connection, file: &Path) -> Result<(), StoreError> {
    let damaged = |what: String| StoreError::Damaged { file: file.to_owned(), what };
    let verdict: String =
        conn.query_row("PRAGMA quick_check(1)", [], |r| r.get(0)).map_err(|e| damaged(e.to_string()))?;
    if verdict != "ok" {
        return Err(damaged(verdict));
    }
    let id: i64 =
        conn.query_row("PRAGMA application_id", [], |r| r.get(0)).map_err(|e| damaged(e.to_string()))?;
    if id != migrate::APPLICATION_ID {
        return Err(damaged("it is the database of another program".into()));
    }
    Ok(())
}

/// Corruption and foreign files need another remedy than a full or read-only disk.
pub(super) fn classify(file: &Path, error: &rusqlite::Error) -> StoreError {
    use rusqlite::ErrorCode;
    let file = file.to_owned();
    let what = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            let what = error.to_string();
            return StoreError::Damaged { file, what };
        }
        Some(ErrorCode::DiskFull) => "the disk is full; free some space, no restart is needed".into(),
        Some(ErrorCode::ReadOnly) => format!("it is read-only ({error})"),
        _ => error.to_string(),
    };
    StoreError::Failed { file, what }
}
