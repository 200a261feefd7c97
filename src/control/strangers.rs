//! How many connections inside Noise one network may hold before anybody vouched for it. Without it one
//! address could take every place there is (RELIABILITY row 5). Waiting logins are limited in `sources`.
//!
//! A source is an IPv4 address or an IPv6 /64. Loopback is exempt: a proxy there stands for many.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// Connections of one source that are counted; machines that have a node are let in beyond it.
pub(super) const OPEN_PER_SOURCE: u32 = 2048;

/// Counts; clones share it. Holds an entry only for sources that are connected.
#[derive(Clone, Default)]
pub(super) struct Strangers(Arc<Mutex<HashMap<IpAddr, u32>>>);

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

impl Strangers {
    /// A place for a connection. `Ok(None)`: this source is not counted. `Err`: it has no more places.
    pub(super) fn enter(&self, ip: IpAddr) -> Result<Option<Place>, Full> {
        let Some(source) = source_of(ip) else {
            return Ok(None);
        };
        let mut open = self.0.lock();
        let count = open.entry(source).or_default();
        if *count >= OPEN_PER_SOURCE {
            return Err(Full);
        }
        *count += 1;
        Ok(Some(Place { strangers: self.clone(), source }))
    }
}

/// The source has all the places it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.strangers.0.lock();
        if let Some(count) = open.get_mut(&self.source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_source_has_so_many_places_and_gives_them_back() {
        let strangers = Strangers::default();
        let mut held: Vec<_> = (0..OPEN_PER_SOURCE)
            .map(|n| {
                let host = u16::try_from(n).unwrap();
                strangers.enter(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, host])).unwrap()
            })
            .collect();
        assert!(strangers.enter(ip("2001:db8::ffff")).is_err());
        assert!(strangers.enter(ip("2001:db8:0:1::1")).is_ok());
        held.pop();
        assert!(strangers.enter(ip("2001:db8::ffff")).is_ok());
        assert!((0..5000).all(|_| matches!(strangers.enter(ip("::ffff:127.0.0.1")), Ok(None))));
        drop(held);
        assert!(strangers.0.lock().is_empty(), "a source that left is forgotten");
    }
}
