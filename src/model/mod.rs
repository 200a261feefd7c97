//! Our own nouns. Wrong states cannot be written here: an [`Owner`] is a user or tags, never both;
//! absence is `Option`, never a wire zero; a half-registered machine is a [`PendingLogin`], not a
//! [`Node`].

pub mod rows;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use chrono::{DateTime, Utc};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::keys::{DiscoPublic, MachinePublic, NodeId, NodePublic, RegionId, StableId, UserId};
use crate::wire::{CapVer, Hostinfo};

/// A tag with its prefix: `tag:server`. The text after `tag:` starts with a letter and goes on with
/// letters, digits, `-` and `.`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);

/// Why a tag text was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a tag: write tag: and a name that starts with a letter and goes on with letters, digits, '-' or '.', such as tag:server"
)]
pub struct TagError(pub String);

impl Tag {
    /// Checks a tag text.
    ///
    /// # Errors
    /// When the prefix is missing or the name has other characters.
    pub fn parse(text: &str) -> Result<Self, TagError> {
        let bad = || TagError(text.chars().take(80).collect());
        let name = text.strip_prefix("tag:").ok_or_else(bad)?;
        let mut chars = name.chars();
        let first = chars.next().is_some_and(|c| c.is_ascii_alphabetic());
        let rest = chars.all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
        if first && rest && name.len() <= 63 { Ok(Self(text.to_owned())) } else { Err(bad()) }
    }

    /// The whole text, prefix included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Tag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Tag {
    type Error = TagError;
    fn try_from(text: String) -> Result<Self, TagError> {
        Self::parse(&text)
    }
}

impl From<Tag> for String {
    fn from(tag: Tag) -> Self {
        tag.0
    }
}

/// At least one tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tags(BTreeSet<Tag>);

impl Tags {
    /// `None` when `tags` is empty.
    #[must_use]
    pub fn new(tags: impl IntoIterator<Item = Tag>) -> Option<Self> {
        let set: BTreeSet<Tag> = tags.into_iter().collect();
        (!set.is_empty()).then_some(Self(set))
    }

    /// The tags in order.
    pub fn iter(&self) -> impl Iterator<Item = &Tag> {
        self.0.iter()
    }

    /// Whether `tag` is one of them.
    #[must_use]
    pub fn contains(&self, tag: &Tag) -> bool {
        self.0.contains(tag)
    }
}

/// Whose a node is: a user's, or nobody's but its tags'.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A user's device.
    User(UserId),
    /// A tagged node has no user identity.
    Tags(Tags),
}

impl Owner {
    /// The user, unless tagged.
    #[must_use]
    pub const fn user(&self) -> Option<UserId> {
        match self {
            Self::User(id) => Some(*id),
            Self::Tags(_) => None,
        }
    }

    /// The tags, none for a user's device.
    pub fn tags(&self) -> impl Iterator<Item = &Tag> {
        match self {
            Self::User(_) => None,
            Self::Tags(tags) => Some(tags),
        }
        .into_iter()
        .flat_map(Tags::iter)
    }
}

/// What a person may do in the console and which role autogroups they belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The first user; also counts as an admin.
    Owner,
    /// Everything but making another owner.
    Admin,
    /// Access rules, DNS and routes.
    NetworkAdmin,
    /// Devices and people.
    ItAdmin,
    /// Nothing yet: there is no billing.
    BillingAdmin,
    /// Reads everything, changes nothing.
    Auditor,
    /// Own devices only.
    #[default]
    Member,
}

impl Role {
    /// All roles, the mightiest first.
    pub const ALL: [Self; 7] = [
        Self::Owner,
        Self::Admin,
        Self::NetworkAdmin,
        Self::ItAdmin,
        Self::BillingAdmin,
        Self::Auditor,
        Self::Member,
    ];

    /// As it is written: `network-admin`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Admin => "admin",
            Self::NetworkAdmin => "network-admin",
            Self::ItAdmin => "it-admin",
            Self::BillingAdmin => "billing-admin",
            Self::Auditor => "auditor",
            Self::Member => "member",
        }
    }

    /// Reads what [`Role::as_str`] writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.as_str() == text)
    }

    /// Whether somebody with this role belongs to `autogroup:<wanted>`: owners are admins too.
    #[must_use]
    pub fn is(self, wanted: Self) -> bool {
        self == wanted || (self == Self::Owner && wanted == Self::Admin)
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A person who may own devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Never reused.
    pub id: UserId,
    /// Login name, unique: a local name such as `alice`, or a mail address. Policies call a local
    /// user `alice@`.
    pub name: String,
    /// What they may do. As long as there are users, one of them is an owner.
    pub role: Role,
    /// When it was made.
    pub created: DateTime<Utc>,
}

