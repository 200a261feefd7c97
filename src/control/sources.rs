//! How often one place in the network may ask for something that costs us and needs no credential
//! (RELIABILITY rows 30, 31). A place is an IPv4 /24 or an IPv6 /64; loopback is exempt, for a proxy or
//! a test there stands for many. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Places remembered at most; further ones share one allowance.
const MAX_PLACES: usize = 10_000;

/// An allowance per place and minute.
#[derive(Debug)]
pub(super) struct Allowance {
    per_minute: u32,
    /// When everything a place took is paid back; the virtual scheduling form of a leaky bucket
    /// (ITU-T I.371).
    due: HashMap<Option<IpAddr>, Instant>,
}

/// What is counted by place.
#[derive(Debug)]
pub(super) struct Sources {
    /// Registrations that make a waiting login.
    pub(super) logins: Mutex<Allowance>,
    /// Follow-ups to logins that are not there.
    pub(super) guesses: Mutex<Allowance>,
}

impl Default for Sources {
    fn default() -> Self {
        Self { logins: Mutex::new(Allowance::new(60)), guesses: Mutex::new(Allowance::new(30)) }
    }
}

/// What counts as one place; `None` is exempt.
#[must_use]
pub(super) fn place(ip: IpAddr) -> Option<IpAddr> {
    let ip = ip.to_canonical();
    if ip.is_loopback() {
        return None;
    }
    Some(match ip {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            IpAddr::from([a, b, c, 0])
        }
        IpAddr::V6(v6) => (u128::from(v6) >> 64 << 64).to_be_bytes().into(),
    })
}

impl Allowance {
    /// So many per minute, that many at once.
    #[must_use]
    pub(super) fn new(per_minute: u32) -> Self {
        Self { per_minute: per_minute.max(1), due: HashMap::new() }
    }

    /// Takes one.
    ///
    /// # Errors
    /// When there is none left: how long until the next.
    pub(super) fn take(&mut self, place: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut key = Some(place);
        if !self.due.contains_key(&key) && self.due.len() >= MAX_PLACES {
            self.due.retain(|_, due| *due > now);
            if self.due.len() >= MAX_PLACES {
                key = None;
            }
        }
        let each = Duration::from_secs(60) / self.per_minute;
        let due = self.due.get(&key).copied().filter(|due| *due > now).unwrap_or(now) + each;
        let over = due.saturating_duration_since(now + Duration::from_secs(60));
        if over.is_zero() {
            self.due.insert(key, due);
            return Ok(());
        }
        Err(over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Now;

    #[test]
    fn a_place_gets_its_share_and_no_more() {
        let now = Now::read().mono;
        let mut allowance = Allowance::new(60);
        let [one, neighbour, other] =
            ["192.0.2.1", "192.0.2.77", "2001:db8::1"].map(|t| place(t.parse().unwrap()).unwrap());
        let taken = (0..100).filter(|_| allowance.take(one, now).is_ok()).count();
        assert_eq!(taken, 60);
        let wait = allowance.take(neighbour, now).unwrap_err();
        assert_eq!(wait, Duration::from_secs(1));
        assert!(allowance.take(neighbour, now + wait).is_ok());
        assert!(allowance.take(other, now).is_ok());
        assert_eq!(place("::ffff:127.0.0.1".parse().unwrap()), None);
        assert_eq!(place("2001:db8::1:2:3:4".parse().unwrap()), Some(other));
    }

    #[test]
    fn many_places_cost_bounded_memory_and_share_what_is_left() {
        let now = Now::read().mono;
        let mut allowance = Allowance::new(60);
        let at = |n: u32| IpAddr::V4((n << 8).into());
        let taken = (1..=20_000).filter(|n| allowance.take(at(*n), now).is_ok()).count();
        assert_eq!(taken, MAX_PLACES + 60);
        assert!(allowance.due.len() <= MAX_PLACES + 1);
        assert!(allowance.take(at(30_000), now + Duration::from_secs(90)).is_ok());
        assert_eq!(allowance.due.len(), 1, "who paid back is forgotten");
    }
}
