//! The Access room: the policy text, its check, its saving with confirmation, and its history. A
//! draft is never lost: whatever stands in the way, the page comes back with it.

use axum::extract::{Path, Query};
use axum::response::Response;
use http::StatusCode;

use super::access_pages::{Access, DiffView, Version, VersionRow};
use super::editor::{difference, faults};
use super::pages::{Notice, Room};
use super::routes::{Asked, Caller, Reply, Unchecked, page, page_with};
use super::text::clean;
use super::{Stop, done, redirect};
use crate::control::service::{AdminError, PolicyOutcome};

/// Longest policy text.
const MAX_TEXT: usize = 16 << 20;
/// Versions listed.
const MAX_HISTORY: usize = 50;

/// The page around a draft (`None`: the text in force).
async fn build(caller: &Caller, draft: Option<String>, notice: Option<Notice>) -> Result<Access, AdminError> {
    let control = caller.shared.control();
    let current = control.policy();
    let history = control.policy_history().await?;
    let rows = history.iter().take(MAX_HISTORY).map(|p| VersionRow::new(p, caller.now)).collect();
    let frame = caller
        .frame(Room::Access, "Access")
        .command(
            "tsd policy get > policy.hujson; tsd policy check policy.hujson; tsd policy set policy.hujson",
        )
        .notice(notice);
    let text = draft.unwrap_or_else(|| current.text.clone());
    Ok(Access::new(frame, &current, text, rows))
}

/// The editor with the text in force, or with an older version as draft.
pub(super) async fn editor(caller: Caller, Query(asked): Query<Asked>) -> Reply {
    let mut draft = None;
    let mut notice = done(asked.done.as_deref());
    if let Some(from) = asked.from.and_then(|v| v.parse::<u64>().ok()) {
        let found = caller.shared.control().policy_at(from).await?;
        notice = Some(Notice::good(format!(
            "The draft below is version {from}. Nothing is stored until you save."
        )));
        draft = Some(found.text);
    }
    page(&build(&caller, draft, notice).await?)
}

/// Check, save, or save after confirmation.
pub(super) async fn submit(caller: Caller, form: Unchecked) -> Reply {
    let (fields, good) = form.check(&caller.session);
    // Browsers send line ends as CR LF whatever they were given.
    let text = fields.one("text").replace("\r\n", "\n");
    let expect = fields.one("expect").parse::<u64>().ok();
    if !good {
        let notice = Notice::danger(
            "The form was from an earlier session, so nothing was changed. Your draft is below; send it again.",
        );
        let mut again = build(&caller, Some(text), Some(notice)).await?;
        keep_expectation(&mut again, expect);
        return page_with(StatusCode::FORBIDDEN, &again);
    }
    if text.len() > MAX_TEXT {
        let notice = Notice::danger(
            "The text is longer than 16 MiB, so nothing was changed. Make it shorter, with groups in place of long lists.",
        );
        let mut again = build(&caller, Some(text), Some(notice)).await?;
        keep_expectation(&mut again, expect);
        return page_with(StatusCode::PAYLOAD_TOO_LARGE, &again);
    }
    let control = caller.shared.control();
    let action = fields.one("do");
    let outcome = match (action, expect) {
        ("check", _) => control.check_policy(&caller.actor(), &text).await,
        ("save" | "confirm", Some(version)) => {
            control.set_policy(&caller.actor(), &text, "", action == "confirm", Some(version)).await
        }
        _ => return Err(Stop::Form(StatusCode::BAD_REQUEST)),
    };
    match outcome {
        Ok(outcome) if outcome.applied => saved(&caller, &outcome),
        Ok(outcome) => checked(&caller, text, expect, &outcome).await,
        Err(error) => refused(&caller, text, expect, error).await,
    }
}

/// The draft was made from that version, whatever was stored since.
fn keep_expectation(page: &mut Access, expect: Option<u64>) {
    page.expect = expect.unwrap_or(page.expect);
}

fn saved(caller: &Caller, outcome: &PolicyOutcome) -> Result<Response, Stop> {
    tracing::info!(version = outcome.version, from = %caller.session.signed.from, "console: policy stored");
    Ok(redirect("/access?done=saved"))
}

async fn checked(caller: &Caller, text: String, expect: Option<u64>, outcome: &PolicyOutcome) -> Reply {
    let notice = Notice::good("No faults. Nothing was stored yet.");
    let mut again = build(caller, Some(text), Some(notice)).await?;
    again.warnings = faults(&again.text, &outcome.warnings);
    again.diff = Some(DiffView::new(&outcome.diff, &caller.shared.control().nodes()));
    keep_expectation(&mut again, expect);
    page(&again)
}

async fn refused(caller: &Caller, text: String, expect: Option<u64>, error: AdminError) -> Reply {
    let mut again = build(caller, Some(text), None).await?;
    let current = caller.shared.control().policy();
    let status = Stop::Admin(error.clone()).status();
    match error {
        AdminError::Policy(errors) => {
            again.faults = faults(&again.text, &errors);
            keep_expectation(&mut again, expect);
        }
        AdminError::NeedsConfirmation(outcome) => {
            again.diff = Some(DiffView::new(&outcome.diff, &caller.shared.control().nodes()));
            again.frame.notice = outcome.cuts_author.map(Notice::danger);
            again.confirm = true;
            keep_expectation(&mut again, expect);
        }
        // From here on the draft is one against the newer version, whose difference is shown.
        AdminError::Conflict(_) if expect != Some(current.version) => {
            again.race = Some(difference(&current.text, &again.text));
            again.expect = current.version;
        }
        AdminError::Internal(_) => return Err(error.into()),
        AdminError::Conflict(_) | AdminError::Invalid(_) | AdminError::NotFound(_) => {
            again.frame.notice = Some(Notice::danger(clean(&error.to_string(), 600)));
            keep_expectation(&mut again, expect);
        }
    }
    page_with(status, &again)
}

/// One stored version and what changed since.
pub(super) async fn version(caller: Caller, Path(version): Path<String>) -> Reply {
    let version: u64 = version.parse().map_err(|_| Stop::Missing)?;
    let control = caller.shared.control();
    let found = control.policy_at(version).await?;
    let current = control.policy();
    page(&Version {
        frame: caller.frame(Room::Access, &format!("Version {version}")).command("tsd policy history"),
        row: VersionRow::new(&found.summary(), caller.now),
        current: current.version == version,
        since: difference(&found.text, &current.text),
        text: found.text.clone(),
    })
}
