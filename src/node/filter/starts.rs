//! Starts of elementary intervals, laid out for search. Most addresses of a network lie close together:
//! there a table leads from the upper bits of an address to the few starts it may lie between, without
//! branches to guess. What lies elsewhere, or crowds together, is searched by halves: that costs what a
//! search of everything by halves would.

use super::build::short;

/// What intervals are made of.
pub(super) trait Key: Ord + Copy + Default {
    /// As a number.
    fn number(self) -> u128;

    /// How far it lies above another.
    fn above(self, base: Self) -> Option<Self>;

    /// Without its last bits; what is left has 32.
    fn without(self, bits: u32) -> u32;
}

impl Key for u16 {
    fn number(self) -> u128 {
        self.into()
    }

    fn above(self, base: Self) -> Option<Self> {
        self.checked_sub(base)
    }

    fn without(self, _: u32) -> u32 {
        self.into()
    }
}

impl Key for u32 {
    fn number(self) -> u128 {
        self.into()
    }

    fn above(self, base: Self) -> Option<Self> {
        self.checked_sub(base)
    }

    fn without(self, _: u32) -> u32 {
        self
    }
}

impl Key for u128 {
    fn number(self) -> u128 {
        self
    }

    fn above(self, base: Self) -> Option<Self> {
        self.checked_sub(base)
    }

    fn without(self, bits: u32) -> u32 {
        u32::try_from(self >> bits).unwrap_or(u32::MAX)
    }
}

/// Keys looked at together.
const WINDOW: usize = 8;

/// Numbers of 32 bits that lie close together, ascending.
#[derive(Debug)]
struct Close {
    /// Where the starts of a bucket begin; a bucket is what agrees in all but the last `shift` bits.
    buckets: Vec<u32>,
    shift: u32,
    /// All, and a window of the highest number more.
    starts: Vec<u32>,
    len: usize,
}

impl Close {
    fn new(mut starts: Vec<u32>) -> Self {
        let len = starts.len();
        let last = starts.last().copied().unwrap_or_default();
        // Two to four in a bucket, when they are spread evenly.
        let bits = (len / 2).max(2).ilog2();
        let shift = (last.checked_ilog2().map_or(0, |top| top + 1)).saturating_sub(bits);
        let count = (last >> shift) + 1;
        let begin = |bucket: u32| short(starts.partition_point(|start| start >> shift < bucket));
        let buckets = (0..=count).map(begin).collect();
        starts.extend([u32::MAX; WINDOW]);
        Self { buckets, shift, starts, len }
    }

    /// How many starts are not above `key`, which is not above the last.
    fn upto(&self, key: u32) -> usize {
        let bucket = (key >> self.shift) as usize;
        let from = self.buckets.get(bucket).map_or(0, |from| *from as usize);
        let window = self.starts.get(from..from + WINDOW).unwrap_or_default();
        let count = window.iter().map(|start| usize::from(*start <= key)).sum::<usize>();
        let upto = from + count;
        if count < WINDOW { upto } else { self.crowded(bucket, upto, key) }
    }

    /// The same for a bucket of more than a window.
    #[cold]
    fn crowded(&self, bucket: usize, from: usize, key: u32) -> usize {
        let to = self.buckets.get(bucket + 1).map_or(0, |to| *to as usize);
        let rest = self.starts.get(from..to).unwrap_or_default();
        (from + rest.partition_point(|start| *start <= key)).min(self.len)
    }

    const fn bytes(&self) -> usize {
        (self.buckets.len() + self.starts.len()) * 4
    }
}

/// Keys in order, with every so many of them once more: most of a search then stays within few lines of memory.
#[derive(Debug)]
struct Sorted<K> {
    heads: Vec<K>,
    all: Vec<K>,
}

/// How many keys stand behind one head.
const BLOCK: usize = 16;

impl<K: Key> Sorted<K> {
    fn new(all: Vec<K>) -> Self {
        Self { heads: all.iter().step_by(BLOCK).copied().collect(), all }
    }

    /// How many keys are not above this one.
    fn upto(&self, key: K) -> usize {
        let block = self.heads.partition_point(|head| *head <= key).saturating_sub(1) * BLOCK;
        let rest = self.all.get(block..).unwrap_or_default();
        let few = rest.get(..BLOCK).unwrap_or(rest);
        block + few.partition_point(|start| *start <= key)
    }

    const fn bytes(&self) -> usize {
        (self.heads.len() + self.all.len()) * size_of::<K>()
    }
}

/// Starts of elementary intervals, ascending from the lowest number.
#[derive(Debug)]
pub(super) struct Starts<K> {
    /// The first of those that lie close together, and how far from it the last is.
    base: K,
    span: K,
    /// Their distances from it, without so many bits.
    close: Close,
    blur: u32,
    /// The same starts whole, when bits are missing.
    whole: Vec<K>,
    others: Sorted<K>,
    /// How many of the others are below.
    below: usize,
}

/// Numbers that agree in all but so many bits lie close together: a tailnet's IPv6, one network of a
/// family, a tailnet's IPv4, less.
const NEAR: [u32; 4] = [80, 32, 22, 16];

