//! DERP frames (dataplane.md 1.2): one type byte, a big-endian length, a payload.
//!
//! [`plan_from_client`] and [`plan_from_server`] decide from the header alone whether a payload is
//! buffered, skipped or refused; [`Frame::parse`] reads a buffered payload without copying it. Tails
//! that a newer peer appends to a known layout are ignored.

use std::net::{Ipv6Addr, SocketAddr};

use bytes::{Buf, Bytes};

use crate::keys::{DerpPublic, NodePublic};

/// Bytes of a frame header.
pub const HEADER_LEN: usize = 5;
/// Bytes of a key.
pub const KEY_LEN: usize = 32;
/// First bytes of the first frame: "DERP" and a key.
pub const MAGIC: [u8; 8] = [0x44, 0x45, 0x52, 0x50, 0xf0, 0x9f, 0x94, 0x91];
/// The protocol version spoken.
pub const PROTOCOL_VERSION: u32 = 2;
/// Longest relayed packet, without the key in front.
pub const MAX_PACKET: usize = 65_536;
/// Longest frame of a server that a client takes, and the most of an unknown frame anyone skips.
pub const MAX_FRAME: usize = 1 << 20;
/// Longest ClientInfo a server buffers. The official server takes 256 KiB, but it is read before the
/// sender has proven anything and real ones are under 300 bytes.
pub const MAX_CLIENT_INFO: usize = 16 << 10;
/// Longest ping.
pub const MAX_PING: usize = 1000;

/// Frame type bytes.
pub mod kind {
    #![allow(missing_docs)]
    pub const SERVER_KEY: u8 = 0x01;
    pub const CLIENT_INFO: u8 = 0x02;
    pub const SERVER_INFO: u8 = 0x03;
    pub const SEND_PACKET: u8 = 0x04;
    pub const RECV_PACKET: u8 = 0x05;
    pub const KEEP_ALIVE: u8 = 0x06;
    pub const NOTE_PREFERRED: u8 = 0x07;
    pub const PEER_GONE: u8 = 0x08;
    pub const PEER_PRESENT: u8 = 0x09;
    pub const FORWARD_PACKET: u8 = 0x0a;
    pub const WATCH_CONNS: u8 = 0x10;
    pub const CLOSE_PEER: u8 = 0x11;
    pub const PING: u8 = 0x12;
    pub const PONG: u8 = 0x13;
    pub const HEALTH: u8 = 0x14;
    pub const RESTARTING: u8 = 0x15;
}

/// Reason byte of PeerGone: the peer's last connection ended.
pub const GONE_DISCONNECTED: u8 = 0x00;
/// Reason byte of PeerGone: the relay does not know the key.
pub const GONE_NOT_HERE: u8 = 0x01;

/// Why a frame was refused; the connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The payload is shorter than its layout.
    #[error("DERP frame {kind:#04x} is too short with {len} bytes")]
    Short {
        /// Frame type.
        kind: u8,
        /// Payload length.
        len: usize,
    },
    /// The payload is longer than allowed.
    #[error("DERP frame {kind:#04x} is too long with {len} bytes")]
    Long {
        /// Frame type.
        kind: u8,
        /// Payload length.
        len: usize,
    },
    /// The first frame is not the greeting of a relay.
    #[error("the relay does not greet with the DERP magic; is this a DERP server?")]
    Magic,
}

/// A frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Frame type.
    pub kind: u8,
    /// Payload length.
    pub len: u32,
}

impl Header {
    /// Reads a header; `None` when `bytes` are fewer than five.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, _) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let [kind, a, b, c, d] = *head;
        Some(Self { kind, len: u32::from_be_bytes([a, b, c, d]) })
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let [a, b, c, d] = self.len.to_be_bytes();
        [self.kind, a, b, c, d]
    }
}

/// What to do with the payload behind a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Buffer it.
    Take(usize),
    /// Read and discard it.
    Skip(usize),
}

