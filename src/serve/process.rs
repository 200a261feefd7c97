//! What the server asks of the operating system for its own process: file descriptors, and that its
//! memory with keys in it is not dumped to disk or read by others. And what becomes of a panic: a line
//! in the log and a figure.

use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Panics since start, of all tasks and threads; a panic hook belongs to the process, so this does too.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// Raises the soft limit of open files to the hard one: every client holds up to two connections.
pub(super) fn raise_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// The soft limit of open files; 0 when unknown.
#[must_use]
pub(super) fn open_files_limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft)
}

/// No core dumps, no reading of our memory by other processes of this user, and no new rights by
/// anything started from here. A kernel that refuses costs a warning, not the start.
pub(super) fn harden() {
    let done = [
        ("core dumps", setrlimit(Resource::RLIMIT_CORE, 0, 0)),
        ("memory protection", prctl::set_dumpable(false)),
        ("no_new_privs", prctl::set_no_new_privs()),
    ];
    for (what, result) in done {
        if let Err(error) = result {
            tracing::warn!(what, %error, "the kernel refuses to harden this process");
        }
    }
}

/// From here on a panic is one line in the log, with its place, and counted.
pub(super) fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let said = panic.payload_as_str().unwrap_or("no words");
        tracing::error!(place, said, "a fault of ours: please report it");
    }));
}

/// Panics since start.
#[must_use]
pub(super) fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}
