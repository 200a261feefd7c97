//! What crosses the admin socket and what `--json` prints: stable names, one shape for both.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::acl::{self, AccessChange, PolicyError};
use crate::control::service::{
    AuthKeyView, Comparison, LoginView, NewAuthKey, NodeView, PolicyOutcome, UserView,
};
use crate::model::{PolicySummary, PolicyVersion};

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Id.
    pub id: u64,
    /// Login name.
    pub name: String,
    /// `owner`, `admin`, `network-admin`, `it-admin`, `auditor`, `billing-admin`, `member`.
    pub role: String,
    /// When made.
    pub created: DateTime<Utc>,
    /// How many devices they own.
    pub nodes: usize,
}

impl From<UserView> for User {
    fn from(v: UserView) -> Self {
        Self { id: v.id.0, name: v.name, role: v.role.to_string(), created: v.created, nodes: v.nodes }
    }
}

/// A name to give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// The name.
    pub name: String,
}

/// A role to give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    /// As in [`User::role`].
    pub role: String,
}

/// A pre-auth key without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthKey {
    /// Id.
    pub id: u64,
    /// Owner.
    pub user: String,
    /// More than once.
    pub reusable: bool,
    /// Ephemeral nodes.
    pub ephemeral: bool,
    /// Tags for its nodes.
    pub tags: Vec<String>,
    /// When made.
    pub created: DateTime<Utc>,
    /// When it stops working.
    pub expires: DateTime<Utc>,
    /// `usable`, `used`, `expired`, `revoked`.
    pub state: String,
    /// How many nodes came by it.
    pub uses: u64,
}

impl From<AuthKeyView> for AuthKey {
    fn from(v: AuthKeyView) -> Self {
        Self {
            id: v.id.0,
            user: v.user,
            reusable: v.reusable,
            ephemeral: v.ephemeral,
            tags: v.tags.into_iter().map(String::from).collect(),
            created: v.created,
            expires: v.expires,
            state: v.state.to_owned(),
            uses: v.uses,
        }
    }
}

/// What a new key should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateAuthKey {
    /// Owner's login name.
    pub user: String,
    /// More than once.
    #[serde(default)]
    pub reusable: bool,
    /// Ephemeral nodes.
    #[serde(default)]
    pub ephemeral: bool,
    /// Tags for its nodes.
    #[serde(default)]
    pub tags: Vec<String>,
    /// How long it works.
    pub lifetime_seconds: u64,
}

/// A new key; the only time its secret is seen.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedAuthKey {
    /// Id.
    pub id: u64,
    /// The secret text.
    pub key: String,
    /// When it stops working.
    pub expires: DateTime<Utc>,
}

impl From<NewAuthKey> for CreatedAuthKey {
    fn from(v: NewAuthKey) -> Self {
        Self { id: v.view.id.0, key: v.secret, expires: v.view.expires }
    }
}

/// A node. The first ten fields are the promised ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Id.
    pub id: u64,
    /// Bare label.
    pub name: String,
    /// Owner; null when tagged.
    pub user: Option<String>,
    /// Tags.
    pub tags: Vec<String>,
    /// IPv4.
    pub ipv4: Ipv4Addr,
    /// IPv6.
    pub ipv6: Ipv6Addr,
    /// Has an open map stream.
    pub online: bool,
    /// When it was last seen; null when never or now.
    pub last_seen: Option<DateTime<Utc>>,
    /// Client version text.
    pub version: String,
    /// When its key expires; null is never.
    pub expires: Option<DateTime<Utc>>,
    /// Whether it has.
    pub expired: bool,
    /// Full name.
    pub fqdn: String,
    /// What the machine calls itself.
    pub hostname: String,
    /// OS text.
    pub os: String,
    /// Removed when away for long.
    pub ephemeral: bool,
    /// When it joined.
    pub created: DateTime<Utc>,
    /// Offered routes.
    pub advertised_routes: Vec<String>,
    /// Approved routes.
    pub approved_routes: Vec<String>,
    /// Home relay region, 0 when unknown.
    pub home_derp: u64,
    /// Where it says it can be reached.
    pub endpoints: Vec<SocketAddr>,
    /// Node key.
    pub node_key: String,
    /// Machine key.
    pub machine_key: String,
    /// The node key again, as `nodes show` names it; lists leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl From<NodeView> for Node {
    fn from(v: NodeView) -> Self {
        Self {
            id: v.id.0,
            name: v.name,
            user: v.user,
            tags: v.tags.into_iter().map(String::from).collect(),
            ipv4: v.ipv4,
            ipv6: v.ipv6,
            online: v.online,
            last_seen: v.last_seen,
            version: v.version,
            expires: v.expires,
            expired: v.expired,
            fqdn: v.fqdn,
            hostname: v.hostname,
            os: v.os,
            ephemeral: v.ephemeral,
            created: v.created,
            advertised_routes: v.advertised_routes.iter().map(ToString::to_string).collect(),
            approved_routes: v.approved_routes.iter().map(ToString::to_string).collect(),
            home_derp: v.home_derp,
            endpoints: v.endpoints,
            node_key: v.key.to_string(),
            machine_key: v.machine.to_string(),
            key: None,
        }
    }
}

