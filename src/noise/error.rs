//! Every rule of the ts2021 channel that can be broken, one variant each.
//!
//! All of them end the connection: there is no state to go back to once a rule of the channel was
//! broken. The texts go to logs and, on the client, to people.

use super::record::MAX_FRAME;
use crate::wire::CapVer;

/// Why a channel could not be made or ended.
#[derive(Debug, thiserror::Error)]
pub enum NoiseError {
    /// The stream underneath broke.
    #[error("the connection under the Noise channel broke: {0}")]
    Io(#[from] std::io::Error),
    /// A handshake message has the wrong size.
    #[error("the Noise {what} is {got} bytes long, it must be {want}")]
    Size {
        /// Which message.
        what: &'static str,
        /// Its only legal size.
        want: usize,
        /// What came.
        got: usize,
    },
    /// A message of another kind than the one due now.
    #[error("a Noise {want} was due, a frame of type {got} came")]
    Kind {
        /// What was due.
        want: &'static str,
        /// The type byte that came.
        got: u8,
    },
    /// The client speaks a version that is not served.
    #[error(
        "protocol version {0} is not served, the oldest is {oldest} (release 1.80): update the client",
        oldest = CapVer::OLDEST
    )]
    Version(CapVer),
    /// A version of our own that does not fit the header; a fault of the caller.
    #[error("protocol version {0} does not fit into 16 bits")]
    VersionRange(CapVer),
    /// A public key that makes every shared secret zero (control.md 3.3).
    #[error("a weak public key was offered: the shared secret would be known to everybody")]
    WeakKey,
    /// The handshake was sealed for another key.
    #[error(
        "the Noise handshake does not verify: the two sides do not agree on the server's key. \
         If the server was set up anew, restart the client so that it fetches the key again"
    )]
    Handshake,
    /// The server answered an error frame; its text is not authenticated.
    #[error("the server refused the Noise handshake: {0:?}")]
    Refused(String),
    /// A record longer than the protocol allows.
    #[error("a Noise record of {0} bytes came, at most {MAX_FRAME} are allowed")]
    RecordTooLong(usize),
    /// A record too short to hold its tag.
    #[error("a Noise record of {0} bytes is too short to be sealed")]
    RecordTooShort(usize),
    /// A record that was changed, repeated, or is out of order.
    #[error("a Noise record does not verify: it was changed, repeated, or came out of order")]
    Record,
    /// The stream ended inside a record.
    #[error("the Noise channel ended in the middle of a record")]
    Truncated,
    /// All counters of a direction are used up.
    #[error("the Noise channel has used up its counters: connect again")]
    Exhausted,
    /// An early payload beyond what clients take (control.md 3.4).
    #[error("the early payload is {got} bytes long, at most {max} are allowed")]
    EarlyTooLong {
        /// Its length.
        got: usize,
        /// The limit of this side.
        max: usize,
    },
}

impl From<NoiseError> for std::io::Error {
    fn from(e: NoiseError) -> Self {
        match e {
            NoiseError::Io(io) => io,
            NoiseError::Truncated => Self::new(std::io::ErrorKind::UnexpectedEof, e),
            other => Self::new(std::io::ErrorKind::InvalidData, other),
        }
    }
}
