//! The policy engine against what the hosted service was captured doing. Provenance and licence of the
//! cases: `PROVENANCE.md`.

#[cfg(test)]
mod captured;
