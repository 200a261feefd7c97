//! Sessions with the server as the lifecycle begins and ends them, and what they report.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::{KEEP_AFTER, Lifecycle};
use crate::keys::NodePrivate;
use crate::node::control::ControlClient;
use crate::node::core::{Command, News};
use crate::node::engine::{EngineConfig, Underlay};
use crate::node::host;
use crate::node::localapi::notify::Notify;
use crate::node::session::{self, Login, Reporter, SessionEvent};
use crate::wire::{CapVer, MapRequest, RegisterResponse, UserProfile};

impl Lifecycle {
    pub(super) fn stop_session(&mut self) {
        self.session.abort_all();
        self.session = JoinSet::new();
        self.session_id += 1;
        self.client = None;
        self.registering = false;
        self.control_up = false;
        self.auth_url.clear();
        self.trouble.clear();
    }

    pub(super) fn hostinfo(&self) -> crate::wire::Hostinfo {
        let net_info = self.news.net_info.clone();
        host::hostinfo(&self.state.prefs, &self.state.log_id, net_info)
    }

    pub(super) fn lock_key(&self) -> String {
        use ring::signature::{Ed25519KeyPair, KeyPair};
        let pair = Ed25519KeyPair::from_seed_unchecked(&*self.state.lock_seed);
        let public = pair.map(|p| hex::encode(p.public_key().as_ref()));
        format!("nlpub:{}", public.unwrap_or_else(|_| "0".repeat(64)))
    }

    pub(super) fn reporter(&self) -> Reporter {
        Reporter { session: self.session_id, to: self.report_tx.clone() }
    }

    /// Applies the kept netmap and talks to the server again.
    pub(super) async fn bring_up(&mut self) {
        self.configure_engine().await;
        if let Err(e) = self.register(false) {
            self.trouble = e;
        }
    }

    pub(super) async fn configure_engine(&mut self) {
        let Some(key) = self.state.node_key.clone() else {
            return;
        };
        let prefs = &self.state.prefs;
        let config = EngineConfig {
            disco_key: self.state.disco_key.clone(),
            accept_routes: prefs.route_all,
            accept_dns: prefs.corp_dns,
            shields_up: prefs.shields_up,
            node_key: key.clone(),
        };
        let kept = self.dir.load_netmap(&key.public());
        if let Some(map) = &kept {
            tracing::info!("using the kept netmap until the server answers");
            self.learn(map);
        }
        let _ = self.core.tell(Command::Configure(Some(Box::new((config, kept))))).await;
    }

    pub(super) async fn bring_down(&mut self) {
        self.stop_session();
        if self.keep_at.is_some() {
            self.keep_netmap().await;
        }
        let _ = self.core.tell(Command::Configure(None)).await;
    }

    /// Starts a registration: with the stored key, or with a new one for a person's login.
    pub(super) fn register(&mut self, new_key: bool) -> Result<(), String> {
        let url = self.state.prefs.control_url.clone();
        if url.is_empty() {
            return Err("no server is set: give --login-server URL".to_owned());
        }
        let client = match &self.client {
            Some(client) => client.clone(),
            None => {
                let machine = self.state.machine_key.clone();
                let rng = self.rng.fork();
                let client = ControlClient::new(&url, machine, self.options.clone(), rng);
                Arc::new(client.map_err(|e| e.to_string())?)
            }
        };
        self.client = Some(client.clone());
        let stored = self.state.node_key.clone();
        let usable = stored.clone().filter(|_| !new_key && !self.expired());
        let old_key = match &usable {
            Some(_) => self.state.old_node_key.clone(),
            None => stored,
        };
        let login = Login {
            key: usable.unwrap_or_else(|| NodePrivate::generate(&mut self.rng)),
            old_key,
            auth_key: self.auth_key.clone(),
            hostinfo: self.hostinfo(),
            lock_key: self.lock_key(),
            rng: self.rng.fork(),
        };
        self.registering = true;
        let report = self.reporter();
        self.session.spawn(session::register(client, login, report));
        Ok(())
    }

