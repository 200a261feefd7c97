//! `tsd policy`: one file per kind of command.

pub(super) mod args;
mod compile;
mod faults;
mod live;
mod text;

use std::path::Path;

use super::client::Client;
use super::exit::Failure;
use super::printer::Printer;
use crate::acl;
use crate::api::check_offline;
use crate::api::types::{Change, Diff, Fault};
use args::Policy as Args;
use faults::{Named, refuse, warn};

/// Changes that `diff` shows; the whole counts stand beside them.
const SHOWN: usize = 1000;

pub(super) async fn run(command: Args, client: &Client, printer: &Printer) -> Result<(), Failure> {
    match command {
        Args::Get => live::get(client, printer).await,
        Args::Set { file, comment, yes } => {
            let wish = live::Wish { comment: &comment, yes, expect: None };
            live::put(&text::read(&file, printer)?, &wish, client, printer).await
        }
        Args::Check { file, topology } => check(&file, topology.as_deref(), client, printer).await,
        Args::Diff { a, b, topology } => diff(&a, &b, topology.as_deref(), client, printer).await,
        Args::History => live::history(client, printer).await,
        Args::Show { number } => live::show(number, client, printer).await,
        Args::Rollback { number, comment, yes } => {
            live::rollback(number, &comment, yes, client, printer).await
        }
        Args::Fmt { file, check, write } => text::format(&file, check, write, printer),
        Args::Edit(edit) => text::edit(&edit, client, printer).await,
        Args::Compile { policy, topology, node, stats } => {
            compile::run(&policy, &topology, node.as_deref(), stats, printer)
        }
    }
}

async fn check(
    file: &Path,
    topology: Option<&Path>,
    client: &Client,
    printer: &Printer,
) -> Result<(), Failure> {
    let source = text::read(file, printer)?;
    if let Some(topology) = topology {
        let net = compile::topology(topology)?;
        let (policy, compiled) = compile::compiled(&source, &net, printer)?;
        let doubts = policy.warnings(net.world()).into_iter().chain(compiled.doubtful_tests());
        let warnings: Vec<Fault> = doubts.map(Fault::from).collect();
        warn(&source, &warnings, printer);
        let answer = serde_json::json!({ "ok": true, "warnings": warnings });
        return printer.data(&answer, || "the policy is good and its tests hold".to_owned());
    }
    if client.reachable().await {
        return live::check(&source, client, printer).await;
    }
    check_offline(&source.text).map_err(|faults| refuse(&source, &faults, printer))?;
    printer.say("no server answers, so only the language was checked, not the effect; --topology FILE gives a network");
    printer
        .data(&serde_json::json!({ "ok": true, "applied": false }), || "the policy is well-formed".to_owned())
}

/// A file, a stored version, or the policy in force.
async fn named(word: &str, client: &Client, printer: &Printer) -> Result<Named, Failure> {
    if word == "live" {
        let policy: crate::api::types::Policy = client.get("/v1/policy").await?;
        return Ok(Named { name: "the policy in force".to_owned(), text: policy.text });
    }
    match word.parse() {
        Ok(version) => {
            let text = live::stored(version, client).await?.text;
            Ok(Named { name: format!("version {version}"), text })
        }
        Err(_) => text::read(Path::new(word), printer),
    }
}

async fn diff(
    a: &str,
    b: &str,
    topology: Option<&Path>,
    client: &Client,
    printer: &Printer,
) -> Result<(), Failure> {
    let found = match topology {
        Some(topology) => {
            let net = compile::topology(topology)?;
            let (a, b) = (named(a, client, printer).await?, named(b, client, printer).await?);
            let (_, old) = compile::compiled(&a, &net, printer)?;
            let (_, new) = compile::compiled(&b, &net, printer)?;
            let found = acl::diff(&old, &new, net.world(), SHOWN);
            let name = |id| net.world().nodes.get(&id).map_or_else(String::new, |n| n.name.clone());
            let list = |changes: Vec<acl::AccessChange>| {
                let one = |c: acl::AccessChange| Change { from: name(c.from), to: name(c.to), what: c.what };
                changes.into_iter().map(one).collect()
            };
            Diff {
                gained: list(found.gained),
                lost: list(found.lost),
                gained_total: found.gained_total,
                lost_total: found.lost_total,
            }
        }
        None if a == "live" => live::checked(&named(b, client, printer).await?, client, printer).await?.diff,
        None => {
            return Err(Failure::User(
                "without --topology only `diff live B` can be answered: the server compares with what is in force"
                    .to_owned(),
            ));
        }
    };
    printer.data(&found, || {
        let mut lines = live::changes(&found);
        lines.push(live::summary("from A to B", &found));
        lines.join("\n")
    })
}