/// The starts that lie close together: the narrower the better, unless it leaves many out.
fn near<K: Key>(all: &[K]) -> &[K] {
    NEAR.iter().enumerate().fold(all, |wide, (step, bits)| {
        let runs = wide.chunk_by(|a, b| a.number() >> bits == b.number() >> bits);
        let longest = runs.max_by_key(|run| run.len()).unwrap_or_default();
        if step == 0 || longest.len() * 4 > wide.len() * 3 { longest } else { wide }
    })
}

impl<K: Key> Starts<K> {
    pub(super) fn new(all: Vec<K>) -> Self {
        let near = near(&all);
        let base = near.first().copied().unwrap_or_default();
        let distances = || near.iter().filter_map(|start| start.above(base));
        let span = distances().next_back().unwrap_or_default();
        let blur = span.number().checked_ilog2().map_or(0, |top| top + 1).saturating_sub(32);
        let close = Close::new(distances().map(|distance| distance.without(blur)).collect());
        let whole = if blur > 0 { near.to_vec() } else { Vec::new() };
        let below = all.partition_point(|start| *start < base);
        let others = all.iter().take(below).chain(all.iter().skip(below + near.len())).copied().collect();
        Self { base, span, close, blur, whole, others: Sorted::new(others), below }
    }

    /// The interval a key lies in.
    pub(super) fn at(&self, key: K) -> usize {
        let upto = match key.above(self.base).filter(|distance| *distance <= self.span) {
            Some(distance) => self.below + self.upto(key, distance.without(self.blur)),
            None if key < self.base => self.others.upto(key),
            None => self.close.len + self.others.upto(key),
        };
        upto.saturating_sub(1)
    }

    /// How many of those close together are not above `key`.
    fn upto(&self, key: K, distance: u32) -> usize {
        let upto = self.close.upto(distance);
        if self.blur == 0 {
            return upto;
        }
        // Those that only the missing bits tell apart.
        let from = distance.checked_sub(1).map_or(0, |less| self.close.upto(less));
        let alike = self.whole.get(from..upto).unwrap_or_default();
        from + alike.partition_point(|start| *start <= key)
    }

    pub(super) fn len(&self) -> usize {
        self.close.len + self.others.all.len()
    }

    pub(super) const fn bytes(&self) -> usize {
        self.close.bytes() + self.others.bytes() + self.whole.len() * size_of::<K>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<K: Key + std::fmt::Debug>(starts: &[K], keys: impl IntoIterator<Item = K>) {
        let laid = Starts::new(starts.to_vec());
        assert_eq!(laid.len(), starts.len());
        for key in keys {
            let want = starts.partition_point(|start| *start <= key).saturating_sub(1);
            assert_eq!(laid.at(key), want, "{key:?} in {} starts", starts.len());
        }
    }

    #[test]
    fn every_size_finds_what_a_plain_search_finds() {
        for len in (0..70).chain([255, 256, 257, 4095, 4096, 4097, 5000]) {
            let starts: Vec<u32> = (0..len).map(|n| n * 3).collect();
            check(&starts, (0..len * 3 + 5).chain([u32::MAX]));
            let ports: Vec<u16> = starts.iter().filter_map(|s| u16::try_from(*s).ok()).collect();
            check(&ports, (0..=u16::MAX).step_by(7).chain([u16::MAX]));
        }
        check(&[0, 5, u32::MAX], [0, 4, 5, 6, u32::MAX - 1, u32::MAX]);
        // The end of the numbers, with a block that is not full.
        let last: Vec<u32> = (0..40).map(|n| u32::MAX - 39 + n).collect();
        check(&last, (0..60).map(|n| u32::MAX - n));
    }

    #[test]
    fn addresses_of_one_network_and_of_many() {
        let net = 0xfd7a_115c_a1e0_0000_0000_0000_0000_0000_u128;
        let around = |starts: &[u128]| {
            let beside = starts.iter().flat_map(|s| [s.saturating_sub(1), *s, s.saturating_add(1)]);
            beside.chain([0, net - 1, u128::MAX]).collect::<Vec<_>>()
        };
        for (below, alike, above) in
            [(1, 300, 0), (1, 40, 40), (100, 3, 100), (1, 1, 1), (0, 20, 5), (3, 0, 0)]
        {
            let mut starts: Vec<u128> = (0..below).map(|n| n << 40).collect();
            starts.extend((0..alike).map(|n| net + 7 + 2 * n));
            starts.extend((1..=above).map(|n| net + (n << 33) + n));
            check(&starts, around(&starts));
        }
        // By lot over a /48, neighbours included, with others around it.
        let lot = |n: u128| n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835) >> 48;
        let mut lots: Vec<u128> = (1..1000).flat_map(|n| [net | lot(n), (net | lot(n)) + 1]).collect();
        lots.extend([
            0,
            1 << 125,
            net,
            net + 1,
            net + (1 << 48),
            net + (1 << 48) + 9,
            u128::MAX >> 1,
            u128::MAX,
        ]);
        lots.sort_unstable();
        check(&lots, around(&lots));
        check(&[0, u128::MAX - 1, u128::MAX], around(&[0, u128::MAX - 1, u128::MAX]));
    }
}
