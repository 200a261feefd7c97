//! What changes between two policies beside who reaches whom: attributes, automatic approval, tag owners,
//! the way of flows, posture, options of the whole network. Each part finds its own; here they are put in rows, as
//! people and tags.

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;

use crate::keys::NodeId;

use super::super::ast::{Alias, Spanned};
use super::super::compile::Inner;
use super::super::ranges::Bits;
use super::super::resolve::Resolver;
use super::rows::{Identities, some_ids};
use super::{approvals, attributes, options, owners, postures, ways};

/// Rows that are put in words; further ones are only counted.
const TOLD: usize = 10_000;
/// Letters of a value that are shown.
const SHOWN: usize = 100;
/// Values of one thing that are shown.
const VALUES: usize = 2;
/// Who a change concerns that concerns everybody.
const NETWORK: &str = "the whole network";

/// What an [`OtherChange`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OtherKind {
    /// A relay region of `derpMap`.
    Relay,
    /// An option of the whole network.
    Option,
    /// An attribute of `nodeAttrs`.
    Attribute,
    /// An app configuration of `nodeAttrs`.
    App,
    /// A posture that rules ask for.
    Posture,
    /// Another router carries a flow.
    Way,
    /// Something `autoApprovers` approve.
    Approval,
    /// Who may put a tag on a device.
    TagOwner,
    /// Where new addresses come from.
    IpPool,
}

impl OtherKind {
    /// The name in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Option => "option",
            Self::Attribute => "attribute",
            Self::App => "app",
            Self::Posture => "posture",
            Self::Way => "way",
            Self::Approval => "approval",
            Self::TagOwner => "tag-owner",
            Self::IpPool => "ip-pool",
        }
    }
}

/// Which way something changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// It is had now and was not before.
    Gained,
    /// The reverse.
    Lost,
    /// It is another one.
    Changed,
}

impl Effect {
    /// The name in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gained => "gained",
            Self::Lost => "lost",
            Self::Changed => "changed",
        }
    }
}

/// A change that is not access between two devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OtherChange {
    /// What it is about.
    pub kind: OtherKind,
    /// Which way.
    pub effect: Effect,
    /// Whom it concerns, as people and tags; as written where no device is concerned today.
    pub who: String,
    /// What, in words.
    pub what: String,
    /// How many devices.
    pub devices: u64,
    /// Some of them, at most 16.
    pub nodes: Vec<NodeId>,
    /// It takes something away that somebody may live by, so it is to be confirmed.
    pub takes_away: bool,
}

/// What one change is, before it is known whom it concerns.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) kind: OtherKind,
    pub(super) effect: Effect,
    pub(super) what: String,
    pub(super) takes_away: bool,
}

impl Told {
    pub(super) fn new(kind: OtherKind, effect: Effect, what: impl Into<String>) -> Self {
        Self { kind, effect, what: what.into(), takes_away: false }
    }

    /// It is to be confirmed if `takes`.
    pub(super) const fn taking(mut self, takes: bool) -> Self {
        self.takes_away = takes;
        self
    }
}

/// Both policies, and the rows found so far.
pub(super) struct Others<'a> {
    pub(super) old: &'a Inner,
    pub(super) new: &'a Inner,
    people: Identities,
    rows: Vec<OtherChange>,
    total: u64,
    lost: u64,
}

impl Others<'_> {
    fn put(&mut self, told: Told, devices: usize, who: impl FnOnce(&Self) -> (String, Vec<NodeId>)) {
        self.total += 1;
        self.lost += u64::from(told.takes_away);
        if self.rows.len() >= TOLD {
            return;
        }
        let (who, nodes) = who(self);
        let Told { kind, effect, what, takes_away } = told;
        let devices = u64::try_from(devices).unwrap_or(u64::MAX);
        self.rows.push(OtherChange { kind, effect, who, what, devices, nodes, takes_away });
    }

    /// A change for devices; for none nothing is told.
    pub(super) fn devices(&mut self, nodes: &Bits, told: Told) {
        if nodes.is_empty() {
            return;
        }
        let list: Vec<usize> = nodes.iter().collect();
        self.put(told, list.len(), |all| (all.people.words(all.new, &list), some_ids(all.new, &list)));
    }

    /// A change for names that no device has today.
    pub(super) fn nobody(&mut self, names: &BTreeSet<&Alias>, told: Told) {
        if !names.is_empty() {
            self.put(told, 0, |_| (format!("{} (no device today)", listed(names)), Vec::new()));
        }
    }

    /// A change for names, which mean these devices today.
    pub(super) fn named(&mut self, names: &BTreeSet<&Alias>, nodes: &Bits, told: Told) {
        let list: Vec<usize> = nodes.iter().collect();
        self.put(told, list.len(), |all| (listed(names), some_ids(all.new, &list)));
    }

    /// A change for people, whatever devices they have.
    pub(super) fn people(&mut self, who: String, told: Told) {
        self.put(told, 0, |_| (who, Vec::new()));
    }

    /// A change for everybody.
    pub(super) fn network(&mut self, told: Told) {
        let all = self.new.ground.all.len();
        self.put(told, all, |_| (NETWORK.to_owned(), Vec::new()));
    }
}