/// Tags to give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tags {
    /// All of them; none gives the node back to its user.
    pub tags: Vec<String>,
}

/// Routes to approve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routes {
    /// Exactly these; null approves all that are offered now.
    pub routes: Option<Vec<String>>,
}

/// A waiting login.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// Id, as in the AuthURL.
    pub id: String,
    /// What the machine calls itself.
    pub hostname: String,
    /// OS text.
    pub os: String,
    /// Client version text.
    pub version: String,
    /// Node key it wants authorized.
    pub node_key: String,
    /// When it asked.
    pub created: DateTime<Utc>,
    /// When it lapses.
    pub expires: DateTime<Utc>,
}

impl From<LoginView> for Login {
    fn from(v: LoginView) -> Self {
        Self {
            id: v.id.0,
            hostname: v.hostname,
            os: v.os,
            version: v.version,
            node_key: v.key.to_string(),
            created: v.created,
            expires: v.expires,
        }
    }
}

/// As whom a login is let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approve {
    /// Login name; null is the only user there is.
    pub user: Option<String>,
}

/// A stored policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Number.
    pub version: u64,
    /// Who stored it.
    pub author: String,
    /// Why; may be empty.
    #[serde(default)]
    pub comment: String,
    /// When.
    pub created: DateTime<Utc>,
    /// Its text.
    pub text: String,
}

impl From<PolicyVersion> for Policy {
    fn from(v: PolicyVersion) -> Self {
        Self { version: v.version, author: v.author, comment: v.comment, created: v.created, text: v.text }
    }
}

/// A stored policy in the history, without its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyEntry {
    /// Number.
    pub version: u64,
    /// Who stored it.
    pub author: String,
    /// Why; may be empty.
    pub comment: String,
    /// When.
    pub created: DateTime<Utc>,
    /// Length of its text.
    pub bytes: u64,
}

impl From<PolicySummary> for PolicyEntry {
    fn from(v: PolicySummary) -> Self {
        Self { version: v.version, author: v.author, comment: v.comment, created: v.created, bytes: v.bytes }
    }
}

/// An old version to put in force again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollback {
    /// Which.
    pub version: u64,
    /// Why.
    #[serde(default)]
    pub comment: String,
    /// Lost access was seen and is meant.
    #[serde(default)]
    pub confirmed: bool,
    /// The version that was looked at.
    #[serde(default)]
    pub expect: Option<u64>,
}

/// A policy text to check or store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetPolicy {
    /// The text.
    pub text: String,
    /// Why; kept in the history.
    #[serde(default)]
    pub comment: String,
    /// Lost access was seen and is meant.
    #[serde(default)]
    pub confirmed: bool,
    /// The version the text was made from.
    #[serde(default)]
    pub expect: Option<u64>,
}

/// May one end reach the other?
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainPolicy {
    /// From where.
    pub from: String,
    /// To where.
    pub to: String,
    /// Port.
    #[serde(default)]
    pub port: Option<String>,
    /// Protocol.
    #[serde(default)]
    pub protocol: Option<String>,
    /// Login on the other machine.
    #[serde(default)]
    pub ssh_user: Option<String>,
    /// By this text instead of the policy in force.
    #[serde(default)]
    pub draft: Option<String>,
}

/// A policy in numbers is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountPolicy {
    /// This text instead of the policy in force.
    #[serde(default)]
    pub draft: Option<String>,
}

/// Two policy texts to compare.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComparePolicies {
    /// From this.
    pub a: String,
    /// To this.
    pub b: String,
}

/// A fault of a policy text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Stable short name.
    pub code: String,
    /// 1-based line.
    pub line: u32,
    /// 1-based column.
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// What would be right; may be empty.
    pub hint: String,
}

impl From<PolicyError> for Fault {
    fn from(v: PolicyError) -> Self {
        Self { code: v.code.to_owned(), line: v.line, column: v.column, message: v.message, hint: v.hint }
    }
}

/// Access of one pair that changes; names as people know them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Who reaches.
    pub from: String,
    /// Whom.
    pub to: String,
    /// Ports, protocols and capabilities in words.
    pub what: String,
    /// For how many pairs of devices.
    #[serde(default)]
    pub pairs: u64,
}

impl From<AccessChange> for Change {
    fn from(c: AccessChange) -> Self {
        Self { from: c.from, to: c.to, what: c.what, pairs: c.pairs }
    }
}

