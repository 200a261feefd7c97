//! From a changed netmap to changed children: sessions, paths, routes, filter, names, relays.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::{Ctx, DnsOs, Engine, EngineEvent, OsConfig, ctx};
use crate::clock::Now;
use crate::dns::Zone;
use crate::keys::NodeId;
use crate::node::filter::{IpSet, Scope};
use crate::node::magicsock::PeerUpdate;
use crate::node::netmap::Changes;
use crate::node::quad100::{SERVICE_V4, SERVICE_V6, is_service};
use crate::node::router::Table;
use crate::wire::Node;

/// Prefixes routed to one peer, and to all (RELIABILITY.md row 103).
const MAX_ROUTES_PER_PEER: usize = 10_000;
const MAX_ROUTES: usize = 200_000;
/// From this many peer addresses on, the OS gets the whole ranges as routes.
const MANY_ROUTES: usize = 10_000;
const MAX_SEARCH: usize = 100;
/// Suffixes told to the OS.
const MAX_MATCH: usize = 1000;
/// Wall clocks may be set: expiry is looked at again at least this often.
const EXPIRY_CHECK: Duration = Duration::from_secs(3600);

fn is_default(net: &IpNet) -> bool {
    net.prefix_len() == 0
}

/// A domain fit for the host's files and commands: a server must not write lines of its own into them.
fn domain(text: &str) -> Option<String> {
    let name = text.trim_matches('.');
    let fit = !name.is_empty()
        && name.len() <= 253
        && !name.starts_with('-')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    fit.then(|| name.to_owned())
}

fn is_host(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

/// What a peer may send from and be sent to, by our preferences. Exit nodes are not supported, so default
/// routes never count.
fn allowed(node: &Node, accept_routes: bool) -> impl Iterator<Item = IpNet> + '_ {
    let list = match &node.allowed_ips {
        Some(list) if !node.unsigned_peer_api_only => list,
        _ => &node.addresses,
    };
    list.iter()
        .filter(move |n| !is_default(n) && (accept_routes || node.addresses.contains(n)))
        .map(IpNet::trunc)
        .take(MAX_ROUTES_PER_PEER)
}

impl Engine {
    pub(super) fn apply_changes(&mut self, changes: &Changes, now: Now) {
        for id in &changes.removed {
            self.magic.remove_peer(*id);
            self.wg.forget(*id);
        }
        for id in &changes.peers {
            self.apply_peer(*id, now);
        }
        if changes.derp {
            self.apply_derp(now);
        }
        if changes.tables || changes.dns || changes.filter {
            self.rebuild_tables(now);
        } else if !changes.peers.is_empty() {
            self.plan_expiry(now);
        }
    }

    fn apply_peer(&mut self, id: NodeId, now: Now) {
        let Some(node) = self.netmap.peers.get(&id) else {
            return;
        };
        if self.netmap.is_expired(node, now) || node.key == self.node_public {
            // Without a session and a path there is nothing to forget per packet.
            self.magic.remove_peer(id);
            self.wg.remove(id);
        } else {
            match self.magic.set_peer(node) {
                PeerUpdate::Same => {}
                PeerUpdate::Restarted => self.wg.remove(id),
                PeerUpdate::NewWays => self.retry_handshake(id, now),
            }
        }
    }

    fn apply_derp(&mut self, now: Now) {
        let before = self.netcheck.home();
        self.netcheck.set_map(&self.netmap.derp);
        if let Some(region) = self.netcheck.only_region()
            && before != Some(region)
        {
            self.out.event(EngineEvent::HomeDerp(region));
        }
        self.netcheck(now);
    }

    /// Builds routes, filter, names and the OS's part anew.
    pub(super) fn rebuild_tables(&mut self, now: Now) {
        self.set_expired(self.netmap.self_expired(now));
        self.netcheck.set_own(self.netmap.own_addresses().collect());
        self.router = self.build_router(now);
        let scope = self.build_scope();
        self.filter.set(self.netmap.rules(), scope, self.shields_up);
        let zone = self
            .netmap
            .node
            .as_ref()
            .map(|node| Zone::build(node, self.netmap.peers.values(), &self.netmap.dns));
        self.quad100.set_zone(zone);
        let os = self.build_os(now);
        if os != self.os {
            self.os = os;
            self.out.event(EngineEvent::OsConfig);
        }
        self.plan_expiry(now);
    }