/// All changes beside access: the first ones, how many there are, and how many of those take away.
pub(super) fn others(old: &Inner, new: &Inner, limit: usize) -> (Vec<OtherChange>, u64, u64) {
    let mut all = Others { old, new, people: Identities::new(new), rows: Vec::new(), total: 0, lost: 0 };
    options::find(&mut all);
    attributes::find(&mut all);
    approvals::find(&mut all);
    owners::find(&mut all);
    ways::find(&mut all);
    postures::find(&mut all);
    let Others { mut rows, total, lost, .. } = all;
    rows.sort_by(|a, b| {
        let order = |r: &OtherChange| (!r.takes_away, r.kind, std::cmp::Reverse(r.devices));
        order(a).cmp(&order(b)).then_with(|| (a.effect, &a.who, &a.what).cmp(&(b.effect, &b.who, &b.what)))
    });
    rows.truncate(limit);
    (rows, total, lost)
}

/// The devices that names of one policy mean, each name looked up once.
pub(super) struct Members<'a> {
    resolver: Resolver<'a>,
    known: HashMap<&'a Alias, Bits>,
}

/// Who is named somewhere.
#[derive(Debug, Clone, Default)]
pub(super) struct Named<'a> {
    pub(super) nodes: Bits,
    pub(super) names: BTreeSet<&'a Alias>,
    /// Names that no device has.
    idle: BTreeSet<&'a Alias>,
}

impl<'a> Members<'a> {
    pub(super) fn new(policy: &'a Inner) -> Self {
        Self { resolver: Resolver { file: &policy.file, ground: &policy.ground }, known: HashMap::new() }
    }

    pub(super) fn of(&mut self, name: &'a Alias) -> &Bits {
        self.known.entry(name).or_insert_with(|| self.resolver.members(name))
    }

    /// Adds `names` to who is named already.
    pub(super) fn add(&mut self, names: &'a [Spanned<Alias>], to: &mut Named<'a>) {
        for Spanned { value, .. } in names {
            let nodes = self.of(value);
            if nodes.is_empty() {
                to.idle.insert(value);
            }
            to.nodes.add(nodes);
            to.names.insert(value);
        }
    }
}

impl<'a> Named<'a> {
    /// Adds whom another names.
    pub(super) fn take(&mut self, other: &Self) {
        self.nodes.add(&other.nodes);
        self.names.extend(&other.names);
        self.idle.extend(&other.idle);
    }

    /// Devices that are named here and not there.
    pub(super) fn more_than(&self, other: &Self) -> Bits {
        let mut more = self.nodes.clone();
        more.drop(&other.nodes);
        more
    }

    /// Names without a device that are written here and not there.
    pub(super) fn idle_beyond(&self, other: &Self) -> BTreeSet<&'a Alias> {
        self.idle.difference(&other.names).copied().collect()
    }
}

/// `group:dev, tag:web and 3 more`.
fn listed(names: &BTreeSet<&Alias>) -> String {
    let mut words: Vec<String> = names.iter().take(3).map(ToString::to_string).collect();
    if names.len() > words.len() {
        words.push(format!("{} more", names.len() - words.len()));
    }
    join(words, "and")
}

/// `a, b and c`.
pub(super) fn join(mut words: Vec<String>, last_word: &str) -> String {
    match words.pop() {
        Some(last) if words.is_empty() => last,
        Some(last) => format!("{} {last_word} {last}", words.join(", ")),
        None => String::new(),
    }
}

/// Values, with a space before each.
pub(super) fn some(values: &BTreeSet<String>) -> String {
    if values.is_empty() {
        return String::new();
    }
    let mut words: Vec<String> = values.iter().take(VALUES).map(|v| clipped(v)).collect();
    if values.len() > VALUES {
        words.push(format!("{} more", values.len() - VALUES));
    }
    format!(" {}", join(words, "and"))
}

/// A value, cut where it gets long.
pub(super) fn clipped(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
