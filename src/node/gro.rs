//! Joins decrypted packets of one flow into trains, so that the kernel takes many with one write and goes
//! through its stack once (dataplane.md 10.3). Pure: plans on packets, makes the head of each train; the
//! payloads are written from where they lie. Order within a flow is kept: a packet joins only the newest
//! train of its flow, and only at its end. A packet joins only with a good checksum, as the kernel is told
//! that the train's is good.

use bytes::Bytes;

/// Length of a `virtio_net_hdr`, which precedes every write.
pub(crate) const VNET: usize = 10;
/// Packets of one train at most; the kernel takes up to 1024 slices.
pub(crate) const MAX_PARTS: usize = 126;
/// An IP packet, header included.
const MAX_TRAIN: usize = 65_535;
/// Newest trains that are looked through for the flow of a packet.
const LOOK_BACK: usize = 8;

const TCP: u8 = 6;
const UDP: u8 = 17;
const FLAG_PSH: u8 = 0x08;
const FLAG_ACK: u8 = 0x10;
const NEEDS_CSUM: u8 = 1;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;

/// Where the parts of a packet lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    v6: bool,
    proto: u8,
    /// Length of the IP header.
    ip: usize,
    /// Length of both headers.
    head: usize,
    /// May begin or continue a train.
    joins: bool,
    /// TCP sequence number.
    seq: u32,
    push: bool,
}

pub(super) fn be16(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*b.get(at..)?.first_chunk()?))
}

pub(super) fn be32(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*b.get(at..)?.first_chunk()?))
}

/// Reads a packet; `None` when it has no ports to tell a flow by.
fn shape(b: &[u8], udp: bool) -> Option<Shape> {
    let v6 = b.first()? >> 4 == 6;
    let (ip, proto, whole) = if v6 {
        (40, *b.get(6)?, usize::from(be16(b, 4)?) + 40 == b.len())
    } else {
        // Neither options nor fragments.
        let plain = *b.first()? == 0x45 && be16(b, 6)? & 0x3fff == 0;
        (20, *b.get(9)?, plain && usize::from(be16(b, 2)?) == b.len())
    };
    if !whole {
        return None;
    }
    let (head, joins, push, seq) = match proto {
        TCP => {
            let head = ip + usize::from(b.get(ip + 12)? >> 4) * 4;
            let flags = *b.get(ip + 13)?;
            let plain = flags & !FLAG_PSH == FLAG_ACK && head >= ip + 20;
            (head, plain, flags & FLAG_PSH != 0, be32(b, ip + 4)?)
        }
        UDP => (ip + 8, udp && usize::from(be16(b, ip + 4)?) + ip == b.len(), false, 0),
        _ => return None,
    };
    Some(Shape { v6, proto, ip, head, joins: joins && b.len() > head, seq, push })
}

fn same(a: &[u8], b: &[u8], from: usize, to: usize) -> bool {
    matches!((a.get(from..to), b.get(from..to)), (Some(x), Some(y)) if x == y)
}

/// Addresses, protocol and ports are equal.
fn same_flow(a: &[u8], sa: &Shape, b: &[u8], sb: &Shape) -> bool {
    let addresses = if sa.v6 { 8 } else { 12 };
    sa.v6 == sb.v6 && sa.proto == sb.proto && same(a, b, addresses, sa.ip + 4)
}

/// Whatever the headers of a train share is equal: all but lengths, checksums, IP id, sequence and PSH.
fn same_head(a: &[u8], sa: &Shape, b: &[u8], sb: &Shape) -> bool {
    let ip = if sa.v6 { same(a, b, 0, 4) && same(a, b, 6, 8) } else { same(a, b, 0, 2) && same(a, b, 6, 10) };
    let transport = sa.proto == UDP
        || (same(a, b, sa.ip + 8, sa.ip + 13)
            && same(a, b, sa.ip + 14, sa.ip + 16)
            && same(a, b, sa.ip + 18, sa.head));
    ip && sa.head == sb.head && transport
}

/// Adds `bytes` to a ones' complement sum in the byte order of this machine.
pub(super) fn add(mut acc: u64, bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        if let Ok(word) = word.try_into() {
            acc += u64::from(u32::from_ne_bytes(word));
        }
    }
    let mut last = [0_u8; 4];
    for (to, from) in last.iter_mut().zip(words.remainder()) {
        *to = *from;
    }
    acc + u64::from(u32::from_ne_bytes(last))
}

/// Folds the sum to 16 bits; the bytes are in network order as they lie in memory.
pub(super) fn fold(mut acc: u64) -> [u8; 2] {
    while acc >> 16 != 0 {
        acc = (acc & 0xffff) + (acc >> 16);
    }
    u16::try_from(acc).unwrap_or_default().to_ne_bytes()
}

fn pseudo(b: &[u8], s: &Shape, len: usize) -> u64 {
    let addresses = if s.v6 { 8..40 } else { 12..20 };
    let acc = add(0, b.get(addresses).unwrap_or_default());
    let len = u32::try_from(len).unwrap_or_default().to_be_bytes();
    add(add(acc, &len), &[0, 0, 0, s.proto])
}

fn checksum_good(b: &[u8], s: &Shape) -> bool {
    let transport = b.get(s.ip..).unwrap_or_default();
    // Zero means "none" in UDP over IPv4; the kernel would make one.
    if s.proto == UDP && be16(transport, 6) == Some(0) {
        return false;
    }
    fold(add(pseudo(b, s, transport.len()), transport)) == [0xff, 0xff]
}

/// Packets that are written as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Train {
    shape: Option<Shape>,
    first: usize,
    last: usize,
    /// How many packets.
    pub(crate) parts: usize,
    /// Payload of each but the last.
    size: usize,
    /// Length of the whole.
    len: usize,
    next_seq: u32,
    open: bool,
    push: bool,
}

