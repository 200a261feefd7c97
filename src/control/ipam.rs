//! Addresses. IPv4 in order from the pool, never one that is taken or came free less than a day ago;
//! IPv6 is the IPv4 address inside fd7a:115c:a1e0::/48, so one ledger serves both.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use chrono::{DateTime, Duration, Utc};
use ipnet::Ipv4Net;

/// How long a freed address rests, so that no peer mistakes the new node for the old one.
const REST: Duration = Duration::hours(24);

/// The pool has no address left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no free address in the pool {0}: remove nodes (a freed address rests for 24 hours) or configure a larger pool (ipv4_pool, or ipPool in the policy's nodeAttrs)"
)]
pub(super) struct Exhausted(pub(super) Ipv4Net);

/// Which addresses are taken or resting. Clones share until one changes.
#[derive(Debug, Clone, Default)]
pub(super) struct Ledger {
    /// `None`: taken; a time: free again since then.
    taken: Arc<HashMap<Ipv4Addr, Option<DateTime<Utc>>>>,
    cursor: u32,
    /// The same for the networks that a policy names; few.
    cursors: Arc<HashMap<Ipv4Net, u32>>,
}

impl Ledger {
    /// From what was kept.
    #[must_use]
    pub(super) fn new(entries: impl IntoIterator<Item = (Ipv4Addr, Option<DateTime<Utc>>)>) -> Self {
        let taken: HashMap<_, _> = entries.into_iter().collect();
        let cursor = taken.keys().copied().map(u32::from).max().unwrap_or(0);
        Self { taken: Arc::new(taken), cursor, cursors: Arc::default() }
    }

    /// Notes an address as taken.
    pub(super) fn take(&mut self, address: Ipv4Addr) {
        Arc::make_mut(&mut self.taken).insert(address, None);
    }

    /// Notes an address as free since `at`.
    pub(super) fn release(&mut self, address: Ipv4Addr, at: DateTime<Utc>) {
        Arc::make_mut(&mut self.taken).insert(address, Some(at));
    }

    /// Takes the next free address of the server's pool. Usually one step; at most one round through it.
    ///
    /// # Errors
    /// When none is free.
    pub(super) fn allocate(
        &mut self,
        pool: Ipv4Net,
        now: DateTime<Utc>,
    ) -> Result<(Ipv4Addr, Ipv6Addr), Exhausted> {
        let (cursor, address) = self.next(pool, self.cursor, now)?;
        self.cursor = cursor;
        Ok(address)
    }

    /// Takes the next free address of a network that the policy names.
    ///
    /// # Errors
    /// When none is free.
    pub(super) fn allocate_from(
        &mut self,
        pool: Ipv4Net,
        now: DateTime<Utc>,
    ) -> Result<(Ipv4Addr, Ipv6Addr), Exhausted> {
        let from = self.cursors.get(&pool).copied().unwrap_or_default();
        let (cursor, address) = self.next(pool, from, now)?;
        Arc::make_mut(&mut self.cursors).insert(pool, cursor);
        Ok(address)
    }

    fn next(
        &mut self,
        pool: Ipv4Net,
        from: u32,
        now: DateTime<Utc>,
    ) -> Result<(u32, (Ipv4Addr, Ipv6Addr)), Exhausted> {
        let first = u32::from(pool.network()).saturating_add(1);
        let last = u32::from(pool.broadcast()).saturating_sub(1);
        if first > last {
            return Err(Exhausted(pool));
        }
        let mut at = from;
        let mut left = u64::from(last - first) + 1;
        while left > 0 {
            at = if at < first || at >= last { first } else { at + 1 };
            if let Some(end) = reserved_until(at) {
                // A whole reserved block is one step.
                let step = u64::from(end.min(last) - at) + 1;
                left = left.saturating_sub(step);
                at = end.min(last);
                continue;
            }
            left -= 1;
            let address = Ipv4Addr::from(at);
            let free = match self.taken.get(&address) {
                None => true,
                Some(None) => false,
                Some(Some(since)) => now.signed_duration_since(*since) >= REST,
            };
            if free {
                self.take(address);
                return Ok((at, (address, v6_of(address))));
            }
        }
        Err(Exhausted(pool))
    }
}

