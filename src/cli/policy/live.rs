//! Policies of the running server: look, compare, store. The only commands that ever ask, and only on
//! a terminal.

use std::io::{BufRead as _, IsTerminal as _};

use http::Method;

use super::faults::{Named, refuse, warn};
use crate::api::types::{Diff, Outcome, Policy, PolicyEntry, Rollback, SetPolicy};
use crate::cli::client::{Client, path};
use crate::cli::exit::Failure;
use crate::cli::printer::{Printer, moment, table};

/// How a policy is to be stored.
pub(super) struct Wish<'a> {
    /// Why.
    pub(super) comment: &'a str,
    /// Lost access is meant.
    pub(super) yes: bool,
    /// The version it was made from.
    pub(super) expect: Option<u64>,
}

pub(super) async fn get(client: &Client, printer: &Printer) -> Result<(), Failure> {
    let policy: Policy = client.get("/v1/policy").await?;
    print(&policy, printer)
}

pub(super) async fn show(version: u64, client: &Client, printer: &Printer) -> Result<(), Failure> {
    print(&stored(version, client).await?, printer)
}

/// The text letter for letter: nothing is added at its end.
fn print(policy: &Policy, printer: &Printer) -> Result<(), Failure> {
    if printer.is_json() { printer.data(policy, String::new) } else { printer.exact(&policy.text) }
}

/// One version of the history.
pub(super) async fn stored(version: u64, client: &Client) -> Result<Policy, Failure> {
    client.get(&path("/v1/policy/history", &version.to_string(), "")).await
}

pub(super) async fn history(client: &Client, printer: &Printer) -> Result<(), Failure> {
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
        table(&["VERSION", "STORED", "BY", "BYTES", "COMMENT"], &all.iter().map(row).collect::<Vec<_>>())
    })
}

/// Checks against the live network; the tests run too.
pub(super) async fn check(source: &Named, client: &Client, printer: &Printer) -> Result<(), Failure> {
    let outcome = checked(source, client, printer).await?;
    tell(source, &outcome, printer);
    printer.data(&Accepted { ok: true, outcome: &outcome }, || summary("would change", &outcome.diff))
}

/// What `--json` prints.
#[derive(serde::Serialize)]
struct Accepted<'a> {
    ok: bool,
    #[serde(flatten)]
    outcome: &'a Outcome,
}

/// Looks, shows, asks if access is lost, stores.
pub(super) async fn put(
    source: &Named,
    wish: &Wish<'_>,
    client: &Client,
    printer: &Printer,
) -> Result<(), Failure> {
    let seen = checked(source, client, printer).await?;
    tell(source, &seen, printer);
    let confirmed = agreed(&seen, wish.yes, printer)?;
    let expect = Some(wish.expect.unwrap_or(seen.version));
    let comment = wish.comment.to_owned();
    let body = SetPolicy { text: source.text.clone(), comment, confirmed, expect };
    let done = client.send(Method::PUT, "/v1/policy", &body).await;
    in_force(&done.map_err(|failure| placed(source, failure, printer))?, printer)
}

pub(super) async fn rollback(
    version: u64,
    comment: &str,
    yes: bool,
    client: &Client,
    printer: &Printer,
) -> Result<(), Failure> {
    let old = stored(version, client).await?;
    let source = Named { name: format!("version {version}"), text: old.text };
    let seen = checked(&source, client, printer).await?;
    tell(&source, &seen, printer);
    let confirmed = agreed(&seen, yes, printer)?;
    let body = Rollback { version, comment: comment.to_owned(), confirmed, expect: Some(seen.version) };
    let done = client.send(Method::POST, "/v1/policy/rollback", &body).await;
    in_force(&done.map_err(|failure| placed(&source, failure, printer))?, printer)
}

fn in_force(outcome: &Outcome, printer: &Printer) -> Result<(), Failure> {
    printer.data(&Accepted { ok: true, outcome }, || {
        format!("policy {} is in force: {}", outcome.version, summary("changed", &outcome.diff))
    })
}

/// What the server thinks of a text.
pub(super) async fn checked(source: &Named, client: &Client, printer: &Printer) -> Result<Outcome, Failure> {
    let text = source.text.clone();
    let body = SetPolicy { text, comment: String::new(), confirmed: false, expect: None };
    let outcome = client.send(Method::POST, "/v1/policy/check", &body).await;
    outcome.map_err(|failure| placed(source, failure, printer))
}

