//! The node's control client: `/key`, the dial race of control.md 3.1, Noise, HTTP/2, register and map.

use std::time::Duration;

use crate::clock::Rng;
use crate::derp::client::DialOptions;
use crate::keys::MachinePrivate;
use crate::wire::{MapRequest, MapResponse, RegisterRequest, RegisterResponse};

/// Why control could not be asked. Texts name the server and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The URL is no http(s) URL with a host.
    #[error("{0:?} is not a server URL: write https://host or http://host:port")]
    Url(String),
    /// Nothing answered, or not as a coordination server.
    #[error("cannot reach the server {url}: {why}")]
    Unreachable {
        /// Which.
        url: String,
        /// What went wrong on each try.
        why: String,
    },
    /// The server answered a status other than 200.
    #[error("the server answered {status}: {text}")]
    Status {
        /// HTTP status.
        status: u16,
        /// First 200 characters of the body.
        text: String,
        /// From `Retry-After` on 429.
        retry_after: Option<Duration>,
    },
    /// The answer could not be read.
    #[error("the server's answer could not be read: {0}")]
    Decode(String),
    /// No message for 120 s.
    #[error("the map stream was silent for 120 s")]
    Silent,
}

/// A client of one coordination server. Keeps one HTTP/2 connection and redials when it is gone.
#[derive(Debug)]
pub struct ControlClient {
    _private: (),
}

impl ControlClient {
    /// Checks the URL; nothing is dialled yet.
    ///
    /// # Errors
    /// [`ControlError::Url`].
    pub fn new(
        _url: &str,
        _machine: MachinePrivate,
        _options: DialOptions,
        _rng: Rng,
    ) -> Result<Self, ControlError> {
        todo!()
    }

    /// `POST /machine/register`. With a follow-up it blocks as long as the server does.
    ///
    /// # Errors
    /// Transport faults and statuses; what a person should read is in the response's `error`.
    pub async fn register(
        &self,
        _request: &RegisterRequest,
    ) -> Result<RegisterResponse, ControlError> {
        todo!()
    }

    /// A lite update (`Stream: false, OmitPeers: true`).
    ///
    /// # Errors
    /// Transport faults and statuses.
    pub async fn update(&self, _request: &MapRequest) -> Result<(), ControlError> {
        todo!()
    }

    /// Opens the long poll.
    ///
    /// # Errors
    /// Transport faults and statuses.
    pub async fn poll(&self, _request: &MapRequest) -> Result<MapStream, ControlError> {
        todo!()
    }

    /// Answers a `PingRequest` (HEAD or POST to its URL, over Noise when it says so).
    ///
    /// # Errors
    /// Transport faults.
    pub async fn answer_ping(
        &self,
        _url: &str,
        _over_noise: bool,
        _body: Option<Vec<u8>>,
    ) -> Result<(), ControlError> {
        todo!()
    }

    /// Forgets the connection, after a network change.
    pub fn reset(&self) {
        todo!()
    }
}

/// An open long poll.
#[derive(Debug)]
pub struct MapStream {
    _private: (),
}

impl MapStream {
    /// The next message; keep-alives are returned too. `None` when the server ended the stream.
    ///
    /// # Errors
    /// [`ControlError::Silent`] after 120 s, or a message that is too large or unreadable.
    pub async fn next(&mut self) -> Result<Option<MapResponse>, ControlError> {
        todo!()
    }
}
