//! HuJSON text to a tree with places (SEMANTICS.md 1). The grammar is jsonc-parser's with every lax
//! option off; what it still accepts too much of is refused here: empty text, white space and control
//! characters JSON does not know, duplicate members, integers beyond 64 bits, deep nesting, big texts.

use std::collections::HashSet;

use jsonc_parser::ast;
use jsonc_parser::common::Ranged;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};

use super::PolicyError;
pub(super) use super::ast::Span;
use super::error::{Faults, Lines, quote};

/// Larger texts are refused unread.
const MAX_BYTES: usize = 10 * 1024 * 1024;
/// Deeper nesting is refused before the recursive parser sees it.
const MAX_DEPTH: usize = 64;

/// A value with its place.
#[derive(Debug, Clone)]
pub(super) struct Value {
    pub(super) span: Span,
    pub(super) kind: Kind,
}

/// What a value is.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    Number,
    String(String),
    Array(Vec<Value>),
    Object(Vec<Member>),
}

/// One member of an object.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) name_span: Span,
    pub(super) value: Value,
}

impl Value {
    /// The kind in words, for messages.
    pub(super) const fn noun(&self) -> &'static str {
        match self.kind {
            Kind::Null => "null",
            Kind::Bool(_) => "true or false",
            Kind::Number => "a number",
            Kind::String(_) => "a string",
            Kind::Array(_) => "an array",
            Kind::Object(_) => "an object",
        }
    }

    /// Whether the value says nothing: null, false, zero-length text, array or object.
    pub(super) fn is_void(&self) -> bool {
        match &self.kind {
            Kind::Null => true,
            Kind::Bool(on) => !on,
            Kind::Number => false,
            Kind::String(s) => s.is_empty(),
            Kind::Array(items) => items.is_empty(),
            Kind::Object(members) => members.is_empty(),
        }
    }
}

