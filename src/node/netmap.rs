//! What control told us: ourselves, peers, relays, names, filter. Applies whole maps and deltas
//! (control.md 6.4) and says what changed. Control may be hostile: everything is bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use crate::clock::Now;
use crate::keys::{DiscoPublic, NodeId, UserId};
use crate::wire::{DerpMap, DnsConfig, FilterRule, MapResponse, Node, PeerChange, SshPolicy, UserProfile};

const MAX_PEERS: usize = 20_000;
/// What one node may bring along (RELIABILITY.md row 103); the official server gives two addresses.
const MAX_ADDRESSES: usize = 16;
const MAX_ALLOWED: usize = 10_000;
const MAX_ENDPOINTS: usize = 256;
const MAX_PROFILES: usize = 40_000;
const MAX_CHUNKS: usize = 10_000;
/// Control's clock counts only when it is further off than this (control.md 10.6).
const CLOCK_SLACK: TimeDelta = TimeDelta::minutes(1);
/// Before this, control's clock is nonsense: 2023-01-10.
const CLOCK_EPOCH: i64 = 1_673_308_800;

/// What a message changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Peers added or changed in whatever way.
    pub(crate) peers: BTreeSet<NodeId>,
    /// Peers that are gone.
    pub(crate) removed: BTreeSet<NodeId>,
    /// Names, addresses, routes or capabilities of nodes changed: tables must be built anew.
    pub(crate) tables: bool,
    /// The relays changed.
    pub(crate) derp: bool,
    /// DNS settings changed.
    pub(crate) dns: bool,
    /// The packet filter changed.
    pub(crate) filter: bool,
}

/// The netmap.
#[derive(Debug, Default)]
pub(crate) struct Netmap {
    /// Ourselves.
    pub(crate) node: Option<Node>,
    /// Peers.
    pub(crate) peers: BTreeMap<NodeId, Node>,
    /// Users.
    pub(crate) profiles: BTreeMap<UserId, UserProfile>,
    /// Relays.
    pub(crate) derp: DerpMap,
    /// DNS settings.
    pub(crate) dns: DnsConfig,
    /// Tailnet name.
    pub(crate) domain: String,
    chunks: BTreeMap<String, Arc<Vec<FilterRule>>>,
    /// Counts changes of the rules, so that the same rules told again are not compiled again.
    rules_version: u64,
    /// Capabilities that rules name as sources.
    cap_sources: BTreeSet<String>,
    ssh: Option<SshPolicy>,
    clock_offset: Option<TimeDelta>,
    fresh_pending: bool,
    /// It was said that peers are left out.
    full_told: bool,
}

/// A node as it is kept: cut to what one node may bring along.
fn bounded(node: &Node) -> Node {
    let too_much = node.addresses.len() > MAX_ADDRESSES
        || node.allowed_ips.as_ref().is_some_and(|l| l.len() > MAX_ALLOWED)
        || node.endpoints.len() > MAX_ENDPOINTS;
    let mut node = node.clone();
    if too_much {
        tracing::warn!(node = %node.id, "a node of the netmap has too many addresses or routes: it is cut");
        node.addresses.truncate(MAX_ADDRESSES);
        node.endpoints.truncate(MAX_ENDPOINTS);
        if let Some(list) = &mut node.allowed_ips {
            list.truncate(MAX_ALLOWED);
        }
    }
    node
}

/// Whether two versions of a node differ in what tables are built of.
fn differs_in_tables(a: &Node, b: &Node) -> bool {
    a.name != b.name
        || a.addresses != b.addresses
        || a.allowed_ips != b.allowed_ips
        || a.cap_map != b.cap_map
        || a.unsigned_peer_api_only != b.unsigned_peer_api_only
        || a.is_jailed != b.is_jailed
        || a.expired != b.expired
        || a.key_expiry != b.key_expiry
}

