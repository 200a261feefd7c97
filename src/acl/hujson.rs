//! HuJSON text to a tree with places (SEMANTICS.md 1): JSON, `//` and `/* */` comments, one comma after the
//! last element. One pass, no copies but of strings with escapes. Reasons are worded as in SEMANTICS.md 1.4.
//! Bounded: nesting, size, 64-bit integers. Duplicate members are faults, found without stopping.

use std::borrow::Cow;
use std::collections::HashSet;

use super::PolicyError;
pub(super) use super::ast::Span;
use super::error::{Faults, Lines, MAX_FAULTS, quote};

/// Larger texts are refused unread.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// Deeper nesting is refused; the reader recurses.
const MAX_DEPTH: usize = 64;
/// Objects up to this size are searched for duplicates without a set.
const FEW_MEMBERS: usize = 12;

/// A value with its place.
#[derive(Debug, Clone)]
pub(super) struct Value<'a> {
    pub(super) span: Span,
    pub(super) kind: Kind<'a>,
}

/// What a value is.
#[derive(Debug, Clone)]
pub(super) enum Kind<'a> {
    Null,
    Bool(bool),
    /// As written; fits 64 bits or a double.
    Number(&'a str),
    String(Cow<'a, str>),
    Array(Vec<Value<'a>>),
    Object(Vec<Member<'a>>),
}

/// One member of an object.
#[derive(Debug, Clone)]
pub(super) struct Member<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) name_span: Span,
    pub(super) value: Value<'a>,
}

impl Value<'_> {
    /// The kind in words, for messages.
    pub(super) const fn noun(&self) -> &'static str {
        match self.kind {
            Kind::Null => "null",
            Kind::Bool(_) => "true or false",
            Kind::Number(_) => "a number",
            Kind::String(_) => "a string",
            Kind::Array(_) => "an array",
            Kind::Object(_) => "an object",
        }
    }

    /// Whether it is null, which everywhere counts as not written.
    pub(super) const fn is_null(&self) -> bool {
        matches!(self.kind, Kind::Null)
    }

    /// The same as plain JSON, for parts that are kept as they are.
    pub(super) fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match &self.kind {
            Kind::Null => Json::Null,
            Kind::Bool(on) => Json::Bool(*on),
            Kind::Number(text) => serde_json::from_str(text).unwrap_or(Json::Null),
            Kind::String(text) => Json::String(text.clone().into_owned()),
            Kind::Array(items) => Json::Array(items.iter().map(Self::to_json).collect()),
            Kind::Object(members) => {
                Json::Object(members.iter().map(|m| (m.name.to_string(), m.value.to_json())).collect())
            }
        }
    }
}

/// Strips one byte order mark.
pub(super) fn body(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Reads `text` (without its byte order mark).
pub(super) fn read(text: &str) -> Result<Value<'_>, Vec<PolicyError>> {
    if text.len() > MAX_BYTES {
        let mut faults = Faults::new(Lines::new(""));
        faults.add(
            "too-large",
            Span::default(),
            format!("the policy has {} bytes, more than the limit of {MAX_BYTES}", text.len()),
            format!("a policy may have at most {MAX_BYTES} bytes (64 MiB)"),
        );
        return Err(faults.finish());
    }
    let mut reader = Reader { text, bytes: text.as_bytes(), at: 0, depth: 0, faults: Vec::new() };
    let root = reader.document();
    let mut found = reader.faults;
    match root {
        Ok(value) if found.is_empty() => return Ok(value),
        Ok(_) => {}
        Err(fault) => found.push(*fault),
    }
    let mut faults = Faults::new(Lines::new(text));
    for fault in found {
        faults.add(fault.code, fault.span, fault.message, fault.hint);
    }
    Err(faults.finish())
}

fn span(start: usize, end: usize) -> Span {
    let clip = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Span { start: clip(start), end: clip(end) }
}

