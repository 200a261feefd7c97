//! What the server, the engine and the host's network tell the lifecycle.

use super::Lifecycle;
use crate::keys::NodePrivate;
use crate::node::core::{Command, News};
use crate::node::engine::Underlay;
use crate::node::localapi::notify::Notify;
use crate::wire::MapResponse;

impl Lifecycle {
    /// Takes from a map message what the state depends on.
    pub(super) fn learn(&mut self, map: &MapResponse) {
        let told = &mut self.told;
        if let Some(node) = &map.node {
            if told.self_node.as_ref() != Some(node) {
                self.bus.send(Notify { self_change: Some(Box::new(node.clone())), ..Notify::default() });
            }
            told.self_node = Some(node.clone());
        }
        if let Some(derp_map) = &map.derp_map {
            told.derp_map = derp_map.clone();
        }
        if let Some(dns) = &map.dns_config {
            told.dns = dns.clone();
        }
        if !map.domain.is_empty() {
            told.domain.clone_from(&map.domain);
        }
        if let Some(health) = &map.health {
            told.health.clone_from(health);
        }
        if let Some(messages) = &map.display_messages {
            if messages.get("*").is_some_and(Option::is_none) {
                told.messages.clear();
            }
            for (id, message) in messages.iter().filter(|(id, _)| *id != "*") {
                match message {
                    Some(m) => told.messages.insert(id.clone(), format!("{}: {}", m.title, m.text)),
                    None => told.messages.remove(id),
                };
            }
        }
        self.learn_profile(map);
    }

    pub(super) fn learn_profile(&mut self, map: &MapResponse) {
        let (Some(node), Some(profile)) = (&self.told.self_node, &mut self.state.profile) else {
            return;
        };
        let mut new = profile.clone();
        new.node_id.clone_from(&node.stable_id.0);
        new.domain.clone_from(&self.told.domain);
        let name = node.name.trim_end_matches('.');
        new.magic_dns_name = name.split_once('.').map_or("", |(_, d)| d).to_owned();
        if let Some(user) = map.user_profiles.iter().find(|u| u.id == node.user) {
            new.user = user.clone();
        }
        if new != *profile {
            *profile = new;
            if let Err(e) = self.save() {
                self.trouble = e;
            }
        }
    }

    pub(super) async fn hear(&mut self, latest: News) {
        let (old, new) = (std::mem::take(&mut self.news), latest);
        let update = old.endpoints != new.endpoints || old.net_info != new.net_info;
        self.news = new;
        if update {
            self.refresh_request();
        }
    }

    pub(super) async fn link_change(&mut self) {
        let now = self.links.borrow().clone();
        let first = !self.links_told;
        self.links_told = true;
        // More addresses alone break nothing; a lost one or another way out may have broken everything.
        let old = std::mem::replace(&mut self.links_seen, now.clone());
        let lost = !old.addresses.is_subset(&now.addresses) || old.default_routes != now.default_routes;
        let major = !first && (lost || old.addresses.is_empty());
        let addresses = now.addresses.into_iter().collect();
        let news = Underlay::Interfaces { addresses, port_v4: self.ports.0, port_v6: self.ports.1, major };
        let _ = self.core.tell(Command::Underlay(news)).await;
        if let Some(client) = self.client.as_ref().filter(|_| major || !self.control_up) {
            client.reset();
        }
    }

    pub(super) async fn keep_netmap(&mut self) {
        self.keep_at = None;
        let Some(key) = self.state.node_key.as_ref().map(NodePrivate::public) else {
            return;
        };
        if let Some(writer) = self.writer.take() {
            let _ = writer.await;
        }
        let Ok(Some(map)) = self.core.ask(Command::Netmap).await else {
            return;
        };
        let writer = self.dir.netmap_writer();
        self.writer = Some(tokio::task::spawn_blocking(move || {
            if let Err(e) = writer.save(key, map) {
                tracing::warn!("the netmap cannot be kept: {e}");
            }
        }));
    }
}
