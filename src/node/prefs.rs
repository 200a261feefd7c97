//! Preferences as the official command line reads and writes them (dataplane.md 13.4).
//!
//! Names, order of printing and defaults are those of the official client, because its `up` compares
//! what it reads here with its own flags and refuses to go on when a field is missing. Masked edits
//! are applied field by field over the JSON form, so a new field cannot be forgotten in one place.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::wire::{UserProfile, nil, zero};

/// Yes, no, or not said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tri {
    /// Nothing said; printed as `null`.
    #[default]
    Unset,
    /// No.
    No,
    /// Yes.
    Yes,
}

impl Serialize for Tri {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unset => s.serialize_none(),
            Self::No => s.serialize_bool(false),
            Self::Yes => s.serialize_bool(true),
        }
    }
}

impl<'de> Deserialize<'de> for Tri {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        // Older clients print an unset value as an empty string.
        Ok(match Value::deserialize(d)? {
            Value::Bool(true) => Self::Yes,
            Value::Bool(false) => Self::No,
            Value::String(t) if t == "true" => Self::Yes,
            Value::String(t) if t == "false" => Self::No,
            _ => Self::Unset,
        })
    }
}

/// `AutoUpdate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AutoUpdate {
    /// Look for new versions.
    #[serde(deserialize_with = "nil")]
    pub check: bool,
    /// Install them.
    pub apply: Tri,
}

impl Default for AutoUpdate {
    fn default() -> Self {
        Self { check: true, apply: Tri::Unset }
    }
}

/// `AppConnector`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AppConnector {
    /// Offer it.
    #[serde(deserialize_with = "nil")]
    pub advertise: bool,
}

/// `Config`: the login, with every private key left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PublicPersist {
    /// Always the zero key.
    pub private_node_key: String,
    /// Always the zero key.
    pub old_private_node_key: String,
    /// Who is logged in.
    pub user_profile: UserProfile,
    /// Always the zero key.
    pub network_lock_key: String,
    /// Our stable id.
    #[serde(rename = "NodeID", deserialize_with = "nil")]
    pub node_id: String,
}

impl PublicPersist {
    /// The form shown to callers.
    #[must_use]
    pub fn new(user_profile: UserProfile, node_id: String) -> Self {
        let zero = "0".repeat(64);
        Self {
            private_node_key: format!("privkey:{zero}"),
            old_private_node_key: format!("privkey:{zero}"),
            user_profile,
            // An Ed25519 private key is twice as long as the others.
            network_lock_key: format!("nlpriv:{zero}{zero}"),
            node_id,
        }
    }
}

