//! The handshake `Noise_IK_25519_ChaChaPoly_BLAKE2s` of control.md 3.3, both sides, as bytes in and
//! bytes out.
//!
//! snow runs the pattern; its transport state is not used because it counts little-endian, so both
//! sides leave with the raw split keys. The randomness is one ephemeral key handed in by the caller.
//! The Diffie-Hellman is our own thin one, because snow's does not refuse an all-zero result.

use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::NoiseError;
use super::record::{Opener, Sealer};
use crate::keys::{MachinePrivate, MachinePublic};
use crate::wire::CapVer;

/// Size of the initiation, with its version header.
pub const INITIATION_LEN: usize = 101;
/// Size of the response.
pub const RESPONSE_LEN: usize = 51;
/// Type byte of an initiation.
pub const TYPE_INITIATION: u8 = 1;
/// Type byte of a response.
pub const TYPE_RESPONSE: u8 = 2;
/// Type byte of an error, which may only stand in place of a response.
pub const TYPE_ERROR: u8 = 3;
/// Longest error text we send or keep.
pub const MAX_ERROR_TEXT: usize = 1024;

const PATTERN: &str = "Noise_IK_25519_ChaChaPoly_BLAKE2s";
const INITIATION_BODY: usize = 96;
const RESPONSE_BODY: usize = 48;

/// The two ends of a finished handshake's channel.
#[derive(Debug)]
pub struct Channel {
    /// What we send with.
    pub sealer: Sealer,
    /// What we receive with.
    pub opener: Opener,
    /// The channel-binding hash; equal on both sides.
    pub hash: [u8; 32],
}

/// The client between its initiation and the response.
pub struct Initiator {
    state: Box<HandshakeState>,
}

impl std::fmt::Debug for Initiator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Initiator(***)")
    }
}

impl Initiator {
    /// Writes the initiation for `server`. `ephemeral` must be fresh randomness.
    ///
    /// # Errors
    /// When the version does not fit the header or the server's key is weak.
    pub fn new(
        machine: &MachinePrivate,
        server: &MachinePublic,
        capver: CapVer,
        ephemeral: Zeroizing<[u8; 32]>,
    ) -> Result<(Self, [u8; INITIATION_LEN]), NoiseError> {
        let version = u16::try_from(capver.0).map_err(|_| NoiseError::VersionRange(capver))?;
        let prologue = prologue(version);
        let mut state = builder(ephemeral)
            .and_then(|b| b.prologue(prologue.as_bytes()))
            .and_then(|b| b.local_private_key(machine.expose()))
            .and_then(|b| b.remote_public_key(server.as_bytes()))
            .and_then(Builder::build_initiator)
            .map_err(fault)?;
        let mut body = [0_u8; INITIATION_BODY];
        state.write_message(&[], &mut body).map_err(fault)?;
        let mut out = [0_u8; INITIATION_LEN];
        let (header, rest) = out.split_at_mut(5);
        let [v1, v0] = version.to_be_bytes();
        header.copy_from_slice(&[v1, v0, TYPE_INITIATION, 0, INITIATION_BODY as u8]);
        rest.copy_from_slice(&body);
        let state = Box::new(state);
        Ok((Self { state }, out))
    }

    /// Reads the response and makes the channel.
    ///
    /// # Errors
    /// When the response is malformed or not made by the holder of the server's key.
    pub fn finish(mut self, response: &[u8]) -> Result<Channel, NoiseError> {
        let body = body_of(response, "response", RESPONSE_LEN, TYPE_RESPONSE)?;
        let mut none = [0_u8; RESPONSE_BODY];
        self.state.read_message(body, &mut none).map_err(fault)?;
        let (ours, theirs) = split(&mut self.state);
        Channel::new(&ours, &theirs, &self.state)
    }
}

/// What the server has after one initiation.
#[derive(Debug)]
pub struct Accepted {
    /// The bytes to answer.
    pub response: [u8; RESPONSE_LEN],
    /// The channel.
    pub channel: Channel,
    /// The machine key that was proven.
    pub machine: MachinePublic,
    /// The version in the prologue.
    pub capver: CapVer,
}

/// The server's whole handshake. `ephemeral` must be fresh randomness.
///
/// # Errors
/// When the initiation is malformed, too old, weak, or sealed for another server.
pub fn respond(
    initiation: &[u8],
    server: &MachinePrivate,
    ephemeral: Zeroizing<[u8; 32]>,
) -> Result<Accepted, NoiseError> {
    let size = NoiseError::Size { what: "initiation", want: INITIATION_LEN, got: initiation.len() };
    let Some((version, framed)) = initiation.split_first_chunk::<2>() else {
        return Err(size);
    };
    if initiation.len() != INITIATION_LEN {
        return Err(size);
    }
    let version = u16::from_be_bytes(*version);
    let capver = CapVer(version.into());
    if capver < CapVer::OLDEST {
        return Err(NoiseError::Version(capver));
    }
    let body = body_of(framed, "initiation", INITIATION_LEN - 2, TYPE_INITIATION)?;
    // The prologue is built from the version received: both sides then hash the same text, and a
    // version changed on the way makes the handshake fail.
    let prologue = prologue(version);
    let mut state = builder(ephemeral)
        .and_then(|b| b.prologue(prologue.as_bytes()))
        .and_then(|b| b.local_private_key(server.expose()))
        .and_then(Builder::build_responder)
        .map_err(fault)?;
    let mut none = [0_u8; INITIATION_BODY];
    state.read_message(body, &mut none).map_err(fault)?;
    let machine =
        state.get_remote_static().and_then(|k| <[u8; 32]>::try_from(k).ok()).ok_or(NoiseError::Handshake)?;
    let mut answer = [0_u8; RESPONSE_BODY];
    state.write_message(&[], &mut answer).map_err(fault)?;
    let mut response = [0_u8; RESPONSE_LEN];
    let (header, rest) = response.split_at_mut(3);
    header.copy_from_slice(&[TYPE_RESPONSE, 0, RESPONSE_BODY as u8]);
    rest.copy_from_slice(&answer);
    let (theirs, ours) = split(&mut state);
    Ok(Accepted {
        response,
        channel: Channel::new(&ours, &theirs, &state)?,
        machine: MachinePublic::from_bytes(machine),
        capver,
    })
}

