//! The coordination server: who is in the tailnet and what each node is told. Pure files decide
//! (`state`, `change`, `snapshot`, `mapper`, `ipam`, `register`), shells carry (`service`, `session`,
//! `http`).

pub mod http;
pub mod service;
