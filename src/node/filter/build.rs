//! From rules to the decision matrices of `index`. Sources, destinations and ports are cut at every bound
//! that a rule names, and intervals that the same rules name share one class (told by sums of fixed random
//! numbers, one per rule). Rows are filled by halving the ports, as in a segment tree. A matrix that would
//! outgrow its budget is given up and its rules are halved, the wide from the narrow; so neither memory nor
//! time can explode, whatever control sends.

use std::collections::{BTreeSet, HashMap};

use super::index::{Cell, Index, Part};
use super::ranges::{IpSet, Range, overlaps};
use super::rows::{RowId, Rows, set_bits};
use super::rules::{Rule, has_proto};
use crate::wire::PortRange;

/// What building may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// Bytes of all matrices of a filter together; what does not fit is left out, and so refused.
    pub(crate) all: usize,
    /// Bytes of one matrix: a base and so much per rule and range, up to the most.
    pub(crate) base: usize,
    pub(crate) per_entry: usize,
    pub(crate) most: usize,
}

impl Budget {
    /// What a node's filter gets.
    pub(crate) const NODE: Self = Self { all: 96 << 20, base: 64 << 10, per_entry: 2 << 10, most: 32 << 20 };
}

/// Steps of building one matrix: a base and so many per rule and range.
const WORK_BASE: usize = 1 << 20;
const WORK_PER_ENTRY: usize = 1 << 10;

/// One range of destinations with ports and protocols, and who may reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    dst: Range,
    /// First port, and the one after the last.
    ports: (u32, u32),
    /// Index of its set of protocols.
    mask: u32,
    /// Index of its set of sources, with and without those by capability.
    set: u32,
    plain: u32,
}

/// The matrix would be larger than its budget.
struct TooBig;

/// The rules of one family.
struct Facts<'a> {
    sets: Vec<&'a [Range]>,
    masks: Vec<[u128; 2]>,
    local: &'a [Range],
    /// The family's last address.
    last: u128,
    targets: Vec<Target>,
}

/// A random number of its own for each index (splitmix64 twice): sums of them tell sets apart.
fn token(n: u32) -> u128 {
    let mix = |seed: u64| {
        let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u128::from(z ^ (z >> 31))
    };
    let n = u64::from(n);
    mix(2 * n + 1) << 64 | mix(2 * n + 2)
}

