//! The ts2021 channel (control.md 3.3, 3.4): Noise IK handshake, then records with big-endian nonces.
//! `handshake` and `record` are pure; `stream` is the shell that makes an async byte stream of them.

mod error;
pub mod handshake;
pub mod record;
pub mod stream;

pub use error::NoiseError;

use crate::keys::MachinePublic;
use crate::wire::CapVer;

/// Who is at the other end of a finished handshake. Only this room makes one: holding it is the proof
/// that the machine key was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachinePeer {
    machine: MachinePublic,
    capver: CapVer,
}

impl MachinePeer {
    /// The machine key that was proven.
    #[must_use]
    pub const fn machine(&self) -> MachinePublic {
        self.machine
    }

    /// The protocol version of the handshake's prologue.
    #[must_use]
    pub const fn capver(&self) -> CapVer {
        self.capver
    }
}
