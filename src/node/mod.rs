//! `tsd node`: the client. Pure: `engine` and its children (`wg`, `magicsock`, `disco`, `netcheck`,
//! `filter`, `router`, `quad100`, `netmap`). Shell: `run`, `udp`, `tun`, `derp`, `control`, `os`,
//! `state_file`, `localapi`.

pub mod cli;
pub mod control;
pub mod core;
pub mod derp;
mod dns_forward;
pub mod engine;
pub mod host;
pub mod lifecycle;
pub mod linkmon;
pub mod localapi;
pub mod os;
pub mod prefs;
pub mod run;
pub mod session;
pub mod state_file;
mod sys;
pub mod tun;
pub mod udp;
