//! Whose mistake it was, and the exit status that says so.

use std::process::ExitCode;

use crate::api::types::ErrorBody;

/// Why a command did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// Yours to mend.
    User(String),
    /// Ours.
    Ours(String),
    /// The server refused, with its reasons.
    Refused(Box<ErrorBody>),
    /// The user's, and all was said already.
    Told,
    /// Nobody reads stdout any more: done.
    Pipe,
}

impl Failure {
    /// 1 for the user's, 2 for ours; a closed pipe is success.
    #[must_use]
    pub(super) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.status())
    }

    /// The exit status as a number.
    #[must_use]
    pub(super) fn status(&self) -> u8 {
        match self {
            Self::Pipe => 0,
            Self::User(_) | Self::Told => 1,
            Self::Refused(body) if body.code != "internal" => 1,
            Self::Refused(_) | Self::Ours(_) => 2,
        }
    }

    /// What to say; empty when there is nothing more to say.
    #[must_use]
    pub(super) fn text(&self) -> &str {
        match self {
            Self::User(text) | Self::Ours(text) => text,
            Self::Refused(body) => &body.error,
            Self::Pipe | Self::Told => "",
        }
    }
}