/// What the user wants of the node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Prefs {
    /// The coordination server; empty until the first `up`.
    #[serde(rename = "ControlURL", deserialize_with = "nil")]
    pub control_url: String,
    /// Take subnet routes of peers.
    #[serde(deserialize_with = "nil")]
    pub route_all: bool,
    /// Exit node by stable id.
    #[serde(rename = "ExitNodeID", deserialize_with = "nil")]
    pub exit_node_id: String,
    /// Exit node by address.
    #[serde(rename = "ExitNodeIP", deserialize_with = "nil")]
    pub exit_node_ip: String,
    /// Exit node by expression.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub auto_exit_node: String,
    /// The exit node before it was switched off.
    #[serde(deserialize_with = "nil")]
    pub internal_exit_node_prior: String,
    /// Keep the LAN reachable behind an exit node.
    #[serde(rename = "ExitNodeAllowLANAccess", deserialize_with = "nil")]
    pub exit_node_allow_lan_access: bool,
    /// Use the tailnet's DNS.
    #[serde(rename = "CorpDNS", deserialize_with = "nil")]
    pub corp_dns: bool,
    /// Run the SSH server.
    #[serde(rename = "RunSSH", deserialize_with = "nil")]
    pub run_ssh: bool,
    /// Run the web client.
    #[serde(deserialize_with = "nil")]
    pub run_web_client: bool,
    /// Be up.
    #[serde(deserialize_with = "nil")]
    pub want_running: bool,
    /// Logged out on purpose.
    #[serde(deserialize_with = "nil")]
    pub logged_out: bool,
    /// Refuse incoming connections.
    #[serde(deserialize_with = "nil")]
    pub shields_up: bool,
    /// Tags asked for.
    pub advertise_tags: Option<Vec<String>>,
    /// Name to report instead of the OS's.
    #[serde(deserialize_with = "nil")]
    pub hostname: String,
    /// A debugging aid of another platform.
    #[serde(rename = "NotepadURLs", deserialize_with = "nil")]
    pub notepad_urls: bool,
    /// Run without a session, on another platform.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub force_daemon: bool,
    /// Kept for completeness.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub egg: bool,
    /// Routes offered.
    pub advertise_routes: Option<Vec<ipnet::IpNet>>,
    /// Services offered.
    pub advertise_services: Option<Vec<String>>,
    /// Whether control is spoken to at all.
    pub sync: Tri,
    /// No source NAT for subnet routes.
    #[serde(rename = "NoSNAT", deserialize_with = "nil")]
    pub no_snat: bool,
    /// No stateful filtering of forwarded packets.
    #[serde(skip_serializing_if = "zero")]
    pub no_stateful_filtering: Tri,
    /// 0 off, 1 own chains only, 2 on.
    #[serde(deserialize_with = "nil")]
    pub netfilter_mode: i32,
    /// A user other than root who may command the daemon.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub operator_user: String,
    /// Shown name of the profile.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub profile_name: String,
    /// Updates.
    #[serde(deserialize_with = "nil")]
    pub auto_update: AutoUpdate,
    /// App connector.
    #[serde(deserialize_with = "nil")]
    pub app_connector: AppConnector,
    /// Report posture.
    #[serde(deserialize_with = "nil")]
    pub posture_checking: bool,
    /// Firewall backend.
    #[serde(deserialize_with = "nil")]
    pub netfilter_kind: String,
    /// Configuration from afar.
    #[serde(deserialize_with = "nil")]
    pub remote_config: bool,
    /// Shared folders.
    pub drive_shares: Option<Vec<Value>>,
    /// Peer-relay port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relay_server_port: Option<u16>,
    /// Peer-relay endpoints.
    #[serde(deserialize_with = "nil", skip_serializing_if = "zero")]
    pub relay_server_static_endpoints: Vec<String>,
    /// The login; filled when shown, never stored here.
    pub config: Option<PublicPersist>,
}

impl Default for Prefs {
    fn default() -> Self {
        Self {
            control_url: String::new(),
            route_all: false,
            exit_node_id: String::new(),
            exit_node_ip: String::new(),
            auto_exit_node: String::new(),
            internal_exit_node_prior: String::new(),
            exit_node_allow_lan_access: false,
            corp_dns: true,
            run_ssh: false,
            run_web_client: false,
            want_running: false,
            logged_out: false,
            shields_up: false,
            advertise_tags: None,
            hostname: String::new(),
            notepad_urls: false,
            force_daemon: false,
            egg: false,
            advertise_routes: None,
            advertise_services: None,
            sync: Tri::Unset,
            no_snat: false,
            no_stateful_filtering: Tri::Yes,
            netfilter_mode: 2,
            operator_user: String::new(),
            profile_name: String::new(),
            auto_update: AutoUpdate::default(),
            app_connector: AppConnector::default(),
            posture_checking: false,
            netfilter_kind: String::new(),
            remote_config: false,
            drive_shares: None,
            relay_server_port: None,
            relay_server_static_endpoints: Vec::new(),
            config: None,
        }
    }
}

/// Why preferences were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefsError {
    /// Not the JSON of preferences.
    #[error("these are no preferences: {0}")]
    Json(String),
    /// A mask names a field that does not exist.
    #[error("there is no preference {0:?}")]
    Unknown(String),
    /// Something this node cannot do yet.
    #[error("{0} is not supported yet by this node; leave it out")]
    Unsupported(&'static str),
    /// A hostname that is no hostname.
    #[error("{0:?} is no hostname: use letters, digits, '-' and '.', at most 253 characters")]
    Hostname(String),
    /// A tag that is no tag.
    #[error("{0:?} is not a tag: write tag: and a name, such as tag:server")]
    Tag(String),
}

