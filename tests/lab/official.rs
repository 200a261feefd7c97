//! The official programs, built once per version from the go.mod files under `tests/official/` and
//! cached outside the tree.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// A release of the official client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The newest that the installed Go builds.
    Newest,
    /// The first that understands a pinned relay certificate.
    FirstPinning,
    /// The oldest we serve.
    Oldest,
}

impl Version {
    fn folder(self) -> &'static str {
        match self {
            Self::Newest => "v1.102",
            Self::FirstPinning => "v1.82",
            Self::Oldest => "v1.80",
        }
    }
}

static BUILD: Mutex<()> = Mutex::new(());

/// The path of an official program; builds the whole version on first use.
pub fn program(version: Version, name: &str) -> PathBuf {
    let _one_at_a_time = BUILD.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/official").join(version.folder());
    let path = cache().join(version.folder()).join(name);
    if !path.exists() {
        let out = Command::new("sh")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/official/build"))
            .arg(version.folder())
            .output()
            .expect("sh runs");
        assert!(
            out.status.success() && path.exists(),
            "building the official programs in {} failed:\n{}",
            folder.display(),
            String::from_utf8_lossy(&out.stderr)
        );
    }
    path
}

fn cache() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache"),
        PathBuf::from,
    );
    let dir = base.join("tsd/official");
    fs::create_dir_all(&dir).unwrap();
    dir
}
