//! A policy as it was written, section by section, every word with its place. Shapes and spellings were
//! checked by `syntax`, names by `check`; nothing here is resolved against users and nodes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value as Json;

use crate::model::{Role, Tag};
use crate::wire::PortRange;

/// Byte offsets in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// Behind the last byte.
    pub end: u32,
}

/// A word with its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Spanned<T> {
    /// The word.
    pub value: T,
    /// Its place.
    pub span: Span,
}

/// What a string names (SEMANTICS.md 4.1).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Alias {
    /// `*`.
    Any,
    /// A user's name; a trailing `@` is dropped.
    User(String),
    /// `user:*@domain`: the domain.
    Domain(String),
    /// `group:x`, prefix included.
    Group(String),
    /// `tag:x`.
    Tag(Tag),
    /// A name of `hosts`.
    Host(String),
    /// An address or prefix, host bits cleared.
    Prefix(IpNet),
    /// `a-b`, both ends included, one family, a <= b.
    Range(IpAddr, IpAddr),
    /// `ipset:x`, prefix included.
    IpSet(String),
    /// `svc:x`, prefix included: a service's virtual addresses. Nobody has one yet.
    Service(String),
    /// `autogroup:member`.
    Member,
    /// `autogroup:tagged`.
    Tagged,
    /// `autogroup:self`.
    Own,
    /// `autogroup:internet`.
    Internet,
    /// `autogroup:danger-all`.
    DangerAll,
    /// `autogroup:shared`: nobody on a server of one tailnet.
    Shared,
    /// `autogroup:owner`, `autogroup:admin`, … : people who hold the role.
    Role(Role),
}

/// One destination of an ACL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Who.
    pub alias: Alias,
    /// Ports, in the order written, not joined.
    pub ports: Vec<PortRange>,
}

/// `srcPosture`: `None` is the default set, an empty list none at all (SEMANTICS.md 3.5).
pub type SrcPosture = Option<Vec<Spanned<String>>>;

/// One entry of `acls`.
#[derive(Debug, Clone, PartialEq)]
pub struct Acl {
    /// The whole entry.
    pub span: Span,
    /// `proto`; `None` is TCP, UDP and ICMP.
    pub protocol: Option<u8>,
    /// Sources.
    pub src: Vec<Spanned<Alias>>,
    /// Destinations.
    pub dst: Vec<Spanned<Destination>>,
    /// Posture of sources.
    pub posture: SrcPosture,
}

/// One string of a grant's `ip`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpEntry {
    /// Protocol; `None` is TCP, UDP and ICMP.
    pub protocol: Option<u8>,
    /// Ports, in the order written.
    pub ports: Vec<PortRange>,
}

/// Capability names with their values, kept as written.
pub type AppCaps = BTreeMap<String, Vec<Json>>;

/// One entry of `grants`. At least one of `ip` and `app` says something.
#[derive(Debug, Clone, PartialEq)]
pub struct Grant {
    /// The whole entry.
    pub span: Span,
    /// Sources.
    pub src: Vec<Spanned<Alias>>,
    /// Destinations.
    pub dst: Vec<Spanned<Alias>>,
    /// Ports; empty when there is only `app`.
    pub ip: Vec<IpEntry>,
    /// Application capabilities; empty when there is only `ip`.
    pub app: AppCaps,
    /// Routers the traffic goes through.
    pub via: Vec<Spanned<Tag>>,
    /// Posture of sources.
    pub posture: SrcPosture,
}

/// What an SSH rule does with a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SshAction {
    /// Lets it in.
    Accept,
    /// Asks the person first; the answer holds for the period (`None` is `always`: asks each time).
    Check(Option<Duration>),
}

/// One element of an SSH rule's `users`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SshUser {
    /// `root`.
    Root,
    /// `autogroup:nonroot`.
    NonRoot,
    /// `localpart:*@domain`: the domain.
    LocalPart(String),
    /// A login name, whatever it looks like.
    Literal(String),
}

/// One entry of `ssh`.
#[derive(Debug, Clone, PartialEq)]
pub struct SshRule {
    /// The whole entry.
    pub span: Span,
    /// What happens.
    pub action: SshAction,
    /// Sources.
    pub src: Vec<Spanned<Alias>>,
    /// Destinations.
    pub dst: Vec<Spanned<Alias>>,
    /// Login names.
    pub users: Vec<Spanned<SshUser>>,
    /// `acceptEnv`, verbatim.
    pub accept_env: Option<Vec<String>>,
    /// Recorder nodes: tags and addresses.
    pub recorder: Vec<Spanned<Alias>>,
    /// Sessions end when they cannot be recorded.
    pub enforce_recorder: bool,
    /// Posture of sources.
    pub posture: SrcPosture,
}

/// One entry of `nodeAttrs`.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeAttr {
    /// The whole entry.
    pub span: Span,
    /// Whom it concerns.
    pub target: Vec<Spanned<Alias>>,
    /// Capability names, verbatim.
    pub attr: Vec<String>,
    /// New addresses come from here.
    pub ip_pool: Vec<IpNet>,
    /// Capabilities with values.
    pub app: AppCaps,
}

