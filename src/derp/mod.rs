//! The relay (dataplane.md 1). `frame`, `handshake`, `switch` are pure; `server` and `client` are
//! shells over any byte stream.

pub mod client;
pub mod server;
