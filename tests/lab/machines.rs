//! Bare machines: they speak the control protocol without a daemon, many at a time.

use std::sync::Arc;

use tsd::clock::Rng;
use tsd::derp::client::DialOptions;
use tsd::keys::{MachinePrivate, NodePrivate};
use tsd::node::control::{ControlClient, ControlError};
use tsd::wire::{CapVer, Hostinfo, RegisterAuth, RegisterRequest, RegisterResponse};

use crate::world::Host;

/// One machine with its keys.
pub struct Machine {
    pub machine: MachinePrivate,
    pub node: NodePrivate,
    pub hostname: String,
    rng: Rng,
}

impl Machine {
    /// A new machine.
    pub fn new(hostname: &str) -> Self {
        let mut rng = Rng::from_os();
        Self {
            machine: MachinePrivate::generate(&mut rng),
            node: NodePrivate::generate(&mut rng),
            hostname: hostname.to_owned(),
            rng,
        }
    }

    /// A control client of this machine.
    pub fn client(&mut self, url: &str) -> ControlClient {
        let options = DialOptions { mark: None, roots: Arc::new(rustls::RootCertStore::empty()) };
        ControlClient::new(url, self.machine.clone(), options, self.rng.fork()).unwrap()
    }

    /// A registration with a key.
    pub fn request(&self, key: &str) -> RegisterRequest {
        RegisterRequest {
            version: CapVer::OURS,
            node_key: self.node.public(),
            auth: Some(RegisterAuth { auth_key: key.to_owned() }),
            hostinfo: Some(Hostinfo {
                hostname: self.hostname.clone(),
                os: "linux".into(),
                backend_log_id: "lab".into(),
                ..Hostinfo::default()
            }),
            ..RegisterRequest::default()
        }
    }

    /// Registers with a key.
    pub async fn register(&mut self, url: &str, key: &str) -> Result<RegisterResponse, ControlError> {
        let request = self.request(key);
        self.client(url).register(&request).await
    }
}

/// Runs async work inside a machine's network.
pub fn block_inside<T: Send + 'static, F>(host: &Host, work: impl FnOnce() -> F + Send + 'static) -> T
where
    F: Future<Output = T>,
{
    host.inside(move || {
        let _ = rustls::crypto::ring::default_provider().install_default();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work())
    })
    .join()
    .unwrap()
}