    pub(super) async fn report(&mut self, event: SessionEvent) {
        match event {
            SessionEvent::AuthUrl(url) => {
                self.trouble.clear();
                if self.state.node_key.is_none() || self.auth_key.is_some() {
                    tracing::info!("a person must approve this node: {url}");
                }
                self.auth_url = url;
            }
            SessionEvent::Registered(done) => {
                let (key, response) = *done;
                self.registered(key, response).await;
            }
            SessionEvent::Refused(text, done) => {
                tracing::warn!("the server refused: {text}");
                if done {
                    self.stop_session();
                    self.blocked = self.state.node_key.is_none();
                    self.auth_key = None;
                    self.key_login = false;
                }
                self.trouble.clone_from(&text);
                self.bus.send(Notify { err_message: Some(text), ..Notify::default() });
            }
            SessionEvent::Map(map, fresh) => {
                self.trouble.clear();
                self.learn(&map);
                let _ = self.core.tell(Command::Map(map, fresh)).await;
                if self.keep_at.is_none() {
                    self.keep_at = Some(tokio::time::Instant::now() + KEEP_AFTER);
                }
            }
            SessionEvent::Up(up) => {
                self.control_up = up;
                let news = Underlay::ControlUp(up);
                let _ = self.core.tell(Command::Underlay(news)).await;
            }
            SessionEvent::Trouble(text) => self.trouble = text,
        }
    }

    pub(super) async fn registered(&mut self, key: NodePrivate, response: RegisterResponse) {
        let changed = self.state.node_key.as_ref() != Some(&key);
        if changed {
            self.state.old_node_key = self.state.node_key.replace(key.clone());
            self.told.self_node = None;
        }
        let mut profile = self.state.profile.take().unwrap_or_default();
        if profile.id.is_empty() {
            profile.id = hex::encode(self.rng.bytes::<2>());
        }
        profile.user = UserProfile {
            id: response.user.id,
            login_name: response.login.login_name,
            display_name: response.login.display_name,
            profile_pic_url: response.login.profile_pic_url,
        };
        profile.control_url.clone_from(&self.state.prefs.control_url);
        self.state.profile = Some(profile);
        // Nothing is said before it is on disk: a lost key would be a lost node.
        if let Err(e) = self.save() {
            self.trouble = e;
        }
        let first = self.registering && (changed || self.auth_key.is_some());
        self.auth_key = None;
        self.auth_url.clear();
        self.registering = false;
        self.trouble.clear();
        if changed {
            self.news = News::default();
            self.configure_engine().await;
        } else if self.told.self_node.is_none() && self.news.generation == 0 {
            self.configure_engine().await;
        }
        if first {
            self.bus.send(Notify { login_finished: Some(BTreeMap::new()), ..Notify::default() });
        }
        let Some(client) = self.client.clone() else {
            return;
        };
        self.refresh_request();
        let (requests, report) = (self.request.subscribe(), self.reporter());
        let (core, rng) = (self.core.clone(), self.rng.fork());
        self.session.spawn(session::follow_map(client.clone(), requests.clone(), core, report, rng));
        let rng = self.rng.fork();
        self.session.spawn(session::send_updates(client, requests, rng));
    }

    /// The map request as it should be now; a change makes a lite update.
    pub(super) fn refresh_request(&self) {
        let Some(key) = &self.state.node_key else {
            return;
        };
        let (endpoints, endpoint_types) = self.news.endpoints.iter().copied().unzip();
        let request = MapRequest {
            version: CapVer::OURS,
            compress: "zstd".to_owned(),
            node_key: key.public(),
            disco_key: self.state.disco_key.public(),
            hostinfo: Some(self.hostinfo()),
            endpoints,
            endpoint_types,
            ..MapRequest::default()
        };
        self.request.send_if_modified(|old| {
            let changed = *old != request;
            *old = request;
            changed
        });
    }
}
