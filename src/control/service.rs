//! The one door to the tailnet's state: reads are a snapshot, writes are commands that return when
//! they are on disk. Console, admin socket and machine endpoints all come through here, with the same
//! checks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use chrono::{DateTime, Utc};
use ipnet::IpNet;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::health::Health;
use super::owner::{self, Owner, RevokedHook, Shared};
use super::presence::Hub;
use super::state::{Draft, Tailnet};
use super::strangers::Strangers;
pub use super::types::{
    Actor, AdminError, AuthKeyView, Comparison, ControlStats, LoginView, NewAuthKey, NewAuthKeyRequest,
    NodeView, PolicyOutcome, Settings, UserView,
};
use super::{admin, policies, views};
use crate::clock::{Now, Rng};
use crate::keys::{MachinePrivate, NodePublic};
use crate::model::{Role, Tag};
use crate::store::Store;

/// Connections inside Noise at most; further ones are turned away.
const MAX_CONNECTIONS: usize = 20_000;
/// Request bodies over the common size that are held at the same time.
const LARGE_BODIES: usize = 32;
/// How long open connections may take to end at shutdown before they are cut.
const LAST_CALL: Duration = Duration::from_secs(2);

struct Inner {
    shared: Arc<Shared>,
    commands: mpsc::Sender<owner::Command>,
    stop: watch::Sender<bool>,
    /// Said to the owner after all connections have ended, so that it hears of them.
    end: watch::Sender<bool>,
    tasks: parking_lot::Mutex<JoinSet<()>>,
    owner: parking_lot::Mutex<Option<tokio::task::JoinHandle<()>>>,
    noise_key: MachinePrivate,
    /// First maps built at the same time at most: one per processor.
    maps: Semaphore,
    connections: Arc<Semaphore>,
    strangers: Strangers,
    large_bodies: Semaphore,
}

/// A handle to the running coordination server; clones share it.
#[derive(Clone)]
pub struct Control {
    inner: Arc<Inner>,
}

