//! `/etc/resolv.conf`, written directly (dataplane.md 8.5, 8.6).
//!
//! The original is kept in the state directory before anything is changed, so that a start after a
//! crash can put it back. The file is replaced by rename; where that is impossible because it is a
//! bind mount (containers), it is written in place. A file somebody else changed meanwhile is left.

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::node::engine::DnsOs;

/// First line of a file that we wrote.
const MARK: &str = "# resolv.conf written by tsd node; the original is kept and comes back on exit";
/// The resolver inside the node.
const QUAD_100: &str = "100.100.100.100";
/// No real file is larger.
const MAX: u64 = 1 << 20;

/// How DNS is told to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsMode {
    /// By `resolvectl`.
    Resolved,
    /// By writing the file.
    Direct,
}

/// The file and its backup.
#[derive(Debug, Clone)]
pub struct ResolvConf {
    file: PathBuf,
    backup: PathBuf,
    root: PathBuf,
}

/// What the backup says when there was no file.
const NO_FILE: &str = "# tsd: there was no file\n";

fn read(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    fs::File::open(path)?.take(MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Nameservers of a resolv.conf, without quad-100 (asking it again would be a loop).
#[must_use]
pub fn nameservers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|l| l.trim().strip_prefix("nameserver"))
        .filter_map(|l| l.trim().split('%').next()?.parse().ok())
        .filter(|ip: &IpAddr| ip.to_string() != QUAD_100 && ip.to_string() != "fd7a:115c:a1e0::53")
        .take(8)
        .collect()
}

impl ResolvConf {
    /// For the file under `root`, with the backup in `state_dir`.
    #[must_use]
    pub fn new(root: &Path, state_dir: &Path) -> Self {
        Self {
            file: root.join("etc/resolv.conf"),
            backup: state_dir.join("resolv.conf.backup"),
            root: root.to_owned(),
        }
    }

    /// Whether systemd-resolved really is the resolver: it wrote the file, every nameserver is its
    /// stub, and its control program is there.
    #[must_use]
    pub fn mode(&self) -> DnsMode {
        let text = read(&self.file).unwrap_or_default();
        let owner = text
            .lines()
            .take_while(|l| l.starts_with('#') || l.trim().is_empty())
            .any(|l| l.contains("systemd-resolved"));
        let servers = nameservers(&text);
        let stub = !servers.is_empty()
            && servers.iter().all(|ip| matches!(ip.to_string().as_str(), "127.0.0.53" | "127.0.0.54"));
        let running = self.root.join("run/systemd/resolve").is_dir();
        let program = ["usr/bin/resolvectl", "bin/resolvectl"].iter().any(|p| self.root.join(p).exists());
        if owner && stub && running && program { DnsMode::Resolved } else { DnsMode::Direct }
    }

    /// The host's own resolvers: from the backup while the file is ours, else from the file; behind
    /// systemd-resolved, those it uses itself.
    #[must_use]
    pub fn host_resolvers(&self) -> Vec<IpAddr> {
        let text = match read(&self.backup) {
            Ok(original) => original,
            Err(_) => read(&self.file).unwrap_or_default(),
        };
        let found = nameservers(&text);
        if found.iter().all(|ip| ip.is_loopback()) {
            let uplink = self.root.join("run/systemd/resolve/resolv.conf");
            let real = nameservers(&read(&uplink).unwrap_or_default());
            if !real.is_empty() {
                return real;
            }
        }
        found
    }

    /// Makes quad-100 the host's resolver.
    ///
    /// # Errors
    /// When the backup or the file cannot be written.
    pub fn apply(&self, dns: &DnsOs) -> io::Result<()> {
        let original = match read(&self.file) {
            Ok(text) => Some(text),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        if !original.as_deref().is_some_and(|t| t.starts_with(MARK)) {
            let keep = original.as_deref().unwrap_or(NO_FILE);
            write_synced(&self.backup, keep)?;
        }
        let mut text = format!("{MARK}\nnameserver {QUAD_100}\n");
        if !dns.search.is_empty() {
            text.push_str(&format!("search {}\n", dns.search.join(" ")));
        }
        self.replace(&text)
    }

    /// Whether somebody else wrote the file after us.
    #[must_use]
    pub fn overwritten(&self) -> bool {
        !read(&self.file).is_ok_and(|t| t.starts_with(MARK))
    }

    /// Puts the original back, when there is one and the file is still ours. Also called at start,
    /// where a backup means that the last daemon did not end in order.
    ///
    /// # Errors
    /// When the file cannot be written; the backup stays then.
    pub fn restore(&self) -> io::Result<()> {
        let original = match read(&self.backup) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        let ours = read(&self.file).is_ok_and(|t| t.starts_with(MARK));
        if ours {
            if original == NO_FILE {
                fs::remove_file(&self.file)?;
            } else {
                self.replace(&original)?;
            }
        }
        fs::remove_file(&self.backup)
    }

    /// By rename, or in place when the name cannot be replaced (a mount point is busy; another
    /// file system refuses). A symbolic link is followed, so that the link itself stays.
    fn replace(&self, text: &str) -> io::Result<()> {
        let target = fs::canonicalize(&self.file).unwrap_or_else(|_| self.file.clone());
        let tmp = target.with_extension("tsd-tmp");
        let renamed = write_synced(&tmp, text).and_then(|()| fs::rename(&tmp, &target));
        match renamed {
            Ok(()) => Ok(()),
            Err(e) => {
                let _ = fs::remove_file(&tmp);
                tracing::debug!("{} is written in place: {e}", target.display());
                write_synced(&target, text)
            }
        }
    }
}

fn write_synced(path: &Path, text: &str) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host {
        _tmp: tempfile::TempDir,
        root: PathBuf,
        conf: ResolvConf,
    }

