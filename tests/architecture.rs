//! Holds the arrows of ARCHITECTURE.md: which room may import which, and what a pure file may not name.
//! The table below is the truth; the drawing is made from it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// One room: its name, its shell files (all others are pure; `*` makes the whole room a shell), what
/// pure files may import, and what shell files may import besides.
struct Room {
    name: &'static str,
    shells: &'static [&'static str],
    pure: &'static [&'static str],
    shell: &'static [&'static str],
}

const ROOMS: &[Room] = &[
    Room { name: "clock", shells: &["*"], pure: &[], shell: &[] },
    Room { name: "keys", shells: &[], pure: &["clock"], shell: &[] },
    Room { name: "wire", shells: &[], pure: &["keys"], shell: &[] },
    Room { name: "model", shells: &[], pure: &["keys", "wire"], shell: &[] },
    Room { name: "noise", shells: &["stream"], pure: &["keys", "clock", "wire"], shell: &[] },
    Room { name: "stun", shells: &["server"], pure: &[], shell: &["clock"] },
    Room { name: "dns", shells: &[], pure: &["keys", "wire"], shell: &[] },
    Room { name: "acl", shells: &[], pure: &["keys", "model", "wire"], shell: &[] },
    Room {
        name: "derp",
        shells: &["server", "client", "tls", "stream", "outbox", "http", "websocket"],
        pure: &["keys", "wire", "clock"],
        shell: &[],
    },
    Room {
        name: "control",
        shells: &[
            "service",
            "inquiry",
            "session",
            "http",
            "websocket",
            "machine",
            "presence",
            "owner",
            "health",
            "policies",
            "explaining",
            "proving",
        ],
        pure: &["keys", "model", "wire", "acl", "dns", "clock"],
        shell: &["store", "noise", "derp"],
    },
    Room { name: "store", shells: &["*"], pure: &[], shell: &["keys", "model", "wire", "clock"] },
    Room {
        name: "api",
        shells: &["*"],
        pure: &[],
        shell: &["control", "model", "acl", "clock", "keys", "ui"],
    },
    Room { name: "ui", shells: &["*"], pure: &[], shell: &["control", "model", "acl", "clock", "keys"] },
    Room { name: "config", shells: &["*"], pure: &[], shell: &["keys", "model", "wire"] },
    Room {
        name: "node",
        shells: &[
            "run",
            "core",
            "udp",
            "tun",
            "derp",
            "control",
            "session",
            "lifecycle",
            "dns_forward",
            "host",
            "os",
            "linkmon",
            "state_file",
            "localapi",
            "cli",
            "sys",
        ],
        pure: &["keys", "wire", "dns", "stun", "clock"],
        shell: &["noise", "derp", "config"],
    },
    Room {
        name: "serve",
        shells: &["*"],
        pure: &[],
        shell: &[
            "acl", "api", "clock", "config", "control", "derp", "dns", "keys", "model", "noise", "store",
            "stun", "ui", "wire",
        ],
    },
    Room {
        name: "cli",
        shells: &["*"],
        pure: &[],
        shell: &["serve", "node", "config", "api", "acl", "model", "keys", "clock"],
    },
];

/// What no pure file may name: the outside world.
const FORBIDDEN: &[&str] = &[
    "tokio::",
    "hyper::",
    "rusqlite::",
    "std::fs",
    "std::process",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "UnixStream",
    "Instant::now",
    "SystemTime::now",
    "Utc::now",
    "thread::spawn",
    "from_os(",
    "Now::read",
];

fn files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// The code of a file: without comments, and without its test module at the end.
fn code(text: &str) -> Vec<(usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| line.trim() != "#[cfg(test)]")
        .map(|(n, line)| (n + 1, line.split("//").next().unwrap_or_default()))
        .collect()
}

fn imports(line: &str) -> Vec<&str> {
    line.split("crate::")
        .skip(1)
        .map(|rest| rest.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next().unwrap_or_default())
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn no_arrow_points_the_wrong_way() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&src, &mut all);
    let names: BTreeSet<&str> = ROOMS.iter().map(|r| r.name).collect();
    let mut faults = Vec::new();
    for path in all {
        let inside = path.strip_prefix(&src).unwrap();
        let mut parts = inside.iter().map(|p| p.to_str().unwrap().trim_end_matches(".rs"));
        let first = parts.next().unwrap();
        if first == "lib"
            || first == "main"
            || inside.iter().any(|p| p.to_str().unwrap().trim_end_matches(".rs").ends_with("tests"))
        {
            continue;
        }
        let Some(room) = ROOMS.iter().find(|r| r.name == first) else {
            faults.push(format!("{}: a room the table does not know", inside.display()));
            continue;
        };
        let second = parts.next().unwrap_or("mod");
        let shell = room.shells.contains(&"*") || room.shells.contains(&second);
        let text = fs::read_to_string(&path).unwrap();
        for (line, code) in code(&text) {
            for name in imports(code) {
                let fine = name == room.name
                    || !names.contains(name)
                    || room.pure.contains(&name)
                    || (shell && room.shell.contains(&name));
                if !fine {
                    faults.push(format!(
                        "src/{}:{line}: {} may not import {name}",
                        inside.display(),
                        room.name
                    ));
                }
            }
            if !shell {
                for word in FORBIDDEN.iter().filter(|w| code.contains(**w)) {
                    faults.push(format!("src/{}:{line}: a pure file names {word}", inside.display()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn unsafe_code_lives_in_one_module() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&src, &mut all);
    let with: Vec<PathBuf> =
        all.into_iter().filter(|p| fs::read_to_string(p).unwrap().contains("allow(unsafe_code")).collect();
    assert!(with.len() <= 1, "unsafe code in more than one module: {with:?}");
}

#[test]
fn no_shell_is_ever_asked_to_run_a_string() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&src, &mut all);
    for path in all {
        let text = fs::read_to_string(&path).unwrap();
        for shell in ["Command::new(\"sh\")", "Command::new(\"bash\")", "Command::new(\"/bin/sh\")"] {
            assert!(!text.contains(shell), "{} starts a shell", path.display());
        }
    }
}