impl Netmap {
    /// Applies one message. A `fresh` one starts from nothing.
    pub(crate) fn apply(&mut self, m: &MapResponse, fresh: bool, now: Now) -> Changes {
        if let Some(theirs) = m.control_time {
            self.set_clock(theirs, now);
        }
        self.fresh_pending |= fresh;
        if m.keep_alive {
            return Changes::default();
        }
        let mut changes = Changes::default();
        // Lists are shared: nothing is copied.
        let rules_before = self.chunks.clone();
        if self.fresh_pending {
            if m.node.is_none() {
                tracing::warn!("the first map of a stream lacks ourselves and is ignored");
                return changes;
            }
            self.fresh_pending = false;
            self.start_over(m, &mut changes);
        }
        self.apply_peers(m, now, &mut changes);
        if let Some(node) = &m.node {
            changes.tables |= self.node.as_ref().is_none_or(|old| differs_in_tables(old, node));
            self.node = Some(bounded(node));
        }
        for profile in m.user_profiles.iter().take(MAX_PROFILES) {
            if self.profiles.len() < MAX_PROFILES || self.profiles.contains_key(&profile.id) {
                self.profiles.insert(profile.id, profile.clone());
            }
        }
        if let Some(derp) = &m.derp_map {
            changes.derp |= self.apply_derp(derp);
        }
        if let Some(dns) = &m.dns_config {
            changes.dns |= self.dns != *dns;
            self.dns = dns.clone();
        }
        if !m.domain.is_empty() {
            self.domain.clone_from(&m.domain);
        }
        self.apply_filter(m, &mut changes);
        if changes.filter {
            self.count_rules(&rules_before);
        }
        if let Some(ssh) = &m.ssh_policy {
            self.ssh = Some(ssh.clone());
        }
        changes
    }

    /// A new stream: what the message does not name is gone, except peers, which are compared.
    fn start_over(&mut self, m: &MapResponse, changes: &mut Changes) {
        if m.peers.as_ref().is_none_or(Vec::is_empty) {
            changes.removed = self.peers.keys().copied().collect();
            changes.tables |= !self.peers.is_empty();
            self.peers.clear();
        }
        changes.filter = !self.chunks.is_empty();
        self.chunks.clear();
        self.profiles.clear();
        if m.dns_config.is_none() {
            changes.dns |= self.dns != DnsConfig::default();
            self.dns = DnsConfig::default();
        }
        self.ssh = None;
    }

    fn set_clock(&mut self, theirs: DateTime<Utc>, now: Now) {
        let offset = theirs.signed_duration_since(now.wall);
        let plausible = theirs.timestamp() >= CLOCK_EPOCH;
        self.clock_offset = (plausible && offset.abs() > CLOCK_SLACK).then_some(offset);
    }

    fn put_peer(&mut self, node: &Node, changes: &mut Changes) {
        if node.id.0 == 0 || node.key.is_zero() {
            tracing::debug!("a peer without id or key is ignored");
            return;
        }
        match self.peers.get(&node.id) {
            Some(old) if old == node => return,
            Some(old) => changes.tables |= differs_in_tables(old, node),
            None if self.peers.len() >= MAX_PEERS => {
                if !std::mem::replace(&mut self.full_told, true) {
                    tracing::warn!("the network has more than {MAX_PEERS} nodes: some are left out");
                }
                return;
            }
            None => changes.tables = true,
        }
        changes.peers.insert(node.id);
        changes.removed.remove(&node.id);
        self.peers.insert(node.id, bounded(node));
    }

    fn apply_peers(&mut self, m: &MapResponse, now: Now, changes: &mut Changes) {
        // An empty list means unchanged; a first message without peers has removed them already.
        if let Some(peers) = m.peers.as_ref().filter(|p| !p.is_empty()) {
            let keep: BTreeSet<NodeId> = peers.iter().map(|p| p.id).collect();
            let gone = self.peers.keys().copied().filter(|id| !keep.contains(id));
            for id in gone.collect::<Vec<_>>() {
                self.remove_peer(id, changes);
            }
            for node in peers {
                self.put_peer(node, changes);
            }
            return;
        }
        for node in m.peers_changed.iter().flatten() {
            self.put_peer(node, changes);
        }
        for id in m.peers_removed.iter().flatten() {
            self.remove_peer(*id, changes);
        }
        for patch in m.peers_changed_patch.iter().flatten() {
            self.patch_peer(patch, changes);
        }
        for (id, seen) in m.peer_seen_change.iter().flatten() {
            if let Some(p) = self.peers.get_mut(id) {
                p.last_seen = seen.then_some(now.wall);
            }
        }
        for (id, online) in m.online_change.iter().flatten() {
            if let Some(p) = self.peers.get_mut(id) {
                p.online = Some(*online);
            }
        }
    }

