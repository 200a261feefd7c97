//! From rules to the grids of `index`. Destinations are cut at every bound that a rule names, and intervals
//! that the same rules name share one class (told by sums of fixed random numbers, one per rule); `grid`
//! does sources and ports. A part that would outgrow its budget is given up and its rules are halved, the
//! wide from the narrow; so neither memory nor time can explode, whatever control sends.

use std::collections::{BTreeSet, HashMap};

use super::grid::{Pen, Rect};
use super::index::{Cell, Grid, Index, Part};
use super::ranges::{IpSet, Range, overlaps};
use super::rules::{Rule, has_proto};
use super::starts::{Key, Starts};
use crate::wire::PortRange;

/// What building may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// Bytes of a whole filter; what does not fit is left out, and so refused.
    pub(crate) all: usize,
    /// Bytes of one part: a base and so much per rule and range, up to the most.
    pub(crate) base: usize,
    pub(crate) per_entry: usize,
    pub(crate) most: usize,
}

impl Budget {
    /// What a node's filter gets.
    pub(crate) const NODE: Self = Self { all: 96 << 20, base: 64 << 10, per_entry: 2 << 10, most: 32 << 20 };
}

/// Steps of building one part: a base and so many per rule and range.
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

/// The part would be larger than its budget.
pub(super) struct TooBig;

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
pub(super) fn token(n: u32) -> u128 {
    let mix = |seed: u64| {
        let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u128::from(z ^ (z >> 31))
    };
    let n = u64::from(n);
    mix(2 * n + 1) << 64 | mix(2 * n + 2)
}

pub(super) fn short(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// All rules of a node, compiled. `local` is what the node serves: rules for others are left out.
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
        let mut known_sets: HashMap<&[Range], u32> = HashMap::with_capacity(rules.len());
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
            let set = known(all);
            let plain = if rule.with_caps.is_some() { known(pick(&rule.srcs)) } else { set };
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
        // When it must be halved, the wide part from the narrow: crossing both is what costs.
        let width = |t: &Target| (t.dst.1 - t.dst.0, t.ports.1 - t.ports.0);
        facts.targets.sort_unstable_by(|a, b| width(b).cmp(&width(a)).then_with(|| a.cmp(b)));
        facts.targets.dedup();
        facts
    }
}

