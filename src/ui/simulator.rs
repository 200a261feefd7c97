//! What the Simulator's addresses do. A question about the policy in force is a GET whose address holds
//! it; one about a draft is a POST that carries the draft along. Giving access edits the text and opens
//! it as a draft in Access; nothing is stored from here.

use axum::extract::Query;
use http::StatusCode;
use serde::Deserialize;

use super::Stop;
use super::access::edited;
use super::access_pages::Faults;
use super::editor::Editor;
use super::pages::{Notice, Room};
use super::routes::{Caller, Fields, Reply, page, page_with};
use super::simulator_pages::{Answer, Form, Simulator};
use super::text::clean;
use crate::acl::{Edit, Policy, edit};
use crate::control::explaining::Unanswered;
use crate::control::service::AdminError;

/// Longest field of a question.
const MAX_FIELD: usize = 256;

/// A question as an address holds it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Question {
    from: Option<String>,
    to: Option<String>,
    port: Option<String>,
    protocol: Option<String>,
    ssh_user: Option<String>,
    draft: Option<String>,
}

fn short(text: &str) -> String {
    text.trim().chars().take(MAX_FIELD).collect()
}

/// A question about the policy in force; with `draft` the page that asks about one.
pub(super) async fn ask(caller: Caller, Query(q): Query<Question>) -> Reply {
    // A link may name one end only; the form names both, also when they are empty.
    let whole = q.from.is_some() && q.to.is_some();
    let field = |text: Option<String>| short(&text.unwrap_or_default());
    let form = Form {
        from: field(q.from),
        to: field(q.to),
        port: field(q.port),
        protocol: field(q.protocol),
        ssh_user: field(q.ssh_user),
    };
    let draft = q.draft.is_some().then(|| caller.shared.control().policy().text);
    answer(&caller, form, draft, None, whole).await
}

fn read(fields: &Fields) -> (Form, String) {
    let field = |name| short(fields.one(name));
    let form = Form {
        from: field("from"),
        to: field("to"),
        port: field("port"),
        protocol: field("protocol"),
        ssh_user: field("ssh_user"),
    };
    (form, fields.one("text").replace("\r\n", "\n"))
}

/// A question about a draft.
pub(super) async fn ask_draft(caller: Caller, fields: Fields) -> Reply {
    let (form, text) = read(&fields);
    let whole = fields.has("from");
    answer(&caller, form, Some(text), fields.one("expect").parse().ok(), whole).await
}

async fn answer(
    caller: &Caller,
    form: Form,
    draft: Option<String>,
    expect: Option<u64>,
    whole: bool,
) -> Reply {
    let control = caller.shared.control();
    let current = control.policy();
    let (nodes, users) = (control.nodes(), control.users());
    let title = if draft.is_some() { "Simulator, with a draft" } else { "Simulator" };
    let editor = draft.clone().map(Editor::new);
    let asked = expect.unwrap_or(current.version);
    let mut out = Simulator::new(caller.frame(Room::Simulator, title), form, editor, asked);
    out.fresh = expect.is_none();
    out.offer(&nodes, &users);
    if !whole || !out.form.asks() {
        return page(&out);
    }
    match control.explain(&out.form.asked(), draft.as_deref()).await {
        Ok(told) => {
            let text = draft.unwrap_or(current.text);
            // Only a refusal asks for the groups that somebody could join.
            let parsed = if told.misses.is_empty() { None } else { parse(text).await };
            out.answer = Some(Answer::new(&told, &out.form, &nodes, parsed.as_ref().map(Policy::ast)));
            page(&out)
        }
        Err(Unanswered::Question(faults)) => {
            out.questions = faults;
            page_with(StatusCode::UNPROCESSABLE_ENTITY, &out)
        }
        Err(Unanswered::Draft(errors)) => {
            if let Some(editor) = &mut out.draft {
                out.faults = Faults::new(editor, &errors);
            }
            page_with(StatusCode::UNPROCESSABLE_ENTITY, &out)
        }
        Err(Unanswered::Other(error)) => Err(error.into()),
    }
}

async fn parse(text: String) -> Option<Policy> {
    tokio::task::spawn_blocking(move || Policy::parse(&text).ok()).await.ok().flatten()
}

/// Makes the change that a person chose, as a draft in Access.
pub(super) async fn give(caller: Caller, fields: Fields) -> Reply {
    let (_, draft) = read(&fields);
    let current = caller.shared.control().policy();
    let before = if draft.is_empty() { current.text } else { draft };
    let Some((change, what)) = wanted(&fields) else {
        return Err(Stop::Form(StatusCode::BAD_REQUEST));
    };
    let text = before.clone();
    let done = tokio::task::spawn_blocking(move || edit(&text, &change)).await;
    match done {
        Ok(Ok(text)) => edited(&caller, &before, text, &what).await,
        Ok(Err(fault)) => {
            let hint = if fault.hint.is_empty() { String::new() } else { format!(": {}", fault.hint) };
            let text = format!("{what} did not work, nothing was changed. {}{hint}", fault.message);
            let expect = fields.one("expect").parse().ok();
            let (form, draft) = read(&fields);
            let title = "Simulator";
            let editor = (!draft.is_empty()).then(|| Editor::new(draft));
            let frame = caller.frame(Room::Simulator, title);
            let mut out = Simulator::new(frame, form, editor, expect.unwrap_or(current.version));
            out.frame.notice = Some(Notice::danger(clean(&text, 600)));
            page_with(StatusCode::UNPROCESSABLE_ENTITY, &out)
        }
        Err(_) => Err(AdminError::Internal("editing the policy broke off".to_owned()).into()),
    }
}

/// The change that a form asks for, and what it does in words.
fn wanted(fields: &Fields) -> Option<(Edit, String)> {
    if let Some((user, group)) = fields.one("join").split_once(' ') {
        let (user, group) = (short(user), short(group));
        let what = format!("Put {user} into {group}");
        return Some((Edit::AddUserToGroup { user, group }, what));
    }
    let (src, dst, port) = (short(fields.one("src")), short(fields.one("dst")), short(fields.one("ports")));
    if src.is_empty() || dst.is_empty() {
        return None;
    }
    let port = if port.is_empty() { "*".to_owned() } else { port };
    let what = format!("Let {src} reach {dst} on port {port}");
    Some((Edit::AddRule { src, dst: format!("{dst}:{port}") }, what))
}
