//! Composition root of the server: takes ports, opens state, starts the rooms in order, and ends them.
//!
//! Order matters (`start`): ports are taken first (a busy one must not cost a half-made state), the
//! admin socket answers next, and only then does a listener accept. Every task is owned by one
//! `JoinSet`; one that ends by itself ends the server, because half a server is worse than a
//! restarted one.

mod cert;
mod derp_map;
mod door;
mod limits;
mod listen;
mod logging;
mod metrics;
mod page;
mod policy_file;
mod ports;
mod process;
mod public;
mod reload;
mod router;
mod settings;
mod sniff;
mod start;
mod state_dir;
mod status;

#[doc(hidden)]
pub use sniff::fuzz as fuzz_sniff;

use std::io::Write as _;

use anyhow::anyhow;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinError;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::config::{self, ServeFlags, Sources};
use page::Page;

/// Why the server ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It could not start; the text says what to change.
    #[error("{0:#}")]
    Start(anyhow::Error),
    /// It broke while running.
    #[error("{0:#}")]
    Broken(anyhow::Error),
}

/// Runs the server until a signal or a fault ends it.
///
/// # Errors
/// [`ServeError::Start`] when something is to be mended by the caller, [`ServeError::Broken`] when it
/// broke by itself.
pub async fn run(flags: ServeFlags, state_dir: Option<String>) -> Result<(), ServeError> {
    let load = || {
        let sources = Sources::read(flags.clone(), state_dir.clone())?;
        Ok::<_, config::ConfigError>((config::load(&sources)?, sources.unknown_env()))
    };
    let (config, unknown) = load().map_err(|e| ServeError::Start(e.into()))?;
    let set_level = logging::init(&config);
    process::log_panics();
    process::harden();
    for name in unknown {
        tracing::warn!(name, "unknown variable; config.example.toml lists every key");
    }
    process::raise_open_files();
    // Before the start, so that a signal during it is not lost.
    let mut signals = Signals::new().map_err(|e| ServeError::Start(e.into()))?;
    let (mut server, page) = start::start(config, set_level).await.map_err(ServeError::Start)?;
    print_page(&page);
    let mut renewal = interval_at(Instant::now() + limits::RENEWAL, limits::RENEWAL);
    renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let broken = loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Told::Stop => break None,
                Told::Reload => server.reload(load().map(|(config, _)| config)).await,
            },
            _ = renewal.tick() => server.renew().await,
            part = server.control.failed() => break Some(anyhow!("the {part} failed")),
            Some(part) = server.tasks.join_next() => break Some(ended(part)),
        }
    };
    if let Some(error) = &broken {
        tracing::error!(%error, "stopping, so that a restart can mend it");
    }
    tokio::select! {
        () = server.shutdown() => {}
        () = signals.stop() => tracing::warn!("second signal: stopping at once"),
    }
    match broken {
        Some(error) => Err(ServeError::Broken(error)),
        None => Ok(()),
    }
}

/// Why a part that should run for ever does not.
fn ended(part: Result<&'static str, JoinError>) -> anyhow::Error {
    match part {
        Ok(name) => anyhow!("the {name} ended by itself"),
        Err(error) => anyhow!("a part of the server failed: {error}"),
    }
}

fn print_page(page: &Page) {
    let mut out = std::io::stdout().lock();
    // Nobody reading is no reason to stop serving.
    let _ = out.write_all(page.render().as_bytes());
    let _ = out.flush();
}

struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.term.recv() => Told::Stop,
            _ = self.int.recv() => Told::Stop,
            _ = self.hup.recv() => Told::Reload,
        }
    }

    async fn stop(&mut self) {
        while self.next().await != Told::Stop {}
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Stop,
    Reload,
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn a_part_that_ends_or_panics_is_a_reason_to_stop() {
        let mut tasks = JoinSet::new();
        tasks.spawn(async { "HTTP listener" });
        let text = ended(tasks.join_next().await.unwrap()).to_string();
        assert_eq!(text, "the HTTP listener ended by itself");
        let before = process::panics();
        process::log_panics();
        tasks.spawn(async { panic!("a test wants it so") });
        let text = ended(tasks.join_next().await.unwrap()).to_string();
        let _ = std::panic::take_hook();
        assert!(text.starts_with("a part of the server failed") && text.contains("panicked"), "{text}");
        assert!(process::panics() > before);
    }
}
