//! What the node changes in the host: addresses, routes, rules, DNS. Everything is put back.
//!
//! One task owns it and follows the latest wish; wishes in between are skipped. What others remove comes
//! back, with a warning; who keeps on removing it wins in the end, so that no two programs fight for ever.
//! Firewall chains are not touched.

mod removed;
pub mod resolv;
mod resolved;
pub mod routes;

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::engine::OsConfig;
use resolv::{DnsMode, ResolvConf};
use routes::Routes;

/// How often resolv.conf is looked at while it is ours.
const LOOK: Duration = Duration::from_secs(2);
/// Put back at most so often within [`WINDOW`]; then the other program has its way until the next wish.
const PATIENCE: usize = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// How long a warning stays after the last thing that had to be put back.
const WARN_FOR: Duration = Duration::from_secs(600);

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
        let removals = removed::removals(index)?;
        let keeper = Keeper {
            routes,
            dns,
            wish: OsConfig::default(),
            standing: Vec::new(),
            put_back: Vec::new(),
            tell,
        };
        let task = tokio::spawn(keeper.follow(wishes, removals));
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

/// The task's state.
struct Keeper {
    routes: Routes,
    dns: Dns,
    wish: OsConfig,
    /// What could not be done for the present wish.
    standing: Vec<String>,
    /// When what was put back, the newest last.
    put_back: Vec<(Instant, String)>,
    tell: watch::Sender<Vec<String>>,
}

impl Keeper {
    async fn follow(mut self, mut wishes: watch::Receiver<OsConfig>, mut removals: removed::Removals) {
        // A daemon that was killed left its rules; addresses and routes went with its interface.
        for line in self.routes.clean().await {
            tracing::warn!("cleaning up after the last daemon: {line}");
        }
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let ours = self.dns.used == Some(DnsMode::Direct);
            tokio::select! {
                changed = wishes.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.wish = wishes.borrow_and_update().clone();
                    self.put_back.clear();
                    self.apply().await;
                }
                () = removals.next() => self.check_routes().await,
                _ = look.tick(), if ours => self.check_dns().await,
            }
            self.report();
        }
        for line in self.routes.apply(&OsConfig::default()).await {
            tracing::warn!("restoring: {line}");
        }
        if let Err(e) = self.dns.restore().await {
            tracing::warn!("restoring DNS: {e}");
        }
    }

    async fn apply(&mut self) {
        self.standing = self.routes.apply(&self.wish).await;
        if let Err(e) = self.dns.apply(&self.wish).await {
            self.standing.push(format!("DNS could not be set: {e}"));
        }
        for line in &self.standing {
            tracing::warn!("{line}");
        }
    }

    /// Whether something may be put back once more.
    fn patient(&self) -> bool {
        let now = Instant::now();
        self.put_back.iter().filter(|(at, _)| now < *at + WINDOW).count() < PATIENCE
    }

    fn note(&mut self, what: String) {
        tracing::warn!("{what}");
        self.put_back.push((Instant::now(), what));
    }

    async fn check_routes(&mut self) {
        if !self.patient() {
            return;
        }
        let (gone, trouble) = self.routes.check(&self.wish).await;
        if !gone.is_empty() {
            self.note(format!("another program removed {}; put back", gone.join(", ")));
        }
        for line in trouble {
            self.note(line);
        }
    }

    async fn check_dns(&mut self) {
        if !self.dns.resolv.overwritten() {
            return;
        }
        if !self.patient() {
            return;
        }
        let text = match self.dns.apply(&self.wish).await {
            Ok(()) => {
                "another program overwrote /etc/resolv.conf; put back. If it goes on, have that program \
                       leave the file alone, or use `tsd node up --accept-dns=false`"
                    .to_owned()
            }
            Err(e) => format!("another program overwrote /etc/resolv.conf, and it cannot be put back: {e}"),
        };
        self.note(text);
    }

    /// Shows what is wrong now and what was lately, each once.
    fn report(&mut self) {
        let now = Instant::now();
        self.put_back.retain(|(at, _)| now < *at + WARN_FOR);
        let mut lines = self.standing.clone();
        for (_, line) in &self.put_back {
            if !lines.contains(line) {
                lines.push(line.clone());
            }
        }
        if !self.patient() {
            lines.push(
                "another program keeps undoing this node's settings of the host; they stay undone".to_owned(),
            );
        }
        self.tell.send_if_modified(|old| {
            let changed = *old != lines;
            *old = lines;
            changed
        });
    }
}
