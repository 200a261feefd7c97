//! Words, times and cuts for people. Pure: the moment is an argument. Nothing here makes markup but
//! [`When`] and [`Mark`], whose parts are escaped by their own small templates.

use askama::Template;
use askama::filters::HtmlSafe;
use chrono::{DateTime, Utc};

/// A moment as people read it, with the exact time behind it.
#[derive(Debug, Clone, PartialEq, Eq, Template)]
#[template(source = r#"<time datetime="{{ iso }}" title="{{ full }}">{{ words }}</time>"#, ext = "html")]
pub(super) struct When {
    iso: String,
    full: String,
    words: String,
}

impl HtmlSafe for When {}

impl When {
    /// `at` as seen from `now`.
    pub(super) fn new(at: DateTime<Utc>, now: DateTime<Utc>) -> Self {
        Self {
            iso: at.format("%Y-%m-%dT%H:%M:%SZ").to_string(),
            full: at.format("%A %-d %B %Y, %H:%M:%S UTC").to_string(),
            words: distance((at - now).num_seconds()),
        }
    }

    /// `3 minutes ago`, for the middle of a sentence.
    pub(super) fn words(&self) -> &str {
        &self.words
    }
}

/// `3 minutes ago`, `in 2 days`: `seconds` is positive in the future.
fn distance(seconds: i64) -> String {
    const STEPS: [(i64, &str); 5] =
        [(31_557_600, "year"), (2_629_800, "month"), (86_400, "day"), (3_600, "hour"), (60, "minute")];
    let size = seconds.saturating_abs();
    // Rounded to the nearest unit: a key made for 24 hours reads "in 24 hours" a second later.
    for (step, name) in STEPS {
        let whole = size.saturating_add(step / 2) / step;
        let enough = if step == 86_400 { size > 172_000 } else { size >= step - step / 60 };
        if enough {
            let words = count(usize::try_from(whole.max(1)).unwrap_or(usize::MAX), name);
            return if seconds >= 0 { format!("in {words}") } else { format!("{words} ago") };
        }
    }
    if seconds > 0 { "in less than a minute" } else { "just now" }.to_owned()
}

/// `1 device`, `3 devices`.
pub(super) fn count(n: usize, thing: &str) -> String {
    if n == 1 { format!("1 {thing}") } else { format!("{n} {thing}s") }
}

/// A state as a dot **and** a word, with what it means behind it.
#[derive(Debug, Clone, PartialEq, Eq, Template)]
#[template(source = r#"<span class="mark {{ tone }}" title="{{ why }}">{{ word }}</span>"#, ext = "html")]
pub(super) struct Mark {
    /// `good`, `attention`, `danger`, `quiet`.
    tone: &'static str,
    /// The word.
    pub(super) word: &'static str,
    why: String,
}

impl HtmlSafe for Mark {}

impl Mark {
    pub(super) fn new(tone: &'static str, word: &'static str, why: impl Into<String>) -> Self {
        Self { tone, word, why: why.into() }
    }
}

/// Hostile text made fit for one line: control and direction characters dropped, cut at `width`
/// characters with an ellipsis. Escaping stays with the templates.
pub(super) fn clean(text: &str, width: usize) -> String {
    let mut out = String::new();
    for (n, c) in text.chars().filter(|c| !disturbs(*c)).enumerate() {
        if n >= width {
            out.pop();
            out.push('…');
            return out;
        }
        out.push(c);
    }
    out
}

/// Characters that would reorder or hide what stands around them.
fn disturbs(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{061c}')
}

/// What stands in a textarea. Only what could end it or begin a reference is escaped: a policy is full
/// of quotes, and five bytes for each would double the page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Area(pub(super) String);

impl HtmlSafe for Area {}

impl std::fmt::Display for Area {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut rest = self.0.as_str();
        while let Some(at) = rest.find(['&', '<']) {
            let (before, from) = rest.split_at(at);
            f.write_str(before)?;
            f.write_str(if from.starts_with('&') { "&amp;" } else { "&lt;" })?;
            rest = from.get(1..).unwrap_or("");
        }
        f.write_str(rest)
    }
}

/// `text`, or an en dash when there is nothing to show.
pub(super) fn or_dash(text: String) -> String {
    if text.trim().is_empty() { "–".to_owned() } else { text }
}

/// An argument for a POSIX shell, quoted only when it must be.
pub(super) fn shell(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@,=".contains(c);
    if !text.is_empty() && !text.starts_with('-') && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", clean(text, 200).replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_read_like_speech() {
        let cases = [
            (-3, "just now"),
            (-59, "1 minute ago"),
            (-185, "3 minutes ago"),
            (86_399, "in 24 hours"),
            (-2 * 86_400, "2 days ago"),
            (90 * 86_400, "in 3 months"),
            (30, "in less than a minute"),
            (i64::MIN, "292277026596 years ago"),
        ];
        for (seconds, words) in cases {
            let got = distance(seconds);
            if seconds == i64::MIN {
                assert!(got.ends_with("years ago"), "{got}");
            } else {
                assert_eq!(got, words, "{seconds}");
            }
        }
    }

    #[test]
    fn clean_drops_direction_marks_and_cuts() {
        assert_eq!(clean("a\u{202e}b\u{0}\nc", 10), "abc");
        assert_eq!(clean("abcdef", 4), "abc…");
        assert_eq!(clean("🦀🦀🦀", 3), "🦀🦀🦀");
    }

    #[test]
    fn shell_arguments_cannot_leave_their_quotes() {
        assert_eq!(shell("alice@example.com"), "alice@example.com");
        assert_eq!(shell("a'; rm -rf /"), r"'a'\''; rm -rf /'");
        assert_eq!(shell("--yes"), "'--yes'");
        assert_eq!(shell(""), "''");
    }

    #[test]
    fn an_area_cannot_be_closed_and_keeps_its_quotes() {
        let area = Area("\"a\" </textarea>&lt;\u{e9}<".into());
        assert_eq!(area.to_string(), "\"a\" &lt;/textarea>&amp;lt;\u{e9}&lt;");
    }

    #[test]
    fn a_mark_escapes_its_reason() {
        let mark = Mark::new("good", "online", "<script>\"x\"");
        assert!(!mark.to_string().contains("<script>"));
    }
}
