//! The rows of the filter's decision matrix: which columns (classes of sources) a cell of destinations
//! lets in. A row is a list of runs where it is sparse or smooth, and a bitmap where it is not.

/// Names a row; 0 is the row that lets nobody in.
pub(super) type RowId = u32;

#[derive(Debug, Clone, Copy)]
enum Row {
    /// `runs[from..to]`: where membership begins and ends, in turn.
    Runs { from: u32, to: u32 },
    /// `bits[from..]`: a bit per column.
    Bits { from: u32 },
}

/// All rows.
#[derive(Debug)]
pub(super) struct Rows {
    rows: Vec<Row>,
    runs: Vec<u32>,
    bits: Vec<u64>,
}

impl Default for Rows {
    fn default() -> Self {
        Self { rows: vec![Row::Runs { from: 0, to: 0 }], runs: Vec::new(), bits: Vec::new() }
    }
}

fn short(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// The bits that differ from the bit before, word by word.
fn edges(mask: &[u64]) -> impl Iterator<Item = u64> + '_ {
    let mut carry = 0;
    mask.iter().map(move |w| {
        let edge = w ^ (w << 1 | carry);
        carry = w >> 63;
        edge
    })
}

impl Rows {
    /// Whether a row has a column.
    pub(super) fn has(&self, row: RowId, column: usize) -> bool {
        match self.rows.get(row as usize) {
            Some(Row::Bits { from }) => {
                let word = self.bits.get(*from as usize + column / 64);
                word.is_some_and(|w| w >> (column % 64) & 1 == 1)
            }
            Some(Row::Runs { from, to }) => {
                let runs = self.runs.get(*from as usize..*to as usize).unwrap_or_default();
                runs.partition_point(|edge| *edge as usize <= column) % 2 == 1
            }
            None => false,
        }
    }

    /// Adds a row with these columns.
    pub(super) fn push(&mut self, mask: &[u64]) -> RowId {
        let count: usize = edges(mask).map(|e| e.count_ones() as usize).sum();
        // Runs are searched, a bitmap is looked into: runs only where they save much.
        let row = if count * 4 * 4 <= mask.len() * 8 || count <= 4 {
            let from = short(self.runs.len());
            for (at, mut edge) in edges(mask).enumerate() {
                while edge != 0 {
                    self.runs.push(short(at * 64) + edge.trailing_zeros());
                    edge &= edge - 1;
                }
            }
            Row::Runs { from, to: short(self.runs.len()) }
        } else {
            let from = short(self.bits.len());
            self.bits.extend_from_slice(mask);
            Row::Bits { from }
        };
        self.rows.push(row);
        short(self.rows.len() - 1)
    }

    /// Memory of all rows.
    pub(super) const fn bytes(&self) -> usize {
        self.rows.len() * size_of::<Row>() + self.runs.len() * 4 + self.bits.len() * 8
    }

    /// Gives spare memory back.
    pub(super) fn shrink(&mut self) {
        self.rows.shrink_to_fit();
        self.runs.shrink_to_fit();
        self.bits.shrink_to_fit();
    }
}

/// Sets the bits from `first` up to but without `end`.
pub(super) fn set_bits(mask: &mut [u64], first: u32, end: u32) {
    let (first, end) = (first as usize, end as usize);
    if first >= end {
        return;
    }
    let (from, to) = (first / 64, (end - 1) / 64);
    let head = u64::MAX << (first % 64);
    let tail = u64::MAX >> (63 - (end - 1) % 64);
    for (at, word) in mask.iter_mut().enumerate().take(to + 1).skip(from) {
        let left = if at == from { head } else { u64::MAX };
        let right = if at == to { tail } else { u64::MAX };
        *word |= left & right;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_hold_what_was_put_in_as_runs_and_as_bits() {
        let mut rows = Rows::default();
        let mut smooth = vec![0_u64; 40];
        set_bits(&mut smooth, 3, 130);
        set_bits(&mut smooth, 191, 192);
        set_bits(&mut smooth, 2500, 2560);
        let rough: Vec<u64> = (0..40).map(|n| 0x9e37_79b9_7f4a_7c15_u64.rotate_left(n)).collect();
        let (a, b) = (rows.push(&smooth), rows.push(&rough));
        assert!(matches!(rows.rows[a as usize], Row::Runs { .. }));
        assert!(matches!(rows.rows[b as usize], Row::Bits { .. }));
        for column in 0..2560 {
            let bit = |m: &[u64]| m[column / 64] >> (column % 64) & 1 == 1;
            assert_eq!(rows.has(a, column), bit(&smooth), "{column}");
            assert_eq!(rows.has(b, column), bit(&rough), "{column}");
            let want = (3..130).contains(&column) || column == 191 || column >= 2500;
            assert_eq!(bit(&smooth), want, "{column}");
            assert!(!rows.has(0, column));
        }
        assert!(!rows.has(99, 0));
    }
}
