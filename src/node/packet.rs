//! IP packets: a bounded look into IPv4, IPv6, TCP, UDP, SCTP, ICMP and TSMP headers, and the few packets
//! we make ourselves. What cannot be understood is [`Proto::UNKNOWN`] and dropped by the filter; nothing
//! here indexes outside of what was checked. Rules: dataplane.md 6.2.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;

/// An IP protocol number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Proto(pub(crate) u8);

impl Proto {
    /// Not understood; always dropped.
    pub(crate) const UNKNOWN: Self = Self(0);
    /// ICMP for IPv4.
    pub(crate) const ICMPV4: Self = Self(1);
    /// IGMP.
    pub(crate) const IGMP: Self = Self(2);
    /// TCP.
    pub(crate) const TCP: Self = Self(6);
    /// UDP.
    pub(crate) const UDP: Self = Self(17);
    /// ICMP for IPv6.
    pub(crate) const ICMPV6: Self = Self(58);
    /// The tailnet's own control messages (dataplane.md 6.5).
    pub(crate) const TSMP: Self = Self(99);
    /// SCTP.
    pub(crate) const SCTP: Self = Self(132);
    /// A later fragment; never read from the wire.
    pub(crate) const FRAGMENT: Self = Self(255);
}

const IPV6_FRAGMENT: u8 = 44;
/// A later fragment may not start inside of what a first one's transport header could be: 60 bytes of
/// IPv4 header and 20 of TCP, in blocks of 8 (RFC 1858).
const MIN_FRAGMENT_BLOCKS: u16 = 10;
const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;

/// What the headers of a packet say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Headers {
    /// Source address.
    pub(crate) src: IpAddr,
    /// Destination address.
    pub(crate) dst: IpAddr,
    /// Transport protocol.
    pub(crate) proto: Proto,
    /// Source port, 0 without ports.
    pub(crate) src_port: u16,
    /// Destination port, 0 without ports.
    pub(crate) dst_port: u16,
    /// TCP flags, or the ICMP type.
    pub(crate) kind: u8,
    /// The ICMP code.
    pub(crate) code: u8,
    /// Where the transport header starts.
    pub(crate) transport: usize,
    /// Length by the IP header; what follows is padding.
    pub(crate) len: usize,
}

fn be16(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(b.get(at..at + 2)?.try_into().ok()?))
}

impl Headers {
    /// Reads the headers; `None` when this is no IP packet that fits its own length.
    pub(crate) fn parse(b: &[u8]) -> Option<Self> {
        match b.first()? >> 4 {
            4 => Self::parse_v4(b),
            6 => Self::parse_v6(b),
            _ => None,
        }
    }

    fn parse_v4(b: &[u8]) -> Option<Self> {
        let head: &[u8; 20] = b.first_chunk()?;
        let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let transport = usize::from(head[0] & 0x0f) * 4;
        if transport < 20 || len > b.len() || transport > len {
            return None;
        }
        let src = Ipv4Addr::new(head[12], head[13], head[14], head[15]);
        let dst = Ipv4Addr::new(head[16], head[17], head[18], head[19]);
        let mut out = Self::bare(src.into(), dst.into(), Proto(head[9]), transport, len);
        let fragment = u16::from_be_bytes([head[6], head[7]]);
        let more = fragment & 0x2000 != 0;
        match fragment & 0x1fff {
            0 if out.proto == Proto::ICMPV6 => out.proto = Proto::UNKNOWN,
            0 => out.read_transport(b.get(transport..len)?, more),
            n if n < MIN_FRAGMENT_BLOCKS => out.proto = Proto::UNKNOWN,
            _ => out.proto = Proto::FRAGMENT,
        }
        Some(out)
    }

