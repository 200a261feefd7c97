//! Why a request got no page of its own: the one place where refusals become status and words.

use askama::Template;
use axum::response::{Html, IntoResponse, Response};
use http::StatusCode;

use super::pages::{Frame, Message};
use super::text::clean;
use crate::control::service::AdminError;

/// Why a request got no page of its own. The one place where refusals become status and words.
#[derive(Debug, Clone)]
pub(super) enum Stop {
    /// The service said no.
    Admin(AdminError),
    /// No such page.
    Missing,
    /// The form has no token of this session.
    Token,
    /// The form came from another site.
    Origin,
    /// A form without session.
    Ended,
    /// The form cannot be read or is too large.
    Form(StatusCode),
    /// Neither GET, HEAD nor POST.
    Method,
    /// Came in the clear, and there is nowhere to send it.
    Plain,
    /// Took too long.
    Slow,
}

impl From<AdminError> for Stop {
    fn from(error: AdminError) -> Self {
        Self::Admin(error)
    }
}

impl From<askama::Error> for Stop {
    fn from(error: askama::Error) -> Self {
        Self::Admin(AdminError::Internal(format!("a page could not be written: {error}")))
    }
}

impl IntoResponse for Stop {
    /// Carries the refusal out of the router; the guard makes a page of it.
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl Stop {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Admin(AdminError::NotFound(_)) | Self::Missing => StatusCode::NOT_FOUND,
            Self::Admin(AdminError::Invalid(_) | AdminError::Policy(_)) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Admin(AdminError::Conflict(_) | AdminError::NeedsConfirmation(_)) => StatusCode::CONFLICT,
            Self::Admin(AdminError::Internal(_)) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Token | Self::Origin | Self::Plain => StatusCode::FORBIDDEN,
            Self::Ended => StatusCode::UNAUTHORIZED,
            Self::Form(status) => *status,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
        }
    }

    pub(super) const fn title(&self) -> &'static str {
        match self {
            Self::Admin(AdminError::NotFound(_)) => "Not here",
            Self::Admin(_) | Self::Form(_) | Self::Token => "Nothing was changed",
            Self::Missing => "No such page",
            Self::Origin => "Refused",
            Self::Ended => "Your session has ended",
            Self::Method => "Not possible here",
            Self::Plain => "Open the console by TLS",
            Self::Slow => "Too slow",
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Admin(AdminError::Internal(text)) => {
                tracing::error!(error = %text, "console: a request failed");
                format!("The server could not do it: {text}. Nothing was changed; try again, and read the server's log when it stays.")
            }
            Self::Admin(error) => error.to_string(),
            Self::Missing => "This address leads nowhere. Pages are in the menu.".to_owned(),
            Self::Token => "The form is from an earlier session. Go back, reload the page and send it again.".to_owned(),
            Self::Origin => "The form was sent from another site. Open the page here and send it from there.".to_owned(),
            Self::Ended => "Nothing was changed. Go back to copy what you typed, then sign in again.".to_owned(),
            Self::Form(StatusCode::PAYLOAD_TOO_LARGE) => "What was sent is too large. A policy may have 16 MiB.".to_owned(),
            Self::Form(_) => "The form could not be read. Go back, reload the page and send it again.".to_owned(),
            Self::Method => "The console answers GET and POST.".to_owned(),
            Self::Plain => "The console is not shown over plain HTTP, because a session could be read on the way. Open the server's https address, or reach it over loopback.".to_owned(),
            Self::Slow => "The request took longer than 30 seconds. What you sent may or may not have taken effect; look before you send it again.".to_owned(),
        }
    }

    pub(super) fn page(&self, mut frame: Frame) -> Response {
        self.title().clone_into(&mut frame.title);
        let signed_in = frame.who.is_some();
        let page = Message {
            text: clean(&self.words(), 600),
            type_this: String::new(),
            link: match self {
                Self::Plain => None,
                Self::Ended => Some(("/login".to_owned(), "Sign in")),
                _ if signed_in => Some(("/".to_owned(), "Go to Start")),
                _ => Some(("/login".to_owned(), "Sign in")),
            },
            code: self.status().as_u16(),
            frame,
        };
        match page.render() {
            Ok(html) => (self.status(), Html(html)).into_response(),
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    }
}
