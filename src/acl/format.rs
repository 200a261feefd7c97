//! Canonical HuJSON: tabs, one element per line where a line would be long, short lists on one line, a
//! comma behind the last element of what stands on several lines. Every comment stays, in order, beside
//! what it stood beside; words and numbers are copied letter for letter, so the meaning cannot change.
//! Formatting twice is formatting once: what is printed depends only on the tree that is read back.

use super::{PolicyError, hujson};

/// Longer lines are broken.
const WIDTH: usize = 100;
/// What a tab counts.
const TAB: usize = 4;

/// Formats a policy text. Only its form is read: an unknown section or an undeclared tag is no obstacle.
///
/// # Errors
/// Faults of the HuJSON syntax.
pub fn format(text: &str) -> Result<String, Vec<PolicyError>> {
    let text = hujson::body(text);
    hujson::read(text)?;
    // Strings hold no raw line ends, so only blanks and comments change.
    let text = text.replace("\r\n", "\n");
    let mut reader = Reader { tokens: tokens(&text), at: 0 };
    let document = reader.group(None, 0);
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    lines(&mut out, &document, 0, false);
    Ok(out)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Open,
    Close,
    Scalar,
    Comment,
}

/// A word of the text. Commas and colons are not kept: the tree says where they belong.
#[derive(Debug, Clone, Copy)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
    /// Line feeds between it and the word before.
    feeds: usize,
    /// A comma stands between the element before and it.
    comma: bool,
}

const END: Token<'_> = Token { kind: Kind::Close, text: "", feeds: 1, comma: false };

/// Splits a text that [`hujson::read`] has accepted.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut out = Vec::new();
    let (mut at, mut feeds, mut most, mut comma) = (0, 0usize, 0usize, false);
    while let Some(rest) = text.get(at..).filter(|r| !r.is_empty()) {
        let first = rest.as_bytes().first().copied().unwrap_or(b' ');
        let (kind, length) = match first {
            b'\n' => {
                feeds += 1;
                most = most.max(feeds);
                at += 1;
                continue;
            }
            b' ' | b'\t' | b'\r' | b':' => {
                at += 1;
                continue;
            }
            b',' => {
                (comma, feeds) = (true, 0);
                at += 1;
                continue;
            }
            b'{' | b'[' => (Kind::Open, 1),
            b'}' | b']' => (Kind::Close, 1),
            b'/' if rest.starts_with("//") => (Kind::Comment, rest.find('\n').unwrap_or(rest.len())),
            b'/' => (Kind::Comment, block_length(rest)),
            b'"' => (Kind::Scalar, string_length(rest)),
            _ => (Kind::Scalar, rest.find([',', ']', '}', ' ', '\t', '\r', '\n', '/']).unwrap_or(rest.len())),
        };
        let length = length.max(1);
        let word = rest.get(..length).unwrap_or(rest);
        let word = if kind == Kind::Comment { word.trim_end_matches([' ', '\t', '\r']) } else { word };
        out.push(Token { kind, text: word, feeds: most, comma });
        if kind != Kind::Comment {
            comma = false;
        }
        (feeds, most) = (0, 0);
        at += length;
    }
    out
}

/// Bytes of the block comment at the start of `text`.
fn block_length(text: &str) -> usize {
    text.get(2..).and_then(|inner| inner.find("*/")).map_or(text.len(), |end| end + 4)
}

/// Bytes of the string at the start of `text`, quotes included.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[derive(Debug)]
struct Comment<'a> {
    text: &'a str,
    /// An empty line stands before it.
    blank: bool,
    /// Something before it is on another line.
    fresh: bool,
    /// What follows is on another line.
    breaks: bool,
    /// Stands behind the comma.
    comma: bool,
}

impl Comment<'_> {
    fn is_line(&self) -> bool {
        self.text.starts_with("//")
    }

    /// Columns with one blank, unless it needs lines.
    fn flat(&self) -> Option<usize> {
        (!self.is_line() && !self.text.contains('\n')).then(|| self.text.chars().count() + 1)
    }
}

