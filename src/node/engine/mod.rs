//! The packet engine: netmap, packets and time in; packets, requests and events out. Owns its children
//! and fixes the order of the stages (HOUSES.md 17); state that grows belongs to a child.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::clock::{Now, Rng};
use crate::keys::{DiscoPrivate, NodeId, NodePrivate, NodePublic, RegionId};
use crate::wire::{MapResponse, NetInfo, Node, UserProfile};

/// What a new engine is made from.
#[derive(Debug)]
pub struct EngineConfig {
    /// WireGuard identity.
    pub node_key: NodePrivate,
    /// Discovery identity; kept over restarts, unlike the official client's.
    pub disco_key: DiscoPrivate,
    /// Take subnet routes of peers.
    pub accept_routes: bool,
    /// Answer MagicDNS at 100.100.100.100.
    pub accept_dns: bool,
    /// Refuse all new incoming connections.
    pub shields_up: bool,
}

/// Where a datagram came from or goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Path {
    /// UDP on the underlay.
    Direct(SocketAddr),
    /// By the relay region.
    Derp(RegionId),
}

/// What the shell must do; drained with [`Engine::poll_output`] after every input.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Send a datagram. Consecutive ones to the same address may be sent as one batch.
    Udp {
        /// Where.
        to: SocketAddr,
        /// What.
        bytes: Bytes,
    },
    /// Send by a relay region; connect to it when it is not yet.
    Derp {
        /// Which.
        region: RegionId,
        /// To whom.
        to: NodePublic,
        /// What.
        bytes: Bytes,
    },
    /// Write an IP packet to the TUN. Only filtered packets get here.
    Tun(Bytes),
    /// Ask the host's resolver; answer by [`Engine::handle_dns_answer`].
    DnsForward {
        /// To match the answer.
        id: u64,
        /// Resolvers to race, in order; empty: the host's own.
        resolvers: Vec<SocketAddr>,
        /// The query message.
        query: Bytes,
        /// The query came by TCP (answers may be large).
        tcp: bool,
    },
    /// Something happened.
    Event(EngineEvent),
}

/// What the engine tells the shell.
#[derive(Debug, Clone, PartialEq)]
pub enum EngineEvent {
    /// The home region changed: note it to the relays and to control.
    HomeDerp(RegionId),
    /// Our endpoints changed: a lite update is due.
    Endpoints(Vec<(SocketAddr, crate::wire::EndpointType)>),
    /// A netcheck finished.
    NetInfo(Box<NetInfo>),
    /// A ping asked for by [`Engine::ping`] got its answer (one per pong) or timed out.
    Ping(PingOutcome),
    /// The set of addresses, routes or DNS settings for the OS changed; read [`Engine::os_config`].
    OsConfig,
    /// A region was not used for 60 s: its connection may go.
    DerpIdle(RegionId),
    /// Our own key expired, or control removed us.
    Expired,
}

/// The answer to a ping.
#[derive(Debug, Clone, PartialEq)]
pub struct PingOutcome {
    /// As returned by [`Engine::ping`].
    pub id: u64,
    /// The way it took and how long, or why there was no answer.
    pub result: Result<(Path, Duration), String>,
}

/// How the OS should be set up for the current netmap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OsConfig {
    /// Addresses of the interface (/32, /128).
    pub addresses: Vec<ipnet::IpNet>,
    /// Routes into the interface.
    pub routes: Vec<ipnet::IpNet>,
    /// Quad-100 is the host's resolver, with these search domains.
    pub dns: Option<DnsOs>,
}

/// The DNS part of [`OsConfig`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsOs {
    /// Search domains.
    pub search: Vec<String>,
    /// Suffixes quad-100 answers for, where the OS can split.
    pub match_domains: Vec<String>,
}

/// A peer as `status` shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerStatus {
    /// The netmap's node.
    pub node: Node,
    /// Direct address in use.
    pub cur_addr: Option<SocketAddr>,
    /// Its home region.
    pub home: Option<RegionId>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// Last WireGuard handshake.
    pub last_handshake: Option<DateTime<Utc>>,
    /// Last packet sent to it.
    pub last_write: Option<DateTime<Utc>>,
    /// User traffic within 45 s.
    pub active: bool,
    /// Its key has expired.
    pub expired: bool,
}

