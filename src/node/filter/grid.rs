//! Draws the grids of `index`: rectangles of sources and ports become lists of ports per source where the
//! sources are narrow, and a matrix where they are wide. The matrix is filled by halving the ports, as in a
//! segment tree: what covers a half wholly is admitted once for all of it.

use std::collections::HashMap;

use super::build::{TooBig, short, token};
use super::index::{Grid, Matrix};
use super::rows::{RowId, Rows, set_bits};
use super::starts::{Key, Starts};

/// Sources over more intervals than this are wide.
const NARROW: u32 = 16;

/// Sources, as intervals, that may reach ports; both half open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rect {
    pub(super) srcs: (u32, u32),
    pub(super) ports: (u32, u32),
}

/// Room for drawing, kept from grid to grid.
#[derive(Debug)]
pub(super) struct Pen {
    /// Where an interval of the part went in the grid.
    place: Vec<u32>,
    spare: Vec<Vec<u64>>,
}

impl Rect {
    /// For a sort in one comparison.
    fn order(&self) -> u128 {
        let pair = |(a, b): (u32, u32)| u128::from(u64::from(a) << 32 | u64::from(b));
        pair(self.srcs) << 64 | pair(self.ports)
    }
}

/// Drops rectangles that are there twice.
fn distinct(rects: &mut Vec<Rect>) {
    rects.sort_unstable_by_key(Rect::order);
    rects.dedup();
}

/// The bounds that occur in rectangles, and 0, ascending.
fn bounds(rects: &[Rect], place: &mut [u32]) -> Vec<u32> {
    let all = rects.iter().flat_map(|r| [r.srcs.0, r.srcs.1]).chain([0]);
    if rects.len() * 8 < place.len() {
        let mut cuts: Vec<u32> = all.collect();
        cuts.sort_unstable();
        cuts.dedup();
        return cuts;
    }
    // Most of them occur: to mark them is cheaper than to sort.
    place.fill(0);
    for cut in all {
        if let Some(mark) = place.get_mut(cut as usize) {
            *mark = 1;
        }
    }
    (0..).zip(&*place).filter(|(_, mark)| **mark == 1).map(|(cut, _)| cut).collect()
}

/// Renumbers the sources of rectangles by the bounds that occur in them; gives those bounds.
fn squeeze(rects: &mut [Rect], place: &mut [u32]) -> Vec<u32> {
    let cuts = bounds(rects, place);
    for (at, cut) in cuts.iter().enumerate() {
        if let Some(to) = place.get_mut(*cut as usize) {
            *to = short(at);
        }
    }
    let new = |cut: u32| place.get(cut as usize).copied().unwrap_or_default();
    for r in rects {
        r.srcs = (new(r.srcs.0), new(r.srcs.1));
    }
    cuts
}

fn port(n: u32) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

/// The starts of these intervals. One past the last is an end and starts nothing.
fn pick<K: Key>(srcs: &[K], cuts: &[u32]) -> Starts<K> {
    Starts::new(cuts.iter().filter_map(|c| srcs.get(*c as usize)).copied().collect())
}

impl Pen {
    /// For a part with so many source intervals.
    pub(super) fn new(columns: usize) -> Self {
        Self { place: vec![0; columns + 1], spare: Vec::new() }
    }

    /// Draws a grid, paying for it from what is left of steps and bytes.
    pub(super) fn grid<K: Key>(
        &mut self,
        mut rects: Vec<Rect>,
        srcs: &[K],
        (work, bytes): (&mut usize, usize),
    ) -> Result<Grid<K>, TooBig> {
        let cuts = squeeze(&mut rects, &mut self.place);
        let starts = pick(srcs, &cuts);
        let (mut narrow, mut wide): (Vec<Rect>, Vec<Rect>) =
            rects.into_iter().partition(|r| r.srcs.1 - r.srcs.0 <= NARROW);
        distinct(&mut wide);
        let count = |rects: &[Rect]| rects.iter().map(|r| (r.srcs.1 - r.srcs.0) as usize).sum::<usize>();
        let mut covered = count(&narrow);
        if covered * 4 > bytes {
            // Doubles vanish from the lists by themselves; they are looked for only where room is short.
            distinct(&mut narrow);
            covered = count(&narrow);
        }
        if covered * 4 > bytes {
            return Err(TooBig);
        }
        *work = work.checked_sub(covered * 4).ok_or(TooBig)?;
        let (lists, spans) = list(&narrow, starts.len());
        let wide =
            if wide.is_empty() { None } else { Some(self.matrix(wide, &cuts, srcs, (work, bytes))?) };
        Ok(Grid { srcs: starts, lists, spans, wide })
    }

    fn matrix<K: Key>(
        &mut self,
        mut rects: Vec<Rect>,
        outer: &[u32],
        srcs: &[K],
        budget: (&mut usize, usize),
    ) -> Result<Matrix<K>, TooBig> {
        let cuts = squeeze(&mut rects, &mut self.place);
        let in_part: Vec<u32> = cuts.iter().filter_map(|c| outer.get(*c as usize)).copied().collect();
        let starts = pick(srcs, &in_part);
        let mut ports: Vec<u32> = rects.iter().flat_map(|r| [r.ports.0, r.ports.1]).collect();
        ports.push(0);
        ports.sort_unstable();
        ports.dedup();
        let most = u32::from(u16::MAX);
        ports.retain(|p| *p <= most);
        let place = |p: u32| short(ports.partition_point(|cut| *cut < p));
        let mut runs: HashMap<(u32, u32), u32> = HashMap::new();
        let mut spans = Vec::with_capacity(rects.len());
        for r in &rects {
            let next = short(runs.len());
            let run = *runs.entry(r.srcs).or_insert(next);
            spans.push((place(r.ports.0), place(r.ports.1), run));
        }
        let mut columns = vec![(0, 0); runs.len()];
        for (run, at) in runs {
            if let Some(to) = columns.get_mut(at as usize) {
                *to = run;
            }
        }
        let words = starts.len().div_ceil(64);
        let mut filler = Filler {
            columns,
            cuts: &ports,
            rows: Rows::default(),
            known: HashMap::from([(0, 0)]),
            ports: Vec::new(),
            port_rows: Vec::new(),
            spare: std::mem::take(&mut self.spare),
            work: budget.0,
            bytes: budget.1,
        };
        filler.fill((0, short(ports.len())), spans, (&vec![0; words], 0))?;
        filler.rows.shrink();
        self.spare = filler.spare;
        Ok(Matrix {
            srcs: starts,
            ports: Starts::new(filler.ports),
            port_rows: filler.port_rows,
            rows: filler.rows,
        })
    }
}

