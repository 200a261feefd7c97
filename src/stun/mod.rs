//! STUN (dataplane.md 2): `message` is pure, `server` a small socket loop.

pub mod message;
pub mod server;

pub use server::{StunLimits, StunStats, serve};
