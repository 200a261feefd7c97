//! `tsd policy explain`, `stats` and `diff`: questions, of the running server or of files alone.

use std::path::Path;

use http::Method;
use serde::Serialize;
use serde_json::{Value, json};

use super::args::Explain;
use super::compile::{compiled, topology, untested};
use super::faults::{Named, refuse, tell, warn};
use super::live;
use super::text::read;
use crate::acl::explain::{Asked, Question};
use crate::acl::{self, Compiled};
use crate::api::types::{Compared, FailingTests};
use crate::cli::client::Client;
use crate::cli::exit::Failure;
use crate::cli::printer::{Printer, plain, table};

/// Changes that `diff` shows; the whole counts stand beside them.
const SHOWN: usize = 1000;

/// Asks the server; faults of a draft are shown at their place.
async fn asked<B: Serialize>(
    what: &str,
    body: &B,
    draft: Option<&Named>,
    client: &Client,
    printer: &Printer,
) -> Result<Value, Failure> {
    let answer = client.send(Method::POST, what, body).await;
    answer.map_err(|failure| match (failure, draft) {
        (Failure::Refused(body), Some(draft)) if !body.faults.is_empty() => {
            refuse(draft, &body.faults, printer)
        }
        (other, _) => other,
    })
}

fn valued(answer: &impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(answer).map_err(|e| Failure::Ours(format!("cannot write JSON: {e}")))
}

pub(super) async fn explain(args: &Explain, client: &Client, printer: &Printer) -> Result<(), Failure> {
    let draft = args.draft.as_deref().map(|file| read(file, printer)).transpose()?;
    let answer = match (&args.topology, &draft) {
        (Some(file), Some(draft)) => {
            let net = topology(file)?;
            let (_, compiled) = compiled(draft, &net, printer)?;
            let question = Asked {
                from: args.from.clone(),
                to: args.to.clone(),
                port: args.port.clone(),
                protocol: args.proto.clone(),
                ssh_user: args.ssh_user.clone(),
            };
            let question = Question::parse(&compiled, &question).map_err(|faults| {
                let line = |f: &acl::explain::AskFault| {
                    let hint = if f.hint.is_empty() { String::new() } else { format!("; {}", f.hint) };
                    format!("{}: {}{hint}", f.field, f.message)
                };
                Failure::User(faults.iter().map(line).collect::<Vec<_>>().join("\n"))
            })?;
            valued(&compiled.explain(&question))?
        }
        _ => {
            let body = json!({
                "from": args.from, "to": args.to, "port": args.port, "protocol": args.proto,
                "ssh_user": args.ssh_user, "draft": draft.as_ref().map(|d| &d.text),
            });
            asked("/v1/policy/explain", &body, draft.as_ref(), client, printer).await?
        }
    };
    printer.data(&answer, || words(&answer))
}

/// An explanation for people.
fn words(answer: &Value) -> String {
    let text = |value: &Value| plain(value.as_str().unwrap_or_default());
    let rule = |value: &Value| {
        let place =
            format!("{}, line {}, column {}", text(&value["section"]), value["line"], value["column"]);
        let place = if value["line"] == 0 { text(&value["section"]) } else { place };
        format!("{place}: {}", text(&value["text"]))
    };
    let mut out = vec![text(&answer["sentence"])];
    if answer["rule"].is_object() {
        out.push(format!("rule: {}", rule(&answer["rule"])));
    }
    let mut list = |name: &str, head: &str, show: &dyn Fn(&Value) -> String| {
        for item in answer[name].as_array().into_iter().flatten() {
            out.push(format!("{head}{}", show(item)));
        }
    };
    list("also", "also: ", &rule);
    list("chain", "  ", &text);
    list("posture", "posture: ", &text);
    list("cases", "", &|c| {
        format!("{} to {}: {} {}", text(&c["from"]), text(&c["to"]), text(&c["verdict"]), text(&c["open"]))
    });
    list("misses", "nearly: ", &|m| {
        let at = if m["rule"].is_object() { format!(" ({})", rule(&m["rule"])) } else { String::new() };
        format!("{}{at}", text(&m["change"]))
    });
    list("apps", "capability: ", &|a| text(&a["name"]));
    list("notes", "note: ", &text);
    for (name, field) in [("route", "why"), ("ssh", "sentence")] {
        if answer[name].is_object() {
            out.push(format!("{name}: {}", text(&answer[name][field])));
        }
    }
    for (name, head) in [("open", "open in all: "), ("back", "back: ")] {
        if !text(&answer[name]).is_empty() {
            out.push(format!("{head}{}", text(&answer[name])));
        }
    }
    out.join("\n")
}

pub(super) async fn stats(
    file: Option<&Path>,
    net: Option<&Path>,
    client: &Client,
    printer: &Printer,
) -> Result<(), Failure> {
    let draft = file.map(|file| read(file, printer)).transpose()?;
    let answer = match (net, &draft) {
        (Some(net), Some(draft)) => valued(&compiled(draft, &topology(net)?, printer)?.1.stats())?,
        _ => {
            let body = json!({ "draft": draft.as_ref().map(|d| &d.text) });
            asked("/v1/policy/stats", &body, draft.as_ref(), client, printer).await?
        }
    };
    printer.data(&answer, || {
        let row = |r: &Value| {
            let rule = &r["rule"];
            let text = rule["text"].as_str().unwrap_or_default().to_owned();
            let place = format!("{}:{}", rule["section"].as_str().unwrap_or_default(), rule["line"]);
            let number = |name: &str| r[name].to_string();
            vec![place, number("sources"), number("destinations"), number("edges"), text]
        };
        let rows: Vec<Vec<String>> = answer["per_rule"].as_array().into_iter().flatten().map(row).collect();
        let mut out = table(&["RULE", "SOURCES", "DESTINATIONS", "PAIRS", "TEXT"], &rows);
        for name in answer["unused"].as_array().into_iter().flatten() {
            let word = plain(name["name"].as_str().unwrap_or_default());
            out.push_str(&format!("unused: {word} (line {})\n", name["line"]));
        }
        out
    })
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
        Err(_) => read(Path::new(word), printer),
    }
}

pub(super) async fn diff(
    a: &str,
    b: &str,
    net: Option<&Path>,
    client: &Client,
    printer: &Printer,
) -> Result<(), Failure> {
    let net = net.map(topology).transpose()?;
    let (a, b) = (named(a, client, printer).await?, named(b, client, printer).await?);
    let found = match net {
        Some(net) => {
            let (old, new) = (untested(&a, &net, printer)?, untested(&b, &net, printer)?);
            Compared::new(acl::diff(&old, &new, SHOWN), [&old, &new].map(Compiled::failing_tests))
        }
        None => {
            // Each is read first by itself, so that a fault is told of the text it stands in.
            for source in [&a, &b] {
                live::well_formed(source, printer)?;
            }
            let body = json!({ "a": a.text, "b": b.text });
            client.send(Method::POST, "/v1/policy/diff", &body).await?
        }
    };
    printer.data(&found, || {
        let mut lines = live::changes(&found.diff);
        lines.push(live::summary("from A to B", &found.diff));
        lines.join("\n")
    })?;
    let FailingTests { a: old, b: new } = &found.failing_tests;
    warn(&a, old, printer);
    if new.is_empty() {
        return Ok(());
    }
    tell(&b, new, printer);
    let count = match new.len() {
        1 => "1 test does".to_owned(),
        n => format!("{n} tests do"),
    };
    Err(Failure::User(format!("{count} not hold in {}: `tsd policy set` would refuse it", b.name)))
}
