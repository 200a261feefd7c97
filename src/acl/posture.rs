//! Device posture: whether what is known of a device satisfies a rule's `srcPosture` (SEMANTICS.md 3.5).
//! A posture's conditions must all hold, any one of a rule's postures is enough. What is not known, not
//! comparable or not defined does not hold: posture only ever takes access away.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::ast::{AttrValue, Compare, Condition, File, Spanned, SrcPosture};

/// What is known of a device, by name: `node:os`, `custom:x`.
pub(super) type Attributes = BTreeMap<String, AttrValue>;

/// The postures of which one must hold for a rule's sources; none is no demand.
pub(super) fn for_rule<'a>(file: &'a File, src_posture: &'a SrcPosture) -> &'a [Spanned<String>] {
    src_posture.as_deref().unwrap_or(&file.default_src_posture)
}

/// Whether a rule with `src_posture` takes a device with `attributes` as a source.
pub(super) fn holds(file: &File, src_posture: &SrcPosture, attributes: &Attributes) -> bool {
    let names = for_rule(file, src_posture);
    names.is_empty() || satisfies(file, names, attributes)
}

/// Whether `attributes` satisfy any posture of `names`.
pub(super) fn satisfies(file: &File, names: &[Spanned<String>], attributes: &Attributes) -> bool {
    let one = |name: &Spanned<String>| {
        let posture = file.postures.get(&name.value);
        posture.is_some_and(|p| p.value.iter().all(|c| condition(&c.value, attributes)))
    };
    names.iter().any(one)
}

/// Whether one condition holds.
pub(super) fn condition(condition: &Condition, attributes: &Attributes) -> bool {
    let name = condition.attribute.as_str();
    let known = attributes.get(name);
    let Some(known) = known else {
        return condition.compare == Compare::NotSet;
    };
    // With the first value; whether there is one was checked when the text was read.
    let first = || condition.values.first().and_then(|wanted| compare(name, known, wanted));
    let ordered = |fits: fn(Ordering) -> bool| first().is_some_and(fits);
    match condition.compare {
        Compare::IsSet => true,
        Compare::NotSet => false,
        Compare::Equal => first() == Some(Ordering::Equal),
        // Values of different kinds are not comparable, and that is no access either.
        Compare::NotEqual => ordered(Ordering::is_ne),
        Compare::Less => ordered(Ordering::is_lt),
        Compare::LessOrEqual => ordered(Ordering::is_le),
        Compare::Greater => ordered(Ordering::is_gt),
        Compare::GreaterOrEqual => ordered(Ordering::is_ge),
        Compare::In => condition.values.iter().any(|v| compare(name, known, v) == Some(Ordering::Equal)),
        Compare::NotIn => {
            condition.values.iter().all(|v| compare(name, known, v).is_some_and(Ordering::is_ne))
        }
    }
}

/// The order of two values; `None` when they cannot be compared.
fn compare(name: &str, known: &AttrValue, wanted: &AttrValue) -> Option<Ordering> {
    let versions = is_version(name);
    match (known, wanted) {
        (AttrValue::Text(known), AttrValue::Text(wanted)) => Some(text_order(versions, known, wanted)),
        // `node:osVersion >= 13` is meant as a version.
        (AttrValue::Text(known), AttrValue::Number(wanted)) if versions => {
            Some(text_order(true, known, &wanted.to_string()))
        }
        (AttrValue::Number(known), AttrValue::Number(wanted)) => known.partial_cmp(wanted),
        (AttrValue::Bool(known), AttrValue::Bool(wanted)) => Some(known.cmp(wanted)),
        _ => None,
    }
}

/// Whether an attribute is a version by its name: `node:tsVersion`, `node:osVersion`, a vendor's.
fn is_version(name: &str) -> bool {
    name.ends_with("Version") || name.ends_with(":version")
}

/// Versions by their numbers, other texts by their letters.
fn text_order(versions: bool, known: &str, wanted: &str) -> Ordering {
    if known == wanted {
        return Ordering::Equal;
    }
    match (numbers(known), numbers(wanted)) {
        (Some((known, known_rest)), Some((wanted, wanted_rest)))
            if versions || (known_rest.is_empty() && wanted_rest.is_empty()) =>
        {
            let order = dotted(&known, &wanted);
            // A condition that names a build (`5.15.0-76`) means that build; one that does not means all.
            if order.is_eq() && !wanted_rest.is_empty() { known_rest.cmp(wanted_rest) } else { order }
        }
        _ => known.cmp(wanted),
    }
}

/// The leading dotted numbers of a text, as digits without leading zeros, and what follows.
fn numbers(text: &str) -> Option<(Vec<&str>, &str)> {
    let text = text.trim();
    let text = text.strip_prefix(['v', 'V']).unwrap_or(text);
    let end = text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len());
    let (head, rest) = text.split_at_checked(end)?;
    let parts: Vec<&str> = head.split('.').collect();
    if parts.iter().any(|p| p.is_empty()) {
        return None;
    }
    Some((parts.into_iter().map(|p| p.trim_start_matches('0')).collect(), rest))
}

