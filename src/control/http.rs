//! `/key` and `/ts2021`, and HTTP/2 inside Noise with the machine endpoints.

use std::net::SocketAddr;

use http::{Request, Response};
use hyper::body::Incoming;

use super::service::Control;

/// Answers `GET /key`, `POST /ts2021` and the WebSocket form `GET /ts2021`; 404 for anything else.
/// Spawns the upgraded half itself.
pub fn handle(
    _control: &Control,
    _request: Request<Incoming>,
    _remote: SocketAddr,
) -> Response<http_body_util::Full<bytes::Bytes>> {
    todo!()
}
