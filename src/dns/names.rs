//! Labels made of whatever a device calls itself.
//!
//! A hostname comes from the network and may hold anything; what leaves here is always one legal
//! label (RFC 1123 2.1), so that a strange name never keeps a map from being delivered.

/// Longest label of a name (RFC 1035 2.3.4).
const MAX_LABEL: usize = 63;
/// What a device is called whose name leaves nothing.
const NAMELESS: &str = "node";

/// Makes a DNS label of a hostname: lower case, `[a-z0-9-]`, no dash at either end, at most 63
/// bytes; the part before the first dot; `node` when nothing is left. `localhost` is nobody's name, and
/// digits alone would pass for an id: they get `node-` before them.
#[must_use]
pub fn sanitize_label(hostname: &str) -> String {
    let first = hostname.trim().split('.').next().unwrap_or_default();
    let mut label = String::new();
    // Every other character separates: "Anna's Mac" is anna-s-mac, not annasmac.
    for c in first.chars() {
        if label.len() >= MAX_LABEL {
            break;
        }
        if c.is_ascii_alphanumeric() {
            label.push(c.to_ascii_lowercase());
        } else if c != '\'' && !label.is_empty() && !label.ends_with('-') {
            label.push('-');
        }
    }
    let label = label.trim_matches('-');
    if label.is_empty() || label == "localhost" {
        return NAMELESS.to_owned();
    }
    if label.bytes().all(|b| b.is_ascii_digit()) {
        let digits = label.get(..label.len().min(MAX_LABEL - NAMELESS.len() - 1)).unwrap_or_default();
        return format!("{NAMELESS}-{digits}");
    }
    label.to_owned()
}

/// `label`, or `label-1`, `label-2`, … : the first that `taken` does not know. A long label is cut so
/// that the number fits.
#[must_use]
pub fn unique_label(label: &str, taken: &dyn Fn(&str) -> bool) -> String {
    if !taken(label) {
        return label.to_owned();
    }
    let mut number = 1_u64;
    loop {
        let suffix = format!("-{number}");
        let mut end = label.len().min(MAX_LABEL - suffix.len());
        while !label.is_char_boundary(end) {
            end -= 1;
        }
        let stem = label.get(..end).unwrap_or_default().trim_end_matches('-');
        let candidate = format!("{stem}{suffix}");
        if !taken(&candidate) {
            return candidate;
        }
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn strange_hostnames_become_labels() {
        let long = "x".repeat(300);
        for (hostname, label) in [
            ("Laptop", "laptop"),
            ("web-1.example.com", "web-1"),
            ("Anna's MacBook Pro", "annas-macbook-pro"),
            ("a__b", "a-b"),
            ("", "node"),
            ("---", "node"),
            ("🦀", "node"),
            ("🦀crab", "crab"),
            ("localhost", "node"),
            ("../../etc", "node"),
            ("<script>", "script"),
            ("nul\0byte", "nul-byte"),
            ("7", "node-7"),
            ("-007-", "node-007"),
            ("7a", "7a"),
            (&long, &long[..63]),
        ] {
            assert_eq!(sanitize_label(hostname), label, "{hostname:?}");
        }
    }

    #[test]
    fn taken_labels_get_the_first_free_number() {
        let taken = |l: &str| matches!(l, "web" | "web-1");
        assert_eq!(unique_label("web", &taken), "web-2");
        assert_eq!(unique_label("db", &taken), "db");
        let long = "x".repeat(63);
        let unique = unique_label(&long, &|l| l == long);
        assert_eq!(unique, format!("{}-1", "x".repeat(61)));
    }

    proptest! {
        #[test]
        fn whatever_comes_a_legal_label_leaves(hostname in any::<String>()) {
            let label = sanitize_label(&hostname);
            prop_assert!((1..=63).contains(&label.len()));
            prop_assert!(label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
            prop_assert!(!label.starts_with('-') && !label.ends_with('-'));
            prop_assert!(label.bytes().any(|b| !b.is_ascii_digit()), "no label passes for an id");
            prop_assert_eq!(sanitize_label(&label), label.clone());
            let other = unique_label(&label, &|l| l == label);
            prop_assert!(other.len() <= 63 && other != label);
        }
    }
}
