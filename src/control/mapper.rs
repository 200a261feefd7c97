//! What one node is told: the whole first message, and afterwards the smallest message that leads from
//! what its stream was [`Sent`] to the snapshot (control.md 6.3, 6.4, 10.9). Pure and ordered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::change::Change;
use super::dns_config;
use super::map_node::{self, Shown};
use super::register::{TAGGED_NAME, TAGGED_USER};
use super::state::Tailnet;
use super::types::Settings;
use crate::keys::{NodeId, UserId};
use crate::wire::{
    ClientVersion, DebugSettings, DerpMap, FilterRule, MapResponse, Node, PeerChange, SshPolicy, SshRule,
    UserProfile,
};

/// What a stream was last sent; the base of its deltas.
pub(super) struct Sent {
    /// Whose stream.
    pub(super) me: NodeId,
    /// The self node.
    pub(super) self_node: Node,
    peers: BTreeMap<NodeId, Shown>,
    users: BTreeMap<UserId, String>,
    filter: Digest,
    /// `None`: no SSH rules.
    ssh: Option<Digest>,
    /// It is shown no IPv4 addresses.
    no_ipv4: bool,
    derp_map: Arc<DerpMap>,
    settings: Arc<Settings>,
}

/// SHA-256 of something long that was sent: streams are many, and rules may be megabytes.
type Digest = [u8; 32];

fn digest<T: serde::Serialize + ?Sized>(value: &T) -> Digest {
    struct Sink(ring::digest::Context);
    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut sink = Sink(ring::digest::Context::new(&ring::digest::SHA256));
    // Small writes are gathered; neither they nor these types can fail.
    let mut gathered = std::io::BufWriter::with_capacity(4096, &mut sink);
    let written = serde_json::to_writer(&mut gathered, value).is_ok();
    let written = std::io::Write::flush(&mut gathered).is_ok() && written;
    drop(gathered);
    debug_assert!(written, "rules can always be written");
    let mut out = [0; 32];
    out.copy_from_slice(sink.0.finish().as_ref());
    out
}

/// The first message of a stream; `None` when there is no such node.
#[must_use]
pub(super) fn full(net: &Tailnet, me: NodeId, now: DateTime<Utc>) -> Option<(MapResponse, Sent)> {
    let self_node = map_node::self_node(net, me, now)?;
    let peers = peers(net, me, now);
    let (filter, ssh) = (rules(net, me), ssh_rules(net, me));
    let mut sent = Sent {
        me,
        self_node: self_node.clone(),
        peers: BTreeMap::new(),
        users: BTreeMap::new(),
        filter: digest(&filter[..]),
        ssh: (!ssh.is_empty()).then(|| digest(&ssh)),
        no_ipv4: net.compiled.without_ipv4(me),
        derp_map: Arc::clone(&net.derp_map),
        settings: Arc::clone(&net.settings),
    };
    let wanted = peers.values().map(|p| owner_of(&p.node));
    let users = wanted.chain([self_node.user]).collect();
    let wire: Vec<Node> = peers.values().map(|p| map_node::peer(net, p)).collect();
    let message = MapResponse {
        node: Some(self_node),
        derp_map: Some(DerpMap::clone(&net.derp_map)),
        // An empty list means "unchanged" to some clients and "none" to others (trap 7).
        peers: (!wire.is_empty()).then_some(wire),
        dns_config: Some(dns_config::build(&net.settings)),
        domain: net.settings.tailnet_name.clone(),
        collect_services: Some(false),
        packet_filters: Some(filters(&filter)),
        // Clients begin each stream without any.
        ssh_policy: (!ssh.is_empty()).then_some(SshPolicy { rules: ssh }),
        user_profiles: profiles(net, &users, &mut sent.users),
        control_time: Some(now),
        debug: Some(DebugSettings { disable_log_tail: true, ..DebugSettings::default() }),
        client_version: Some(ClientVersion { running_latest: true, ..ClientVersion::default() }),
        ..MapResponse::default()
    };
    sent.peers = peers;
    Some((message, sent))
}

/// What a stream must be told.
pub(super) enum Delta {
    /// Nothing differs.
    Nothing,
    /// Send this.
    Message(Box<MapResponse>),
    /// Send this, then end the stream: the node is no more.
    Last(Box<MapResponse>),
}

