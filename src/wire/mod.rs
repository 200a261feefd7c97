//! What crosses between clients and control, field for field, as official clients print and read it.
//!
//! Sources: control.md 0 and 5 to 7 (facts), the official Go structs (authority). Rules that hold for
//! every type here: unknown fields are ignored, absent equals zero, `null` equals empty, strings are
//! owned, and each field is printed or left out exactly as Go does it (`omitempty` per field).
//! Decode what a client sent with [`decode_request`], which matches names without regard to case.

mod derp_map;
mod dns_config;
mod filter_rule;
mod fold;
mod hostinfo;
mod map;
mod node;
mod register;
mod ssh_policy;

pub use derp_map::{DerpHomeParams, DerpMap, DerpNode, DerpRegion};
pub use dns_config::{DnsConfig, DnsRecord, Resolver};
pub use filter_rule::{CapGrant, FilterRule, NetPortRange, PortRange, SrcIps};
pub use fold::{DecodeError, decode_request};
pub use hostinfo::{Hostinfo, NetInfo, Service};
pub use map::{
    ClientVersion, DebugSettings, DisplayMessage, DisplayMessageAction, EndpointType, MapRequest,
    MapResponse, PingRequest, PingResponse, TkaInfo, UserProfile,
};
pub use node::{CapMap, Node, PeerChange};
pub use register::{Login, RegisterAuth, RegisterRequest, RegisterResponse, User};
pub use ssh_policy::{SshAction, SshPolicy, SshPrincipal, SshRecorderFailure, SshRule};

use serde::{Deserialize, Deserializer, Serialize};

/// A client's capability version; there is no server version (control.md 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CapVer(pub u32);

impl CapVer {
    /// The version `tsd node` speaks.
    pub const OURS: Self = Self(145);
    /// The oldest client we serve: release 1.80 (control.md 8).
    pub const OLDEST: Self = Self(113);
}

impl std::fmt::Display for CapVer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The answer to `GET /key?v=N` (control.md 2). Both members are always printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
pub struct ServerKeys {
    /// Always the zero key: nobody speaks the legacy protocol.
    pub legacy_public_key: crate::keys::MachinePublic,
    /// The server's Noise key.
    pub public_key: crate::keys::MachinePublic,
}

/// The early payload's JSON (control.md 3.4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EarlyNoise {
    /// Fresh per connection.
    pub node_key_challenge: crate::keys::ChallengePublic,
}

/// Reads `null` as the type's default, the way Go does.
pub(crate) fn nil<'de, D, T>(d: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// True for a default value; the serde form of Go's `omitempty` and `omitzero`.
pub(crate) fn zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Go's zero time, which means "not set".
const GO_ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// A time that Go prints always: `None` is printed as Go's zero time.
pub(crate) mod go_time {
    use chrono::{DateTime, Datelike, SecondsFormat, Utc};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(time: &Option<DateTime<Utc>>, s: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(t) => s.serialize_str(&t.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
            None => s.serialize_str(super::GO_ZERO_TIME),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<DateTime<Utc>>, D::Error> {
        let Some(text) = Option::<String>::deserialize(d)? else {
            return Ok(None);
        };
        if text.is_empty() {
            return Ok(None);
        }
        let time = DateTime::parse_from_rfc3339(&text).map_err(serde::de::Error::custom)?;
        Ok(Some(time.to_utc()).filter(|t| t.year() > 1))
    }
}

/// Bytes as standard base64, `null` when absent.
pub(crate) mod go_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, s: S) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(b) => s.serialize_str(&STANDARD.encode(b)),
            None => s.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Vec<u8>>, D::Error> {
        let Some(text) = Option::<String>::deserialize(d)? else {
            return Ok(None);
        };
        STANDARD.decode(text).map(Some).map_err(serde::de::Error::custom)
    }
}
