//! SQLite: everything that must survive. One file, one writer thread with group commit; a commit is
//! acknowledged after it is on disk (WAL, `synchronous=FULL`). Speaks `model`, never the wire.
//!
//! `open` finds, checks and locks the file, `migrate` brings its schema up to date, `load` reads it,
//! `rows` writes it, `writer` is the thread.

mod load;
mod migrate;
mod open;
mod rows;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::sync::{mpsc, oneshot};

use crate::model::rows::{Stored, Write};
use crate::model::{PolicySummary, PolicyVersion};

/// Why the database cannot be opened or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Another server holds the lock.
    #[error(
        "{dir} is in use by another tsd server (process {pid}); stop it first, or give this one another --state-dir"
    )]
    InUse {
        /// The state directory.
        dir: PathBuf,
        /// Who, as far as known.
        pid: String,
    },
    /// The directory may be written by others, or cannot be made.
    #[error("{dir}: {what}")]
    Directory {
        /// The state directory.
        dir: PathBuf,
        /// What is wrong and the remedy.
        what: String,
    },
    /// The file is there but is no sound database of ours.
    #[error(
        "{file} is damaged or not a tsd database: {what}. Nothing was changed. Restore it from a backup, or move it (and {name}-wal, {name}-shm beside it) away to start with an empty tailnet",
        name = .file.file_name().unwrap_or_default().to_string_lossy()
    )]
    Damaged {
        /// The database.
        file: PathBuf,
        /// What was found.
        what: String,
    },
    /// Written by a newer program.
    #[error(
        "{file} has schema version {found}, this tsd knows versions up to {known}: run the newer tsd again, or restore the backup made before the upgrade"
    )]
    Newer {
        /// The database.
        file: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// A statement or the disk failed.
    #[error("the database {file} cannot be written: {what}")]
    Failed {
        /// The database.
        file: PathBuf,
        /// What SQLite says.
        what: String,
    },
    /// The writer has stopped.
    #[error("the database is closed")]
    Closed,
}

type Ack<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer thread is asked.
enum Job {
    Commit(Vec<Write>, Ack<()>),
    PutSecret(Secret, Ack<()>),
    Secret {
        kind: String,
        hash: [u8; 32],
        now: DateTime<Utc>,
        take: bool,
        ack: Ack<Option<String>>,
    },
    History(Ack<Vec<PolicySummary>>),
    Policy(u64, Ack<Option<PolicyVersion>>),
    /// Something done to the connection by a test: a limit, a panic.
    #[cfg(test)]
    Test(Box<dyn FnOnce(&rusqlite::Connection) + Send>),
}

struct Secret {
    kind: String,
    hash: [u8; 32],
    value: String,
    expires: DateTime<Utc>,
    now: DateTime<Utc>,
}

/// The database, open and locked. Dropping the last handle ends the writer after what is queued.
pub struct Store {
    jobs: parking_lot::Mutex<Option<mpsc::Sender<Job>>>,
    thread: parking_lot::Mutex<Option<std::thread::JoinHandle<()>>>,
    end: Arc<End>,
}

/// Called once when the writer ends: whether as it should.
type Hook = Box<dyn FnOnce(bool) + Send>;

/// How the writer ended, and who wants to hear of it.
#[derive(Default)]
struct End(parking_lot::Mutex<(Option<bool>, Option<Hook>)>);

impl End {
    fn tell(&self, well: bool) {
        let hook = {
            let mut end = self.0.lock();
            end.0 = Some(well);
            end.1.take()
        };
        if let Some(hook) = hook {
            hook(well);
        }
    }
}

/// Lives on the writer's stack; told from its drop, so that a panic is heard of too.
struct Ending(Arc<End>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.tell(!std::thread::panicking());
    }
}

/// Jobs waiting for the writer; callers wait when it is full.
const QUEUE: usize = 1024;