/// Lists of ports per source interval, ascending and disjoint.
fn list(rects: &[Rect], columns: usize) -> (Vec<u32>, Vec<(u16, u16)>) {
    let mut ends = vec![0_u32; columns + 1];
    for c in rects.iter().flat_map(|r| r.srcs.0..r.srcs.1) {
        if let Some(n) = ends.get_mut(c as usize + 1) {
            *n += 1;
        }
    }
    let mut total = 0;
    for n in &mut ends {
        total += *n;
        *n = total;
    }
    let mut next = ends.clone();
    let mut all = vec![(0_u16, 0_u16); total as usize];
    for r in rects {
        for c in r.srcs.0..r.srcs.1 {
            if let Some(at) = next.get_mut(c as usize) {
                if let Some(to) = all.get_mut(*at as usize) {
                    *to = (port(r.ports.0), port(r.ports.1 - 1));
                }
                *at += 1;
            }
        }
    }
    let (mut lists, mut spans) = (vec![0], Vec::with_capacity(all.len()));
    for pair in ends.windows(2) {
        let &[from, to] = pair else { continue };
        let own = all.get_mut(from as usize..to as usize).unwrap_or_default();
        own.sort_unstable();
        let start = spans.len();
        for (first, last) in own.iter().copied() {
            match spans.get_mut(start..).and_then(|own: &mut [(u16, u16)]| own.last_mut()) {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => spans.push((first, last)),
            }
        }
        lists.push(short(spans.len()));
    }
    spans.shrink_to_fit();
    (lists, spans)
}

/// A range of port intervals and the run of columns that may reach them.
type Span = (u32, u32, u32);

/// A matrix in the making.
struct Filler<'a> {
    columns: Vec<(u32, u32)>,
    cuts: &'a [u32],
    rows: Rows,
    /// Rows by the sum of the tokens of their runs.
    known: HashMap<u128, RowId>,
    ports: Vec<u16>,
    port_rows: Vec<RowId>,
    spare: Vec<Vec<u64>>,
    work: &'a mut usize,
    bytes: usize,
}

impl Filler<'_> {
    /// Writes the rows of the port intervals `lo..hi`, where `spans` touch and `above` is let in already.
    fn fill(&mut self, (lo, hi): (u32, u32), spans: Vec<Span>, above: (&[u64], u128)) -> Result<(), TooBig> {
        let (whole, part): (Vec<Span>, Vec<Span>) = spans.into_iter().partition(|s| s.0 <= lo && hi <= s.1);
        let mut runs: Vec<u32> = whole.iter().map(|s| s.2).collect();
        runs.sort_unstable();
        runs.dedup();
        let steps = 1 + whole.len() * (2 + above.0.len() / 16) + part.len() + above.0.len() / 4;
        *self.work = self.work.checked_sub(steps).ok_or(TooBig)?;
        if self.rows.bytes() + self.ports.len() * 6 > self.bytes {
            return Err(TooBig);
        }
        let sum = runs.iter().fold(above.1, |sum, s| sum.wrapping_add(token(*s)));
        if part.is_empty()
            && let Some(row) = self.known.get(&sum)
        {
            self.emit(lo, *row);
            return Ok(());
        }
        let mut own = self.spare.pop().unwrap_or_default();
        own.clear();
        own.extend_from_slice(above.0);
        for (first, end) in runs.iter().filter_map(|r| self.columns.get(*r as usize)) {
            set_bits(&mut own, *first, *end);
        }
        if part.is_empty() {
            let row = self.rows.push(&own);
            self.known.insert(sum, row);
            self.emit(lo, row);
        } else {
            let mid = lo.midpoint(hi);
            for (lo, hi) in [(lo, mid), (mid, hi)] {
                let inside = part.iter().filter(|s| s.0 < hi && lo < s.1).copied().collect();
                self.fill((lo, hi), inside, (&own, sum))?;
            }
        }
        self.spare.push(own);
        Ok(())
    }

    /// Port interval `lo` and those that follow have this row.
    fn emit(&mut self, lo: u32, row: RowId) {
        if self.port_rows.last() != Some(&row) {
            self.ports.push(self.cuts.get(lo as usize).map_or(u16::MAX, |c| port(*c)));
            self.port_rows.push(row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_take_no_room_and_others_do() {
        let draw = |rects: Vec<Rect>| Pen::new(3).grid(rects, &[0_u32, 5, 9], (&mut (1 << 20), 64)).ok();
        let rect = |port| Rect { srcs: (1, 2), ports: (port, port + 1) };

        let grid = draw(vec![rect(80); 1000]).unwrap();
        assert_eq!((grid.lists, grid.spans), (vec![0, 0, 1, 1], vec![(80, 80)]));

        assert!(draw((0..1000).map(|n| rect(n * 2)).collect()).is_none());
    }
}
