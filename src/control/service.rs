//! The one door to the tailnet's state: reads are a snapshot, writes are commands that return when
//! they are on disk. Console, admin socket and machine endpoints all come through here, with the same
//! checks.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use ipnet::IpNet;
use serde::Serialize;

use crate::acl::{AccessDiff, PolicyError};
use crate::keys::{MachinePrivate, NodeId, NodePublic, UserId};
use crate::model::{KeyId, LoginId, PolicyVersion, Tag};
use crate::wire::{DerpMap, DnsRecord, Resolver};

/// Who does something, for the log and the policy history: `admin socket`, `console`, `start`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor(pub String);

/// Whose mistake it was; decides exit status and HTTP status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// There is no such user, node, key or login. The text names it and says how to list.
    #[error("{0}")]
    NotFound(String),
    /// The request cannot be done as asked; says what to change.
    #[error("{0}")]
    Invalid(String),
    /// It would contradict what is there (a name that is taken).
    #[error("{0}")]
    Conflict(String),
    /// The policy text has faults.
    #[error("the policy has {} fault(s)", .0.len())]
    Policy(Vec<PolicyError>),
    /// The change takes access away and was not confirmed.
    #[error("this change takes access away from {} pair(s) of devices", .0.lost_total)]
    NeedsConfirmation(Box<AccessDiff>),
    /// Our failure (disk); nothing was changed.
    #[error("{0}")]
    Internal(String),
}

/// A user, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UserView {
    /// Id.
    pub id: UserId,
    /// Login name.
    pub name: String,
    /// When made.
    pub created: DateTime<Utc>,
    /// How many devices they own.
    pub nodes: usize,
}

/// A node, for people. Strings from the node are hostile text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeView {
    /// Id.
    pub id: NodeId,
    /// Bare label.
    pub name: String,
    /// `name.base.domain` without trailing dot.
    pub fqdn: String,
    /// What the machine calls itself.
    pub hostname: String,
    /// Owner's login name; `None` when tagged.
    pub user: Option<String>,
    /// Tags.
    pub tags: Vec<Tag>,
    /// IPv4.
    pub ipv4: Ipv4Addr,
    /// IPv6.
    pub ipv6: Ipv6Addr,
    /// Has an open map stream.
    pub online: bool,
    /// When it was last seen; `None` when never or now.
    pub last_seen: Option<DateTime<Utc>>,
    /// Client version text.
    pub version: String,
    /// OS text.
    pub os: String,
    /// When its key expires.
    pub expires: Option<DateTime<Utc>>,
    /// Whether it has.
    pub expired: bool,
    /// Ephemeral.
    pub ephemeral: bool,
    /// When it joined.
    pub created: DateTime<Utc>,
    /// Offered routes.
    pub advertised_routes: Vec<IpNet>,
    /// Approved routes.
    pub approved_routes: Vec<IpNet>,
    /// Home relay region, 0 when unknown.
    pub home_derp: u64,
    /// Where it says it can be reached.
    pub endpoints: Vec<std::net::SocketAddr>,
    /// Node key.
    pub key: NodePublic,
    /// Machine key.
    pub machine: crate::keys::MachinePublic,
}

/// A pre-auth key, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuthKeyView {
    /// Id; also the visible middle of the key text.
    pub id: KeyId,
    /// Owner's login name.
    pub user: String,
    /// May be used more than once.
    pub reusable: bool,
    /// Nodes are ephemeral.
    pub ephemeral: bool,
    /// Tags for its nodes.
    pub tags: Vec<Tag>,
    /// When made.
    pub created: DateTime<Utc>,
    /// When it stops working.
    pub expires: DateTime<Utc>,
    /// `usable`, `used`, `expired`, `revoked`.
    pub state: &'static str,
    /// How many nodes came by it.
    pub uses: u64,
}

/// A new key: the only time its secret is seen.
#[derive(Clone, PartialEq, Eq)]
pub struct NewAuthKey {
    /// What was made.
    pub view: AuthKeyView,
    /// `tskey-auth-<id>-<secret>`.
    pub secret: String,
}

/// What a new pre-auth key should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAuthKeyRequest {
    /// Owner's login name.
    pub user: String,
    /// May be used more than once.
    pub reusable: bool,
    /// Nodes are ephemeral.
    pub ephemeral: bool,
    /// Tags for its nodes.
    pub tags: Vec<Tag>,
    /// How long it works; at most 90 days.
    pub lifetime: Duration,
}

