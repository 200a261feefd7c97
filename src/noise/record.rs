//! Records (control.md 3.3): `04`, big-endian u16 length, ciphertext with its 16-byte tag; at most
//! 4096 bytes in all.
//!
//! The nonce is 4 zero bytes and a 64-bit **big-endian** counter from 0, one per direction; the Noise
//! specification says little-endian, which is why this is ours. No associated data, no rekey, and
//! counter 2^64-1 is never used.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use super::NoiseError;

/// Longest frame, header included.
pub const MAX_FRAME: usize = 4096;
/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 3;
/// Bytes of a frame's tag.
pub const TAG_LEN: usize = 16;
/// Most plaintext one record carries.
pub const MAX_PLAIN: usize = MAX_FRAME - HEADER_LEN - TAG_LEN;
/// Type byte of a record.
pub const TYPE_RECORD: u8 = 4;

/// The counter of one direction.
#[derive(Debug)]
struct Counter(u64);

impl Counter {
    fn next(&mut self) -> Result<Nonce, NoiseError> {
        let now = self.0;
        let Some(next) = now.checked_add(1) else {
            return Err(NoiseError::Exhausted);
        };
        self.0 = next;
        let mut nonce = [0_u8; 12];
        let (_, tail) = nonce.split_at_mut(4);
        tail.copy_from_slice(&now.to_be_bytes());
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

fn key(bytes: &[u8; 32]) -> Result<LessSafeKey, NoiseError> {
    UnboundKey::new(&CHACHA20_POLY1305, bytes).map(LessSafeKey::new).map_err(|_| NoiseError::Handshake)
}

/// The sending half.
#[derive(Debug)]
pub struct Sealer {
    key: LessSafeKey,
    counter: Counter,
}

impl Sealer {
    pub(super) fn new(bytes: &[u8; 32]) -> Result<Self, NoiseError> {
        Ok(Self { key: key(bytes)?, counter: Counter(0) })
    }

    /// Seals `plain` onto the end of `out`, in as many records as it takes; none for no bytes.
    ///
    /// # Errors
    /// When the counters are used up.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), NoiseError> {
        for part in plain.chunks(MAX_PLAIN) {
            self.seal_one(part, out)?;
        }
        Ok(())
    }

    fn seal_one(&mut self, part: &[u8], out: &mut Vec<u8>) -> Result<(), NoiseError> {
        let nonce = self.counter.next()?;
        let len = u16::try_from(part.len() + TAG_LEN).map_err(|_| NoiseError::RecordTooLong(part.len()))?;
        out.reserve(HEADER_LEN + part.len() + TAG_LEN);
        out.push(TYPE_RECORD);
        out.extend_from_slice(&len.to_be_bytes());
        let start = out.len();
        out.extend_from_slice(part);
        let Some(text) = out.get_mut(start..) else {
            return Err(NoiseError::Record);
        };
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::empty(), text)
            .map_err(|_| NoiseError::RecordTooLong(part.len()))?;
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct Opener {
    key: LessSafeKey,
    counter: Counter,
}

impl Opener {
    pub(super) fn new(bytes: &[u8; 32]) -> Result<Self, NoiseError> {
        Ok(Self { key: key(bytes)?, counter: Counter(0) })
    }

    /// The whole length of the frame that begins with `bytes`, header included; `None` while the
    /// header is not complete.
    ///
    /// # Errors
    /// When it is no record, or longer or shorter than a record may be.
    pub fn frame_len(bytes: &[u8]) -> Result<Option<usize>, NoiseError> {
        // The type is judged as soon as it is there: nothing else may follow a handshake.
        match bytes.first() {
            None => return Ok(None),
            Some(&TYPE_RECORD) => {}
            Some(&got) => {
                return Err(NoiseError::Kind { want: "record", got });
            }
        }
        let Some([_, hi, lo]) = bytes.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let whole = HEADER_LEN + usize::from(u16::from_be_bytes([*hi, *lo]));
        if whole > MAX_FRAME {
            return Err(NoiseError::RecordTooLong(whole));
        }
        if whole < HEADER_LEN + TAG_LEN {
            return Err(NoiseError::RecordTooShort(whole));
        }
        Ok(Some(whole))
    }

    /// Opens one whole frame in place and says how long its text is; the text begins at
    /// [`HEADER_LEN`]. Zero is legal and means: skip it.
    ///
    /// # Errors
    /// When it is not exactly one record, or was not sealed by the other side as the next one.
    pub fn open(&mut self, frame: &mut [u8]) -> Result<usize, NoiseError> {
        match Self::frame_len(frame)? {
            Some(whole) if whole == frame.len() => {}
            _ => return Err(NoiseError::Truncated),
        }
        let Some((_, sealed)) = frame.split_at_mut_checked(HEADER_LEN) else {
            return Err(NoiseError::Truncated);
        };
        let nonce = self.counter.next()?;
        let text = self.key.open_in_place(nonce, Aad::empty(), sealed).map_err(|_| NoiseError::Record)?;
        Ok(text.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair() -> (Sealer, Opener) {
        (Sealer::new(&[7; 32]).unwrap(), Opener::new(&[7; 32]).unwrap())
    }

    fn sealed(sealer: &mut Sealer, text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        sealer.seal(text, &mut out).unwrap();
        out
    }

    #[test]
    fn records_pass_in_order_beyond_counter_256() {
        let (mut sealer, mut opener) = pair();
        for n in 0..600_u32 {
            let mut frame = sealed(&mut sealer, &n.to_be_bytes());
            let len = opener.open(&mut frame).unwrap();
            assert_eq!(frame[HEADER_LEN..HEADER_LEN + len], n.to_be_bytes());
        }
    }

    #[test]
    fn a_changed_record_and_a_swapped_pair_are_refused() {
        let (mut sealer, _) = pair();
        let first = sealed(&mut sealer, b"first");
        let second = sealed(&mut sealer, b"second");
        for at in 0..first.len() {
            let (_, mut opener) = pair();
            let mut bad = first.clone();
            bad[at] ^= 1;
            assert!(opener.open(&mut bad).is_err(), "byte {at} was changed");
        }
        let (_, mut opener) = pair();
        let refused = opener.open(&mut second.clone());
        assert!(matches!(refused, Err(NoiseError::Record)));
    }

    #[test]
    fn a_record_cut_at_any_byte_is_refused() {
        let (mut sealer, _) = pair();
        let whole = sealed(&mut sealer, b"hello");
        for cut in 0..whole.len() {
            let (_, mut opener) = pair();
            let refused = opener.open(&mut whole[..cut].to_vec());
            assert!(matches!(refused, Err(NoiseError::Truncated)), "cut at {cut}");
        }
    }

    #[test]
    fn sizes_are_held_at_both_ends() {
        let (mut sealer, mut opener) = pair();
        let mut two = sealed(&mut sealer, &[9; MAX_PLAIN + 1]);
        assert_eq!(two.len(), MAX_FRAME + HEADER_LEN + 1 + TAG_LEN);
        let (a, b) = two.split_at_mut(MAX_FRAME);
        assert_eq!(opener.open(a).unwrap(), MAX_PLAIN);
        assert_eq!(opener.open(b).unwrap(), 1);

        let long = Opener::frame_len(&[TYPE_RECORD, 0x0f, 0xfe]);
        assert!(matches!(long, Err(NoiseError::RecordTooLong(4097))));
        let short = Opener::frame_len(&[TYPE_RECORD, 0, 15]);
        assert!(matches!(short, Err(NoiseError::RecordTooShort(18))));
        let other = Opener::frame_len(&[3]);
        assert!(matches!(other, Err(NoiseError::Kind { got: 3, .. })));
    }

    #[test]
    fn an_empty_record_is_legal_and_no_bytes_seal_to_nothing() {
        let (mut sealer, mut opener) = pair();
        assert!(sealed(&mut sealer, b"").is_empty());
        let mut empty = Vec::new();
        sealer.seal_one(b"", &mut empty).unwrap();
        assert_eq!(opener.open(&mut empty).unwrap(), 0);
    }

    #[test]
    fn the_last_counter_is_never_used() {
        let (mut sealer, mut opener) = pair();
        sealer.counter = Counter(u64::MAX - 1);
        opener.counter = Counter(u64::MAX - 1);
        let mut last = sealed(&mut sealer, b"last");
        assert_eq!(opener.open(&mut last).unwrap(), 4);
        let refused = sealer.seal(b"more", &mut Vec::new());
        assert!(matches!(refused, Err(NoiseError::Exhausted)));
        let refused = opener.open(&mut last);
        assert!(matches!(refused, Err(NoiseError::Exhausted)));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (_, mut opener) = pair();
            let _ = Opener::frame_len(&bytes);
            prop_assert!(opener.open(&mut bytes).is_err());
        }
    }
}
