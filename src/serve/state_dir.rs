//! The state directory: made with mode 0700, refused when others may read it, locked against a second
//! server, key files of mode 0600 written whole or not at all.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use nix::fcntl::{Flock, FlockArg};
use zeroize::Zeroizing;

/// Keys and certificates are far smaller.
const MAX_FILE: u64 = 64 * 1024;

/// An opened and locked state directory. Dropping it unlocks.
#[derive(Debug)]
pub(super) struct StateDir {
    path: PathBuf,
    _lock: Flock<std::fs::File>,
}

impl StateDir {
    /// Opens the directory, making it when it is not there.
    ///
    /// # Errors
    /// When it cannot be made, is another's, is open to others, or a server runs on it.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).with_context(|| {
            format!("cannot make the state directory {}; choose another by --state-dir", path.display())
        })?;
        let path = path
            .canonicalize()
            .with_context(|| format!("cannot resolve the state directory {}", path.display()))?;
        check_private(&path, 0o700)?;
        let lock_path = path.join("serve.lock");
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&lock_path)
            .with_context(|| format!("cannot open {}", lock_path.display()))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, _)) => {
                let mut pid = String::new();
                let _ = (&mut file).take(32).read_to_string(&mut pid);
                bail!(
                    "another tsd server (process {}) runs on {}; stop it, or choose another directory by --state-dir",
                    pid.trim(),
                    path.display()
                );
            }
        };
        lock.set_len(0)?;
        writeln!(lock, "{}", std::process::id())?;
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a file of ours; `None` when it is not there.
    ///
    /// # Errors
    /// When it is open to others, a symbolic link, or too large.
    pub(super) fn read(&self, name: &str) -> anyhow::Result<Option<Zeroizing<String>>> {
        let path = self.path.join(name);
        let opened = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot open {}", path.display()));
            }
        };
        check_private(&path, 0o600)?;
        let mut text = Zeroizing::new(String::new());
        file.take(MAX_FILE)
            .read_to_string(&mut text)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Some(text))
    }

    /// Writes a file whole or not at all: a temporary beside it, synced, renamed, directory synced.
    ///
    /// # Errors
    /// When the disk fails; the old file is untouched then.
    pub(super) fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let (path, temporary) = (self.path.join(name), self.path.join(format!("{name}.new")));
        let write = || -> std::io::Result<()> {
            match std::fs::remove_file(&temporary) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file =
                std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            std::fs::File::open(&self.path)?.sync_all()
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads a key, or makes and stores one when there is none.
    ///
    /// # Errors
    /// When the file is damaged: a new key would cut off every client, so none is made.
    pub(super) fn key<K>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<K, crate::keys::KeyError>,
        make: impl FnOnce() -> (K, Zeroizing<String>),
    ) -> anyhow::Result<K> {
        if let Some(text) = self.read(name)? {
            return parse(&text).with_context(|| {
                format!(
                    "{} is damaged; put it back from a backup (a new key would cut off every client)",
                    self.path.join(name).display()
                )
            });
        }
        let (key, text) = make();
        self.write(name, &text)?;
        Ok(key)
    }
}

/// Refuses what is not ours or open to others, and says how to mend it.
fn check_private(path: &Path, mode: u32) -> anyhow::Result<()> {
    let meta =
        std::fs::symlink_metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
    let me = nix::unistd::geteuid();
    if meta.uid() != me.as_raw() {
        bail!(
            "{} belongs to user {}, not to us (user {me}); run as its owner, or: chown -R {me} {}",
            path.display(),
            meta.uid(),
            path.display()
        );
    }
    if meta.mode() & 0o077 != 0 {
        bail!(
            "{} is open to others (mode {:04o}); close it: chmod {mode:04o} {}",
            path.display(),
            meta.mode() & 0o7777,
            path.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::clock::Rng;
    use crate::keys::MachinePrivate;

    fn key(dir: &StateDir, seed: u8) -> anyhow::Result<MachinePrivate> {
        dir.key("noise.key", MachinePrivate::parse_stored, || {
            let key = MachinePrivate::generate(&mut Rng::from_seed([seed; 32]));
            let text = key.expose_text();
            (key, text)
        })
    }

    #[test]
    fn keys_are_made_once_kept_private_and_never_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StateDir::open(&temp.path().join("a/b")).unwrap();
        let first = key(&dir, 1).unwrap();
        assert_eq!(key(&dir, 2).unwrap(), first);
        let file = dir.path().join("noise.key");
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        dir.write("noise.key", "garbage").unwrap();
        assert!(key(&dir, 3).unwrap_err().to_string().contains("damaged"));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(key(&dir, 3).unwrap_err().to_string().contains("chmod 0600"));
    }

    #[test]
    fn open_directories_and_second_servers_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("s");
        let first = StateDir::open(&path).unwrap();
        let error = StateDir::open(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        StateDir::open(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(StateDir::open(&path).unwrap_err().to_string().contains("chmod 0700"));
    }
}
