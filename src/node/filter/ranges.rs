//! A set of addresses of both families as sorted, disjoint ranges of numbers, and the spellings control
//! uses for one (control.md 7.6).

use std::net::IpAddr;

use ipnet::IpNet;

/// First and last address of a range, as numbers.
pub(crate) type Range = (u128, u128);

/// A set of addresses as sorted, disjoint ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct IpSet {
    v4: Vec<Range>,
    v6: Vec<Range>,
}

fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(a) => a.to_bits().into(),
        IpAddr::V6(a) => a.to_bits(),
    }
}

/// Thousands are read at once: the family is seen beforehand.
fn address(text: &str) -> Option<IpAddr> {
    if text.contains(':') { text.parse().map(IpAddr::V6).ok() } else { text.parse().map(IpAddr::V4).ok() }
}

fn holds(list: &[Range], n: u128) -> bool {
    let after = list.partition_point(|(first, _)| *first <= n);
    after.checked_sub(1).and_then(|i| list.get(i)).is_some_and(|(_, last)| n <= *last)
}

/// Whether a sorted, disjoint list and a range have an address in common.
pub(super) fn overlaps(list: &[Range], (first, last): Range) -> bool {
    let after = list.partition_point(|(_, end)| *end < first);
    list.get(after).is_some_and(|(start, _)| *start <= last)
}

impl IpSet {
    fn add_range(&mut self, first: IpAddr, last: IpAddr) -> bool {
        let list = match (first, last) {
            (IpAddr::V4(_), IpAddr::V4(_)) => &mut self.v4,
            (IpAddr::V6(_), IpAddr::V6(_)) => &mut self.v6,
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
        };
        let (first, last) = (number(first), number(last));
        if first <= last {
            list.push((first, last));
        }
        first <= last
    }

    /// Adds a prefix.
    pub(crate) fn add(&mut self, net: IpNet) {
        self.add_range(net.network(), net.broadcast());
    }

    /// Adds an address, a masked prefix, `a-b` or `*`; false when it is none of them.
    pub(super) fn add_text(&mut self, text: &str) -> bool {
        if text == "*" {
            self.v4.push((0, u128::from(u32::MAX)));
            self.v6.push((0, u128::MAX));
            return true;
        }
        match text.bytes().rfind(|c| matches!(c, b'-' | b'/')) {
            None => address(text).is_some_and(|addr| self.add_range(addr, addr)),
            Some(b'-') => {
                let ends = text.split_once('-').and_then(|(a, b)| address(a).zip(address(b)));
                ends.is_some_and(|(a, b)| self.add_range(a, b))
            }
            Some(_) => {
                let net = text.parse::<IpNet>().ok().filter(|net| *net == net.trunc());
                net.map(|net| self.add(net)).is_some()
            }
        }
    }

    /// Takes another set's ranges; to be sealed again.
    pub(super) fn append(&mut self, mut other: Self) {
        self.v4.append(&mut other.v4);
        self.v6.append(&mut other.v6);
    }

    /// Sorts and merges; to be called once after the last `add`.
    pub(crate) fn seal(mut self) -> Self {
        for list in [&mut self.v4, &mut self.v6] {
            list.sort_unstable();
            list.dedup_by(|next, kept| {
                let touches = next.0 <= kept.1.saturating_add(1);
                if touches {
                    kept.1 = kept.1.max(next.1);
                }
                touches
            });
        }
        self
    }

    /// Whether `addr` is in the set.
    pub(crate) fn contains(&self, addr: IpAddr) -> bool {
        holds(if addr.is_ipv4() { &self.v4 } else { &self.v6 }, number(addr))
    }

    /// The ranges of IPv4.
    pub(super) fn v4(&self) -> &[Range] {
        &self.v4
    }

    /// The ranges of IPv6.
    pub(super) fn v6(&self) -> &[Range] {
        &self.v6
    }

    /// How many ranges it has.
    pub(super) const fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }
}
