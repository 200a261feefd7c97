//! Bounded tables of flows, least recently used out first; and what is known of TCP connections: which our
//! hosts opened, which peers opened, and which of those a changed policy has cut. Only openings, endings
//! and changes of policy touch the TCP tables, so segments of a connection cost nothing.
//!
//! A peer could make us forget its connection by opening many. So whose flows were pushed out is kept:
//! from then on its segments need a rule, or a connection that we opened ourselves.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::node::packet::{Headers, Proto};

/// Connections remembered that peers opened, and that we opened.
const OPENED_BY_PEERS: usize = 8192;
const OPENED_BY_US: usize = 4096;
/// Sources remembered whose connections were pushed out; beyond, it counts for everybody.
const FORGOTTEN: usize = 4096;

/// Both ends of a flow; `near` is ours or behind us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) proto: Proto,
    pub(super) near: (IpAddr, u16),
    pub(super) far: (IpAddr, u16),
}

impl Flow {
    /// The flow of a packet from a peer.
    pub(super) const fn inbound(h: &Headers) -> Self {
        Self { proto: h.proto, near: (h.dst, h.dst_port), far: (h.src, h.src_port) }
    }

    /// The flow of a packet from our host.
    pub(super) const fn outbound(h: &Headers) -> Self {
        Self { proto: h.proto, near: (h.src, h.src_port), far: (h.dst, h.dst_port) }
    }
}

#[derive(Debug)]
struct Slot {
    flow: Flow,
    cut: bool,
    newer: usize,
    older: usize,
}

/// A table of flows as a doubly linked list in a slab.
#[derive(Debug)]
pub(super) struct Flows {
    most: usize,
    index: HashMap<Flow, usize>,
    slots: Vec<Slot>,
    newest: usize,
    oldest: usize,
}

impl Flows {
    /// An empty table of at most so many flows.
    pub(super) fn new(most: usize) -> Self {
        Self { most, index: HashMap::new(), slots: Vec::new(), newest: 0, oldest: 0 }
    }

    /// How many flows are known.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether the flow is known.
    pub(super) fn has(&self, flow: &Flow) -> bool {
        self.index.contains_key(flow)
    }

    /// Whether the flow is known; use keeps it.
    pub(super) fn refresh(&mut self, flow: &Flow) -> bool {
        let Some(&at) = self.index.get(flow) else {
            return false;
        };
        if at != self.newest {
            self.unlink(at);
            self.link_newest(at);
        }
        true
    }

    /// Remembers the flow; gives the one that had to make room.
    pub(super) fn touch(&mut self, flow: Flow) -> Option<Flow> {
        if self.refresh(&flow) {
            return None;
        }
        let mut gone = None;
        let at = if self.slots.len() < self.most {
            self.slots.push(Slot { flow, cut: false, newer: 0, older: 0 });
            self.slots.len() - 1
        } else {
            let at = self.oldest;
            self.unlink(at);
            if let Some(slot) = self.slots.get_mut(at) {
                self.index.remove(&slot.flow);
                gone = Some(slot.flow);
                (slot.flow, slot.cut) = (flow, false);
            }
            at
        };
        self.index.insert(flow, at);
        if self.index.len() == 1 {
            (self.newest, self.oldest) = (at, at);
        } else {
            self.link_newest(at);
        }
        gone
    }

    /// The flow is about to end: the next to make room.
    fn retire(&mut self, flow: &Flow) {
        let Some(&at) = self.index.get(flow) else {
            return;
        };
        if at != self.oldest {
            self.unlink(at);
            self.link_oldest(at);
        }
    }

    fn slot(&mut self, flow: &Flow) -> Option<&mut Slot> {
        let at = self.index.get(flow)?;
        self.slots.get_mut(*at)
    }

    fn unlink(&mut self, at: usize) {
        let Some((newer, older)) = self.slots.get(at).map(|s| (s.newer, s.older)) else {
            return;
        };
        if at == self.oldest {
            self.oldest = newer;
        } else if let Some(s) = self.slots.get_mut(older) {
            s.newer = newer;
        }
        if at == self.newest {
            self.newest = older;
        } else if let Some(s) = self.slots.get_mut(newer) {
            s.older = older;
        }
    }

