//! The policy engine against a naive evaluator, on captured cases and on random policies and topologies;
//! and incremental compiles against whole ones.
#![allow(clippy::print_stdout)]

#[cfg(test)]
mod captured;
#[cfg(test)]
#[path = "../conformance/case.rs"]
mod case;
#[cfg(test)]
mod equality;
#[cfg(test)]
mod incremental;
#[cfg(test)]
mod naive;
#[cfg(test)]
mod plain;
#[cfg(test)]
mod random;
#[cfg(test)]
mod views;