    fn parse_v6(b: &[u8]) -> Option<Self> {
        let head: &[u8; 40] = b.first_chunk()?;
        let len = usize::from(u16::from_be_bytes([head[4], head[5]])) + 40;
        if len > b.len() {
            return None;
        }
        let src = <[u8; 16]>::try_from(head.get(8..24)?).ok()?;
        let dst = <[u8; 16]>::try_from(head.get(24..40)?).ok()?;
        let (src, dst) = (Ipv6Addr::from(src), Ipv6Addr::from(dst));
        let mut out = Self::bare(src.into(), dst.into(), Proto(head[6]), 40, len);
        let mut more = false;
        if head[6] == IPV6_FRAGMENT {
            let Some(frag) = b.get(40..len).and_then(|f| f.first_chunk::<8>()) else {
                out.proto = Proto::UNKNOWN;
                return Some(out);
            };
            out.proto = Proto(frag[0]);
            out.transport = 48;
            let word = u16::from_be_bytes([frag[2], frag[3]]);
            more = word & 1 != 0;
            match word >> 3 {
                0 => {}
                n if n < MIN_FRAGMENT_BLOCKS => {
                    out.proto = Proto::UNKNOWN;
                    return Some(out);
                }
                _ => {
                    out.proto = Proto::FRAGMENT;
                    return Some(out);
                }
            }
        }
        // Of the extension headers only Fragment is understood (dataplane.md 6.2).
        if matches!(out.proto.0, 0 | 43 | 44 | 50 | 51 | 60 | 135) || out.proto == Proto::ICMPV4 {
            out.proto = Proto::UNKNOWN;
        } else {
            out.read_transport(b.get(out.transport..len)?, more);
        }
        Some(out)
    }

    const fn bare(src: IpAddr, dst: IpAddr, proto: Proto, transport: usize, len: usize) -> Self {
        Self { src, dst, proto, src_port: 0, dst_port: 0, kind: 0, code: 0, transport, len }
    }

    /// Demands a whole transport header, so that a short first fragment cannot hide its ports.
    fn read_transport(&mut self, sub: &[u8], more_fragments: bool) {
        let need = match self.proto {
            Proto::ICMPV4 | Proto::ICMPV6 => 4,
            Proto::IGMP | Proto::UDP => 8,
            Proto::TCP => 20,
            Proto::SCTP => 12,
            Proto::TSMP if more_fragments => usize::MAX,
            Proto::TSMP => 7,
            Proto::FRAGMENT => usize::MAX,
            Proto(_) => 0,
        };
        if sub.len() < need {
            self.proto = Proto::UNKNOWN;
            return;
        }
        match self.proto {
            Proto::TCP | Proto::UDP | Proto::SCTP => {
                self.src_port = be16(sub, 0).unwrap_or_default();
                self.dst_port = be16(sub, 2).unwrap_or_default();
                if self.proto == Proto::TCP {
                    self.kind = sub.get(13).copied().unwrap_or_default();
                }
            }
            Proto::ICMPV4 | Proto::ICMPV6 => {
                self.kind = sub.first().copied().unwrap_or_default();
                self.code = sub.get(1).copied().unwrap_or_default();
            }
            _ => {}
        }
    }

    /// A TCP segment that opens a connection: SYN without ACK.
    pub(crate) const fn is_tcp_syn(&self) -> bool {
        self.kind & (TCP_SYN | TCP_ACK) == TCP_SYN
    }

    /// A TCP reset; never to be answered.
    pub(crate) const fn is_tcp_rst(&self) -> bool {
        self.kind & TCP_RST != 0
    }

    /// A TCP segment by which its sender ends its side: FIN or RST.
    pub(crate) const fn is_tcp_end(&self) -> bool {
        self.kind & (TCP_FIN | TCP_RST) != 0
    }

    /// An ICMP echo reply or error, which belongs to something we started.
    pub(crate) const fn is_icmp_answer(&self) -> bool {
        // The official parser needs eight bytes to tell.
        if self.len < self.transport + 8 {
            return false;
        }
        match self.proto {
            Proto::ICMPV4 => (self.kind == 0 && self.code == 0) || matches!(self.kind, 3 | 11 | 12),
            Proto::ICMPV6 => (self.kind == 129 && self.code == 0) || matches!(self.kind, 1..=4),
            _ => false,
        }
    }
}

/// A whole IP packet with its headers read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IpPacket {
    bytes: Bytes,
    headers: Headers,
}

impl IpPacket {
    /// Takes `bytes` as one packet and cuts padding off; `None` when it is none.
    pub(crate) fn new(mut bytes: Bytes) -> Option<Self> {
        let headers = Headers::parse(&bytes)?;
        bytes.truncate(headers.len);
        Some(Self { bytes, headers })
    }

    /// The headers.
    pub(crate) const fn headers(&self) -> &Headers {
        &self.headers
    }

    /// What follows the IP header.
    pub(crate) fn transport(&self) -> &[u8] {
        self.bytes.get(self.headers.transport..).unwrap_or_default()
    }
}