/// Reads a text by itself: faults of form and names, shown at their place.
pub(super) fn well_formed(source: &Named, printer: &Printer) -> Result<(), Failure> {
    crate::api::check_offline(&source.text).map_err(|faults| refuse(source, &faults, printer))
}

fn placed(source: &Named, failure: Failure, printer: &Printer) -> Failure {
    match failure {
        Failure::Refused(body) if !body.faults.is_empty() => refuse(source, &body.faults, printer),
        other => other,
    }
}

/// Shows gains, losses and warnings as talk.
fn tell(source: &Named, outcome: &Outcome, printer: &Printer) {
    warn(source, &outcome.warnings, printer);
    for line in changes(&outcome.diff) {
        printer.say(&line);
    }
    if let Some(cut) = &outcome.cuts_author {
        printer.say(&format!("warning: {cut}"));
    }
}

/// Gains and losses, a line each.
pub(super) fn changes(diff: &Diff) -> Vec<String> {
    let mut out = Vec::new();
    let parts = [('+', &diff.gained, diff.gained_total), ('-', &diff.lost, diff.lost_total)];
    for (sign, changes, total) in parts {
        out.extend(changes.iter().map(|c| format!("{sign} {} to {}: {}", c.from, c.to, c.what)));
        let more = total.saturating_sub(changes.iter().map(|c| c.pairs).sum());
        if more > 0 {
            out.push(format!("{sign} and {more} more pair(s) of devices"));
        }
    }
    out
}

pub(super) fn summary(verb: &str, diff: &Diff) -> String {
    if diff.gained_total + diff.lost_total == 0 && diff.exact {
        return "no access changes".to_owned();
    }
    let least = if diff.exact { "" } else { "at least " };
    let (gained, lost) = (diff.gained_total, diff.lost_total);
    format!("{verb}: {least}{gained} pair(s) gain access, {least}{lost} lose access")
}

/// What a change takes away, or may; nothing needs no question. The same as what the server wants
/// confirmed.
fn at_stake(seen: &Outcome) -> Option<String> {
    let Diff { lost_total: lost, exact, .. } = seen.diff;
    let least = if exact { "" } else { "at least " };
    match (lost, exact) {
        (0, true) => seen.cuts_author.as_ref().map(|_| "takes away your own way to this server".to_owned()),
        (0, false) => {
            Some("touches too much for all of it to be looked at, so somebody may lose access".to_owned())
        }
        _ => Some(format!("takes access away from {least}{lost} pair(s) of devices")),
    }
}

/// Whether lost access is confirmed; a question on a terminal, otherwise `--yes` is needed.
fn agreed(seen: &Outcome, yes: bool, printer: &Printer) -> Result<bool, Failure> {
    let Some(stake) = at_stake(seen).filter(|_| !yes) else {
        return Ok(yes);
    };
    if !std::io::stdin().is_terminal() {
        return Err(Failure::User(format!("this {stake}; nothing was changed; say --yes if it is meant")));
    }
    printer.say(&format!("This {stake}. Apply it? [y/N]"));
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|e| Failure::User(format!("cannot read your answer: {e}; nothing was changed")))?;
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        Ok(true)
    } else {
        Err(Failure::User("nothing was changed".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_server_wants_confirmed_is_asked() {
        let seen = |lost_total, exact, cuts: Option<&str>| Outcome {
            version: 1,
            applied: false,
            diff: Diff { lost_total, exact, ..Diff::default() },
            warnings: Vec::new(),
            cuts_author: cuts.map(str::to_owned),
        };
        let asked = |outcome: &Outcome| at_stake(outcome).unwrap_or_default();
        assert_eq!(at_stake(&seen(0, true, None)), None);
        assert!(asked(&seen(3, true, None)).contains("from 3 pair"));
        assert!(asked(&seen(3, false, None)).contains("at least 3 pair"));
        assert!(asked(&seen(0, false, None)).contains("may lose access"), "not all of it was looked at");
        assert!(asked(&seen(0, true, Some("x"))).contains("your own way"));
    }
}
