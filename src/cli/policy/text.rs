//! `tsd policy fmt` and `edit`: a text in, a text out.

use std::io::{Read as _, Write as _};
use std::path::Path;

use serde::Serialize;

use super::args::Edit;
use super::faults::{Named, refuse};
use super::live;
use crate::acl;
use crate::api::types::Fault;
use crate::cli::client::Client;
use crate::cli::exit::Failure;
use crate::cli::printer::Printer;

/// What `--json` prints.
#[derive(Serialize)]
struct Changed<'a> {
    ok: bool,
    changed: bool,
    text: &'a str,
}

/// Reads a policy file; `-` is standard input.
pub(super) fn read(file: &Path, printer: &Printer) -> Result<Named, Failure> {
    let stdin = file.as_os_str() == "-";
    let name = if stdin { "standard input".to_owned() } else { file.display().to_string() };
    let mut bytes = Vec::new();
    let read = if stdin {
        std::io::stdin().lock().read_to_end(&mut bytes).map(drop)
    } else {
        std::fs::read(file).map(|all| bytes = all)
    };
    read.map_err(|e| Failure::User(format!("cannot read {name}: {e}; check the name")))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Named { name, text }),
        Err(error) => {
            let good = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            let before = text.get(..good).unwrap_or_default();
            let lines = before.matches('\n').count();
            let column = before.rsplit('\n').next().unwrap_or_default().len();
            let count = |n: usize| u32::try_from(n + 1).unwrap_or(u32::MAX);
            let fault = Fault {
                code: "syntax".to_owned(),
                line: count(lines),
                column: count(column),
                message: "invalid UTF-8".to_owned(),
                hint: "save the file as UTF-8".to_owned(),
            };
            Err(refuse(&Named { name, text }, &[fault], printer))
        }
    }
}

/// Replaces a file's text; a crash leaves the old or the new one. A link is followed.
fn write(file: &Path, text: &str) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::User(format!("cannot write {}: {e}", file.display()));
    let target = std::fs::canonicalize(file).map_err(failed)?;
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let fresh = target.with_file_name(name);
    let replace = || -> std::io::Result<()> {
        let mut out = std::fs::OpenOptions::new().write(true).create_new(true).open(&fresh)?;
        out.set_permissions(std::fs::metadata(&target)?.permissions())?;
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        std::fs::rename(&fresh, &target)
    };
    replace().map_err(|e| {
        // What was begun is of no use; that it may stay is no second failure.
        let _ = std::fs::remove_file(&fresh);
        failed(e)
    })
}

/// Prints or writes a changed text.
fn hand_out(file: &Path, old: &Named, new: &str, to_file: bool, printer: &Printer) -> Result<(), Failure> {
    let changed = old.text != new;
    let body = Changed { ok: true, changed, text: new };
    if !to_file {
        return printer.data(&body, || new.to_owned());
    }
    if file.as_os_str() == "-" {
        return Err(Failure::User("standard input cannot be written; leave --write out".to_owned()));
    }
    if changed {
        write(file, new)?;
    }
    let word = if changed { "changed" } else { "is as it should be already" };
    printer.data(&body, || format!("{} {word}", old.name))
}

pub(super) fn format(file: &Path, check: bool, to_file: bool, printer: &Printer) -> Result<(), Failure> {
    let old = read(file, printer)?;
    let new = acl::format(&old.text).map_err(|faults| {
        let faults: Vec<Fault> = faults.into_iter().map(Fault::from).collect();
        refuse(&old, &faults, printer)
    })?;
    if !check {
        return hand_out(file, &old, &new, to_file, printer);
    }
    if old.text == new {
        return printer.data(&serde_json::json!({ "ok": true }), || format!("{} is formatted", old.name));
    }
    let first = old.text.lines().zip(new.lines()).take_while(|(a, b)| a == b).count() + 1;
    if printer.is_json() {
        printer.data(&serde_json::json!({ "ok": false, "line": first }), String::new)?;
    }
    Err(Failure::User(format!("{}:{first}: not in canonical form; run tsd policy fmt -w", old.name)))
}

/// Makes all changes, one after the other.
fn edited(old: &Named, args: &Edit, printer: &Printer) -> Result<String, Failure> {
    let changes = args.changes().map_err(Failure::User)?;
    let mut text = old.text.clone();
    for change in &changes {
        text = acl::edit(&text, change).map_err(|fault| {
            refuse(&Named { name: old.name.clone(), text: text.clone() }, &[Fault::from(fault)], printer)
        })?;
    }
    Ok(text)
}

pub(super) async fn edit(args: &Edit, client: &Client, printer: &Printer) -> Result<(), Failure> {
    if let Some(file) = &args.file {
        let old = read(file, printer)?;
        let new = edited(&old, args, printer)?;
        return hand_out(file, &old, &new, args.write, printer);
    }
    let policy: crate::api::types::Policy = client.get("/v1/policy").await?;
    let old = Named { name: "the policy in force".to_owned(), text: policy.text };
    let new = edited(&old, args, printer)?;
    if new == old.text {
        let body = Changed { ok: true, changed: false, text: &new };
        return printer.data(&body, || "nothing to change".to_owned());
    }
    let wish = live::Wish { comment: &args.comment, yes: args.yes, expect: Some(policy.version) };
    live::put(&Named { text: new, ..old }, &wish, client, printer).await
}
