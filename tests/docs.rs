//! What the documentation quotes is what the program says: each sentence in the first column of
//! docs/troubleshooting.md, between its dots, stands in the source; commands of docs/policy.md print what
//! the page shows, and it names every code of a fault.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

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

/// Fenced blocks of a text, each with the file name given in a comment above it.
fn fenced(text: &str) -> Vec<(&str, &str, Option<&str>)> {
    let parts: Vec<&str> = text.split("```").collect();
    let mut out = Vec::new();
    for pair in parts.chunks_exact(2) {
        let (kind, body) = pair[1].split_once('\n').unwrap();
        let last = pair[0].trim_end().lines().last().unwrap_or_default();
        let name = last.strip_prefix("<!-- file: ").and_then(|l| l.strip_suffix(" -->"));
        out.push((kind, body, name));
    }
    out
}

#[test]
fn commands_of_the_guide_print_what_the_guide_shows() {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/policy.md");
    let guide = fs::read_to_string(guide).unwrap();
    let room = tempfile::tempdir().unwrap();
    let blocks = fenced(&guide);
    for (_, body, name) in &blocks {
        if let Some(name) = name {
            fs::write(room.path().join(name), body).unwrap();
        }
    }
    let mut commands = 0;
    for (_, body, _) in blocks.iter().filter(|(kind, ..)| *kind == "console") {
        for talk in body.split("$ ").skip(1) {
            let (line, expected) = talk.split_once('\n').unwrap();
            let out = fs::File::create(room.path().join("out")).unwrap();
            let status = Command::new(env!("CARGO_BIN_EXE_tsd"))
                .args(line.split_whitespace().skip(1))
                .current_dir(room.path())
                .env("XDG_STATE_HOME", room.path())
                .stdin(Stdio::null())
                .stderr(out.try_clone().unwrap())
                .stdout(out)
                .status()
                .unwrap();
            let printed = fs::read_to_string(room.path().join("out")).unwrap();
            assert_eq!(printed.trim_end(), expected.trim_end(), "{line} ({status})");
            commands += 1;
        }
    }
    assert!(commands >= 6, "only {commands} commands were found to try");
}

#[test]
fn every_code_of_a_fault_stands_in_the_guide() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = fs::read_to_string(root.join("docs/policy.md")).unwrap();
    let mut source = String::new();
    for dir in ["src/acl/syntax", "src/acl/check", "src/acl/asserts"] {
        sources(&root.join(dir), &mut source);
    }
    for file in ["hujson", "asserts"] {
        source.push_str(&fs::read_to_string(root.join(format!("src/acl/{file}.rs"))).unwrap());
    }
    let mut codes = 0;
    for opening in ["faults.add(", "faults.note(", "code: "] {
        for rest in source.split(opening).skip(1) {
            let code = rest.trim_start().strip_prefix('"').and_then(|r| r.split('"').next());
            let Some(code) = code.filter(|c| c.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')) else {
                continue;
            };
            assert!(guide.contains(&format!("`{code}`")), "docs/policy.md does not name the code {code}");
            codes += 1;
        }
    }
    assert!(codes >= 60, "only {codes} places with codes were found");
}
