//! The STUN socket loop (dataplane.md 2).
//!
//! Anything but a proper request is dropped without a word. Each source address has a token bucket
//! that drops, so a spoofed victim never receives more than the limit through us; loopback is exempt.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;

use super::message;
use crate::clock::Now;

/// How much one source may ask.
#[derive(Debug, Clone, Copy)]
pub struct StunLimits {
    /// Answers per second and source (an IPv4 address or an IPv6 /64).
    pub per_second: u32,
    /// Answers in one burst.
    pub burst: u32,
    /// Sources remembered at once; beyond it, unknown sources share one bucket.
    pub sources: usize,
}

impl Default for StunLimits {
    fn default() -> Self {
        // A netcheck sends a handful of requests every 20-26 s; a /24 behind one NAT still fits.
        Self { per_second: 50, burst: 200, sources: 16_384 }
    }
}

/// Counters of one STUN socket loop.
#[derive(Debug, Default)]
pub struct StunStats {
    /// Requests answered.
    pub requests: AtomicU64,
    /// Datagrams that were not a proper request.
    pub malformed: AtomicU64,
    /// Proper requests dropped by the per-source limit.
    pub limited: AtomicU64,
}

/// Answers binding requests on `socket` (any family, dual stack allowed) until the task is dropped.
///
/// # Errors
/// When the socket itself breaks; errors of single datagrams are skipped.
pub async fn serve(socket: UdpSocket, limits: StunLimits, stats: Arc<StunStats>) -> std::io::Result<()> {
    let mut buckets = Buckets::new(limits);
    // One byte more than is accepted, so that longer datagrams are seen as such.
    let mut buffer = [0_u8; message::MAX_DATAGRAM + 1];
    let mut failures = 0_u32;
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // ICMP errors of earlier replies surface here; a dead socket fails without end.
            Err(error) if failures >= 100 => return Err(error),
            Err(error) => {
                failures += 1;
                tracing::trace!(%error, "stun receive failed");
                continue;
            }
        };
        failures = 0;
        let Some(txid) = buffer.get(..length).and_then(message::parse_request) else {
            stats.malformed.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        if !buckets.allow(from.ip(), Now::read().mono) {
            stats.limited.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        stats.requests.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = socket.send_to(&message::response(txid, from), from).await {
            tracing::trace!(%error, "stun reply failed");
        }
    }
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

/// Token buckets per source with a bound on memory.
struct Buckets {
    limits: StunLimits,
    known: HashMap<IpAddr, Bucket>,
    others: Option<Bucket>,
    pruned: Option<Instant>,
}

impl Buckets {
    fn new(limits: StunLimits) -> Self {
        Self { limits, known: HashMap::new(), others: None, pruned: None }
    }

    fn allow(&mut self, source: IpAddr, now: Instant) -> bool {
        let source = source.to_canonical();
        if source.is_loopback() {
            return true;
        }
        let full = Bucket { tokens: f64::from(self.limits.burst), at: now };
        let limits = self.limits;
        let key = prefix(source);
        if let Some(bucket) = self.known.get_mut(&key) {
            return take(bucket, limits, now);
        }
        if self.known.len() >= limits.sources {
            self.prune(now);
        }
        if self.known.len() >= limits.sources {
            return take(self.others.get_or_insert(full), limits, now);
        }
        take(self.known.entry(key).or_insert(full), limits, now)
    }

    /// Forgets sources whose bucket is full again: a new bucket would say the same.
    fn prune(&mut self, now: Instant) {
        // A flood of new sources must not make every datagram walk the whole table.
        if self.pruned.is_some_and(|at| now.duration_since(at) < Duration::from_secs(1)) {
            return;
        }
        self.pruned = Some(now);
        let limits = self.limits;
        self.known.retain(|_, bucket| refilled(bucket, limits, now) < f64::from(limits.burst));
    }
}

fn refilled(bucket: &Bucket, limits: StunLimits, now: Instant) -> f64 {
    let gained = now.duration_since(bucket.at).as_secs_f64() * f64::from(limits.per_second);
    (bucket.tokens + gained).min(f64::from(limits.burst))
}

fn take(bucket: &mut Bucket, limits: StunLimits, now: Instant) -> bool {
    bucket.tokens = refilled(bucket, limits, now);
    bucket.at = now;
    if bucket.tokens < 1.0 {
        return false;
    }
    bucket.tokens -= 1.0;
    true
}

/// One IPv4 address, or the /64 an IPv6 host can pick addresses from at will.
fn prefix(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => std::net::Ipv6Addr::from(u128::from(v6) & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: StunLimits = StunLimits { per_second: 1, burst: 2, sources: 2 };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_source_is_limited_and_recovers() {
        let now = Now::read();
        let mut buckets = Buckets::new(SMALL);
        let source = ip("192.0.2.1");
        let got: Vec<_> = (0..3).map(|_| buckets.allow(source, now.mono)).collect();
        assert_eq!(got, [true, true, false]);
        assert!(buckets.allow(source, now.after(Duration::from_secs(1)).mono));
    }

    #[test]
    fn one_v6_network_is_one_source_and_loopback_is_exempt() {
        let now = Now::read().mono;
        let mut buckets = Buckets::new(SMALL);
        assert!(buckets.allow(ip("2001:db8::1"), now));
        assert!(buckets.allow(ip("2001:db8::2"), now));
        assert!(!buckets.allow(ip("2001:db8::3"), now));
        assert!((0..10).all(|_| buckets.allow(ip("::ffff:127.0.0.1"), now)));
    }

    #[test]
    fn the_table_is_bounded_and_pruned() {
        let now = Now::read();
        let mut buckets = Buckets::new(SMALL);
        for last in 0..200_u8 {
            buckets.allow(IpAddr::from([192, 0, 2, last]), now.mono);
        }
        assert_eq!(buckets.known.len(), 2);
        let later = now.after(Duration::from_secs(10)).mono;
        assert!(buckets.allow(ip("198.51.100.1"), later));
        assert_eq!(buckets.known.len(), 1);
    }

    #[tokio::test]
    async fn a_client_learns_its_address_and_noise_is_ignored() {
        let server = UdpSocket::bind("[::1]:0").await.unwrap();
        let to = server.local_addr().unwrap();
        let stats = Arc::new(StunStats::default());
        let running = tokio::spawn(serve(server, StunLimits::default(), Arc::clone(&stats)));
        let client = UdpSocket::bind("[::1]:0").await.unwrap();

        client.send_to(b"noise", to).await.unwrap();
        client.send_to(&message::request([7; 12]), to).await.unwrap();
        let mut buffer = [0; 100];
        let length = client.recv(&mut buffer).await.unwrap();

        assert_eq!(message::parse_response(&buffer[..length]), Some(([7; 12], client.local_addr().unwrap())));
        assert_eq!(stats.requests.load(Ordering::Relaxed), 1);
        assert_eq!(stats.malformed.load(Ordering::Relaxed), 1);
        running.abort();
    }
}
