//! `nodeAttrs` and the tailnet's options that reach a node as capabilities (SEMANTICS.md 10, control.md 9):
//! what a node is told about itself, the little that others are told, and which addresses it has.

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::Value;

use crate::model::Role;
use crate::wire::CapMap;

use super::ast::{Alias, AttrValue, File, NodeAttr, OneCgnatRoute, Spanned};
use super::ranges::Bits;
use super::resolve::{Ground, Resolver};

const FILE_SHARING: &str = "https://tailscale.com/cap/file-sharing";
const SSH: &str = "https://tailscale.com/cap/ssh";
const IS_ADMIN: &str = "https://tailscale.com/cap/is-admin";
const IS_OWNER: &str = "https://tailscale.com/cap/is-owner";
const AUTO_UPDATE: &str = "default-auto-update";
const DISABLE_IPV4: &str = "disable-ipv4";
const RANDOMIZE_PORT: &str = "randomize-client-port";
const SUGGEST_EXIT: &str = "suggest-exit-node";
const FUNNEL: &str = "funnel";
const CGNAT: &str = "one-cgnat?v=";
const CGNAT_ON: &str = "one-cgnat?v=true";
const CGNAT_OFF: &str = "one-cgnat?v=false";
/// Without it a client passes on no variable of a rule's `acceptEnv`.
const SSH_ENV: &str = "ssh-env-vars";
/// What comes with `funnel`: the ports, and that nobody gave this tailnet HTTPS certificates.
const FUNNEL_EXTRAS: [&str; 2] = [
    "https://tailscale.com/cap/funnel-ports?ports=443,8443,10000",
    "https://tailscale.com/cap/warn-funnel-no-https",
];
/// Attributes that clients read from their peers, and that are about the node rather than about somebody
/// else's rights. `suggest-exit-node` has a condition of its own.
const FOR_PEERS: [&str; 1] = ["dns-subdomain-resolve"];

/// What nodes carry in one world.
#[derive(Debug)]
pub(super) struct Table {
    file: Arc<File>,
    /// For each entry of `nodeAttrs`: whom it concerns.
    targets: Vec<Bits>,
    /// A rule of `ssh` has `acceptEnv`.
    accept_env: bool,
}

impl Table {
    /// Resolves the attributes of `file`.
    pub(super) fn new(file: &Arc<File>, ground: &Ground) -> Self {
        let resolver = Resolver { file, ground };
        let mut known: HashMap<&Alias, Bits> = HashMap::new();
        let mut targets = Vec::with_capacity(file.node_attrs.len());
        for entry in &file.node_attrs {
            let mut nodes = Bits::default();
            for Spanned { value: alias, .. } in &entry.target {
                nodes.add(known.entry(alias).or_insert_with(|| resolver.members(alias)));
            }
            targets.push(nodes);
        }
        Self {
            targets,
            accept_env: file.ssh.iter().any(|r| r.accept_env.as_ref().is_some_and(|e| !e.is_empty())),
            file: file.clone(),
        }
    }

    /// Entries that concern the node in `slot`, in order.
    fn entries(&self, slot: usize) -> impl Iterator<Item = &NodeAttr> {
        let entries = self.file.node_attrs.iter().zip(&self.targets);
        entries.filter(move |(_, nodes)| nodes.get(slot)).map(|(entry, _)| entry)
    }

    fn has(&self, slot: usize, attr: &str) -> bool {
        self.entries(slot).any(|e| e.attr.iter().any(|a| a == attr))
    }

    /// What the node in `slot` is told about itself.
    pub(super) fn self_caps(&self, ground: &Ground, slot: usize) -> CapMap {
        let role = ground.owner(slot).map(|owner| owner.role);
        let mut caps = CapMap::from([
            (FILE_SHARING.to_owned(), None),
            (SSH.to_owned(), None),
            (AUTO_UPDATE.to_owned(), Some(vec![Value::Bool(ground.frame.auto_update)])),
        ]);
        let mut add = |name: &str| {
            caps.entry(name.to_owned()).or_insert(None);
        };
        if role.is_some_and(|r| r.is(Role::Admin)) {
            add(IS_ADMIN);
        }
        // As captured: a tagged node counts as the owner's and not as an admin's. No client reads it.
        if role == Some(Role::Owner) || ground.tagged.get(slot) {
            add(IS_OWNER);
        }
        if self.accept_env {
            add(SSH_ENV);
        }
        if self.file.randomize_client_port {
            add(RANDOMIZE_PORT);
        }
        if self.file.disable_ipv4 {
            add(DISABLE_IPV4);
        }
        let mut own_cgnat = false;
        for attr in self.entries(slot).flat_map(|e| &e.attr) {
            add(attr);
            own_cgnat |= attr.starts_with(CGNAT);
            if attr == FUNNEL {
                FUNNEL_EXTRAS.into_iter().for_each(&mut add);
            }
        }
        // What an attribute says of one node goes before what the tailnet says of all.
        if !own_cgnat && is_mac(ground, slot) {
            match self.file.one_cgnat_route {
                OneCgnatRoute::Default => {}
                OneCgnatRoute::MacAlways => add(CGNAT_ON),
                OneCgnatRoute::MacNever => add(CGNAT_OFF),
            }
        }
        for (name, values) in self.entries(slot).flat_map(|e| &e.app) {
            caps.entry(name.clone()).or_insert(None).get_or_insert_default().extend(values.iter().cloned());
        }
        caps
    }

    /// What others are told about the node in `slot`.
    pub(super) fn peer_caps(&self, ground: &Ground, slot: usize) -> CapMap {
        let mut caps = CapMap::new();
        // Only of those that may be used as one: others would be suggested in vain.
        if ground.exits.get(slot) && self.has(slot, SUGGEST_EXIT) {
            caps.insert(SUGGEST_EXIT.to_owned(), None);
        }
        for attr in FOR_PEERS {
            if self.has(slot, attr) {
                caps.insert(attr.to_owned(), None);
            }
        }
        caps
    }

    /// Whether the node in `slot` goes without IPv4.
    pub(super) fn without_ipv4(&self, slot: usize) -> bool {
        self.file.disable_ipv4 || self.has(slot, DISABLE_IPV4)
    }

    /// Where new addresses of the node in `slot` come from.
    pub(super) fn ip_pool(&self, slot: usize) -> Vec<IpNet> {
        let mut out: Vec<IpNet> = Vec::new();
        for net in self.entries(slot).flat_map(|e| &e.ip_pool) {
            if !out.contains(net) {
                out.push(*net);
            }
        }
        out
    }
}

fn is_mac(ground: &Ground, slot: usize) -> bool {
    let os = ground.nodes.get(slot).and_then(|n| n.node.attributes.get("node:os"));
    matches!(os, Some(AttrValue::Text(os)) if os.eq_ignore_ascii_case("macos"))
}