impl Prefs {
    /// Applies a `MaskedPrefs`: only fields whose `<Field>Set` is true count; an absent value is zero.
    ///
    /// # Errors
    /// When a mask names an unknown field or a value has the wrong type; nothing is changed then.
    pub fn apply_masked(&mut self, masked: &Value) -> Result<(), PrefsError> {
        let Value::Object(edit) = masked else {
            return Err(PrefsError::Json("not an object".to_owned()));
        };
        let json = |e: serde_json::Error| PrefsError::Json(e.to_string());
        let Value::Object(mut now) = serde_json::to_value(&*self).map_err(json)? else {
            return Err(PrefsError::Json("not an object".to_owned()));
        };
        for (mask, set) in edit.iter().filter(|(k, _)| k.ends_with("Set")) {
            let field = mask.trim_end_matches("Set");
            match set {
                Value::Object(parts) => apply_parts(&mut now, edit, field, parts)?,
                Value::Bool(true) => {
                    if field == "InternalExitNodePrior" || field == "Config" || !known(field) {
                        return Err(PrefsError::Unknown(field.to_owned()));
                    }
                    now.insert(field.to_owned(), edit.get(field).cloned().unwrap_or_default());
                    // One way of naming the exit node replaces the other.
                    if field == "ExitNodeID" && edit.get("ExitNodeIPSet").is_none() {
                        now.insert("ExitNodeIP".to_owned(), Value::Null);
                    }
                    if field == "ExitNodeIP" && edit.get("ExitNodeIDSet").is_none() {
                        now.insert("ExitNodeID".to_owned(), Value::Null);
                    }
                }
                _ => {}
            }
        }
        *self = serde_json::from_value(Value::Object(now)).map_err(json)?;
        Ok(())
    }

    /// Whether this node can do what is asked.
    ///
    /// # Errors
    /// Names the first preference it cannot honour.
    pub fn check(&self) -> Result<(), PrefsError> {
        if self.run_ssh {
            return Err(PrefsError::Unsupported("the SSH server (--ssh)"));
        }
        if !self.exit_node_id.is_empty() || !self.exit_node_ip.is_empty() {
            return Err(PrefsError::Unsupported("an exit node (--exit-node)"));
        }
        let host_ok = |h: &str| {
            h.len() <= 253 && h.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '.' | '_'))
        };
        if !host_ok(&self.hostname) {
            let shown = self.hostname.chars().take(80).collect();
            return Err(PrefsError::Hostname(shown));
        }
        for tag in self.advertise_tags.iter().flatten() {
            let name = tag.strip_prefix("tag:").unwrap_or_default();
            let first = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic());
            if !first || name.len() > 63 {
                return Err(PrefsError::Tag(tag.chars().take(80).collect()));
            }
        }
        Ok(())
    }
}

/// `AutoUpdateSet` is an object of masks of its own.
fn apply_parts(
    now: &mut Map<String, Value>,
    edit: &Map<String, Value>,
    field: &str,
    parts: &Map<String, Value>,
) -> Result<(), PrefsError> {
    if field != "AutoUpdate" {
        return Err(PrefsError::Unknown(field.to_owned()));
    }
    for (mask, set) in parts {
        let part = mask.trim_end_matches("Set");
        if set != &Value::Bool(true) {
            continue;
        }
        if part != "Check" && part != "Apply" {
            return Err(PrefsError::Unknown(format!("{field}.{part}")));
        }
        let value = edit.get(field).and_then(|v| v.get(part)).cloned();
        if let Some(Value::Object(target)) = now.get_mut(field) {
            target.insert(part.to_owned(), value.unwrap_or_default());
        }
    }
    Ok(())
}

/// Every field of the official preferences, in its order of printing.
const FIELDS: &[&str] = &[
    "ControlURL",
    "RouteAll",
    "ExitNodeID",
    "ExitNodeIP",
    "AutoExitNode",
    "InternalExitNodePrior",
    "ExitNodeAllowLANAccess",
    "CorpDNS",
    "RunSSH",
    "RunWebClient",
    "WantRunning",
    "LoggedOut",
    "ShieldsUp",
    "AdvertiseTags",
    "Hostname",
    "NotepadURLs",
    "ForceDaemon",
    "Egg",
    "AdvertiseRoutes",
    "AdvertiseServices",
    "Sync",
    "NoSNAT",
    "NoStatefulFiltering",
    "NetfilterMode",
    "OperatorUser",
    "ProfileName",
    "AutoUpdate",
    "AppConnector",
    "PostureChecking",
    "NetfilterKind",
    "RemoteConfig",
    "DriveShares",
    "RelayServerPort",
    "RelayServerStaticEndpoints",
    "Config",
];

