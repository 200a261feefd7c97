//! What the node is up to: logged out, waiting, starting, running, stopped (control.md 10.1).
//!
//! One task owns preferences, keys and the login, and turns commands, the session's reports and the
//! engine's news into the next state:
//!
//! ```text
//! NeedsLogin ─login─▶ Starting ─a relay or a peer─▶ Running ─down─▶ Stopped ─up─▶ Starting
//!     ▲  logout, key expired, no key                    │  NeedsMachineAuth: the server must approve
//!     └─────────────────────────────────────────────────┘
//! ```

mod learn;
mod login;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::clock::{Now, Rng};
use crate::derp::client::DialOptions;
use crate::keys::{NodePrivate, NodePublic};
use crate::node::control::ControlClient;
use crate::node::core::{Command, CoreHandle, News};
use crate::node::engine::OsConfig;
use crate::node::linkmon::LinkState;
use crate::node::localapi::notify::{Bus, Notify};
use crate::node::os::OsHandle;
use crate::node::prefs::{Prefs, PublicPersist};
use crate::node::session::{self, SessionEvent};
use crate::node::state_file::{NodeState, Profile, StateDir};
use crate::wire::{DerpMap, DnsConfig, MapRequest, Node};

/// Commands waiting at most; callers wait.
const COMMANDS: usize = 16;
/// Session reports waiting at most; the session waits.
const REPORTS: usize = 16;
/// The netmap is kept this long after a change, so that a burst is one write.
const KEEP_AFTER: Duration = Duration::from_millis(500);

/// The state in the official client's words; the numbers are those of the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// Nothing known yet.
    #[default]
    NoState = 0,
    /// No valid login.
    NeedsLogin = 2,
    /// An admin must approve.
    NeedsMachineAuth = 3,
    /// Down on purpose.
    Stopped = 4,
    /// On the way up.
    Starting = 5,
    /// Up.
    Running = 6,
}

impl State {
    /// The word `status` shows.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::NoState => "NoState",
            Self::NeedsLogin => "NeedsLogin",
            Self::NeedsMachineAuth => "NeedsMachineAuth",
            Self::Stopped => "Stopped",
            Self::Starting => "Starting",
            Self::Running => "Running",
        }
    }
}

/// What callers may ask. Not shown whole, as it may hold a pre-auth key.
pub enum Ask {
    /// Edit preferences.
    Edit(Value, oneshot::Sender<Result<Prefs, String>>),
    /// Begin with these preferences and this pre-auth key.
    Start(Option<Box<Prefs>>, Option<String>, oneshot::Sender<Result<(), String>>),
    /// Log in by a person.
    Login(oneshot::Sender<Result<(), String>>),
    /// Log out.
    Logout(oneshot::Sender<Result<(), String>>),
    /// End the daemon.
    Shutdown,
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Edit(..) => "Edit",
            Self::Start(..) => "Start",
            Self::Login(_) => "Login",
            Self::Logout(_) => "Logout",
            Self::Shutdown => "Shutdown",
        })
    }
}

/// What readers see; replaced as a whole at every change.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Where we are.
    pub state: State,
    /// Preferences with the public part of the login.
    pub prefs: Prefs,
    /// A person must open this.
    pub auth_url: String,
    /// Problems, in words.
    pub health: Vec<String>,
    /// A node key is stored.
    pub have_node_key: bool,
    /// The node key, or the zero key.
    pub node_key: NodePublic,
    /// The login.
    pub profile: Option<Profile>,
    /// The relays.
    pub derp_map: DerpMap,
    /// DNS as pushed.
    pub dns: DnsConfig,
    /// The map stream is open.
    pub control_up: bool,
}

/// A way to the lifecycle.
#[derive(Debug, Clone)]
pub struct Backend {
    asks: mpsc::Sender<Ask>,
    view: watch::Receiver<View>,
    /// The bus of notifications.
    pub bus: Bus,
}

impl Backend {
    /// A way to nobody, with this view, for tests of what stands above it.
    #[cfg(test)]
    pub(crate) fn showing(view: View) -> Self {
        Self { asks: mpsc::channel(1).0, view: watch::channel(view).1, bus: Bus::new() }
    }

