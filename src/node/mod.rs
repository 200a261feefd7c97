//! `tsd node`: the client. Pure: `engine` and its children (`wg`, `magicsock`, `disco`, `netcheck`,
//! `filter`, `router`, `quad100`, `netmap`). Shell: `run`, `udp`, `tun`, `derp`, `control`, `os`,
//! `state_file`, `localapi`.

pub mod control;
pub mod engine;
