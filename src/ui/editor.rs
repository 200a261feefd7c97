//! What the Access page shows of a policy text: the editor with numbered lines, faults with the line
//! they stand in, and the difference between two texts. Pure and bounded.

use std::collections::BTreeMap;
use std::fmt;

use askama::filters::HtmlSafe;

use crate::acl::PolicyError;
use crate::ui::text::{Area, clean};

/// Characters shown of a line on either side of a fault; a phone shows about forty in all.
const AROUND: usize = 36;
/// Faults that are shown.
const MAX_FAULTS: usize = 50;
/// Lines of a difference that are shown.
const MAX_DIFF: usize = 400;
/// Above this many table cells the difference is told as "all of it".
const MAX_CELLS: usize = 1_000_000;

/// Texts with more lines are shown without numbers.
const MAX_NUMBERED: usize = 3_000;
/// And longer ones, and these are not loaded unasked.
pub(super) const MAX_LOADED: usize = 256 << 10;

/// A textarea with the numbers of its lines beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Editor {
    pub(super) text: Area,
    pub(super) rows: usize,
    pub(super) gutter: Option<Gutter>,
}

impl Editor {
    pub(super) fn new(text: String) -> Self {
        // A text past the limit may have a million lines; counting stops early.
        let lines = text.lines().take(MAX_NUMBERED + 1).count();
        let numbered = lines <= MAX_NUMBERED && text.len() <= MAX_LOADED;
        Self {
            rows: if numbered { lines.max(11) + 1 } else { 32 },
            gutter: numbered.then(|| Gutter { lines: lines.max(1), marks: BTreeMap::new() }),
            text: Area(text),
        }
    }

    /// Marks a line; the first mark stays.
    pub(super) fn mark(&mut self, line: u32, tone: &'static str, why: &str) {
        if let Some(gutter) = &mut self.gutter
            && (1..=gutter.lines).contains(&(line as usize))
        {
            gutter.marks.entry(line).or_insert_with(|| (tone, clean(why, 200)));
        }
    }

    /// Where a link to a line goes.
    pub(super) fn place(&self, line: u32) -> String {
        match &self.gutter {
            Some(gutter) if gutter.marks.contains_key(&line) => format!("#L{line}"),
            _ => "#text".to_owned(),
        }
    }
}

/// Numbers of lines, some marked: `L12` is an anchor for marked ones only, which keeps pages small.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gutter {
    lines: usize,
    marks: BTreeMap<u32, (&'static str, String)>,
}

impl HtmlSafe for Gutter {}

impl fmt::Display for Gutter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in 1..=u32::try_from(self.lines).unwrap_or(u32::MAX) {
            match self.marks.get(&line) {
                None => writeln!(f, "{line}")?,
                Some((tone, why)) => {
                    write!(f, "<a id=\"L{line}\" class=\"{tone}\" tabindex=\"-1\" title=\"")?;
                    why.chars().try_for_each(|c| match c {
                        '&' => f.write_str("&amp;"),
                        '"' => f.write_str("&quot;"),
                        '<' => f.write_str("&lt;"),
                        c => fmt::Write::write_char(f, c),
                    })?;
                    writeln!(f, "\">{line}</a>")?;
                }
            }
        }
        Ok(())
    }
}

/// A fault with the line it stands in, cut in three at the fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) line: u32,
    pub(super) column: u32,
    pub(super) message: String,
    pub(super) hint: String,
    pub(super) code: &'static str,
    pub(super) before: String,
    pub(super) marked: String,
    pub(super) after: String,
    /// A link to the line.
    pub(super) place: String,
}

/// Puts each fault beside its line of the editor's text, and marks the line.
pub(super) fn faults(editor: &mut Editor, errors: &[PolicyError], tone: &'static str) -> Vec<Fault> {
    for error in errors.iter().take(MAX_FAULTS) {
        editor.mark(error.line, tone, &error.message);
    }
    let wanted: BTreeMap<u32, &str> = {
        let lines: std::collections::BTreeSet<u32> = errors.iter().take(MAX_FAULTS).map(|e| e.line).collect();
        let numbered = (1_u32..).zip(editor.text.0.lines());
        numbered.filter(|(n, _)| lines.contains(n)).collect()
    };
    let found = errors.iter().take(MAX_FAULTS);
    found.map(|e| fault(wanted.get(&e.line).copied().unwrap_or(""), e, editor.place(e.line))).collect()
}

