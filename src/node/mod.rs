//! `tsd node`: the client. Pure: `engine` and its children (`wg`, `magicsock`, `disco`, `netcheck`,
//! `filter`, `router`, `quad100`, `netmap`). Shell: `run`, `udp`, `tun`, `derp`, `control`, `os`,
//! `state_file`, `localapi`.

pub mod control;
mod disco;
pub mod engine;
mod filter;
mod magicsock;
mod netcheck;
mod netmap;
mod outbox;
mod packet;
mod quad100;
mod router;
mod wg;
