//! What the node keeps over restarts: keys, preferences, the login and the last netmap.
//!
//! A directory of mode 0700 with files of mode 0600. Each write goes to a temporary file, is synced,
//! renamed over the old one and the directory synced, so a crash leaves the old or the new content.
//! A lock file held by `flock` names the daemon that owns the directory; the second one is refused.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::prefs::Prefs;
use crate::clock::Rng;
use crate::keys::{DiscoPrivate, MachinePrivate, NodePrivate, NodePublic};
use crate::wire::{MapResponse, UserProfile};

/// Largest file that is read back: a netmap of ten thousand peers is far below.
const MAX_FILE: u64 = 64 << 20;

/// Why the state could not be had.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another daemon holds the directory.
    #[error("{dir} belongs to the running daemon with pid {pid}; stop it first or give another --state-dir")]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// The other daemon, or `unknown`.
        pid: String,
    },
    /// The disk said no.
    #[error("{what} {path}: {source}{}", remedy(source))]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The content is not ours.
    #[error("{path} is damaged ({why}); move it away to start as a new node")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// How.
        why: String,
    },
}

fn remedy(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::PermissionDenied => "; run as root, or give another --state-dir",
        std::io::ErrorKind::StorageFull => "; the disk is full",
        _ => "",
    }
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { what, path, source }
}

/// The login that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Profile {
    /// Four hex digits, assigned once.
    pub id: String,
    /// Who is logged in.
    pub user: UserProfile,
    /// Our stable id.
    pub node_id: String,
    /// Tailnet name.
    pub domain: String,
    /// MagicDNS suffix.
    pub magic_dns_name: String,
    /// The server.
    pub control_url: String,
}

/// Everything but the netmap.
#[derive(Clone)]
pub struct NodeState {
    /// Identity to control.
    pub machine_key: MachinePrivate,
    /// Discovery identity; kept, unlike the official client's, so that peers still know us when
    /// control is away.
    pub disco_key: DiscoPrivate,
    /// WireGuard identity, once logged in.
    pub node_key: Option<NodePrivate>,
    /// The one before, told at registration.
    pub old_node_key: Option<NodePrivate>,
    /// Seed of the tailnet-lock key, of which only the public half is told.
    pub lock_seed: Zeroizing<[u8; 32]>,
    /// Random id told as `BackendLogID`.
    pub log_id: String,
    /// What the user wants.
    pub prefs: Prefs,
    /// The login.
    pub profile: Option<Profile>,
}

/// A private key's text on its way to or from the file.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Secret(String);

impl Drop for Secret {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

impl From<Zeroizing<String>> for Secret {
    fn from(text: Zeroizing<String>) -> Self {
        Self(text.as_str().to_owned())
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    machine_key: Secret,
    disco_key: Secret,
    #[serde(default)]
    node_key: Option<Secret>,
    #[serde(default)]
    old_node_key: Option<Secret>,
    lock_seed: Secret,
    #[serde(default)]
    log_id: String,
    #[serde(default)]
    prefs: Prefs,
    #[serde(default)]
    profile: Option<Profile>,
}

impl std::fmt::Debug for NodeState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeState").field("profile", &self.profile).finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
struct StoredMap {
    node_key: NodePublic,
    map: MapResponse,
}

impl NodeState {
    fn fresh(rng: &mut Rng) -> Self {
        Self {
            machine_key: MachinePrivate::generate(rng),
            disco_key: DiscoPrivate::generate(rng),
            node_key: None,
            old_node_key: None,
            lock_seed: Zeroizing::new(rng.bytes()),
            log_id: hex::encode(rng.bytes::<32>()),
            prefs: Prefs::default(),
            profile: None,
        }
    }

    fn store(&self) -> Stored {
        let mut prefs = self.prefs.clone();
        prefs.config = None;
        Stored {
            version: 1,
            machine_key: self.machine_key.expose_text().into(),
            disco_key: self.disco_key.expose_text().into(),
            node_key: self.node_key.as_ref().map(|k| k.expose_text().into()),
            old_node_key: self.old_node_key.as_ref().map(|k| k.expose_text().into()),
            lock_seed: Secret(hex::encode(*self.lock_seed)),
            log_id: self.log_id.clone(),
            prefs,
            profile: self.profile.clone(),
        }
    }