/// Last address of the reserved block that `at` lies in: 100.100.0.0/24 and 100.100.100.100 belong to
/// the clients themselves, 100.115.92.0/23 to ChromeOS (control.md 10.1); an address whose IPv6 twin
/// would end in ::53 is the client's own resolver.
fn reserved_until(at: u32) -> Option<u32> {
    let ip = |a, b, c, d| u32::from(Ipv4Addr::new(a, b, c, d));
    [
        (ip(100, 100, 0, 0), ip(100, 100, 0, 255)),
        (ip(100, 100, 100, 100), ip(100, 100, 100, 100)),
        (ip(100, 115, 92, 0), ip(100, 115, 93, 255)),
        (0x53, 0x53),
    ]
    .into_iter()
    .find(|(from, to)| (*from..=*to).contains(&at))
    .map(|(_, to)| to)
}

fn v6_of(v4: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = v4.octets();
    let high = u16::from_be_bytes([a, b]);
    let low = u16::from_be_bytes([c, d]);
    Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, high, low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Now;

    #[test]
    fn a_small_pool_runs_out_with_its_name_and_rests_freed_addresses() {
        let now = Now::read().wall;
        let pool: Ipv4Net = "100.64.0.0/30".parse().unwrap();
        let mut ledger = Ledger::default();
        let (a, _) = ledger.allocate(pool, now).unwrap();
        let (b, v6) = ledger.allocate(pool, now).unwrap();
        assert_eq!([a, b].map(|x| x.to_string()), ["100.64.0.1", "100.64.0.2"]);
        assert_eq!(v6.to_string(), "fd7a:115c:a1e0::6440:2");
        assert!(ledger.allocate(pool, now).unwrap_err().to_string().contains("100.64.0.0/30"));
        ledger.release(a, now);
        assert!(ledger.allocate(pool, now + Duration::hours(23)).is_err());
        assert_eq!(ledger.allocate(pool, now + Duration::hours(24)).unwrap().0, a);
    }

    #[test]
    fn reserved_blocks_are_jumped() {
        let now = Now::read().wall;
        let pool: Ipv4Net = "100.64.0.0/10".parse().unwrap();
        let mut ledger = Ledger::new([("100.99.255.255".parse().unwrap(), None)]);
        assert_eq!(ledger.allocate(pool, now).unwrap().0.to_string(), "100.100.1.0");
        let mut ledger = Ledger::new([("100.115.91.255".parse().unwrap(), None)]);
        assert_eq!(ledger.allocate(pool, now).unwrap().0.to_string(), "100.115.94.0");
    }

    #[test]
    fn a_pool_of_the_policy_leaves_the_place_in_ours_alone() {
        let now = Now::read().wall;
        let [ours, theirs]: [Ipv4Net; 2] = ["100.64.0.0/10", "100.81.0.0/30"].map(|t| t.parse().unwrap());
        let mut ledger = Ledger::default();
        assert_eq!(ledger.allocate(ours, now).unwrap().0.to_string(), "100.64.0.1");
        assert_eq!(ledger.allocate_from(theirs, now).unwrap().0.to_string(), "100.81.0.1");
        assert_eq!(ledger.allocate(ours, now).unwrap().0.to_string(), "100.64.0.2");
        assert_eq!(ledger.allocate_from(theirs, now).unwrap().0.to_string(), "100.81.0.2");
        let full = ledger.allocate_from(theirs, now).unwrap_err().to_string();
        assert!(full.contains("100.81.0.0/30") && full.contains("ipPool"), "{full}");
    }

    proptest::proptest! {
        #[test]
        fn never_twice_never_outside(steps in proptest::collection::vec(0_u8..4, 0..200)) {
            let now = Now::read().wall;
            let pool: Ipv4Net = "100.100.100.96/28".parse().unwrap();
            let mut ledger = Ledger::default();
            let mut held = std::collections::BTreeSet::new();
            for step in steps {
                if step == 0 && let Some(a) = held.pop_first() {
                    ledger.release(a, now - Duration::days(2));
                } else if let Ok((a, _)) = ledger.allocate(pool, now) {
                    assert!(held.insert(a));
                    assert!(pool.contains(&a));
                    assert_ne!(a, Ipv4Addr::new(100, 100, 100, 100));
                } else {
                    assert_eq!(held.len(), 13);
                }
            }
        }
    }
}