#[derive(Debug)]
struct Item<'a> {
    before: Vec<Comment<'a>>,
    /// An empty line stands before it.
    blank: bool,
    key: Option<&'a str>,
    /// Comments between key and value.
    between: Vec<Comment<'a>>,
    value: Tree<'a>,
    /// Comments on its last line.
    after: Vec<Comment<'a>>,
}

#[derive(Debug)]
enum Tree<'a> {
    Scalar(&'a str),
    Group(Group<'a>),
}

#[derive(Debug)]
struct Group<'a> {
    open: &'a str,
    close: &'a str,
    /// Comments on the line of the bracket.
    head: Vec<Comment<'a>>,
    items: Vec<Item<'a>>,
    /// Comments behind the last element's line.
    tail: Vec<Comment<'a>>,
    /// Columns on one line; `None` when it has to have several.
    flat: Option<usize>,
}

struct Reader<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Token<'a> {
        self.tokens.get(self.at).copied().unwrap_or(END)
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn comments(&mut self) -> Vec<Comment<'a>> {
        let mut out = Vec::new();
        while self.peek().kind == Kind::Comment {
            let token = self.next();
            let breaks = self.peek().feeds > 0;
            let (text, comma) = (token.text, token.comma);
            out.push(Comment { text, blank: token.feeds > 1, fresh: token.feeds > 0, breaks, comma });
        }
        out
    }

    /// An array or object after its bracket; without a bracket the whole document.
    fn group(&mut self, open: Option<Token<'a>>, depth: usize) -> Group<'a> {
        let object = open.is_some_and(|o| o.text == "{");
        let mut before = self.comments();
        let mut head = Vec::new();
        if open.is_some() {
            let same = before.iter().take_while(|c| !c.fresh).count();
            if same < before.len() || self.peek().feeds > 0 {
                let rest = before.split_off(same);
                head = std::mem::replace(&mut before, rest);
            }
        }
        // Who opened an object over several lines wanted it so.
        let spread = object && (!head.is_empty() || before.iter().any(|c| c.fresh) || self.peek().feeds > 0);
        let mut items = Vec::new();
        while self.peek().kind != Kind::Close {
            let blank = self.peek().feeds > 1;
            let (mut key, mut between) = (None, Vec::new());
            if object {
                key = Some(self.next().text);
                between = self.comments();
            }
            let token = self.next();
            let value = match token.kind {
                Kind::Open => Tree::Group(self.group(Some(token), depth + 1)),
                _ => Tree::Scalar(token.text),
            };
            let mut after = self.comments();
            let mut same = after.iter().take_while(|c| !c.fresh).count();
            let end = self.peek();
            if same == after.len() && end.feeds == 0 && end.kind != Kind::Close {
                // All on one line with the next element: what stands behind the comma is that one's.
                same = after.iter().take_while(|c| !c.comma).count();
            }
            let rest = after.split_off(same);
            let before = std::mem::replace(&mut before, rest);
            items.push(Item { before, blank, key, between, value, after });
        }
        let close = self.next().text;
        let mut group =
            Group { open: open.map_or("", |o| o.text), close, head, items, tail: before, flat: None };
        let section = depth == 2 && (object || group.items.iter().any(|i| matches!(i.value, Tree::Group(_))));
        let several = !group.items.is_empty() && (depth < 2 || section || spread);
        group.flat = if several || open.is_none() { None } else { flat_group(&group) };
        group
    }
}

fn flat_group(group: &Group<'_>) -> Option<usize> {
    if !group.head.is_empty() || group.tail.iter().any(|c| c.fresh || c.breaks) {
        return None;
    }
    let tail = group.tail.iter().try_fold(0, |sum, c| Some(sum + c.flat()?))?.saturating_sub(1);
    let items = group.items.iter().try_fold(0, |sum, i| Some(sum + flat_item(i)? + 2))?;
    Some(2 + tail + items.saturating_sub(2))
}

