//! Keys and ids: one type per key, so that a node key can never stand where a machine key is meant.
//!
//! Text forms are a prefix and lower-case hex (control.md 1); parsing demands the exact prefix and
//! length and takes upper-case hex too. Private halves have no `Display`, a redacted `Debug`, and are
//! wiped on drop. NaCl boxes for disco and DERP are made from precomputed [`SharedBox`]es, because
//! deriving the shared key costs about twenty times the sealing.

mod ids;

pub use ids::{NodeId, RegionId, StableId, UserId};

use crypto_box::SalsaBox;
use crypto_box::aead::Aead;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::clock::Rng;

/// Why a key text was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text does not start with the prefix of this kind of key.
    #[error("the key does not start with {0:?}")]
    Prefix(&'static str),
    /// Not exactly 64 hex digits after the prefix.
    #[error("the key is not 64 hex digits after {0:?}")]
    Hex(&'static str),
}

fn parse_hex(text: &str, prefix: &'static str) -> Result<[u8; 32], KeyError> {
    let digits = text.strip_prefix(prefix).ok_or(KeyError::Prefix(prefix))?;
    let mut out = [0_u8; 32];
    hex::decode_to_slice(digits, &mut out).map_err(|_| KeyError::Hex(prefix))?;
    Ok(out)
}

/// Compares two secrets in constant time; the only comparison allowed on them.
#[must_use]
pub fn ct_eq(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

macro_rules! public_key {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The text prefix of this kind of key.
            pub const PREFIX: &'static str = $prefix;

            /// From the raw 32 bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The raw 32 bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// True for the all-zero key, which stands for "none" on the wire.
            #[must_use]
            pub fn is_zero(&self) -> bool {
                self.0 == [0; 32]
            }

            /// 64 lower-case hex digits without prefix.
            #[must_use]
            pub fn untyped_hex(&self) -> String {
                hex::encode(self.0)
            }

            /// The short form for logs: `[AbCdE]`, empty for the zero key.
            #[must_use]
            pub fn short(&self) -> String {
                use base64::Engine as _;
                if self.is_zero() {
                    return String::new();
                }
                let text = base64::engine::general_purpose::STANDARD.encode(self.0);
                format!("[{}]", text.get(..5).unwrap_or_default())
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}{}", $prefix, hex::encode(self.0))
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}{}", $prefix, self.short())
            }
        }

        impl std::str::FromStr for $name {
            type Err = KeyError;
            fn from_str(s: &str) -> Result<Self, KeyError> {
                parse_hex(s, $prefix).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                // Go writes a zero key as prefix + zeros and tailscale-rs may leave it empty.
                let text = String::deserialize(d)?;
                if text.is_empty() {
                    return Ok(Self::default());
                }
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

macro_rules! private_key {
    ($(#[$doc:meta])* $name:ident, $public:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name(Zeroizing<[u8; 32]>);

        impl $name {
            /// The text prefix used when the key is stored.
            pub const PREFIX: &'static str = "privkey:";

            /// Makes a new key.
            #[must_use]
            pub fn generate(rng: &mut Rng) -> Self {
                Self::from_bytes(rng.bytes())
            }

            /// From raw bytes, which are clamped so that the key also works for NaCl boxes.
            #[must_use]
            pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
                bytes[0] &= 248;
                bytes[31] = (bytes[31] & 127) | 64;
                Self(Zeroizing::new(bytes))
            }

            /// The raw bytes, for the crypto underneath. Never print or log them.
            #[must_use]
            pub fn expose(&self) -> &[u8; 32] {
                &self.0
            }

            /// The public half.
            #[must_use]
            pub fn public(&self) -> $public {
                let secret = x25519_dalek::StaticSecret::from(*self.0);
                $public(x25519_dalek::PublicKey::from(&secret).to_bytes())
            }

            /// The text to store in a file of mode 0600. Never print or log it.
            #[must_use]
            pub fn expose_text(&self) -> Zeroizing<String> {
                Zeroizing::new(format!("{}{}", Self::PREFIX, hex::encode(*self.0)))
            }

            /// Reads the stored text.
            ///
            /// # Errors
            /// When prefix or length are wrong.
            pub fn parse_stored(text: &str) -> Result<Self, KeyError> {
                parse_hex(text.trim(), Self::PREFIX).map(Self::from_bytes)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($name), "(***)"))
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                ct_eq(&*self.0, &*other.0)
            }
        }

        impl Eq for $name {}
    };
}

