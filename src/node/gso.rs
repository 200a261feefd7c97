//! Splits what the TUN device gives: a packet whose checksum the kernel left to us, or a train of TCP
//! segments or UDP datagrams behind one header (dataplane.md 10.2). Pure: one segment at a time is made in
//! a scratch buffer and handed on. The header lengths the kernel names are not trusted.

use super::gro::{VNET, add, be16, be32, fold};

/// Segments of one train at most; a train of honest size has 53.
const MAX_SEGMENTS: usize = 2048;

const NEEDS_CSUM: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const FLAG_CWR: u8 = 0x80;
const FLAGS_LAST: u8 = 0x09;

/// What the `virtio_net_hdr` says.
#[derive(Debug, Clone, Copy)]
struct Vnet {
    needs_csum: bool,
    gso: u8,
    size: usize,
    csum_start: usize,
    csum_offset: usize,
}

impl Vnet {
    fn parse(b: &[u8; VNET]) -> Self {
        let word = |a: u8, b: u8| usize::from(u16::from_ne_bytes([a, b]));
        let [flags, gso, _, _, s0, s1, c0, c1, o0, o1] = *b;
        Self {
            needs_csum: flags & NEEDS_CSUM != 0,
            // The highest bit says that ECN is in use.
            gso: gso & 0x7f,
            size: word(s0, s1),
            csum_start: word(c0, c1),
            csum_offset: word(o0, o1),
        }
    }
}

fn put(b: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = b.get_mut(at..at + bytes.len()) {
        to.copy_from_slice(bytes);
    }
}

/// The sum field holds the sum over the pseudo header; adds the rest.
fn complete(packet: &mut [u8], vnet: Vnet) -> Result<(), &'static str> {
    let at = vnet.csum_start + vnet.csum_offset;
    if at + 2 > packet.len() {
        return Err("checksum beyond the packet");
    }
    let sum = fold(add(0, packet.get(vnet.csum_start..).unwrap_or_default())).map(|b| !b);
    // UDP: a computed zero is sent as all ones (RFC 768).
    let zero = sum == [0, 0] && vnet.csum_offset == 6;
    put(packet, at, if zero { &[0xff, 0xff] } else { &sum });
    Ok(())
}

/// What the segments of a train have in common.
struct Shape {
    v6: bool,
    proto: u8,
    ip: usize,
    head: usize,
}

fn shape(packet: &[u8], vnet: Vnet) -> Result<Shape, &'static str> {
    let v6 = packet.first().is_some_and(|b| b >> 4 == 6);
    let proto = match (vnet.gso, v6) {
        (1, false) | (4, true) => TCP,
        (5, _) => UDP,
        _ => return Err("unknown segmentation"),
    };
    let ip = vnet.csum_start;
    let head = if proto == TCP {
        let words = packet.get(ip + 12).ok_or("short train")? >> 4;
        if words < 5 {
            return Err("bad TCP header");
        }
        ip + usize::from(words) * 4
    } else {
        ip + 8
    };
    let low = if v6 { 40 } else { 20 };
    let sum_at = if proto == TCP { 16 } else { 6 };
    if ip < low || head > packet.len() || vnet.csum_offset != sum_at || vnet.size == 0 {
        return Err("bad train");
    }
    Ok(Shape { v6, proto, ip, head })
}

/// Hands the packets in `raw`, a read of the device, to `take`; how many there were.
///
/// # Errors
/// Says what is wrong with the read.
pub(crate) fn split(
    raw: &mut [u8],
    scratch: &mut Vec<u8>,
    mut take: impl FnMut(&[u8]),
) -> Result<usize, &'static str> {
    let Some((head, packet)) = raw.split_first_chunk_mut::<VNET>() else {
        return Err("short read");
    };
    let vnet = Vnet::parse(head);
    let shape = if vnet.gso == 0 { None } else { Some(shape(packet, vnet)?) };
    let Some(s) = shape.filter(|s| packet.len() - s.head > vnet.size) else {
        if vnet.needs_csum {
            complete(packet, vnet)?;
        }
        take(packet);
        return Ok(1);
    };
    let (head, payload) = packet.split_at(s.head);
    let count = payload.len().div_ceil(vnet.size);
    if count > MAX_SEGMENTS {
        return Err("too many segments");
    }
    for (i, part) in payload.chunks(vnet.size).enumerate() {
        scratch.clear();
        scratch.extend_from_slice(head);
        scratch.extend_from_slice(part);
        patch(scratch, &s, i, vnet.size, i + 1 == count);
        take(scratch);
    }
    Ok(count)
}

