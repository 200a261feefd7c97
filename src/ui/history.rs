//! Stored versions of the policy: to look at, to compare, to take home as a file, and to go back to,
//! with the same check, list and confirmation as any other text.

use axum::extract::{Path, Query};
use axum::response::IntoResponse;
use http::{StatusCode, header};

use super::access::count_tests;
use super::access_pages::{Faults, Preview, Version, VersionRow, fingerprint, matters};
use super::editor::{Editor, MAX_LOADED, difference};
use super::pages::{Notice, Room};
use super::routes::{Asked, Caller, Fields, Reply, page, page_with};
use super::text::clean;
use super::{Stop, redirect};
use crate::control::service::AdminError;
use crate::model::PolicyVersion;

fn number(text: &str) -> Result<u64, Stop> {
    text.parse().map_err(|_| Stop::Missing)
}

async fn build(caller: &Caller, found: &PolicyVersion, asked: &Asked) -> Result<Version, AdminError> {
    let control = caller.shared.control();
    let current = control.policy();
    let versions = control.policy_history().await?;
    let against = asked.from.as_deref().and_then(|v| v.parse::<u64>().ok());
    let before = versions.iter().map(|p| p.version).filter(|v| *v < found.version).max();
    let made = match against.filter(|v| *v != found.version).or(before) {
        Some(version) => {
            let before = control.policy_at(version).await?;
            Some((version, difference(&before.text, &found.text)))
        }
        None => None,
    };
    let cut = found.text.len() > MAX_LOADED;
    let version = found.version;
    let mut editor = Editor::new(if cut { String::new() } else { found.text.clone() });
    if let Some(line) = asked.line.as_deref().and_then(|l| l.parse().ok()) {
        editor.mark(line, "here", "You came for this line");
    }
    Ok(Version {
        frame: caller
            .frame(Room::Access, &format!("Version {version}"))
            .command(format!("tsd policy show {version}; tsd policy rollback {version}")),
        row: VersionRow::new(&found.summary(), caller.now),
        editor,
        cut,
        current: current.version,
        made,
        since: difference(&found.text, &current.text),
        comment: String::new(),
        faults: Faults::default(),
        preview: None,
    })
}

/// One stored version, what it changed, and what changed since.
pub(super) async fn version(
    caller: Caller,
    Path(version): Path<String>,
    Query(asked): Query<Asked>,
) -> Reply {
    let found = caller.shared.control().policy_at(number(&version)?).await?;
    page(&build(&caller, &found, &asked).await?)
}

/// The exact text as a file.
pub(super) async fn text(caller: Caller, Path(version): Path<String>) -> Reply {
    let found = caller.shared.control().policy_at(number(&version)?).await?;
    let name = format!("attachment; filename=\"policy-{}.hujson\"", found.version);
    let kind = "text/plain; charset=utf-8".to_owned();
    Ok(([(header::CONTENT_TYPE, kind), (header::CONTENT_DISPOSITION, name)], found.text).into_response())
}

/// Stores an old text as a new version.
pub(super) async fn rollback(caller: Caller, Path(version): Path<String>, fields: Fields) -> Reply {
    let control = caller.shared.control();
    let version = number(&version)?;
    let found = control.policy_at(version).await?;
    let comment = fields.one("comment").trim();
    let Some(expect) = fields.one("expect").parse::<u64>().ok() else {
        return Err(Stop::Form(StatusCode::BAD_REQUEST));
    };
    let again = async |why: Option<Notice>| {
        let mut again = build(&caller, &found, &Asked::default()).await?;
        again.comment = clean(comment, 1000);
        again.frame.notice = why;
        Ok::<_, AdminError>(again)
    };
    let checked = match control.check_policy(&caller.actor(), &found.text).await {
        Ok(outcome) => outcome,
        Err(AdminError::Policy(errors)) => {
            let mut again = again(None).await?;
            again.faults = Faults::new(&mut again.editor, &errors);
            return page_with(StatusCode::UNPROCESSABLE_ENTITY, &again);
        }
        Err(error) => return Err(error.into()),
    };
    let seen = fields.one("seen") == fingerprint(&found.text, &checked);
    if matters(&checked) && !seen {
        let tests = count_tests(&found.text).await;
        let mut again = again(None).await?;
        let mut preview = Preview::new(&mut again.editor, &checked, &control.nodes(), tests);
        preview.seen = fingerprint(&found.text, &checked);
        again.preview = Some(preview);
        return page_with(StatusCode::CONFLICT, &again);
    }
    match control.rollback_policy(&caller.actor(), version, comment, seen, Some(expect)).await {
        Ok(outcome) if outcome.unchanged => Ok(redirect("/access?done=unchanged")),
        Ok(outcome) => {
            tracing::info!(version = outcome.version, back_to = version, "console: policy rolled back");
            Ok(redirect("/access?done=back"))
        }
        Err(error @ (AdminError::Conflict(_) | AdminError::Invalid(_))) => {
            let why = Notice::danger(clean(&error.to_string(), 600));
            page_with(Stop::Admin(error).status(), &again(Some(why)).await?)
        }
        Err(error) => Err(error.into()),
    }
}
