//! `tsd`: a private mesh network of your own in one binary.
//!
//! The rooms, who may import whom and the way of a request and of a packet are drawn in
//! `ARCHITECTURE.md`; `tests/architecture.rs` holds the arrows.

pub mod acl;
pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod derp;
pub mod dns;
pub mod keys;
pub mod model;
pub mod node;
pub mod noise;
pub mod serve;
pub mod store;
pub mod stun;
pub mod ui;
pub mod wire;