fn family<K: Key>(facts: &Facts<'_>, budget: &mut Budget, key: fn(u128) -> K) -> Vec<Part<K>> {
    let mut parts = Vec::new();
    let mut todo: Vec<&[Target]> = vec![&facts.targets];
    while let Some(targets) = todo.pop().filter(|t| !t.is_empty()) {
        match Builder::part(facts, targets, *budget, key) {
            Ok(part) => {
                budget.all = budget.all.saturating_sub(part.bytes());
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

/// Sorted, without doubles, from 0 to `last`: where the intervals that ranges cut start.
fn starts<'r, K: Key>(ranges: impl Iterator<Item = &'r Range>, last: u128, key: fn(u128) -> K) -> Vec<K> {
    let mut bounds = vec![key(0)];
    for (first, end) in ranges {
        bounds.push(key(*first));
        bounds.extend((*end < last).then(|| key(*end + 1)));
    }
    bounds.sort_unstable();
    bounds.dedup();
    bounds
}

/// Which protocols are told apart: the class of each, and of each class one and whether any has ports.
fn proto_classes(facts: &Facts<'_>, targets: &[Target]) -> ([u8; 256], Vec<(u8, bool)>) {
    let used: BTreeSet<u32> = targets.iter().map(|t| t.mask).collect();
    let (mut classes, mut samples) = ([0_u8; 256], Vec::new());
    let mut known: HashMap<u128, u8> = HashMap::new();
    for (proto, class) in (0..=u8::MAX).zip(&mut classes) {
        let named = used.iter().filter(|m| facts.has_proto(**m, proto));
        let sum = named.fold(0_u128, |sum, m| sum.wrapping_add(token(*m)));
        *class = *known.entry(sum).or_insert_with(|| {
            samples.push((proto, false));
            // At most 256 protocols make at most 256 classes.
            u8::try_from(samples.len() - 1).unwrap_or(u8::MAX)
        });
    }
    // TCP, UDP and SCTP.
    for class in [6, 17, 132].iter().filter_map(|proto: &usize| classes.get(*proto)) {
        if let Some((_, ports)) = samples.get_mut(usize::from(*class)) {
            *ports = true;
        }
    }
    (classes, samples)
}

impl Facts<'_> {
    fn has_proto(&self, mask: u32, proto: u8) -> bool {
        self.masks.get(mask as usize).is_some_and(|m| has_proto(m, proto))
    }
}

/// One part in the making.
struct Builder<'a, K> {
    facts: &'a Facts<'a>,
    key: fn(u128) -> K,
    /// Source intervals of the part, and the intervals of each set of sources, as runs.
    srcs: &'a [K],
    columns: &'a [Vec<(u32, u32)>],
    pen: Pen,
    grids: Vec<Grid<K>>,
    sets: Vec<Vec<K>>,
    /// Sets of sources by the sum of the tokens of what they unite.
    known_sets: HashMap<u128, u32>,
    /// Cells by the sum of the tokens of their targets, and whether ports count in them.
    known_cells: HashMap<(u128, bool), Cell>,
    work: usize,
    bytes: usize,
}

impl<'a, K: Key> Builder<'a, K> {
    fn part(
        facts: &'a Facts<'a>,
        targets: &[Target],
        budget: Budget,
        key: fn(u128) -> K,
    ) -> Result<Part<K>, TooBig> {
        let mut used: Vec<u32> = targets.iter().flat_map(|t| [t.set, t.plain]).collect();
        used.sort_unstable();
        used.dedup();
        let ranges = |set: u32| facts.sets.get(set as usize).copied().unwrap_or_default();
        let entries = targets.len() + used.iter().map(|s| ranges(*s).len()).sum::<usize>();
        let srcs = starts(used.iter().flat_map(|s| ranges(*s)), facts.last, key);
        let finder = Starts::new(srcs.clone());
        let mut columns = vec![Vec::new(); facts.sets.len()];
        for set in &used {
            if let Some(runs) = columns.get_mut(*set as usize) {
                let column = |n: u128| short(finder.at(key(n)));
                let end = |last: u128| if last < facts.last { column(last + 1) } else { short(srcs.len()) };
                runs.extend(ranges(*set).iter().map(|(first, last)| (column(*first), end(*last))));
            }
        }
        let mut b = Builder {
            facts,
            key,
            srcs: &srcs,
            columns: &columns,
            pen: Pen::new(srcs.len()),
            grids: Vec::new(),
            sets: vec![Vec::new()],
            known_sets: HashMap::from([(0, 0)]),
            known_cells: HashMap::new(),
            work: WORK_BASE + WORK_PER_ENTRY * entries,
            bytes: (budget.base + budget.per_entry * entries).min(budget.most).min(budget.all),
        };
        // Grid 0 is for cells without ports.
        let empty = b.pen.grid(Vec::new(), b.srcs, (&mut b.work, b.bytes))?;
        b.grids.push(empty);
        let (protos, samples) = proto_classes(facts, targets);
        b.destinations(targets, protos, &samples)
    }

    /// Pays for steps and for memory.
    fn spend(&mut self, steps: usize, bytes: usize) -> Result<(), TooBig> {
        self.work = self.work.checked_sub(steps).ok_or(TooBig)?;
        self.bytes = self.bytes.checked_sub(bytes).ok_or(TooBig)?;
        Ok(())
    }

    /// Sweeps over the destinations: their intervals, the class of each, and what each class knows.
    fn destinations(
        mut self,
        targets: &[Target],
        protos: [u8; 256],
        samples: &[(u8, bool)],
    ) -> Result<Part<K>, TooBig> {
        let dsts = starts(targets.iter().map(|t| &t.dst), self.facts.last, |n| n);
        let mut events: Vec<(u128, bool, u32)> = Vec::with_capacity(targets.len() * 2);
        for (n, t) in targets.iter().enumerate() {
            events.push((t.dst.0, true, short(n)));
            events.extend(t.dst.1.checked_add(1).map(|end| (end, false, short(n))));
        }
        events.sort_unstable();
        let mut events = events.into_iter().peekable();
        let (mut active, mut sum) = (BTreeSet::new(), 0_u128);
        // Class 0 is for destinations nobody may reach.
        let mut known: HashMap<u128, u32> = HashMap::new();
        let (mut cells, mut any) = (Vec::new(), Vec::new());
        self.class(&[], samples, &mut cells, &mut any)?;
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
            let class = if active.is_empty() || !overlaps(self.facts.local, (*start, last)) {
                0
            } else if let Some(class) = known.get(&sum) {
                *class
            } else {
                let list: Vec<(u32, Target)> =
                    active.iter().filter_map(|n| Some((*n, *targets.get(*n as usize)?))).collect();
                self.class(&list, samples, &mut cells, &mut any)?;
                known.insert(sum, short(any.len() - 1));
                short(any.len() - 1)
            };
            classes.push(class);
        }
        let dsts = Starts::new(dsts.into_iter().map(self.key).collect());
        let (sets, grids) = (self.sets, self.grids);
        Ok(Part { dsts, classes, protos, width: samples.len(), cells, any, sets, grids })
    }

    /// One class of destinations: a cell for each class of protocols.
    fn class(
        &mut self,
        active: &[(u32, Target)],
        samples: &[(u8, bool)],
        cells: &mut Vec<Cell>,
        any: &mut Vec<u32>,
    ) -> Result<(), TooBig> {
        any.push(self.union(active.iter().map(|(_, t)| t.set))?);
        for (proto, ports) in samples {
            self.spend(active.len(), size_of::<Cell>())?;
            let named = active.iter().filter(|(_, t)| self.facts.has_proto(t.mask, *proto));
            let sum = named.clone().fold(0_u128, |sum, (n, _)| sum.wrapping_add(token(*n)));
            let cell = match self.known_cells.get(&(sum, *ports)) {
                Some(cell) => *cell,
                None => {
                    let named: Vec<Target> = named.map(|(_, t)| *t).collect();
                    self.cell(&named, *ports)?
                }
            };
            self.known_cells.insert((sum, *ports), cell);
            cells.push(cell);
        }
        Ok(())
    }

    fn cell(&mut self, named: &[Target], ports: bool) -> Result<Cell, TooBig> {
        let all = (0, u32::from(PortRange::ANY.last) + 1);
        let portless = self.union(named.iter().filter(|t| t.ports == all).map(|t| t.plain))?;
        if named.is_empty() || !ports {
            return Ok(Cell { grid: 0, portless });
        }
        let runs = |set: u32| self.columns.get(set as usize).map_or(&[][..], Vec::as_slice);
        let count: usize = named.iter().map(|t| runs(t.set).len()).sum();
        self.spend(count * 4, 0)?;
        let runs = |set: u32| self.columns.get(set as usize).map_or(&[][..], Vec::as_slice);
        let mut rects: Vec<Rect> = Vec::with_capacity(count);
        for t in named {
            rects.extend(runs(t.set).iter().map(|(from, to)| Rect { srcs: (*from, *to), ports: t.ports }));
        }
        let grid = self.pen.grid(rects, self.srcs, (&mut self.work, self.bytes))?;
        self.spend(0, grid.bytes())?;
        self.grids.push(grid);
        Ok(Cell { grid: short(self.grids.len() - 1), portless })
    }

    /// The sources of all these sets together.
    fn union(&mut self, sets: impl Iterator<Item = u32>) -> Result<u32, TooBig> {
        let mut sets: Vec<u32> = sets.collect();
        sets.sort_unstable();
        sets.dedup();
        let sum = sets.iter().fold(0_u128, |sum, s| sum.wrapping_add(token(*s)));
        if let Some(set) = self.known_sets.get(&sum) {
            return Ok(*set);
        }
        let mut runs: Vec<(u32, u32)> =
            sets.iter().filter_map(|s| self.columns.get(*s as usize)).flatten().copied().collect();
        runs.sort_unstable_by_key(|(from, to)| u64::from(*from) << 32 | u64::from(*to));
        runs.dedup_by(|next, kept| {
            let touches = next.0 <= kept.1;
            if touches {
                kept.1 = kept.1.max(next.1);
            }
            touches
        });
        self.spend(runs.len() * 4, runs.len() * 2 * size_of::<K>())?;
        // The end of a run at the family's end is no column: membership then just does not end.
        let edges = runs.iter().flat_map(|(from, to)| [*from, *to]);
        self.sets.push(edges.filter_map(|c| self.srcs.get(c as usize)).copied().collect());
        let set = short(self.sets.len() - 1);
        self.known_sets.insert(sum, set);
        Ok(set)
    }
}