fn short(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// All rules of a node as matrices. `local` is what the node serves: rules for others are left out.
pub(crate) fn build(rules: &[Rule], local: &IpSet, mut budget: Budget) -> Index {
    let v4 = Facts::gather(rules, local, IpSet::v4, u32::MAX.into());
    let v6 = Facts::gather(rules, local, IpSet::v6, u128::MAX);
    let v4 = family(&v4, &mut budget, |n| u32::try_from(n).unwrap_or(u32::MAX));
    let v6 = family(&v6, &mut budget, |n| n);
    Index { v4, v6 }
}

impl<'a> Facts<'a> {
    fn gather(rules: &'a [Rule], local: &'a IpSet, pick: fn(&IpSet) -> &[Range], last: u128) -> Self {
        let local = pick(local);
        let mut facts = Self { sets: Vec::new(), masks: Vec::new(), local, last, targets: Vec::new() };
        let mut known_sets: HashMap<&[Range], u32> = HashMap::new();
        let mut known_masks: HashMap<[u128; 2], u32> = HashMap::new();
        for rule in rules {
            let all = pick(rule.sources());
            if all.is_empty() {
                continue;
            }
            let mut known = |list| {
                *known_sets.entry(list).or_insert_with(|| {
                    facts.sets.push(list);
                    short(facts.sets.len() - 1)
                })
            };
            let (set, plain) = (known(all), known(pick(&rule.srcs)));
            let mask = *known_masks.entry(rule.protos).or_insert_with(|| {
                facts.masks.push(rule.protos);
                short(facts.masks.len() - 1)
            });
            for (dsts, ports) in &rule.dsts {
                let ports = (u32::from(ports.first), u32::from(ports.last) + 1);
                let served = pick(dsts).iter().filter(|dst| overlaps(facts.local, **dst));
                facts.targets.extend(served.map(|dst| Target { dst: *dst, ports, mask, set, plain }));
            }
        }
        facts.targets.sort_unstable();
        facts.targets.dedup();
        // When it must be halved, the wide part from the narrow: crossing both is what costs.
        facts.targets.sort_by_key(|t| std::cmp::Reverse((t.dst.1 - t.dst.0, t.ports.1 - t.ports.0)));
        facts
    }
}

fn family<K: Ord + Copy>(facts: &Facts<'_>, budget: &mut Budget, key: fn(u128) -> K) -> Vec<Part<K>> {
    let mut parts = Vec::new();
    let mut todo: Vec<&[Target]> = vec![&facts.targets];
    while let Some(targets) = todo.pop().filter(|t| !t.is_empty()) {
        match Builder::part(facts, targets, *budget, key) {
            Ok((part, bytes)) => {
                budget.all = budget.all.saturating_sub(bytes);
                parts.push(part);
            }
            Err(TooBig) if targets.len() > 1 => {
                let (wide, narrow) = targets.split_at(targets.len() / 2);
                todo.extend([narrow, wide]);
            }
            Err(TooBig) => {
                tracing::warn!(
                    left = budget.all,
                    "the packet filter of this network needs more memory than the limit: a rule is left out"
                );
            }
        }
    }
    parts
}

/// Sorted, without doubles, from 0 to `last`: where intervals start.
fn starts(mut bounds: Vec<u128>, last: u128) -> Vec<u128> {
    bounds.push(0);
    bounds.retain(|b| *b <= last);
    bounds.sort_unstable();
    bounds.dedup();
    bounds
}

/// Start and the number after the end, where there is one.
fn bounds(range: &Range) -> impl Iterator<Item = u128> + use<> {
    [Some(range.0), range.1.checked_add(1)].into_iter().flatten()
}

/// Which protocols are told apart: the class of each, and one of each class.
fn proto_classes(facts: &Facts<'_>, targets: &[Target]) -> ([u8; 256], Vec<u8>) {
    let used: BTreeSet<u32> = targets.iter().map(|t| t.mask).collect();
    let (mut classes, mut samples) = ([0_u8; 256], Vec::new());
    let mut known: HashMap<u128, u8> = HashMap::new();
    for (proto, class) in (0..=u8::MAX).zip(&mut classes) {
        let named = used.iter().filter(|m| facts.has_proto(**m, proto));
        let sum = named.fold(0_u128, |sum, m| sum.wrapping_add(token(*m)));
        *class = *known.entry(sum).or_insert_with(|| {
            samples.push(proto);
            // At most 256 protocols make at most 256 classes.
            u8::try_from(samples.len() - 1).unwrap_or(u8::MAX)
        });
    }
    (classes, samples)
}

impl Facts<'_> {
    fn has_proto(&self, mask: u32, proto: u8) -> bool {
        self.masks.get(mask as usize).is_some_and(|m| has_proto(m, proto))
    }
}

/// A range of port intervals and the set that may reach them.
type Span = (u32, u32, u32);

/// One matrix in the making.
struct Builder<'a> {
    facts: &'a Facts<'a>,
    /// Columns of each set, as runs.
    columns: Vec<Vec<(u32, u32)>>,
    words: usize,
    rows: Rows,
    /// Rows by the sum of the tokens of their sets.
    known_rows: HashMap<u128, RowId>,
    /// Cells by the sum of the tokens of their targets.
    known_cells: HashMap<u128, Cell>,
    ports: Vec<u16>,
    port_rows: Vec<RowId>,
    spare: Vec<Vec<u64>>,
    work: usize,
    bytes: usize,
}

