//! What the node changes in the host: addresses, routes, rules, DNS. Everything is put back.
//!
//! One task owns it and follows the latest wish; wishes in between are skipped. Firewall chains are
//! not touched.

pub mod resolv;
mod resolved;
pub mod routes;

use std::path::PathBuf;

use tokio::sync::watch;

use super::engine::OsConfig;
use resolv::{DnsMode, ResolvConf};
use routes::Routes;

/// Where things lie; tests give another root.
#[derive(Debug, Clone)]
pub struct OsPaths {
    /// Usually `/`.
    pub root: PathBuf,
    /// The state directory, which keeps the backup of `resolv.conf`.
    pub state_dir: PathBuf,
}

/// The task's outside.
#[derive(Debug)]
pub struct OsHandle {
    wish: watch::Sender<OsConfig>,
    trouble: watch::Receiver<Vec<String>>,
    task: tokio::task::JoinHandle<()>,
}

impl OsHandle {
    /// Starts the task. `resolv` was already restored after a crash.
    ///
    /// # Errors
    /// When netlink cannot be opened.
    pub fn start(interface: String, index: u32, resolv: ResolvConf) -> std::io::Result<Self> {
        let routes = Routes::open(index)?;
        let (wish, wishes) = watch::channel(OsConfig::default());
        let (tell, trouble) = watch::channel(Vec::new());
        let dns = Dns { interface, index, resolv, used: None };
        let task = tokio::spawn(follow(routes, dns, wishes, tell));
        Ok(Self { wish, trouble, task })
    }

    /// What the host should look like from now on.
    pub fn set(&self, config: OsConfig) {
        self.wish.send_if_modified(|old| {
            let changed = *old != config;
            *old = config;
            changed
        });
    }

    /// What could not be done, in plain words.
    #[must_use]
    pub fn trouble(&self) -> watch::Receiver<Vec<String>> {
        self.trouble.clone()
    }

    /// Puts everything back and ends.
    pub async fn restore(self) {
        drop(self.wish);
        if self.task.await.is_err() {
            tracing::error!("the task that restores the host's network ended early");
        }
    }
}

struct Dns {
    interface: String,
    index: u32,
    resolv: ResolvConf,
    used: Option<DnsMode>,
}

impl Dns {
    async fn apply(&mut self, config: &OsConfig) -> Result<(), String> {
        let Some(dns) = &config.dns else {
            return self.restore().await;
        };
        let mode = *self.used.get_or_insert_with(|| self.resolv.mode());
        tracing::debug!("DNS by {mode:?}");
        match mode {
            DnsMode::Resolved => resolved::apply(&self.interface, dns).await,
            DnsMode::Direct => {
                let link = self.index;
                tracing::debug!("resolv.conf is ours now (interface {link})");
                self.resolv.apply(dns).map_err(|e| e.to_string())
            }
        }
    }

    async fn restore(&mut self) -> Result<(), String> {
        match self.used.take() {
            None => Ok(()),
            Some(DnsMode::Resolved) => resolved::revert(&self.interface).await,
            Some(DnsMode::Direct) => self.resolv.restore().map_err(|e| e.to_string()),
        }
    }
}

async fn follow(
    mut routes: Routes,
    mut dns: Dns,
    mut wishes: watch::Receiver<OsConfig>,
    tell: watch::Sender<Vec<String>>,
) {
    // A daemon that was killed left its rules; addresses and routes went with its interface.
    for line in routes.clean().await {
        tracing::warn!("cleaning up after the last daemon: {line}");
    }
    while wishes.changed().await.is_ok() {
        let wish = wishes.borrow_and_update().clone();
        let mut trouble = routes.apply(&wish).await;
        if let Err(e) = dns.apply(&wish).await {
            trouble.push(format!("DNS could not be set: {e}"));
        }
        for line in &trouble {
            tracing::warn!("{line}");
        }
        tell.send_replace(trouble);
    }
    for line in routes.apply(&OsConfig::default()).await {
        tracing::warn!("restoring: {line}");
    }
    if let Err(e) = dns.restore().await {
        tracing::warn!("restoring DNS: {e}");
    }
}
