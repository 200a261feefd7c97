//! The relay (dataplane.md 1). `frame`, `handshake`, `switch` and `limits` are pure; the rest are
//! shells: `stream` cuts frames out of a byte stream, `outbox` queues and writes them, `server` and
//! `client` are the two ends, `tls` decides whom a client trusts, `websocket` carries browsers.

pub mod client;
pub mod frame;
pub mod handshake;
mod http;
pub mod limits;
mod outbox;
pub mod server;
mod stream;
pub mod switch;
pub mod tls;
mod websocket;

#[doc(hidden)]
pub use websocket::fuzz as fuzz_websocket;

#[cfg(test)]
mod tests;
