//! From an [`AdminError`] to status and JSON, in one place.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::types::{ErrorBody, Fault};
use crate::control::service::AdminError;

/// An error on its way out.
pub struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

impl ApiError {
    /// Translates.
    #[must_use]
    pub fn new(error: AdminError) -> Self {
        let mut body = ErrorBody { error: error.to_string(), ..ErrorBody::default() };
        let (status, code) = match error {
            AdminError::NotFound(_) => (StatusCode::NOT_FOUND, "not-found"),
            AdminError::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid"),
            AdminError::Conflict(_) => (StatusCode::CONFLICT, "conflict"),
            AdminError::Policy(faults) => {
                body.faults = faults.into_iter().map(Fault::from).collect();
                (StatusCode::UNPROCESSABLE_ENTITY, "policy")
            }
            AdminError::NeedsConfirmation(outcome) => {
                body.diff = Some(outcome.diff.into());
                body.cuts_author = outcome.cuts_author;
                (StatusCode::PRECONDITION_REQUIRED, "needs-confirmation")
            }
            AdminError::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        };
        code.clone_into(&mut body.code);
        Self { status, body }
    }

    /// A request that is wrong before it reaches the service.
    #[must_use]
    pub fn invalid(text: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            body: ErrorBody { error: text.into(), code: "invalid".to_owned(), ..ErrorBody::default() },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}
