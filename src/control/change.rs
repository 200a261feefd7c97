//! What somebody may have to be told: a set of things that changed, never a queue of messages. Changes
//! merge, so a slow reader gets one larger change later. What is actually sent is decided by comparing
//! the snapshot with what the stream was sent before (`mapper`).

use std::collections::BTreeSet;

use crate::keys::NodeId;

/// A mergeable set of changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// Nodes whose record or presence changed, came or went.
    pub(super) nodes: BTreeSet<NodeId>,
    /// The policy was compiled anew: peers and rules of anybody may differ.
    pub(super) access: bool,
    /// Settings were replaced, or users renamed.
    pub(super) settings: bool,
}

impl Change {
    /// Whether there is nothing to tell.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty() && !self.access && !self.settings
    }

    /// Takes `other` in.
    pub(super) fn merge(&mut self, other: &Self) {
        self.nodes.extend(&other.nodes);
        self.access |= other.access;
        self.settings |= other.settings;
    }
}
