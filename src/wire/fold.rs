//! Decoding what a client sent: names without regard to case, depth and size bounded by the caller
//! and by the JSON parser's own recursion limit.

use std::collections::HashMap;
use std::sync::OnceLock;

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Why a request body was refused.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON, too deep, or a field of the wrong type.
    #[error("the request is not the expected JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The spellings Go prints, of every field a client may send in another case (tailscale-rs sends
/// `HostInfo`, `IpnVersion`, `Os` and more; Go matches them all).
const FIELDS: &[&str] = &[
    "Version",
    "NodeKey",
    "OldNodeKey",
    "NLKey",
    "Auth",
    "AuthKey",
    "Oauth2Token",
    "Expiry",
    "Followup",
    "Hostinfo",
    "Ephemeral",
    "NodeKeySignature",
    "SignatureType",
    "Timestamp",
    "DeviceCert",
    "Signature",
    "Tailnet",
    "Compress",
    "KeepAlive",
    "DiscoKey",
    "Stream",
    "MapSessionHandle",
    "MapSessionSeq",
    "Endpoints",
    "EndpointTypes",
    "TKAHead",
    "ReadOnly",
    "OmitPeers",
    "DebugFlags",
    "IPNVersion",
    "FrontendLogID",
    "BackendLogID",
    "OS",
    "OSVersion",
    "Container",
    "Env",
    "Distro",
    "DistroVersion",
    "DistroCodeName",
    "App",
    "Desktop",
    "Package",
    "DeviceModel",
    "PushDeviceToken",
    "Hostname",
    "ShieldsUp",
    "ShareeNode",
    "NoLogsNoSupport",
    "RemoteConfig",
    "WireIngress",
    "IngressEnabled",
    "AllowsUpdate",
    "Machine",
    "GoArch",
    "GoArchVar",
    "GoVersion",
    "RoutableIPs",
    "RequestTags",
    "WoLMACs",
    "Services",
    "NetInfo",
    "sshHostKeys",
    "Cloud",
    "Userspace",
    "UserspaceRouter",
    "AppConnector",
    "ServicesHash",
    "PeerRelay",
    "ExitNodeID",
    "Location",
    "TPM",
    "StateEncrypted",
    "MappingVariesByDestIP",
    "WorkingIPv6",
    "OSHasIPv6",
    "WorkingUDP",
    "WorkingICMPv4",
    "HavePortMap",
    "UPnP",
    "PMP",
    "PCP",
    "PreferredDERP",
    "LinkType",
    "DERPLatency",
    "FirewallMode",
    "Proto",
    "Port",
    "Description",
];

fn canonical(name: &str) -> Option<&'static str> {
    static TABLE: OnceLock<HashMap<String, &'static str>> = OnceLock::new();
    let table = TABLE.get_or_init(|| FIELDS.iter().map(|f| (f.to_ascii_lowercase(), *f)).collect());
    if name.len() > 64 {
        return None;
    }
    table.get(&name.to_ascii_lowercase()).copied()
}

fn fold(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(fold),
        Value::Object(map) => {
            let wrong: Vec<String> =
                map.keys().filter(|k| canonical(k).is_some_and(|c| c != k.as_str())).cloned().collect();
            for key in wrong {
                if let (Some(name), Some(v)) = (canonical(&key), map.remove(&key)) {
                    map.insert(name.to_owned(), v);
                }
            }
            map.values_mut().for_each(fold);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Decodes a client's request body.
///
/// # Errors
/// When the body is no JSON, nests deeper than 128, or a known field has the wrong type.
pub fn decode_request<T: DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    let mut value: Value = serde_json::from_slice(body)?;
    fold(&mut value);
    Ok(serde_json::from_value(value)?)
}
