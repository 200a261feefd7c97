//! STUN binding messages as Tailscale speaks them (dataplane.md 2, RFC 8489).
//!
//! Requests are forty fixed bytes. The server side is strict: it answers only a request that carries
//! the SOFTWARE `tailnode` and ends with a correct FINGERPRINT, so that it is no use as a reflector.
//! The reading side of a client is tolerant about which address attribute a server sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Length of a transaction id.
pub const TXID_LEN: usize = 12;
/// Longest datagram that is looked at at all.
pub const MAX_DATAGRAM: usize = 1500;

const HEADER_LEN: usize = 20;
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
const BINDING_RESPONSE: [u8; 2] = [0x01, 0x01];
const ATTR_MAPPED: u16 = 0x0001;
const ATTR_XOR_MAPPED: u16 = 0x0020;
// Draft number of XOR-MAPPED-ADDRESS, still sent by some servers.
const ATTR_XOR_MAPPED_DRAFT: u16 = 0x8020;
const ATTR_SOFTWARE: u16 = 0x8022;
const ATTR_FINGERPRINT: u16 = 0x8028;
const SOFTWARE: &[u8] = b"tailnode";
// RFC 8489 14.7.
const FINGERPRINT_XOR: u32 = 0x5354_554e;
const FINGERPRINT_LEN: usize = 8;

fn fingerprint(before: &[u8]) -> u32 {
    crc32fast::hash(before) ^ FINGERPRINT_XOR
}

fn header(kind: [u8; 2], length: u16, txid: [u8; TXID_LEN]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_LEN + usize::from(length));
    out.extend_from_slice(&kind);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&COOKIE);
    out.extend_from_slice(&txid);
    out
}

/// Builds a binding request of 40 bytes.
#[must_use]
pub fn request(txid: [u8; TXID_LEN]) -> Vec<u8> {
    let mut out = header(BINDING_REQUEST, 20, txid);
    out.extend_from_slice(&ATTR_SOFTWARE.to_be_bytes());
    out.extend_from_slice(&8_u16.to_be_bytes());
    out.extend_from_slice(SOFTWARE);
    let print = fingerprint(&out);
    out.extend_from_slice(&ATTR_FINGERPRINT.to_be_bytes());
    out.extend_from_slice(&4_u16.to_be_bytes());
    out.extend_from_slice(&print.to_be_bytes());
    out
}

/// Reads a binding request; `None` for everything a Tailscale client would not send.
#[must_use]
pub fn parse_request(bytes: &[u8]) -> Option<[u8; TXID_LEN]> {
    if bytes.len() > MAX_DATAGRAM || bytes.get(..2)? != BINDING_REQUEST {
        return None;
    }
    let (txid, attributes) = split(bytes)?;
    // Exactly one datagram, one message: nothing may follow the attributes.
    if bytes.len() != HEADER_LEN + attributes.len() {
        return None;
    }
    let mut software = false;
    let mut last = None;
    for attribute in Attributes(attributes) {
        let (kind, value) = attribute?;
        if kind == ATTR_SOFTWARE {
            if value != SOFTWARE {
                return None;
            }
            software = true;
        }
        last = Some((kind, value));
    }
    let (ATTR_FINGERPRINT, value) = last? else {
        return None;
    };
    let want = fingerprint(bytes.get(..bytes.len().checked_sub(FINGERPRINT_LEN)?)?);
    (software && value == want.to_be_bytes()).then_some(txid)
}

/// Builds the answer that tells `addr` to its owner; v4-in-v6 addresses are sent as IPv4.
#[must_use]
pub fn response(txid: [u8; TXID_LEN], addr: SocketAddr) -> Vec<u8> {
    let mut value = vec![0_u8];
    let port = addr.port() ^ u16::from_be_bytes([COOKIE[0], COOKIE[1]]);
    match addr.ip().to_canonical() {
        IpAddr::V4(ip) => {
            value.push(1);
            value.extend_from_slice(&port.to_be_bytes());
            value.extend(ip.octets().iter().zip(mask(&txid)).map(|(a, m)| a ^ m));
        }
        IpAddr::V6(ip) => {
            value.push(2);
            value.extend_from_slice(&port.to_be_bytes());
            value.extend(ip.octets().iter().zip(mask(&txid)).map(|(a, m)| a ^ m));
        }
    }
    // 8 or 20 bytes: no padding needed.
    let length = if value.len() == 8 { 8_u16 } else { 20 };
    let mut out = header(BINDING_RESPONSE, length + 4, txid);
    out.extend_from_slice(&ATTR_XOR_MAPPED.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&value);
    out
}

