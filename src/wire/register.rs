//! Registration (control.md 5.1, 5.2).

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{CapVer, Hostinfo, go_bytes, go_time, nil, zero};
use crate::keys::{NodePublic, UserId};

/// What a client asks when it registers, logs out or follows up.
#[derive(Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RegisterRequest {
    /// Capability version.
    pub version: CapVer,
    /// The key to authorize; may be new.
    pub node_key: NodePublic,
    /// The key before, or zero.
    #[serde(deserialize_with = "nil")]
    pub old_node_key: NodePublic,
    /// Tailnet-lock key, kept as text: `nlpub:` and 64 hex digits.
    #[serde(rename = "NLKey", deserialize_with = "nil")]
    pub nl_key: String,
    /// Pre-auth key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<RegisterAuth>,
    /// In the past: log out. `None`: nothing asked.
    #[serde(with = "go_time")]
    pub expiry: Option<DateTime<Utc>>,
    /// The AuthURL received before; asks to block until it is decided.
    #[serde(deserialize_with = "nil")]
    pub followup: String,
    /// Full self-description.
    pub hostinfo: Option<Hostinfo>,
    /// Asks to be ephemeral.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub ephemeral: bool,
    /// Tailnet-lock signature.
    #[serde(with = "go_bytes")]
    pub node_key_signature: Option<Vec<u8>>,
    /// Tailnet hint.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub tailnet: String,
}

impl std::fmt::Debug for RegisterRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Carries a secret (the auth key), so only what identifies the request is shown.
        f.debug_struct("RegisterRequest")
            .field("version", &self.version)
            .field("node_key", &self.node_key)
            .field("old_node_key", &self.old_node_key)
            .field("has_auth", &self.auth.is_some())
            .field("expiry", &self.expiry)
            .field("followup", &!self.followup.is_empty())
            .finish_non_exhaustive()
    }
}

/// The secret part of a registration.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RegisterAuth {
    /// Pre-auth key, verbatim.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub auth_key: String,
}

impl std::fmt::Debug for RegisterAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RegisterAuth(***)")
    }
}

/// The answer. Every field is always printed: tailscale-rs refuses an answer that lacks one.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RegisterResponse {
    /// Owner.
    pub user: User,
    /// Identity used.
    pub login: Login,
    /// This node key may not be used; make a new one.
    pub node_key_expired: bool,
    /// True on success; tailscale-rs treats false as failure.
    pub machine_authorized: bool,
    /// Non-empty: authorization is pending, open this.
    #[serde(rename = "AuthURL", deserialize_with = "nil")]
    pub auth_url: String,
    /// An old signature to re-sign.
    #[serde(with = "go_bytes")]
    pub node_key_signature: Option<Vec<u8>>,
    /// Non-empty: failed; shown to the person.
    #[serde(deserialize_with = "nil")]
    pub error: String,
}

/// `User` of a register response.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct User {
    /// Id.
    #[serde(rename = "ID")]
    pub id: UserId,
    /// Shown name.
    #[serde(deserialize_with = "nil")]
    pub display_name: String,
    /// Picture.
    #[serde(rename = "ProfilePicURL", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub profile_pic_url: String,
}

/// `Login` of a register response.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Login {
    /// Id.
    #[serde(rename = "ID")]
    pub id: UserId,
    /// Who vouched for it.
    #[serde(deserialize_with = "nil")]
    pub provider: String,
    /// Login name.
    #[serde(deserialize_with = "nil")]
    pub login_name: String,
    /// Shown name.
    #[serde(deserialize_with = "nil")]
    pub display_name: String,
    /// Picture.
    #[serde(rename = "ProfilePicURL", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub profile_pic_url: String,
}
