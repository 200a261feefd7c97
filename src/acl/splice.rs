//! Putting an element into a list of a text, or taking one out, with the commas, blanks and line breaks
//! the list has. Knows of the language only what stands between elements: blanks, commas, comments.

use std::ops::Range;

use super::ast::Span;

/// Bytes to replace, and with what.
pub(super) type Splice = (Range<usize>, String);

/// Carries out splices that do not overlap.
pub(super) fn apply(text: &str, mut splices: Vec<Splice>) -> String {
    splices.sort_by_key(|(range, _)| (range.start, range.end));
    let mut out = String::with_capacity(text.len() + 64);
    let mut from = 0;
    for (range, with) in splices {
        out.push_str(text.get(from..range.start).unwrap_or_default());
        out.push_str(&with);
        from = range.end.max(from);
    }
    out.push_str(text.get(from..).unwrap_or_default());
    out
}

/// The blanks before `at` on its line; `None` when something else stands there.
pub(super) fn margin(text: &str, at: usize) -> Option<&str> {
    let line = line_start(text, at);
    text.get(line..at).filter(|s| s.bytes().all(|b| b == b' ' || b == b'\t'))
}

fn line_start(text: &str, at: usize) -> usize {
    text.get(..at).and_then(|t| t.rfind('\n')).map_or(0, |n| n + 1)
}

/// The blanks at the start of the line of `at`.
fn line_margin(text: &str, at: usize) -> &str {
    let line = text.get(line_start(text, at)..at).unwrap_or_default();
    let blanks = line.len() - line.trim_start_matches([' ', '\t']).len();
    line.get(..blanks).unwrap_or_default()
}

/// What stands behind an element.
struct Behind {
    /// Its comma.
    comma: Option<usize>,
    /// Behind the last block comment that follows it directly on its line, before the comma.
    close: usize,
    /// Behind the last word on the line of the element's end or, if there is one, of its comma.
    line: usize,
    /// That line ends there.
    ends: bool,
}

/// Looks from `from` to the next element or bracket at `to`.
fn behind(text: &str, from: usize, to: usize) -> Behind {
    let mut out = Behind { comma: None, close: from, line: from, ends: false };
    let (mut at, mut fresh) = (from, false);
    while at < to {
        let rest = text.get(at..to).unwrap_or_default();
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.get(2..).and_then(|r| r.find("*/")).map_or(rest.len(), |n| n + 4)
        } else {
            match rest.bytes().next() {
                Some(b'\n') => {
                    out.ends |= !fresh;
                    fresh = true;
                }
                Some(b',') => {
                    out.comma = Some(at);
                    (fresh, out.ends, out.line) = (false, false, at + 1);
                }
                _ => {}
            }
            at += rest.chars().next().map_or(1, char::len_utf8);
            continue;
        };
        at += length;
        if !fresh {
            out.line = at;
            if out.comma.is_none() && rest.starts_with("/*") {
                out.close = at;
            }
        }
    }
    // A carriage return before the line feed belongs to the line's end.
    let word = text.get(from..out.line).unwrap_or_default();
    out.line = from + word.trim_end_matches([' ', '\t', '\r']).len();
    out
}

fn offset(at: u32) -> usize {
    at as usize
}

/// Puts what `make` gives (it is told the indentation if it gets a line of its own) behind the last of
/// `items` inside the brackets at `around`. An empty list is opened over lines if `spread`.
pub(super) fn append(
    text: &str,
    around: Span,
    items: &[Span],
    spread: bool,
    unit: &str,
    make: &dyn Fn(Option<&str>) -> String,
) -> Vec<Splice> {
    let (open, close) = (offset(around.start) + 1, offset(around.end).saturating_sub(1));
    let feed = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let Some(last) = items.last() else {
        return append_first(text, open..close, spread, unit, feed, make);
    };
    let end = offset(last.end);
    let tail = behind(text, end, close);
    match margin(text, offset(last.start)) {
        Some(margin) if line_start(text, offset(last.start)) >= open => {
            let item = make(Some(margin));
            let item = item.replace('\n', feed);
            if tail.comma.is_some() {
                return vec![(tail.line..tail.line, format!("{feed}{margin}{item},"))];
            }
            // The comma stands behind the element itself, the new one below the line's comment.
            let mut out = vec![(tail.line..tail.line, format!("{feed}{margin}{item}"))];
            if tail.line == end {
                out = vec![(end..end, format!(",{feed}{margin}{item}"))];
            } else {
                out.push((end..end, ",".to_owned()));
            }
            out
        }
        _ => vec![(tail.close..tail.close, format!(", {}", make(None)))],
    }
}