/// What is wrong and where, before lines are counted.
struct Fault {
    code: &'static str,
    span: Span,
    message: String,
    hint: &'static str,
}

type Read<T> = Result<T, Box<Fault>>;

struct Reader<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    /// Faults that do not end the reading.
    faults: Vec<Fault>,
}

const EMPTY_HINT: &str = "write {} for the default policy (everybody reaches everybody), or rules inside { }";
const GRAMMAR_HINT: &str =
    "HuJSON is JSON with // and /* */ comments and a comma allowed after the last element";
const CLOSE_HINT: &str = "the text ends too early: is a closing bracket, brace or quote missing?";

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn fail<T>(&self, at: usize, message: impl Into<String>, hint: &'static str) -> Read<T> {
        Err(Box::new(Fault { code: "syntax", span: span(at, at + 1), message: message.into(), hint }))
    }

    /// The character at `at` stands where none of its kind may.
    fn stray<T>(&self, place: &str) -> Read<T> {
        let found = self.text.get(self.at..).and_then(|t| t.chars().next());
        let Some(c) = found else {
            return self.fail(self.at, format!("parsing {}: unexpected EOF", eof_place(place)), CLOSE_HINT);
        };
        let shown = match c {
            '\'' => "'\\''".to_owned(),
            '\\' => "'\\\\'".to_owned(),
            c if c.is_ascii_graphic() || c.is_alphanumeric() => format!("'{c}'"),
            c => format!("U+{:04X}", u32::from(c)),
        };
        let hint = match c {
            '\'' | '\u{2018}'..='\u{201f}' => "put text in plain double quotes: \"…\"",
            '#' => "comments start with //",
            ',' => "there is a comma too many",
            '"' | '{' | '[' if place.starts_with("after") => "is a comma missing before this?",
            ':' => "is a quote or a comma missing before this?",
            c if place == "at start of object name" && c.is_alphanumeric() => "put the name in double quotes",
            c if !c.is_ascii() || c.is_ascii_control() => {
                "only space, tab, carriage return and line feed may stand between values"
            }
            _ => GRAMMAR_HINT,
        };
        self.fail(self.at, format!("invalid character {shown} {place}"), hint)
    }

    fn document(&mut self) -> Read<Value<'a>> {
        self.blank()?;
        if self.peek().is_none() {
            return self.fail(self.at, "parsing value: unexpected EOF: the text holds no value", EMPTY_HINT);
        }
        let value = self.value()?;
        self.blank()?;
        if self.peek().is_some() { self.stray("after top-level value") } else { Ok(value) }
    }

    /// White space and comments.
    fn blank(&mut self) -> Read<()> {
        loop {
            match self.peek() {
                Some(b' ' | b'\t' | b'\r' | b'\n') => self.at += 1,
                Some(b'/') => match self.bytes.get(self.at + 1) {
                    Some(b'/') => self.line_comment()?,
                    Some(b'*') => {
                        let from = self.at + 2;
                        let rest = self.text.get(from..).unwrap_or_default();
                        let Some(length) = rest.find("*/") else {
                            return self.fail(self.at, "parsing comment: unexpected EOF", "end it with */");
                        };
                        self.at = from + length + 2;
                    }
                    _ => return Ok(()),
                },
                _ => return Ok(()),
            }
        }
    }

    /// Up to the line feed. A carriage return alone ends a comment for some readers and not for others, so
    /// what follows it could be a rule for one and a comment for the other: refused.
    fn line_comment(&mut self) -> Read<()> {
        while let Some(byte) = self.peek() {
            let at = self.at;
            self.at += 1;
            if byte == b'\n' {
                break;
            }
            if byte == b'\r' && !matches!(self.peek(), None | Some(b'\n')) {
                let message = "carriage return without a line feed inside a comment";
                return self.fail(at, message, "end lines with a line feed");
            }
        }
        Ok(())
    }

    fn value(&mut self) -> Read<Value<'a>> {
        let start = self.at;
        let kind = match self.peek() {
            Some(b'"') => Kind::String(self.string()?),
            Some(b'{') => {
                self.deeper()?;
                Kind::Object(self.object()?)
            }
            Some(b'[') => {
                self.deeper()?;
                Kind::Array(self.array()?)
            }
            Some(b'-' | b'+' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z') => self.literal()?,
            _ => return self.stray("at start of value"),
        };
        Ok(Value { span: span(start, self.at), kind })
    }

    fn deeper(&mut self) -> Read<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.fail(
                self.at,
                format!("nested more than {MAX_DEPTH} deep"),
                "a policy never needs that",
            );
        }
        self.at += 1;
        Ok(())
    }

    /// `true`, `false`, `null` or a number.
    fn literal(&mut self) -> Read<Kind<'a>> {
        let start = self.at;
        while matches!(self.peek(), Some(b'-' | b'+' | b'.' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z'))
        {
            self.at += 1;
        }
        let text = self.text.get(start..self.at).unwrap_or_default();
        Ok(match text {
            "null" => Kind::Null,
            "true" => Kind::Bool(true),
            "false" => Kind::Bool(false),
            _ => {
                let numeric = text.bytes().any(|b| b.is_ascii_digit());
                if !numeric || text.len() > 400 {
                    let message = format!("invalid literal: {}", quote(text));
                    return self.fail(start, message, "put text in double quotes");
                }
                if let Err(why) = number(text) {
                    let message = format!("{why}: {}", quote(text));
                    return self.fail(start, message, "write a plain JSON number, or text in double quotes");
                }
                Kind::Number(text)
            }
        })
    }

    /// A string; the quote is next.
    fn string(&mut self) -> Read<Cow<'a, str>> {
        let start = self.at;
        self.at += 1;
        let from = self.at;
        let mut escapes = false;
        loop {
            match self.peek() {
                None => return self.fail(start, "parsing string: unexpected EOF", "close it with \""),
                Some(b'"') => break,
                Some(b'\\') => {
                    escapes = true;
                    // Whether it is a fine escape shows when the string is unescaped.
                    self.at += 2;
                }
                Some(byte @ 0x00..=0x1f) => {
                    let message = format!("control character U+{byte:04X} inside a string");
                    let hint = "is a closing quote missing? Otherwise write \\n, \\t or \\u00XX";
                    return self.fail(self.at, message, hint);
                }
                Some(_) => self.at += 1,
            }
        }
        let raw = self.text.get(from..self.at).unwrap_or_default();
        self.at += 1;
        if !escapes {
            return Ok(Cow::Borrowed(raw));
        }
        // JSON's own escapes, unpaired surrogates refused.
        let whole = self.text.get(start..self.at).unwrap_or_default();
        serde_json::from_str(whole).map(Cow::Owned).or_else(|_| {
            let hint = "escapes are \\\" \\\\ \\/ \\b \\f \\n \\r \\t and \\uXXXX, surrogates in pairs";
            self.fail(start, format!("invalid literal: {}: invalid escape", quote(raw)), hint)
        })
    }

    /// The elements; the bracket is behind.
    fn array(&mut self) -> Read<Vec<Value<'a>>> {
        let mut items = Vec::new();
        loop {
            self.blank()?;
            // Also behind a comma: the one that may trail.
            if self.peek() == Some(b']') {
                break;
            }
            items.push(self.value()?);
            self.blank()?;
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => break,
                _ => return self.stray("after array value (expecting ',' or ']')"),
            }
        }
        self.at += 1;
        self.depth -= 1;
        Ok(items)
    }

    /// The members; the brace is behind.
    fn object(&mut self) -> Read<Vec<Member<'a>>> {
        let mut members: Vec<Member<'a>> = Vec::new();
        let mut seen: HashSet<Cow<'a, str>> = HashSet::new();
        loop {
            self.blank()?;
            match self.peek() {
                Some(b'}') => break,
                Some(b'"') => {}
                _ => return self.stray("at start of object name"),
            }
            let start = self.at;
            let name = self.string()?;
            let name_span = span(start, self.at);
            if members.len() == FEW_MEMBERS {
                seen.extend(members.iter().map(|m| m.name.clone()));
            }
            let twice = if members.len() < FEW_MEMBERS {
                members.iter().any(|m| m.name == name)
            } else {
                !seen.insert(name.clone())
            };
            if twice && self.faults.len() < MAX_FAULTS {
                self.faults.push(Fault {
                    code: "duplicate-key",
                    span: name_span,
                    message: format!("duplicate object member name {}", quote(&name)),
                    hint: "join the two, or remove one",
                });
            }
            self.blank()?;
            match self.peek() {
                Some(b':') => self.at += 1,
                _ => return self.stray("after object name"),
            }
            self.blank()?;
            let value = self.value()?;
            members.push(Member { name, name_span, value });
            self.blank()?;
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => break,
                _ => return self.stray("after object value (expecting ',' or '}')"),
            }
        }
        self.at += 1;
        self.depth -= 1;
        Ok(members)
    }
}

