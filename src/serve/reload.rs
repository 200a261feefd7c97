//! What changes in a running server: SIGHUP (configuration, policy file, certificate files) and the
//! renewal of certificates. All or nothing: everything that can be refused is checked before the first
//! thing changes, and what fails after that is taken back.

use std::sync::Arc;

use anyhow::anyhow;

use super::policy_file;
use super::start::{self, Server};
use super::status::Fixed;
use super::{cert, limits, ports, settings};
use crate::api;
use crate::clock::Now;
use crate::config::{Config, ConfigError};

impl Server {
    /// SIGHUP: configuration, policy and certificate files anew; with any fault the old stays.
    pub(super) async fn reload(&mut self, config: Result<Config, ConfigError>) {
        let fault = match self.try_reload(config).await {
            Ok(()) => {
                tracing::info!("configuration, policy and certificate are reloaded");
                None
            }
            Err(error) => {
                tracing::error!("reload changed nothing: {error:#}");
                Some(format!("{error:#}"))
            }
        };
        if fault.is_none() {
            self.live.set_renewal_fault(None);
        }
        self.live.set_reload_fault(fault);
    }

    /// Looks after the certificate of a long-running server: files that were replaced, the relay's
    /// meta certificate, and our own before it runs out.
    pub(super) async fn renew(&mut self) {
        let config = self.config.clone();
        let fault = self.take(config, None).await.err().map(|error| format!("{error:#}"));
        if let Some(fault) = &fault {
            tracing::error!("the certificate was not renewed: {fault}");
        }
        self.live.set_renewal_fault(fault);
    }

    async fn try_reload(&mut self, config: Result<Config, ConfigError>) -> anyhow::Result<()> {
        let config = config?;
        self.same_frame(&config)?;
        let policy = match &config.policy_file {
            Some(path) => Some(policy_file::read(&self.control, path, false).await?),
            None => None,
        };
        self.take(config, policy).await
    }

    /// Listeners and the like stand for a whole run; a changed one that is silently ignored would be a trap.
    fn same_frame(&self, new: &Config) -> anyhow::Result<()> {
        let old = &self.config;
        let fixed = [
            ("listen", old.listen == new.listen),
            ("tls_listen", old.tls_listen == new.tls_listen),
            ("stun_listen", old.stun_listen == new.stun_listen),
            ("log.format", old.log_format == new.log_format),
            ("state_dir", old.state_dir == new.state_dir),
        ];
        match fixed.iter().find(|(_, same)| !same) {
            Some((key, _)) => Err(anyhow!("{key}: cannot change in a running server; restart it")),
            None => Ok(()),
        }
    }

    async fn take(&mut self, config: Config, policy: Option<policy_file::PolicyFile>) -> anyhow::Result<()> {
        let mut world = self.world.clone();
        match &config.url {
            Some(url) => {
                world.url = url.clone();
                world.guessed = false;
            }
            // A guess is kept: addresses of interfaces come and go.
            None if world.guessed => {}
            None => {
                return Err(anyhow!("url: was removed; restart the server to have it guessed"));
            }
        }
        // Behind the checks above, for a new self-signed certificate is written here.
        let identity = match &self.certificate {
            Some(_) => Some(cert::load(&config, &world.url.host, &self.state, &self.relay_key, Now::read())?),
            None => None,
        };
        world.pin = start::pin(identity.as_ref(), &world.url);
        // A renewal mostly changes nothing that clients are told; it must not reach them all for that.
        if config != self.config || world != self.world {
            self.control.reload(settings::build(&config, &world)).await?;
        }
        if let Some(policy) = policy
            && let Err(error) = policy.apply(&self.control).await
        {
            self.control.reload(settings::build(&self.config, &self.world)).await?;
            return Err(error);
        }
        let mut fixed = Fixed::clone(&self.live.fixed());
        if let (Some(presented), Some(identity)) = (&self.certificate, identity) {
            fixed.fingerprint = Some(identity.fingerprint.clone());
            presented.replace(identity.certified);
        }
        fixed.url = world.url.to_string();
        fixed.warnings = self.port_warnings.clone();
        fixed.warnings.extend(ports::warnings(&config, &world.url, world.tls_port));
        self.live.set_fixed(fixed);
        self.facing.store(Arc::new(start::facing(&config, &world)));
        (self.set_level)(&config.log_level);
        self.world = world;
        self.config = config;
        Ok(())
    }

    /// Says stop to all, then waits for all, with a deadline.
    pub(super) async fn shutdown(mut self) {
        tracing::info!("stopping");
        self.stop.send_replace(true);
        let ending = async {
            // Streams end first, so that the doors' connections have nothing left to wait for; control
            // last closes the database.
            self.derp.shutdown().await;
            self.control.shutdown().await;
            while self.tasks.join_next().await.is_some() {}
        };
        if tokio::time::timeout(limits::STOP_DEADLINE, ending).await.is_err() {
            tracing::warn!("not everything ended in time; what was acknowledged is on disk all the same");
        }
        let _ = std::fs::remove_file(self.state.path().join(api::SOCKET_NAME));
    }
}
