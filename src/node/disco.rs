//! disco messages: what peers say to find paths to each other (dataplane.md 4.1). The codec knows ping,
//! pong and call-me-maybe; other types and versions are ignored. Who may say what is `magicsock`'s matter.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::keys::{BOX_NONCE_LEN, DiscoPublic, NodePublic, SharedBox};

/// "TS" and a speech balloon.
pub(crate) const MAGIC: &[u8; 6] = b"TS\xf0\x9f\x92\xac";
/// Magic, sender and nonce: the least length of a disco datagram.
pub(crate) const HEADER_LEN: usize = 6 + 32 + BOX_NONCE_LEN;
/// Endpoints taken from one call-me-maybe (RELIABILITY.md row 47).
pub(crate) const MAX_ENDPOINTS: usize = 100;

/// Matches pongs to pings.
pub(crate) type TxId = [u8; 12];

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// Are you there by this way?
    Ping {
        /// Answered by a pong with the same.
        tx: TxId,
        /// The sender's node key; very old clients leave it out.
        node_key: Option<NodePublic>,
    },
    /// Yes, and I saw you as this.
    Pong {
        /// The ping's.
        tx: TxId,
        /// Where the ping came from.
        src: SocketAddr,
    },
    /// Ping me at these; I pinged you already.
    CallMeMaybe(Vec<SocketAddr>),
}

fn put_addr(out: &mut Vec<u8>, addr: SocketAddr) {
    let ip = match addr.ip() {
        IpAddr::V4(a) => a.to_ipv6_mapped(),
        IpAddr::V6(a) => a,
    };
    out.extend_from_slice(&ip.octets());
    out.extend_from_slice(&addr.port().to_be_bytes());
}

fn take_addr(b: &[u8]) -> Option<SocketAddr> {
    let ip: [u8; 16] = *b.first_chunk()?;
    let port = u16::from_be_bytes(*b.get(16..)?.first_chunk()?);
    Some(SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), port))
}

impl Message {
    /// The inner form, before sealing.
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Ping { tx, node_key } => {
                let mut out = vec![1, 0];
                out.extend_from_slice(tx);
                if let Some(key) = node_key {
                    out.extend_from_slice(key.as_bytes());
                }
                out
            }
            Self::Pong { tx, src } => {
                let mut out = vec![2, 0];
                out.extend_from_slice(tx);
                put_addr(&mut out, *src);
                out
            }
            Self::CallMeMaybe(endpoints) => {
                let mut out = vec![3, 0];
                for e in endpoints.iter().take(MAX_ENDPOINTS) {
                    put_addr(&mut out, *e);
                }
                out
            }
        }
    }

    /// Reads the inner form; `None` for what we do not know. Trailing bytes are allowed.
    pub(crate) fn decode(b: &[u8]) -> Option<Self> {
        let (&[kind, version], rest) = b.split_first_chunk()?;
        if version != 0 {
            return None;
        }
        match kind {
            1 => {
                let (tx, rest) = rest.split_first_chunk()?;
                let node_key =
                    rest.first_chunk::<32>().map(|k| NodePublic::from_bytes(*k)).filter(|k| !k.is_zero());
                Some(Self::Ping { tx: *tx, node_key })
            }
            2 => {
                let (tx, rest) = rest.split_first_chunk()?;
                let src = take_addr(rest)?;
                Some(Self::Pong { tx: *tx, src })
            }
            3 => {
                // A list of broken length counts as empty, as the official client reads it.
                if !rest.len().is_multiple_of(18) {
                    return Some(Self::CallMeMaybe(Vec::new()));
                }
                let all = rest.chunks_exact(18).take(MAX_ENDPOINTS);
                Some(Self::CallMeMaybe(all.filter_map(take_addr).collect()))
            }
            _ => None,
        }
    }
}

/// Whether a datagram is disco by its look.
pub(crate) fn is_disco(b: &[u8]) -> bool {
    b.len() >= HEADER_LEN && b.starts_with(MAGIC)
}

