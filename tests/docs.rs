//! What the documentation quotes is what the program says: each sentence in the first column of
//! docs/troubleshooting.md, between its dots, stands in the source.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::Path;

fn sources(dir: &Path, out: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn quoted_sentences_are_the_programs_own() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut source = String::new();
    sources(&root.join("src"), &mut source);
    let text = fs::read_to_string(root.join("docs/troubleshooting.md")).unwrap();
    let mut checked = 0;
    for line in text.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| what")) {
        let cell = line.split('|').nth(1).unwrap();
        for quote in cell.split('`').skip(1).step_by(2).filter(|q| q.contains(' ') && !q.starts_with("tsd "))
        {
            for part in quote.split('…').map(str::trim).filter(|p| p.len() > 3) {
                // What stands in brackets may be a value.
                if part.starts_with("via DERP") {
                    continue;
                }
                assert!(source.contains(part), "no part of the program says {part:?}");
                checked += 1;
            }
        }
    }
    assert!(checked >= 12, "only {checked} sentences were found to check");
}

#[test]
fn the_picture_is_there_and_small() {
    let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/console.png");
    let size = fs::metadata(picture).unwrap().len();
    assert!((10_000..150_000).contains(&size), "{size} bytes");
}

#[test]
fn links_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    for link in readme.split("](").skip(1).filter_map(|l| l.split(')').next()) {
        if !link.starts_with("http") {
            assert!(root.join(link).exists(), "README.md links to {link}, which is not there");
        }
    }
}