/// A device of the tailnet.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Never reused.
    pub id: NodeId,
    /// Survives key rotation.
    pub stable_id: StableId,
    /// The install it runs on.
    pub machine: MachinePublic,
    /// WireGuard identity; rotates.
    pub key: NodePublic,
    /// Unknown until the first lite update.
    pub disco: Option<DiscoPublic>,
    /// The unique DNS label, sanitised. With the base domain it is the full name.
    pub name: String,
    /// Given by an admin: the hostname the node reports no longer renames it.
    pub renamed: bool,
    /// Whose it is.
    pub owner: Owner,
    /// Who brought it in: gets it back when its tags are taken off. Unknown when that user is gone.
    pub made_by: Option<UserId>,
    /// IPv4 from 100.64.0.0/10.
    pub ipv4: Ipv4Addr,
    /// IPv6 from fd7a:115c:a1e0::/48.
    pub ipv6: Ipv6Addr,
    /// When it joined.
    pub created: DateTime<Utc>,
    /// When its key expires; `None` is never.
    pub expiry: Option<DateTime<Utc>>,
    /// Removed some time after it went offline.
    pub ephemeral: bool,
    /// The pre-auth key it came by.
    pub auth_key: Option<KeyId>,
    /// Routes an admin or the policy approved, offered or not.
    pub approved_routes: BTreeSet<IpNet>,
    /// What it says of itself; hostile text. Includes the last known `NetInfo`.
    pub hostinfo: Hostinfo,
    /// Where it says it can be reached.
    pub endpoints: Vec<SocketAddr>,
    /// Its home relay.
    pub home_derp: Option<RegionId>,
    /// Its capability version.
    pub capver: CapVer,
    /// When it was last connected; lags on disk.
    pub last_seen: Option<DateTime<Utc>>,
}

impl Node {
    /// Routes the node offers.
    #[must_use]
    pub fn advertised_routes(&self) -> &[IpNet] {
        &self.hostinfo.routable_ips
    }

    /// Routes that are offered **and** approved; the only ones that exist for anybody else.
    #[must_use]
    pub fn served_routes(&self) -> Vec<IpNet> {
        let mut out: Vec<IpNet> = self
            .hostinfo
            .routable_ips
            .iter()
            .map(IpNet::trunc)
            .filter(|r| self.approved_routes.contains(r))
            .collect();
        out.sort();
        out.dedup();
        out
    }

    /// Whether its key has expired at `now`.
    #[must_use]
    pub fn expired(&self, now: DateTime<Utc>) -> bool {
        self.expiry.is_some_and(|at| at <= now)
    }
}

/// Id of a pre-auth key: the public part that may be shown and logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(pub u64);

impl std::fmt::Display for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A key that lets machines join without a person; the secret itself is not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreAuthKey {
    /// Public id.
    pub id: KeyId,
    /// SHA-256 of the secret part.
    pub hash: [u8; 32],
    /// Who made it, and whose the nodes become unless tagged.
    pub user: UserId,
    /// May be used more than once.
    pub reusable: bool,
    /// Its nodes are ephemeral.
    pub ephemeral: bool,
    /// Tags its nodes get.
    pub tags: Option<Tags>,
    /// When it was made.
    pub created: DateTime<Utc>,
    /// When it stops working.
    pub expires: DateTime<Utc>,
    /// When it was revoked.
    pub revoked: Option<DateTime<Utc>>,
    /// How many nodes came by it.
    pub uses: u64,
}

/// Random id of a waiting login: 128 bits, part of the AuthURL; also what an admin types.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LoginId(pub String);

impl std::fmt::Display for LoginId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A machine that waits for a person's yes or no.
#[derive(Debug, Clone, PartialEq)]
pub struct PendingLogin {
    /// In the AuthURL.
    pub id: LoginId,
    /// Who asks.
    pub machine: MachinePublic,
    /// The key it wants authorized.
    pub key: NodePublic,
    /// What it says of itself; hostile text.
    pub hostinfo: Hostinfo,
    /// Its capability version.
    pub capver: CapVer,
    /// Asks to be ephemeral.
    pub ephemeral: bool,
    /// When it asked.
    pub created: DateTime<Utc>,
    /// A day after.
    pub expires: DateTime<Utc>,
}

/// One stored policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyVersion {
    /// 1 and up.
    pub version: u64,
    /// Byte for byte as given.
    pub text: String,
    /// Who stored it.
    pub author: String,
    /// Why, in their words; may be empty.
    pub comment: String,
    /// When.
    pub created: DateTime<Utc>,
}

impl PolicyVersion {
    /// Everything but the text.
    #[must_use]
    pub fn summary(&self) -> PolicySummary {
        PolicySummary {
            version: self.version,
            author: self.author.clone(),
            comment: self.comment.clone(),
            created: self.created,
            bytes: self.text.len() as u64,
        }
    }
}

/// A stored policy without its text, for lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicySummary {
    /// 1 and up.
    pub version: u64,
    /// Who stored it.
    pub author: String,
    /// Why, in their words; may be empty.
    pub comment: String,
    /// When.
    pub created: DateTime<Utc>,
    /// Length of the text.
    pub bytes: u64,
}
