//! The TUN device (dataplane.md 10.1 to 10.3): made by name, read and written in batches.
//!
//! With offload one read may hold a train of TCP segments or UDP datagrams, which `gso` splits, and writes
//! are joined by `gro`; without, for kernels where the vnet header is broken, packets go one by one.

use std::io::{self, IoSlice};

use bytes::Bytes;
use tun_rs::{AsyncDevice, DeviceBuilder};

use super::engine::CallStats;
use super::gro::{Gro, MAX_PARTS, VNET};
use super::gso;

/// A packet may be as large as IP allows.
const PACKET: usize = 65_535;
/// The MTU every node of a tailnet uses.
pub const MTU: u16 = 1280;

/// An open TUN device. Dropping it removes the interface.
pub struct Tun {
    device: AsyncDevice,
    name: String,
    index: u32,
    offload: bool,
    join_udp: bool,
    raw: Vec<u8>,
    scratch: Vec<u8>,
    gro: Gro,
    stats: CallStats,
}

impl std::fmt::Debug for Tun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tun")
            .field("name", &self.name)
            .field("index", &self.index)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl Tun {
    /// Makes the interface, down and without addresses.
    ///
    /// # Errors
    /// Without the right to make it, without `/dev/net/tun`, or when the name is taken.
    pub fn open(name: &str, offload: bool) -> io::Result<Self> {
        let device = DeviceBuilder::new().name(name).mtu(MTU).offload(offload).enable(false).build_async()?;
        let index = device.if_index()?;
        Ok(Self {
            name: device.name()?,
            index,
            offload,
            join_udp: offload && device.udp_gso(),
            device,
            raw: vec![0; VNET + PACKET],
            scratch: Vec::new(),
            gro: Gro::default(),
            stats: CallStats::default(),
        })
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface's index.
    #[must_use]
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// What went through so far.
    #[must_use]
    pub const fn stats(&self) -> CallStats {
        self.stats
    }

    /// Waits until a packet may be there.
    ///
    /// # Errors
    /// When the device is gone.
    pub async fn readable(&self) -> io::Result<()> {
        self.device.readable().await
    }

    /// Hands the packets of one read to `take`; false when there were none. A train that cannot be
    /// split is a lost train, not a dead device.
    pub fn recv(&mut self, mut take: impl FnMut(&[u8])) -> bool {
        let len = match self.device.try_recv(&mut self.raw) {
            Ok(len) => len,
            Err(e) => {
                if e.kind() != io::ErrorKind::WouldBlock {
                    self.stats.errors += 1;
                    tracing::trace!("TUN read: {e}");
                }
                return false;
            }
        };
        self.stats.reads += 1;
        let read = self.raw.get_mut(..len).unwrap_or_default();
        if !self.offload {
            self.stats.packets_in += 1;
            take(read);
            return true;
        }
        match gso::split(read, &mut self.scratch, take) {
            Ok(count) => self.stats.packets_in += u64::try_from(count).unwrap_or_default(),
            Err(e) => {
                self.stats.errors += 1;
                tracing::trace!("TUN read: {e}");
            }
        }
        true
    }

    /// Writes packets in order, joined where the device can; failures are counted.
    pub async fn send(&mut self, packets: &[Bytes]) {
        self.stats.packets_out += u64::try_from(packets.len()).unwrap_or_default();
        if !self.offload {
            for packet in packets {
                let sent = self.device.send(packet).await;
                note(&mut self.stats, sent);
            }
            return;
        }
        self.gro.plan(packets, self.join_udp);
        for train in self.gro.trains() {
            Gro::head(train, packets, &mut self.scratch);
            let mut slices = [IoSlice::new(&[]); MAX_PARTS + 1];
            let parts = std::iter::once(&*self.scratch).chain(self.gro.payloads(train, packets));
            let mut count = 0;
            for (slice, part) in slices.iter_mut().zip(parts) {
                *slice = IoSlice::new(part);
                count += 1;
            }
            let sent = self.device.send_vectored(slices.get(..count).unwrap_or_default()).await;
            note(&mut self.stats, sent);
        }
    }
}

fn note(stats: &mut CallStats, sent: io::Result<usize>) {
    stats.writes += 1;
    if let Err(e) = sent {
        // EIO: the interface is down, which is what `down` means.
        stats.errors += 1;
        tracing::trace!("TUN write: {e}");
    }
}