/// Reads a binding response; trailing bytes are ignored, v4-in-v6 addresses come out as IPv4.
#[must_use]
pub fn parse_response(bytes: &[u8]) -> Option<([u8; TXID_LEN], SocketAddr)> {
    if bytes.get(..2)? != BINDING_RESPONSE {
        return None;
    }
    let (txid, attributes) = split(bytes)?;
    let mut fallback = None;
    for attribute in Attributes(attributes) {
        // A broken tail does not spoil an address that came before it.
        let Some((kind, value)) = attribute else {
            break;
        };
        match kind {
            ATTR_XOR_MAPPED | ATTR_XOR_MAPPED_DRAFT => {
                if let Some(addr) = address(value, Some(&txid)) {
                    return Some((txid, addr));
                }
            }
            ATTR_MAPPED => fallback = fallback.or_else(|| address(value, None)),
            _ => {}
        }
    }
    fallback.map(|addr| (txid, addr))
}

/// Tells STUN from WireGuard and disco on a shared socket.
#[must_use]
pub fn is_stun(bytes: &[u8]) -> bool {
    bytes.len() >= HEADER_LEN
        && bytes.first().is_some_and(|b| b & 0xc0 == 0)
        && bytes.get(4..8) == Some(&COOKIE[..])
}

/// The transaction id and the attribute bytes the header announces.
fn split(bytes: &[u8]) -> Option<([u8; TXID_LEN], &[u8])> {
    if !is_stun(bytes) {
        return None;
    }
    let length = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    let txid = bytes.get(8..HEADER_LEN)?.try_into().ok()?;
    let attributes = bytes.get(HEADER_LEN..)?.get(..usize::from(length))?;
    Some((txid, attributes))
}

fn mask(txid: &[u8; TXID_LEN]) -> impl Iterator<Item = u8> {
    COOKIE.into_iter().chain(*txid)
}

