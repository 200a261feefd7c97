//! STUN (dataplane.md 2): `message` is pure, `server` a small socket loop.