fn plan(header: Header, least: usize, most: usize) -> Result<Plan, FrameError> {
    let (kind, len) = (header.kind, length(header));
    if len < least {
        return Err(FrameError::Short { kind, len });
    }
    if len > most {
        return Err(FrameError::Long { kind, len });
    }
    Ok(Plan::Take(len))
}

fn skip(header: Header) -> Result<Plan, FrameError> {
    let (kind, len) = (header.kind, length(header));
    if len > MAX_FRAME {
        return Err(FrameError::Long { kind, len });
    }
    Ok(Plan::Skip(len))
}

fn length(header: Header) -> usize {
    usize::try_from(header.len).unwrap_or(usize::MAX)
}

/// What a server does with a frame of a client. Mesh frames are taken so that they can be refused.
///
/// # Errors
/// When the length does not fit the type.
pub fn plan_from_client(header: Header) -> Result<Plan, FrameError> {
    match header.kind {
        kind::CLIENT_INFO => plan(header, KEY_LEN + 24, MAX_CLIENT_INFO),
        kind::SEND_PACKET => plan(header, KEY_LEN, KEY_LEN + MAX_PACKET),
        kind::NOTE_PREFERRED => plan(header, 1, 1),
        kind::FORWARD_PACKET => plan(header, 2 * KEY_LEN, 2 * KEY_LEN + MAX_PACKET),
        kind::WATCH_CONNS => plan(header, 0, 0),
        kind::CLOSE_PEER => plan(header, KEY_LEN, KEY_LEN),
        kind::PING | kind::PONG => plan(header, 8, MAX_PING),
        _ => skip(header),
    }
}

/// What a client does with a frame of a server.
///
/// # Errors
/// When the length does not fit the type.
pub fn plan_from_server(header: Header) -> Result<Plan, FrameError> {
    match header.kind {
        kind::SERVER_KEY => plan(header, MAGIC.len() + KEY_LEN, MAX_FRAME),
        kind::SERVER_INFO => plan(header, 24 + 16, MAX_FRAME),
        kind::RECV_PACKET => plan(header, KEY_LEN, KEY_LEN + MAX_PACKET),
        kind::PEER_GONE | kind::PEER_PRESENT => plan(header, KEY_LEN, MAX_FRAME),
        kind::KEEP_ALIVE => plan(header, 0, MAX_FRAME),
        kind::PING | kind::PONG => plan(header, 8, MAX_PING),
        kind::HEALTH => plan(header, 0, MAX_PACKET),
        kind::RESTARTING => plan(header, 8, MAX_FRAME),
        _ => skip(header),
    }
}

/// Every frame of the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// 01: the relay's greeting.
    ServerKey(DerpPublic),
    /// 02: who the client is; nonce and box are still closed.
    ClientInfo {
        /// The claimed key.
        key: NodePublic,
        /// Nonce and box.
        sealed: Bytes,
    },
    /// 03: the relay's limits, as nonce and box.
    ServerInfo(Bytes),
    /// 04: a packet for `to`.
    SendPacket {
        /// Destination.
        to: NodePublic,
        /// Payload.
        packet: Bytes,
    },
    /// 05: a packet of `from`.
    RecvPacket {
        /// Source.
        from: NodePublic,
        /// Payload.
        packet: Bytes,
    },
    /// 06: the relay lives.
    KeepAlive,
    /// 07: whether this relay is the client's home.
    NotePreferred(bool),
    /// 08: a peer cannot be reached here.
    PeerGone {
        /// Who.
        key: NodePublic,
        /// Why.
        reason: u8,
    },
    /// 09: a peer is connected (to mesh watchers).
    PeerPresent {
        /// Who.
        key: NodePublic,
        /// From where, when told.
        addr: Option<SocketAddr>,
        /// Kind of client; 0 when not told.
        flags: u8,
    },
    /// 0A: a packet of another relay's client.
    ForwardPacket {
        /// Source.
        from: NodePublic,
        /// Destination.
        to: NodePublic,
        /// Payload.
        packet: Bytes,
    },
    /// 10: asks for PeerPresent and PeerGone of all.
    WatchConns,
    /// 11: asks to drop all connections of a key.
    ClosePeer(NodePublic),
    /// 12: asks for a pong.
    Ping([u8; 8]),
    /// 13: answers a ping.
    Pong([u8; 8]),
    /// 14: a problem text, empty when solved.
    Health(String),
    /// 15: the relay restarts.
    Restarting {
        /// Reconnect after this many milliseconds.
        reconnect_in: u32,
        /// Keep trying for this many milliseconds.
        try_for: u32,
    },
    /// Any other type.
    Unknown(u8),
}