    fn link_newest(&mut self, at: usize) {
        let before = self.newest;
        if let Some(s) = self.slots.get_mut(before) {
            s.newer = at;
        }
        if let Some(s) = self.slots.get_mut(at) {
            s.older = before;
        }
        self.newest = at;
    }

    fn link_oldest(&mut self, at: usize) {
        let after = self.oldest;
        if let Some(s) = self.slots.get_mut(after) {
            s.older = at;
        }
        if let Some(s) = self.slots.get_mut(at) {
            s.newer = after;
        }
        self.oldest = at;
    }
}

/// What the tables say of a segment that opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// A peer opened the connection, and may have it.
    Theirs,
    /// A peer opened it, and a change of policy has cut it.
    Cut,
    /// Nothing speaks against it.
    Unknown,
    /// It may be of a connection that its sender made us forget: it needs a rule.
    Suspect,
}

/// TCP connections.
#[derive(Debug)]
pub(super) struct Connections {
    ours: Flows,
    theirs: Flows,
    /// How many of `theirs` are cut.
    cut: usize,
    forgotten: HashSet<IpAddr>,
    forgot_many: bool,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            ours: Flows::new(OPENED_BY_US),
            theirs: Flows::new(OPENED_BY_PEERS),
            cut: 0,
            forgotten: HashSet::new(),
            forgot_many: false,
        }
    }
}

impl Connections {
    /// Whether all segments pass without a look into the tables.
    pub(super) fn is_calm(&self) -> bool {
        self.cut == 0 && self.forgotten.is_empty()
    }

    /// A peer's SYN was let in.
    pub(super) fn opened_by_peer(&mut self, flow: Flow) {
        // Both ends opening at once: it stays ours.
        if self.ours.has(&flow) {
            return;
        }
        if let Some(slot) = self.theirs.slot(&flow).filter(|slot| slot.cut) {
            slot.cut = false;
            self.cut = self.cut.saturating_sub(1);
        }
        let cut = self.theirs.slots.get(self.theirs.oldest).is_some_and(|slot| slot.cut);
        if let Some(gone) = self.theirs.touch(flow) {
            self.cut -= usize::from(cut && self.cut > 0);
            if self.forgotten.len() < FORGOTTEN {
                self.forgotten.insert(gone.far.0);
            } else {
                self.forgot_many |= !self.forgotten.contains(&gone.far.0);
            }
        }
    }

    /// Our host sent a SYN.
    pub(super) fn opened_by_us(&mut self, flow: Flow) {
        // The host has no connection with these ends any more, or it could not open one.
        if let Some(slot) = self.theirs.slot(&flow) {
            self.cut = self.cut.saturating_sub(usize::from(slot.cut));
            slot.cut = false;
            self.theirs.retire(&flow);
        }
        self.ours.touch(flow);
    }

    /// Our host ends its side. A peer's word for the end counts for nothing: the host may not believe it.
    pub(super) fn ends(&mut self, flow: &Flow) {
        self.ours.retire(flow);
        self.theirs.retire(flow);
    }

    /// Whether a peer opened this connection and it is cut.
    pub(super) fn is_cut(&mut self, flow: &Flow) -> bool {
        self.cut > 0 && self.theirs.slot(flow).is_some_and(|slot| slot.cut)
    }

    /// What is known of a segment from a peer that opens nothing.
    pub(super) fn standing(&mut self, flow: &Flow) -> Standing {
        if self.ours.has(flow) {
            return Standing::Unknown;
        }
        match self.theirs.slot(flow) {
            Some(slot) if slot.cut => Standing::Cut,
            Some(_) => Standing::Theirs,
            None if self.forgot_many || self.forgotten.contains(&flow.far.0) => Standing::Suspect,
            None => Standing::Unknown,
        }
    }

    /// Cuts what peers opened and may not have any more, and mends what they may have again. Gives how
    /// many were cut now.
    pub(super) fn judge_again(&mut self, permitted: impl Fn(&Flow) -> bool) -> usize {
        let mut fresh = 0;
        self.cut = 0;
        let ours = &self.ours;
        for slot in &mut self.theirs.slots {
            let cut = !permitted(&slot.flow) && !ours.has(&slot.flow);
            fresh += usize::from(cut && !slot.cut);
            self.cut += usize::from(cut);
            slot.cut = cut;
        }
        fresh
    }
}