fn fault(line: &str, error: &PolicyError, place: String) -> Fault {
    let mut at = (error.column.saturating_sub(1) as usize).min(line.len());
    while !line.is_char_boundary(at) {
        at -= 1;
    }
    let (before, rest) = line.split_at(at);
    let stop = |(n, c): &(usize, char)| *n > 0 && (c.is_whitespace() || ",]}".contains(*c));
    let end = rest.char_indices().find(stop).map_or(rest.len(), |(n, _)| n);
    let (marked, after) = rest.split_at(end);
    let skipped = before.chars().count().saturating_sub(AROUND);
    let lead: String = before.chars().skip(skipped).collect();
    let lead = if skipped > 0 { format!("…{lead}") } else { lead.trim_start().to_owned() };
    Fault {
        line: error.line,
        column: error.column,
        message: clean(&error.message, 400),
        hint: clean(&error.hint, 400),
        code: error.code,
        before: clean(&lead.replace('\t', " "), AROUND + 2),
        marked: if marked.is_empty() { "⏎".to_owned() } else { clean(marked, AROUND) },
        after: clean(&after.replace('\t', " "), AROUND),
        place,
    }
}

/// One line of a difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DiffLine {
    /// `+`, `-`, a space for what stays, or `…` for what is left out.
    pub(super) sign: char,
    pub(super) text: String,
}

/// The difference that makes `new` of `old`, with two lines of surroundings.
pub(super) fn difference(old: &str, new: &str) -> Vec<DiffLine> {
    let old: Vec<&str> = old.lines().collect();
    let new: Vec<&str> = new.lines().collect();
    let head = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let (a, b) = (old.get(head..).unwrap_or(&[]), new.get(head..).unwrap_or(&[]));
    let tail = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    let (a, rest) = a.split_at(a.len() - tail);
    let (b, _) = b.split_at(b.len() - tail);
    if a.is_empty() && b.is_empty() {
        return Vec::new();
    }
    let mut out = Vec::new();
    let from = head.saturating_sub(2);
    if from > 0 {
        out.push(line('…', ""));
    }
    out.extend(old.iter().take(head).skip(from).map(|t| line(' ', t)));
    middle(a, b, &mut out);
    out.extend(rest.iter().take(2).map(|t| line(' ', t)));
    if rest.len() > 2 {
        out.push(line('…', ""));
    }
    if out.len() > MAX_DIFF {
        out.truncate(MAX_DIFF);
        out.push(line('…', ""));
    }
    out
}

fn line(sign: char, text: &str) -> DiffLine {
    DiffLine { sign, text: clean(&text.replace('\t', "  "), 300) }
}

