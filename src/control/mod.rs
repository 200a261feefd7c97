//! The coordination server: who is in the tailnet and what each node is told. Pure files decide
//! (`state`, `change`, `mapper`, `ipam`, `register`, `nodes`, `admin`, `policy`, `routes`, `timers`,
//! `contest`, `sources`, `strangers`, `wall`), shells carry (`service`, `owner`, `presence`, `session`, `health`, `http`,
//! `machine`, `websocket`).

mod admin;
mod change;
mod contest;
mod dns_config;
mod health;
mod hostinfo;
pub mod http;
mod ipam;
mod machine;
mod map_node;
mod mapper;
mod nodes;
mod owner;
mod policy;
mod presence;
mod register;
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
