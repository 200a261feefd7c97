//! The coordination server: who is in the tailnet and what each node is told. Pure files decide
//! (`state`, `world`, `change`, `mapper`, `relays`, `ipam`, `register`, `nodes`, `admin`, `policy`, `author`, `routes`, `timers`,
//! `contest`, `sources`, `strangers`, `wall`), shells carry (`service`, `owner`, `presence`, `session`, `health`, `policies`,
//! `explaining`, `proving`, `http`, `machine`, `websocket`).

mod admin;
mod author;
mod change;
mod contest;
mod dns_config;
pub mod explaining;
mod health;
mod hostinfo;
pub mod http;
mod inquiry;
mod ipam;
mod machine;
mod map_node;
mod mapper;
mod nodes;
mod owner;
pub mod policies;
mod policy;
mod presence;
mod proving;
mod register;
mod relays;
mod routes;
pub mod service;
mod session;
mod sources;
mod state;
mod strangers;
#[cfg(test)]
mod tests;
mod timers;
mod types;
mod views;
mod wall;
mod websocket;
mod world;