/// A packet that a peer's session decrypted and whose source that peer may use.
#[derive(Debug)]
pub(crate) struct FromPeer(pub(super) IpPacket);

impl FromPeer {
    /// Checks the source: `allowed` says whether it routes back to the peer that sent the packet.
    pub(crate) fn check(packet: IpPacket, allowed: impl FnOnce(IpAddr) -> bool) -> Option<Self> {
        allowed(packet.headers.src).then_some(Self(packet))
    }

    /// The packet.
    pub(crate) const fn packet(&self) -> &IpPacket {
        &self.0
    }
}

/// A packet that may go to the host: filtered, or made by ourselves.
#[derive(Debug)]
pub(crate) struct Permitted(Bytes);

impl Permitted {
    /// For `filter` alone: what it let in.
    pub(super) fn filtered(packet: FromPeer) -> Self {
        Self(packet.0.bytes)
    }

    /// An answer of this very node to its own host.
    pub(super) const fn own(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// The bytes for the TUN.
    pub(crate) fn into_bytes(self) -> Bytes {
        self.0
    }
}

fn sum(mut acc: u32, bytes: &[u8]) -> u32 {
    let mut chunks = bytes.chunks_exact(2);
    for pair in &mut chunks {
        if let &[a, b] = pair {
            acc += u32::from(u16::from_be_bytes([a, b]));
        }
    }
    if let &[last] = chunks.remainder() {
        acc += u32::from(u16::from_be_bytes([last, 0]));
    }
    acc
}

fn fold(mut acc: u32) -> u16 {
    while acc >> 16 != 0 {
        acc = (acc & 0xffff) + (acc >> 16);
    }
    !u16::try_from(acc).unwrap_or_default()
}

fn pseudo_sum(src: IpAddr, dst: IpAddr, proto: Proto, len: usize) -> u32 {
    let acc = match (src, dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => sum(sum(0, &s.octets()), &d.octets()),
        (IpAddr::V6(s), IpAddr::V6(d)) => sum(sum(0, &s.octets()), &d.octets()),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => 0,
    };
    acc + u32::from(proto.0) + u32::try_from(len).unwrap_or_default()
}

/// An IP packet with hop limit 64 around `transport`; `None` when the families differ or it is too long.
pub(crate) fn build_ip(src: IpAddr, dst: IpAddr, proto: Proto, transport: &[u8]) -> Option<Vec<u8>> {
    match (src, dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            let total = u16::try_from(20 + transport.len()).ok()?;
            let mut b = Vec::with_capacity(20 + transport.len());
            b.extend_from_slice(&[0x45, 0]);
            b.extend_from_slice(&total.to_be_bytes());
            b.extend_from_slice(&[0, 0, 0x40, 0, 64, proto.0, 0, 0]);
            b.extend_from_slice(&s.octets());
            b.extend_from_slice(&d.octets());
            let check = fold(sum(0, &b)).to_be_bytes();
            b.get_mut(10..12)?.copy_from_slice(&check);
            b.extend_from_slice(transport);
            Some(b)
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            let len = u16::try_from(transport.len()).ok()?;
            let mut b = Vec::with_capacity(40 + transport.len());
            b.extend_from_slice(&[0x60, 0, 0, 0]);
            b.extend_from_slice(&len.to_be_bytes());
            b.extend_from_slice(&[proto.0, 64]);
            b.extend_from_slice(&s.octets());
            b.extend_from_slice(&d.octets());
            b.extend_from_slice(transport);
            Some(b)
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

/// A UDP datagram in an IP packet, with checksums.
pub(crate) fn build_udp(src: (IpAddr, u16), dst: (IpAddr, u16), payload: &[u8]) -> Option<Vec<u8>> {
    let len = u16::try_from(8 + payload.len()).ok()?;
    let mut t = Vec::with_capacity(8 + payload.len());
    t.extend_from_slice(&src.1.to_be_bytes());
    t.extend_from_slice(&dst.1.to_be_bytes());
    t.extend_from_slice(&len.to_be_bytes());
    t.extend_from_slice(&[0, 0]);
    t.extend_from_slice(payload);
    // A computed zero is sent as all ones; zero means "none" (RFC 768).
    let check = match fold(sum(pseudo_sum(src.0, dst.0, Proto::UDP, t.len()), &t)) {
        0 => 0xffff,
        n => n,
    };
    t.get_mut(6..8)?.copy_from_slice(&check.to_be_bytes());
    build_ip(src.0, dst.0, Proto::UDP, &t)
}

/// An ICMP echo request with this text.
pub(crate) fn build_echo(src: IpAddr, dst: IpAddr, text: &[u8]) -> Option<Vec<u8>> {
    let (kind, proto) = if dst.is_ipv4() { (8, Proto::ICMPV4) } else { (128, Proto::ICMPV6) };
    let mut t = vec![kind, 0, 0, 0, 0, 0, 0, 1];
    t.extend_from_slice(text);
    // ICMPv6 counts the addresses too (RFC 4443, 2.3).
    let start = if dst.is_ipv4() { 0 } else { pseudo_sum(src, dst, proto, t.len()) };
    let check = fold(sum(start, &t));
    t.get_mut(2..4)?.copy_from_slice(&check.to_be_bytes());
    build_ip(src, dst, proto, &t)
}

/// The reset that answers a TCP segment nobody listens for (RFC 9293, 3.10.7.1).
pub(crate) fn build_rst(packet: &IpPacket) -> Option<Vec<u8>> {
    let h = packet.headers();
    let sub = packet.transport();
    let word = |at: usize| Some(u32::from_be_bytes(sub.get(at..at + 4)?.try_into().ok()?));
    let offset = usize::from(sub.get(12)? >> 4) * 4;
    let data = u32::try_from(sub.len().checked_sub(offset)?).ok()?;
    let (seq, ack, flags) = if h.kind & TCP_ACK != 0 {
        (word(8)?, 0, TCP_RST)
    } else {
        let syn_fin = u32::from(h.kind & TCP_SYN != 0) + u32::from(h.kind & TCP_FIN != 0);
        let ack = word(4)?.wrapping_add(data).wrapping_add(syn_fin);
        (0, ack, TCP_RST | TCP_ACK)
    };
    build_flags((h.dst, h.dst_port), (h.src, h.src_port), (seq, ack, flags))
}

/// A reset that goes on where a segment was going, in its sender's name: what the receiver of a connection
/// gets when the connection is cut on the way.
pub(crate) fn build_rst_onward(packet: &IpPacket) -> Option<Vec<u8>> {
    let h = packet.headers();
    let sub = packet.transport();
    let word = |at: usize| Some(u32::from_be_bytes(sub.get(at..at + 4)?.try_into().ok()?));
    let flags = TCP_RST | (h.kind & TCP_ACK);
    build_flags((h.src, h.src_port), (h.dst, h.dst_port), (word(4)?, word(8)?, flags))
}

/// A TCP segment without data.
fn build_flags(src: (IpAddr, u16), dst: (IpAddr, u16), (seq, ack, flags): (u32, u32, u8)) -> Option<Vec<u8>> {
    let mut t = Vec::with_capacity(20);
    t.extend_from_slice(&src.1.to_be_bytes());
    t.extend_from_slice(&dst.1.to_be_bytes());
    t.extend_from_slice(&seq.to_be_bytes());
    t.extend_from_slice(&ack.to_be_bytes());
    t.extend_from_slice(&[0x50, flags, 0, 0, 0, 0, 0, 0]);
    let check = fold(sum(pseudo_sum(src.0, dst.0, Proto::TCP, t.len()), &t));
    t.get_mut(16..18)?.copy_from_slice(&check.to_be_bytes());
    build_ip(src.0, dst.0, Proto::TCP, &t)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn tcp(src: &str, dst: &str, ports: (u16, u16), flags: u8) -> Vec<u8> {
        let mut t = Vec::new();
        t.extend_from_slice(&ports.0.to_be_bytes());
        t.extend_from_slice(&ports.1.to_be_bytes());
        t.extend_from_slice(&[0, 0, 0, 9, 0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]);
        build_ip(src.parse().unwrap(), dst.parse().unwrap(), Proto::TCP, &t).unwrap()
    }

    pub(crate) fn udp(src: &str, dst: &str, ports: (u16, u16), text: &[u8]) -> Vec<u8> {
        let (src, dst) = (src.parse().unwrap(), dst.parse().unwrap());
        build_udp((src, ports.0), (dst, ports.1), text).unwrap()
    }

    pub(crate) fn echo(src: &str, dst: &str, kind: u8) -> Vec<u8> {
        let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
        let proto = if src.is_ipv4() { Proto::ICMPV4 } else { Proto::ICMPV6 };
        build_ip(src, dst, proto, &[kind, 0, 0, 0, 0, 1, 0, 1]).unwrap()
    }

    #[test]
    fn reads_ports_and_flags_of_both_families() {
        for (src, dst) in [("100.64.0.1", "100.64.0.2"), ("fd7a::1", "fd7a::2")] {
            let h = Headers::parse(&tcp(src, dst, (5, 22), 2)).unwrap();
            assert_eq!((h.proto, h.src_port, h.dst_port), (Proto::TCP, 5, 22));
            assert!(h.is_tcp_syn());
            assert!(!Headers::parse(&tcp(src, dst, (5, 22), 0x12)).unwrap().is_tcp_syn());
            let h = Headers::parse(&udp(src, dst, (7, 53), b"x")).unwrap();
            assert_eq!((h.proto, h.dst_port), (Proto::UDP, 53));
        }
    }

    #[test]
    fn checksums_verify() {
        let p = udp("100.64.0.1", "100.64.0.2", (7, 53), b"odd");
        assert_eq!(fold(sum(0, &p[..20])), 0);
        let (s, d) = ("100.64.0.1".parse().unwrap(), "100.64.0.2".parse().unwrap());
        let acc = pseudo_sum(s, d, Proto::UDP, p.len() - 20);
        assert_eq!(fold(sum(acc, &p[20..])), 0);
    }

    #[test]
    fn an_echo_request_is_whole_in_both_families() {
        for (src, dst, start) in [("100.64.0.1", "100.64.0.2", 0), ("fd7a::1", "fd7a::2", 1)] {
            let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
            let packet = IpPacket::new(build_echo(src, dst, b"12345678").unwrap().into()).unwrap();
            let t = packet.transport();
            let pseudo = pseudo_sum(src, dst, Proto::ICMPV6, t.len()) * start;
            assert_eq!(fold(sum(pseudo, t)), 0);
            assert_eq!(&t[8..], b"12345678");
        }
    }

    #[test]
    fn fragments_are_passed_only_beyond_any_transport_header() {
        let mut p = udp("100.64.0.1", "100.64.0.2", (7, 53), b"x");
        p[7] = 10;
        assert_eq!(Headers::parse(&p).unwrap().proto, Proto::FRAGMENT);
        p[7] = 9;
        assert_eq!(Headers::parse(&p).unwrap().proto, Proto::UNKNOWN);
    }

    #[test]
    fn a_short_first_fragment_and_extension_headers_are_unknown() {
        let short = build_ip("1.2.3.4".parse().unwrap(), "1.2.3.5".parse().unwrap(), Proto::TCP, &[0; 8]);
        assert_eq!(Headers::parse(&short.unwrap()).unwrap().proto, Proto::UNKNOWN);
        let hop = build_ip("fd7a::1".parse().unwrap(), "fd7a::2".parse().unwrap(), Proto(0), &[6; 60]);
        assert_eq!(Headers::parse(&hop.unwrap()).unwrap().proto, Proto::UNKNOWN);
    }

    #[test]
    fn a_length_beyond_the_packet_is_refused() {
        let mut p = udp("100.64.0.1", "100.64.0.2", (7, 53), b"x");
        p[3] = 200;
        assert_eq!(Headers::parse(&p), None);
    }

    #[test]
    fn a_syn_is_reset_with_its_sequence_acknowledged() {
        let syn = tcp("100.64.0.1", "100.100.100.100", (4000, 53), 2);
        let rst = build_rst(&IpPacket::new(syn.into()).unwrap()).unwrap();
        let h = Headers::parse(&rst).unwrap();
        assert!(h.is_tcp_rst());
        assert_eq!((h.src_port, h.dst_port), (53, 4000));
        assert_eq!(&rst[28..32], &[0, 0, 0, 10]);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut b in proptest::collection::vec(any::<u8>(), 0..128), v in 0_u8..3) {
            if let (Some(first), true) = (b.first_mut(), v > 0) {
                *first = (*first & 0x0f) | if v == 1 { 0x40 } else { 0x60 };
            }
            if let Some(p) = IpPacket::new(b.into()) {
                prop_assert!(p.headers().transport <= p.headers().len);
                let _ = build_rst(&p);
            }
        }
    }
}