/// Whether the stream of `me` has to look at `change`, which leads from `before` to `net`: it saw a
/// changed node before or sees it now, or its own rules may differ.
#[must_use]
pub(super) fn concerns(me: NodeId, before: &Tailnet, net: &Tailnet, change: &Change) -> bool {
    let sees = |id: &NodeId| *id == me || before.compiled.visible(me, *id) || net.compiled.visible(me, *id);
    change.access.all
        || change.settings
        || change.users
        || change.access.filters.contains(&me)
        || change.nodes.union(&change.access.nodes).any(sees)
}

/// The way from `sent` to `net`; `sent` is brought up to date. The caller ends the stream when the
/// message cannot be written.
pub(super) fn delta(sent: &mut Sent, net: &Tailnet, change: &Change, now: DateTime<Utc>) -> Delta {
    if !net.nodes.contains_key(&sent.me) {
        return Delta::Last(Box::new(farewell(sent, now)));
    }
    let mut out = MapResponse::default();
    if !Arc::ptr_eq(&sent.settings, &net.settings) {
        settings_delta(sent, net, &mut out);
    }
    if !Arc::ptr_eq(&sent.derp_map, &net.derp_map) {
        if sent.derp_map != net.derp_map {
            out.derp_map = Some(DerpMap::clone(&net.derp_map));
        }
        sent.derp_map = Arc::clone(&net.derp_map);
    }
    let touched = &change.access;
    let all = change.settings || touched.all || touched.nodes.contains(&sent.me);
    let own_rules = all || touched.filters.contains(&sent.me);
    let no_ipv4 = net.compiled.without_ipv4(sent.me);
    // Without IPv4 itself it is shown none of anybody (SEMANTICS.md 10).
    let all = all || no_ipv4 != sent.no_ipv4;
    sent.no_ipv4 = no_ipv4;
    peers_delta(sent, net, change, all, now, &mut out);
    if own_rules {
        rules_delta(sent, net, &mut out);
    }
    let mut users: BTreeSet<UserId> = out.peers_changed.iter().flatten().map(|n| n.user).collect();
    if change.users || change.settings {
        users.extend(sent.users.keys());
    }
    // A peer's endpoint costs each stream no look at itself.
    let look = own_rules || change.nodes.contains(&sent.me);
    let self_node = if look { map_node::self_node(net, sent.me, now) } else { None };
    if let Some(self_node) = self_node
        && map_node::self_differs(&sent.self_node, &self_node)
    {
        users.insert(self_node.user);
        out.node = Some(self_node.clone());
        sent.self_node = self_node;
    }
    out.user_profiles = profiles(net, &users, &mut sent.users);
    if out == MapResponse::default() {
        return Delta::Nothing;
    }
    out.control_time = Some(now);
    Delta::Message(Box::new(out))
}

fn rules_delta(sent: &mut Sent, net: &Tailnet, out: &mut MapResponse) {
    let filter = rules(net, sent.me);
    let is = digest(&filter[..]);
    if is != sent.filter {
        out.packet_filters = Some(filters(&filter));
        sent.filter = is;
    }
    let ssh = ssh_rules(net, sent.me);
    let is = (!ssh.is_empty()).then(|| digest(&ssh));
    if is != sent.ssh {
        // Absent means unchanged: who loses all rules is sent an empty list (control.md 6.4).
        out.ssh_policy = Some(SshPolicy { rules: ssh });
        sent.ssh = is;
    }
}

/// The last message to a node that was removed: its key is over, so it asks its person to log in
/// (control.md 10.5).
fn farewell(sent: &Sent, now: DateTime<Utc>) -> MapResponse {
    let mut node = sent.self_node.clone();
    let past = now - chrono::Duration::minutes(1);
    node.key_expiry = Some(node.key_expiry.map_or(past, |at| at.min(past)));
    node.expired = true;
    MapResponse {
        node: Some(node),
        packet_filters: Some(filters(&Arc::from([]))),
        ssh_policy: sent.ssh.map(|_| SshPolicy::default()),
        peers_removed: (!sent.peers.is_empty()).then(|| sent.peers.keys().copied().collect()),
        control_time: Some(now),
        ..MapResponse::default()
    }
}

/// All peers as `me` sees them. A node without a disco key is held back until its first update: clients
/// cannot reach it, not even over a relay (trap 13). An expired node sees nobody.
fn peers(net: &Tailnet, me: NodeId, now: DateTime<Utc>) -> BTreeMap<NodeId, Shown> {
    if net.expired.contains(&me) {
        return BTreeMap::new();
    }
    let peers = net.compiled.peers(me);
    peers.into_iter().filter_map(|id| Some((id, map_node::shown(net, me, id, now)?))).collect()
}

