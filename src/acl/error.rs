//! Faults of a policy text and how they are gathered: every fault carries its place, what is wrong
//! and what would be right. Many faults of one file are told at once, in order of position.

use std::cell::Cell;
use std::sync::Arc;

use super::PolicyError;
use super::hujson::Span;

/// At most so many faults are handed out.
pub(super) const MAX_FAULTS: usize = 50;
/// At most so many are gathered before they are sorted; more would only cost time.
const MAX_GATHERED: usize = 1000;
/// Longer names get no suggestion, so that hostile text cannot make the search slow.
const MAX_NAME: usize = 80;
/// So many comparisons of characters are spent on suggestions for one text; then there are none.
const MAX_STEPS: usize = 20_000_000;
/// At most so many notes (old spellings) are kept.
const MAX_NOTES: usize = 20;

/// A text with the byte offsets of its line starts.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    text: Arc<str>,
    starts: Arc<[u32]>,
}

impl Lines {
    pub(super) fn new(text: &str) -> Self {
        let mut starts = vec![0];
        for (at, byte) in text.bytes().enumerate() {
            if byte == b'\n' {
                starts.push(u32::try_from(at + 1).unwrap_or(u32::MAX));
            }
        }
        Self { text: text.into(), starts: starts.into() }
    }

    /// What stands at `span`, in one line of at most `most` characters: comments are left out.
    pub(super) fn excerpt(&self, span: Span, most: usize) -> String {
        let text = self.text.get(span.start as usize..span.end as usize).unwrap_or_default();
        excerpt(text, most)
    }

    /// Line and column, both from 1; the column counts bytes (SEMANTICS.md 1.4).
    pub(super) fn place(&self, offset: u32) -> (u32, u32) {
        let line = self.starts.partition_point(|s| *s <= offset).max(1);
        let start = self.starts.get(line - 1).copied().unwrap_or(0);
        let line = u32::try_from(line).unwrap_or(u32::MAX);
        (line, offset.saturating_sub(start).saturating_add(1))
    }
}

/// A piece of a policy in one line: runs of white space are one space, comments are gone, what is too long
/// ends in an ellipsis.
fn excerpt(text: &str, most: usize) -> String {
    let mut out = String::new();
    let mut count = 0;
    let mut rest = text.chars().peekable();
    let mut quoted = false;
    let mut gap = false;
    while let Some(c) = rest.next() {
        match (c, rest.peek()) {
            ('/', Some('/')) if !quoted => {
                rest.by_ref().take_while(|c| *c != '\n').for_each(drop);
                gap = true;
                continue;
            }
            ('/', Some('*')) if !quoted => {
                rest.next();
                let mut last = ' ';
                for c in rest.by_ref() {
                    if last == '*' && c == '/' {
                        break;
                    }
                    last = c;
                }
                gap = true;
                continue;
            }
            _ => {}
        }
        if c.is_whitespace() || c.is_control() || is_invisible(c) {
            gap = true;
            continue;
        }
        if std::mem::take(&mut gap) && !out.is_empty() {
            out.push(' ');
            count += 1;
        }
        if count >= most {
            out.truncate(out.trim_end().len());
            out.push('…');
            return out;
        }
        out.push(c);
        count += 1;
        match c {
            '"' => quoted = !quoted,
            '\\' if quoted => {
                if let Some(escaped) = rest.next() {
                    out.push(escaped);
                    count += 1;
                }
            }
            _ => {}
        }
    }
    out
}

/// Gathers faults.
#[derive(Debug)]
pub(super) struct Faults {
    lines: Lines,
    list: Vec<PolicyError>,
    notes: Vec<PolicyError>,
    steps: Cell<usize>,
}

impl Faults {
    pub(super) fn new(lines: Lines) -> Self {
        Self { lines, list: Vec::new(), notes: Vec::new(), steps: Cell::new(0) }
    }

    /// Notes a fault at `span`.
    pub(super) fn add(
        &mut self,
        code: &'static str,
        span: Span,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        if self.list.len() >= MAX_GATHERED {
            return;
        }
        let (line, column) = self.lines.place(span.start);
        self.list.push(PolicyError { code, line, column, message: message.into(), hint: hint.into() });
    }

    /// The string at `span` as it was written, without quotes and blanks around it; `None` when there is
    /// none, or one with escapes.
    pub(super) fn written(&self, span: Span) -> Option<&str> {
        let text = self.lines.text.get(span.start as usize..span.end as usize)?;
        let inner = text.strip_prefix('"')?.strip_suffix('"')?;
        (!inner.contains(['\\', '"'])).then(|| inner.trim())
    }

    /// Notes what works and should be written otherwise; told as a warning.
    pub(super) fn note(
        &mut self,
        code: &'static str,
        span: Span,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        if self.notes.len() < MAX_NOTES {
            let (line, column) = self.lines.place(span.start);
            self.notes.push(PolicyError { code, line, column, message: message.into(), hint: hint.into() });
        }
    }