public_key! {
    /// Identifies a device install to control; the Noise static key. Also the type of the server's
    /// own Noise public key.
    MachinePublic, "mkey:"
}
public_key! {
    /// A node's WireGuard and DERP identity; what a netmap calls a peer by.
    NodePublic, "nodekey:"
}
public_key! {
    /// A node's discovery identity.
    DiscoPublic, "discokey:"
}
public_key! {
    /// A relay's identity. It has no typed text form of its own on the wire.
    DerpPublic, "derpkey:"
}
public_key! {
    /// The per-connection challenge in the early payload.
    ChallengePublic, "chalpub:"
}

private_key! {
    /// Private half of [`MachinePublic`].
    MachinePrivate, MachinePublic
}
private_key! {
    /// Private half of [`NodePublic`].
    NodePrivate, NodePublic
}
private_key! {
    /// Private half of [`DiscoPublic`].
    DiscoPrivate, DiscoPublic
}
private_key! {
    /// Private half of [`DerpPublic`].
    DerpPrivate, DerpPublic
}
private_key! {
    /// Private half of [`ChallengePublic`].
    ChallengePrivate, ChallengePublic
}

/// Length of the nonce that stands in front of every box.
pub const BOX_NONCE_LEN: usize = 24;
/// Bytes a box adds to its text.
pub const BOX_OVERHEAD: usize = 16;

/// A precomputed NaCl box between one private and one public key. Cache it per pair.
pub struct SharedBox(SalsaBox);

impl std::fmt::Debug for SharedBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedBox(***)")
    }
}

impl SharedBox {
    fn new(secret: &[u8; 32], public: &[u8; 32]) -> Self {
        Self(SalsaBox::new(&crypto_box::PublicKey::from(*public), &crypto_box::SecretKey::from(*secret)))
    }

    /// Seals `text`: 16 bytes of tag, then the ciphertext.
    #[must_use]
    pub fn seal(&self, nonce: &[u8; BOX_NONCE_LEN], text: &[u8]) -> Vec<u8> {
        // XSalsa20 fails only past 2^70 bytes.
        self.0.encrypt(nonce.into(), text).unwrap_or_default()
    }

    /// Opens a box; `None` when it was not sealed by the other side with this nonce.
    #[must_use]
    pub fn open(&self, nonce: &[u8; BOX_NONCE_LEN], sealed: &[u8]) -> Option<Vec<u8>> {
        self.0.decrypt(nonce.into(), sealed).ok()
    }
}

impl DiscoPrivate {
    /// The box between us and `peer`.
    #[must_use]
    pub fn shared(&self, peer: &DiscoPublic) -> SharedBox {
        SharedBox::new(&self.0, &peer.0)
    }
}

impl NodePublic {
    /// True for the form that a private key gives. X25519 ignores the highest bit (RFC 7748 section 5), so
    /// whoever holds a key also "holds" the other form, which is another name to us.
    #[must_use]
    pub const fn is_canonical(&self) -> bool {
        let [.., last] = self.0;
        last & 0x80 == 0
    }
}

impl NodePrivate {
    /// The box between this node and a relay.
    #[must_use]
    pub fn shared(&self, relay: &DerpPublic) -> SharedBox {
        SharedBox::new(&self.0, &relay.0)
    }
}

impl DerpPrivate {
    /// The box between this relay and a node.
    #[must_use]
    pub fn shared(&self, node: &NodePublic) -> SharedBox {
        SharedBox::new(&self.0, &node.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_round_trip_and_kinds_do_not_mix() {
        let mut rng = Rng::from_seed([7; 32]);
        let node = NodePrivate::generate(&mut rng).public();
        assert_eq!(node.to_string().parse::<NodePublic>(), Ok(node));
        assert_eq!(node.to_string().parse::<MachinePublic>(), Err(KeyError::Prefix("mkey:")));
        assert_eq!("nodekey:12".parse::<NodePublic>(), Err(KeyError::Hex("nodekey:")));
    }

    #[test]
    fn private_keys_are_clamped_and_never_printed() {
        let key = MachinePrivate::from_bytes([0x22; 32]);
        // From the test vector of control.md 3.3, computed by another implementation.
        assert_eq!(
            key.public().untyped_hex(),
            "0faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20"
        );
        assert_eq!(format!("{key:?}"), "MachinePrivate(***)");
        assert_eq!(MachinePrivate::parse_stored(&key.expose_text()), Ok(key));
    }

    #[test]
    fn boxes_open_only_for_the_other_side() {
        let mut rng = Rng::from_seed([9; 32]);
        let (a, b) = (DiscoPrivate::generate(&mut rng), DiscoPrivate::generate(&mut rng));
        let nonce = rng.bytes();
        let sealed = a.shared(&b.public()).seal(&nonce, b"ping");
        assert_eq!(b.shared(&a.public()).open(&nonce, &sealed).as_deref(), Some(&b"ping"[..]));
        let other = DiscoPrivate::generate(&mut rng);
        assert_eq!(other.shared(&a.public()).open(&nonce, &sealed), None);
    }
}
