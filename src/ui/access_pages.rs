//! The Access room as values for its templates: the editor, who gains and who loses, history. Pure.

use askama::Template;
use chrono::{DateTime, Utc};
use ring::digest;

use super::editor::{DiffLine, Editor, Fault, faults};
use super::pages::{Frame, Room};
use super::text::{When, clean, count};
use crate::acl::{AccessChange, AccessDiff, Effect, OtherChange, PolicyError};
use crate::control::service::{NodeView, PolicyOutcome};
use crate::keys::NodeId;
use crate::model::{PolicySummary, PolicyVersion};

/// Changes shown of each kind.
const SHOWN: usize = 60;
/// Devices named on either side of a change.
const NAMED: usize = 3;

/// One gain or loss in words.
pub(super) struct ChangeRow {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) what: String,
    pub(super) pairs: u64,
    /// Some of the devices by name: `laptop, phone → db-1`.
    pub(super) devices: String,
}

/// A change that is not access.
pub(super) struct OtherRow {
    /// Class of its sign.
    pub(super) tone: &'static str,
    /// `gains`, `loses`, or nothing where something is another one.
    pub(super) verb: &'static str,
    pub(super) who: String,
    pub(super) what: String,
    /// Some of the devices by name.
    pub(super) devices: String,
}

/// Who gains and who loses.
pub(super) struct DiffView {
    pub(super) gained: Vec<ChangeRow>,
    pub(super) lost: Vec<ChangeRow>,
    pub(super) more_gained: u64,
    pub(super) more_lost: u64,
    pub(super) other: Vec<OtherRow>,
    pub(super) more_other: u64,
    pub(super) sentence: String,
}

impl DiffView {
    pub(super) fn new(diff: &AccessDiff, nodes: &[NodeView]) -> Self {
        let names: std::collections::BTreeMap<_, _> = nodes.iter().map(|n| (n.id, n.name.as_str())).collect();
        let some = |ids: &[NodeId]| {
            let named = ids.iter().filter_map(|id| names.get(id)).take(NAMED);
            let mut named: Vec<String> = named.map(|n| clean(n, 40)).collect();
            if ids.len() > NAMED {
                named.push("…".to_owned());
            }
            named.join(", ")
        };
        let rows = |list: &[AccessChange]| -> Vec<ChangeRow> {
            let row = |c: &AccessChange| ChangeRow {
                from: clean(&c.from, 200),
                to: clean(&c.to, 200),
                what: clean(&c.what, 200),
                pairs: c.pairs,
                devices: match (some(&c.from_nodes), some(&c.to_nodes)) {
                    (from, to) if from.is_empty() || to.is_empty() => from + &to,
                    (from, to) => format!("{from} → {to}"),
                },
            };
            list.iter().take(SHOWN).map(row).collect()
        };
        let tone = |c: &OtherChange| match c.effect {
            Effect::Gained => ("more", " gains"),
            Effect::Lost => ("less", " loses"),
            Effect::Changed => ("else", ":"),
        };
        let other = |c: &OtherChange| OtherRow {
            tone: tone(c).0,
            verb: tone(c).1,
            who: clean(&c.who, 200),
            what: clean(&c.what, 400),
            devices: some(&c.nodes),
        };
        let other: Vec<OtherRow> = diff.other.iter().take(SHOWN).map(other).collect();
        let (gained, lost) = (rows(&diff.gained), rows(&diff.lost));
        let least = if diff.exact { "" } else { "at least " };
        let pairs = |n: u64, one: &str, more: &str| match n {
            1 => format!("{least}1 pair of devices {one}"),
            n => format!("{least}{n} pairs of devices {more}"),
        };
        let capital =
            |text: String| text.replacen("at least", "At least", usize::from(text.starts_with("at least")));
        Self {
            sentence: match (diff.gained_total, diff.lost_total) {
                (0, 0) if !diff.exact => {
                    "The change touches so much that not all of it was looked at; somebody may lose access."
                        .to_owned()
                }
                (0, 0) if diff.other_total > 0 => {
                    format!("Nobody gains or loses access; {}.", other_words(diff))
                }
                (0, 0) => "Nobody gains or loses access.".to_owned(),
                (g, 0) if !diff.exact => capital(format!("{} access.", pairs(g, "gains", "gain"))),
                (g, 0) => format!("{} access; nobody loses any.", pairs(g, "gains", "gain")),
                (0, l) => capital(format!("{} access.", pairs(l, "loses", "lose"))),
                (g, l) => capital(format!(
                    "{} access; {} some.",
                    pairs(l, "loses", "lose"),
                    pairs(g, "gains", "gain")
                )),
            },
            more_other: diff.other_total.saturating_sub(u64::try_from(other.len()).unwrap_or(u64::MAX)),
            other,
            more_gained: diff.gained_total.saturating_sub(gained.iter().map(|r| r.pairs).sum()),
            more_lost: diff.lost_total.saturating_sub(lost.iter().map(|r| r.pairs).sum()),
            gained,
            lost,
        }
    }
}