    fn remove_peer(&mut self, id: NodeId, changes: &mut Changes) {
        if self.peers.remove(&id).is_some() {
            changes.peers.remove(&id);
            changes.removed.insert(id);
            changes.tables = true;
        }
    }

    fn patch_peer(&mut self, patch: &PeerChange, changes: &mut Changes) {
        let Some(old) = self.peers.get(&patch.node_id) else {
            return;
        };
        // A disco key from before the peer told us its new one by itself (control.md 6.4).
        let stale =
            patch.disco_key.is_some() && patch.online == Some(false) && patch.last_seen <= old.last_seen;
        if stale {
            return;
        }
        let mut node = old.clone();
        if patch.derp_region.0 != 0 {
            node.home_derp = patch.derp_region;
        }
        if patch.cap.0 != 0 {
            node.cap = patch.cap;
        }
        if let Some(caps) = &patch.cap_map {
            node.cap_map.clone_from(caps);
        }
        if !patch.endpoints.is_empty() {
            node.endpoints.clone_from(&patch.endpoints);
        }
        if let Some(key) = patch.key {
            node.key = key;
        }
        if patch.key_signature.is_some() {
            node.key_signature.clone_from(&patch.key_signature);
        }
        if let Some(disco) = patch.disco_key {
            node.disco_key = disco;
        }
        if patch.online.is_some() {
            node.online = patch.online;
        }
        if patch.last_seen.is_some() {
            node.last_seen = patch.last_seen;
        }
        if let Some(expiry) = patch.key_expiry {
            node.key_expiry = expiry;
        }
        self.put_peer(&node, changes);
    }

    fn apply_derp(&mut self, new: &DerpMap) -> bool {
        let before = self.derp.clone();
        // Empty regions and absent parameters mean unchanged.
        if !new.regions.is_empty() {
            self.derp.regions = new
                .regions
                .iter()
                .filter(|(id, r)| r.region_id == **id && id.0 != 0)
                .map(|(id, r)| (*id, r.clone()))
                .collect();
            self.derp.omit_default_regions = new.omit_default_regions;
        }
        if new.home_params.is_some() {
            self.derp.home_params.clone_from(&new.home_params);
        }
        before != self.derp
    }

    fn apply_filter(&mut self, m: &MapResponse, changes: &mut Changes) {
        if let Some(base) = &m.packet_filter {
            changes.filter = true;
            self.chunks.insert("base".to_owned(), Arc::new(base.clone()));
        }
        let Some(chunks) = &m.packet_filters else {
            return;
        };
        changes.filter = true;
        if chunks.get("*").is_some_and(Option::is_none) {
            self.chunks.clear();
        }
        for (name, rules) in chunks.iter().filter(|(name, _)| *name != "*") {
            match rules {
                Some(rules) if self.chunks.len() < MAX_CHUNKS => {
                    self.chunks.insert(name.clone(), Arc::new(rules.clone()));
                }
                Some(_) => tracing::warn!("the packet filter has too many parts: one is left out"),
                None => {
                    self.chunks.remove(name);
                }
            }
        }
    }

    /// Notes whether the rules are others than `before`.
    fn count_rules(&mut self, before: &BTreeMap<String, Arc<Vec<FilterRule>>>) {
        if self.chunks == *before {
            return;
        }
        self.rules_version += 1;
        let sources = self.chunks.values().flat_map(|list| list.iter()).flat_map(|r| r.src_ips.iter());
        self.cap_sources = sources.filter_map(|s| s.strip_prefix("cap:")).map(str::to_owned).collect();
    }

    /// Which rules these are: another number whenever they changed.
    pub(crate) const fn rules_version(&self) -> u64 {
        self.rules_version
    }

    /// Capabilities that rules name as sources.
    pub(crate) const fn cap_sources(&self) -> &BTreeSet<String> {
        &self.cap_sources
    }

    /// All filter rules, in order.
    pub(crate) fn rules(&self) -> impl Iterator<Item = &FilterRule> {
        self.chunks.values().flat_map(|list| list.iter())
    }

    /// Takes a disco key the peer told us itself.
    pub(crate) fn set_disco(&mut self, id: NodeId, disco: DiscoPublic) {
        if let Some(p) = self.peers.get_mut(&id) {
            p.disco_key = disco;
        }
    }