impl Frame {
    /// Reads a payload whose header was planned as [`Plan::Take`].
    ///
    /// # Errors
    /// When the payload is shorter than its layout or is not the DERP greeting.
    pub fn parse(kind: u8, mut payload: Bytes) -> Result<Self, FrameError> {
        let short = FrameError::Short { kind, len: payload.len() };
        Self::read(kind, &mut payload).unwrap_or(Err(short))
    }

    fn read(kind: u8, payload: &mut Bytes) -> Option<Result<Self, FrameError>> {
        Some(Ok(match kind {
            kind::SERVER_KEY => {
                if take::<8>(payload)? != MAGIC {
                    return Some(Err(FrameError::Magic));
                }
                Self::ServerKey(DerpPublic::from_bytes(take(payload)?))
            }
            kind::CLIENT_INFO => Self::ClientInfo { key: node(payload)?, sealed: payload.split_off(0) },
            kind::SERVER_INFO => Self::ServerInfo(payload.split_off(0)),
            kind::SEND_PACKET => Self::SendPacket { to: node(payload)?, packet: payload.split_off(0) },
            kind::RECV_PACKET => Self::RecvPacket { from: node(payload)?, packet: payload.split_off(0) },
            kind::KEEP_ALIVE => Self::KeepAlive,
            kind::NOTE_PREFERRED => Self::NotePreferred(take::<1>(payload)? != [0]),
            kind::PEER_GONE => Self::PeerGone {
                key: node(payload)?,
                // Old servers send no reason, which means the same as 0.
                reason: take::<1>(payload).map_or(GONE_DISCONNECTED, |[r]| r),
            },
            kind::PEER_PRESENT => {
                let key = node(payload)?;
                let addr = take::<18>(payload).map(present_addr);
                // What is left of a torn address is not the flags.
                let flags = addr.and_then(|_| take::<1>(payload)).map_or(0, |[f]| f);
                Self::PeerPresent { key, addr, flags }
            }
            kind::FORWARD_PACKET => {
                Self::ForwardPacket { from: node(payload)?, to: node(payload)?, packet: payload.split_off(0) }
            }
            kind::WATCH_CONNS => Self::WatchConns,
            kind::CLOSE_PEER => Self::ClosePeer(node(payload)?),
            kind::PING => Self::Ping(take(payload)?),
            kind::PONG => Self::Pong(take(payload)?),
            kind::HEALTH => Self::Health(String::from_utf8_lossy(payload).into_owned()),
            kind::RESTARTING => Self::Restarting {
                reconnect_in: u32::from_be_bytes(take(payload)?),
                try_for: u32::from_be_bytes(take(payload)?),
            },
            other => Self::Unknown(other),
        }))
    }