/// `autoApprovers`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AutoApprovers {
    /// Networks and who may serve parts of them.
    pub routes: Vec<(Spanned<IpNet>, Vec<Spanned<Alias>>)>,
    /// Who may be an exit node.
    pub exit_node: Vec<Spanned<Alias>>,
    /// `svc:x` or `tag:x`, and who may host it.
    pub services: Vec<(Spanned<String>, Vec<Spanned<Alias>>)>,
}

/// One entry of `tests`. The words are read when the test runs: a malformed test fails, it is no fault of
/// the policy's form (SEMANTICS.md 14).
#[derive(Debug, Clone, PartialEq)]
pub struct Test {
    /// The whole entry.
    pub span: Span,
    /// Who tries; `None` when missing.
    pub src: Option<Spanned<String>>,
    /// Protocol; `None` when missing or empty.
    pub proto: Option<Spanned<String>>,
    /// `host:port` that must be reachable.
    pub accept: Vec<Spanned<String>>,
    /// `host:port` that must not.
    pub deny: Vec<Spanned<String>>,
    /// Posture attributes the source is given for the test.
    pub posture_attrs: BTreeMap<String, Json>,
}

/// One entry of `sshTests`; words are read when the test runs.
#[derive(Debug, Clone, PartialEq)]
pub struct SshTest {
    /// The whole entry.
    pub span: Span,
    /// Who tries; `None` when missing.
    pub src: Option<Spanned<String>>,
    /// Where to.
    pub dst: Vec<Spanned<String>>,
    /// Logins that must be let in, checked or not.
    pub accept: Vec<Spanned<String>>,
    /// Logins that must be refused.
    pub deny: Vec<Spanned<String>>,
    /// Logins that must be let in after a check.
    pub check: Vec<Spanned<String>>,
}

/// How a posture condition compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    /// `IN [..]`
    In,
    /// `NOT IN [..]`
    NotIn,
    /// `IS SET`
    IsSet,
    /// `NOT SET`
    NotSet,
}

/// A posture value.
#[derive(Debug, Clone, PartialEq)]
pub enum AttrValue {
    /// A text.
    Text(String),
    /// A number.
    Number(f64),
    /// Yes or no.
    Bool(bool),
}

/// One condition of a posture: `node:os == 'linux'`.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// `node:os`.
    pub attribute: String,
    /// How to compare.
    pub compare: Compare,
    /// With what; several for `IN`, none for `IS SET`.
    pub values: Vec<AttrValue>,
}

/// One entry of an IP set.
#[derive(Debug, Clone, PartialEq)]
pub struct IpSetEntry {
    /// Adds, or takes away.
    pub add: bool,
    /// An address, network, range, host, `ipset:` or `autogroup:internet`.
    pub target: Spanned<Alias>,
}

/// `OneCGNATRoute`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OneCgnatRoute {
    /// The client decides.
    #[default]
    Default,
    /// `mac-always`.
    MacAlways,
    /// `mac-never`.
    MacNever,
}

/// `derpMap`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DerpOverlay {
    /// Leaves our own regions out.
    pub omit_default_regions: bool,
    /// Regions to add or replace; `None` removes one of ours.
    pub regions: BTreeMap<u64, Option<crate::wire::DerpRegion>>,
}

/// A whole policy.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct File {
    /// `None`: not written (SEMANTICS.md 2.1).
    pub acls: Option<Vec<Acl>>,
    /// `None`: not written.
    pub grants: Option<Vec<Grant>>,
    /// Names (`group:x`) with their members, `@` at the end dropped.
    pub groups: BTreeMap<String, Spanned<Vec<Spanned<String>>>>,
    /// Named addresses.
    pub hosts: BTreeMap<String, Spanned<IpNet>>,
    /// Names (`ipset:x`) with their entries.
    pub ipsets: BTreeMap<String, Spanned<Vec<IpSetEntry>>>,
    /// Who may apply a tag.
    pub tag_owners: BTreeMap<Tag, Spanned<Vec<Spanned<Alias>>>>,
    /// Names (`posture:x`) with conditions that must all hold.
    pub postures: BTreeMap<String, Spanned<Vec<Spanned<Condition>>>>,
    /// For rules without `srcPosture` of their own.
    pub default_src_posture: Vec<Spanned<String>>,
    /// Automatic approval.
    pub auto_approvers: AutoApprovers,
    /// SSH rules.
    pub ssh: Vec<SshRule>,
    /// Node attributes.
    pub node_attrs: Vec<NodeAttr>,
    /// Assertions about the network.
    pub tests: Vec<Test>,
    /// Assertions about SSH.
    pub ssh_tests: Vec<SshTest>,
    /// Relays.
    pub derp_map: DerpOverlay,
    /// No IPv4 at all.
    pub disable_ipv4: bool,
    /// One route for all of 100.64.0.0/10.
    pub one_cgnat_route: OneCgnatRoute,
    /// Clients bind any port.
    pub randomize_client_port: bool,
}
