//! What the engine shows of itself: `status`, `whois`, the OS's part.

use std::net::IpAddr;

use super::{Engine, EngineStatus, OsConfig, PeerStatus};
use crate::clock::Now;
use crate::wire::{Node, UserProfile};

impl Engine {
    /// How the OS should be set up.
    #[must_use]
    pub fn os_config(&self) -> OsConfig {
        self.os.clone()
    }

    /// Everything `status` shows.
    #[must_use]
    pub fn status(&self, now: Now) -> EngineStatus {
        let peers = self.netmap.peers.values();
        EngineStatus {
            self_node: self.netmap.node.clone(),
            magic_dns_suffix: self.netmap.suffix().to_owned(),
            domain: self.netmap.domain.clone(),
            peers: peers.map(|p| (p.id, self.peer_status(p, now))).collect(),
            users: self.netmap.profiles.clone(),
            endpoints: self.endpoints.iter().map(|(a, _)| *a).collect(),
            home: self.netcheck.home(),
            drops: self.out.drops().clone(),
            io: super::IoStats::default(),
        }
    }

    fn peer_status(&self, node: &Node, now: Now) -> PeerStatus {
        let stats = self.wg.stats(node.id);
        let (cur_addr, home, last_write, active) = self.magic.view(node.id, now);
        let since = stats.since_handshake.and_then(|d| chrono::Duration::from_std(d).ok());
        PeerStatus {
            node: node.clone(),
            cur_addr,
            home: home.or_else(|| crate::node::magicsock::home_of(node)),
            rx_bytes: stats.rx_bytes,
            tx_bytes: stats.tx_bytes,
            last_handshake: since.and_then(|d| now.wall.checked_sub_signed(d)),
            last_write,
            active,
            expired: self.netmap.is_expired(node, now),
        }
    }

    /// The node (peer or self) that owns a tailnet address.
    #[must_use]
    pub fn whois(&self, addr: IpAddr) -> Option<(Node, Option<UserProfile>)> {
        let mut all = self.netmap.node.iter().chain(self.netmap.peers.values());
        let node = all.find(|n| n.addresses.iter().any(|a| a.addr() == addr))?;
        Some((node.clone(), self.netmap.profiles.get(&node.user).cloned()))
    }
}