fn address(value: &[u8], xor: Option<&[u8; TXID_LEN]>) -> Option<SocketAddr> {
    let family = *value.get(1)?;
    let mut port = u16::from_be_bytes(value.get(2..4)?.try_into().ok()?);
    if xor.is_some() {
        port ^= u16::from_be_bytes([COOKIE[0], COOKIE[1]]);
    }
    let unmask = |octets: &mut [u8]| {
        if let Some(txid) = xor {
            for (octet, m) in octets.iter_mut().zip(mask(txid)) {
                *octet ^= m;
            }
        }
    };
    let ip: IpAddr = match family {
        1 => {
            let mut octets: [u8; 4] = value.get(4..8)?.try_into().ok()?;
            unmask(&mut octets);
            Ipv4Addr::from(octets).into()
        }
        2 => {
            let mut octets: [u8; 16] = value.get(4..20)?.try_into().ok()?;
            unmask(&mut octets);
            IpAddr::from(Ipv6Addr::from(octets)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Walks attributes; yields one `None` and stops when the encoding is broken.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Option<(u16, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let one = take_attribute(self.0);
        self.0 = one.map_or(&[], |(_, _, rest)| rest);
        Some(one.map(|(kind, value, _)| (kind, value)))
    }
}

fn take_attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let kind = u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?);
    let length = usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?));
    let value = bytes.get(4..)?.get(..length)?;
    // Values are padded to four bytes; the length does not count the padding.
    let rest = bytes.get(4 + length.next_multiple_of(4)..)?;
    Some((kind, value, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TXID: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
    const REQUEST: &str = "000100142112a442000102030405060708090a0b802200087461696c6e6f6465802800048aabad90";
    const RESPONSE: &str = "0101000c2112a442000102030405060708090a0b00200008000183bbea12d545";

    fn with_fingerprint(mut message: Vec<u8>) -> Vec<u8> {
        let length = u16::try_from(message.len() - HEADER_LEN + FINGERPRINT_LEN).unwrap();
        message[2..4].copy_from_slice(&length.to_be_bytes());
        let print = fingerprint(&message);
        message.extend_from_slice(&[0x80, 0x28, 0, 4]);
        message.extend_from_slice(&print.to_be_bytes());
        message
    }

    #[test]
    fn requests_match_the_vector_of_dataplane_appendix_a() {
        assert_eq!(hex::encode(request(TXID)), REQUEST);
        assert_eq!(parse_request(&request(TXID)), Some(TXID));
    }

    #[test]
    fn responses_match_the_vector_of_dataplane_appendix_a() {
        let addr = "203.0.113.7:41641".parse().unwrap();
        assert_eq!(hex::encode(response(TXID, addr)), RESPONSE);
        assert_eq!(parse_response(&response(TXID, addr)), Some((TXID, addr)));
    }

    #[test]
    fn mapped_v4_is_told_as_v4() {
        let mapped = "[::ffff:203.0.113.7]:41641".parse().unwrap();
        assert_eq!(hex::encode(response(TXID, mapped)), RESPONSE);
    }

    #[test]
    fn a_reply_is_hardly_longer_than_its_request() {
        let v6 = response(TXID, "[2001:db8::1]:1".parse().unwrap());
        assert!(v6.len() * 10 <= request(TXID).len() * 11);
    }

    #[test]
    fn requests_of_other_software_or_without_the_right_end_are_refused() {
        let good = request(TXID);
        let mut software = good[..32].to_vec();
        software[24] = b'T';
        let mut doubled = good[..32].to_vec();
        doubled.extend_from_slice(&good[20..32]);
        doubled[32 + 4] = b'x';
        let mut bad_print = good.clone();
        bad_print[39] ^= 1;
        let mut trailing = good.clone();
        trailing.push(0);
        let mut after_print = good.clone();
        after_print.extend_from_slice(&good[20..32]);
        after_print[3] = 32;
        let bare = with_fingerprint(good[..20].to_vec());
        for bytes in [
            with_fingerprint(software),
            with_fingerprint(doubled),
            bad_print,
            trailing,
            after_print,
            bare,
            good[..39].to_vec(),
            good[..32].to_vec(),
            response(TXID, "1.2.3.4:5".parse().unwrap()),
        ] {
            assert_eq!(parse_request(&bytes), None, "{}", hex::encode(&bytes));
        }
    }

    #[test]
    fn a_request_over_the_datagram_limit_is_refused() {
        let mut long = request(TXID)[..32].to_vec();
        long.extend_from_slice(&[0x80, 0x99, 0x05, 0xc0]);
        long.extend_from_slice(&[0; 0x5c0]);
        assert_eq!(parse_request(&with_fingerprint(long)), None);
    }

    #[test]
    fn clients_take_the_draft_and_the_plain_address_too() {
        let mut draft = hex::decode(RESPONSE).unwrap();
        draft[20] = 0x80;
        let want = "203.0.113.7:41641".parse().unwrap();
        assert_eq!(parse_response(&draft), Some((TXID, want)));
        let mut plain = header(BINDING_RESPONSE, 12, TXID);
        plain.extend_from_slice(&[0, 1, 0, 8, 0, 1, 0xa2, 0xa9, 203, 0, 113, 7]);
        plain.extend_from_slice(b"trailing");
        assert_eq!(parse_response(&plain), Some((TXID, want)));
    }

    proptest! {
        #[test]
        fn addresses_round_trip(v6 in any::<bool>(), ip in any::<[u8; 16]>(), port in any::<u16>(), txid in any::<[u8; 12]>()) {
            let ip: IpAddr = if v6 {
                Ipv6Addr::from(ip).into()
            } else {
                Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3]).into()
            };
            let addr = SocketAddr::new(ip.to_canonical(), port);
            prop_assert_eq!(parse_response(&response(txid, addr)), Some((txid, addr)));
            prop_assert_eq!(parse_request(&request(txid)), Some(txid));
        }

        #[test]
        fn no_bytes_panic(kind in 0_usize..3, noise in proptest::collection::vec(any::<u8>(), 0..120)) {
            let mut bytes = match kind {
                0 => Vec::new(),
                1 => request(TXID)[..20].to_vec(),
                _ => response(TXID, "1.2.3.4:5".parse().unwrap())[..20].to_vec(),
            };
            bytes.extend_from_slice(&noise);
            let _ = (parse_request(&bytes), parse_response(&bytes), is_stun(&bytes));
        }
    }
}
