//! What somebody may have to be told: a set of things that changed, never a queue of messages. Changes
//! merge, so a slow reader gets one larger change later. What is actually sent is decided by comparing
//! the snapshot with what the stream was sent before (`mapper`).

use std::collections::BTreeSet;

use crate::acl::Touched;
use crate::keys::NodeId;

/// A mergeable set of changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// Nodes whose record or presence changed, came or went.
    pub(super) nodes: BTreeSet<NodeId>,
    /// Whose peers, rules and capabilities may differ.
    pub(super) access: Touched,
    /// Settings were replaced: everything may differ for everybody.
    pub(super) settings: bool,
    /// Users were renamed.
    pub(super) users: bool,
}

impl Change {
    /// Whether there is nothing to tell.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes `other` in.
    pub(super) fn merge(&mut self, other: &Self) {
        self.nodes.extend(&other.nodes);
        self.touch(&other.access);
        self.settings |= other.settings;
        self.users |= other.users;
    }

    /// Takes in what a compilation touched.
    pub(super) fn touch(&mut self, touched: &Touched) {
        self.access.nodes.extend(&touched.nodes);
        self.access.filters.extend(&touched.filters);
        self.access.all |= touched.all;
    }
}
