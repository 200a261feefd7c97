//! `tsd node`: the client. Pure: `engine` and its children (`wg`, `magicsock`, `disco`, `netcheck`,
//! `filter`, `router`, `quad100`, `netmap`), `prefs`. Shell: `run`, `core`, `udp`, `tun`, `derp`,
//! `control`, `session`, `lifecycle`, `os`, `linkmon`, `state_file`, `localapi`, `cli`.

pub mod cli;
pub mod control;
pub mod core;
pub mod derp;
mod disco;
mod dns_forward;
pub mod engine;
mod filter;
mod gro;
mod gso;
mod hash;
pub mod host;
pub mod lifecycle;
pub mod linkmon;
pub mod localapi;
mod magicsock;
mod netcheck;
mod netmap;
pub mod os;
mod outbox;
mod packet;
pub mod prefs;
mod quad100;
mod router;
pub mod run;
pub mod session;
pub mod state_file;
mod sys;
pub mod tun;
pub mod udp;
mod wg;