fn rules(net: &Tailnet, me: NodeId) -> Arc<[FilterRule]> {
    if net.expired.contains(&me) {
        return Arc::from([]);
    }
    net.compiled.filter_rules(me)
}

fn ssh_rules(net: &Tailnet, me: NodeId) -> Vec<SshRule> {
    if net.expired.contains(&me) {
        return Vec::new();
    }
    net.compiled.client_ssh_rules(me)
}

/// Clears all chunks and sets ours, so that an empty filter really blocks (trap 8).
fn filters(rules: &Arc<[FilterRule]>) -> BTreeMap<String, Option<Vec<FilterRule>>> {
    BTreeMap::from([("*".to_owned(), None), ("base".to_owned(), Some(rules.to_vec()))])
}

fn owner_of(node: &crate::model::Node) -> UserId {
    node.owner.user().unwrap_or(TAGGED_USER)
}

/// Profiles of `wanted` that the stream does not have in this form yet.
fn profiles(
    net: &Tailnet,
    wanted: &BTreeSet<UserId>,
    sent: &mut BTreeMap<UserId, String>,
) -> Vec<UserProfile> {
    let mut out = Vec::new();
    for id in wanted {
        let name = if *id == TAGGED_USER {
            TAGGED_NAME.to_owned()
        } else {
            match net.users.get(id) {
                Some(user) => user.name.clone(),
                None => continue,
            }
        };
        if sent.get(id) == Some(&name) {
            continue;
        }
        sent.insert(*id, name.clone());
        out.push(UserProfile {
            id: *id,
            login_name: name.clone(),
            display_name: name,
            ..UserProfile::default()
        });
    }
    out
}

fn settings_delta(sent: &mut Sent, net: &Tailnet, out: &mut MapResponse) {
    let (old, new) = (&sent.settings, &net.settings);
    let dns = dns_config::build(new);
    if dns != dns_config::build(old) {
        out.dns_config = Some(dns);
    }
    if old.tailnet_name != new.tailnet_name {
        out.domain.clone_from(&new.tailnet_name);
    }
    if old.base_domain != new.base_domain {
        // Every full name is another now: all peers go out again.
        for shown in sent.peers.values_mut() {
            shown.stale = true;
        }
    }
    sent.settings = Arc::clone(new);
}

fn peers_delta(
    sent: &mut Sent,
    net: &Tailnet,
    change: &Change,
    all: bool,
    now: DateTime<Utc>,
    out: &mut MapResponse,
) {
    let mut whole = Vec::new();
    let mut patches: Vec<PeerChange> = Vec::new();
    let mut removed = Vec::new();
    let mut tell = |id: NodeId, new: Option<Shown>, peers: &mut BTreeMap<NodeId, Shown>| {
        let Some(new) = new else {
            if peers.remove(&id).is_some() {
                removed.push(id);
            }
            return;
        };
        match peers.get(&id) {
            Some(old) if *old == new => return,
            Some(old) if !old.stale => {
                let (before, after) = (map_node::peer(net, old), map_node::peer(net, &new));
                match map_node::patch(&before, &after) {
                    Some(patch) => patches.extend(patch),
                    None => whole.push(after),
                }
            }
            Some(_) | None => whole.push(map_node::peer(net, &new)),
        }
        peers.insert(id, new);
    };
    if all {
        let mut now_shown = peers(net, sent.me, now);
        let known: Vec<NodeId> = sent.peers.keys().copied().collect();
        for id in known {
            let new = now_shown.remove(&id);
            tell(id, new, &mut sent.peers);
        }
        for (id, new) in now_shown {
            tell(id, Some(new), &mut sent.peers);
        }
    } else if !net.expired.contains(&sent.me) {
        // Only these pairs can have changed.
        for id in change.nodes.union(&change.access.nodes).copied().filter(|id| *id != sent.me) {
            let visible = net.nodes.contains_key(&id) && net.compiled.visible(sent.me, id);
            let new = if visible { map_node::shown(net, sent.me, id, now) } else { None };
            tell(id, new, &mut sent.peers);
        }
    }
    whole.sort_by_key(|n| n.id);
    let some = |empty: bool| (!empty).then_some(());
    out.peers_changed = some(whole.is_empty()).map(|()| whole);
    out.peers_changed_patch = some(patches.is_empty()).map(|()| patches);
    out.peers_removed = some(removed.is_empty()).map(|()| removed);
}
