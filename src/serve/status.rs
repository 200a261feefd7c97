//! How the server stands: for the console's start page, `tsd status` and nobody else.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::api::types::{Fault, Status};
use crate::clock::Now;
use crate::control::service::Control;
use crate::derp::server::DerpServer;
use crate::stun::server::StunStats;
use crate::ui::StatusSource;

/// What changes only with start and reload.
#[derive(Debug, Clone, Default)]
pub(super) struct Fixed {
    /// What clients dial.
    pub url: String,
    /// `http [::]:8080, tls …`.
    pub listeners: String,
    /// State directory.
    pub state_dir: String,
    /// Leaf certificate's SHA-256.
    pub fingerprint: Option<String>,
    /// What does not work and why.
    pub warnings: Vec<String>,
}

/// The live view.
pub(super) struct Live {
    started: Now,
    control: Control,
    derp: DerpServer,
    stun: Arc<StunStats>,
    fixed: ArcSwap<Fixed>,
    reload_fault: Mutex<Option<String>>,
    renewal_fault: Mutex<Option<String>>,
}

impl Live {
    /// Begins to watch.
    #[must_use]
    pub(super) fn new(
        started: Now,
        control: Control,
        derp: DerpServer,
        stun: Arc<StunStats>,
        fixed: Fixed,
    ) -> Self {
        Self {
            started,
            control,
            derp,
            stun,
            fixed: ArcSwap::from_pointee(fixed),
            reload_fault: Mutex::new(None),
            renewal_fault: Mutex::new(None),
        }
    }

    /// Replaces what a reload changed.
    pub(super) fn set_fixed(&self, fixed: Fixed) {
        self.fixed.store(Arc::new(fixed));
    }

    /// What changes only with start and reload, as it stands.
    #[must_use]
    pub(super) fn fixed(&self) -> Arc<Fixed> {
        self.fixed.load_full()
    }

    /// Remembers why the last reload changed nothing, or that it worked.
    pub(super) fn set_reload_fault(&self, fault: Option<String>) {
        *self.reload_fault.lock() = fault;
    }

    /// Remembers why the certificate could not be renewed, or that it was.
    pub(super) fn set_renewal_fault(&self, fault: Option<String>) {
        *self.renewal_fault.lock() = fault;
    }

    /// Everything, for the admin socket.
    #[must_use]
    pub(super) fn status(&self) -> Status {
        let (fixed, control, derp) = (self.fixed.load(), self.control.stats(), self.derp.stats());
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            url: fixed.url.clone(),
            listeners: fixed.listeners.clone(),
            state_dir: fixed.state_dir.clone(),
            fingerprint: fixed.fingerprint.clone(),
            uptime_seconds: Now::read().mono.saturating_duration_since(self.started.mono).as_secs(),
            nodes: control.nodes,
            online: control.online,
            users: control.users,
            logins: control.logins,
            policy_version: control.policy_version,
            policy_fault: self.control.policy_fault(),
            broken_tests: self.control.broken_tests().into_iter().map(Fault::from).collect(),
            derp_connections: derp.connections,
            derp_packets: derp.packets,
            derp_bytes: derp.bytes,
            stun_requests: self.stun.requests.load(Ordering::Relaxed),
            warnings: StatusSource::warnings(self),
        }
    }
}

impl StatusSource for Live {
    fn warnings(&self) -> Vec<String> {
        let mut out = self.fixed.load().warnings.clone();
        if let Some(fault) = self.reload_fault.lock().as_ref() {
            out.push(format!("the last reload changed nothing: {fault}"));
        }
        if let Some(fault) = self.renewal_fault.lock().as_ref() {
            out.push(format!("the certificate was not renewed: {fault}"));
        }
        out.extend(self.control.warnings());
        out
    }

    fn facts(&self) -> Vec<(String, String)> {
        let (fixed, derp) = (self.fixed.load(), self.derp.stats());
        let mut out = vec![
            ("Version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("Address".to_owned(), fixed.url.clone()),
            ("Listeners".to_owned(), fixed.listeners.clone()),
            ("State".to_owned(), fixed.state_dir.clone()),
            ("Relay connections".to_owned(), derp.connections.to_string()),
        ];
        if let Some(fingerprint) = &fixed.fingerprint {
            out.push(("Certificate SHA-256".to_owned(), fingerprint.clone()));
        }
        out
    }

    fn join_url(&self) -> String {
        self.fixed.load().url.clone()
    }
}