    /// The present view.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// A channel of views.
    #[must_use]
    pub fn views(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// Asks and waits.
    ///
    /// # Errors
    /// In words for the caller.
    pub async fn ask<T>(
        &self,
        ask: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Ask,
    ) -> Result<T, String> {
        let (tx, rx) = oneshot::channel();
        let gone = || "the node is shutting down".to_owned();
        self.asks.send(ask(tx)).await.map_err(|_| gone())?;
        rx.await.map_err(|_| gone())?
    }

    /// Asks the daemon to end.
    pub async fn shutdown(&self) {
        let _ = self.asks.send(Ask::Shutdown).await;
    }
}

/// What the lifecycle is made from.
#[derive(Debug)]
pub struct LifecycleParts {
    /// The state directory, locked.
    pub dir: StateDir,
    /// What was in it.
    pub state: NodeState,
    /// The engine's owner.
    pub core: CoreHandle,
    /// The OS.
    pub os: OsHandle,
    /// The host's network.
    pub links: watch::Receiver<LinkState>,
    /// The bound UDP ports.
    pub ports: (Option<u16>, Option<u16>),
    /// Randomness.
    pub rng: Rng,
}

/// What the server told of us, as far as the state depends on it.
#[derive(Debug, Default)]
struct Told {
    self_node: Option<Node>,
    derp_map: DerpMap,
    dns: DnsConfig,
    domain: String,
    messages: BTreeMap<String, String>,
    health: Vec<String>,
}

/// The lifecycle.
pub struct Lifecycle {
    dir: StateDir,
    state: NodeState,
    core: CoreHandle,
    os: OsHandle,
    links: watch::Receiver<LinkState>,
    ports: (Option<u16>, Option<u16>),
    options: DialOptions,
    rng: Rng,
    asks: mpsc::Receiver<Ask>,
    reports: mpsc::Receiver<(u64, SessionEvent)>,
    report_tx: mpsc::Sender<(u64, SessionEvent)>,
    view: watch::Sender<View>,
    bus: Bus,
    session: JoinSet<()>,
    session_id: u64,
    client: Option<Arc<ControlClient>>,
    request: watch::Sender<MapRequest>,
    auth_key: Option<String>,
    auth_url: String,
    registering: bool,
    blocked: bool,
    told: Told,
    news: News,
    control_up: bool,
    trouble: String,
    keep_at: Option<tokio::time::Instant>,
    writer: Option<tokio::task::JoinHandle<()>>,
    expiry_told: Option<DateTime<Utc>>,
    links_told: bool,
    links_seen: LinkState,
    key_login: bool,
}

impl std::fmt::Debug for Lifecycle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lifecycle")
            .field("state", &self.compute())
            .field("session", &self.session_id)
            .finish_non_exhaustive()
    }
}

/// Makes the lifecycle and the way to it.
#[must_use]
pub fn new(parts: LifecycleParts, options: DialOptions) -> (Lifecycle, Backend) {
    let (ask_tx, asks) = mpsc::channel(COMMANDS);
    let (report_tx, reports) = mpsc::channel(REPORTS);
    let (view, views) = watch::channel(View::default());
    let bus = Bus::new();
    let lifecycle = Lifecycle {
        dir: parts.dir,
        state: parts.state,
        core: parts.core,
        os: parts.os,
        links: parts.links,
        ports: parts.ports,
        options,
        rng: parts.rng,
        asks,
        reports,
        report_tx,
        view,
        bus: bus.clone(),
        session: JoinSet::new(),
        session_id: 0,
        client: None,
        request: watch::channel(MapRequest::default()).0,
        auth_key: None,
        auth_url: String::new(),
        registering: false,
        blocked: false,
        told: Told::default(),
        news: News::default(),
        control_up: false,
        trouble: String::new(),
        keep_at: None,
        writer: None,
        expiry_told: None,
        links_told: false,
        links_seen: LinkState::default(),
        key_login: false,
    };
    let backend = Backend { asks: ask_tx, view: views, bus };
    (lifecycle, backend)
}