fn other_words(diff: &AccessDiff) -> String {
    match diff.other_total {
        1 => "1 other thing changes".to_owned(),
        n => format!("{n} other things change"),
    }
}

/// Whether a change has to be looked at before it is stored.
pub(super) fn matters(outcome: &PolicyOutcome) -> bool {
    outcome.diff.changes() || outcome.cuts_author.is_some()
}

/// Stands for exactly this change by exactly this text: what was confirmed is what was seen.
pub(super) fn fingerprint(text: &str, outcome: &PolicyOutcome) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(text.as_bytes());
    context.update(format!("{:?} {:?}", outcome.diff, outcome.cuts_author).as_bytes());
    hex::encode(context.finish())
}

/// What a checked text would change, before it is stored.
pub(super) struct Preview {
    pub(super) diff: DiffView,
    /// It takes access away, or something else: the button says so.
    pub(super) loses: bool,
    /// What it takes away: `access`, or what is not access.
    pub(super) taken: &'static str,
    /// The author's own way to the console.
    pub(super) cuts: Option<String>,
    /// See [`fingerprint`]; a change that changes nobody's access has none and needs no question.
    pub(super) seen: String,
    pub(super) warnings: Vec<Fault>,
    /// `12 tests hold.`
    pub(super) tests: String,
}

impl Preview {
    pub(super) fn new(
        editor: &mut Editor,
        outcome: &PolicyOutcome,
        nodes: &[NodeView],
        tests: usize,
    ) -> Self {
        let hold = |n: usize| format!("{} {}.", count(n, "test"), if n == 1 { "holds" } else { "hold" });
        Self {
            diff: DiffView::new(&outcome.diff, nodes),
            loses: outcome.diff.takes_away(),
            taken: if outcome.diff.lost_total > 0 || !outcome.diff.exact { "access" } else { "something" },
            cuts: outcome.cuts_author.as_deref().map(|why| clean(why, 400)),
            seen: if matters(outcome) { fingerprint(&editor.text.0, outcome) } else { String::new() },
            warnings: faults(editor, &outcome.warnings, "warn"),
            tests: match tests {
                0 => "The policy has no tests.".to_owned(),
                1 => hold(1),
                n => format!("All {}", hold(n)),
            },
        }
    }
}

/// Faults with their headline.
#[derive(Default)]
pub(super) struct Faults {
    pub(super) headline: String,
    pub(super) rows: Vec<Fault>,
}