    /// The notes, in the order they were made.
    pub(super) fn take_notes(&mut self) -> Vec<PolicyError> {
        std::mem::take(&mut self.notes)
    }

    /// The known name nearest to `wanted`, while there is time to search.
    pub(super) fn suggest<'a>(
        &self,
        wanted: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Option<&'a str> {
        let mut steps = self.steps.get();
        let found = nearest_within(wanted, known, &mut steps);
        self.steps.set(steps);
        found
    }

    /// The first `most` in order of position; the last one says how many more there were.
    pub(super) fn first(mut self, most: usize) -> Vec<PolicyError> {
        self.list.sort_by_key(|f| (f.line, f.column));
        self.list.dedup();
        let more = self.list.len().saturating_sub(most);
        self.list.truncate(most);
        if let Some(last) = self.list.last_mut().filter(|_| more > 0) {
            last.hint.push_str(&format!(" ({more} more like this)"));
        }
        self.list
    }

    /// Takes over faults that have their places already.
    pub(super) fn extend(&mut self, found: &[PolicyError]) {
        self.list.extend(found.iter().take(MAX_GATHERED.saturating_sub(self.list.len())).cloned());
    }

    /// Whether no more faults would be kept.
    pub(super) const fn is_full(&self) -> bool {
        self.list.len() >= MAX_GATHERED
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The faults in order of position, bounded.
    pub(super) fn finish(mut self) -> Vec<PolicyError> {
        self.list.sort_by_key(|f| (f.line, f.column));
        self.list.dedup();
        self.list.truncate(MAX_FAULTS);
        self.list
    }
}

/// `did you mean x?`, or `otherwise` when nothing is near.
pub(super) fn did_you_mean(near: Option<&str>, otherwise: &str) -> String {
    near.map_or_else(|| otherwise.to_owned(), |near| format!("did you mean {near}?"))
}

/// The known name that is few edits away from `wanted`. `steps` counts the work done, over all searches.
fn nearest_within<'a>(
    wanted: &str,
    known: impl IntoIterator<Item = &'a str>,
    steps: &mut usize,
) -> Option<&'a str> {
    if wanted.len() > MAX_NAME || *steps >= MAX_STEPS {
        return None;
    }
    let wanted: Vec<char> = wanted.to_lowercase().chars().collect();
    let allowed = (wanted.len() / 4).clamp(1, 3);
    let mut best: Option<(usize, &str)> = None;
    for name in known {
        *steps += 1;
        if *steps >= MAX_STEPS {
            break;
        }
        // A character has one to four bytes: cheap bounds before anything is built.
        if name.len() > MAX_NAME || name.len() + allowed < wanted.len() {
            continue;
        }
        let chars: Vec<char> = name.to_lowercase().chars().collect();
        *steps += chars.len();
        if chars.len().abs_diff(wanted.len()) > allowed {
            continue;
        }
        *steps += chars.len() * wanted.len();
        let far = distance(&wanted, &chars);
        if far <= allowed && best.is_none_or(|(least, first)| (far, name) < (least, first)) {
            best = Some((far, name));
        }
    }
    best.map(|(_, name)| name)
}

/// Insertions, deletions, replacements and swaps of neighbours from `a` to `b`.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, cb) in b.iter().enumerate() {
            let at = |r: &[usize], k: usize| r.get(k).copied().unwrap_or(usize::MAX / 2);
            let mut best =
                (at(&last, j + 1) + 1).min(at(&row, j) + 1).min(at(&last, j) + usize::from(ca != cb));
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(cb) && b.get(j - 1) == Some(ca);
            if swapped {
                best = best.min(at(&before, j - 1) + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(0)
}

/// Quotes as the hosted service does: printable characters stay, the rest is escaped. Long text is cut.
pub(super) fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for (count, c) in text.chars().enumerate() {
        if count == 300 {
            out.push('…');
            break;
        }
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() || is_invisible(c) => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Characters that would change how the rest of a line is shown.
const fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_a_typo_and_not_a_stranger() {
        let known = ["tag:server", "tag:client", "group:admins"];
        let nearest = |wanted, known| nearest_within(wanted, known, &mut 0);
        assert_eq!(nearest("tag:sever", known), Some("tag:server"));
        assert_eq!(nearest("tag:sevrer", known), Some("tag:server"));
        assert_eq!(nearest("tag:database", known), None);
    }

    #[test]
    fn columns_count_bytes_from_one() {
        let lines = Lines::new("ab\nä\"x");
        assert_eq!(lines.place(0), (1, 1));
        assert_eq!(lines.place(3), (2, 1));
        assert_eq!(lines.place(5), (2, 3));
    }

    #[test]
    fn quoting_hides_what_would_change_the_line() {
        assert_eq!(quote("a\"\\\u{1b}ü"), "\"a\\\"\\\\\\u001bü\"");
        assert_eq!(quote("a\u{202e}b"), "\"a\\u202eb\"");
    }
}
