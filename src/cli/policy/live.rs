//! Policies of the running server: look, compare, store. The only commands that ever ask, and only on
//! a terminal.

use std::io::{BufRead as _, IsTerminal as _};

use http::Method;

use super::faults::{Named, refuse, warn};
use crate::api::types::{Diff, Outcome, Policy, PolicyEntry, Rollback, SetPolicy};
use crate::cli::client::{Client, path};
use crate::cli::exit::Failure;
use crate::cli::printer::{Printer, moment, plain, table};

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
    in_force(&done.map_err(|failure| placed(source, failure, printer))?, wish.comment, printer)
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
    in_force(&done.map_err(|failure| placed(&source, failure, printer))?, comment, printer)
}

fn in_force(outcome: &Outcome, comment: &str, printer: &Printer) -> Result<(), Failure> {
    printer.data(&Accepted { ok: true, outcome }, || {
        if outcome.unchanged {
            let comment = if comment.trim().is_empty() { "" } else { ", the comment neither" };
            let version = outcome.version;
            return format!(
                "unchanged: policy {version} is in force with this text; nothing was stored{comment}"
            );
        }
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

/// Gains and losses, a line each: first of access, then of the rest.
pub(super) fn changes(diff: &Diff) -> Vec<String> {
    let mut out = Vec::new();
    let parts = [('+', &diff.gained, diff.gained_total), ('-', &diff.lost, diff.lost_total)];
    for (sign, changes, total) in parts {
        out.extend(changes.iter().map(|c| plain(&format!("{sign} {} to {}: {}", c.from, c.to, c.what))));
        let more = total.saturating_sub(changes.iter().map(|c| c.pairs).sum());
        if more > 0 {
            out.push(format!("{sign} and {more} more pair(s) of devices"));
        }
    }
    for change in &diff.other {
        let sign = match change.effect.as_str() {
            "gained" => '+',
            "lost" => '-',
            _ => '~',
        };
        out.push(plain(&format!("{sign} {}: {}", change.who, change.what)));
    }
    let more = diff.other_total.saturating_sub(u64::try_from(diff.other.len()).unwrap_or(u64::MAX));
    if more > 0 {
        out.push(format!("~ and {more} more other change(s)"));
    }
    out
}

pub(super) fn summary(verb: &str, diff: &Diff) -> String {
    let others = match diff.other_total {
        0 => String::new(),
        1 => ", 1 other change".to_owned(),
        n => format!(", {n} other changes"),
    };
    if diff.gained_total + diff.lost_total == 0 && diff.exact {
        return format!("no access changes{others}");
    }
    let least = if diff.exact { "" } else { "at least " };
    let (gained, lost) = (diff.gained_total, diff.lost_total);
    format!("{verb}: {least}{gained} pair(s) gain access, {least}{lost} lose access{others}")
}

/// What a change takes away, or may; nothing needs no question. The same as what the server wants
/// confirmed.
fn at_stake(seen: &Outcome) -> Option<String> {
    let Diff { lost_total: lost, exact, other_lost: other, .. } = seen.diff;
    let least = if exact { "" } else { "at least " };
    let first = seen.diff.other.iter().find(|change| change.takes_away);
    match (lost, exact, other) {
        (0, true, 0) => {
            seen.cuts_author.as_ref().map(|_| "takes away your own way to this server".to_owned())
        }
        (0, true, 1) => {
            let first = first.map_or_else(String::new, |c| format!(" ({}: {})", c.who, c.what));
            Some(format!("takes something away beside access{first}"))
        }
        (0, true, n) => Some(format!("takes {n} things away beside access")),
        (0, false, _) => {
            Some("touches too much for all of it to be looked at, so somebody may lose access".to_owned())
        }
        (_, _, other) => {
            let other =
                if other > 0 { format!(", and {other} thing(s) beside access") } else { String::new() };
            Some(format!("takes access away from {least}{lost} pair(s) of devices{other}"))
        }
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
    use crate::api::types::OtherChange;

    fn seen(diff: Diff) -> Outcome {
        let warnings = Vec::new();
        Outcome { version: 1, applied: false, unchanged: false, diff, warnings, cuts_author: None }
    }

    fn other(effect: &str, what: &str, takes_away: bool) -> OtherChange {
        let (effect, what) = (effect.to_owned(), what.to_owned());
        OtherChange { effect, who: "tag:web".into(), what, takes_away, devices: 1, ..OtherChange::default() }
    }

    #[test]
    fn whatever_the_server_wants_confirmed_is_asked() {
        let lost = |lost_total, exact, other_lost| {
            let other = vec![other("gained", "y", false), other("lost", "attribute funnel", true)];
            seen(Diff { lost_total, exact, other, other_lost, ..Diff::default() })
        };
        let asked = |outcome: &Outcome| at_stake(outcome).unwrap_or_default();
        assert_eq!(at_stake(&lost(0, true, 0)), None);
        assert!(asked(&lost(3, true, 0)).ends_with("from 3 pair(s) of devices"));
        assert!(
            asked(&lost(3, false, 2))
                .ends_with("from at least 3 pair(s) of devices, and 2 thing(s) beside access")
        );
        assert!(asked(&lost(0, false, 0)).contains("may lose access"), "not all of it was looked at");
        assert!(asked(&lost(0, true, 1)).ends_with("beside access (tag:web: attribute funnel)"));
        assert!(asked(&lost(0, true, 2)).contains("2 things"));
        let cut = Outcome { cuts_author: Some("x".into()), ..lost(0, true, 0) };
        assert!(asked(&cut).contains("your own way"));
    }

    #[test]
    fn changes_beside_access_are_lines_of_their_own() {
        let rows = vec![
            other("gained", "attribute a", false),
            other("lost", "b\u{1b}", false),
            other("changed", "c", true),
        ];
        let diff = Diff { other: rows, other_total: 5, exact: true, ..Diff::default() };
        assert_eq!(
            changes(&diff),
            [
                "+ tag:web: attribute a",
                "- tag:web: b\u{fffd}",
                "~ tag:web: c",
                "~ and 2 more other change(s)"
            ]
        );
        assert_eq!(summary("changed", &diff), "no access changes, 5 other changes");
        let both = Diff { gained_total: 1, other_total: 1, ..diff };
        assert_eq!(
            summary("changed", &both),
            "changed: 1 pair(s) gain access, 0 lose access, 1 other change"
        );
    }
}
