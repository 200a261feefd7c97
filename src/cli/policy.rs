//! `tsd policy`. `set` is the only command that ever asks, and only on a terminal.

use std::io::{BufRead as _, IsTerminal as _};
use std::path::Path;

use http::Method;

use super::args::Policy as Args;
use super::client::Client;
use super::exit::Failure;
use super::printer::{Printer, moment, table};
use crate::api::check_offline;
use crate::api::types::{Diff, ErrorBody, Fault, Outcome, Policy, PolicyEntry, SetPolicy};

pub(super) async fn run(command: Args, client: &Client, printer: &Printer) -> Result<(), Failure> {
    match command {
        Args::Get => {
            let policy: Policy = client.get("/v1/policy").await?;
            printer.data(&policy, || policy.text.clone())
        }
        Args::History => {
            let all: Vec<PolicyEntry> = client.get("/v1/policy/history").await?;
            let row = |p: &PolicyEntry| {
                vec![
                    p.version.to_string(),
                    moment(Some(p.created)),
                    p.author.clone(),
                    p.bytes.to_string(),
                    p.comment.clone(),
                ]
            };
            printer.data(&all, || {
                table(
                    &["VERSION", "STORED", "BY", "BYTES", "COMMENT"],
                    &all.iter().map(row).collect::<Vec<_>>(),
                )
            })
        }
        Args::Check { file } => check(&file, client, printer).await,
        Args::Set { file, yes } => set(&file, yes, client, printer).await,
    }
}

fn read(file: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(file)
        .map_err(|e| Failure::User(format!("cannot read {}: {e}; check the name", file.display())))
}

async fn check(file: &Path, client: &Client, printer: &Printer) -> Result<(), Failure> {
    let text = read(file)?;
    if client.reachable().await {
        let outcome = checked(file, &text, client).await?;
        tell(file, &outcome, printer);
        return printer.data(&outcome, || summary("would change", &outcome.diff));
    }
    check_offline(&text).map_err(|faults| Failure::User(lines(file, &faults)))?;
    printer.say("no server answers, so only the language was checked, not the effect");
    printer.data(&serde_json::json!({ "applied": false }), || "the policy is well-formed".to_owned())
}

async fn set(file: &Path, yes: bool, client: &Client, printer: &Printer) -> Result<(), Failure> {
    let text = read(file)?;
    let seen = checked(file, &text, client).await?;
    tell(file, &seen, printer);
    let loses = seen.diff.lost_total > 0;
    if loses && !yes {
        let lost = seen.diff.lost_total;
        if !std::io::stdin().is_terminal() {
            return Err(Failure::User(format!(
                "this takes access away from {lost} pair(s) of devices; nothing was changed; say --yes if it is meant"
            )));
        }
        printer.say(&format!("This takes access away from {lost} pair(s) of devices. Apply it? [y/N]"));
        if !agreed()? {
            return Err(Failure::User("nothing was changed".to_owned()));
        }
    }
    let body = SetPolicy { text, comment: String::new(), confirmed: loses, expect: Some(seen.version) };
    let outcome: Outcome =
        client.send(Method::PUT, "/v1/policy", &body).await.map_err(|failure| placed(file, failure))?;
    printer.data(&outcome, || {
        format!("policy {} is in force: {}", outcome.version, summary("changed", &outcome.diff))
    })
}

/// What the server thinks of a text, with faults placed in the file.
async fn checked(file: &Path, text: &str, client: &Client) -> Result<Outcome, Failure> {
    let body = SetPolicy { text: text.to_owned(), comment: String::new(), confirmed: false, expect: None };
    let outcome = client.send(Method::POST, "/v1/policy/check", &body).await;
    outcome.map_err(|failure| placed(file, failure))
}

fn placed(file: &Path, failure: Failure) -> Failure {
    match failure {
        Failure::Refused(body) if !body.faults.is_empty() => {
            Failure::Refused(Box::new(ErrorBody { error: lines(file, &body.faults), ..*body }))
        }
        other => other,
    }
}

fn lines(file: &Path, faults: &[Fault]) -> String {
    let line = |f: &Fault| {
        let hint = if f.hint.is_empty() { String::new() } else { format!(", {}", f.hint) };
        format!("{}:{}:{}: {}{hint}", file.display(), f.line, f.column, f.message)
    };
    faults.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Shows gains, losses and warnings as talk.
fn tell(file: &Path, outcome: &Outcome, printer: &Printer) {
    if !outcome.warnings.is_empty() {
        printer.say(&format!("warning: {}", lines(file, &outcome.warnings)));
    }
    let parts = [
        ('+', &outcome.diff.gained, outcome.diff.gained_total),
        ('-', &outcome.diff.lost, outcome.diff.lost_total),
    ];
    for (sign, changes, total) in parts {
        for c in changes {
            printer.say(&format!("{sign} {} to {}: {}", c.from, c.to, c.what));
        }
        let more = total.saturating_sub(changes.len() as u64);
        if more > 0 {
            printer.say(&format!("{sign} and {more} more"));
        }
    }
}

fn summary(verb: &str, diff: &Diff) -> String {
    if diff.gained_total + diff.lost_total == 0 {
        return "no access changes".to_owned();
    }
    format!("{verb}: {} pair(s) gain access, {} lose access", diff.gained_total, diff.lost_total)
}

fn agreed() -> Result<bool, Failure> {
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|e| Failure::User(format!("cannot read your answer: {e}; nothing was changed")))?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