impl Store {
    /// Opens (or makes) the database in `dir`, brings it up to date and reads everything.
    ///
    /// # Errors
    /// When it is in use, damaged, newer, or the disk fails; each text says what to do.
    pub fn open(dir: &Path) -> Result<(Self, Stored), StoreError> {
        let opened = open::open(dir)?;
        let stored = load::load(&opened.conn)
            .map_err(|e| StoreError::Damaged { file: opened.file.clone(), what: e.to_string() })?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        let file = opened.file.clone();
        let end = Arc::new(End::default());
        let ending = Ending(Arc::clone(&end));
        let thread = std::thread::Builder::new()
            .name("tsd-store".into())
            .spawn(move || {
                let _ending = ending;
                writer::run(opened, queue);
            })
            .map_err(|e| StoreError::Failed { file, what: format!("no thread: {e}") })?;
        let store = Self {
            jobs: parking_lot::Mutex::new(Some(jobs)),
            thread: parking_lot::Mutex::new(Some(thread)),
            end,
        };
        Ok((store, stored))
    }

    /// Has `hook` called once when the writer ends, with whether it ended as it should; at once when it
    /// has ended already.
    pub fn when_ended(&self, hook: Box<dyn FnOnce(bool) + Send>) {
        let mut end = self.end.0.lock();
        match end.0 {
            Some(well) => {
                drop(end);
                hook(well);
            }
            None => end.1 = Some(hook),
        }
    }

    /// Does something to the connection, in the writer's turn.
    #[cfg(test)]
    pub(crate) async fn test(&self, job: impl FnOnce(&rusqlite::Connection) + Send + 'static) {
        let jobs = self.jobs.lock().clone().unwrap();
        jobs.send(Job::Test(Box::new(job))).await.ok().unwrap();
    }

    async fn ask<T>(&self, job: impl FnOnce(Ack<T>) -> Job) -> Result<T, StoreError> {
        let (ack, answer) = oneshot::channel();
        let jobs = self.jobs.lock().clone();
        let Some(jobs) = jobs else {
            return Err(StoreError::Closed);
        };
        if jobs.send(job(ack)).await.is_err() {
            return Err(StoreError::Closed);
        }
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Carries `writes` out, whole or not at all; returns when they are on disk.
    ///
    /// # Errors
    /// When they are not: nothing of them may be believed then.
    pub async fn commit(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        self.ask(|ack| Job::Commit(writes, ack)).await
    }

    /// Keeps `value` under a kind and a hash until `expires`.
    ///
    /// # Errors
    /// When it is not on disk.
    pub async fn put_secret(
        &self,
        kind: &str,
        hash: [u8; 32],
        value: &str,
        expires: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let secret = Secret { kind: kind.to_owned(), hash, value: value.to_owned(), expires, now };
        self.ask(|ack| Job::PutSecret(secret, ack)).await
    }

    /// Looks a secret up, and with `take` drops it in the same transaction.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn secret(
        &self,
        kind: &str,
        hash: [u8; 32],
        take: bool,
        now: DateTime<Utc>,
    ) -> Result<Option<String>, StoreError> {
        let kind = kind.to_owned();
        self.ask(|ack| Job::Secret { kind, hash, now, take, ack }).await
    }

    /// All policies without their texts, newest first.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn policies(&self) -> Result<Vec<PolicySummary>, StoreError> {
        self.ask(Job::History).await
    }

    /// One stored policy.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn policy(&self, version: u64) -> Result<Option<PolicyVersion>, StoreError> {
        self.ask(|ack| Job::Policy(version, ack)).await
    }

    /// Ends the writer after everything queued, and waits until the file is closed. Blocks.
    pub fn close(&self) {
        drop(self.jobs.lock().take());
        let handle = self.thread.lock().take();
        if let Some(handle) = handle
            && handle.join().is_err()
        {
            tracing::error!("the database writer ended by a panic");
        }
    }
}
