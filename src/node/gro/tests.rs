use proptest::prelude::*;

use super::*;
use crate::node::packet::{Proto, build_ip, build_udp};

/// `count` TCP segments in sequence, the last shorter and pushed, with good checksums.
pub(crate) fn segments(v6: bool, count: usize, size: usize) -> Vec<Bytes> {
    let mut seq = 4_294_960_000_u32;
    (0..count)
        .map(|i| {
            let last = i + 1 == count;
            let len = if last { size / 2 } else { size };
            let flags = if last { FLAG_ACK | FLAG_PSH } else { FLAG_ACK };
            let packet = segment(v6, seq, flags, &vec![i as u8; len], i as u16);
            seq = seq.wrapping_add(len as u32);
            packet
        })
        .collect()
}

fn segment(v6: bool, seq: u32, flags: u8, payload: &[u8], id: u16) -> Bytes {
    let (src, dst) = if v6 { ("fd7a::1", "fd7a::2") } else { ("100.64.0.1", "100.64.0.2") };
    let mut t = vec![0x12, 0x34, 0, 80];
    t.extend_from_slice(&seq.to_be_bytes());
    t.extend_from_slice(&[0, 0, 0, 1, 0x80, flags, 2, 0, 0, 0, 0, 0]);
    // Timestamps, as every Linux sends them.
    t.extend_from_slice(&[1, 1, 8, 10, 0, 0, 0, 7, 0, 0, 0, 9]);
    t.extend_from_slice(payload);
    let mut p = build_ip(src.parse().unwrap(), dst.parse().unwrap(), Proto::TCP, &t).unwrap();
    if !v6 {
        p[4..6].copy_from_slice(&id.to_be_bytes());
        p[10..12].copy_from_slice(&[0, 0]);
        let sum = fold(add(0, &p[..20])).map(|b| !b);
        p[10..12].copy_from_slice(&sum);
    }
    let s = shape(&p, true).unwrap();
    let sum = fold(add(pseudo(&p, &s, p.len() - s.ip), &p[s.ip..])).map(|b| !b);
    p[s.ip + 16..s.ip + 18].copy_from_slice(&sum);
    p.into()
}

fn datagram(text: &[u8]) -> Bytes {
    let (src, dst) = ("100.64.0.1".parse().unwrap(), "100.64.0.2".parse().unwrap());
    build_udp((src, 7), (dst, 53), text).unwrap().into()
}

/// What would be written to the device.
pub(crate) fn write(packets: &[Bytes], udp: bool) -> Vec<Vec<u8>> {
    let mut gro = Gro::default();
    gro.plan(packets, udp);
    let mut head = Vec::new();
    gro.trains()
        .iter()
        .map(|train| {
            Gro::head(train, packets, &mut head);
            let mut out = head.clone();
            gro.payloads(train, packets).for_each(|p| out.extend_from_slice(p));
            out
        })
        .collect()
}

fn parts(packets: &[Bytes]) -> Vec<usize> {
    let mut gro = Gro::default();
    gro.plan(packets, true);
    gro.trains().iter().map(|t| t.parts).collect()
}

#[test]
fn segments_in_sequence_are_one_write() {
    let packets = segments(false, 45, 1228);
    let written = write(&packets, true);
    assert_eq!(written.len(), 1);
    let out = &written[0];
    assert_eq!(out[..2], [NEEDS_CSUM, GSO_TCP4]);
    assert_eq!(out[4..6], 1228_u16.to_ne_bytes());
    assert_eq!(fold(add(0, &out[VNET..VNET + 20])), [0xff, 0xff], "IP header checksum");
    assert_eq!(usize::from(be16(out, VNET + 2).unwrap()), out.len() - VNET);
    assert_eq!(out[VNET + 33] & FLAG_PSH, FLAG_PSH);
}

#[test]
fn a_train_ends_where_ip_ends_or_the_parts_do() {
    assert_eq!(parts(&segments(false, 100, 1228)), [53, 47]);
    assert_eq!(parts(&segments(true, 150, 10)), [126, 24]);
}

#[test]
fn a_gap_a_flag_or_a_bad_checksum_ends_a_train() {
    let all = segments(false, 6, 100);
    let gap = [all[0].clone(), all[1].clone(), all[3].clone(), all[4].clone()];
    assert_eq!(parts(&gap), [2, 2]);
    let backwards = [all[1].clone(), all[0].clone()];
    assert_eq!(parts(&backwards), [1, 1]);
    let fin = segment(false, 4_294_960_100, FLAG_ACK | 1, &[], 1);
    assert_eq!(parts(&[all[0].clone(), fin, all[1].clone()]), [1, 1, 1]);
    let mut bad = all[1].to_vec();
    bad[60] ^= 1;
    assert_eq!(parts(&[all[0].clone(), bad.clone().into(), all[1].clone()]), [1, 1, 1]);
    assert_eq!(write(&[all[0].clone(), bad.clone().into()], true)[1][VNET..], bad[..]);
}

#[test]
fn flows_that_alternate_are_two_trains() {
    let (a, b) = (segments(false, 5, 100), segments(true, 5, 100));
    let mixed: Vec<Bytes> = a.into_iter().zip(b).flat_map(|(a, b)| [a, b]).collect();
    assert_eq!(parts(&mixed), [5, 5]);
}

#[test]
fn datagrams_join_only_where_the_device_can_split_them() {
    let packets = [datagram(b"12345678"), datagram(b"abcdefgh"), datagram(b"end"), datagram(b"12345678")];
    assert_eq!(parts(&packets), [3, 1]);
    let out = &write(&packets, true)[0];
    assert_eq!(out[..2], [NEEDS_CSUM, GSO_UDP]);
    assert_eq!(usize::from(be16(out, VNET + 24).unwrap()), 8 + 19);
    assert_eq!(write(&packets, false).len(), 4);
    assert_eq!(write(&packets, false)[2][VNET..], packets[2][..]);
}

proptest! {
    #[test]
    fn nothing_is_lost_and_nothing_panics(raw in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..20)) {
        let packets: Vec<Bytes> = raw.iter().cloned().map(|mut p| {
            if let Some(b) = p.first_mut() {
                *b = if *b & 1 == 0 { 0x45 } else { 0x60 };
            }
            p.into()
        }).collect();
        prop_assert_eq!(parts(&packets).iter().sum::<usize>(), packets.len());
        let written = write(&packets, true);
        prop_assert_eq!(written.len(), parts(&packets).len());
    }
}
