//! What the Access page shows of a policy text: faults with the line they stand in, and the
//! difference between two texts. Pure and bounded.

use crate::acl::PolicyError;
use crate::ui::text::clean;

/// Characters shown of a line on either side of a fault; a phone shows about forty in all.
const AROUND: usize = 36;
/// Lines of a difference that are shown.
const MAX_DIFF: usize = 400;
/// Above this many table cells the difference is told as "all of it".
const MAX_CELLS: usize = 1_000_000;

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
}

/// Puts each fault beside its line of `text`.
pub(super) fn faults(text: &str, errors: &[PolicyError]) -> Vec<Fault> {
    let lines: Vec<&str> = text.lines().collect();
    errors.iter().take(50).map(|e| fault(&lines, e)).collect()
}

fn fault(lines: &[&str], error: &PolicyError) -> Fault {
    let line = (error.line as usize).checked_sub(1).and_then(|n| lines.get(n)).copied().unwrap_or("");
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
        out.extend(a.iter().map(|t| line('-', t)));
        out.extend(b.iter().map(|t| line('+', t)));
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
