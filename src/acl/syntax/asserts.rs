//! `tests` and `sshTests` (SEMANTICS.md 14, 15): shapes only. Their words are read when they run; a
//! shape that is wrong has the text of a test that fails, as with the hosted service.

use std::collections::BTreeMap;

use super::fields::{Shape, array, fields, map, string};
use crate::acl::ast::{Span, Spanned, SshTest, Test};
use crate::acl::error::Faults;
use crate::acl::hujson::{Kind, Value};

const TEST: Shape = Shape {
    what: "a test",
    known: &["src", "accept", "deny", "proto", "srcPostureAttrs"],
    old: &[],
    comments: false,
    example: "such as { \"src\": \"alice@\", \"accept\": [\"tag:server:22\"] }",
};
const SSH_TEST: Shape = Shape {
    what: "an ssh test",
    known: &["src", "dst", "accept", "deny", "check"],
    old: &[],
    comments: false,
    example: "such as { \"src\": \"alice@\", \"dst\": [\"tag:server\"], \"accept\": [\"root\"] }",
};
const FAILED: &str = "test(s) failed";

pub(super) fn test(value: &Value<'_>, faults: &mut Faults) -> Option<Test> {
    let found = shaped(value, &TEST, faults)?;
    let mut posture_attrs = BTreeMap::new();
    for member in found.get("srcPostureAttrs").map_or(&[][..], |v| map(v, "srcPostureAttrs", faults)) {
        match &member.value.kind {
            Kind::Bool(_) | Kind::Number(_) | Kind::String(_) => {
                posture_attrs.insert(member.name.clone().into_owned(), member.value.to_json());
            }
            _ => faults.add(
                "wrong-type",
                member.value.span,
                format!(
                    "a posture attribute is a text, a number, true or false, not {}",
                    member.value.noun()
                ),
                "such as { \"node:os\": \"linux\" }",
            ),
        }
    }
    Some(Test {
        span: value.span,
        src: found.get("src").and_then(|v| word(v, "test(s) failed: src of a test", faults)),
        proto: found
            .get("proto")
            .and_then(|v| word(v, "test(s) failed: proto of a test", faults))
            .filter(|word| !word.value.is_empty()),
        accept: words(found.get("accept"), "test(s) failed: accept of a test", faults),
        deny: words(found.get("deny"), "test(s) failed: deny of a test", faults),
        posture_attrs,
    })
}

pub(super) fn ssh_test(value: &Value<'_>, faults: &mut Faults) -> Option<SshTest> {
    let found = shaped(value, &SSH_TEST, faults)?;
    Some(SshTest {
        span: value.span,
        src: found.get("src").and_then(|v| word(v, "test(s) failed: src of a test", faults)),
        dst: words(found.get("dst"), "test(s) failed: dst of a test", faults),
        accept: words(found.get("accept"), "test(s) failed: accept of a test", faults),
        deny: words(found.get("deny"), "test(s) failed: deny of a test", faults),
        check: words(found.get("check"), "test(s) failed: check of a test", faults),
    })
}

fn shaped<'v, 'a>(
    value: &'v Value<'a>,
    shape: &Shape,
    faults: &mut Faults,
) -> Option<super::fields::Fields<'v, 'a>> {
    if !matches!(value.kind, Kind::Object(_)) {
        let message = format!("{FAILED}: {} is an object, not {}", shape.what, value.noun());
        faults.add("wrong-type", value.span, message, shape.example);
        return None;
    }
    fields(value, shape, faults)
}

/// A word, trimmed.
fn word(value: &Value<'_>, what: &str, faults: &mut Faults) -> Option<Spanned<String>> {
    let place: Span = value.span;
    let text = string(value, what, faults)?;
    Some(Spanned { value: text.to_owned(), span: place })
}

fn words(value: Option<&Value<'_>>, what: &str, faults: &mut Faults) -> Vec<Spanned<String>> {
    let Some(value) = value else {
        return Vec::new();
    };
    let items = array(value, what, faults).unwrap_or_default();
    items.iter().filter_map(|item| word(item, what, faults)).collect()
}