impl Lifecycle {
    /// Runs until `stop`, then puts the host back.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        let mut news = self.core.news();
        let mut os_trouble = self.os.trouble();
        let mut links = self.links.clone();
        links.mark_changed();
        if self.state.prefs.want_running && self.state.node_key.is_some() {
            self.bring_up().await;
        }
        self.publish();
        loop {
            let keep = self.keep_at;
            let keep = async {
                match keep {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let expiry = self.expiry_wait();
            tokio::select! {
                () = &mut stop => break,
                Some(ask) = self.asks.recv() => {
                    if matches!(ask, Ask::Shutdown) {
                        break;
                    }
                    self.answer(ask).await;
                }
                Some((session, event)) = self.reports.recv() => {
                    if session == self.session_id {
                        self.report(event).await;
                    }
                }
                Ok(()) = news.changed() => {
                    let latest = news.borrow_and_update().clone();
                    self.hear(latest).await;
                }
                Ok(()) = os_trouble.changed() => { os_trouble.borrow_and_update(); }
                Ok(()) = links.changed() => {
                    links.borrow_and_update();
                    self.link_change().await;
                }
                () = keep => self.keep_netmap().await,
                () = tokio::time::sleep(expiry), if !expiry.is_zero() => {
                    self.expiry_told = self.key_expiry();
                }
            }
            self.publish();
        }
        self.end().await;
    }

    async fn end(mut self) {
        self.session.shutdown().await;
        if self.keep_at.is_some() {
            self.keep_netmap().await;
        }
        if let Some(writer) = self.writer.take() {
            let _ = writer.await;
        }
        self.os.restore().await;
    }

    // ---- state -------------------------------------------------------------------------------

    fn key_expiry(&self) -> Option<DateTime<Utc>> {
        self.told.self_node.as_ref().and_then(|n| n.key_expiry)
    }

    fn expired(&self) -> bool {
        let past = self.key_expiry().is_some_and(|at| at <= Now::read().wall);
        past || self.news.expired
    }

    /// Time until our key expires, zero when nothing is to be waited for.
    fn expiry_wait(&self) -> Duration {
        let Some(at) = self.key_expiry() else {
            return Duration::ZERO;
        };
        if self.expiry_told == Some(at) {
            return Duration::ZERO;
        }
        let left = (at - Now::read().wall).to_std().unwrap_or_default();
        // Long waits are cut, because the wall clock may jump.
        left.clamp(Duration::from_millis(50), Duration::from_secs(60))
    }

    fn compute(&self) -> State {
        let prefs = &self.state.prefs;
        if self.state.node_key.is_none() || prefs.logged_out || self.blocked || self.expired() {
            return State::NeedsLogin;
        }
        if !prefs.want_running {
            return State::Stopped;
        }
        match &self.told.self_node {
            None => State::Starting,
            Some(node) if !node.machine_authorized => State::NeedsMachineAuth,
            Some(_) if self.news.relays.is_empty() && !self.news.heard => State::Starting,
            Some(_) => State::Running,
        }
    }

    fn shown_prefs(&self) -> Prefs {
        let config =
            self.state.profile.as_ref().map(|p| PublicPersist::new(p.user.clone(), p.node_id.clone()));
        Prefs { config, ..self.state.prefs.clone() }
    }

    fn health(&self, state: State) -> Vec<String> {
        let mut out = self.told.health.clone();
        out.extend(self.told.messages.values().cloned());
        if !self.trouble.is_empty() {
            out.push(self.trouble.clone());
        }
        if self.expired() && self.state.node_key.is_some() {
            out.push("the node key has expired; log in again with `tsd node up`".to_owned());
        }
        if state == State::Starting && self.told.self_node.is_some() && self.news.relays.is_empty() {
            out.push("no relay is connected".to_owned());
        }
        out.extend(self.news.relay_health.values().cloned());
        out.extend(self.os.trouble().borrow().iter().cloned());
        out
    }

    /// Shows the present state to readers and, where it changed, on the bus; sets up the OS for it.
    fn publish(&mut self) {
        let state = self.compute();
        let up = matches!(state, State::Starting | State::Running);
        let os = if up { self.news.os.clone() } else { OsConfig::default() };
        self.os.set(os);
        let view = View {
            state,
            prefs: self.shown_prefs(),
            auth_url: self.auth_url.clone(),
            health: self.health(state),
            have_node_key: self.state.node_key.is_some(),
            node_key: self.state.node_key.as_ref().map(NodePrivate::public).unwrap_or_default(),
            profile: self.state.profile.clone(),
            derp_map: self.told.derp_map.clone(),
            dns: self.told.dns.clone(),
            control_up: self.control_up,
        };
        let old = self.view.send_replace(view);
        let mut notify = Notify::default();
        if old.state != state {
            tracing::info!("state {}", state.word());
            notify.state = Some(state as i32);
        }
        let prefs = self.shown_prefs();
        if old.prefs != prefs {
            notify.prefs = Some(Box::new(prefs));
        }
        if old.auth_url != self.auth_url && !self.auth_url.is_empty() {
            notify.browse_to_url = Some(self.auth_url.clone());
        }
        self.bus.send(notify);
    }

    fn save(&self) -> Result<(), String> {
        self.dir.save(&self.state).map_err(|e| {
            tracing::error!("{e}");
            e.to_string()
        })
    }

    // ---- commands ----------------------------------------------------------------------------

    async fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Edit(masked, reply) => {
                let _ = reply.send(self.edit(&masked).await);
            }
            Ask::Start(prefs, auth_key, reply) => {
                let _ = reply.send(self.start(prefs, auth_key).await);
            }
            Ask::Login(reply) => {
                let _ = reply.send(self.login_interactive());
            }
            Ask::Logout(reply) => {
                let _ = reply.send(self.logout().await);
            }
            Ask::Shutdown => {}
        }
    }

    async fn edit(&mut self, masked: &Value) -> Result<Prefs, String> {
        let mut prefs = self.state.prefs.clone();
        prefs.apply_masked(masked).map_err(|e| e.to_string())?;
        prefs.check().map_err(|e| e.to_string())?;
        self.take_prefs(prefs).await?;
        Ok(self.shown_prefs())
    }

    /// Stores new preferences and lets them work.
    async fn take_prefs(&mut self, mut prefs: Prefs) -> Result<(), String> {
        prefs.config = None;
        let old = std::mem::replace(&mut self.state.prefs, prefs);
        if let Err(e) = self.save() {
            self.state.prefs = old;
            return Err(e);
        }
        let now = self.state.prefs.clone();
        if old.control_url != now.control_url && self.client.is_some() {
            self.stop_session();
        }
        let packets = Command::Prefs(now.route_all, now.corp_dns, now.shields_up);
        let _ = self.core.tell(packets).await;
        self.refresh_request();
        let up = now.want_running && !now.logged_out && self.state.node_key.is_some();
        if up && self.client.is_none() && !self.blocked {
            self.bring_up().await;
        } else if !now.want_running && old.want_running {
            self.bring_down().await;
        }
        Ok(())
    }

    async fn start(&mut self, prefs: Option<Box<Prefs>>, auth_key: Option<String>) -> Result<(), String> {
        let mut prefs = prefs.map_or_else(|| self.state.prefs.clone(), |p| *p);
        prefs.check().map_err(|e| e.to_string())?;
        prefs.logged_out = false;
        let moved = prefs.control_url != self.state.prefs.control_url;
        if moved && self.state.node_key.is_some() {
            // A key of another server means nothing here.
            self.forget_login();
        }
        self.auth_key = auth_key.filter(|k| !k.is_empty());
        let fresh = self.auth_key.is_some();
        self.key_login = fresh;
        if fresh {
            self.stop_session();
            self.blocked = false;
        }
        self.take_prefs(prefs).await?;
        // Bringing it up may have begun that already; two logins at once would be with two keys.
        if fresh && self.state.prefs.want_running && !self.registering {
            self.register(false)?;
        }
        Ok(())
    }

    fn login_interactive(&mut self) -> Result<(), String> {
        self.state.prefs.logged_out = false;
        if self.key_login {
            // `up` with a key asks for both; the key needs no person.
            return Ok(());
        }
        if self.registering && !self.auth_url.is_empty() {
            let url = Some(self.auth_url.clone());
            self.bus.send(Notify { browse_to_url: url, ..Notify::default() });
            return Ok(());
        }
        self.stop_session();
        self.blocked = false;
        self.state.prefs.want_running = true;
        self.save()?;
        self.register(true)
    }

    async fn logout(&mut self) -> Result<(), String> {
        if let (Some(client), Some(key)) = (self.client.clone(), &self.state.node_key) {
            let info = self.hostinfo();
            session::logout(&client, key.public(), info, self.lock_key()).await;
        }
        self.stop_session();
        self.forget_login();
        self.state.prefs.logged_out = true;
        self.state.prefs.want_running = false;
        let _ = self.core.tell(Command::Configure(None)).await;
        self.save()
    }

    fn forget_login(&mut self) {
        self.stop_session();
        self.key_login = false;
        self.state.old_node_key = None;
        self.state.node_key = None;
        self.state.profile = None;
        self.told = Told::default();
        self.auth_url.clear();
        self.keep_at = None;
        self.dir.netmap_writer().remove();
    }
}