    /// Appends header and payload to `out`. A packet over [`MAX_PACKET`] is the caller's mistake and
    /// is refused by the other side.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        match self {
            Self::ServerKey(key) => put(out, kind::SERVER_KEY, &[&MAGIC[..], key.as_bytes()]),
            Self::ClientInfo { key, sealed } => {
                put(out, kind::CLIENT_INFO, &[key.as_bytes(), sealed]);
            }
            Self::ServerInfo(sealed) => put(out, kind::SERVER_INFO, &[sealed]),
            Self::SendPacket { to, packet } => {
                put(out, kind::SEND_PACKET, &[to.as_bytes(), packet]);
            }
            Self::RecvPacket { from, packet } => {
                put(out, kind::RECV_PACKET, &[from.as_bytes(), packet]);
            }
            Self::KeepAlive => put(out, kind::KEEP_ALIVE, &[]),
            Self::NotePreferred(home) => put(out, kind::NOTE_PREFERRED, &[&[u8::from(*home)]]),
            Self::PeerGone { key, reason } => {
                put(out, kind::PEER_GONE, &[key.as_bytes(), &[*reason]]);
            }
            Self::PeerPresent { key, addr, flags } => match addr {
                Some(addr) => {
                    let ip = match addr.ip() {
                        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                        std::net::IpAddr::V6(v6) => v6.octets(),
                    };
                    let port = addr.port().to_be_bytes();
                    put(out, kind::PEER_PRESENT, &[key.as_bytes(), &ip, &port, &[*flags]]);
                }
                None => put(out, kind::PEER_PRESENT, &[key.as_bytes()]),
            },
            Self::ForwardPacket { from, to, packet } => {
                put(out, kind::FORWARD_PACKET, &[from.as_bytes(), to.as_bytes(), packet])
            }
            Self::WatchConns => put(out, kind::WATCH_CONNS, &[]),
            Self::ClosePeer(key) => put(out, kind::CLOSE_PEER, &[key.as_bytes()]),
            Self::Ping(data) => put(out, kind::PING, &[data]),
            Self::Pong(data) => put(out, kind::PONG, &[data]),
            Self::Health(text) => put(out, kind::HEALTH, &[text.as_bytes()]),
            Self::Restarting { reconnect_in, try_for } => {
                put(out, kind::RESTARTING, &[&reconnect_in.to_be_bytes(), &try_for.to_be_bytes()])
            }
            Self::Unknown(kind) => put(out, *kind, &[]),
        }
    }

    /// Header and payload as one piece.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode_into(&mut out);
        out
    }
}

/// Appends a packet frame (`SEND_PACKET` or `RECV_PACKET`) by reference; the relay's hot path.
pub fn put_packet(out: &mut Vec<u8>, kind: u8, key: &NodePublic, packet: &[u8]) {
    put(out, kind, &[key.as_bytes(), packet]);
}

/// True for packets that carry disco, which have a queue of their own (dataplane.md 4.1: magic, key,
/// nonce).
#[must_use]
pub fn is_disco(packet: &[u8]) -> bool {
    packet.len() >= 6 + 32 + 24 && packet.starts_with(&[0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac])
}

fn put(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let total: usize = parts.iter().map(|p| p.len()).sum();
    let len = u32::try_from(total).unwrap_or(u32::MAX);
    out.reserve(HEADER_LEN + total);
    out.extend_from_slice(&Header { kind, len }.encode());
    for part in parts {
        out.extend_from_slice(part);
    }
}

fn take<const N: usize>(payload: &mut Bytes) -> Option<[u8; N]> {
    let (head, _) = payload.split_first_chunk::<N>()?;
    let head = *head;
    payload.advance(N);
    Some(head)
}

fn node(payload: &mut Bytes) -> Option<NodePublic> {
    take(payload).map(NodePublic::from_bytes)
}