/// Strips one byte order mark.
pub(super) fn body(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Reads `text` (without its byte order mark).
pub(super) fn read(text: &str) -> Result<Value, Vec<PolicyError>> {
    if text.len() > MAX_BYTES {
        let mut faults = Faults::new(Lines::new(""));
        faults.add(
            "too-large",
            Span::default(),
            format!("the policy has {} bytes", text.len()),
            format!("a policy may have at most {MAX_BYTES} bytes"),
        );
        return Err(faults.finish());
    }
    let mut faults = Faults::new(Lines::new(text));
    if let Err((at, message, hint)) = scan(text) {
        faults.add("syntax", span(at, at + 1), message, hint);
        return Err(faults.finish());
    }
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
    match parse_to_ast(text, &CollectOptions::default(), &options) {
        Err(error) => {
            let range = error.range();
            let reason = error.kind().to_string();
            faults.add(
                "syntax",
                span(range.start, range.end),
                lower_first(&reason),
                "HuJSON is JSON with // and /* */ comments and a comma allowed after the last element",
            );
        }
        Ok(parsed) => match parsed.value {
            None => faults.add("syntax", span(text.len(), text.len()), EMPTY, EMPTY_HINT),
            Some(value) => {
                let value = convert(value, &mut faults);
                if faults.is_empty() {
                    return Ok(value);
                }
            }
        },
    }
    Err(faults.finish())
}

const EMPTY: &str = "parsing value: unexpected EOF: the text holds no value";
const EMPTY_HINT: &str = "write {} for the default policy (everybody reaches everybody), or rules inside { }";

fn span(start: usize, end: usize) -> Span {
    let clip = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Span { start: clip(start), end: clip(end) }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

type ScanFault = (usize, String, &'static str);

/// One pass over the bytes for what the parser is too lenient about. It knows strings and comments
/// and nothing else of the grammar.
fn scan(text: &str) -> Result<(), ScanFault> {
    let mut bytes = text.bytes().enumerate().peekable();
    let mut depth = 0usize;
    let mut any = false;
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => {}
            b'"' => {
                any = true;
                scan_string(&mut bytes)?;
            }
            b'/' if matches!(bytes.peek(), Some((_, b'/'))) => scan_line(&mut bytes)?,
            b'/' if matches!(bytes.peek(), Some((_, b'*'))) => {
                bytes.next();
                let mut star = false;
                for (_, byte) in bytes.by_ref() {
                    if star && byte == b'/' {
                        break;
                    }
                    star = byte == b'*';
                }
            }
            b'{' | b'[' => {
                any = true;
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err((
                        at,
                        format!("nested more than {MAX_DEPTH} deep"),
                        "a policy never needs that",
                    ));
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            0x00..=0x1f | 0x7f => {
                return Err((
                    at,
                    format!("invalid character U+{byte:04X} between values"),
                    "only space, tab, carriage return and line feed may stand between values",
                ));
            }
            0x80.. => {
                let c = text.get(at..).and_then(|t| t.chars().next()).unwrap_or('?');
                return Err((
                    at,
                    format!("invalid character U+{:04X} between values", u32::from(c)),
                    "put text in double quotes; blanks outside of strings must be plain spaces",
                ));
            }
            _ => any = true,
        }
    }
    if any { Ok(()) } else { Err((text.len(), EMPTY.to_owned(), EMPTY_HINT)) }
}

type Bytes<'a> = std::iter::Peekable<std::iter::Enumerate<std::str::Bytes<'a>>>;

/// Up to the closing quote. An unclosed string is the parser's to tell.
fn scan_string(bytes: &mut Bytes<'_>) -> Result<(), ScanFault> {
    let mut escaped = false;
    for (at, byte) in bytes.by_ref() {
        match byte {
            0x00..=0x1f => {
                return Err((
                    at,
                    format!("control character U+{byte:04X} inside a string"),
                    "is a closing quote missing? Otherwise write \\n, \\t or \\u00XX",
                ));
            }
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Ok(()),
            _ => {}
        }
    }
    Ok(())
}

/// Up to the line feed. A carriage return alone ends a comment for some readers and not for others,
/// so what follows it could be a rule for one and a comment for the other: refused.
fn scan_line(bytes: &mut Bytes<'_>) -> Result<(), ScanFault> {
    while let Some((at, byte)) = bytes.next() {
        if byte == b'\n' {
            break;
        }
        if byte == b'\r' && !matches!(bytes.peek(), None | Some((_, b'\n'))) {
            return Err((
                at,
                "carriage return without a line feed inside a comment".to_owned(),
                "end lines with a line feed",
            ));
        }
    }
    Ok(())
}

/// The parser's tree to ours; depth is bounded by [`scan`].
fn convert(value: ast::Value<'_>, faults: &mut Faults) -> Value {
    let range = value.range();
    let here = span(range.start, range.end);
    let kind = match value {
        ast::Value::NullKeyword(_) => Kind::Null,
        ast::Value::BooleanLit(lit) => Kind::Bool(lit.value),
        ast::Value::StringLit(lit) => Kind::String(lit.value.into_owned()),
        ast::Value::NumberLit(lit) => {
            let integer = lit.value.bytes().all(|b| b == b'-' || b.is_ascii_digit());
            let fits = lit.value.parse::<i64>().is_ok() || lit.value.parse::<u64>().is_ok();
            if integer && !fits {
                faults.add(
                    "syntax",
                    here,
                    format!("number {} does not fit in 64 bits", quote(lit.value)),
                    "write a smaller number",
                );
            }
            Kind::Number
        }
        ast::Value::Array(array) => {
            Kind::Array(array.elements.into_iter().map(|v| convert(v, faults)).collect())
        }
        ast::Value::Object(object) => {
            let mut seen: HashSet<String> = HashSet::new();
            let mut members = Vec::with_capacity(object.properties.len());
            for property in object.properties {
                let range = property.name.range();
                let name_span = span(range.start, range.end);
                let name = property.name.into_string();
                if !seen.insert(name.clone()) {
                    faults.add(
                        "duplicate-key",
                        name_span,
                        format!("duplicate object member name {}", quote(&name)),
                        "join the two, or remove one",
                    );
                }
                members.push(Member { name, name_span, value: convert(property.value, faults) });
            }
            Kind::Object(members)
        }
    };
    Value { span: here, kind }
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

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]
        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,80}|[\\[\\]{}\",:/*\\\\ \n\r\t0-9a-z-]{0,120}") {
            let _ = read(body(&text));
        }
    }
}