/// Makes the copied headers those of segment `i`.
fn patch(b: &mut [u8], s: &Shape, i: usize, size: usize, last: bool) {
    let word = |n: usize| u16::try_from(n).unwrap_or_default();
    let len = b.len();
    if s.v6 {
        put(b, 4, &word(len - 40).to_be_bytes());
    } else {
        let id = be16(b, 4).unwrap_or_default().wrapping_add(word(i));
        put(b, 2, &word(len).to_be_bytes());
        put(b, 4, &id.to_be_bytes());
        put(b, 10, &[0, 0]);
        let sum = fold(add(0, b.get(..s.ip).unwrap_or_default())).map(|b| !b);
        put(b, 10, &sum);
    }
    let sum_at = if s.proto == TCP {
        let step = u32::try_from(i * size).unwrap_or_default();
        let seq = be32(b, s.ip + 4).unwrap_or_default().wrapping_add(step);
        put(b, s.ip + 4, &seq.to_be_bytes());
        if let Some(flags) = b.get_mut(s.ip + 13) {
            // FIN and PSH belong to the last, CWR to the first (RFC 3168, 6.1.2).
            let off = if last { 0 } else { FLAGS_LAST } | if i > 0 { FLAG_CWR } else { 0 };
            *flags &= !off;
        }
        s.ip + 16
    } else {
        put(b, s.ip + 4, &word(len - s.ip).to_be_bytes());
        s.ip + 6
    };
    put(b, sum_at, &[0, 0]);
    let addresses = if s.v6 { 8..40 } else { 12..20 };
    let pseudo = add(0, b.get(addresses).unwrap_or_default());
    let pseudo = add(pseudo, &u32::try_from(len - s.ip).unwrap_or_default().to_be_bytes());
    let pseudo = add(pseudo, &[0, 0, 0, s.proto]);
    let sum = fold(add(pseudo, b.get(s.ip..).unwrap_or_default())).map(|b| !b);
    let zero = sum == [0, 0] && s.proto == UDP;
    put(b, sum_at, if zero { &[0xff, 0xff] } else { &sum });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::node::gro::tests::{segments, write};

    #[test]
    fn a_lone_packet_gets_its_checksum() {
        let whole = segments(false, 1, 900).remove(0);
        let mut raw = vec![NEEDS_CSUM, 0, 0, 0, 0, 0];
        raw.extend_from_slice(&20_u16.to_ne_bytes());
        raw.extend_from_slice(&16_u16.to_ne_bytes());
        raw.extend_from_slice(&whole);
        let mut pseudo = [0_u8; 12];
        pseudo[..8].copy_from_slice(&whole[12..20]);
        pseudo[9] = TCP;
        pseudo[10..].copy_from_slice(&u16::try_from(whole.len() - 20).unwrap().to_be_bytes());
        let partial = fold(add(0, &pseudo));
        raw[VNET + 36..VNET + 38].copy_from_slice(&partial);
        let mut got = Vec::new();
        split(&mut raw, &mut Vec::new(), |p| got.push(p.to_vec())).unwrap();
        assert_eq!(got, vec![whole.to_vec()]);
    }

    #[test]
    fn splitting_undoes_joining() {
        for v6 in [false, true] {
            let packets = segments(v6, 40, 1200);
            let mut raw = write(&packets, true).remove(0);
            let mut got = Vec::new();
            let count = split(&mut raw, &mut Vec::new(), |p| got.push(p.to_vec())).unwrap();
            assert_eq!(count, 40);
            let expected: Vec<Vec<u8>> = packets.iter().map(|p| p.to_vec()).collect();
            assert_eq!(got, expected, "v6 {v6}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_split_or_refused(mut raw in proptest::collection::vec(any::<u8>(), 0..400), gso in 0_u8..7, size in 0_u16..50) {
            if raw.len() > 12 {
                raw[1] = gso;
                raw[4..6].copy_from_slice(&size.to_ne_bytes());
                raw[6..10].copy_from_slice(&[20, 0, 16, 0]);
            }
            let len = raw.len();
            let _ = split(&mut raw, &mut Vec::new(), |p| assert!(p.len() <= len));
        }
    }
}
