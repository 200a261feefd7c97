//! The Access room as values for its templates: the editor, who gains and who loses, history. Pure.

use askama::Template;
use chrono::{DateTime, Utc};

use super::editor::{DiffLine, Fault};
use super::pages::{Frame, Room};
use super::text::{When, clean};
use crate::acl::{AccessChange, AccessDiff};
use crate::control::service::NodeView;
use crate::model::{PolicySummary, PolicyVersion};

/// One gain or loss in words.
pub(super) struct ChangeRow {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) what: String,
}

/// Who gains and who loses.
#[derive(Default)]
pub(super) struct DiffView {
    pub(super) gained: Vec<ChangeRow>,
    pub(super) lost: Vec<ChangeRow>,
    pub(super) more_gained: u64,
    pub(super) more_lost: u64,
    pub(super) sentence: String,
}

impl DiffView {
    pub(super) fn new(diff: &AccessDiff, nodes: &[NodeView]) -> Self {
        const SHOWN: usize = 100;
        let names: std::collections::BTreeMap<_, _> =
            nodes.iter().map(|n| (n.id, clean(&n.name, 63))).collect();
        let name = |id| names.get(&id).cloned().unwrap_or_else(|| format!("node {id}"));
        let rows = |list: &[AccessChange]| -> Vec<ChangeRow> {
            let row = |c: &AccessChange| ChangeRow {
                from: name(c.from),
                to: name(c.to),
                what: clean(&c.what, 200),
            };
            list.iter().take(SHOWN).map(row).collect()
        };
        let (gained, lost) = (rows(&diff.gained), rows(&diff.lost));
        let pairs = |n: u64, one: &str, more: &str| match n {
            1 => format!("1 pair of devices {one}"),
            n => format!("{n} pairs of devices {more}"),
        };
        Self {
            sentence: match (diff.gained_total, diff.lost_total) {
                (0, 0) => "Nobody gains or loses access.".to_owned(),
                (g, 0) => format!("{} access; nobody loses any.", pairs(g, "gains", "gain")),
                (0, l) => format!("{} access.", pairs(l, "loses", "lose")),
                (g, l) => {
                    format!("{} access; {} some.", pairs(l, "loses", "lose"), pairs(g, "gains", "gain"))
                }
            },
            more_gained: diff.gained_total.saturating_sub(gained.len() as u64),
            more_lost: diff.lost_total.saturating_sub(lost.len() as u64),
            gained,
            lost,
        }
    }
}

/// A stored policy in the history.
pub(super) struct VersionRow {
    pub(super) version: u64,
    pub(super) author: String,
    pub(super) created: When,
}

impl VersionRow {
    pub(super) fn new(policy: &PolicySummary, now: DateTime<Utc>) -> Self {
        Self {
            version: policy.version,
            author: clean(&policy.author, 80),
            created: When::new(policy.created, now),
        }
    }
}

/// Access.
#[derive(Template)]
#[template(path = "access.html")]
pub(super) struct Access {
    pub(super) frame: Frame,
    pub(super) sentence: String,
    /// What stands in the editor.
    pub(super) text: String,
    /// The version the editor started from.
    pub(super) expect: u64,
    pub(super) rows: usize,
    pub(super) faults: Vec<Fault>,
    pub(super) warnings: Vec<Fault>,
    pub(super) diff: Option<DiffView>,
    /// Ask before access is taken away.
    pub(super) confirm: bool,
    /// Somebody stored another policy meanwhile: from theirs to this draft.
    pub(super) race: Option<Vec<DiffLine>>,
    pub(super) history: Vec<VersionRow>,
}

impl Access {
    pub(super) fn new(frame: Frame, current: &PolicyVersion, text: String, history: Vec<VersionRow>) -> Self {
        Self {
            sentence: match current.version {
                0 => "No policy was stored yet: all members reach all devices.".to_owned(),
                v => format!("Version {v} is in force."),
            },
            expect: current.version,
            rows: text.lines().count().clamp(12, 32),
            text,
            faults: Vec::new(),
            warnings: Vec::new(),
            diff: None,
            confirm: false,
            race: None,
            history,
            frame,
        }
    }
}

/// A stored policy, to look at.
#[derive(Template)]
#[template(path = "version.html")]
pub(super) struct Version {
    pub(super) frame: Frame,
    pub(super) row: VersionRow,
    pub(super) text: String,
    pub(super) current: bool,
    /// From this version to the one in force.
    pub(super) since: Vec<DiffLine>,
}
