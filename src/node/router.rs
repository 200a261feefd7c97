//! Which peer owns an address: longest prefix first. Exact addresses, nearly all of the table, are one
//! look-up; subnet routes are few lengths, tried from long to short.

use std::net::IpAddr;

use ipnet::IpNet;

use super::hash::FastMap;

/// A table from prefixes to values.
#[derive(Debug, Clone)]
pub(crate) struct Table<T> {
    v4: Family<T>,
    v6: Family<T>,
}

#[derive(Debug, Clone)]
struct Family<T> {
    /// Longest first.
    lengths: Vec<(u8, FastMap<u128, T>)>,
    bits: u8,
}

impl<T: Copy> Family<T> {
    const fn new(bits: u8) -> Self {
        Self { lengths: Vec::new(), bits }
    }

    fn mask(&self, addr: u128, len: u8) -> u128 {
        let drop = u32::from(self.bits.saturating_sub(len));
        addr.checked_shr(drop).unwrap_or_default()
    }

    fn insert(&mut self, addr: u128, len: u8, value: T) {
        let key = self.mask(addr, len);
        let at = self.lengths.partition_point(|(l, _)| *l > len);
        match self.lengths.get_mut(at) {
            Some((l, map)) if *l == len => {
                map.entry(key).or_insert(value);
            }
            _ => self.lengths.insert(at, (len, FastMap::from_iter([(key, value)]))),
        }
    }

    fn find(&self, addr: u128) -> Option<T> {
        self.lengths.iter().find_map(|(len, map)| map.get(&self.mask(addr, *len)).copied())
    }
}

fn key(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(a) => a.to_bits().into(),
        IpAddr::V6(a) => a.to_bits(),
    }
}

impl<T: Copy> Table<T> {
    /// An empty table.
    pub(crate) const fn new() -> Self {
        Self { v4: Family::new(32), v6: Family::new(128) }
    }

    /// Adds a prefix; the first owner of a prefix keeps it.
    pub(crate) fn insert(&mut self, net: IpNet, value: T) {
        let family = match net {
            IpNet::V4(_) => &mut self.v4,
            IpNet::V6(_) => &mut self.v6,
        };
        family.insert(key(net.addr()), net.prefix_len(), value);
    }

    /// The value of the longest prefix that holds `addr`.
    pub(crate) fn find(&self, addr: IpAddr) -> Option<T> {
        match addr {
            IpAddr::V4(_) => self.v4.find(key(addr)),
            IpAddr::V6(_) => self.v6.find(key(addr)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_longest_prefix_wins_and_the_first_owner_stays() {
        let mut t = Table::new();
        t.insert("10.0.0.0/8".parse().unwrap(), 1);
        t.insert("10.1.0.0/16".parse().unwrap(), 2);
        t.insert("10.1.2.3/32".parse().unwrap(), 3);
        t.insert("10.1.2.3/32".parse().unwrap(), 4);
        assert_eq!(t.find("10.1.2.3".parse().unwrap()), Some(3));
        assert_eq!(t.find("10.1.2.4".parse().unwrap()), Some(2));
        assert_eq!(t.find("10.2.2.4".parse().unwrap()), Some(1));
        assert_eq!(t.find("11.2.2.4".parse().unwrap()), None);
        assert_eq!(t.find("fd7a::1".parse().unwrap()), None);
    }

    proptest! {
        #[test]
        fn equals_a_naive_search(nets in proptest::collection::vec((any::<u16>(), 0_u8..=32), 0..30), probe in any::<u16>()) {
            let net = |(a, len): (u16, u8)| {
                IpNet::new(IpAddr::from(((u32::from(a)) << 12).to_be_bytes()), len).unwrap().trunc()
            };
            let nets: Vec<IpNet> = nets.into_iter().map(net).collect();
            let mut table = Table::new();
            for (i, n) in nets.iter().enumerate() {
                table.insert(*n, i);
            }
            let addr = IpAddr::from((u32::from(probe) << 12).to_be_bytes());
            let mut best: Option<usize> = None;
            for (i, n) in nets.iter().enumerate() {
                if n.contains(&addr) && best.is_none_or(|b| nets[b].prefix_len() < n.prefix_len()) {
                    best = Some(i);
                }
            }
            prop_assert_eq!(table.find(addr), best);
        }
    }
}