    /// The time by control's clock, by which peers expire.
    fn peer_time(&self, now: Now) -> DateTime<Utc> {
        self.clock_offset.and_then(|o| now.wall.checked_add_signed(o)).unwrap_or(now.wall)
    }

    /// Whether a peer's key has expired.
    pub(crate) fn is_expired(&self, node: &Node, now: Now) -> bool {
        node.expired || node.key_expiry.is_some_and(|t| t <= self.peer_time(now))
    }

    /// Whether our own key has expired; by our own clock (control.md 10.6).
    pub(crate) fn self_expired(&self, now: Now) -> bool {
        self.node.as_ref().is_some_and(|n| n.expired || n.key_expiry.is_some_and(|t| t <= now.wall))
    }

    /// How long until the next key expires.
    pub(crate) fn next_expiry(&self, now: Now) -> Option<std::time::Duration> {
        let peer_now = self.peer_time(now);
        let peers = self.peers.values().filter_map(|p| p.key_expiry);
        let peers = peers.filter(|t| *t > peer_now).map(|t| t.signed_duration_since(peer_now));
        let own = self.node.as_ref().and_then(|n| n.key_expiry);
        let own = own.filter(|t| *t > now.wall).map(|t| t.signed_duration_since(now.wall));
        peers.chain(own).min().and_then(|d| d.to_std().ok())
    }

    /// The MagicDNS suffix, without dots at the ends.
    pub(crate) fn suffix(&self) -> &str {
        let name = self.node.as_ref().map(|n| n.name.as_str()).unwrap_or_default();
        let suffix = name.split_once('.').map(|(_, s)| s).unwrap_or_default();
        suffix.trim_end_matches('.')
    }