/// The frame that tells a client why its initiation was refused.
#[must_use]
pub fn error_frame(text: &str) -> Vec<u8> {
    let mut end = text.len().min(MAX_ERROR_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = text.get(..end).unwrap_or_default();
    let len = u16::try_from(text.len()).unwrap_or(0);
    let mut out = Vec::with_capacity(3 + text.len());
    out.push(TYPE_ERROR);
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
    out
}

impl Channel {
    fn new(ours: &[u8; 32], theirs: &[u8; 32], state: &HandshakeState) -> Result<Self, NoiseError> {
        let hash = state.get_handshake_hash().try_into();
        Ok(Self {
            sealer: Sealer::new(ours)?,
            opener: Opener::new(theirs)?,
            hash: hash.map_err(|_| NoiseError::Handshake)?,
        })
    }
}

/// Client-to-server key, then server-to-client key.
fn split(state: &mut HandshakeState) -> (Zeroizing<[u8; 32]>, Zeroizing<[u8; 32]>) {
    let (c2s, s2c) = state.dangerously_get_raw_split();
    (Zeroizing::new(c2s), Zeroizing::new(s2c))
}

fn prologue(version: u16) -> String {
    format!("Tailscale Control Protocol v{version}")
}

/// Checks size, type and length of a 3-byte-header message and gives what is inside.
fn body_of<'a>(message: &'a [u8], what: &'static str, want: usize, kind: u8) -> Result<&'a [u8], NoiseError> {
    let size = |got| NoiseError::Size { what, want, got };
    let Some(([got, hi, lo], body)) = message.split_first_chunk::<3>() else {
        return Err(size(message.len()));
    };
    if *got != kind {
        return Err(NoiseError::Kind { want: what, got: *got });
    }
    let len = usize::from(u16::from_be_bytes([*hi, *lo]));
    if message.len() != want {
        return Err(size(message.len()));
    }
    if body.len() != len {
        return Err(size(want - body.len() + len));
    }
    Ok(body)
}

fn builder<'b>(ephemeral: Zeroizing<[u8; 32]>) -> Result<Builder<'b>, snow::Error> {
    let params: NoiseParams = PATTERN.parse()?;
    Ok(Builder::with_resolver(params, Box::new(Resolver(ephemeral))))
}

fn fault(e: snow::Error) -> NoiseError {
    match e {
        snow::Error::Dh => NoiseError::WeakKey,
        // Whatever else snow finds wrong with a message of the right size is a failed tag.
        _ => NoiseError::Handshake,
    }
}

/// snow's own hash and cipher, our Diffie-Hellman, and one ephemeral key for randomness.
struct Resolver(Zeroizing<[u8; 32]>);

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Once(Some(self.0.clone()))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::new(X25519::zero()) as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

/// Gives its 32 bytes once: the pattern draws exactly one ephemeral key per side.
struct Once(Option<Zeroizing<[u8; 32]>>);

impl Random for Once {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        let bytes = self.0.take().ok_or(snow::Error::Rng)?;
        if dest.len() != bytes.len() {
            return Err(snow::Error::Rng);
        }
        dest.copy_from_slice(&*bytes);
        Ok(())
    }
}

struct X25519 {
    secret: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl X25519 {
    fn zero() -> Self {
        Self { secret: Zeroizing::new([0; 32]), public: [0; 32] }
    }

    fn put(&mut self, secret: [u8; 32]) {
        self.public = PublicKey::from(&StaticSecret::from(secret)).to_bytes();
        self.secret = Zeroizing::new(secret);
    }
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, privkey: &[u8]) {
        // The builder only ever passes keys of our own types, which are 32 bytes.
        self.put(privkey.try_into().unwrap_or_default());
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut secret = [0_u8; 32];
        rng.try_fill_bytes(&mut secret)?;
        self.put(secret);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &*self.secret
    }

    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let theirs: [u8; 32] = pubkey.get(..32).and_then(|k| k.try_into().ok()).ok_or(snow::Error::Dh)?;
        let shared = StaticSecret::from(*self.secret).diffie_hellman(&PublicKey::from(theirs));
        if !shared.was_contributory() {
            return Err(snow::Error::Dh);
        }
        out.get_mut(..32).ok_or(snow::Error::Dh)?.copy_from_slice(shared.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