/// The engine's view of everything, for LocalAPI `status`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EngineStatus {
    /// Ourselves, once there is a netmap.
    pub self_node: Option<Node>,
    /// MagicDNS suffix without dots at the ends.
    pub magic_dns_suffix: String,
    /// Tailnet name.
    pub domain: String,
    /// Peers by id.
    pub peers: BTreeMap<NodeId, PeerStatus>,
    /// Users by id.
    pub users: BTreeMap<crate::keys::UserId, UserProfile>,
    /// Our endpoints.
    pub endpoints: Vec<SocketAddr>,
    /// Home region.
    pub home: Option<RegionId>,
    /// Packets dropped, by reason.
    pub drops: BTreeMap<&'static str, u64>,
}

/// What the shell measured or saw of the underlay.
#[derive(Debug, Clone, PartialEq)]
pub enum Underlay {
    /// Interface addresses (no loopback, no tailnet) and the bound UDP ports.
    Interfaces {
        /// Addresses.
        addresses: Vec<IpAddr>,
        /// Port of the IPv4 socket.
        port_v4: Option<u16>,
        /// Port of the IPv6 socket.
        port_v6: Option<u16>,
        /// A route or address changed so much that all paths are doubtful.
        major: bool,
    },
    /// A relay region is connected.
    DerpConnected(RegionId),
    /// A relay connection ended.
    DerpLost(RegionId),
    /// The relay says a peer is gone (0) or was never there (1).
    DerpPeerGone {
        /// Where.
        region: RegionId,
        /// Who.
        key: NodePublic,
        /// Why.
        reason: u8,
    },
    /// Round trip to a region's relay by HTTPS, when UDP is blocked.
    HttpsLatency(RegionId, Duration),
    /// Resolved addresses of relay nodes, by node name (names are not resolved in the engine).
    DerpAddrs(BTreeMap<String, Vec<IpAddr>>),
    /// Control is reachable or not: the home region does not move while it is not.
    ControlUp(bool),
}

/// The engine. One owner, no locks, no I/O.
#[derive(Debug)]
pub struct Engine {
    _private: (),
}

impl Engine {
    /// An engine without a netmap: drops everything.
    #[must_use]
    pub fn new(_config: EngineConfig, _rng: Rng, _now: Now) -> Self {
        todo!()
    }

    /// Applies one message of the map stream. The first of a stream is a whole netmap: `fresh` says so.
    pub fn handle_map(&mut self, _map: &MapResponse, _fresh: bool, _now: Now) {
        todo!()
    }

    /// The whole current netmap as one map response, for keeping on disk; feed it back with
    /// `handle_map(.., true, ..)` after a restart without control.
    #[must_use]
    pub fn netmap(&self) -> Option<MapResponse> {
        todo!()
    }

    /// Changes preferences that matter to packets.
    pub fn set_prefs(
        &mut self,
        _accept_routes: bool,
        _accept_dns: bool,
        _shields_up: bool,
        _now: Now,
    ) {
        todo!()
    }

    /// An IP packet the host sent into the TUN.
    pub fn handle_tun(&mut self, _packet: &[u8], _now: Now) {
        todo!()
    }

    /// A datagram from the underlay.
    pub fn handle_udp(&mut self, _from: SocketAddr, _bytes: &[u8], _now: Now) {
        todo!()
    }

    /// A packet from a relay.
    pub fn handle_derp(&mut self, _region: RegionId, _from: NodePublic, _bytes: &[u8], _now: Now) {
        todo!()
    }

    /// News of the underlay.
    pub fn handle_underlay(&mut self, _news: Underlay, _now: Now) {
        todo!()
    }

    /// The answer to [`Output::DnsForward`]; `None` when all resolvers failed.
    pub fn handle_dns_answer(&mut self, _id: u64, _answer: Option<&[u8]>, _now: Now) {
        todo!()
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, _now: Now) {
        todo!()
    }

    /// When to call [`Engine::handle_timeout`] next, and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        todo!()
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        todo!()
    }

    /// Sends a disco ping to the peer with this tailnet address; the outcome comes as an event.
    ///
    /// # Errors
    /// When no peer has the address.
    pub fn ping(&mut self, _target: IpAddr, _now: Now) -> Result<u64, String> {
        todo!()
    }

    /// How the OS should be set up.
    #[must_use]
    pub fn os_config(&self) -> OsConfig {
        todo!()
    }

    /// Everything `status` shows.
    #[must_use]
    pub fn status(&self, _now: Now) -> EngineStatus {
        todo!()
    }

    /// The node (peer or self) that owns a tailnet address.
    #[must_use]
    pub fn whois(&self, _addr: IpAddr) -> Option<(Node, Option<UserProfile>)> {
        todo!()
    }

    /// Starts a netcheck now (after a network change or for `netcheck`).
    pub fn netcheck(&mut self, _now: Now) {
        todo!()
    }
}