    fn host(content: Option<&str>) -> Host {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("root");
        let state = tmp.path().join("state");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::create_dir_all(&state).unwrap();
        if let Some(text) = content {
            fs::write(root.join("etc/resolv.conf"), text).unwrap();
        }
        let conf = ResolvConf::new(&root, &state);
        Host { _tmp: tmp, root, conf }
    }

    fn dns() -> DnsOs {
        DnsOs { search: vec!["tail.internal".into()], match_domains: vec![] }
    }

    fn now(host: &Host) -> String {
        fs::read_to_string(host.root.join("etc/resolv.conf")).unwrap_or_default()
    }

    #[test]
    fn the_original_comes_back_byte_for_byte() {
        let host = host(Some("nameserver 9.9.9.9\noptions edns0\n"));
        host.conf.apply(&dns()).unwrap();
        assert!(now(&host).contains("nameserver 100.100.100.100\nsearch tail.internal\n"));
        host.conf.apply(&dns()).unwrap();
        assert_eq!(host.conf.host_resolvers(), ["9.9.9.9".parse::<IpAddr>().unwrap()]);
        host.conf.restore().unwrap();
        assert_eq!(now(&host), "nameserver 9.9.9.9\noptions edns0\n");
        host.conf.restore().unwrap();
        assert_eq!(now(&host), "nameserver 9.9.9.9\noptions edns0\n");
    }

    #[test]
    fn a_start_after_a_crash_puts_the_original_back() {
        let host = host(Some("nameserver 9.9.9.9\n"));
        host.conf.apply(&dns()).unwrap();
        let next_start = host.conf.clone();
        next_start.restore().unwrap();
        assert_eq!(now(&host), "nameserver 9.9.9.9\n");
    }

    #[test]
    fn what_somebody_else_wrote_meanwhile_stays() {
        let host = host(Some("nameserver 9.9.9.9\n"));
        host.conf.apply(&dns()).unwrap();
        fs::write(host.root.join("etc/resolv.conf"), "nameserver 8.8.8.8\n").unwrap();
        host.conf.restore().unwrap();
        assert_eq!(now(&host), "nameserver 8.8.8.8\n");
    }

    #[test]
    fn a_missing_file_is_made_and_removed_again() {
        let host = host(None);
        host.conf.apply(&dns()).unwrap();
        assert!(now(&host).starts_with(MARK));
        host.conf.restore().unwrap();
        assert!(!host.root.join("etc/resolv.conf").exists());
    }

    #[test]
    fn a_bind_mounted_file_is_written_in_place() {
        use nix::mount::{MsFlags, mount, umount};
        let host = host(Some("nameserver 9.9.9.9\n"));
        let file = host.root.join("etc/resolv.conf");
        let source = host.root.join("source");
        fs::write(&source, "nameserver 1.1.1.1\n").unwrap();
        let none: Option<&str> = None;
        if let Err(e) = mount(Some(&source), &file, none, MsFlags::MS_BIND, none) {
            // Without the right to mount there is nothing to bind; the other tests still hold.
            assert_eq!(e, nix::errno::Errno::EPERM);
            return;
        }
        let result = host.conf.apply(&dns());
        let seen = fs::read_to_string(&source).unwrap();
        let restored = host.conf.restore();
        let after = fs::read_to_string(&source).unwrap();
        umount(&file).unwrap();
        result.unwrap();
        restored.unwrap();
        assert!(seen.contains("nameserver 100.100.100.100"));
        assert_eq!(after, "nameserver 1.1.1.1\n");
    }

    #[test]
    fn resolved_is_used_only_when_it_really_is_the_resolver() {
        let host = host(Some(
            "# This is /run/systemd/resolve/stub-resolv.conf managed by man:systemd-resolved(8).\n\
             nameserver 127.0.0.53\n",
        ));
        assert_eq!(host.conf.mode(), DnsMode::Direct);
        fs::create_dir_all(host.root.join("run/systemd/resolve")).unwrap();
        fs::create_dir_all(host.root.join("usr/bin")).unwrap();
        fs::write(host.root.join("usr/bin/resolvectl"), "").unwrap();
        assert_eq!(host.conf.mode(), DnsMode::Resolved);
        fs::write(host.root.join("run/systemd/resolve/resolv.conf"), "nameserver 10.0.0.1\n").unwrap();
        assert_eq!(host.conf.host_resolvers(), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn our_own_address_is_never_a_host_resolver() {
        let text = "nameserver 100.100.100.100\nnameserver fe80::1%eth0\nnameserver x\n";
        assert_eq!(nameservers(text), ["fe80::1".parse::<IpAddr>().unwrap()]);
    }
}