/// A waiting login, for people. Strings from the machine are hostile text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LoginView {
    /// Id, as in the AuthURL.
    pub id: LoginId,
    /// What the machine calls itself.
    pub hostname: String,
    /// OS text.
    pub os: String,
    /// Client version text.
    pub version: String,
    /// Node key it wants authorized.
    pub key: NodePublic,
    /// When it asked.
    pub created: DateTime<Utc>,
    /// When it lapses.
    pub expires: DateTime<Utc>,
}

/// How a stored policy went in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyOutcome {
    /// Its number; the current one when `applied` is false.
    pub version: u64,
    /// Who gains and loses.
    pub diff: AccessDiff,
    /// Faults that do not stop it.
    pub warnings: Vec<PolicyError>,
    /// Stored and in force; false for a check.
    pub applied: bool,
}

/// What the server is told by config file and flags; replaced as a whole on SIGHUP.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The URL clients know us by, no trailing slash.
    pub url: String,
    /// The base domain, no dots at the ends: `tail.internal`.
    pub base_domain: String,
    /// Tailnet name shown by clients.
    pub tailnet_name: String,
    /// Relays as pushed to clients.
    pub derp_map: DerpMap,
    /// Global resolvers.
    pub resolvers: Vec<Resolver>,
    /// Split DNS: suffix to resolvers.
    pub split: std::collections::BTreeMap<String, Vec<Resolver>>,
    /// Further search domains.
    pub search: Vec<String>,
    /// Extra records.
    pub extra_records: Vec<DnsRecord>,
    /// Off leaves names alone.
    pub magic_dns: bool,
    /// How long a login lasts; `None` is for ever. Tagged nodes never expire.
    pub key_expiry: Option<Duration>,
    /// How long an ephemeral node may be away.
    pub ephemeral_timeout: Duration,
    /// Addresses are taken from here (default 100.64.0.0/10).
    pub ipv4_pool: ipnet::Ipv4Net,
}

/// Figures for `/metrics` and `tsd status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ControlStats {
    /// Nodes in all.
    pub nodes: usize,
    /// With an open map stream.
    pub online: usize,
    /// Users in all.
    pub users: usize,
    /// Waiting logins.
    pub logins: usize,
    /// Version of the policy in force; 0 is the default.
    pub policy_version: u64,
}

/// A handle to the running coordination server; clones share it.
#[derive(Clone)]
pub struct Control {
    _inner: Arc<()>,
}

impl Control {
    /// Opens the database in `state_dir`, loads everything and starts the owner task.
    ///
    /// # Errors
    /// When the database is unreadable, newer than we are, or in use; the text says what to do.
    pub async fn start(
        _state_dir: &std::path::Path,
        _noise_key: MachinePrivate,
        _settings: Settings,
    ) -> anyhow::Result<Self> {
        todo!()
    }

    /// Called with every node key that lost its place (removed, expired, rotated): the relay closes it.
    pub fn on_revoked(&self, _hook: Arc<dyn Fn(NodePublic) + Send + Sync>) {
        todo!()
    }

    /// Whether a node key belongs to a live node: relay admission. Answers from memory.
    #[must_use]
    pub fn knows_node(&self, _key: &NodePublic) -> bool {
        todo!()
    }

    /// Replaces the settings and tells clients what changed.
    ///
    /// # Errors
    /// When the owner task is gone.
    pub async fn reload(&self, _settings: Settings) -> Result<(), AdminError> {
        todo!()
    }

    /// Says stop: ends streams, flushes everything lagging, closes the database.
    pub async fn shutdown(&self) {
        todo!()
    }

    /// Figures.
    #[must_use]
    pub fn stats(&self) -> ControlStats {
        todo!()
    }

    /// All users in order of id.
    #[must_use]
    pub fn users(&self) -> Vec<UserView> {
        todo!()
    }

    /// Makes a user.
    ///
    /// # Errors
    /// When the name is taken or no login name.
    pub async fn create_user(&self, _by: &Actor, _name: &str) -> Result<UserView, AdminError> {
        todo!()
    }

    /// Renames a user (`user` is an id or a name).
    ///
    /// # Errors
    /// When there is no such user or the name is taken.
    pub async fn rename_user(
        &self,
        _by: &Actor,
        _user: &str,
        _name: &str,
    ) -> Result<UserView, AdminError> {
        todo!()
    }

    /// Deletes a user without devices; their keys are revoked.
    ///
    /// # Errors
    /// When there is no such user or devices are left.
    pub async fn delete_user(&self, _by: &Actor, _user: &str) -> Result<UserView, AdminError> {
        todo!()
    }

    /// All pre-auth keys, newest first.
    #[must_use]
    pub fn auth_keys(&self) -> Vec<AuthKeyView> {
        todo!()
    }