    fn build_router(&self, now: Now) -> Table<NodeId> {
        let own: Vec<IpAddr> = self.netmap.own_addresses().collect();
        let mut table = Table::new();
        let mut budget = MAX_ROUTES;
        for (id, node) in &self.netmap.peers {
            if self.netmap.is_expired(node, now) {
                continue;
            }
            for net in allowed(node, self.accept_routes) {
                // No peer may take our own address or the resolver's.
                let taken = is_host(&net) && (own.contains(&net.addr()) || is_service(net.addr()));
                if !taken && budget > 0 {
                    table.insert(net, *id);
                    budget -= 1;
                }
            }
        }
        if budget == 0 {
            tracing::warn!("the network has too many routes: some are left out");
        }
        table
    }

    fn build_scope(&self) -> Scope {
        let mut local = IpSet::default();
        if let Some(node) = &self.netmap.node {
            let served = node.allowed_ips.iter().flatten().filter(|n| !is_default(n));
            for net in node.addresses.iter().chain(served).take(MAX_ROUTES_PER_PEER) {
                local.add(*net);
            }
        }
        let named = self.netmap.cap_sources().iter();
        let mut cap_holders: HashMap<String, Vec<IpNet>> =
            named.map(|cap| (cap.clone(), Vec::new())).collect();
        let mut peer_api_only = Vec::new();
        for node in self.netmap.peers.values() {
            if node.unsigned_peer_api_only {
                peer_api_only.extend(&node.addresses);
            }
            if !cap_holders.is_empty() {
                for cap in node.cap_map.keys() {
                    if let Some(list) = cap_holders.get_mut(cap) {
                        list.extend(&node.addresses);
                    }
                }
            }
        }
        Scope { version: self.netmap.rules_version(), local: local.seal(), cap_holders, peer_api_only }
    }

    fn build_os(&self, now: Now) -> OsConfig {
        let Some(node) = self.netmap.node.as_ref().filter(|_| !self.expired) else {
            return OsConfig::default();
        };
        let own: Vec<IpAddr> = self.netmap.own_addresses().collect();
        let has_v6 = own.iter().any(IpAddr::is_ipv6);
        let mut routes: Vec<IpNet> = Vec::new();
        for peer in self.netmap.peers.values() {
            if self.netmap.is_expired(peer, now) {
                continue;
            }
            let nets = allowed(peer, self.accept_routes);
            routes.extend(nets.filter(|n| !(is_host(n) && own.contains(&n.addr()))));
            if routes.len() > MAX_ROUTES {
                break;
            }
        }
        if routes.len() > MANY_ROUTES {
            routes.retain(|n| !is_host(n));
            routes.extend("100.64.0.0/10".parse::<IpNet>());
            routes.extend("fd7a:115c:a1e0::/48".parse::<IpNet>());
        }
        if self.accept_dns {
            routes.push(IpNet::from(IpAddr::V4(SERVICE_V4)));
            routes.push(IpNet::from(IpAddr::V6(SERVICE_V6)));
        }
        routes.retain(|n| has_v6 || n.addr().is_ipv4());
        routes.sort_unstable();
        routes.dedup();
        OsConfig { addresses: node.addresses.clone(), routes, dns: self.build_dns() }
    }

    fn build_dns(&self) -> Option<DnsOs> {
        let dns = &self.netmap.dns;
        let any = dns.proxied || !dns.routes.is_empty() || !dns.resolvers.is_empty();
        if !self.accept_dns || !any {
            return None;
        }
        let mut match_domains: Vec<String> =
            dns.routes.keys().filter_map(|k| domain(k)).take(MAX_MATCH).collect();
        if dns.proxied {
            match_domains.extend(domain(self.netmap.suffix()));
            match_domains.push("0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa".to_owned());
            match_domains.extend((64..128).map(|n| format!("{n}.100.in-addr.arpa")));
        }
        match_domains.sort_unstable();
        match_domains.dedup();
        let search = dns.domains.iter().filter_map(|d| domain(d)).take(MAX_SEARCH).collect();
        Some(DnsOs { search, match_domains })
    }

    fn plan_expiry(&mut self, now: Now) {
        let wait = self.netmap.next_expiry(now);
        self.expiry_at = wait.map(|d| now.mono + d.min(EXPIRY_CHECK));
    }

    /// A key expired, or it is time to look whether one did.
    pub(super) fn check_expiry(&mut self, now: Now) {
        let peers: Vec<NodeId> = self.netmap.peers.keys().copied().collect();
        for id in peers {
            self.apply_peer(id, now);
        }
        self.rebuild_tables(now);
        let ctx = ctx!(self, now);
        tracing::debug!(at = %ctx.now.wall, "keys were checked for expiry");
    }
}
