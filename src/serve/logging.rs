//! Structured logs on stderr. What may be logged is the rooms' business: keys only in short form,
//! secrets never.

use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat};

/// Sets another level in a running server.
pub(super) type SetLevel = Box<dyn Fn(&str) + Send>;

/// Starts logging; a second call in one process changes nothing.
pub(super) fn init(config: &Config) -> SetLevel {
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter(&config.log_level)).with_writer(std::io::stderr);
    // An error of `try_init` means that somebody, a test, has set one already. The two forms are two
    // types, so the lines stand twice.
    match config.log_format {
        LogFormat::Text => {
            let builder = builder.with_ansi(false).with_filter_reloading();
            let handle = builder.reload_handle();
            let _ = builder.try_init();
            Box::new(move |level| drop(handle.reload(filter(level))))
        }
        LogFormat::Json => {
            let builder = builder.json().with_filter_reloading();
            let handle = builder.reload_handle();
            let _ = builder.try_init();
            Box::new(move |level| drop(handle.reload(filter(level))))
        }
    }
}

/// The level was checked with the configuration.
fn filter(level: &str) -> EnvFilter {
    EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"))
}
