//! Every limit of the front door in one place, and the counting of connections by source.
//!
//! Loopback is exempt: a proxy or a test on this machine stands for many sources.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// Connections in all that are not yet upgraded to Noise or DERP; those rooms count their own.
pub(super) const MAX_CONNECTIONS: usize = 8192;
/// Of them from one IPv4 address or one IPv6 /64: an office behind one address restarts at once.
pub(super) const MAX_PER_SOURCE: usize = 512;
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
    sources: Mutex<HashMap<IpAddr, usize>>,
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
    pub(super) fn admit(&self, ip: IpAddr) -> Option<Permit> {
        let source = source_of(ip);
        if let Some(source) = source {
            if self.0.total.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
                return None;
            }
            let mut sources = self.0.sources.lock();
            let count = sources.entry(source).or_insert(0);
            if *count >= MAX_PER_SOURCE {
                return None;
            }
            *count += 1;
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
        if let Some(count) = sources.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                sources.remove(&source);
            }
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

    #[test]
    fn one_source_is_bounded_others_and_loopback_are_not() {
        let connections = Connections::default();
        let v6 = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]);
        let mut held: Vec<Permit> =
            (0..MAX_PER_SOURCE).map(|i| connections.admit(v6(u16::try_from(i).unwrap())).unwrap()).collect();
        assert!(connections.admit(v6(9999)).is_none());
        assert!(connections.admit("192.0.2.1".parse().unwrap()).is_some());
        for _ in 0..2 * MAX_PER_SOURCE {
            held.push(connections.admit("::ffff:127.0.0.1".parse().unwrap()).unwrap());
        }
        held.clear();
        assert_eq!(connections.total(), 0);
        assert!(connections.0.sources.lock().is_empty());
    }
}