/// Number by number; what is missing is zero. Digits without leading zeros: the longer is the greater.
fn dotted(a: &[&str], b: &[&str]) -> Ordering {
    let count = a.len().max(b.len());
    let part = |list: &[&str], at: usize| -> (usize, String) {
        let digits = list.get(at).copied().unwrap_or("");
        (digits.len(), digits.to_owned())
    };
    (0..count).map(|at| part(a, at).cmp(&part(b, at))).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use super::super::ast::Span;
    use super::*;
    use AttrValue::{Bool, Number, Text};

    fn word<T>(value: T) -> Spanned<T> {
        Spanned { value, span: Span::default() }
    }

    fn test(attribute: &str, known: Option<AttrValue>, compare: Compare, values: &[AttrValue]) -> bool {
        let attributes = known.map(|k| (attribute.to_owned(), k)).into_iter().collect();
        let wanted = Condition { attribute: attribute.to_owned(), compare, values: values.to_vec() };
        condition(&wanted, &attributes)
    }

    fn text(text: &str) -> AttrValue {
        Text(text.to_owned())
    }

    #[test]
    fn versions_compare_by_their_numbers() {
        let at_least = |known: &str, wanted: &str| {
            test("node:tsVersion", Some(text(known)), Compare::GreaterOrEqual, &[text(wanted)])
        };
        assert!(at_least("1.102.5", "1.9"));
        assert!(at_least("1.102.5-t0123456-g89abcde", "1.102.5"));
        assert!(at_least("1.40", "1.40.0"));
        assert!(at_least("100000000000000000000000.1", "99999999999999999999999.9"));
        assert!(!at_least("1.9.9", "1.10"));
        assert!(!at_least("unknown", "~"));
        let os = |compare, wanted| test("node:osVersion", Some(text("13.4.1")), compare, &[wanted]);
        assert!(os(Compare::GreaterOrEqual, Number(13.0)));
        assert!(os(Compare::Less, Number(13.5)));
        assert!(os(Compare::NotEqual, text("13.4")));
    }

    #[test]
    fn a_build_is_named_or_not() {
        let equal = |known: &str, wanted: &str| {
            test("node:osVersion", Some(text(known)), Compare::Equal, &[text(wanted)])
        };
        assert!(equal("5.15.0-76-generic", "5.15.0"));
        assert!(equal("5.15.0-76-generic", "5.15.0-76-generic"));
        assert!(!equal("5.15.0-77-generic", "5.15.0-76-generic"));
    }

    #[test]
    fn other_texts_compare_by_their_letters() {
        let before = |a: &str, b: &str| test("custom:day", Some(text(a)), Compare::Less, &[text(b)]);
        assert!(before("2024-01-01", "2024-02-01"));
        assert!(!before("2024-02-01", "2024-01-01"));
        assert!(before("9", "10"), "two plain numbers in quotes are numbers");
    }

    #[test]
    fn what_is_unset_or_of_another_kind_does_not_hold() {
        for compare in [
            Compare::Equal,
            Compare::NotEqual,
            Compare::Less,
            Compare::LessOrEqual,
            Compare::Greater,
            Compare::GreaterOrEqual,
            Compare::In,
            Compare::NotIn,
        ] {
            assert!(!test("custom:x", None, compare, &[text("a")]), "{compare:?} of an unset attribute");
            assert!(!test("custom:x", Some(Bool(true)), compare, &[text("a")]), "{compare:?} of two kinds");
            assert!(!test("custom:x", Some(Number(f64::NAN)), compare, &[Number(1.0)]), "{compare:?} of NaN");
        }
        assert!(!test("custom:x", None, Compare::IsSet, &[]));
        assert!(test("custom:x", None, Compare::NotSet, &[]));
        assert!(test("custom:x", Some(Bool(false)), Compare::IsSet, &[]));
        assert!(!test("custom:x", Some(Bool(false)), Compare::NotSet, &[]));
    }

    #[test]
    fn lists_numbers_and_yes_or_no() {
        let os = [text("linux"), text("macos")];
        assert!(test("node:os", Some(text("macos")), Compare::In, &os));
        assert!(!test("node:os", Some(text("macos")), Compare::NotIn, &os));
        assert!(test("node:os", Some(text("windows")), Compare::NotIn, &os));
        assert!(!test("node:os", Some(text("windows")), Compare::In, &os));
        assert!(test("custom:n", Some(Number(3.0)), Compare::Greater, &[Number(2.5)]));
        assert!(test("node:tsAutoUpdate", Some(Bool(true)), Compare::Equal, &[Bool(true)]));
        assert!(!test("node:tsAutoUpdate", Some(Bool(false)), Compare::Equal, &[Bool(true)]));
    }

    #[test]
    fn all_conditions_of_any_posture() {
        let is = |attribute: &str, value: &str| {
            word(Condition {
                attribute: attribute.into(),
                compare: Compare::Equal,
                values: vec![text(value)],
            })
        };
        let mut file = File::default();
        file.postures.insert("posture:a".into(), word(vec![is("node:os", "linux"), is("custom:tier", "1")]));
        file.postures.insert("posture:b".into(), word(vec![is("node:os", "macos")]));
        let attributes = |os: &str, tier: &str| {
            Attributes::from([("node:os".to_owned(), text(os)), ("custom:tier".to_owned(), text(tier))])
        };
        let both = Some(vec![word("posture:a".to_owned()), word("posture:b".to_owned())]);
        assert!(holds(&file, &both, &attributes("linux", "1")));
        assert!(holds(&file, &both, &attributes("macos", "2")));
        assert!(!holds(&file, &both, &attributes("linux", "2")));
        let unknown = Some(vec![word("posture:none".to_owned())]);
        assert!(!holds(&file, &unknown, &attributes("linux", "1")), "an undefined posture holds for nobody");
    }

    #[test]
    fn the_default_is_for_rules_that_say_nothing() {
        let mut file =
            File { default_src_posture: vec![word("posture:never".to_owned())], ..File::default() };
        let never = Condition { attribute: "custom:x".into(), compare: Compare::IsSet, values: Vec::new() };
        file.postures.insert("posture:never".into(), word(vec![word(never)]));
        let nothing = Attributes::new();
        assert!(!holds(&file, &None, &nothing));
        assert!(holds(&file, &Some(Vec::new()), &nothing), "an empty list is no posture at all");
        assert!(holds(&File::default(), &None, &nothing));
    }
}
