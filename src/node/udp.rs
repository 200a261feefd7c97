//! The underlay sockets: one for IPv4, one for IPv6, in batches (dataplane.md 4.10, 10.4).
//!
//! Receives by recvmmsg with GRO; sends runs of equal-size datagrams to one address as one GSO
//! datagram, and falls back to single sends for good when the kernel says EIO.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Bytes, BytesMut};
use nix::sys::socket::{setsockopt, sockopt};
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::engine::CallStats;
use super::sys;

/// What the official client asks of both socket buffers.
const SOCKET_BUFFER: usize = 7 << 20;
/// One slot takes a whole GRO train.
const SLOT: usize = 65_536;
/// Trains of one read: more would not stay in the processor's cache until they are decrypted.
const SLOTS: usize = 8;
const _: () = assert!(SLOTS <= BATCH_SIZE);
/// Largest UDP payload over IPv4; IPv6 would allow 20 bytes more.
const MAX_PAYLOAD: usize = 65_507;

/// One socket of one family.
#[derive(Debug)]
pub struct Sock {
    io: UdpSocket,
    state: UdpSocketState,
    gso: bool,
}

impl Sock {
    fn bind(ip: IpAddr, port: u16, mark: Option<u32>) -> io::Result<Self> {
        let domain = if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        if ip.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if let Some(mark) = mark {
            socket.set_mark(mark)?;
        }
        if setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER).is_err() {
            let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
        }
        if setsockopt(&socket, sockopt::SndBufForce, &SOCKET_BUFFER).is_err() {
            let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
        }
        socket.bind(&SocketAddr::new(ip, port).into())?;
        let io = UdpSocket::from_std(socket.into())?;
        let state = UdpSocketState::new((&io).into())?;
        if let Err(e) = sys::allow_fragments(&io, ip.is_ipv6()) {
            tracing::debug!("path MTU discovery stays on: {e}");
        }
        Ok(Self { gso: state.max_gso_segments() > 1, io, state })
    }

    fn port(&self) -> Option<u16> {
        self.io.local_addr().ok().map(|a| a.port())
    }

    async fn send(&mut self, transmit: &Transmit<'_>) -> io::Result<()> {
        loop {
            let sent =
                self.io.try_io(Interest::WRITABLE, || self.state.try_send((&self.io).into(), transmit));
            match sent {
                // A full socket buffer holds the engine back, which holds the TUN back.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.io.writable().await?,
                other => return other,
            }
        }
    }

    /// Sends a run of datagrams of which all but the last have the size of the first.
    async fn send_run(
        &mut self,
        to: SocketAddr,
        run: &[(SocketAddr, Bytes)],
        scratch: &mut Vec<u8>,
    ) -> CallStats {
        let mut stats = CallStats::default();
        if let (true, [(_, first), _, ..]) = (self.gso, run) {
            scratch.clear();
            run.iter().for_each(|(_, b)| scratch.extend_from_slice(b));
            stats.writes += 1;
            let transmit = Transmit {
                destination: to,
                ecn: None,
                contents: scratch,
                segment_size: Some(first.len()),
                src_ip: None,
            };
            match self.send(&transmit).await {
                Ok(()) => {
                    stats.packets_out += count(run.len());
                    return stats;
                }
                Err(e) if matches!(e.raw_os_error(), Some(libc::EIO | libc::EINVAL)) => {
                    tracing::info!("this network card cannot segment UDP; sending one by one");
                    self.gso = false;
                }
                Err(e) => {
                    tracing::trace!("send to {to}: {e}");
                    stats.errors += count(run.len());
                    return stats;
                }
            }
        }
        for (_, bytes) in run {
            stats.writes += 1;
            let transmit =
                Transmit { destination: to, ecn: None, contents: bytes, segment_size: None, src_ip: None };
            match self.send(&transmit).await {
                Ok(()) => stats.packets_out += 1,
                Err(e) => {
                    tracing::trace!("send to {to}: {e}");
                    stats.errors += 1;
                }
            }
        }
        stats
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// How many datagrams of `batch`, from its start, may travel as one GSO datagram.
fn run_length(batch: &[(SocketAddr, Bytes)], max_segments: usize) -> usize {
    let Some((to, first)) = batch.first() else {
        return 0;
    };
    let mut total = first.len();
    let mut count = 1;
    for (addr, bytes) in batch.iter().skip(1) {
        total += bytes.len();
        let fits = addr == to && bytes.len() <= first.len() && !bytes.is_empty();
        if !fits || count >= max_segments || total > MAX_PAYLOAD {
            break;
        }
        count += 1;
        if bytes.len() < first.len() {
            break;
        }
    }
    count
}

/// Both sockets and their buffers.
pub struct Udp {
    v4: Option<Sock>,
    v6: Option<Sock>,
    slots: Vec<u8>,
    scratch: Vec<u8>,
    stats: CallStats,
}

impl std::fmt::Debug for Udp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Udp")
            .field("ports", &self.ports())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl Udp {
    /// Binds both families on the same port: the wished one, or any when it is taken.
    ///
    /// # Errors
    /// When neither family can be bound.
    pub fn bind(port: u16, mark: Option<u32>) -> io::Result<Self> {
        let (v4, v6) = (Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into());
        let first = Sock::bind(v4, port, mark).or_else(|e| {
            tracing::warn!("UDP port {port} is not to be had ({e}); taking any");
            Sock::bind(v4, 0, mark)
        });
        let same = first.as_ref().ok().and_then(Sock::port).unwrap_or(port);
        let second = Sock::bind(v6, same, mark).or_else(|_| Sock::bind(v6, 0, mark));
        if let (Err(e), Err(_)) = (&first, &second) {
            return Err(io::Error::new(e.kind(), e.to_string()));
        }
        Ok(Self {
            v4: first.ok(),
            v6: second.ok(),
            slots: vec![0; SLOT * SLOTS],
            scratch: Vec::with_capacity(SLOT),
            stats: CallStats::default(),
        })
    }

    /// The bound ports, IPv4 and IPv6.
    #[must_use]
    pub fn ports(&self) -> (Option<u16>, Option<u16>) {
        (self.v4.as_ref().and_then(Sock::port), self.v6.as_ref().and_then(Sock::port))
    }

    /// What went through so far.
    #[must_use]
    pub const fn stats(&self) -> CallStats {
        self.stats
    }

    /// Waits until one of the sockets may have something.
    pub async fn readable(&self) {
        async fn one(sock: Option<&Sock>) {
            match sock {
                Some(s) => drop(s.io.readable().await),
                None => std::future::pending().await,
            }
        }
        tokio::select! {
            () = one(self.v4.as_ref()) => {}
            () = one(self.v6.as_ref()) => {}
        }
    }

    /// Hands every datagram of one batch per socket to `take`; true when something came.
    pub fn recv(&mut self, mut take: impl FnMut(SocketAddr, BytesMut)) -> bool {
        let mut any = false;
        for sock in [&self.v4, &self.v6].into_iter().flatten() {
            let mut meta = [RecvMeta::default(); SLOTS];
            let mut chunks = self.slots.chunks_mut(SLOT);
            let mut slices: [IoSliceMut<'_>; SLOTS] =
                std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
            let received = sock
                .io
                .try_io(Interest::READABLE, || sock.state.recv((&sock.io).into(), &mut slices, &mut meta));
            let filled = match received {
                Ok(n) => n,
                Err(e) => {
                    if e.kind() != io::ErrorKind::WouldBlock {
                        tracing::trace!("receive: {e}");
                    }
                    continue;
                }
            };
            any = true;
            for (slice, m) in slices.iter().zip(&meta).take(filled) {
                let from = SocketAddr::new(m.addr.ip().to_canonical(), m.addr.port());
                // One piece of memory for the train, which its datagrams share.
                let mut train = BytesMut::from(slice.get(..m.len).unwrap_or_default());
                self.stats.reads += 1;
                while !train.is_empty() {
                    let datagram = train.split_to(m.stride.clamp(1, train.len()));
                    self.stats.packets_in += 1;
                    take(from, datagram);
                }
            }
        }
        any
    }

    /// Sends `batch` in order, runs of equal sizes to one address together.
    pub async fn send(&mut self, batch: &[(SocketAddr, Bytes)]) {
        let mut rest = batch;
        while let Some((to, _)) = rest.first() {
            let sock = if to.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
            let Some(sock) = sock else {
                self.stats.errors += 1;
                rest = rest.get(1..).unwrap_or_default();
                continue;
            };
            let segments = if sock.gso { sock.state.max_gso_segments().min(64) } else { 1 };
            let (run, tail) = rest.split_at(run_length(rest, segments).min(rest.len()));
            let sent = sock.send_run(*to, run, &mut self.scratch).await;
            self.stats.writes += sent.writes;
            self.stats.packets_out += sent.packets_out;
            self.stats.errors += sent.errors;
            rest = tail;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(parts: &[(u16, usize)]) -> Vec<(SocketAddr, Bytes)> {
        parts
            .iter()
            .map(|(port, len)| (SocketAddr::from(([127, 0, 0, 1], *port)), Bytes::from(vec![7; *len])))
            .collect()
    }

    #[test]
    fn runs_end_at_another_size_address_or_the_limit() {
        assert_eq!(run_length(&batch(&[(1, 9), (1, 9), (1, 5), (1, 5)]), 64), 3);
        assert_eq!(run_length(&batch(&[(1, 9), (2, 9)]), 64), 1);
        assert_eq!(run_length(&batch(&[(1, 9), (1, 10)]), 64), 1);
        assert_eq!(run_length(&batch(&[(1, 9); 70]), 64), 64);
        assert_eq!(run_length(&batch(&[(1, 1400); 64]), 64), 46);
        assert_eq!(run_length(&[], 64), 0);
    }

    #[tokio::test]
    async fn what_is_sent_in_runs_arrives_as_single_datagrams_in_order() {
        let mut a = Udp::bind(0, None).unwrap();
        let mut b = Udp::bind(0, None).unwrap();
        let port = b.ports().0.unwrap();
        let sent: Vec<(SocketAddr, Bytes)> = (0..40_u8)
            .map(|i| {
                let len = if i == 39 { 50 } else { 100 };
                (SocketAddr::from(([127, 0, 0, 1], port)), Bytes::from(vec![i; len]))
            })
            .collect();
        a.send(&sent).await;
        let mut got: Vec<Vec<u8>> = Vec::new();
        while got.len() < 40 {
            b.readable().await;
            b.recv(|_, bytes| got.push(bytes.to_vec()));
        }
        let expected: Vec<Vec<u8>> = sent.iter().map(|(_, b)| b.to_vec()).collect();
        assert_eq!(got, expected);
        assert_eq!(a.stats().packets_out, 40);
        assert_eq!(b.stats().packets_in, 40);
        if a.v4.as_ref().is_some_and(|s| s.gso) {
            assert_eq!(a.stats().writes, 1);
            assert!(b.stats().reads <= 2, "{:?}", b.stats());
        }
    }
}
