//! Faults of a policy text for people: with the line and a mark in a terminal, as `file:line:column:` in a
//! pipe, as JSON on stdout when asked.

use std::fmt::Write as _;
use std::io::IsTerminal as _;

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource, Severity};
use serde::Serialize;

use super::super::exit::Failure;
use super::super::printer::{Printer, plain};
use crate::api::types::Fault;

/// A text and how people call it.
#[derive(Debug, Clone)]
pub(super) struct Named {
    /// File name, `version 3`, `the policy in force`.
    pub(super) name: String,
    /// Its text.
    pub(super) text: String,
}

/// What `--json` prints for a refused policy.
#[derive(Serialize)]
struct Refused<'a> {
    ok: bool,
    errors: &'a [Fault],
}

/// Shows why a policy is refused and gives the failure to end with.
pub(super) fn refuse(source: &Named, faults: &[Fault], printer: &Printer) -> Failure {
    if printer.is_json()
        && let Err(failure) = printer.data(&Refused { ok: false, errors: faults }, String::new)
    {
        return failure;
    }
    show(source, faults, Severity::Error, printer);
    Failure::Told
}

/// Shows faults that were not asked about.
pub(super) fn tell(source: &Named, faults: &[Fault], printer: &Printer) {
    show(source, faults, Severity::Error, printer);
}

/// Shows warnings.
pub(super) fn warn(source: &Named, faults: &[Fault], printer: &Printer) {
    show(source, faults, Severity::Warning, printer);
}

fn show(source: &Named, faults: &[Fault], severity: Severity, printer: &Printer) {
    if faults.is_empty() {
        return;
    }
    let color = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    if std::io::stderr().is_terminal() {
        printer.report(&drawn(source, faults, severity, color));
    } else {
        let kind = if severity == Severity::Warning { "warning: " } else { "" };
        let told = lines(&source.name, faults);
        let told: Vec<String> = told.lines().map(|line| format!("{kind}{line}")).collect();
        printer.say(&told.join("\n"));
    }
}

/// One line per fault.
pub(super) fn lines(name: &str, faults: &[Fault]) -> String {
    let line = |f: &Fault| {
        let hint = if f.hint.is_empty() { String::new() } else { format!(", {}", f.hint) };
        format!("{name}:{}:{}: {}{hint}", f.line, f.column, f.message)
    };
    faults.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Drawn with the lines of the text.
fn drawn(source: &Named, faults: &[Fault], severity: Severity, color: bool) -> String {
    let theme = if color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let handler = GraphicalReportHandler::new_themed(theme).with_context_lines(1).with_links(false);
    let text = harmless(&source.text);
    let mut out = String::new();
    for fault in faults {
        let (start, length) = span(&text, fault);
        let mut diagnostic = MietteDiagnostic::new(plain(&fault.message))
            .with_code(&fault.code)
            .with_severity(severity)
            .with_label(LabeledSpan::new_primary_with_span(None, (start, length)));
        if !fault.hint.is_empty() {
            diagnostic = diagnostic.with_help(plain(&fault.hint));
        }
        let report = miette::Report::new(diagnostic)
            .with_source_code(NamedSource::new(plain(&source.name), text.clone()));
        if handler.render_report(&mut out, report.as_ref()).is_err() {
            // Drawing failed, so the fault is told without its line.
            let _ = writeln!(out, "{}", plain(&lines(&source.name, std::slice::from_ref(fault))));
        }
    }
    out
}

/// The same text, byte for byte in place, without what a terminal would obey.
fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut buffer = [0; 4];
    for c in text.chars() {
        let keep = matches!(c, '\n' | '\t' | '\r')
            || plain(c.encode_utf8(&mut buffer)) == *c.encode_utf8(&mut [0; 4]);
        if keep {
            out.push(c);
        } else {
            out.extend(std::iter::repeat_n('?', c.len_utf8()));
        }
    }
    out
}

/// The word at the fault's place: a string with its quotes, else up to the next mark.
fn span(text: &str, fault: &Fault) -> (usize, usize) {
    let text = text.strip_prefix('\u{feff}').map_or((0, text), |rest| (text.len() - rest.len(), rest));
    let (mark, text) = text;
    let line = (fault.line as usize).saturating_sub(1);
    let start: usize = text.split_inclusive('\n').take(line).map(str::len).sum();
    let start = (start + (fault.column as usize).saturating_sub(1)).min(text.len());
    let rest = text.get(start..).unwrap_or_default();
    let line = rest.split('\n').next().unwrap_or_default();
    let quoted = line.strip_prefix('"').and_then(|inner| inner.find('"')).map(|end| end + 2);
    let word = || line.find([',', ' ', '\t', ']', '}', ':', '\r']).unwrap_or(line.len());
    (mark + start, quoted.unwrap_or_else(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(line: u32, column: u32) -> Fault {
        Fault {
            code: "unknown-tag".into(),
            line,
            column,
            message: "src=tag not found: \"tag:sever\"".into(),
            hint: "did you mean tag:server?".into(),
        }
    }

    #[test]
    fn a_fault_is_drawn_under_its_word() {
        let source = Named { name: "p.hujson".into(), text: "{\n\t\"src\": [\"tag:sever\"]\n}".into() };
        assert_eq!(span(&source.text, &fault(2, 10)), (11, 11));
        let drawn = drawn(&source, &[fault(2, 10)], Severity::Error, false);
        for part in ["unknown-tag", "p.hujson:2:", "\"tag:sever\"", "did you mean tag:server?"] {
            assert!(drawn.contains(part), "{part:?} is missing in\n{drawn}");
        }
        assert!(!drawn.contains('\x1b'));
    }

    #[test]
    fn escapes_in_the_text_and_places_beyond_it_do_no_harm() {
        let source = Named { name: "p\x1b".into(), text: "{ \"a\": \"\x1b[31m\u{202e}\" }".into() };
        let all: Vec<Fault> = [(1, 8), (0, 0), (9, 9), (u32::MAX, u32::MAX)].map(|(l, c)| fault(l, c)).into();
        let drawn = drawn(&source, &all, Severity::Warning, false);
        assert!(!drawn.contains(['\x1b', '\u{202e}']), "{drawn:?}");
        assert_eq!(drawn.matches("did you mean").count(), 4);
    }
}