fn flat_item(item: &Item<'_>) -> Option<usize> {
    if item.before.iter().any(|c| c.breaks) {
        return None;
    }
    let mut comments = item.before.iter().chain(&item.between).chain(&item.after);
    let comments = comments.try_fold(0, |sum, c| Some(sum + c.flat()?))?;
    let value = match &item.value {
        Tree::Scalar(text) => text.chars().count(),
        Tree::Group(group) => group.flat?,
    };
    Some(comments + item.key.map_or(0, |k| k.chars().count() + 2) + value)
}

fn indent(out: &mut String, depth: usize) {
    out.extend(std::iter::repeat_n('\t', depth));
}

/// Prints what is inside a group, each element on lines of its own.
fn lines(out: &mut String, group: &Group<'_>, depth: usize, commas: bool) {
    let mut first = true;
    let mut blank_line = |out: &mut String, blank: bool| {
        if blank && !first {
            out.push('\n');
        }
        first = false;
    };
    for item in &group.items {
        let mut fresh = true;
        for comment in &item.before {
            if fresh {
                blank_line(out, comment.blank);
                indent(out, depth);
            }
            out.push_str(comment.text);
            fresh = comment.breaks || comment.is_line();
            out.push(if fresh { '\n' } else { ' ' });
        }
        if fresh {
            blank_line(out, item.blank);
            indent(out, depth);
        }
        let level = key(out, item, depth);
        match &item.value {
            Tree::Scalar(text) => out.push_str(text),
            Tree::Group(group) => value(out, group, level),
        }
        if commas {
            out.push(',');
        }
        for comment in &item.after {
            out.push(' ');
            out.push_str(comment.text);
        }
        out.push('\n');
    }
    for comment in &group.tail {
        blank_line(out, comment.blank);
        indent(out, depth);
        out.push_str(comment.text);
        out.push('\n');
    }
}

/// Prints the key and what stands between it and the value; gives the level of the value.
fn key(out: &mut String, item: &Item<'_>, depth: usize) -> usize {
    let Some(key) = item.key else {
        return depth;
    };
    out.push_str(key);
    out.push(':');
    let (mut level, mut fresh) = (depth, false);
    for comment in &item.between {
        if !std::mem::take(&mut fresh) {
            out.push(' ');
        }
        out.push_str(comment.text);
        if comment.is_line() {
            (level, fresh) = (depth + 1, true);
            out.push('\n');
            indent(out, level);
        }
    }
    if !fresh {
        out.push(' ');
    }
    level
}

/// Prints a group where the cursor stands.
fn value(out: &mut String, group: &Group<'_>, depth: usize) {
    let line = out.rsplit('\n').next().unwrap_or_default();
    let used: usize = line.chars().map(|c| if c == '\t' { TAB } else { 1 }).sum();
    out.push_str(group.open);
    if group.flat.is_some_and(|columns| used + columns < WIDTH) {
        flat(out, group);
    } else {
        for comment in &group.head {
            out.push(' ');
            out.push_str(comment.text);
        }
        out.push('\n');
        lines(out, group, depth + 1, true);
        indent(out, depth);
    }
    out.push_str(group.close);
}

/// Prints what is inside a group on the line where the cursor stands.
fn flat(out: &mut String, group: &Group<'_>) {
    for (number, item) in group.items.iter().enumerate() {
        if number > 0 {
            out.push_str(", ");
        }
        for comment in &item.before {
            out.push_str(comment.text);
            out.push(' ');
        }
        key(out, item, 0);
        match &item.value {
            Tree::Scalar(text) => out.push_str(text),
            Tree::Group(group) => {
                out.push_str(group.open);
                flat(out, group);
                out.push_str(group.close);
            }
        }
        for comment in &item.after {
            out.push(' ');
            out.push_str(comment.text);
        }
    }
    let tail: Vec<&str> = group.tail.iter().map(|c| c.text).collect();
    out.push_str(&tail.join(" "));
}

#[cfg(test)]
mod tests;