/// The planner; reused from batch to batch.
#[derive(Debug, Default)]
pub(crate) struct Gro {
    trains: Vec<Train>,
    /// The packet that follows each packet in its train.
    next: Vec<usize>,
}

impl Gro {
    /// Plans the writes of `packets`; UDP is joined only where the device can split it again.
    pub(crate) fn plan(&mut self, packets: &[Bytes], udp: bool) {
        self.trains.clear();
        self.next.clear();
        self.next.resize(packets.len(), usize::MAX);
        for (i, packet) in packets.iter().enumerate() {
            let shape = shape(packet, udp);
            if !shape.is_some_and(|s| self.join(packets, i, packet, &s)) {
                let head = shape.map_or(0, |s| s.head);
                let size = packet.len().saturating_sub(head);
                let step = u32::try_from(size).unwrap_or_default();
                self.trains.push(Train {
                    shape,
                    first: i,
                    last: i,
                    parts: 1,
                    size,
                    len: packet.len(),
                    next_seq: shape.map_or(0, |s| s.seq).wrapping_add(step),
                    open: shape.is_some_and(|s| s.joins && !s.push),
                    push: false,
                });
            }
        }
    }

    fn join(&mut self, packets: &[Bytes], i: usize, packet: &[u8], s: &Shape) -> bool {
        let newest = self.trains.iter_mut().rev().take(LOOK_BACK).find_map(|train| {
            let (first, shape) = (packets.get(train.first)?, train.shape?);
            same_flow(first, &shape, packet, s).then_some((train, first, shape))
        });
        let Some((train, first, shape)) = newest else {
            return false;
        };
        let payload = packet.len() - s.head.min(packet.len());
        let fits = train.open
            && s.joins
            && payload <= train.size
            && train.parts < MAX_PARTS
            && train.len + payload <= MAX_TRAIN
            && (s.proto == UDP || s.seq == train.next_seq)
            && same_head(first, &shape, packet, s);
        if !fits || !checksum_good(packet, s) {
            return false;
        }
        if train.parts == 1 && !checksum_good(first, &shape) {
            train.open = false;
            return false;
        }
        if let Some(next) = self.next.get_mut(train.last) {
            *next = i;
        }
        train.last = i;
        train.parts += 1;
        train.len += payload;
        train.next_seq = train.next_seq.wrapping_add(u32::try_from(payload).unwrap_or_default());
        train.push = s.push;
        // What is shorter, or pushed, is the end.
        train.open = payload == train.size && !s.push;
        true
    }

    /// The planned writes in order.
    pub(crate) fn trains(&self) -> &[Train] {
        &self.trains
    }

    /// The payloads of a train; of a single packet the whole.
    pub(crate) fn payloads<'a>(
        &'a self,
        train: &Train,
        packets: &'a [Bytes],
    ) -> impl Iterator<Item = &'a [u8]> {
        let head = train.shape.filter(|_| train.parts > 1).map_or(0, |s| s.head);
        let mut at = Some(train.first).filter(|_| train.parts > 0);
        std::iter::from_fn(move || {
            let i = at?;
            at = self.next.get(i).copied().filter(|n| *n != usize::MAX);
            packets.get(i)?.get(head..)
        })
        .take(train.parts)
    }

    /// Writes what precedes the payloads of a train: the `virtio_net_hdr` and, of a real train, its headers.
    pub(crate) fn head(train: &Train, packets: &[Bytes], out: &mut Vec<u8>) {
        out.clear();
        out.resize(VNET, 0);
        let (Some(s), Some(first)) = (train.shape.filter(|_| train.parts > 1), packets.get(train.first))
        else {
            return;
        };
        out.extend_from_slice(first.get(..s.head).unwrap_or_default());
        let Some((vnet, head)) = out.split_at_mut_checked(VNET) else {
            return;
        };
        let gso = match (s.proto, s.v6) {
            (UDP, _) => GSO_UDP,
            (_, true) => GSO_TCP6,
            (_, false) => GSO_TCP4,
        };
        let word = |n: usize| u16::try_from(n).unwrap_or_default();
        let at = if s.proto == TCP { 16 } else { 6 };
        let fields = [word(s.head), word(train.size), word(s.ip), at];
        if let Some((kind, rest)) = vnet.split_first_chunk_mut() {
            *kind = [NEEDS_CSUM, gso];
            for (to, field) in rest.chunks_exact_mut(2).zip(fields) {
                to.copy_from_slice(&field.to_ne_bytes());
            }
        }
        let mut put = |at: usize, bytes: [u8; 2]| {
            if let Some(to) = head.get_mut(at..at + 2) {
                to.copy_from_slice(&bytes);
            }
        };
        if s.v6 {
            put(4, word(train.len - s.ip).to_be_bytes());
        } else {
            put(2, word(train.len).to_be_bytes());
            put(10, [0, 0]);
        }
        if s.proto == UDP {
            put(s.ip + 4, word(train.len - s.ip).to_be_bytes());
        }
        // The kernel adds the rest to the sum over the pseudo header.
        put(s.ip + usize::from(at), fold(pseudo(first, &s, train.len - s.ip)));
        if !s.v6 {
            let sum = fold(add(0, head.get(..s.ip).unwrap_or_default())).map(|b| !b);
            if let Some(to) = head.get_mut(10..12) {
                to.copy_from_slice(&sum);
            }
        }
        if let Some(flags) = head.get_mut(s.ip + 13).filter(|_| s.proto == TCP && train.push) {
            *flags |= FLAG_PSH;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
