//! Address ranges and sets of node numbers: the two currencies of the compiler. A /8 is one range and
//! a thousand nodes are a few words; nothing is ever enumerated.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use roaring::{MultiOps as _, RoaringBitmap};

/// Addresses from `low` to `high`, both included, of one family. IPv4 sorts first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Range {
    v6: bool,
    low: u128,
    high: u128,
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn address(v6: bool, number: u128) -> IpAddr {
    if v6 {
        IpAddr::V6(Ipv6Addr::from(number))
    } else {
        IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)))
    }
}

impl Range {
    /// A single address.
    pub(super) fn single(ip: IpAddr) -> Self {
        Self { v6: ip.is_ipv6(), low: number(ip), high: number(ip) }
    }

    /// From one address to another of the same family.
    pub(super) fn new(low: IpAddr, high: IpAddr) -> Self {
        Self { v6: low.is_ipv6(), low: number(low), high: number(high) }
    }

    /// Stands for everything where a value of this type is wanted for a hash.
    pub(super) const fn all() -> Self {
        Self { v6: true, low: 0, high: u128::MAX }
    }

    pub(super) const fn is_single(self) -> bool {
        self.low == self.high
    }

    /// Whether it holds exactly so many addresses.
    pub(super) fn counts(self, addresses: usize) -> bool {
        u128::try_from(addresses).is_ok_and(|n| n > 0 && self.high - self.low == n - 1)
    }

    /// Whether it ends before `other` begins.
    pub(super) fn before(self, other: Self) -> bool {
        (self.v6, self.high) < (other.v6, other.low)
    }

    /// Whether `next`, which does not begin before it, overlaps it or follows it directly.
    pub(super) const fn touches(self, next: Self) -> bool {
        self.v6 == next.v6 && next.low <= self.high.saturating_add(1)
    }

    /// From its begin to the later of both ends.
    pub(super) fn through(self, next: Self) -> Self {
        Self { high: self.high.max(next.high), ..self }
    }

    /// As CIDR even for a single address; `a-b` where no prefix will do.
    pub(super) fn prefix_text(self) -> String {
        match self.prefixes().as_slice() {
            [one] => one.to_string(),
            _ => self.span_text(),
        }
    }

    /// The fewest prefixes that make it up.
    pub(super) fn prefixes(self) -> Vec<IpNet> {
        let bits: u32 = if self.v6 { 128 } else { 32 };
        let mut out = Vec::new();
        let mut low = self.low;
        loop {
            let left = self.high - low;
            let room = left.checked_add(1).map_or(bits, |n| n.ilog2());
            let host = room.min(low.trailing_zeros()).min(bits);
            let length = u8::try_from(bits - host).unwrap_or(0);
            if let Ok(net) = IpNet::new(address(self.v6, low), length) {
                out.push(net);
            }
            let step = if host >= 128 { u128::MAX } else { (1 << host) - 1 };
            match low.checked_add(step).and_then(|end| end.checked_add(1)) {
                Some(next) if next <= self.high => low = next,
                _ => return out,
            }
        }
    }

    pub(super) const fn is_v6(self) -> bool {
        self.v6
    }

    pub(super) fn contains(self, ip: IpAddr) -> bool {
        self.overlaps(Self::single(ip))
    }

    pub(super) const fn overlaps(self, other: Self) -> bool {
        self.v6 == other.v6 && self.low <= other.high && other.low <= self.high
    }

    pub(super) const fn within(self, other: Self) -> bool {
        self.v6 == other.v6 && other.low <= self.low && self.high <= other.high
    }

    /// What two ranges share.
    pub(super) fn common(self, other: Self) -> Option<Self> {
        self.overlaps(other).then(|| Self {
            v6: self.v6,
            low: self.low.max(other.low),
            high: self.high.min(other.high),
        })
    }

    /// `a-b`, also where a prefix would do.
    pub(super) fn span_text(self) -> String {
        format!("{}-{}", address(self.v6, self.low), address(self.v6, self.high))
    }

    /// A single address bare, a prefix as CIDR, else `a-b` (SEMANTICS.md 6.2).
    pub(super) fn text(self) -> String {
        if self.low == self.high {
            return address(self.v6, self.low).to_string();
        }
        let bits: u32 = if self.v6 { 128 } else { 32 };
        let span = self.high - self.low;
        // A prefix of k host bits: the span is k ones and the first address ends in k zeros.
        let aligned = span & span.wrapping_add(1) == 0 && self.low & span == 0;
        if aligned {
            let length = bits - span.count_ones();
            return format!("{}/{length}", address(self.v6, self.low));
        }
        self.span_text()
    }
}

impl From<IpNet> for Range {
    fn from(net: IpNet) -> Self {
        Self::new(net.network(), net.broadcast())
    }
}

/// Sorted, disjoint ranges; neighbours are joined.
pub(super) fn join(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut out: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut() {
            Some(last) if last.v6 == range.v6 && range.low <= last.high.saturating_add(1) => {
                last.high = last.high.max(range.high);
            }
            _ => out.push(range),
        }
    }
    out
}