fn known(field: &str) -> bool {
    FIELDS.contains(&field)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_print_as_the_official_client_prints_them() {
        let text = serde_json::to_string(&Prefs::default()).unwrap();
        let expected = concat!(
            r#"{"ControlURL":"","RouteAll":false,"ExitNodeID":"","ExitNodeIP":"","#,
            r#""InternalExitNodePrior":"","ExitNodeAllowLANAccess":false,"CorpDNS":true,"#,
            r#""RunSSH":false,"RunWebClient":false,"WantRunning":false,"LoggedOut":false,"#,
            r#""ShieldsUp":false,"AdvertiseTags":null,"Hostname":"","NotepadURLs":false,"#,
            r#""AdvertiseRoutes":null,"AdvertiseServices":null,"Sync":null,"NoSNAT":false,"#,
            r#""NoStatefulFiltering":true,"NetfilterMode":2,"#,
            r#""AutoUpdate":{"Check":true,"Apply":null},"AppConnector":{"Advertise":false},"#,
            r#""PostureChecking":false,"NetfilterKind":"","RemoteConfig":false,"#,
            r#""DriveShares":null,"Config":null}"#
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn every_printed_field_is_maskable_and_none_is_missing() {
        let mut full = Prefs {
            auto_exit_node: "any".into(),
            force_daemon: true,
            egg: true,
            operator_user: "a".into(),
            profile_name: "b".into(),
            relay_server_port: Some(1),
            relay_server_static_endpoints: vec!["1.2.3.4:5".into()],
            ..Prefs::default()
        };
        full.config = Some(PublicPersist::default());
        let Value::Object(printed) = serde_json::to_value(full).unwrap() else {
            panic!("prefs are an object");
        };
        let mut names: Vec<&str> = printed.keys().map(String::as_str).collect();
        let mut known: Vec<&str> = FIELDS.to_vec();
        names.sort_unstable();
        known.sort_unstable();
        assert_eq!(names, known);
    }

    #[test]
    fn only_masked_fields_apply() {
        let mut prefs = Prefs::default();
        let edit = json!({"WantRunning":true,"WantRunningSet":true,"Hostname":"x","CorpDNS":false});
        prefs.apply_masked(&edit).unwrap();
        let expected = Prefs { want_running: true, ..Prefs::default() };
        assert_eq!(prefs, expected);
    }

    #[test]
    fn a_mask_without_a_value_sets_zero_and_auto_update_has_parts() {
        let mut prefs = Prefs { operator_user: "me".into(), ..Prefs::default() };
        let edit = json!({"OperatorUserSet":true,"AutoUpdateSet":{"CheckSet":true},
            "AutoUpdate":{"Check":false,"Apply":true}});
        prefs.apply_masked(&edit).unwrap();
        assert_eq!(prefs.operator_user, "");
        assert!(!prefs.auto_update.check);
        assert_eq!(prefs.auto_update.apply, Tri::Unset);
    }

    #[test]
    fn exit_node_by_id_clears_the_address() {
        let mut prefs = Prefs { exit_node_ip: "100.64.0.9".into(), ..Prefs::default() };
        let edit = json!({"ExitNodeID":"n1","ExitNodeIDSet":true});
        prefs.apply_masked(&edit).unwrap();
        assert_eq!(prefs.exit_node_ip, "");
        assert_eq!(prefs.exit_node_id, "n1");
    }

    #[test]
    fn a_bad_edit_changes_nothing() {
        let mut prefs = Prefs::default();
        let unknown = json!({"NoSuchSet":true});
        assert_eq!(prefs.apply_masked(&unknown), Err(PrefsError::Unknown("NoSuch".into())));
        let wrong = json!({"Hostname":7,"HostnameSet":true,"WantRunning":true,"WantRunningSet":true});
        assert!(prefs.apply_masked(&wrong).is_err());
        assert_eq!(prefs, Prefs::default());
    }

    #[test]
    fn what_the_node_cannot_do_is_refused_by_name() {
        let prefs = Prefs { run_ssh: true, ..Prefs::default() };
        assert!(prefs.check().unwrap_err().to_string().contains("--ssh"));
        assert_eq!(Prefs::default().check(), Ok(()));
    }
}
