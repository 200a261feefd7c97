//! The notification bus (dataplane.md 13.4): one JSON object a line; absent is unchanged.
//!
//! A watcher that does not read loses its place and is disconnected; nobody waits for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use tokio::sync::broadcast;

use crate::node::host::VERSION;
use crate::node::prefs::Prefs;
use crate::wire::Node;

/// Notifications a watcher may lag behind.
const LAG: usize = 128;

/// One notification, with the names the official client reads.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Notify {
    /// Our version.
    pub version: &'static str,
    /// In the first one of a watcher that asked for the initial state.
    #[serde(rename = "SessionID", skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// An error for the person.
    pub err_message: Option<String>,
    /// A login succeeded; always an empty object.
    pub login_finished: Option<BTreeMap<String, Value>>,
    /// The state's number.
    pub state: Option<i32>,
    /// Preferences.
    pub prefs: Option<Box<Prefs>>,
    /// Our own node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub self_change: Option<Box<Node>>,
    /// Status at the start, for watchers that asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_status: Option<Box<Value>>,
    /// Never sent again after the start.
    pub net_map: Option<Box<Value>>,
    /// Traffic.
    pub engine: Option<Box<Value>>,
    /// A person must open this.
    #[serde(rename = "BrowseToURL")]
    pub browse_to_url: Option<String>,
    /// Problems.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Box<Value>>,
}

impl Default for Notify {
    fn default() -> Self {
        Self {
            version: VERSION,
            session_id: None,
            err_message: None,
            login_finished: None,
            state: None,
            prefs: None,
            self_change: None,
            initial_status: None,
            net_map: None,
            engine: None,
            browse_to_url: None,
            health: None,
        }
    }
}

impl Notify {
    fn empty(&self) -> bool {
        self.err_message.is_none()
            && self.login_finished.is_none()
            && self.state.is_none()
            && self.prefs.is_none()
            && self.self_change.is_none()
            && self.browse_to_url.is_none()
            && self.health.is_none()
    }

    /// The line on the wire.
    #[must_use]
    pub fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// The bus.
#[derive(Debug, Clone)]
pub struct Bus(broadcast::Sender<Arc<Notify>>);

impl Default for Bus {
    fn default() -> Self {
        Self::new()
    }
}

impl Bus {
    /// A bus without watchers.
    #[must_use]
    pub fn new() -> Self {
        Self(broadcast::channel(LAG).0)
    }

    /// Sends; an empty notification is nothing.
    pub fn send(&self, notify: Notify) {
        if !notify.empty() {
            // Without watchers there is nobody to tell.
            let _ = self.0.send(Arc::new(notify));
        }
    }

    /// A new watcher.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Arc<Notify>> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_the_official_client_reads() {
        let notify = Notify { state: Some(6), browse_to_url: Some("https://x".into()), ..Notify::default() };
        let value: Value = serde_json::from_slice(&notify.line()).unwrap();
        assert_eq!(value["State"], 6);
        assert_eq!(value["BrowseToURL"], "https://x");
        assert_eq!(value["NetMap"], Value::Null);
        assert_eq!(value.get("SessionID"), None);
    }
}