impl Control {
    /// Opens the database in `state_dir`, loads everything and starts the owner task.
    ///
    /// # Errors
    /// When the database is unreadable, newer than we are, or in use; the text says what to do.
    pub async fn start(
        state_dir: &std::path::Path,
        noise_key: MachinePrivate,
        settings: Settings,
    ) -> anyhow::Result<Self> {
        let dir = state_dir.to_owned();
        let (store, stored) = tokio::task::spawn_blocking(move || Store::open(&dir))
            .await
            .context("opening the database")??;
        let now = Now::read();
        let begin = policies::beginning(&store, stored.policy.clone(), now).await?;
        let mut net = Tailnet::new(stored, begin.policy, begin.version, settings, now);
        if let Some(fault) = begin.fault {
            tracing::error!("{fault}");
            net.policy_fault = Some(fault.into());
        }
        let health = Arc::new(Health::default());
        let closed = health.fuse("database writer");
        store.when_ended(Box::new(move |well| {
            if well {
                closed.defuse()
            }
        }));
        let shared = Arc::new(Shared {
            health,
            sources: super::sources::Sources::default(),
            net: ArcSwap::from_pointee(net),
            hub: Arc::new(Hub::default()),
            store,
            hook: parking_lot::RwLock::new(None),
            addresses: parking_lot::RwLock::new(None),
            logins: watch::Sender::new(0),
            worlds: watch::Sender::new(0),
            broken: watch::Sender::default(),
        });
        let (commands, queue) = mpsc::channel(owner::QUEUE);
        let stop = watch::Sender::new(false);
        let end = watch::Sender::new(false);
        let owner = Owner {
            shared: Arc::clone(&shared),
            commands: queue,
            rng: Rng::from_os(),
            started: now,
            lagging: BTreeSet::new(),
        };
        let owner = tokio::spawn(owner.run(end.subscribe()));
        let mut tasks = JoinSet::new();
        tasks.spawn(super::proving::watch(Arc::clone(&shared), stop.subscribe()));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            inner: Arc::new(Inner {
                shared,
                commands,
                stop,
                end,
                tasks: parking_lot::Mutex::new(tasks),
                owner: parking_lot::Mutex::new(Some(owner)),
                noise_key,
                maps: Semaphore::new(processors),
                connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
                strangers: Strangers::default(),
                large_bodies: Semaphore::new(LARGE_BODIES),
            }),
        })
    }

    /// Called with every node key that lost its place (removed, expired, rotated): the relay closes it.
    pub fn on_revoked(&self, hook: Arc<dyn Fn(NodePublic) + Send + Sync>) {
        let hook: RevokedHook = hook;
        *self.inner.shared.hook.write() = Some(hook);
    }

    /// Whether a node key belongs to a live node: relay admission. Answers from memory.
    #[must_use]
    pub fn knows_node(&self, key: &NodePublic) -> bool {
        let net = self.net();
        net.by_key(key).is_some_and(|n| !n.expired(self.now().wall))
    }

    /// Replaces the settings and tells clients what changed.
    ///
    /// # Errors
    /// When the owner task is gone.
    pub async fn reload(&self, settings: Settings) -> Result<(), AdminError> {
        self.run(move |draft| {
            draft.net.settings = Arc::new(settings);
            draft.change.settings = true;
            Ok(())
        })
        .await
    }

    /// Says stop: ends streams, flushes everything lagging, closes the database.
    pub async fn shutdown(&self) {
        self.inner.stop.send_replace(true);
        let mut tasks = std::mem::take(&mut *self.inner.tasks.lock());
        let ended = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_CALL, ended).await.is_err() {
            tracing::warn!(left = tasks.len(), "connections did not end in time; they are cut");
            tasks.shutdown().await;
        }
        self.inner.end.send_replace(true);
        let owner = self.inner.owner.lock().take();
        if let Some(owner) = owner
            && let Err(error) = owner.await
        {
            tracing::error!(%error, "the owner of the state ended badly");
        }
        let shared = Arc::clone(&self.inner.shared);
        if let Err(error) = tokio::task::spawn_blocking(move || shared.store.close()).await {
            tracing::error!(%error, "closing the database");
        }
    }

    /// Figures.
    #[must_use]
    pub fn stats(&self) -> ControlStats {
        let failing = self.shared().broken.borrow().len();
        ControlStats { policy_tests_failing: failing, ..views::stats(&self.net()) }
    }

    /// All users in order of id.
    #[must_use]
    pub fn users(&self) -> Vec<UserView> {
        let net = self.net();
        net.users.values().map(|u| views::user(&net, u)).collect()
    }

    /// Makes a user.
    ///
    /// # Errors
    /// When the name is taken or no login name.
    pub async fn create_user(&self, by: &Actor, name: &str) -> Result<UserView, AdminError> {
        let name = name.to_owned();
        let by = by.clone();
        self.run(move |draft| {
            let done = admin::create_user(draft, &name)?;
            tracing::info!(by = %by.name, user = %done.id, "create user");
            Ok(done)
        })
        .await
    }

    /// Renames a user (`user` is an id or a name).
    ///
    /// # Errors
    /// When there is no such user or the name is taken.
    pub async fn rename_user(&self, by: &Actor, user: &str, name: &str) -> Result<UserView, AdminError> {
        let user = user.to_owned();
        let name = name.to_owned();
        let by = by.clone();
        self.run(move |draft| {
            let done = admin::rename_user(draft, &user, &name)?;
            tracing::info!(by = %by.name, user = %done.id, "rename user");
            Ok(done)
        })
        .await
    }

    /// Gives a user another role; their devices hear of it at once.
    ///
    /// # Errors
    /// When there is no such user, or they are the only owner.
    pub async fn set_role(&self, by: &Actor, user: &str, role: Role) -> Result<UserView, AdminError> {
        let user = user.to_owned();
        let by = by.clone();
        self.run(move |draft| {
            let done = admin::set_role(draft, &user, role)?;
            tracing::info!(by = %by.name, user = %done.id, role = %done.role, "set role");
            Ok(done)
        })
        .await
    }

    /// Deletes a user without devices; their keys are revoked.
    ///
    /// # Errors
    /// When there is no such user or devices are left.
    pub async fn delete_user(&self, by: &Actor, user: &str) -> Result<UserView, AdminError> {
        let user = user.to_owned();
        let by = by.clone();
        self.run(move |draft| {
            let done = admin::delete_user(draft, &user)?;
            tracing::info!(by = %by.name, user = %done.id, "delete user");
            Ok(done)
        })
        .await
    }

    /// All pre-auth keys, newest first.
    #[must_use]
    pub fn auth_keys(&self) -> Vec<AuthKeyView> {
        let (net, now) = (self.net(), self.now().wall);
        let keys = net.keys.values().rev();
        keys.map(|k| views::auth_key(&net, k, now)).collect()
    }

    /// Makes a pre-auth key.
    ///
    /// # Errors
    /// When there is no such user, a tag is not declared, or the lifetime is out of range.
    pub async fn create_auth_key(
        &self,
        by: &Actor,
        request: NewAuthKeyRequest,
    ) -> Result<NewAuthKey, AdminError> {
        let by = by.clone();
        self.run(move |draft| {
            let done = admin::create_auth_key(draft, request)?;
            tracing::info!(by = %by.name, key = %done.view.id, "create auth key");
            Ok(done)
        })
        .await
    }

    /// Revokes a key by id or by its full text; its nodes stay.
    ///
    /// # Errors
    /// When there is no such key.
    pub async fn revoke_auth_key(&self, by: &Actor, key: &str) -> Result<AuthKeyView, AdminError> {
        let key = key.to_owned();
        let by = by.clone();
        self.run(move |draft| {
            let done = admin::revoke_auth_key(draft, &key)?;
            tracing::info!(by = %by.name, key = %done.id, "revoke auth key");
            Ok(done)
        })
        .await
    }

    /// All nodes in order of id.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeView> {
        let (net, now) = (self.net(), self.now().wall);
        net.nodes.values().map(|n| views::node(&net, n, now)).collect()
    }

    /// One node by id, label, full name or address.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, node: &str) -> Result<NodeView, AdminError> {
        let net = self.net();
        let node = views::find_node(&net, node)?;
        Ok(views::node(&net, &node, self.now().wall))
    }

    /// Gives a node a name.
    ///
    /// # Errors
    /// When there is no such node, the name is no label, or taken.
    pub async fn rename_node(&self, by: &Actor, node: &str, name: &str) -> Result<NodeView, AdminError> {
        let node = node.to_owned();
        let name = name.to_owned();
        let by = by.clone();
        self.run(move |draft| {
            let done = admin::rename_node(draft, &node, &name)?;
            tracing::info!(by = %by.name, node = %done.id, "rename node");
            Ok(done)
        })
        .await
    }

    /// Replaces a node's tags; no tags gives it back to the user who made it, if there is one.
    ///
    /// # Errors
    /// When there is no such node or a tag is not declared in the policy.
    pub async fn tag_node(&self, by: &Actor, node: &str, tags: &[Tag]) -> Result<NodeView, AdminError> {
        let node = node.to_owned();
        let tags = tags.to_vec();
        let by = by.clone();
        self.run(move |draft| {
            let done = admin::tag_node(draft, &node, &tags)?;
            tracing::info!(by = %by.name, node = %done.id, "tag node");
            Ok(done)
        })
        .await
    }

    /// Expires a node's key now.
    ///
    /// # Errors
    /// When there is no such node.
    pub async fn expire_node(&self, by: &Actor, node: &str) -> Result<NodeView, AdminError> {
        let node = node.to_owned();
        let by = by.clone();
        self.run(move |draft| {
            let done = admin::expire_node(draft, &node)?;
            tracing::info!(by = %by.name, node = %done.id, "expire node");
            Ok(done)
        })
        .await
    }

    /// Removes a node for good.
    ///
    /// # Errors
    /// When there is no such node.
    pub async fn delete_node(&self, by: &Actor, node: &str) -> Result<NodeView, AdminError> {
        let node = node.to_owned();
        let by = by.clone();
        self.run(move |draft| {
            let done = admin::delete_node(draft, &node)?;
            tracing::info!(by = %by.name, node = %done.id, "delete node");
            Ok(done)
        })
        .await
    }

    /// Sets the approved routes (`None` approves all it offers now).
    ///
    /// # Errors
    /// When there is no such node.
    pub async fn approve_routes(
        &self,
        by: &Actor,
        node: &str,
        routes: Option<&[IpNet]>,
    ) -> Result<NodeView, AdminError> {
        let node = node.to_owned();
        let routes = routes.map(<[IpNet]>::to_vec);
        let by = by.clone();
        self.run(move |draft| {
            let done = admin::approve_routes(draft, &node, routes.as_deref())?;
            tracing::info!(by = %by.name, node = %done.id, "approve routes");
            Ok(done)
        })
        .await
    }

    /// Waiting logins, oldest first.
    #[must_use]
    pub fn logins(&self) -> Vec<LoginView> {
        let (net, now) = (self.net(), self.now().wall);
        let mut logins: Vec<LoginView> =
            net.logins.values().filter(|l| l.expires > now).map(|l| views::login(l)).collect();
        logins.sort_by_key(|l| l.created);
        logins
    }

    /// Lets a waiting login in as `user` (a name; created is the only user when `None`).
    ///
    /// # Errors
    /// When it is gone or there is no such user.
    pub async fn approve_login(
        &self,
        by: &Actor,
        id: &str,
        user: Option<&str>,
    ) -> Result<NodeView, AdminError> {
        let id = id.to_owned();
        let user = user.map(str::to_owned);
        let by = by.clone();
        self.run(move |draft| {
            let done = admin::approve_login(draft, &id, user.as_deref())?;
            tracing::info!(by = %by.name, node = %done.id, "approve login");
            Ok(done)
        })
        .await
    }

    /// Turns a waiting login away.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn reject_login(&self, by: &Actor, id: &str) -> Result<LoginView, AdminError> {
        let id = id.to_owned();
        let by = by.clone();
        self.run(move |draft| {
            let done = admin::reject_login(draft, &id)?;
            tracing::info!(by = %by.name, "reject login");
            Ok(done)
        })
        .await
    }

    /// A small durable table for the console's sessions and one-time tokens: stores `value` under
    /// SHA-256 of a secret until `expires`.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn put_secret(
        &self,
        kind: &str,
        hash: [u8; 32],
        value: &str,
        expires: DateTime<Utc>,
    ) -> Result<(), AdminError> {
        let store = &self.inner.shared.store;
        let done = store.put_secret(kind, hash, value, expires, self.now().wall);
        done.await.map_err(|e| AdminError::Internal(e.to_string()))
    }

    /// Looks a secret up; `None` when unknown or lapsed.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn secret(&self, kind: &str, hash: [u8; 32]) -> Result<Option<String>, AdminError> {
        let store = &self.inner.shared.store;
        let found = store.secret(kind, hash, false, self.now().wall);
        found.await.map_err(|e| AdminError::Internal(e.to_string()))
    }

    /// Takes a secret out: of two callers exactly one gets it.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn take_secret(&self, kind: &str, hash: [u8; 32]) -> Result<Option<String>, AdminError> {
        let store = &self.inner.shared.store;
        let found = store.secret(kind, hash, true, self.now().wall);
        found.await.map_err(|e| AdminError::Internal(e.to_string()))
    }
}

