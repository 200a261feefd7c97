//! `postures`, their conditions, and the lists that name them (SEMANTICS.md 3.5). A condition is
//! `attribute operator value`: `node:os == 'linux'`, `custom:tier IN ['a', 'b']`, `ip:country IS SET`.

use std::collections::BTreeMap;

use super::fields::{array, map, string};
use crate::acl::ast::{AttrValue, Compare, Condition, Spanned};
use crate::acl::error::{Faults, quote};
use crate::acl::hujson::Value;

/// Names with their conditions.
type Postures = BTreeMap<String, Spanned<Vec<Spanned<Condition>>>>;

pub(super) fn postures(value: &Value<'_>, faults: &mut Faults) -> Postures {
    let mut out = BTreeMap::new();
    for member in map(value, "postures", faults) {
        let name = member.name.as_ref();
        if name.strip_prefix("posture:").is_none_or(str::is_empty) {
            faults.add(
                "posture-name",
                member.name_span,
                format!("posture name {} must start with posture:", quote(name)),
                format!("write \"posture:{}\"", name.trim_start_matches("posture:")),
            );
            continue;
        }
        let what = format!("postures[{}]", quote(name));
        let mut conditions = Vec::new();
        for item in array(&member.value, &what, faults).unwrap_or_default() {
            let Some(text) = string(item, "a condition", faults) else {
                continue;
            };
            match condition(text) {
                Ok(value) => conditions.push(Spanned { value, span: item.span }),
                Err(why) => faults.add(
                    "posture",
                    item.span,
                    format!("{what}: {}: {why}", quote(text)),
                    "write it as node:os == 'linux', node:osVersion >= '13.4', custom:tier IN ['a', 'b'] or ip:country IS SET",
                ),
            }
        }
        out.insert(name.to_owned(), Spanned { value: conditions, span: member.name_span });
    }
    out
}

/// A list of names of postures.
pub(super) fn names(value: &Value<'_>, what: &str, faults: &mut Faults) -> Option<Vec<Spanned<String>>> {
    let mut out = Vec::new();
    for item in array(value, what, faults)? {
        let Some(text) = string(item, "the name of a posture", faults) else {
            continue;
        };
        if text.strip_prefix("posture:").is_some_and(|n| !n.is_empty()) {
            out.push(Spanned { value: text.to_owned(), span: item.span });
        } else {
            faults.add(
                "posture-name",
                item.span,
                format!("{what}: {} is no posture", quote(text)),
                "name an entry of \"postures\", such as posture:trusted",
            );
        }
    }
    Some(out)
}

/// Reads one condition; the error says what is wrong.
pub(super) fn condition(text: &str) -> Result<Condition, String> {
    let (attribute, rest) = attribute(text)?;
    let (compare, rest) = operator(rest)?;
    let (values, rest) = match compare {
        Compare::IsSet | Compare::NotSet => (Vec::new(), rest),
        Compare::In | Compare::NotIn => list(rest)?,
        _ => value(rest).map(|(one, rest)| (vec![one], rest))?,
    };
    if !rest.trim().is_empty() {
        return Err(format!("unexpected {} behind the condition", quote(rest.trim())));
    }
    let ordered =
        matches!(compare, Compare::Less | Compare::LessOrEqual | Compare::Greater | Compare::GreaterOrEqual);
    if ordered && values.iter().any(|v| matches!(v, AttrValue::Bool(_))) {
        return Err("true and false have no order".to_owned());
    }
    Ok(Condition { attribute: attribute.to_owned(), compare, values })
}

fn attribute(text: &str) -> Result<(&str, &str), String> {
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    let end = text.find(|c: char| !part(c) && c != ':').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    match name.split_once(':') {
        Some((space, name)) if !space.is_empty() && !name.is_empty() && !name.contains(':') => {}
        _ => return Err(format!("{} is no attribute (namespace:name)", quote(name))),
    }
    Ok((name, rest))
}