    /// Our own addresses.
    pub(crate) fn own_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.node.iter().flat_map(|n| &n.addresses).map(ipnet::IpNet::addr)
    }

    /// Everything as one message, for keeping.
    pub(crate) fn snapshot(&self) -> Option<MapResponse> {
        let chunks = self.chunks.iter().map(|(n, r)| (n.clone(), Some(r.to_vec())));
        Some(MapResponse {
            node: Some(self.node.clone()?),
            derp_map: Some(self.derp.clone()),
            peers: Some(self.peers.values().cloned().collect()).filter(|p: &Vec<Node>| !p.is_empty()),
            dns_config: Some(self.dns.clone()),
            domain: self.domain.clone(),
            packet_filters: Some(chunks.collect()),
            user_profiles: self.profiles.values().cloned().collect(),
            ssh_policy: self.ssh.clone(),
            ..MapResponse::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{NodePublic, RegionId};
    use crate::wire::DerpRegion;

    fn node(id: u64) -> Node {
        Node {
            id: NodeId(id),
            key: NodePublic::from_bytes([id as u8; 32]),
            addresses: vec![format!("100.64.0.{id}/32").parse().unwrap()],
            ..Node::default()
        }
    }

    fn ids(list: &[u64]) -> BTreeSet<NodeId> {
        list.iter().copied().map(NodeId).collect()
    }

    fn first(peers: &[u64]) -> MapResponse {
        MapResponse {
            node: Some(node(1)),
            peers: Some(peers.iter().copied().map(node).collect()),
            packet_filter: Some(Vec::new()),
            ..MapResponse::default()
        }
    }

    fn started(peers: &[u64]) -> (Netmap, Now) {
        let (mut map, now) = (Netmap::default(), Now::read());
        map.apply(&first(peers), true, now);
        (map, now)
    }

    #[test]
    fn a_second_stream_is_compared_with_what_was() {
        let (mut map, now) = started(&[2, 3]);
        let same = map.apply(&first(&[2, 3]), true, now);
        assert!(same.peers.is_empty() && same.removed.is_empty() && !same.tables);
        let changes = map.apply(&first(&[3, 4]), true, now);
        assert_eq!((changes.peers, changes.removed), (ids(&[4]), ids(&[2])));
        let none = map.apply(&first(&[]), true, now);
        assert_eq!(none.removed, ids(&[3, 4]));
    }

    #[test]
    fn a_stream_must_start_with_ourselves_and_may_with_a_keep_alive() {
        let (mut map, now) = started(&[2]);
        let alive = MapResponse { keep_alive: true, ..MapResponse::default() };
        assert_eq!(map.apply(&alive, true, now), Changes::default());
        let lacking = MapResponse { peers: Some(vec![node(9)]), ..MapResponse::default() };
        assert_eq!(map.apply(&lacking, false, now), Changes::default());
        assert_eq!(map.apply(&first(&[3]), false, now).removed, ids(&[2]));
    }

    #[test]
    fn an_empty_peer_list_later_means_unchanged() {
        let (mut map, now) = started(&[2]);
        let delta = MapResponse { peers: Some(Vec::new()), ..MapResponse::default() };
        assert_eq!(map.apply(&delta, false, now), Changes::default());
        assert_eq!(map.peers.len(), 1);
    }

    #[test]
    fn patches_touch_what_they_name_and_a_stale_disco_key_is_dropped() {
        let (mut map, now) = started(&[2]);
        let patch =
            |p: PeerChange| MapResponse { peers_changed_patch: Some(vec![p]), ..MapResponse::default() };
        let move_home = PeerChange { node_id: NodeId(2), derp_region: RegionId(7), ..PeerChange::default() };
        let changes = map.apply(&patch(move_home), false, now);
        assert_eq!((changes.peers, changes.tables), (ids(&[2]), false));
        assert_eq!(map.peers[&NodeId(2)].home_derp, RegionId(7));
        let stale = PeerChange {
            node_id: NodeId(2),
            disco_key: Some(DiscoPublic::from_bytes([5; 32])),
            online: Some(false),
            ..PeerChange::default()
        };
        map.apply(&patch(stale), false, now);
        assert!(map.peers[&NodeId(2)].disco_key.is_zero());
        let stranger = PeerChange { node_id: NodeId(99), ..PeerChange::default() };
        assert!(map.apply(&patch(stranger), false, now).peers.is_empty());
    }

    #[test]
    fn filter_chunks_are_cleared_set_and_deleted_by_name() {
        let (mut map, now) = started(&[]);
        let rule = |n: i32| Some(vec![FilterRule { ip_proto: vec![n], ..FilterRule::default() }]);
        let mut send = |list: Vec<(&str, Option<Vec<FilterRule>>)>| {
            let chunks = list.into_iter().map(|(n, r)| (n.to_owned(), r)).collect();
            let delta = MapResponse { packet_filters: Some(chunks), ..MapResponse::default() };
            assert!(map.apply(&delta, false, now).filter);
            map.rules().map(|r| r.ip_proto[0]).collect::<Vec<_>>()
        };
        assert_eq!(send(vec![("b", rule(2)), ("a", rule(1))]), [1, 2]);
        assert_eq!(send(vec![("a", None)]), [2]);
        assert_eq!(send(vec![("*", None), ("c", rule(3))]), [3]);
    }

    #[test]
    fn peers_expire_by_the_servers_clock_and_we_by_our_own() {
        let (mut map, now) = started(&[2]);
        let mut peer = node(2);
        peer.key_expiry = Some(now.wall + TimeDelta::minutes(30));
        let mut me = node(1);
        me.key_expiry = peer.key_expiry;
        assert!(!map.is_expired(&peer, now));
        let delta = MapResponse {
            node: Some(me),
            control_time: Some(now.wall + TimeDelta::hours(1)),
            ..MapResponse::default()
        };
        map.apply(&delta, false, now);
        assert!(map.is_expired(&peer, now));
        assert!(!map.self_expired(now));
    }

    #[test]
    fn empty_regions_keep_the_relays_and_wrong_ids_are_left_out() {
        let (mut map, now) = started(&[]);
        let region = |id| DerpRegion { region_id: RegionId(id), ..DerpRegion::default() };
        let send = |map: &mut Netmap, regions: &[(u64, u64)]| {
            let regions = regions.iter().map(|(k, id)| (RegionId(*k), region(*id)));
            let derp_map = Some(DerpMap { regions: regions.collect(), ..DerpMap::default() });
            let delta = MapResponse { derp_map, ..MapResponse::default() };
            map.apply(&delta, false, now).derp
        };
        assert!(send(&mut map, &[(1, 1), (2, 9)]));
        assert!(!send(&mut map, &[]));
        assert_eq!(map.derp.regions.len(), 1);
    }
}
