//! `tsd serve`, `status`, `console link` and `version`.

use http::Method;

use super::client::Client;
use super::exit::Failure;
use super::printer::{Printer, facts};
use crate::api::types::{Link, Status};
use crate::config::ServeFlags;
use crate::serve::{self, ServeError};

pub(super) async fn serve(flags: ServeFlags, state_dir: Option<String>) -> Result<(), Failure> {
    serve::run(flags, state_dir).await.map_err(|error| whose(&error))
}

/// What a start needs is the admin's to mend; a server that broke while it ran is ours.
fn whose(error: &ServeError) -> Failure {
    match error {
        ServeError::Start(_) => Failure::User(error.to_string()),
        ServeError::Broken(_) => Failure::Ours(error.to_string()),
    }
}

pub(super) fn version(printer: &Printer) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    printer.data(&serde_json::json!({ "version": version }), || version.to_owned())
}

pub(super) async fn console_link(client: &Client, printer: &Printer) -> Result<(), Failure> {
    let link: Link = client.act(Method::POST, "/v1/console/link").await?;
    printer.say("the link signs in once");
    printer.data(&link, || link.url.clone())
}

pub(super) async fn status(client: &Client, printer: &Printer) -> Result<(), Failure> {
    let s: Status = client.get("/v1/status").await?;
    for warning in &s.warnings {
        printer.say(&format!("warning: {warning}"));
    }
    printer.data(&s, || {
        facts(&[
            ("Version", s.version.clone()),
            ("Address", s.url.clone()),
            ("Listeners", s.listeners.clone()),
            ("State", s.state_dir.clone()),
            ("Certificate", s.fingerprint.clone().unwrap_or_else(|| "-".to_owned())),
            ("Running for", format!("{} s", s.uptime_seconds)),
            ("Devices", format!("{} ({} online)", s.nodes, s.online)),
            ("Users", s.users.to_string()),
            ("Waiting logins", s.logins.to_string()),
            ("Policy", policy(&s)),
            ("Relay", format!("{} connections, {} packets", s.derp_connections, s.derp_packets)),
            ("STUN", format!("{} requests", s.stun_requests)),
        ])
    })
}

/// Its number, and what is wrong with it; the warnings above say more.
fn policy(s: &Status) -> String {
    let mut out = s.policy_version.to_string();
    if s.policy_fault.is_some() {
        out.push_str(", not the one stored last");
    }
    if !s.broken_tests.is_empty() {
        out.push_str(&format!(", {} test(s) do not hold", s.broken_tests.len()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_broke_exits_with_2_and_one_that_cannot_start_with_1() {
        let broken = whose(&ServeError::Broken(anyhow::anyhow!("the STUN socket ended by itself")));
        assert_eq!((broken.status(), broken.text()), (2, "the STUN socket ended by itself"));
        assert_eq!(whose(&ServeError::Start(anyhow::anyhow!("x"))).status(), 1);
    }
}