fn operator(text: &str) -> Result<(Compare, &str), String> {
    const SIGNS: [(&str, Compare); 6] = [
        ("==", Compare::Equal),
        ("!=", Compare::NotEqual),
        ("<=", Compare::LessOrEqual),
        (">=", Compare::GreaterOrEqual),
        ("<", Compare::Less),
        (">", Compare::Greater),
    ];
    const WORDS: [(&str, &str, Compare); 3] =
        [("IS", "SET", Compare::IsSet), ("NOT", "SET", Compare::NotSet), ("NOT", "IN", Compare::NotIn)];
    let rest = text.trim_start();
    for (sign, compare) in SIGNS {
        if let Some(rest) = rest.strip_prefix(sign) {
            return Ok((compare, rest));
        }
    }
    // Words need a blank before them.
    if rest.len() < text.len() {
        let (first, after) = word(rest);
        if first.eq_ignore_ascii_case("IN") {
            return Ok((Compare::In, after));
        }
        let (second, after) = word(after);
        for (one, two, compare) in WORDS {
            if first.eq_ignore_ascii_case(one) && second.eq_ignore_ascii_case(two) {
                return Ok((compare, after));
            }
        }
    }
    let shown: String = rest.chars().take(20).collect();
    Err(format!(
        "no operator at {}; there are ==, !=, <, <=, >, >=, IN, NOT IN, IS SET and NOT SET",
        quote(&shown)
    ))
}

/// The next word of letters.
fn word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    text.split_at(text.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(text.len()))
}

fn list(text: &str) -> Result<(Vec<AttrValue>, &str), String> {
    let Some(mut rest) = text.trim_start().strip_prefix('[') else {
        return Err("IN wants a list such as ['a', 'b']".to_owned());
    };
    let mut out = Vec::new();
    loop {
        if let Some(behind) = rest.trim_start().strip_prefix(']')
            && !out.is_empty()
        {
            return Ok((out, behind));
        }
        let (one, after) = value(rest)?;
        out.push(one);
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(after) => after,
            None if after.starts_with(']') => after,
            None => return Err("a list goes on with , or ends with ]".to_owned()),
        };
    }
}

fn value(text: &str) -> Result<(AttrValue, &str), String> {
    let text = text.trim_start();
    if let Some(rest) = text.strip_prefix('\'') {
        return quoted(rest);
    }
    let end = text.find(|c: char| c.is_whitespace() || matches!(c, ',' | ']')).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let value = match word {
        "" => return Err("a value is missing".to_owned()),
        "true" => AttrValue::Bool(true),
        "false" => AttrValue::Bool(false),
        _ => match word.parse::<f64>() {
            Ok(number)
                if number.is_finite() && word.starts_with(|c: char| c == '-' || c.is_ascii_digit()) =>
            {
                AttrValue::Number(number)
            }
            _ => return Err(format!("{} is no value: texts stand in single quotes", quote(word))),
        },
    };
    Ok((value, rest))
}

/// A text behind its first quote.
fn quoted(text: &str) -> Result<(AttrValue, &str), String> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\'' => return Ok((AttrValue::Text(out), text.get(at + 1..).unwrap_or_default())),
            '\\' => match chars.next() {
                Some((_, c @ ('\'' | '\\'))) => out.push(c),
                _ => return Err("behind \\ stands ' or \\".to_owned()),
            },
            c => out.push(c),
        }
    }
    Err("the closing ' is missing".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_of_every_kind_are_read() {
        let read = |t: &str| condition(t).unwrap();
        let one = read("node:os == 'linux'");
        assert_eq!((one.attribute.as_str(), one.compare), ("node:os", Compare::Equal));
        assert_eq!(one.values, [AttrValue::Text("linux".into())]);
        assert_eq!(read("node:osVersion>='13.4.0'").compare, Compare::GreaterOrEqual);
        assert_eq!(read("custom:level < 3").values, [AttrValue::Number(3.0)]);
        assert_eq!(read("node:tsAutoUpdate != false").values, [AttrValue::Bool(false)]);
        assert_eq!(read("ip:country IN ['DE', 'FR',]").values.len(), 2);
        assert_eq!(read("ip:country NOT IN ['it\\'s', 4]").compare, Compare::NotIn);
        assert_eq!(read("custom:x IS SET").compare, Compare::IsSet);
        assert_eq!(read("custom:x  not  set ").compare, Compare::NotSet);
    }

    #[test]
    fn bad_conditions_are_refused() {
        for bad in [
            "",
            "os == 'linux'",
            "node:os",
            "node:os = 'linux'",
            "node:os == linux",
            "node:os == 'linux",
            "node:os == 'a' 'b'",
            "node:os == \"linux\"",
            "node:os IN 'a'",
            "node:os IN []",
            "node:os IN ['a' 'b']",
            "node:os IN ['a'",
            "node:os IS NOT SET",
            "node:os IS SET 1",
            "node:a:b == 1",
            "node:x < true",
            "node:x == inf",
            "node:x == 'a\\n'",
            ":x == 1",
            "node:xIS SET",
        ] {
            assert!(condition(bad).is_err(), "{bad:?} was accepted");
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]
        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,40}|node:x (==|IN|NOT|<)[ \\[\\]'a0\\\\,]{0,20}") {
            let _ = condition(&text);
        }
    }
}