/// A datagram taken apart, not yet opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sealed<'a> {
    /// Who says to have sent it.
    pub(crate) sender: DiscoPublic,
    nonce: &'a [u8; BOX_NONCE_LEN],
    sealed: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// Splits a disco datagram.
    pub(crate) fn parse(b: &'a [u8]) -> Option<Self> {
        let rest = b.strip_prefix(MAGIC.as_slice())?;
        let (sender, rest) = rest.split_first_chunk::<32>()?;
        let (nonce, sealed) = rest.split_first_chunk::<BOX_NONCE_LEN>()?;
        Some(Self { sender: DiscoPublic::from_bytes(*sender), nonce, sealed })
    }

    /// Opens it with the box between us and the sender.
    pub(crate) fn open(&self, shared: &SharedBox) -> Option<Message> {
        Message::decode(&shared.open(self.nonce, self.sealed)?)
    }
}

/// Seals `message` into a datagram.
pub(crate) fn seal(
    sender: &DiscoPublic,
    shared: &SharedBox,
    nonce: &[u8; BOX_NONCE_LEN],
    message: &Message,
) -> Vec<u8> {
    let sealed = shared.seal(nonce, &message.encode());
    let mut out = Vec::with_capacity(HEADER_LEN + sealed.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(sender.as_bytes());
    out.extend_from_slice(nonce);
    out.extend_from_slice(&sealed);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Rng;
    use crate::keys::DiscoPrivate;

    const TX: TxId = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

    /// Vectors of dataplane.md, Appendix A.
    #[test]
    fn the_known_vectors() {
        let pong = Message::Pong { tx: TX, src: "2.3.4.5:1234".parse().unwrap() };
        assert_eq!(
            hex::encode(pong.encode()),
            "02000102030405060708090a0b0c00000000000000000000ffff0203040504d2"
        );
        let cmm = Message::CallMeMaybe(vec!["1.2.3.4:567".parse().unwrap()]);
        assert_eq!(hex::encode(cmm.encode()), "030000000000000000000000ffff010203040237");
        assert_eq!(Message::decode(&pong.encode()), Some(pong));
        assert_eq!(Message::decode(&cmm.encode()), Some(cmm));
    }

    #[test]
    fn a_sealed_ping_is_124_bytes_and_opens_only_for_its_receiver() {
        let mut rng = Rng::from_seed([1; 32]);
        let (a, b) = (DiscoPrivate::generate(&mut rng), DiscoPrivate::generate(&mut rng));
        let ping = Message::Ping { tx: TX, node_key: Some(NodePublic::from_bytes([9; 32])) };
        let datagram = seal(&a.public(), &a.shared(&b.public()), &rng.bytes(), &ping);
        assert_eq!(datagram.len(), 124);
        assert!(is_disco(&datagram));
        let sealed = Sealed::parse(&datagram).unwrap();
        assert_eq!(sealed.sender, a.public());
        assert_eq!(sealed.open(&b.shared(&a.public())), Some(ping));
        let c = DiscoPrivate::generate(&mut rng);
        assert_eq!(sealed.open(&c.shared(&a.public())), None);
    }

    #[test]
    fn broken_lists_are_empty_and_long_ones_are_cut() {
        assert_eq!(Message::decode(&[3, 0, 1]), Some(Message::CallMeMaybe(Vec::new())));
        let mut long = vec![3, 0];
        long.resize(2 + 18 * 10_000, 7);
        let Some(Message::CallMeMaybe(list)) = Message::decode(&long) else {
            panic!("a call-me-maybe");
        };
        assert_eq!(list.len(), MAX_ENDPOINTS);
    }

    #[test]
    fn unknown_types_and_versions_are_ignored() {
        assert_eq!(Message::decode(&[4, 0, 1, 2, 3]), None);
        assert_eq!(Message::decode(&[1, 1, 1, 2, 3]), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(b in proptest::collection::vec(any::<u8>(), 0..200), kind in 0_u8..5) {
            let _ = Message::decode(&b);
            let mut typed = vec![kind, 0];
            typed.extend_from_slice(&b);
            if let Some(m) = Message::decode(&typed) {
                prop_assert_eq!(Message::decode(&m.encode()), Some(m));
            }
            let mut whole = MAGIC.to_vec();
            whole.extend_from_slice(&b);
            let _ = Sealed::parse(&whole);
        }
    }
}