    /// Makes a pre-auth key.
    ///
    /// # Errors
    /// When there is no such user, a tag is not declared, or the lifetime is out of range.
    pub async fn create_auth_key(
        &self,
        _by: &Actor,
        _request: NewAuthKeyRequest,
    ) -> Result<NewAuthKey, AdminError> {
        todo!()
    }

    /// Revokes a key by id or by its full text; its nodes stay.
    ///
    /// # Errors
    /// When there is no such key.
    pub async fn revoke_auth_key(
        &self,
        _by: &Actor,
        _key: &str,
    ) -> Result<AuthKeyView, AdminError> {
        todo!()
    }

    /// All nodes in order of id.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeView> {
        todo!()
    }

    /// One node by id, label, full name or address.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, _node: &str) -> Result<NodeView, AdminError> {
        todo!()
    }

    /// Gives a node a name.
    ///
    /// # Errors
    /// When there is no such node, the name is no label, or taken.
    pub async fn rename_node(
        &self,
        _by: &Actor,
        _node: &str,
        _name: &str,
    ) -> Result<NodeView, AdminError> {
        todo!()
    }

    /// Replaces a node's tags; no tags gives it back to the user who made it, if there is one.
    ///
    /// # Errors
    /// When there is no such node or a tag is not declared in the policy.
    pub async fn tag_node(
        &self,
        _by: &Actor,
        _node: &str,
        _tags: &[Tag],
    ) -> Result<NodeView, AdminError> {
        todo!()
    }

    /// Expires a node's key now.
    ///
    /// # Errors
    /// When there is no such node.
    pub async fn expire_node(&self, _by: &Actor, _node: &str) -> Result<NodeView, AdminError> {
        todo!()
    }

    /// Removes a node for good.
    ///
    /// # Errors
    /// When there is no such node.
    pub async fn delete_node(&self, _by: &Actor, _node: &str) -> Result<NodeView, AdminError> {
        todo!()
    }

    /// Sets the approved routes (`None` approves all it offers now).
    ///
    /// # Errors
    /// When there is no such node.
    pub async fn approve_routes(
        &self,
        _by: &Actor,
        _node: &str,
        _routes: Option<&[IpNet]>,
    ) -> Result<NodeView, AdminError> {
        todo!()
    }

    /// Waiting logins, oldest first.
    #[must_use]
    pub fn logins(&self) -> Vec<LoginView> {
        todo!()
    }

    /// Lets a waiting login in as `user` (a name; created is the only user when `None`).
    ///
    /// # Errors
    /// When it is gone or there is no such user.
    pub async fn approve_login(
        &self,
        _by: &Actor,
        _id: &str,
        _user: Option<&str>,
    ) -> Result<NodeView, AdminError> {
        todo!()
    }

    /// Turns a waiting login away.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn reject_login(&self, _by: &Actor, _id: &str) -> Result<LoginView, AdminError> {
        todo!()
    }

    /// The policy in force: its text (a commented default when none was stored) and number.
    #[must_use]
    pub fn policy(&self) -> PolicyVersion {
        todo!()
    }

    /// All stored policies, newest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn policy_history(&self) -> Result<Vec<PolicyVersion>, AdminError> {
        todo!()
    }

    /// Checks a text against the live tailnet; changes nothing.
    ///
    /// # Errors
    /// [`AdminError::Policy`] with all faults.
    pub async fn check_policy(&self, _text: &str) -> Result<PolicyOutcome, AdminError> {
        todo!()
    }

    /// Stores a text and applies it to connected clients. `expect` is the version the editor started
    /// from: when another was stored meanwhile, nothing is changed.
    ///
    /// # Errors
    /// Faults, a lost race, or [`AdminError::NeedsConfirmation`] without `confirmed`.
    pub async fn set_policy(
        &self,
        _by: &Actor,
        _text: &str,
        _confirmed: bool,
        _expect: Option<u64>,
    ) -> Result<PolicyOutcome, AdminError> {
        todo!()
    }

    /// A small durable table for the console's sessions and one-time tokens: stores `value` under
    /// SHA-256 of a secret until `expires`.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn put_secret(
        &self,
        _kind: &str,
        _hash: [u8; 32],
        _value: &str,
        _expires: DateTime<Utc>,
    ) -> Result<(), AdminError> {
        todo!()
    }

    /// Looks a secret up; `None` when unknown or lapsed.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn secret(&self, _kind: &str, _hash: [u8; 32]) -> Result<Option<String>, AdminError> {
        todo!()
    }

    /// Takes a secret out: of two callers exactly one gets it.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn take_secret(
        &self,
        _kind: &str,
        _hash: [u8; 32],
    ) -> Result<Option<String>, AdminError> {
        todo!()
    }
}
