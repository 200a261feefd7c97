//! What is kept: rows to write, as the state's decisions produce them, and everything there was at
//! start. `control` makes [`Write`]s, `store` carries them out; neither knows the other's inside.

use std::net::Ipv4Addr;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::{LoginId, Node, PendingLogin, PolicyVersion, PreAuthKey, User};
use crate::keys::{NodeId, UserId};

/// Kept with nodes and logins; named here so that the store need not know the wire.
pub use crate::wire::CapVer;

/// One row to keep or to drop. Order matters; a list of them is carried out whole or not at all.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// Insert or replace a user.
    PutUser(Arc<User>),
    /// Drop a user.
    DeleteUser(UserId),
    /// Insert or replace a node, and note its address as taken.
    PutNode(Arc<Node>),
    /// Drop a node; its address is noted as free since then.
    DeleteNode {
        /// Which.
        id: NodeId,
        /// When.
        at: DateTime<Utc>,
    },
    /// Insert or replace a pre-auth key.
    PutKey(Arc<PreAuthKey>),
    /// Insert or replace a waiting login.
    PutLogin(Arc<PendingLogin>),
    /// Drop a waiting login.
    DeleteLogin(LoginId),
    /// Add a policy to the history; the highest version is in force.
    PutPolicy(Arc<PolicyVersion>),
}

/// Everything kept, as read at start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stored {
    /// All users.
    pub users: Vec<User>,
    /// All nodes.
    pub nodes: Vec<Node>,
    /// All pre-auth keys.
    pub keys: Vec<PreAuthKey>,
    /// All waiting logins.
    pub logins: Vec<PendingLogin>,
    /// The policy with the highest version.
    pub policy: Option<PolicyVersion>,
    /// Addresses that were handed out, with the time they came free again.
    pub addresses: Vec<(Ipv4Addr, Option<DateTime<Utc>>)>,
    /// Highest user id ever given.
    pub last_user: u64,
    /// Highest node id ever given.
    pub last_node: u64,
    /// Highest key id ever given.
    pub last_key: u64,
}
