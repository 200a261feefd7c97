//! `tsd policy`: one file per kind of command.

pub(super) mod args;
mod ask;
mod compile;
mod faults;
mod live;
mod text;

use std::path::Path;

use super::client::Client;
use super::exit::Failure;
use super::printer::Printer;
use crate::api::check_offline;
use crate::api::types::Fault;
use args::Policy as Args;
use faults::{refuse, warn};

pub(super) async fn run(command: Args, client: &Client, printer: &Printer) -> Result<(), Failure> {
    match command {
        Args::Get => live::get(client, printer).await,
        Args::Set { file, comment, yes } => {
            let wish = live::Wish { comment: &comment, yes, expect: None };
            live::put(&text::read(&file, printer)?, &wish, client, printer).await
        }
        Args::Check { file, topology } => check(&file, topology.as_deref(), client, printer).await,
        Args::Diff { a, b, topology } => ask::diff(&a, &b, topology.as_deref(), client, printer).await,
        Args::Explain(args) => ask::explain(&args, client, printer).await,
        Args::Stats { file, topology } => {
            ask::stats(file.as_deref(), topology.as_deref(), client, printer).await
        }
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
