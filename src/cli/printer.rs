//! The only place of the command line that writes: data to stdout, talk to stderr. Text from devices
//! is hostile and loses what a terminal would obey.

use std::io::Write as _;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::exit::Failure;

/// Writes in the form that was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Printer {
    json: bool,
}

impl Printer {
    /// JSON or text.
    #[must_use]
    pub(super) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether JSON is wanted.
    #[must_use]
    pub(super) const fn is_json(self) -> bool {
        self.json
    }

    /// Data as [`Printer::data`], but large: JSON is written while it is made, on one line.
    pub(super) fn stream<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        if !self.json {
            return self.data(&(), text);
        }
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        serde_json::to_writer(&mut out, value)
            .map_err(std::io::Error::from)
            .and_then(|()| out.write_all(b"\n"))
            .and_then(|()| out.flush())
            .map_err(|e| unwritten(&e))
    }

    /// A text as data, byte for byte.
    pub(super) fn exact(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|e| unwritten(&e))
    }

    /// Talk that is drawn for a terminal: whoever draws it has tamed what it quotes.
    pub(super) fn report(&self, drawn: &str) {
        // Nowhere to complain when stderr is gone.
        let _ = write!(std::io::stderr().lock(), "{drawn}");
    }

    /// Data: the value as JSON, or its text.
    pub(super) fn data<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) -> Result<(), Failure> {
        let out = if self.json {
            serde_json::to_string_pretty(value)
                .map_err(|e| Failure::Ours(format!("cannot write JSON: {e}")))?
        } else {
            text()
        };
        let end = if out.is_empty() || out.ends_with('\n') { "" } else { "\n" };
        let mut stdout = std::io::stdout().lock();
        let written = stdout
            .write_all(out.as_bytes())
            .and_then(|()| stdout.write_all(end.as_bytes()))
            .and_then(|()| stdout.flush());
        written.map_err(|e| unwritten(&e))
    }

    /// Talk, one line.
    pub(super) fn say(&self, text: &str) {
        // Nowhere to complain when stderr is gone.
        let _ = writeln!(std::io::stderr().lock(), "{}", plain_lines(text));
    }

    /// Says why a command failed.
    pub(super) fn failure(&self, failure: &Failure) {
        if !failure.text().is_empty() {
            self.say(failure.text());
        }
    }
}

/// A reader who went away is no failure.
fn unwritten(error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::Pipe,
        _ => Failure::Ours(format!("cannot write to stdout: {error}")),
    }
}

/// Text without what a terminal would obey or what hides the order of letters.
#[must_use]
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if tame(c) { c } else { '\u{fffd}' }).collect()
}

fn plain_lines(text: &str) -> String {
    text.chars().map(|c| if c == '\n' || tame(c) { c } else { '\u{fffd}' }).collect()
}

fn tame(c: char) -> bool {
    let hides =
        matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
    !c.is_control() && !hides
}

/// An aligned table; columns are two spaces apart, the last is not padded.
#[must_use]
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect()).collect();
    let width = |column: usize, title: &str| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([title.chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = head.iter().enumerate().map(|(i, title)| width(i, title)).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut out = line(&mut head.iter().copied());
    for row in &rows {
        out.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    out
}

/// Names and values below each other.
#[must_use]
pub(super) fn facts(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter()
        .map(|(name, value)| format!("{}\n", format!("{name:width$}  {}", plain(value)).trim_end()))
        .collect()
}

/// A moment for people; a dash for none.
#[must_use]
pub(super) fn moment(at: Option<DateTime<Utc>>) -> String {
    at.map_or_else(|| "-".to_owned(), |at| at.format("%Y-%m-%d %H:%M:%S UTC").to_string())
}

/// A list for people; a dash for none.
#[must_use]
pub(super) fn list(items: &[String]) -> String {
    if items.is_empty() { "-".to_owned() } else { items.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_hostile_text_is_tamed() {
        let rows = [
            vec!["1".into(), "alpha".into(), "x".into()],
            vec!["22".into(), "b\x1b[31m\u{202e}".into(), String::new()],
        ];
        let text = table(&["ID", "NAME", "LAST"], &rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "ID  NAME     LAST");
        assert_eq!(lines[1], "1   alpha    x");
        assert_eq!(lines[2], "22  b\u{fffd}[31m\u{fffd}");
        assert_eq!(facts(&[("a", "1".into()), ("long", "2".into())]), "a     1\nlong  2\n");
    }
}
