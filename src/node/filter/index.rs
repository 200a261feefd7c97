//! The compiled filter. Destinations are cut into elementary intervals of few classes; a class and a
//! protocol lead to a grid of sources and ports. In a grid, narrow ranges of sources are lists of ports
//! per source, and wide ones a decision matrix; so neither a port for many nor a source with many ports is
//! written down more than a few times. A lookup is a few short searches (`starts`), without allocation. A
//! filter too large for one part is several, any of which may permit. `build` makes it.

use std::net::IpAddr;

use super::rows::{RowId, Rows};
use super::starts::{Key, Starts};

/// Sources and ports of wide ranges: a row of columns for each interval of ports.
#[derive(Debug)]
pub(super) struct Matrix<K> {
    pub(super) srcs: Starts<K>,
    pub(super) ports: Starts<u16>,
    pub(super) port_rows: Vec<RowId>,
    pub(super) rows: Rows,
}

/// Which sources may reach which ports.
#[derive(Debug)]
pub(super) struct Grid<K> {
    pub(super) srcs: Starts<K>,
    /// The ports of source interval `i` are `spans[lists[i]..lists[i + 1]]`, ascending and disjoint.
    pub(super) lists: Vec<u32>,
    pub(super) spans: Vec<(u16, u16)>,
    pub(super) wide: Option<Matrix<K>>,
}

impl<K: Key> Matrix<K> {
    fn has(&self, src: K, port: u16) -> bool {
        let row = self.port_rows.get(self.ports.at(port)).copied().unwrap_or_default();
        row != 0 && self.rows.has(row, self.srcs.at(src))
    }
}

impl<K: Key> Grid<K> {
    fn has(&self, src: K, port: u16) -> bool {
        let column = self.srcs.at(src);
        let bounds = (self.lists.get(column), self.lists.get(column + 1));
        let (Some(from), Some(to)) = bounds else {
            return false;
        };
        let list = self.spans.get(*from as usize..*to as usize).unwrap_or_default();
        let after = list.partition_point(|(first, _)| *first <= port);
        let narrow = after.checked_sub(1).and_then(|i| list.get(i)).is_some_and(|(_, last)| port <= *last);
        narrow || self.wide.as_ref().is_some_and(|wide| wide.has(src, port))
    }

    /// Its memory.
    pub(super) fn bytes(&self) -> usize {
        let wide = |w: &Matrix<K>| w.srcs.bytes() + w.ports.bytes() + w.port_rows.len() * 4 + w.rows.bytes();
        size_of::<Self>()
            + self.srcs.bytes()
            + (self.lists.len() + self.spans.len()) * 4
            + self.wide.as_ref().map_or(0, wide)
    }
}

/// What the filter knows of one class of destinations and one class of protocols.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cell {
    /// Its grid.
    pub(super) grid: u32,
    /// Its set of sources when the protocol has no ports: only rules of all ports count, and no capabilities.
    pub(super) portless: u32,
}

/// Some or all rules of one family.
#[derive(Debug)]
pub(super) struct Part<K> {
    /// Destinations, and the class of each interval.
    pub(super) dsts: Starts<K>,
    pub(super) classes: Vec<u32>,
    /// The class of each protocol, and how many there are.
    pub(super) protos: [u8; 256],
    pub(super) width: usize,
    /// `width` cells per class of destinations.
    pub(super) cells: Vec<Cell>,
    /// Per class of destinations: the set of sources that may send to it at all (ICMP).
    pub(super) any: Vec<u32>,
    /// Sets of sources: where membership begins and ends, in turn.
    pub(super) sets: Vec<Vec<K>>,
    pub(super) grids: Vec<Grid<K>>,
}

impl<K: Key> Part<K> {
    fn class(&self, dst: K) -> usize {
        self.classes.get(self.dsts.at(dst)).map_or(0, |c| *c as usize)
    }

    fn cell(&self, dst: K, proto: u8) -> Cell {
        let proto = self.protos.get(usize::from(proto)).copied().unwrap_or_default();
        let at = self.class(dst) * self.width + usize::from(proto);
        self.cells.get(at).copied().unwrap_or_default()
    }

    fn set_has(&self, set: u32, src: K) -> bool {
        let set = self.sets.get(set as usize);
        set.is_some_and(|edges| edges.partition_point(|edge| *edge <= src) % 2 == 1)
    }

    fn port(&self, src: K, dst: K, proto: u8, port: u16) -> bool {
        self.grids.get(self.cell(dst, proto).grid as usize).is_some_and(|grid| grid.has(src, port))
    }

    fn portless(&self, src: K, dst: K, proto: u8) -> bool {
        self.set_has(self.cell(dst, proto).portless, src)
    }

    fn reaches(&self, src: K, dst: K) -> bool {
        self.any.get(self.class(dst)).is_some_and(|set| self.set_has(*set, src))
    }

    /// Its memory.
    pub(super) fn bytes(&self) -> usize {
        self.dsts.bytes()
            + (self.classes.len() + self.any.len()) * 4
            + self.cells.len() * size_of::<Cell>()
            + self.sets.iter().map(|s| s.len() * size_of::<K>()).sum::<usize>()
            + self.grids.iter().map(Grid::bytes).sum::<usize>()
    }
}

/// The filter of both families.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(super) v4: Vec<Part<u32>>,
    pub(super) v6: Vec<Part<u128>>,
}

impl Index {
    /// Whether a rule lets `src` reach a port of `dst`.
    pub(crate) fn port(&self, src: IpAddr, dst: IpAddr, proto: u8, port: u16) -> bool {
        match (src, dst) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                self.v4.iter().any(|p| p.port(s.to_bits(), d.to_bits(), proto, port))
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                self.v6.iter().any(|p| p.port(s.to_bits(), d.to_bits(), proto, port))
            }
            _ => false,
        }
    }

    /// Whether a rule of all ports lets `src` send a protocol without ports to `dst`.
    pub(crate) fn portless(&self, src: IpAddr, dst: IpAddr, proto: u8) -> bool {
        match (src, dst) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                self.v4.iter().any(|p| p.portless(s.to_bits(), d.to_bits(), proto))
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                self.v6.iter().any(|p| p.portless(s.to_bits(), d.to_bits(), proto))
            }
            _ => false,
        }
    }

    /// Whether any rule at all lets `src` reach `dst`.
    pub(crate) fn reaches(&self, src: IpAddr, dst: IpAddr) -> bool {
        match (src, dst) {
            (IpAddr::V4(s), IpAddr::V4(d)) => self.v4.iter().any(|p| p.reaches(s.to_bits(), d.to_bits())),
            (IpAddr::V6(s), IpAddr::V6(d)) => self.v6.iter().any(|p| p.reaches(s.to_bits(), d.to_bits())),
            _ => false,
        }
    }

    /// Its memory and the number of its parts.
    pub(crate) fn size(&self) -> (usize, usize) {
        let bytes =
            self.v4.iter().map(Part::bytes).sum::<usize>() + self.v6.iter().map(Part::bytes).sum::<usize>();
        (bytes, self.v4.len() + self.v6.len())
    }
}