/// Something else that changes with the policy; names as people know them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherChange {
    /// `relay`, `option`, `attribute`, `app`, `posture`, `way`, `approval`, `tag-owner`,
    /// `ip-pool`.
    pub kind: String,
    /// `gained`, `lost`, `changed`.
    pub effect: String,
    /// Whom it concerns.
    pub who: String,
    /// What, in words.
    pub what: String,
    /// How many devices.
    pub devices: u64,
    /// It has to be confirmed.
    pub takes_away: bool,
}

impl From<acl::OtherChange> for OtherChange {
    fn from(c: acl::OtherChange) -> Self {
        Self {
            kind: c.kind.as_str().to_owned(),
            effect: c.effect.as_str().to_owned(),
            who: c.who,
            what: c.what,
            devices: c.devices,
            takes_away: c.takes_away,
        }
    }
}

/// Gains and losses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// New access; the first ones.
    pub gained: Vec<Change>,
    /// Access taken away; the first ones.
    pub lost: Vec<Change>,
    /// All gains.
    pub gained_total: u64,
    /// All losses.
    pub lost_total: u64,
    /// False when the counts are lower bounds.
    #[serde(default)]
    pub exact: bool,
    /// What changes beside access; the first ones.
    #[serde(default)]
    pub other: Vec<OtherChange>,
    /// All such changes.
    #[serde(default)]
    pub other_total: u64,
    /// Those of them that have to be confirmed.
    #[serde(default)]
    pub other_lost: u64,
}

impl From<acl::AccessDiff> for Diff {
    fn from(diff: acl::AccessDiff) -> Self {
        let list = |l: Vec<AccessChange>| l.into_iter().map(Change::from).collect();
        Self {
            gained: list(diff.gained),
            lost: list(diff.lost),
            gained_total: diff.gained_total,
            lost_total: diff.lost_total,
            exact: diff.exact,
            other: diff.other.into_iter().map(OtherChange::from).collect(),
            other_total: diff.other_total,
            other_lost: diff.other_lost,
        }
    }
}

/// Two policies compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// Who gains and loses.
    #[serde(flatten)]
    pub diff: Diff,
    /// Tests that do not hold.
    #[serde(default)]
    pub failing_tests: FailingTests,
}

/// Tests of two policies that do not hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailingTests {
    /// Of the first.
    pub a: Vec<Fault>,
    /// Of the second.
    pub b: Vec<Fault>,
}

impl Compared {
    /// From what was found; the tests of the first policy come first.
    #[must_use]
    pub fn new(diff: acl::AccessDiff, failing: [Vec<PolicyError>; 2]) -> Self {
        let [a, b] = failing.map(|list| list.into_iter().map(Fault::from).collect());
        Self { diff: diff.into(), failing_tests: FailingTests { a, b } }
    }
}

impl From<Comparison> for Compared {
    fn from(found: Comparison) -> Self {
        Self::new(found.diff, found.failing)
    }
}

/// How a stored or checked policy went in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Its number; the current one for a check.
    pub version: u64,
    /// Stored and in force.
    pub applied: bool,
    /// It is the very text in force: nothing was stored.
    #[serde(default)]
    pub unchanged: bool,
    /// Who gains and loses.
    #[serde(flatten)]
    pub diff: Diff,
    /// Faults that do not stop it.
    pub warnings: Vec<Fault>,
    /// Who asks would lose the way to this server: in what way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuts_author: Option<String>,
}

impl From<PolicyOutcome> for Outcome {
    fn from(outcome: PolicyOutcome) -> Self {
        Self {
            version: outcome.version,
            applied: outcome.applied,
            unchanged: outcome.unchanged,
            diff: outcome.diff.into(),
            warnings: outcome.warnings.into_iter().map(Fault::from).collect(),
            cuts_author: outcome.cuts_author,
        }
    }
}

/// A console link.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Works once.
    pub url: String,
}

/// How the server stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Of tsd.
    pub version: String,
    /// What clients dial.
    pub url: String,
    /// Listeners with addresses.
    pub listeners: String,
    /// State directory.
    pub state_dir: String,
    /// Leaf certificate's SHA-256.
    pub fingerprint: Option<String>,
    /// Since start.
    pub uptime_seconds: u64,
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
    /// Why the policy stored last is not in force.
    #[serde(default)]
    pub policy_fault: Option<String>,
    /// Tests of the policy in force that do not hold.
    #[serde(default)]
    pub broken_tests: Vec<Fault>,
    /// Relay connections now.
    pub derp_connections: u64,
    /// Packets relayed since start.
    pub derp_packets: u64,
    /// Bytes relayed since start.
    pub derp_bytes: u64,
    /// STUN requests answered since start.
    pub stun_requests: u64,
    /// What does not work and why.
    pub warnings: Vec<String>,
}

/// What went wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For people.
    pub error: String,
    /// `not-found`, `invalid`, `conflict`, `policy`, `needs-confirmation`, `internal`.
    pub code: String,
    /// Faults of a policy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Fault>,
    /// What a policy would take away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff: Option<Diff>,
    /// Who asks would lose the way to this server: in what way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuts_author: Option<String>,
}