/// What the other shells of this room need of the handle.
impl Control {
    /// The state as published last.
    pub(super) fn net(&self) -> Arc<Tailnet> {
        self.inner.shared.net.load_full()
    }

    /// Has the owner break in an answer.
    #[cfg(test)]
    pub(super) async fn break_owner(&self) {
        let command: owner::Command = Box::new(|_| Box::new(|_| panic!("a fault of ours")));
        self.inner.commands.send(command).await.ok().unwrap();
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    pub(super) fn noise_key(&self) -> &MachinePrivate {
        &self.inner.noise_key
    }

    pub(super) fn maps(&self) -> &Semaphore {
        &self.inner.maps
    }

    pub(super) fn strangers(&self) -> &Strangers {
        &self.inner.strangers
    }

    pub(super) fn large_bodies(&self) -> &Semaphore {
        &self.inner.large_bodies
    }

    pub(super) fn stopping(&self) -> watch::Receiver<bool> {
        self.inner.stop.subscribe()
    }

    /// Runs `operation` in the owner's next round and returns when its rows are on disk.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut Draft) -> Result<T, AdminError> + Send + 'static,
    ) -> Result<T, AdminError> {
        let (tell, told) = oneshot::channel();
        let command: owner::Command = Box::new(move |draft| {
            let result = operation(draft);
            Box::new(move |fate| {
                // A caller that gave up needs no answer.
                let _ = tell.send(fate.map_err(AdminError::Internal).and(result));
            })
        });
        let gone = || AdminError::Internal("the server is stopping; nothing was changed".into());
        self.inner.commands.send(command).await.map_err(|_| gone())?;
        told.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Starts a task that ends with the server; `None` when there are too many.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Option<()> {
        let permit = Arc::clone(&self.inner.connections).try_acquire_owned().ok()?;
        let mut tasks = self.inner.tasks.lock();
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "a connection ended by a fault of ours");
            }
        }
        tasks.spawn(async move {
            task.await;
            drop(permit);
        });
        Some(())
    }
}