    fn load(stored: &Stored) -> Result<Self, String> {
        if stored.version != 1 {
            return Err(format!("version {} is newer than this program", stored.version));
        }
        let text = |e: crate::keys::KeyError| e.to_string();
        let node = |k: &Option<Secret>| {
            k.as_ref().map(|k| NodePrivate::parse_stored(&k.0).map_err(text)).transpose()
        };
        let mut seed = Zeroizing::new([0_u8; 32]);
        hex::decode_to_slice(stored.lock_seed.0.as_bytes(), &mut *seed).map_err(|e| e.to_string())?;
        Ok(Self {
            machine_key: MachinePrivate::parse_stored(&stored.machine_key.0).map_err(text)?,
            disco_key: DiscoPrivate::parse_stored(&stored.disco_key.0).map_err(text)?,
            node_key: node(&stored.node_key)?,
            old_node_key: node(&stored.old_node_key)?,
            lock_seed: seed,
            log_id: stored.log_id.clone(),
            prefs: stored.prefs.clone(),
            profile: stored.profile.clone(),
        })
    }
}

/// The owned state directory.
#[derive(Debug)]
pub struct StateDir {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl StateDir {
    /// Makes the directory if needed and takes the lock.
    ///
    /// # Errors
    /// [`StateError::Locked`] when another daemon has it, [`StateError::Io`] otherwise.
    pub fn open(dir: &Path) -> Result<Self, StateError> {
        if !dir.is_dir() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("cannot make", dir))?;
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
            .map_err(io("cannot set the mode of", dir))?;
        let path = dir.join("lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io("cannot open", &path))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, _)) => {
                let mut pid = String::new();
                let _ = (&mut file).take(32).read_to_string(&mut pid);
                let pid = Some(pid.trim().to_owned()).filter(|p| !p.is_empty());
                return Err(StateError::Locked {
                    dir: dir.to_owned(),
                    pid: pid.unwrap_or_else(|| "unknown".to_owned()),
                });
            }
        };
        lock.set_len(0).map_err(io("cannot write", &path))?;
        lock.rewind().map_err(io("cannot write", &path))?;
        writeln!(lock, "{}", std::process::id()).map_err(io("cannot write", &path))?;
        Ok(Self { dir: dir.to_owned(), _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The stored state, or a fresh one that is stored at once.
    ///
    /// # Errors
    /// When the file is unreadable: keys are never silently replaced.
    pub fn load(&self, rng: &mut Rng) -> Result<NodeState, StateError> {
        let path = self.dir.join("state.json");
        let Some(bytes) = read(&path)? else {
            let state = NodeState::fresh(rng);
            self.save(&state)?;
            return Ok(state);
        };
        let damaged = |why: String| StateError::Damaged { path: path.clone(), why };
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        NodeState::load(&stored).map_err(damaged)
    }

    /// Writes the state; it is on disk when this returns.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, state: &NodeState) -> Result<(), StateError> {
        let path = self.dir.join("state.json");
        let bytes = serde_json::to_vec_pretty(&state.store())
            .map(Zeroizing::new)
            .map_err(|e| io("cannot encode", &path)(e.into()))?;
        write_atomic(&path, &bytes).map_err(io("cannot write", &path))
    }

    /// The netmap kept for this node key; a damaged or foreign one counts as none.
    #[must_use]
    pub fn load_netmap(&self, key: &NodePublic) -> Option<MapResponse> {
        let path = self.dir.join("netmap.json");
        let bytes = read(&path).ok().flatten()?;
        match serde_json::from_slice::<StoredMap>(&bytes) {
            Ok(stored) => (stored.node_key == *key).then_some(stored.map),
            Err(e) => {
                tracing::warn!("the kept netmap is damaged and is not used: {e}");
                None
            }
        }
    }

    /// The job that keeps the netmap; may run on another thread.
    #[must_use]
    pub fn netmap_writer(&self) -> NetmapWriter {
        NetmapWriter(self.dir.join("netmap.json"))
    }
}

/// Writes the kept netmap.
#[derive(Debug, Clone)]
pub struct NetmapWriter(PathBuf);

impl NetmapWriter {
    /// Writes it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, node_key: NodePublic, map: MapResponse) -> Result<(), StateError> {
        let bytes = serde_json::to_vec(&StoredMap { node_key, map })
            .map_err(|e| io("cannot encode", &self.0)(e.into()))?;
        write_atomic(&self.0, &bytes).map_err(io("cannot write", &self.0))
    }

