//! Composition root of the server: listeners, TLS, task ownership, signals, shutdown.
