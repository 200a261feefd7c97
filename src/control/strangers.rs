//! What one network may ask of us before anybody vouched for it: connections inside Noise, and waiting
//! logins. Without it one address could take every place there is and push out everybody's logins
//! (RELIABILITY rows 5, 30).
//!
//! A source is an IPv4 address or an IPv6 /64. Loopback is exempt: a proxy there stands for many.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Connections of one source that are counted; machines that have a node are let in beyond it.
pub(super) const OPEN_PER_SOURCE: u32 = 512;
/// New waiting logins of one source at once.
const LOGINS_BURST: f64 = 200.0;
/// And per second from then on.
const LOGINS_PER_SECOND: f64 = 1.0;
/// Sources remembered; unknown ones are refused beyond it.
const SOURCES: usize = 65_536;
/// How often the table is looked through when it is full.
const PRUNE_EACH: Duration = Duration::from_secs(1);

struct Source {
    open: u32,
    tokens: f64,
    at: Instant,
}

impl Source {
    fn refill(&mut self, now: Instant) {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * LOGINS_PER_SECOND;
        self.tokens = (self.tokens + gained).min(LOGINS_BURST);
        self.at = now;
    }
}

#[derive(Default)]
struct Inner {
    sources: HashMap<IpAddr, Source>,
    pruned: Option<Instant>,
}

/// Counts; clones share it.
#[derive(Clone, Default)]
pub(super) struct Strangers(Arc<Mutex<Inner>>);

/// One counted connection; dropping it gives the place back.
pub(super) struct Place {
    strangers: Strangers,
    source: IpAddr,
}

fn source_of(ip: IpAddr) -> Option<IpAddr> {
    match ip.to_canonical() {
        ip if ip.is_loopback() => None,
        IpAddr::V6(v6) => Some(Ipv6Addr::from(u128::from(v6) & (u128::MAX << 64)).into()),
        v4 => Some(v4),
    }
}

impl Inner {
    fn source(&mut self, source: IpAddr, now: Instant) -> Option<&mut Source> {
        if self.sources.len() >= SOURCES && !self.sources.contains_key(&source) {
            let lately = |at| now.saturating_duration_since(at) < PRUNE_EACH;
            if !self.pruned.is_some_and(lately) {
                self.pruned = Some(now);
                self.sources.retain(|_, s| {
                    s.refill(now);
                    s.open > 0 || s.tokens < LOGINS_BURST
                });
            }
            if self.sources.len() >= SOURCES {
                return None;
            }
        }
        let fresh = Source { open: 0, tokens: LOGINS_BURST, at: now };
        Some(self.sources.entry(source).or_insert(fresh))
    }
}

impl Strangers {
    /// A place for a connection. `Ok(None)`: this source is not counted. `Err`: it has no more places.
    pub(super) fn enter(&self, ip: IpAddr, now: Instant) -> Result<Option<Place>, Full> {
        let Some(source) = source_of(ip) else {
            return Ok(None);
        };
        let mut inner = self.0.lock();
        let entry = inner.source(source, now).ok_or(Full)?;
        if entry.open >= OPEN_PER_SOURCE {
            return Err(Full);
        }
        entry.open += 1;
        Ok(Some(Place { strangers: self.clone(), source }))
    }

    /// Whether this source may put one more login on the list.
    pub(super) fn may_wait(&self, ip: IpAddr, now: Instant) -> bool {
        let Some(source) = source_of(ip) else {
            return true;
        };
        let mut inner = self.0.lock();
        let Some(entry) = inner.source(source, now) else {
            return false;
        };
        entry.refill(now);
        if entry.tokens < 1.0 {
            return false;
        }
        entry.tokens -= 1.0;
        true
    }
}

/// The source has all the places it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.strangers.0.lock();
        if let Some(entry) = inner.sources.get_mut(&self.source) {
            entry.open = entry.open.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Now;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_source_has_so_many_places_and_gives_them_back() {
        let strangers = Strangers::default();
        let now = Now::read().mono;
        let mut held: Vec<_> = (0..OPEN_PER_SOURCE)
            .map(|n| {
                let host = u16::try_from(n).unwrap();
                strangers.enter(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, host]), now).unwrap()
            })
            .collect();
        assert!(strangers.enter(ip("2001:db8::ffff"), now).is_err());
        assert!(strangers.enter(ip("2001:db8:0:1::1"), now).is_ok());
        held.pop();
        assert!(strangers.enter(ip("2001:db8::ffff"), now).is_ok());
        assert!((0..2000).all(|_| matches!(strangers.enter(ip("::ffff:127.0.0.1"), now), Ok(None))));
    }

    #[test]
    fn waiting_logins_are_rated_and_recover() {
        let strangers = Strangers::default();
        let now = Now::read();
        let granted = (0..1500).filter(|_| strangers.may_wait(ip("192.0.2.1"), now.mono)).count();
        assert_eq!(granted, 200);
        assert!(strangers.may_wait(ip("192.0.2.2"), now.mono), "another source is not held up");
        let later = now.after(Duration::from_secs(3)).mono;
        assert_eq!((0..10).filter(|_| strangers.may_wait(ip("192.0.2.1"), later)).count(), 3);
    }

    #[test]
    fn the_table_is_bounded_and_forgets_quiet_sources() {
        let strangers = Strangers::default();
        let now = Now::read();
        for n in 0..SOURCES {
            let host = u32::try_from(n).unwrap();
            assert!(strangers.may_wait(IpAddr::from((0x0a00_0000 + host).to_be_bytes()), now.mono));
        }
        assert!(!strangers.may_wait(ip("192.0.2.1"), now.mono));
        let later = now.after(Duration::from_secs(5)).mono;
        assert!(strangers.may_wait(ip("192.0.2.1"), later));
        assert_eq!(strangers.0.lock().sources.len(), 1);
    }
}
