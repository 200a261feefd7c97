//! The TUN device (dataplane.md 10.1 to 10.3): made by name, read and written in batches.
//!
//! With offload one read may hold a train of TCP or UDP segments, which tun-rs splits, and writes
//! are merged; `--no-offload` turns that off for kernels where the vnet header is broken.

use std::io;

use bytes::Bytes;
use tun_rs::{AsyncDevice, DeviceBuilder, GROTable, IDEAL_BATCH_SIZE, VIRTIO_NET_HDR_LEN};

/// Room for one segment of a split train; a plain packet may be as large as IP allows.
const SEGMENT: usize = 65_535;
/// The MTU every node of a tailnet uses.
pub const MTU: u16 = 1280;

/// An open TUN device. Dropping it removes the interface.
pub struct Tun {
    device: AsyncDevice,
    name: String,
    index: u32,
    raw: Vec<u8>,
    segments: Vec<Vec<u8>>,
    sizes: Vec<usize>,
    gro: GROTable,
    out: Vec<Vec<u8>>,
    errors: u64,
}

impl std::fmt::Debug for Tun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tun")
            .field("name", &self.name)
            .field("index", &self.index)
            .field("errors", &self.errors)
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
        let count = if offload { IDEAL_BATCH_SIZE } else { 1 };
        Ok(Self {
            name: device.name()?,
            index,
            device,
            raw: vec![0; VIRTIO_NET_HDR_LEN + SEGMENT],
            segments: vec![vec![0; SEGMENT]; count],
            sizes: vec![0; count],
            gro: GROTable::default(),
            out: Vec::new(),
            errors: 0,
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

    /// Waits until a packet may be there.
    ///
    /// # Errors
    /// When the device is gone.
    pub async fn readable(&self) -> io::Result<()> {
        self.device.readable().await
    }

    /// Hands the packets of one read to `take`; false when there were none. A train that cannot be
    /// split is a lost train, not a dead device.
    ///
    /// # Errors
    /// When the interface is gone: every further read would fail at once, and for ever.
    pub fn recv(&mut self, mut take: impl FnMut(&[u8])) -> io::Result<bool> {
        match self.device.try_recv_multiple(&mut self.raw, &mut self.segments, &mut self.sizes, 0) {
            Ok(count) => {
                for (segment, size) in self.segments.iter().zip(&self.sizes).take(count) {
                    take(segment.get(..*size).unwrap_or_default());
                }
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) if is_gone(&e) => Err(e),
            Err(e) => {
                self.errors += 1;
                tracing::trace!("TUN read: {e}");
                Ok(false)
            }
        }
    }

    /// Writes packets in order, merged where the device can; failures are counted.
    pub async fn send(&mut self, packets: &[Bytes]) {
        for chunk in packets.chunks(IDEAL_BATCH_SIZE) {
            self.out.truncate(chunk.len());
            self.out.resize_with(chunk.len(), Vec::new);
            for (buf, packet) in self.out.iter_mut().zip(chunk) {
                buf.clear();
                buf.resize(VIRTIO_NET_HDR_LEN, 0);
                buf.extend_from_slice(packet);
            }
            let sent = self.device.send_multiple(&mut self.gro, &mut self.out, VIRTIO_NET_HDR_LEN).await;
            if let Err(e) = sent {
                // EIO: the interface is down, which is what `down` means.
                self.errors += 1;
                tracing::trace!("TUN write: {e}");
            }
        }
    }
}

/// Whether a read failed because there is no interface behind the descriptor any more.
fn is_gone(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EBADFD | libc::EBADF | libc::ENODEV | libc::ENXIO | libc::EFAULT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_interface_is_told_from_a_bad_packet() {
        assert!(is_gone(&io::Error::from_raw_os_error(libc::EBADFD)));
        assert!(!is_gone(&io::Error::from_raw_os_error(libc::EIO)));
        assert!(!is_gone(&io::Error::other("bad train")));
    }
}