impl<'a> Builder<'a> {
    fn part<K: Ord + Copy>(
        facts: &'a Facts<'a>,
        targets: &[Target],
        budget: Budget,
        key: fn(u128) -> K,
    ) -> Result<(Part<K>, usize), TooBig> {
        let used: BTreeSet<u32> = targets.iter().flat_map(|t| [t.set, t.plain]).collect();
        let ranges = |set: u32| facts.sets.get(set as usize).copied().unwrap_or_default();
        let entries = targets.len() + used.iter().map(|s| ranges(*s).len()).sum::<usize>();
        let srcs = starts(used.iter().flat_map(|s| ranges(*s).iter().flat_map(bounds)).collect(), facts.last);
        let column = |n: u128| short(srcs.partition_point(|start| *start < n));
        let mut columns = vec![Vec::new(); facts.sets.len()];
        for set in &used {
            if let Some(runs) = columns.get_mut(*set as usize) {
                let end = |last: u128| last.checked_add(1).map_or(short(srcs.len()), column);
                runs.extend(ranges(*set).iter().map(|(first, last)| (column(*first), end(*last))));
            }
        }
        let mut b = Builder {
            facts,
            columns,
            words: srcs.len().div_ceil(64),
            rows: Rows::default(),
            known_rows: HashMap::from([(0, 0)]),
            known_cells: HashMap::from([(0, Cell::default())]),
            ports: Vec::new(),
            port_rows: Vec::new(),
            spare: Vec::new(),
            work: WORK_BASE + WORK_PER_ENTRY * entries,
            bytes: (budget.base + budget.per_entry * entries).min(budget.most).min(budget.all),
        };
        let (protos, samples) = proto_classes(facts, targets);
        let (dsts, classes, cells, any) = b.destinations(targets, &samples)?;
        b.rows.shrink();
        let spent = b.rows.bytes()
            + b.ports.len() * 6
            + (srcs.len() + dsts.len()) * (size_of::<K>() + 4)
            + cells.len() * size_of::<Cell>();
        let part = Part {
            srcs: srcs.into_iter().map(key).collect(),
            dsts: dsts.into_iter().map(key).collect(),
            classes,
            protos,
            width: samples.len(),
            cells,
            any,
            ports: b.ports,
            port_rows: b.port_rows,
            rows: b.rows,
        };
        Ok((part, spent))
    }

    /// Pays for steps, and looks whether the matrix is still small enough.
    fn spend(&mut self, steps: usize, cells: usize) -> Result<(), TooBig> {
        self.work = self.work.checked_sub(steps).ok_or(TooBig)?;
        let size = self.rows.bytes() + self.ports.len() * 6 + cells * size_of::<Cell>();
        if size > self.bytes { Err(TooBig) } else { Ok(()) }
    }

    /// Sweeps over the destinations: their intervals, the class of each, and what each class knows.
    #[expect(clippy::type_complexity, reason = "the columns of a Part, made together")]
    fn destinations(
        &mut self,
        targets: &[Target],
        samples: &[u8],
    ) -> Result<(Vec<u128>, Vec<u32>, Vec<Cell>, Vec<RowId>), TooBig> {
        let dsts = starts(targets.iter().flat_map(|t| bounds(&t.dst)).collect(), self.facts.last);
        let mut events: Vec<(u128, bool, u32)> = Vec::with_capacity(targets.len() * 2);
        for (n, t) in targets.iter().enumerate() {
            events.push((t.dst.0, true, short(n)));
            events.extend(t.dst.1.checked_add(1).map(|end| (end, false, short(n))));
        }
        events.sort_unstable();
        let mut events = events.into_iter().peekable();
        let (mut active, mut sum) = (BTreeSet::new(), 0_u128);
        // Class 0 is for destinations nobody may reach.
        let mut known: HashMap<u128, u32> = HashMap::from([(0, 0)]);
        let (mut cells, mut any) = (vec![Cell::default(); samples.len()], vec![0]);
        let mut classes = Vec::with_capacity(dsts.len());
        for (at, start) in dsts.iter().enumerate() {
            while let Some((_, begins, n)) = events.next_if(|e| e.0 == *start) {
                if begins {
                    active.insert(n);
                    sum = sum.wrapping_add(token(n));
                } else {
                    active.remove(&n);
                    sum = sum.wrapping_sub(token(n));
                }
            }
            let last = dsts.get(at + 1).map_or(u128::MAX, |next| next - 1);
            if !overlaps(self.facts.local, (*start, last)) {
                classes.push(0);
                continue;
            }
            let class = match known.get(&sum) {
                Some(class) => *class,
                None => {
                    let list: Vec<(u32, Target)> =
                        active.iter().filter_map(|n| Some((*n, *targets.get(*n as usize)?))).collect();
                    self.class(&list, samples, &mut cells, &mut any)?;
                    short(any.len() - 1)
                }
            };
            known.insert(sum, class);
            classes.push(class);
        }
        Ok((dsts, classes, cells, any))
    }

    /// One class of destinations: a cell for each class of protocols.
    fn class(
        &mut self,
        active: &[(u32, Target)],
        samples: &[u8],
        cells: &mut Vec<Cell>,
        any: &mut Vec<RowId>,
    ) -> Result<(), TooBig> {
        any.push(self.union(active.iter().map(|(_, t)| t.set))?);
        for proto in samples {
            self.spend(active.len(), cells.len())?;
            let named = active.iter().filter(|(_, t)| self.facts.has_proto(t.mask, *proto));
            let sum = named.clone().fold(0_u128, |sum, (n, _)| sum.wrapping_add(token(*n)));
            let cell = match self.known_cells.get(&sum) {
                Some(cell) => *cell,
                None => {
                    let named: Vec<Target> = named.map(|(_, t)| *t).collect();
                    self.cell(&named)?
                }
            };
            self.known_cells.insert(sum, cell);
            cells.push(cell);
        }
        Ok(())
    }