    /// Forgets it, at logout.
    pub fn remove(&self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io("cannot read", path)(e)),
    };
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(io("cannot read", path))?;
    Ok(Some(bytes))
}

/// Temporary file, sync, rename, sync of the directory.
fn write_atomic(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let tmp = path.with_extension("tmp");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&tmp)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&tmp, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rng() -> Rng {
        Rng::from_seed([3; 32])
    }

    #[test]
    fn state_survives_a_restart_and_nobody_else_may_read_it() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("node");
        let open = StateDir::open(&dir).unwrap();
        let mut state = open.load(&mut rng()).unwrap();
        state.node_key = Some(NodePrivate::generate(&mut rng()));
        state.prefs.hostname = "o1".into();
        state.profile = Some(Profile { id: "ab12".into(), ..Profile::default() });
        open.save(&state).unwrap();
        drop(open);

        let again = StateDir::open(&dir).unwrap();
        let read = again.load(&mut Rng::from_seed([4; 32])).unwrap();
        assert_eq!(read.machine_key, state.machine_key);
        assert_eq!(read.disco_key, state.disco_key);
        assert_eq!(read.node_key, state.node_key);
        assert_eq!(read.prefs, state.prefs);
        assert_eq!(read.profile, state.profile);
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&dir.join("state.json")), 0o600);
    }

    #[test]
    fn no_secret_is_shown() {
        let state = NodeState { lock_seed: Zeroizing::new([0xab; 32]), ..NodeState::fresh(&mut rng()) };
        let shown = format!("{state:?}");
        assert!(!shown.contains("171"), "{shown}");
    }

    #[test]
    fn a_torn_temporary_file_is_not_read() {
        let tmp = tempfile::tempdir().unwrap();
        let open = StateDir::open(tmp.path()).unwrap();
        let state = open.load(&mut rng()).unwrap();
        fs::write(tmp.path().join("state.tmp"), b"{\"vers").unwrap();
        let read = open.load(&mut Rng::from_seed([5; 32])).unwrap();
        assert_eq!(read.machine_key, state.machine_key);
    }

    #[test]
    fn damage_is_told_and_never_overwritten() {
        let tmp = tempfile::tempdir().unwrap();
        let open = StateDir::open(tmp.path()).unwrap();
        fs::write(tmp.path().join("state.json"), b"{}").unwrap();
        let error = open.load(&mut rng()).unwrap_err();
        assert!(matches!(error, StateError::Damaged { .. }));
        assert_eq!(fs::read(tmp.path().join("state.json")).unwrap(), b"{}");
    }

    #[test]
    fn the_second_daemon_is_refused_and_told_the_first() {
        let tmp = tempfile::tempdir().unwrap();
        let first = StateDir::open(tmp.path()).unwrap();
        let error = StateDir::open(tmp.path()).unwrap_err().to_string();
        let pid = format!("pid {}", std::process::id());
        assert!(error.contains(&pid), "{error}");
        drop(first);
        assert!(StateDir::open(tmp.path()).is_ok());
    }

    #[test]
    fn the_netmap_is_kept_for_its_key_only() {
        let tmp = tempfile::tempdir().unwrap();
        let open = StateDir::open(tmp.path()).unwrap();
        let key = NodePrivate::generate(&mut rng()).public();
        let map = MapResponse { domain: "example".into(), ..MapResponse::default() };
        open.netmap_writer().save(key, map.clone()).unwrap();
        assert_eq!(open.load_netmap(&key), Some(map));
        assert_eq!(open.load_netmap(&NodePublic::default()), None);
        fs::write(tmp.path().join("netmap.json"), b"junk").unwrap();
        assert_eq!(open.load_netmap(&key), None);
    }
}
