//! The admin API over the unix socket: JSON over HTTP, the same functions as the console.
