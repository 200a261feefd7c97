//! The Access room: the policy text, its check, its saving after the list of who gains and who loses,
//! and changes made to it by our own hand. A draft is never lost: whatever stands in the way, the page
//! comes back with it.

use axum::extract::Query;
use http::StatusCode;

use super::access_pages::{Access, Faults, Preview, VersionRow, fingerprint, matters, size};
use super::editor::{MAX_LOADED, difference};
use super::pages::{Notice, Room};
use super::routes::{Asked, Caller, Fields, Reply, Unchecked, page, page_with};
use super::text::clean;
use super::{Stop, done, redirect};
use crate::acl::Policy;
use crate::control::service::{AdminError, PolicyOutcome};

/// Longest policy text.
const MAX_TEXT: usize = 16 << 20;
/// Versions listed unasked.
const SHOWN_HISTORY: usize = 12;
/// And at most.
const MAX_HISTORY: usize = 200;

/// The editor with the text in force, or with an older version as draft.
pub(super) async fn editor(caller: Caller, Query(asked): Query<Asked>) -> Reply {
    let control = caller.shared.control();
    let current = control.policy();
    let mut text = current.text.clone();
    let mut notice = done(asked.done.as_deref());
    if let Some(from) = asked.from.as_deref().and_then(|v| v.parse::<u64>().ok()) {
        text = control.policy_at(from).await?.text;
        notice = Some(Notice::good(format!(
            "The draft below is version {from}. Nothing is stored until you save."
        )));
    }
    let whole = asked.show.as_deref() == Some("whole") || text.len() <= MAX_LOADED;
    let unloaded = (!whole).then(|| size(text.len() as u64));
    let mut out = blank(&caller, if whole { text } else { String::new() }).await?;
    out.unloaded = unloaded;
    out.frame.notice = notice;
    if out.editor.text.0 == current.text {
        out.faults = Faults::broken(&mut out.editor, &control.broken_tests());
    }
    if let Some(line) = asked.line.as_deref().and_then(|l| l.parse().ok()) {
        out.editor.mark(line, "here", "You came for this line");
    }
    let all = asked.show.as_deref() == Some("history");
    load_history(&caller, &mut out, if all { MAX_HISTORY } else { SHOWN_HISTORY }).await?;
    page(&out)
}

/// The page around a text.
async fn blank(caller: &Caller, text: String) -> Result<Access, Stop> {
    let control = caller.shared.control();
    let frame = caller.frame(Room::Access, "Access").command(
        "tsd policy get > policy.hujson; tsd policy check policy.hujson; tsd policy set policy.hujson",
    );
    let mut out = Access::new(frame, &control.policy(), text, caller.now);
    out.obstacle = control.policy_fault().map(|why| clean(&why, 600));
    out.file = control.policy_file().map(|file| clean(&file.display().to_string(), 300));
    Ok(out)
}

async fn load_history(caller: &Caller, page: &mut Access, most: usize) -> Result<(), AdminError> {
    let history = caller.shared.control().policy_history().await?;
    page.history = history.iter().take(most).map(|p| VersionRow::new(p, caller.now)).collect();
    page.more = history.len() - page.history.len();
    Ok(())
}

/// A text on its way: with the version it was made from and why.
pub(super) struct Draft {
    text: String,
    expect: Option<u64>,
    comment: String,
}

impl Draft {
    /// Browsers send line ends as CR LF whatever they were given.
    fn read(fields: &Fields) -> Self {
        Self {
            text: fields.one("text").replace("\r\n", "\n"),
            expect: fields.one("expect").parse().ok(),
            comment: fields.one("comment").trim().to_owned(),
        }
    }
}

/// The editor with a draft in it, made from the version that the draft names.
async fn with_draft(caller: &Caller, draft: Draft) -> Result<Access, Stop> {
    let mut out = blank(caller, draft.text).await?;
    out.expect = draft.expect.unwrap_or(out.expect);
    out.comment = clean(&draft.comment, 1000);
    Ok(out)
}

/// Check, save, format, or only show.
pub(super) async fn submit(caller: Caller, form: Unchecked) -> Reply {
    let (fields, good) = form.check(&caller.session);
    let draft = Draft::read(&fields);
    if !good {
        let text = "The form was from an earlier session, so nothing was changed. Your draft is below; send it again.";
        return turn_away(&caller, StatusCode::FORBIDDEN, text, draft).await;
    }
    if draft.text.len() > MAX_TEXT {
        let text = "The text is longer than 16 MiB, so nothing was changed. Make it shorter, with groups in place of long lists.";
        return turn_away(&caller, StatusCode::PAYLOAD_TOO_LARGE, text, draft).await;
    }
    let line = fields.one("line").parse().ok();
    match fields.one("do") {
        "check" => look_at(&caller, draft).await,
        "save" => save(&caller, draft, None).await,
        "confirm" => save(&caller, draft, Some(fields.one("seen"))).await,
        "format" => format(&caller, draft).await,
        "draft" => show(&caller, draft, line).await,
        "" if line.is_some() => show(&caller, draft, line).await,
        _ => Err(Stop::Form(StatusCode::BAD_REQUEST)),
    }
}

async fn turn_away(caller: &Caller, status: StatusCode, why: &str, draft: Draft) -> Reply {
    let mut again = with_draft(caller, draft).await?;
    again.frame.notice = Some(Notice::danger(why));
    page_with(status, &again)
}

async fn show(caller: &Caller, draft: Draft, line: Option<u32>) -> Reply {
    let mut out = with_draft(caller, draft).await?;
    out.frame.notice = Some(Notice::good("This is your draft. Nothing is stored until you save."));
    if let Some(line) = line {
        out.editor.mark(line, "here", "You came for this line");
    }
    page(&out)
}