/// Longest common subsequence by the plain table; too large a table falls back to "all out, all in".
fn middle(a: &[&str], b: &[&str], out: &mut Vec<DiffLine>) {
    let width = b.len() + 1;
    if (a.len() + 1).saturating_mul(width) > MAX_CELLS {
        out.extend(a.iter().take(MAX_DIFF / 2).map(|t| line('-', t)));
        if a.len() > MAX_DIFF / 2 {
            out.push(line('…', ""));
        }
        out.extend(b.iter().take(MAX_DIFF / 2 + 1).map(|t| line('+', t)));
        return;
    }
    let mut table = vec![0_u32; (a.len() + 1) * width];
    let cell = |table: &[u32], i: usize, j: usize| table.get(i * width + j).copied().unwrap_or(0);
    for (i, x) in a.iter().enumerate().rev() {
        for (j, y) in b.iter().enumerate().rev() {
            let best = if x == y {
                cell(&table, i + 1, j + 1) + 1
            } else {
                cell(&table, i + 1, j).max(cell(&table, i, j + 1))
            };
            if let Some(slot) = table.get_mut(i * width + j) {
                *slot = best;
            }
        }
    }
    let (mut i, mut j) = (0, 0);
    loop {
        match (a.get(i), b.get(j)) {
            (Some(x), Some(y)) if x == y => {
                out.push(line(' ', x));
                (i, j) = (i + 1, j + 1);
            }
            (Some(x), y) if y.is_none() || cell(&table, i + 1, j) >= cell(&table, i, j + 1) => {
                out.push(line('-', x));
                i += 1;
            }
            (_, Some(y)) => {
                out.push(line('+', y));
                j += 1;
            }
            (Some(_), None) | (None, None) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn faults(text: &str, errors: &[PolicyError]) -> Vec<Fault> {
        super::faults(&mut Editor::new(text.into()), errors, "bad")
    }

    fn error(line: u32, column: u32) -> PolicyError {
        PolicyError { code: "syntax", line, column, message: "m".into(), hint: String::new() }
    }

    #[test]
    fn the_fault_is_marked_where_it_stands() {
        let got = faults("{\n  \"acls\": oops,\n}", &[error(2, 11)]);
        assert_eq!(
            (got[0].before.as_str(), got[0].marked.as_str(), got[0].after.as_str()),
            ("\"acls\": ", "oops", ",")
        );
    }

    #[test]
    fn places_outside_the_text_and_inside_a_character_do_no_harm() {
        let got = faults("é", &[error(0, 0), error(9, 9), error(1, 2), error(1, 900)]);
        assert_eq!(got.len(), 4);
        assert_eq!(got[2].marked, "é");
        assert_eq!(got[3].marked, "⏎");
    }

    #[test]
    fn marked_lines_are_anchors_and_their_reasons_cannot_leave_the_attribute() {
        let mut editor = Editor::new("a\nb\nc".into());
        let evil = PolicyError { message: "\"><script>".into(), ..error(2, 1) };
        let found = super::faults(&mut editor, &[evil, error(9, 1)], "bad");
        assert_eq!((found[0].place.as_str(), found[1].place.as_str()), ("#L2", "#text"));
        let gutter = editor.gutter.unwrap().to_string();
        assert_eq!(
            gutter,
            "1\n<a id=\"L2\" class=\"bad\" tabindex=\"-1\" title=\"&quot;>&lt;script>\">2</a>\n3\n"
        );
    }

    #[test]
    fn long_texts_go_without_numbers() {
        assert!(Editor::new("x\n".repeat(MAX_NUMBERED + 1)).gutter.is_none());
        assert!(Editor::new("x".repeat(MAX_LOADED + 1)).gutter.is_none());
        assert_eq!(Editor::new(String::new()).rows, 12);
    }

    #[test]
    fn the_difference_of_large_texts_is_bounded() {
        let (old, new) = ("a\n".repeat(300_000), "b\n".repeat(300_000));
        let lines = difference(&old, &new);
        assert!(lines.len() <= MAX_DIFF + 2 && lines.iter().any(|l| l.sign == '+'), "{}", lines.len());
    }

    #[test]
    fn a_difference_names_what_went_and_what_came() {
        let signs: String = difference("a\nb\nc\nd\n", "a\nx\nc\nd\n").iter().map(|l| l.sign).collect();
        assert_eq!(signs, " -+  ");
        assert!(difference("a\n", "a\n").is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_difference_rebuilds_the_new_text(a in "[ab\n]{0,20}", b in "[ab\n]{0,20}") {
            let mut lines = Vec::new();
            let (old, new): (Vec<&str>, Vec<&str>) = (a.lines().collect(), b.lines().collect());
            middle(&old, &new, &mut lines);
            let rebuilt: Vec<&str> = lines.iter().filter(|l| l.sign != '-').map(|l| l.text.as_str()).collect();
            prop_assert_eq!(rebuilt, new);
            let kept: Vec<&str> = lines.iter().filter(|l| l.sign != '+').map(|l| l.text.as_str()).collect();
            prop_assert_eq!(kept, old);
        }
    }
}