/// What is in `from` and not in `away`; `from` and the answer are sorted and disjoint.
pub(super) fn without(from: Vec<Range>, away: &[Range]) -> Vec<Range> {
    let away = join(away.to_vec());
    let mut out = Vec::with_capacity(from.len());
    for range in join(from) {
        let mut low = range.low;
        let mut open = true;
        let start = away.partition_point(|a| (a.v6, a.high) < (range.v6, range.low));
        for gap in away.get(start..).unwrap_or_default().iter().take_while(|a| a.overlaps(range)) {
            if gap.low > low {
                out.push(Range { v6: range.v6, low, high: gap.low - 1 });
            }
            match gap.high.checked_add(1).filter(|next| *next <= range.high) {
                Some(next) => low = next,
                None => open = false,
            }
        }
        if open {
            out.push(Range { v6: range.v6, low, high: range.high });
        }
    }
    out
}

/// The union's ranges that `*` means as a source, without routes (SEMANTICS.md 5.1).
pub(super) fn star() -> [Range; 3] {
    let v4 = |a, b| Range::new(IpAddr::V4(a), IpAddr::V4(b));
    [
        v4(Ipv4Addr::new(100, 64, 0, 0), Ipv4Addr::new(100, 115, 91, 255)),
        v4(Ipv4Addr::new(100, 115, 94, 0), Ipv4Addr::new(100, 127, 255, 255)),
        v6_net([0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0], 48),
    ]
}

/// The public internet (SEMANTICS.md 5.3), ascending.
pub(super) fn internet() -> [Range; 7] {
    let v4 = |a: [u8; 4], b: [u8; 4]| Range::new(IpAddr::from(a), IpAddr::from(b));
    [
        v4([0, 0, 0, 0], [9, 255, 255, 255]),
        v4([11, 0, 0, 0], [100, 63, 255, 255]),
        v4([100, 128, 0, 0], [169, 253, 255, 255]),
        v4([169, 255, 0, 0], [172, 15, 255, 255]),
        v4([172, 32, 0, 0], [192, 167, 255, 255]),
        v4([192, 169, 0, 0], [255, 255, 255, 255]),
        v6_net([0x2000, 0, 0, 0, 0, 0, 0, 0], 3),
    ]
}

fn v6_net(segments: [u16; 8], length: u8) -> Range {
    let ip = Ipv6Addr::from(segments);
    IpNet::V6(Ipv6Net::new_assert(ip, length)).into()
}

/// The two exit routes.
pub(super) fn exit_routes() -> [IpNet; 2] {
    [
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
    ]
}

/// A set of small numbers: slots of nodes, numbers of routes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Bits(RoaringBitmap);

/// Slots and numbers are counted from zero and never come near the end of 32 bits.
fn narrow(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

impl Bits {
    pub(super) fn set(&mut self, at: usize) {
        self.0.insert(narrow(at));
    }

    pub(super) fn clear(&mut self, at: usize) {
        self.0.remove(narrow(at));
    }

    pub(super) fn get(&self, at: usize) -> bool {
        self.0.contains(narrow(at))
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.0 |= &other.0;
    }

    /// Takes in all these sets at once; cheaper than one after the other.
    pub(super) fn add_all(&mut self, others: &[&Self]) {
        self.0 |= others.iter().map(|set| &set.0).union();
    }

    /// Takes in what both others have.
    pub(super) fn add_common(&mut self, one: &Self, other: &Self) {
        self.0 |= &one.0 & &other.0;
    }

    pub(super) fn keep(&mut self, other: &Self) {
        self.0 &= &other.0;
    }

    pub(super) fn drop(&mut self, other: &Self) {
        self.0 -= &other.0;
    }

    pub(super) fn meets(&self, other: &Self) -> bool {
        !self.0.is_disjoint(&other.0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        usize::try_from(self.0.len()).unwrap_or(usize::MAX)
    }

    /// The members, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().map(|at| at as usize)
    }
}

impl Eq for Bits {}

impl std::hash::Hash for Bits {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.len().hash(state);
        self.0.iter().for_each(|at| at.hash(state));
    }
}

impl FromIterator<usize> for Bits {
    fn from_iter<I: IntoIterator<Item = usize>>(items: I) -> Self {
        Self(items.into_iter().map(narrow).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Range {
        text.parse::<IpNet>().unwrap().into()
    }

    #[test]
    fn ranges_print_as_the_wire_wants_them() {
        assert_eq!(net("10.0.0.0/8").text(), "10.0.0.0/8");
        assert_eq!(net("0.0.0.0/0").text(), "0.0.0.0/0");
        assert_eq!(net("::/0").text(), "::/0");
        assert_eq!(net("10.0.0.1/32").text(), "10.0.0.1");
        assert_eq!(star().map(Range::text)[0], "100.64.0.0-100.115.91.255");
        assert_eq!(star().map(Range::text)[2], "fd7a:115c:a1e0::/48");
    }

    #[test]
    fn neighbours_join_and_families_do_not() {
        let joined = join(vec![net("10.0.1.0/24"), net("10.0.0.0/24"), net("::/0"), net("0.0.0.0/0")]);
        assert_eq!(joined, vec![net("0.0.0.0/0"), net("::/0")]);
        let joined = join(vec![net("10.0.1.0/24"), net("10.0.0.0/24")]);
        assert_eq!(joined[0].text(), "10.0.0.0/23");
    }

    #[test]
    fn bits_are_a_set() {
        let mut bits: Bits = [1, 64, 200].into_iter().collect();
        assert_eq!(bits.iter().collect::<Vec<_>>(), [1, 64, 200]);
        bits.keep(&[64].into_iter().collect());
        assert_eq!(bits.iter().collect::<Vec<_>>(), [64]);
        assert!(!bits.get(1) && bits.get(64) && !bits.get(9999));
    }
}