impl Faults {
    pub(super) fn new(editor: &mut Editor, errors: &[PolicyError]) -> Self {
        let tests = errors.iter().filter(|e| e.code == "test-failed").count();
        let what = match (tests, errors.len() - tests) {
            (0, n) => format!("{} in the text", count(n, "fault")),
            (1, 0) => "1 test does not hold".to_owned(),
            (n, 0) => format!("{n} tests do not hold"),
            (n, m) => format!("{} in the text, {} that fail", count(m, "fault"), count(n, "test")),
        };
        Self { headline: format!("{what}; nothing was changed"), rows: faults(editor, errors, "bad") }
    }

    /// Tests of the policy in force that the tailnet has moved away from.
    pub(super) fn broken(editor: &mut Editor, errors: &[PolicyError]) -> Self {
        if errors.is_empty() {
            return Self::default();
        }
        let what = if errors.len() == 1 { "test does" } else { "tests do" };
        Self {
            headline: format!("{} {what} not hold any more", errors.len()),
            rows: faults(editor, errors, "bad"),
        }
    }
}

/// A stored policy in the history.
pub(super) struct VersionRow {
    pub(super) version: u64,
    pub(super) author: String,
    pub(super) comment: String,
    pub(super) created: When,
    pub(super) size: String,
}

impl VersionRow {
    pub(super) fn new(policy: &PolicySummary, now: DateTime<Utc>) -> Self {
        Self {
            version: policy.version,
            author: clean(&policy.author, 80),
            comment: clean(&policy.comment, 500),
            created: When::new(policy.created, now),
            size: size(policy.bytes),
        }
    }
}

/// A length in words.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{} kB", (bytes + 500) / 1_000),
        _ => format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000),
    }
}

/// Access.
#[derive(Template)]
#[template(path = "access.html")]
pub(super) struct Access {
    pub(super) frame: Frame,
    pub(super) sentence: String,
    /// Why the policy stored last is not in force.
    pub(super) obstacle: Option<String>,
    /// The file that the policy comes from: it can be checked here, not saved.
    pub(super) file: Option<String>,
    pub(super) editor: Editor,
    /// The text in force is too long to be loaded unasked.
    pub(super) unloaded: Option<String>,
    /// The version the editor started from.
    pub(super) expect: u64,
    pub(super) comment: String,
    pub(super) faults: Faults,
    pub(super) preview: Option<Preview>,
    /// Somebody stored another policy meanwhile: from theirs to this draft.
    pub(super) race: Option<Vec<DiffLine>>,
    /// What an edit made by us changed in the text.
    pub(super) edited: Option<Vec<DiffLine>>,
    pub(super) history: Vec<VersionRow>,
    pub(super) more: usize,
}

impl Access {
    pub(super) fn new(frame: Frame, current: &PolicyVersion, text: String, now: DateTime<Utc>) -> Self {
        Self {
            sentence: match current.version {
                0 => "No policy was stored yet: all members reach all devices.".to_owned(),
                v => format!(
                    "Version {v} is in force, stored {} by {}.",
                    When::new(current.created, now).words(),
                    clean(&current.author, 80)
                ),
            },
            obstacle: None,
            file: None,
            expect: current.version,
            editor: Editor::new(text),
            unloaded: None,
            comment: String::new(),
            faults: Faults::default(),
            preview: None,
            race: None,
            edited: None,
            history: Vec::new(),
            more: 0,
            frame,
        }
    }
}

/// A stored policy, to look at and to go back to.
#[derive(Template)]
#[template(path = "version.html")]
pub(super) struct Version {
    pub(super) frame: Frame,
    pub(super) row: VersionRow,
    pub(super) editor: Editor,
    /// The text is too long to be shown whole.
    pub(super) cut: bool,
    pub(super) current: u64,
    /// From the version before to this one, with its number.
    pub(super) made: Option<(u64, Vec<DiffLine>)>,
    /// From this version to the one in force.
    pub(super) since: Vec<DiffLine>,
    pub(super) comment: String,
    pub(super) faults: Faults,
    pub(super) preview: Option<Preview>,
}

impl Version {
    pub(super) fn in_force(&self) -> bool {
        self.row.version == self.current
    }
}
