//! Where in a TOML text a key stands, and which known key an unknown one resembles. figment knows the
//! layer a value came from but not its line, so errors would send people searching.

/// The 1-based line of the longest known prefix of `path` (dotted) in `text`.
#[must_use]
pub(super) fn line_of(text: &str, path: &str) -> Option<usize> {
    let wanted: Vec<&str> = path.split('.').collect();
    let mut table: Vec<String> = Vec::new();
    let mut best: Option<(usize, usize)> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        let here: Vec<String> = if let Some(rest) = line.strip_prefix('[') {
            let name = rest.trim_start_matches('[').split(']').next();
            table = split_key(name.unwrap_or_default());
            table.clone()
        } else if let Some((key, _)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
            table.iter().cloned().chain(split_key(key)).collect()
        } else {
            continue;
        };
        let prefix = here.len() <= wanted.len() && here.iter().zip(&wanted).all(|(a, b)| a == b);
        if prefix && best.is_none_or(|(len, _)| here.len() > len) {
            best = Some((here.len(), index + 1));
        }
    }
    best.map(|(_, line)| line)
}

fn split_key(text: &str) -> Vec<String> {
    text.split('.').map(|part| part.trim().trim_matches(['"', '\'']).to_owned()).collect()
}

/// The known name nearest to `word`, when it is near enough to be meant.
#[must_use]
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.replace('-', "_").to_ascii_lowercase();
    known
        .into_iter()
        .map(|candidate| (distance(&word, candidate), candidate))
        .filter(|(d, candidate)| *d <= (candidate.len() / 3).max(2))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Edit distance by insertions, deletions and replacements.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    // A key has tens of characters; the cap keeps hostile files from costing anything.
    for (i, ca) in a.chars().take(128).enumerate() {
        let mut previous = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (cell, cb) in row.iter().skip(1).zip(&b) {
            let replaced = previous + usize::from(ca != *cb);
            left = replaced.min(left + 1).min(cell + 1);
            previous = *cell;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_in_tables_and_by_prefix() {
        let text = "# listen = 1\nlisten = \"x\"\n\n[derp]\nenabled = true\n[[derp.regions]]\nid = 5\n";
        assert_eq!(line_of(text, "listen"), Some(2));
        assert_eq!(line_of(text, "derp.enabled"), Some(5));
        assert_eq!(line_of(text, "derp.regions.0.bogus"), Some(6));
        assert_eq!(line_of(text, "derp.hostname"), Some(4));
        assert_eq!(line_of(text, "stun.public_port"), None);
    }

    #[test]
    fn near_names_are_offered_and_far_ones_are_not() {
        let known = ["listen", "tls_listen", "state_dir"];
        assert_eq!(nearest("lisen", known), Some("listen"));
        assert_eq!(nearest("tls-listen", known), Some("tls_listen"));
        assert_eq!(nearest("banana", known), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
