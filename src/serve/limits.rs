//! Every limit of the front door in one place, and the counting of connections by source.
//!
//! Loopback is exempt: a proxy or a test on this machine stands for many sources.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Connections in all that are not yet upgraded to Noise or DERP; those rooms count their own.
pub(super) const MAX_CONNECTIONS: usize = 8192;
/// Of them from one IPv4 address or one IPv6 /64: an office behind one address restarts at once.
pub(super) const MAX_PER_SOURCE: usize = 512;
/// New connections of one source at once, and per second from then on: a TLS or Noise handshake costs us
/// more than the caller (RELIABILITY.md rows 5, 44). Wide enough for a fleet behind one address that joins
/// or comes back at once: each machine takes two or three connections.
const BURST: f64 = 8192.0;
const PER_SECOND: f64 = 200.0;
/// Sources remembered; unknown ones are refused beyond it.
const MAX_SOURCES: usize = 65_536;
/// For the TLS handshake (RELIABILITY.md row 10).
pub(super) const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// For the head of an HTTP request, also while a kept connection idles.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For a whole request, its body included.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// For the head of an HTTP request, in bytes.
pub(super) const MAX_HEAD: usize = 16 * 1024;
/// Unacknowledged data drops a connection after this long.
pub(super) const TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);
/// Between probes of a silent connection.
pub(super) const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// How long the accept loop rests when file descriptors run out.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Between looks at the certificate of a running server; far below every margin of `cert`.
pub(super) const RENEWAL: Duration = Duration::from_secs(12 * 3600);
/// From the first SIGTERM to the end.
pub(super) const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Counts connections; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Connections(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    total: AtomicUsize,
    sources: Mutex<Sources>,
}

#[derive(Debug, Default)]
struct Sources {
    known: HashMap<IpAddr, Source>,
    pruned: Option<Instant>,
}

#[derive(Debug)]
struct Source {
    open: usize,
    tokens: f64,
    at: Instant,
}

impl Source {
    fn refill(&mut self, now: Instant) {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * PER_SECOND;
        self.tokens = (self.tokens + gained).min(BURST);
        self.at = now;
    }
}

impl Sources {
    fn admit(&mut self, ip: IpAddr, now: Instant) -> bool {
        if self.known.len() >= MAX_SOURCES && !self.known.contains_key(&ip) {
            let lately = |at| now.saturating_duration_since(at) < Duration::from_secs(1);
            if !self.pruned.is_some_and(lately) {
                self.pruned = Some(now);
                self.known.retain(|_, s| {
                    s.refill(now);
                    s.open > 0 || s.tokens < BURST
                });
            }
            if self.known.len() >= MAX_SOURCES {
                return false;
            }
        }
        let source = self.known.entry(ip).or_insert(Source { open: 0, tokens: BURST, at: now });
        source.refill(now);
        if source.open >= MAX_PER_SOURCE || source.tokens < 1.0 {
            return false;
        }
        source.tokens -= 1.0;
        source.open += 1;
        true
    }
}

/// One counted connection; dropping it gives the place back.
#[derive(Debug)]
pub(super) struct Permit {
    inner: Arc<Inner>,
    source: Option<IpAddr>,
}

impl Connections {
    /// A place for a connection from `ip`; `None` when a limit is reached.
    #[must_use]
    pub(super) fn admit(&self, ip: IpAddr, now: Instant) -> Option<Permit> {
        let source = source_of(ip);
        if let Some(source) = source {
            if self.0.total.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
                return None;
            }
            if !self.0.sources.lock().admit(source, now) {
                return None;
            }
        }
        self.0.total.fetch_add(1, Ordering::Relaxed);
        Some(Permit { inner: Arc::clone(&self.0), source })
    }

    /// How many there are.
    #[must_use]
    pub(super) fn total(&self) -> usize {
        self.0.total.load(Ordering::Relaxed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.inner.total.fetch_sub(1, Ordering::Relaxed);
        let Some(source) = self.source else { return };
        let mut sources = self.inner.sources.lock();
        if let Some(source) = sources.known.get_mut(&source) {
            source.open = source.open.saturating_sub(1);
        }
    }
}

/// What counts as one source; `None` is not counted.
fn source_of(ip: IpAddr) -> Option<IpAddr> {
    let ip = ip.to_canonical();
    if ip.is_loopback() {
        return None;
    }
    Some(match ip {
        IpAddr::V4(_) => ip,
        // A household has a whole /64: single addresses there are free.
        IpAddr::V6(v6) => (u128::from(v6) >> 64 << 64).to_be_bytes().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Now;

    #[test]
    fn one_source_is_bounded_others_and_loopback_are_not() {
        let connections = Connections::default();
        let now = Now::read().mono;
        let v6 = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]);
        let mut held: Vec<Permit> = (0..MAX_PER_SOURCE)
            .map(|i| connections.admit(v6(u16::try_from(i).unwrap()), now).unwrap())
            .collect();
        assert!(connections.admit(v6(9999), now).is_none());
        assert!(connections.admit("192.0.2.1".parse().unwrap(), now).is_some());
        for _ in 0..2 * MAX_PER_SOURCE {
            held.push(connections.admit("::ffff:127.0.0.1".parse().unwrap(), now).unwrap());
        }
        held.clear();
        assert_eq!(connections.total(), 0);
        assert!(connections.0.sources.lock().known.values().all(|s| s.open == 0));
    }

    #[test]
    fn a_storm_of_short_connections_is_rated_and_its_source_forgotten() {
        let connections = Connections::default();
        let now = Now::read();
        let storm: IpAddr = "192.0.2.1".parse().unwrap();
        let served = (0..20_000).filter(|_| connections.admit(storm, now.mono).is_some()).count();
        assert_eq!(served, 8192);
        let later = now.after(Duration::from_secs(2)).mono;
        assert_eq!((0..1000).filter(|_| connections.admit(storm, later).is_some()).count(), 400);
        let mut sources = connections.0.sources.lock();
        for n in 0..2 * u32::try_from(MAX_SOURCES).unwrap() {
            sources.admit(IpAddr::from((0x0a00_0000 + n).to_be_bytes()), later);
        }
        assert_eq!(sources.known.len(), MAX_SOURCES);
        for source in sources.known.values_mut() {
            source.open = 0;
        }
        assert!(sources.admit("198.51.100.1".parse().unwrap(), now.after(Duration::from_secs(60)).mono));
        assert_eq!(sources.known.len(), 1);
    }
}
