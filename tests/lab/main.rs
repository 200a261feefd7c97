//! The network lab: hosts, an internet bridge, NATs and firewalls in network namespaces made by each
//! test itself, without a way outside, and `tsd` and official programs running in them.
//!
//! Needs root, `/dev/net/tun`, `ip` and `nft`. A new scenario is one function: make a [`world::Lab`],
//! put machines into it, start programs, say what must hold. When a test fails, the end of every
//! program's log is printed.
#![allow(missing_docs, unused_qualifications, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::print_stdout)]
#![allow(clippy::disallowed_methods)]

mod authority;
mod flows;
mod machines;
mod official;
mod peers;
mod server;
mod world;

#[path = "../support/webdriver.rs"]
mod webdriver;

mod scenario_access;
mod scenario_attack;
mod scenario_batches;
mod scenario_browser;
mod scenario_crowds;
mod scenario_cut;
mod scenario_diagnostics;
mod scenario_faults;
mod scenario_hostile;
mod scenario_keys;
mod scenario_kill;
mod scenario_lifecycle;
mod scenario_mesh;
mod scenario_node;
mod scenario_operator;
mod scenario_ops;
mod scenario_paths;
mod scenario_policy;
mod scenario_policy_pages;
mod scenario_removal;
mod scenario_restart;
mod scenario_roam;
mod scenario_routes;
mod scenario_server;
mod scenario_shell;
mod scenario_ssh;
mod scenario_testcontrol;
mod scenario_versions;
