//! Objects with known members, arrays and plain values: the shapes every section is made of. Members match
//! in any case, as the hosted service's do (SEMANTICS.md 1.2); another case than ours is noted.

use crate::acl::error::{Faults, did_you_mean, quote};
use crate::acl::hujson::{Kind, Member, Value};

/// No object of the language has more members.
const MAX_FIELDS: usize = 20;

/// What an object may hold.
pub(super) struct Shape {
    /// In words: `a rule`.
    pub(super) what: &'static str,
    /// The members, as we write them.
    pub(super) known: &'static [&'static str],
    /// Old spellings and what they mean.
    pub(super) old: &'static [(&'static str, &'static str)],
    /// Members that start with `#` are comments.
    pub(super) comments: bool,
    /// How to write one, for hints.
    pub(super) example: &'static str,
}

/// The members found.
pub(super) struct Fields<'v, 'a> {
    known: &'static [&'static str],
    slots: [Option<&'v Member<'a>>; MAX_FIELDS],
}

impl<'v, 'a> Fields<'v, 'a> {
    /// A member's value; null is absent.
    pub(super) fn get(&self, name: &str) -> Option<&'v Value<'a>> {
        let at = self.known.iter().position(|k| *k == name)?;
        let member = self.slots.get(at).copied().flatten()?;
        (!member.value.is_null()).then_some(&member.value)
    }
}

/// Reads an object of a known shape.
pub(super) fn fields<'v, 'a>(
    value: &'v Value<'a>,
    shape: &Shape,
    faults: &mut Faults,
) -> Option<Fields<'v, 'a>> {
    let Kind::Object(members) = &value.kind else {
        faults.add(
            "wrong-type",
            value.span,
            format!("{} is an object, not {}", shape.what, value.noun()),
            shape.example,
        );
        return None;
    };
    let mut found = Fields { known: shape.known, slots: [None; MAX_FIELDS] };
    for member in members {
        if shape.comments && member.name.starts_with('#') {
            continue;
        }
        let Some(at) = place(member, shape, faults) else {
            continue;
        };
        let Some(slot) = found.slots.get_mut(at) else {
            continue;
        };
        // The same name twice was told by the reader.
        if let Some(first) = *slot
            && first.name != member.name
        {
            faults.add(
                "duplicate-key",
                member.name_span,
                format!("{} is the same field as {}", quote(&member.name), quote(&first.name)),
                "join the two, or remove one",
            );
        }
        *slot = Some(member);
    }
    Some(found)
}

/// The member's place among the known ones.
fn place(member: &Member<'_>, shape: &Shape, faults: &mut Faults) -> Option<usize> {
    if let Some(at) = shape.known.iter().position(|k| *k == member.name) {
        return Some(at);
    }
    let old = shape.old.iter().find(|(old, _)| old.eq_ignore_ascii_case(&member.name));
    let wanted = old.map_or(member.name.as_ref(), |(_, new)| new);
    if let Some(at) = shape.known.iter().position(|k| k.eq_ignore_ascii_case(wanted)) {
        let now = shape.known.get(at).copied().unwrap_or_default();
        faults.note(
            "old-spelling",
            member.name_span,
            format!("{} is an old spelling of {}", quote(&member.name), quote(now)),
            format!("write \"{now}\""),
        );
        return Some(at);
    }
    let hint = match foreign(&member.name) {
        Some(hint) => hint.to_owned(),
        None => {
            let near = faults.suggest(&member.name, shape.known.iter().copied());
            did_you_mean(near, &format!("{} has {}", shape.what, shape.known.join(", ")))
        }
    };
    faults.add("unknown-field", member.name_span, format!("unknown field: {}", quote(&member.name)), hint);
    None
}

/// Members that people bring from elsewhere.
fn foreign(name: &str) -> Option<&'static str> {
    Some(match name {
        "extraDNSRecords" | "extra_records" => "extra DNS records belong into the server's configuration",
        "allow" => "what must be reachable is called accept",
        "user" => "who tries is called src",
        "sources" => "sources are called src",
        "destinations" | "destination" => "destinations are called dst",
        _ => return None,
    })
}

/// The elements of an array; null is an absent one.
pub(super) fn array<'v, 'a>(
    value: &'v Value<'a>,
    what: &str,
    faults: &mut Faults,
) -> Option<&'v [Value<'a>]> {
    match &value.kind {
        Kind::Array(items) => Some(items),
        Kind::Null => None,
        _ => {
            faults.add(
                "wrong-type",
                value.span,
                format!("{what} is an array, not {}", value.noun()),
                "put the elements inside [ ]",
            );
            None
        }
    }
}

/// The members of a map of names.
pub(super) fn map<'v, 'a>(value: &'v Value<'a>, what: &str, faults: &mut Faults) -> &'v [Member<'a>] {
    match &value.kind {
        Kind::Object(members) => members,
        Kind::Null => &[],
        _ => {
            faults.add(
                "wrong-type",
                value.span,
                format!("{what} is an object, not {}", value.noun()),
                "write it as { \"name\": … }",
            );
            &[]
        }
    }
}

/// A string as written.
pub(super) fn raw<'v>(value: &'v Value<'_>, what: &str, faults: &mut Faults) -> Option<&'v str> {
    if let Kind::String(text) = &value.kind {
        return Some(text);
    }
    faults.add(
        "wrong-type",
        value.span,
        format!("{what} is a string, not {}", value.noun()),
        "put it in double quotes",
    );
    None
}

/// A string, trimmed (SEMANTICS.md 1.3).
pub(super) fn string<'v>(value: &'v Value<'_>, what: &str, faults: &mut Faults) -> Option<&'v str> {
    raw(value, what, faults).map(str::trim)
}

/// Yes or no; absent is no.
pub(super) fn flag(value: Option<&Value<'_>>, what: &str, faults: &mut Faults) -> bool {
    let Some(value) = value else {
        return false;
    };
    if let Kind::Bool(on) = value.kind {
        return on;
    }
    faults.add(
        "wrong-type",
        value.span,
        format!("{what} is true or false, not {}", value.noun()),
        "write true or false without quotes",
    );
    false
}
