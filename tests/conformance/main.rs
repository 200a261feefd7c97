//! The policy engine against what the hosted service was captured doing: 471 cases. Provenance, licence
//! and form of the cases: `PROVENANCE.md`.

#![allow(clippy::print_stdout)]

#[cfg(test)]
mod addresses;
#[cfg(test)]
mod captured;
#[cfg(test)]
mod case;
