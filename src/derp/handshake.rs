//! The DERP login (dataplane.md 1.3): greeting, ClientInfo box, ServerInfo box; both sides.
//!
//! Opening the ClientInfo box is the proof that the client holds the private half of the node key it
//! claims. Nonces come from the caller's `Rng`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::frame::{Frame, PROTOCOL_VERSION};
use crate::clock::Rng;
use crate::keys::{BOX_NONCE_LEN, DerpPrivate, DerpPublic, NodePrivate, NodePublic, SharedBox};

/// Why a login failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Another frame came than the one whose turn it is.
    #[error("the DERP login expects frame {0:#04x}")]
    Unexpected(u8),
    /// The box was not sealed by the claimed key.
    #[error("the DERP login box does not open with the claimed key")]
    Box,
    /// The text in the box is not the JSON it should be.
    #[error("the DERP login box does not hold the expected JSON")]
    Json,
}

/// What a client says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientInfo {
    /// Shared key of a mesh, 64 hex digits.
    #[serde(rename = "meshKey", skip_serializing_if = "String::is_empty")]
    pub mesh_key: String,
    /// Protocol version.
    #[serde(skip_serializing_if = "zero")]
    pub version: u32,
    /// Whether it answers pings.
    #[serde(rename = "CanAckPings")]
    pub can_ack_pings: bool,
    /// Whether it only measures.
    #[serde(rename = "IsProber", skip_serializing_if = "not")]
    pub is_prober: bool,
    /// Name of the program.
    #[serde(rename = "AppName", skip_serializing_if = "String::is_empty")]
    pub app_name: String,
}

/// What a relay says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerInfo {
    /// Protocol version.
    #[serde(skip_serializing_if = "zero")]
    pub version: u32,
    /// Rate the client should keep to; 0 is none.
    #[serde(rename = "TokenBucketBytesPerSecond", skip_serializing_if = "zero")]
    pub bytes_per_second: u64,
    /// Burst the client should keep to.
    #[serde(rename = "TokenBucketBytesBurst", skip_serializing_if = "zero")]
    pub bytes_burst: u64,
}

fn zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn not(value: &bool) -> bool {
    !value
}

impl ClientInfo {
    /// What `tsd node` says.
    #[must_use]
    pub fn ours() -> Self {
        Self { version: PROTOCOL_VERSION, can_ack_pings: true, ..Self::default() }
    }
}

impl ServerInfo {
    /// What our relay says.
    #[must_use]
    pub fn ours() -> Self {
        Self { version: PROTOCOL_VERSION, ..Self::default() }
    }
}

/// Client: answers the greeting of `relay`.
#[must_use]
pub fn client_info(key: &NodePrivate, relay: &DerpPublic, info: &ClientInfo, rng: &mut Rng) -> Frame {
    Frame::ClientInfo { key: key.public(), sealed: seal(&key.shared(relay), info, rng) }
}

/// Server: who logs in.
///
/// # Errors
/// When the frame is another one or its box does not open.
pub fn open_client_info(
    key: &DerpPrivate,
    frame: &Frame,
) -> Result<(NodePublic, ClientInfo), HandshakeError> {
    let Frame::ClientInfo { key: client, sealed } = frame else {
        return Err(HandshakeError::Unexpected(super::frame::kind::CLIENT_INFO));
    };
    // Anyone can seal for the zero key, and a key's holder for its other form.
    if client.is_zero() || !client.is_canonical() {
        return Err(HandshakeError::Box);
    }
    Ok((*client, open(&key.shared(client), sealed)?))
}

/// Server: ends the login of `client`.
#[must_use]
pub fn server_info(key: &DerpPrivate, client: &NodePublic, info: &ServerInfo, rng: &mut Rng) -> Frame {
    Frame::ServerInfo(seal(&key.shared(client), info, rng))
}

/// Client: what the relay wants.
///
/// # Errors
/// When the frame is another one or its box does not open.
pub fn open_server_info(
    key: &NodePrivate,
    relay: &DerpPublic,
    frame: &Frame,
) -> Result<ServerInfo, HandshakeError> {
    let Frame::ServerInfo(sealed) = frame else {
        return Err(HandshakeError::Unexpected(super::frame::kind::SERVER_INFO));
    };
    open(&key.shared(relay), sealed)
}

fn seal<T: Serialize>(shared: &SharedBox, info: &T, rng: &mut Rng) -> Bytes {
    let nonce: [u8; BOX_NONCE_LEN] = rng.bytes();
    // Structs of numbers and strings always serialise.
    let text = serde_json::to_vec(info).unwrap_or_default();
    let mut out = nonce.to_vec();
    out.extend_from_slice(&shared.seal(&nonce, &text));
    out.into()
}

fn open<T: for<'de> Deserialize<'de>>(shared: &SharedBox, sealed: &[u8]) -> Result<T, HandshakeError> {
    let (nonce, sealed) = sealed.split_first_chunk::<BOX_NONCE_LEN>().ok_or(HandshakeError::Box)?;
    let text = shared.open(nonce, sealed).ok_or(HandshakeError::Box)?;
    serde_json::from_slice(&text).map_err(|_| HandshakeError::Json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> (DerpPrivate, NodePrivate, Rng) {
        let mut rng = Rng::from_seed([3; 32]);
        (DerpPrivate::generate(&mut rng), NodePrivate::generate(&mut rng), rng)
    }

    #[test]
    fn both_sides_understand_each_other() {
        let (relay, node, mut rng) = keys();
        let hello = client_info(&node, &relay.public(), &ClientInfo::ours(), &mut rng);
        assert_eq!(open_client_info(&relay, &hello), Ok((node.public(), ClientInfo::ours())));
        let answer = server_info(&relay, &node.public(), &ServerInfo::ours(), &mut rng);
        assert_eq!(open_server_info(&node, &relay.public(), &answer), Ok(ServerInfo::ours()));
    }

    #[test]
    fn json_is_as_the_official_programs_write_it() {
        assert_eq!(
            serde_json::to_string(&ClientInfo::ours()).unwrap(),
            r#"{"version":2,"CanAckPings":true}"#
        );
        assert_eq!(serde_json::to_string(&ServerInfo::ours()).unwrap(), r#"{"version":2}"#);
    }

    #[test]
    fn claiming_a_key_of_somebody_else_fails() {
        let (relay, node, mut rng) = keys();
        let Frame::ClientInfo { sealed, .. } =
            client_info(&node, &relay.public(), &ClientInfo::ours(), &mut rng)
        else {
            panic!("another frame");
        };
        let mut other_form = *node.public().as_bytes();
        other_form[31] ^= 0x80;
        let other_form = NodePublic::from_bytes(other_form);
        for key in [NodePrivate::generate(&mut rng).public(), NodePublic::default(), other_form] {
            let stolen = Frame::ClientInfo { key, sealed: sealed.clone() };
            assert_eq!(open_client_info(&relay, &stolen), Err(HandshakeError::Box));
        }
        assert_eq!(open_client_info(&relay, &Frame::KeepAlive), Err(HandshakeError::Unexpected(2)));
    }

    #[test]
    fn a_box_without_json_is_refused() {
        let (relay, node, mut rng) = keys();
        let frame = Frame::ClientInfo {
            key: node.public(),
            sealed: seal(&node.shared(&relay.public()), &7, &mut rng),
        };
        assert_eq!(open_client_info(&relay, &frame), Err(HandshakeError::Json));
    }
}