async fn look_at(caller: &Caller, draft: Draft) -> Reply {
    match caller.shared.control().check_policy(&caller.actor(), &draft.text).await {
        Ok(outcome) => preview(caller, draft, &outcome, StatusCode::OK).await,
        Err(error) => refused(caller, draft, error).await,
    }
}

/// Stores the text; what it changes for anybody is shown first, and confirmed as it was seen.
async fn save(caller: &Caller, draft: Draft, seen: Option<&str>) -> Reply {
    let control = caller.shared.control();
    let Some(expect) = draft.expect else {
        return Err(Stop::Form(StatusCode::BAD_REQUEST));
    };
    if control.policy().version != expect {
        return raced(caller, draft).await;
    }
    let checked = match control.check_policy(&caller.actor(), &draft.text).await {
        Ok(outcome) => outcome,
        Err(error) => return refused(caller, draft, error).await,
    };
    let agreed = seen.is_some_and(|seen| seen == fingerprint(&draft.text, &checked));
    if matters(&checked) && !agreed {
        return preview(caller, draft, &checked, StatusCode::CONFLICT).await;
    }
    match control.set_policy(&caller.actor(), &draft.text, &draft.comment, agreed, Some(expect)).await {
        Ok(outcome) if outcome.unchanged => Ok(redirect("/access?done=unchanged")),
        Ok(outcome) => {
            tracing::info!(version = outcome.version, from = %caller.session.signed.from, "console: policy stored");
            Ok(redirect("/access?done=saved"))
        }
        Err(error) => refused(caller, draft, error).await,
    }
}

/// The draft again, with what it would change.
async fn preview(caller: &Caller, draft: Draft, outcome: &PolicyOutcome, status: StatusCode) -> Reply {
    let tests = count_tests(&draft.text).await;
    let mut again = with_draft(caller, draft).await?;
    let nodes = caller.shared.control().nodes();
    again.preview = Some(Preview::new(&mut again.editor, outcome, &nodes, tests));
    page_with(status, &again)
}

/// How many tests a text holds; reading a large one may take a second.
pub(super) async fn count_tests(text: &str) -> usize {
    if !text.to_ascii_lowercase().contains("tests\"") {
        return 0;
    }
    let text = text.to_owned();
    let counted = tokio::task::spawn_blocking(move || {
        Policy::parse(&text).map_or(0, |p| p.ast().tests.len() + p.ast().ssh_tests.len())
    });
    counted.await.unwrap_or(0)
}

async fn format(caller: &Caller, draft: Draft) -> Reply {
    let text = draft.text.clone();
    let formatted = tokio::task::spawn_blocking(move || crate::acl::format(&text)).await;
    match formatted {
        Ok(Ok(text)) => {
            let what = if text == draft.text { "The text is in form already." } else { "Formatted." };
            let mut again = with_draft(caller, Draft { text, ..draft }).await?;
            again.frame.notice = Some(Notice::good(format!("{what} Nothing was stored yet.")));
            page(&again)
        }
        Ok(Err(errors)) => refused(caller, draft, AdminError::Policy(errors)).await,
        Err(_) => Err(AdminError::Internal("formatting broke off".to_owned()).into()),
    }
}

/// The editor with a text that we made of the draft, for a person to look at and save.
pub(super) async fn edited(caller: &Caller, before: &str, text: String, what: &str) -> Reply {
    let current = caller.shared.control().policy();
    let draft = Draft { text, expect: Some(current.version), comment: what.to_owned() };
    let changed = difference(before, &draft.text);
    let checked = caller.shared.control().check_policy(&caller.actor(), &draft.text).await;
    let tests = count_tests(&draft.text).await;
    let mut out = with_draft(caller, draft).await?;
    match checked {
        Ok(outcome) => {
            let nodes = caller.shared.control().nodes();
            out.preview = Some(Preview::new(&mut out.editor, &outcome, &nodes, tests));
        }
        Err(AdminError::Policy(errors)) => out.faults = Faults::new(&mut out.editor, &errors),
        Err(error) => return Err(error.into()),
    }
    let text = format!("{what}: this draft does it. Nothing is stored until you save.");
    out.frame.notice = Some(Notice::good(clean(&text, 300)));
    out.edited = Some(changed);
    page(&out)
}

/// From here on the draft is one against the newer version, whose difference is shown.
async fn raced(caller: &Caller, draft: Draft) -> Reply {
    let current = caller.shared.control().policy();
    let mut again = with_draft(caller, draft).await?;
    again.race = Some(difference(&current.text, &again.editor.text.0));
    again.expect = current.version;
    page_with(StatusCode::CONFLICT, &again)
}

async fn refused(caller: &Caller, draft: Draft, error: AdminError) -> Reply {
    let stored = caller.shared.control().policy().version;
    let status = Stop::Admin(error.clone()).status();
    match error {
        AdminError::Internal(_) => Err(error.into()),
        AdminError::NeedsConfirmation(outcome) => preview(caller, draft, &outcome, status).await,
        AdminError::Conflict(_) if draft.expect != Some(stored) => raced(caller, draft).await,
        AdminError::Policy(errors) => {
            let mut again = with_draft(caller, draft).await?;
            again.faults = Faults::new(&mut again.editor, &errors);
            page_with(status, &again)
        }
        AdminError::Conflict(_) | AdminError::Invalid(_) | AdminError::NotFound(_) => {
            let mut again = with_draft(caller, draft).await?;
            again.frame.notice = Some(Notice::danger(clean(&error.to_string(), 600)));
            page_with(status, &again)
        }
    }
}