fn append_first(
    text: &str,
    inside: Range<usize>,
    spread: bool,
    unit: &str,
    feed: &str,
    make: &dyn Fn(Option<&str>) -> String,
) -> Vec<Splice> {
    let content = text.get(inside.clone()).unwrap_or_default();
    let word_end = inside.start + content.trim_end_matches([' ', '\t', '\r', '\n']).len();
    let empty = word_end == inside.start;
    let below = text.get(word_end..inside.end).unwrap_or_default().contains('\n');
    if !empty && !below {
        return vec![(word_end..word_end, format!(" {}", make(None)))];
    }
    let margin = if below { line_margin(text, inside.end) } else { line_margin(text, inside.start) };
    if !below && !spread {
        return vec![(inside, make(None))];
    }
    let indent = format!("{margin}{unit}");
    let item = make(Some(&indent)).replace('\n', feed);
    if below {
        return vec![(word_end..word_end, format!("{feed}{indent}{item},"))];
    }
    vec![(inside, format!("{feed}{indent}{item},{feed}{margin}"))]
}

/// Takes out the element of that number. A comment behind it on its last line goes with it if it has
/// its lines to itself; all other comments stay.
pub(super) fn remove(text: &str, around: Span, items: &[Span], index: usize) -> Vec<Splice> {
    let Some(item) = items.get(index) else {
        return Vec::new();
    };
    let close = offset(around.end).saturating_sub(1);
    let (start, end) = (offset(item.start), offset(item.end));
    let next = items.get(index + 1).map_or(close, |n| offset(n.start));
    let tail = behind(text, end, next);
    let before = index.checked_sub(1).and_then(|i| items.get(i)).map(|b| offset(b.end));
    let own = margin(text, start).is_some() && line_start(text, start) > offset(around.start);
    let mut out = Vec::new();
    // Who was last without a comma leaves the one before without.
    if tail.comma.is_none()
        && let Some(before) = before
        && let Some(comma) = behind(text, before, start).comma
    {
        out.push((comma..comma + 1, String::new()));
    }
    if own && tail.ends {
        let rest = text.get(tail.line..).unwrap_or_default();
        let feed = rest.find('\n').map_or(rest.len(), |n| n + 1);
        out.push((line_start(text, start)..tail.line + feed, String::new()));
        return out;
    }
    let blanks = |t: &str| t.len() - t.trim_start_matches([' ', '\t']).len();
    let stop = tail.comma.map_or(end, |c| c + 1);
    let after = blanks(text.get(stop..next).unwrap_or_default());
    let lead = text.get(..start).unwrap_or_default();
    let lead = lead.len() - lead.trim_end_matches([' ', '\t']).len();
    // Behind the last element nothing follows, so the blanks before it go; else those behind it.
    let last = items.get(index + 1).is_none();
    let (from, to) = if last && index > 0 { (start - lead, stop) } else { (start, stop + after) };
    match (tail.comma, end < stop) {
        // Comments between the element and its comma stay.
        (Some(comma), true) if text.get(end..comma).is_some_and(|t| t.contains('/')) => {
            out.push((from..end, String::new()));
            out.push((comma..to.max(comma + 1), String::new()));
        }
        _ => out.push((from..to, String::new())),
    }
    out
}
