//! The one thread that writes. It takes everything that is queued into one transaction, commits, and
//! only then acknowledges: a thousand registrations cost one fsync. Each job has its own savepoint, so
//! a job that breaks a constraint fails alone.

use rusqlite::{Connection, OptionalExtension, Result, params};
use tokio::sync::mpsc;

use super::open::{Opened, classify};
use super::{Ack, Job, Secret, StoreError, load, rows};

/// Jobs in one transaction at most; bounds how long the first one waits.
const GROUP: usize = 512;

/// What is told once the fate of the transaction is known.
type Tell = Box<dyn FnOnce(Option<&StoreError>)>;

/// Runs until all senders are gone.
pub(super) fn run(opened: Opened, mut jobs: mpsc::Receiver<Job>) {
    let Opened { conn, file, _lock } = opened;
    conn.set_prepared_statement_cache_capacity(32);
    while let Some(first) = jobs.blocking_recv() {
        let mut group = vec![first];
        while group.len() < GROUP
            && let Ok(job) = jobs.try_recv()
        {
            group.push(job);
        }
        let mut tells: Vec<Tell> = Vec::with_capacity(group.len());
        let verdict = transaction(&conn, group, &file, &mut tells);
        if let Err(error) = &verdict {
            // Who asked says so, once; a full disk must not fill a log as well.
            tracing::debug!(%error, jobs = tells.len(), "a transaction failed");
        }
        for tell in tells {
            tell(verdict.as_ref().err());
        }
    }
    // Closing checkpoints the WAL; the lock goes after it.
    if let Err((_, error)) = conn.close() {
        tracing::error!(%error, "closing the database");
    }
    drop(_lock);
}

fn transaction(
    conn: &Connection,
    group: Vec<Job>,
    file: &std::path::Path,
    tells: &mut Vec<Tell>,
) -> std::result::Result<(), StoreError> {
    let begun = conn.execute_batch("BEGIN IMMEDIATE");
    let mut fatal = None;
    for job in group {
        // Without a transaction nothing is tried, but everybody still hears of it.
        if begun.is_ok() && fatal.is_none() {
            tells.push(perform(conn, job, file, &mut fatal));
        } else {
            tells.push(refuse(job));
        }
    }
    // SQLite rolled everything back by itself; committing now would only hide why.
    if let Some(error) = fatal {
        return Err(error);
    }
    let done = begun.and_then(|()| conn.execute_batch("COMMIT"));
    if done.is_err() && !conn.is_autocommit() {
        let _ = conn.execute_batch("ROLLBACK");
    }
    done.map_err(|error| classify(file, &error))
}

fn teller<T: 'static>(ack: Ack<T>, result: std::result::Result<T, StoreError>) -> Tell {
    Box::new(move |failed| {
        // A receiver that gave up is no fault of ours.
        let _ = ack.send(failed.map_or(result, |e| Err(e.clone())));
    })
}

fn refuse(job: Job) -> Tell {
    match job {
        Job::Commit(_, ack) | Job::PutSecret(_, ack) => teller(ack, Err(StoreError::Closed)),
        Job::Secret { ack, .. } => teller(ack, Err(StoreError::Closed)),
        Job::History(ack) => teller(ack, Err(StoreError::Closed)),
        Job::Policy(_, ack) => teller(ack, Err(StoreError::Closed)),
        #[cfg(test)]
        Job::Test(_) => Box::new(|_| {}),
    }
}

/// Does one job. An error at which SQLite rolls the whole transaction back (a full disk) is left in
/// `fatal`.
fn perform(conn: &Connection, job: Job, file: &std::path::Path, fatal: &mut Option<StoreError>) -> Tell {
    let bad = |e: rusqlite::Error| {
        let error = classify(file, &e);
        if conn.is_autocommit() {
            *fatal = Some(error.clone());
        }
        error
    };
    match job {
        Job::Commit(writes, ack) => {
            let result = alone(conn, |c| writes.iter().try_for_each(|w| rows::apply(c, w)));
            teller(ack, result.map_err(bad))
        }
        Job::PutSecret(secret, ack) => teller(ack, alone(conn, |c| put_secret(c, &secret)).map_err(bad)),
        Job::Secret { kind, hash, now, take, ack } => {
            let result = alone(conn, |c| {
                let found: Option<String> = c
                    .prepare_cached(
                        "SELECT value FROM secrets WHERE kind = ?1 AND hash = ?2 AND expires > ?3",
                    )?
                    .query_row(params![kind, hash, rows::micros(now)], |r| r.get(0))
                    .optional()?;
                if take && found.is_some() {
                    c.prepare_cached("DELETE FROM secrets WHERE kind = ?1 AND hash = ?2")?
                        .execute(params![kind, hash])?;
                }
                Ok(found)
            });
            teller(ack, result.map_err(bad))
        }
        Job::History(ack) => teller(ack, load::history(conn, 10_000).map_err(bad)),
        Job::Policy(version, ack) => teller(ack, load::policy(conn, Some(version)).map_err(bad)),
        #[cfg(test)]
        Job::Test(job) => {
            job(conn);
            Box::new(|_| {})
        }
    }
}

/// Runs `work` in a savepoint: its failure leaves the jobs beside it alone.
fn alone<T>(conn: &Connection, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
    conn.execute_batch("SAVEPOINT job")?;
    let result = work(conn);
    if result.is_err() && !conn.is_autocommit() {
        conn.execute_batch("ROLLBACK TO job")?;
    }
    if !conn.is_autocommit() {
        conn.execute_batch("RELEASE job")?;
    }
    result
}

fn put_secret(conn: &Connection, secret: &Secret) -> Result<()> {
    conn.prepare_cached("DELETE FROM secrets WHERE expires <= ?1")?.execute([rows::micros(secret.now)])?;
    conn.prepare_cached(
        "INSERT INTO secrets (kind, hash, value, expires) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT(kind, hash) DO UPDATE SET value = excluded.value, expires = excluded.expires",
    )?
    .execute(params![secret.kind, secret.hash, secret.value, rows::micros(secret.expires)])?;
    Ok(())
}