/// What was being read when the text ended.
fn eof_place(place: &str) -> &'static str {
    match place {
        "after object name" => "object after name",
        "after object value (expecting ',' or '}')" => "object after value",
        "after array value (expecting ',' or ']')" => "array after value",
        _ => "value",
    }
}

/// JSON's grammar of numbers; integers must fit 64 bits, others a double.
fn number(text: &str) -> Result<(), &'static str> {
    let bad = Err("invalid literal");
    let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    let (mantissa, exponent) = text.split_once(['e', 'E']).map_or((text, None), |(m, e)| (m, Some(e)));
    let (whole, fraction) = mantissa.split_once('.').map_or((mantissa, None), |(w, f)| (w, Some(f)));
    let unsigned = whole.strip_prefix('-').unwrap_or(whole);
    if !digits(unsigned) || (unsigned.len() > 1 && unsigned.starts_with('0')) {
        return bad;
    }
    if fraction.is_some_and(|f| !digits(f)) {
        return bad;
    }
    if exponent.is_some_and(|e| !digits(e.strip_prefix(['+', '-']).unwrap_or(e))) {
        return bad;
    }
    if fraction.is_none() && exponent.is_none() {
        let fits = text.parse::<i64>().is_ok() || text.parse::<u64>().is_ok();
        return if fits { Ok(()) } else { Err("number does not fit in 64 bits") };
    }
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(()),
        _ => Err("number is too large"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> (u32, u32, String) {
        let faults = read(text).unwrap_err();
        (faults[0].line, faults[0].column, faults[0].message.clone())
    }

    #[test]
    fn comments_and_trailing_commas_are_read() {
        let value = read("// one\n{ \"a\": [1, 2,], /* two */ \"b\": null, } // end").unwrap();
        let Kind::Object(members) = value.kind else {
            panic!("an object was written");
        };
        assert_eq!(members.len(), 2);
    }

    #[test]
    fn the_four_gaps_are_closed() {
        assert_eq!(fault("").0, 1);
        assert_eq!(fault("// only\n/* words */").0, 2);
        assert_eq!(fault("{\n \"a\tb\": 1}"), (2, 4, "control character U+0009 inside a string".to_owned()));
        assert_eq!(fault("{\"a\":1,\n\"a\":2}").1, 1);
        assert_eq!(fault("{\"a\":1,\n\"\\u0061\":2}").0, 2);
        assert!(fault("{\"a\":99999999999999999999}").2.contains("64 bits"));
        assert!(read("{\"a\":18446744073709551615}").is_ok());
    }

    #[test]
    fn lax_spellings_are_refused() {
        for text in [
            "{a: 1}",
            "{'a': 1}",
            "{\"a\": 0x10}",
            "{\"a\": 1 \"b\": 2}",
            "{\"a\": +1}",
            "{\"a\": .5}",
            "{\"a\": NaN}",
            "[1,,2]",
            "[,]",
            "{,}",
            "{} {}",
            "{\"a\": 01}",
            "{\"a\": \"\\x41\"}",
            "{\"a\": \"\\ud800\"}",
            "# no\n{}",
            "/* open",
            "{\u{a0}}",
            "{\u{b}}",
            "// a\r{}",
            "\u{feff}{}",
        ] {
            assert!(read(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn faults_are_worded_as_the_reference_words_them() {
        for (text, place, message) in [
            ("{} x", (1, 4), "invalid character 'x' after top-level value"),
            ("{\n  a: 1}", (2, 3), "invalid character 'a' at start of object name"),
            ("{\"a\" 1}", (1, 6), "invalid character '1' after object name"),
            (
                "{\"a\": 1 \"b\": 2}",
                (1, 9),
                "invalid character '\"' after object value (expecting ',' or '}')",
            ),
            ("[1 2]", (1, 4), "invalid character '2' after array value (expecting ',' or ']')"),
            ("[,]", (1, 2), "invalid character ',' at start of value"),
            ("{\"a\": 'x'}", (1, 7), "invalid character '\\'' at start of value"),
            ("{\"a\": nul}", (1, 7), "invalid literal: \"nul\""),
            ("{\"a\": 1", (1, 8), "parsing object after value: unexpected EOF"),
            ("{\"a\"", (1, 5), "parsing object after name: unexpected EOF"),
            ("[1", (1, 3), "parsing array after value: unexpected EOF"),
            ("[\"a", (1, 2), "parsing string: unexpected EOF"),
            ("{} /* x", (1, 4), "parsing comment: unexpected EOF"),
            ("\u{feff}{}", (1, 1), "invalid character U+FEFF at start of value"),
        ] {
            let (line, column, found) = fault(text);
            assert_eq!(((line, column), found.as_str()), (place, message), "{text}");
        }
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        assert!(fault(&deep).2.contains("nested"));
        let big = " ".repeat(MAX_BYTES + 1);
        assert_eq!(read(&big).unwrap_err()[0].code, "too-large");
    }

    #[test]
    fn one_byte_order_mark_is_stripped() {
        assert_eq!(body("\u{feff}{}"), "{}");
        assert!(read(body("\u{feff}\u{feff}{}")).is_err());
    }

    /// The crate that edits policies reads what we read, and reads the same.
    fn reads_alike(text: &str) {
        use jsonc_parser::{ParseOptions, parse_to_serde_value};
        let Ok(ours) = read(text) else {
            return;
        };
        let options = ParseOptions {
            allow_comments: true,
            allow_loose_object_property_names: false,
            allow_trailing_commas: true,
            allow_missing_commas: false,
            allow_single_quoted_strings: false,
            allow_hexadecimal_numbers: false,
            allow_unary_plus_numbers: false,
            allow_bare_decimal_point_numbers: false,
            allow_non_finite_numbers: false,
            allow_extended_string_escapes: false,
        };
        let theirs: serde_json::Value = parse_to_serde_value(text, &options).unwrap();
        assert_eq!(ours.to_json(), theirs, "{text}");
    }

    fn json() -> impl proptest::strategy::Strategy<Value = serde_json::Value> {
        use proptest::prelude::*;
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            "\\PC{0,8}|[\"\\\\\n\t/a]{0,6}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::btree_map("[a-z\"]{0,3}", inner, 0..6)
                    .prop_map(|m| serde_json::Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]
        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,80}|[\\[\\]{}\",:/*\\\\ \n\r\t0-9a-z-]{0,120}") {
            let _ = read(body(&text));
            reads_alike(&text);
        }

        #[test]
        fn what_was_written_is_read(value in json(), pretty in proptest::prelude::any::<bool>()) {
            let plain = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let text = format!("/* a * b */{} // end", plain.unwrap());
            assert_eq!(read(&text).unwrap().to_json(), value);
            reads_alike(&text);
        }
    }
}