    fn cell(&mut self, named: &[Target]) -> Result<Cell, TooBig> {
        let all = (0, u32::from(PortRange::ANY.last) + 1);
        let portless = self.union(named.iter().filter(|t| t.ports == all).map(|t| t.plain))?;
        let mut cuts: Vec<u32> = named.iter().flat_map(|t| [t.ports.0, t.ports.1]).collect();
        cuts.push(0);
        cuts.sort_unstable();
        cuts.dedup();
        cuts.retain(|c| *c < all.1);
        let place = |port: u32| short(cuts.partition_point(|c| *c < port));
        let spans = named.iter().map(|t| (place(t.ports.0), place(t.ports.1), t.set)).collect();
        let from = short(self.ports.len());
        let nobody = vec![0; self.words];
        self.fill((0, short(cuts.len())), spans, (&nobody, 0), (&cuts, from))?;
        Ok(Cell { from, to: short(self.ports.len()), portless })
    }

    /// Writes the rows of the port intervals `lo..hi`, where `spans` touch and `above` is let in already.
    fn fill(
        &mut self,
        (lo, hi): (u32, u32),
        spans: Vec<Span>,
        above: (&[u64], u128),
        out: (&[u32], u32),
    ) -> Result<(), TooBig> {
        self.spend(spans.len() + 1, 0)?;
        let (whole, part): (Vec<Span>, Vec<Span>) = spans.into_iter().partition(|s| s.0 <= lo && hi <= s.1);
        let mut sets: Vec<u32> = whole.iter().map(|s| s.2).collect();
        sets.sort_unstable();
        sets.dedup();
        let sum = sets.iter().fold(above.1, |sum, s| sum.wrapping_add(token(*s)));
        if part.is_empty()
            && let Some(row) = self.known_rows.get(&sum)
        {
            self.emit(lo, *row, out);
            return Ok(());
        }
        let mut own = self.spare.pop().unwrap_or_default();
        own.clear();
        own.extend_from_slice(above.0);
        self.admit(&mut own, &sets)?;
        if part.is_empty() {
            let row = self.rows.push(&own);
            self.known_rows.insert(sum, row);
            self.emit(lo, row, out);
        } else {
            let mid = lo.midpoint(hi);
            for (lo, hi) in [(lo, mid), (mid, hi)] {
                let inside = part.iter().filter(|s| s.0 < hi && lo < s.1).copied().collect();
                self.fill((lo, hi), inside, (&own, sum), out)?;
            }
        }
        self.spare.push(own);
        Ok(())
    }

    /// Adds the columns of sets to a mask.
    fn admit(&mut self, mask: &mut [u64], sets: &[u32]) -> Result<(), TooBig> {
        let mut steps = self.words / 8;
        for set in sets {
            for (first, end) in self.columns.get(*set as usize).into_iter().flatten() {
                set_bits(mask, *first, *end);
                steps += 1 + (*end - *first) as usize / 512;
            }
        }
        self.spend(steps, 0)
    }

    /// Port interval `lo` and the following have this row.
    fn emit(&mut self, lo: u32, row: RowId, (cuts, from): (&[u32], u32)) {
        let first = self.ports.len() == from as usize;
        if first || self.port_rows.last() != Some(&row) {
            let start = cuts.get(lo as usize).and_then(|c| u16::try_from(*c).ok());
            self.ports.push(start.unwrap_or(u16::MAX));
            self.port_rows.push(row);
        }
    }

    /// The row of all these sets together.
    fn union(&mut self, sets: impl Iterator<Item = u32>) -> Result<RowId, TooBig> {
        let mut sets: Vec<u32> = sets.collect();
        sets.sort_unstable();
        sets.dedup();
        let sum = sets.iter().fold(0_u128, |sum, s| sum.wrapping_add(token(*s)));
        if let Some(row) = self.known_rows.get(&sum) {
            return Ok(*row);
        }
        let mut mask = vec![0; self.words];
        self.admit(&mut mask, &sets)?;
        let row = self.rows.push(&mask);
        self.known_rows.insert(sum, row);
        Ok(row)
    }
}