fn present_addr(bytes: [u8; 18]) -> SocketAddr {
    let mut ip = [0; 16];
    let mut port = [0; 2];
    ip.iter_mut().zip(&bytes).for_each(|(a, b)| *a = *b);
    port.iter_mut().zip(bytes.iter().skip(16)).for_each(|(a, b)| *a = *b);
    SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), u16::from_be_bytes(port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(byte: u8) -> NodePublic {
        NodePublic::from_bytes([byte; 32])
    }

    fn reparse(frame: &Frame) -> Frame {
        let bytes = frame.encode();
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(header.len as usize, bytes.len() - HEADER_LEN);
        Frame::parse(header.kind, Bytes::from(bytes).slice(HEADER_LEN..)).unwrap()
    }

    #[test]
    fn frames_match_the_vectors_of_dataplane_appendix_a() {
        let send = Frame::SendPacket { to: key(9), packet: Bytes::from(vec![0; 100]) };
        assert_eq!(hex::encode(&send.encode()[..5]), "0400000084");
        for (frame, want) in [
            (Frame::KeepAlive, "0600000000"),
            (Frame::WatchConns, "1000000000"),
            (Frame::NotePreferred(true), "070000000101"),
            (Frame::Restarting { reconnect_in: 1000, try_for: 30_000 }, "1500000008000003e800007530"),
        ] {
            assert_eq!(hex::encode(frame.encode()), want);
        }
    }

    #[test]
    fn peer_present_is_51_bytes_and_short_forms_are_understood() {
        let present =
            Frame::PeerPresent { key: key(1), addr: Some("192.0.2.1:7".parse().unwrap()), flags: 1 };
        assert_eq!(present.encode().len(), HEADER_LEN + 51);
        let short = Bytes::from(vec![1; 32]);
        assert_eq!(
            Frame::parse(kind::PEER_PRESENT, short.clone()),
            Ok(Frame::PeerPresent { key: key(1), addr: None, flags: 0 })
        );
        let torn = Bytes::from(vec![1; 40]);
        assert_eq!(
            Frame::parse(kind::PEER_PRESENT, torn),
            Ok(Frame::PeerPresent { key: key(1), addr: None, flags: 0 })
        );
        assert_eq!(
            Frame::parse(kind::PEER_GONE, short),
            Ok(Frame::PeerGone { key: key(1), reason: GONE_DISCONNECTED })
        );
    }

    #[test]
    fn every_frame_survives_the_wire() {
        let packet = Bytes::from_static(b"packet");
        for frame in [
            Frame::ServerKey(DerpPublic::from_bytes([1; 32])),
            Frame::ClientInfo { key: key(1), sealed: packet.clone() },
            Frame::ServerInfo(packet.clone()),
            Frame::SendPacket { to: key(1), packet: packet.clone() },
            Frame::RecvPacket { from: key(1), packet: packet.clone() },
            Frame::KeepAlive,
            Frame::NotePreferred(false),
            Frame::PeerGone { key: key(2), reason: GONE_NOT_HERE },
            Frame::PeerPresent { key: key(2), addr: Some("[2001:db8::1]:9".parse().unwrap()), flags: 4 },
            Frame::ForwardPacket { from: key(1), to: key(2), packet },
            Frame::WatchConns,
            Frame::ClosePeer(key(3)),
            Frame::Ping([1; 8]),
            Frame::Pong([2; 8]),
            Frame::Health("slow".into()),
            Frame::Restarting { reconnect_in: 1, try_for: 2 },
        ] {
            assert_eq!(reparse(&frame), frame);
        }
    }

    #[test]
    fn lengths_are_refused_before_anything_is_buffered() {
        let long = |kind, len| plan_from_client(Header { kind, len });
        assert_eq!(long(kind::SEND_PACKET, 65_536 + 32), Ok(Plan::Take(65_536 + 32)));
        assert!(long(kind::SEND_PACKET, 65_536 + 33).is_err());
        assert!(long(kind::SEND_PACKET, 31).is_err());
        assert!(long(kind::PING, 1001).is_err());
        assert!(long(kind::PING, 7).is_err());
        assert!(long(kind::NOTE_PREFERRED, 2).is_err());
        assert_eq!(long(0x77, 1000), Ok(Plan::Skip(1000)));
        assert!(long(0x77, u32::MAX).is_err());
        for kind in 0..=255 {
            assert!(long(kind, u32::MAX).is_err());
            assert!(plan_from_server(Header { kind, len: u32::MAX }).is_err());
        }
    }

    #[test]
    fn a_wrong_greeting_is_named() {
        let bytes = Bytes::from(vec![0; 40]);
        assert_eq!(Frame::parse(kind::SERVER_KEY, bytes), Err(FrameError::Magic));
    }

    proptest! {
        #[test]
        fn no_payload_panics(kind in any::<u8>(), payload in proptest::collection::vec(any::<u8>(), 0..120)) {
            if let Ok(frame) = Frame::parse(kind, Bytes::from(payload)) {
                prop_assert_eq!(reparse(&frame), frame);
            }
        }
    }
}
