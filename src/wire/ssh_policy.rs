//! SSH rules (control.md 7.9). Names are lower camel case here, as Go prints them.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{go_time, nil, zero};

/// All rules; first match wins. An empty list lets nobody in.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SshPolicy {
    /// In order.
    #[serde(deserialize_with = "nil")]
    pub rules: Vec<SshRule>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SshRule {
    /// Until when.
    #[serde(with = "go_time", skip_serializing_if = "Option::is_none")]
    pub rule_expires: Option<DateTime<Utc>>,
    /// Who; any one matches.
    #[serde(deserialize_with = "nil")]
    pub principals: Vec<SshPrincipal>,
    /// Requested login to local user; `=` is the same name but never root.
    #[serde(deserialize_with = "nil")]
    pub ssh_users: BTreeMap<String, String>,
    /// What then.
    pub action: Option<SshAction>,
    /// Environment globs.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub accept_env: Vec<String>,
}

/// Whom a rule speaks of; set fields are alternatives.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SshPrincipal {
    /// Stable id.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub node: String,
    /// Node address.
    #[serde(rename = "nodeIP", deserialize_with = "nil", skip_serializing_if = "zero")]
    pub node_ip: String,
    /// Login name.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub user_login: String,
    /// Everybody.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub any: bool,
}

/// What happens on a match.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SshAction {
    /// Shown to the person.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub message: String,
    /// Refuse.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub reject: bool,
    /// Let in.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub accept: bool,
    /// Nanoseconds.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub session_duration: i64,
    /// Agent forwarding.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub allow_agent_forwarding: bool,
    /// Ask this URL over Noise.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub hold_and_delegate: String,
    /// Local forwarding.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub allow_local_port_forwarding: bool,
    /// Remote forwarding.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub allow_remote_port_forwarding: bool,
    /// Where sessions are recorded, as `address:port`; the first that answers is used.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub recorders: Vec<String>,
    /// What happens when no recorder answers; nothing lets the session run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_recording_failure: Option<SshRecorderFailure>,
}

/// What a session that cannot be recorded is told. Names are upper camel case here.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SshRecorderFailure {
    /// Refuses a session that cannot begin to be recorded.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub reject_session_with_message: String,
    /// Ends a session whose recording broke.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub terminate_session_with_message: String,
}
