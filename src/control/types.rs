//! The words the coordination server speaks with console, admin socket and composition root: views,
//! requests, settings, errors. Plain values; `service` offers the calls that take and give them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use chrono::{DateTime, Utc};
use ipnet::IpNet;
use serde::Serialize;

use crate::acl::{AccessDiff, PolicyError};
use crate::keys::{NodeId, NodePublic, UserId};
use crate::model::{KeyId, LoginId, Role, Tag};
use crate::wire::{DerpMap, DnsRecord, Resolver};

/// Who does something, for the log and the policy history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// `admin socket`, `console, 100.64.0.7`, `start`.
    pub name: String,
    /// The address they come from, where there is one.
    pub from: Option<IpAddr>,
}

impl Actor {
    /// Somebody on this machine.
    #[must_use]
    pub fn local(name: &str) -> Self {
        Self { name: name.to_owned(), from: None }
    }

    /// Somebody who came over a network.
    #[must_use]
    pub fn at(name: &str, from: IpAddr) -> Self {
        Self { name: format!("{name}, {from}"), from: Some(from.to_canonical()) }
    }
}

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
    #[error("this change {}", .0.stake())]
    NeedsConfirmation(Box<PolicyOutcome>),
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
    /// What they may do.
    pub role: Role,
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
    /// It is the very text in force, so nothing was stored and no version made.
    pub unchanged: bool,
    /// The device that asks would lose access to the server's own device: what, in a sentence.
    pub cuts_author: Option<String>,
}

impl PolicyOutcome {
    /// What has to be confirmed, as the end of a sentence.
    fn stake(&self) -> String {
        let AccessDiff { lost_total: lost, exact, other_lost: other, .. } = self.diff;
        let least = if exact { "" } else { "at least " };
        match (lost, exact, other) {
            (0, true, 0) => "takes the author's own way to the server away".to_owned(),
            (0, true, 1) => {
                let first = self.diff.other.iter().find(|change| change.takes_away);
                let first = first.map_or_else(String::new, |c| format!(" ({}: {})", c.who, c.what));
                format!("takes something away beside access{first}")
            }
            (0, true, n) => format!("takes {n} things away beside access"),
            (0, false, _) => {
                "touches too much for all of it to be looked at, so somebody may lose access".to_owned()
            }
            (lost, _, 0) => format!("takes access away from {least}{lost} pair(s) of devices"),
            (lost, _, other) => format!(
                "takes access away from {least}{lost} pair(s) of devices, and {other} thing(s) beside access"
            ),
        }
    }
}

/// Two policies compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// Who gains and loses from the first to the second.
    pub diff: AccessDiff,
    /// Tests of the first, and of the second, that do not hold.
    pub failing: [Vec<PolicyError>; 2],
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
    /// Mail domains of the tailnet; none: those of the users' login names.
    pub domains: std::collections::BTreeSet<String>,
    /// The file that the policy comes from: nobody else may set it then.
    pub policy_file: Option<std::path::PathBuf>,
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
    /// Its tests that do not hold.
    pub policy_tests_failing: usize,
}
