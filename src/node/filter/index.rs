//! The compiled filter: a decision matrix per address family. Columns are the elementary intervals of the
//! sources, rows are cells of destination, protocol and port; a lookup is three short binary searches and
//! one bit. A filter too large for one matrix is several, any of which may permit. `build` makes it.

use std::net::IpAddr;

use super::rows::{RowId, Rows};

/// What the filter knows of one class of destinations and one class of protocols.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cell {
    /// Its ports: `ports[from..to]`, empty when no rule speaks of any.
    pub(super) from: u32,
    pub(super) to: u32,
    /// Who may send when the protocol has no ports: rules of all ports count, capabilities do not.
    pub(super) portless: RowId,
}

/// One matrix. All lists of starts are sorted and begin with the lowest number.
#[derive(Debug)]
pub(super) struct Part<K> {
    /// Where the elementary intervals of the sources start: the columns.
    pub(super) srcs: Vec<K>,
    /// The same for destinations, and the class of each.
    pub(super) dsts: Vec<K>,
    pub(super) classes: Vec<u32>,
    /// The class of each protocol, and how many there are.
    pub(super) protos: [u8; 256],
    pub(super) width: usize,
    /// `width` cells per class of destinations.
    pub(super) cells: Vec<Cell>,
    /// Per class of destinations: who may send to it at all (ICMP).
    pub(super) any: Vec<RowId>,
    /// Starts of elementary port intervals, and the row of each.
    pub(super) ports: Vec<u16>,
    pub(super) port_rows: Vec<RowId>,
    pub(super) rows: Rows,
}

/// The interval a key lies in.
fn at<K: Ord + Copy>(starts: &[K], key: K) -> usize {
    starts.partition_point(|start| *start <= key).saturating_sub(1)
}

impl<K: Ord + Copy> Part<K> {
    fn class(&self, dst: K) -> usize {
        self.classes.get(at(&self.dsts, dst)).map_or(0, |c| *c as usize)
    }

    fn cell(&self, dst: K, proto: u8) -> Cell {
        let proto = self.protos.get(usize::from(proto)).copied().unwrap_or_default();
        let at = self.class(dst) * self.width + usize::from(proto);
        self.cells.get(at).copied().unwrap_or_default()
    }

    fn row_has(&self, row: RowId, src: K) -> bool {
        row != 0 && self.rows.has(row, at(&self.srcs, src))
    }

    fn port(&self, src: K, dst: K, proto: u8, port: u16) -> bool {
        let cell = self.cell(dst, proto);
        let (from, to) = (cell.from as usize, cell.to as usize);
        let Some(starts) = self.ports.get(from..to) else {
            return false;
        };
        let row = self.port_rows.get(from + at(starts, port)).filter(|_| from < to);
        row.is_some_and(|row| self.row_has(*row, src))
    }

    fn portless(&self, src: K, dst: K, proto: u8) -> bool {
        self.row_has(self.cell(dst, proto).portless, src)
    }

    fn reaches(&self, src: K, dst: K) -> bool {
        self.any.get(self.class(dst)).is_some_and(|row| self.row_has(*row, src))
    }

    fn bytes(&self) -> usize {
        (self.srcs.len() + self.dsts.len()) * size_of::<K>()
            + (self.classes.len() + self.any.len()) * 4
            + self.cells.len() * size_of::<Cell>()
            + self.ports.len() * 6
            + self.rows.bytes()
    }
}

/// The matrices of both families.
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

    /// Its memory and the number of its matrices.
    pub(crate) fn size(&self) -> (usize, usize) {
        let bytes =
            self.v4.iter().map(Part::bytes).sum::<usize>() + self.v6.iter().map(Part::bytes).sum::<usize>();
        (bytes, self.v4.len() + self.v6.len())
    }
}
