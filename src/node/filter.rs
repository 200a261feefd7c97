//! The packet filter: rules of the netmap compiled to a decision matrix (`filter::index`), and the flows
//! that pass beside the rules. Decides what a peer may send to this host; only what it permits becomes
//! [`Permitted`]. Order of the checks: dataplane.md 6.3. TCP segments that open nothing pass, as official
//! clients have it, but for connections that peers opened and a change of policy took from them: those are
//! cut on both sides.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::packet::{FromPeer, Headers, IpPacket, Permitted, Proto, build_rst, build_rst_onward};
use crate::wire::FilterRule;
use build::Budget;
use flows::{Connections, Flow, Flows, Standing};
use index::Index;
pub(crate) use ranges::IpSet;
use rules::Rule;

mod build;
mod flows;
mod grid;
mod index;
mod ranges;
mod rows;
mod rules;
mod starts;

/// Flows without connection that we started: remembered for answers (dataplane.md 6.3).
const FLOWS: usize = 512;
/// Flows without connection that peers started, so that our answers do not make them ours.
const PEER_FLOWS: usize = 4096;
/// Rules, and addresses over all rules, taken from control (RELIABILITY.md row 103).
const MAX_RULES: usize = 50_000;
const MAX_RANGES: usize = 1_000_000;
/// Cloud DNS and metadata, the one link-local address that may be routed.
const CLOUD_METADATA: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 169, 254));
/// Why packets of a connection that lost its rule are dropped.
pub(crate) const CUT: &str = "cut by policy";

/// What the compiler must know beside the rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Scope {
    /// Changes whenever the rules do, and is never 0 then: with the same number and the same scope the
    /// rules are not compiled again.
    pub(crate) version: u64,
    /// Addresses this node serves: its own and the routes it advertises.
    pub(crate) local: IpSet,
    /// Addresses of the peers that have a capability.
    pub(crate) cap_holders: HashMap<String, Vec<IpNet>>,
    /// Addresses of peers that may reach the PeerAPI alone.
    pub(crate) peer_api_only: Vec<IpNet>,
}

/// Resets that end a connection at both of its ends.
#[derive(Debug)]
pub(crate) struct Resets {
    /// For the peer.
    pub(crate) to_peer: Option<Vec<u8>>,
    /// For our host, or the host behind us.
    pub(crate) to_host: Option<Permitted>,
}

/// Why a packet may not pass.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Counted under this name.
    pub(crate) reason: &'static str,
    /// An IPv4 TCP SYN refused by rule: tell the sender, with this TSMP reason.
    pub(crate) notify: Option<u8>,
    /// The headers, for that notice.
    pub(crate) headers: Headers,
    /// A connection was cut: tell both ends.
    pub(crate) resets: Option<Resets>,
}

/// The filter of this node.
#[derive(Debug)]
pub(crate) struct Filter {
    index: Index,
    scope: Scope,
    shields_up: bool,
    /// UDP and SCTP flows that we started, and that peers started.
    ours: Flows,
    theirs: Flows,
    connections: Connections,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            index: Index::default(),
            scope: Scope::default(),
            shields_up: false,
            ours: Flows::new(FLOWS),
            theirs: Flows::new(PEER_FLOWS),
            connections: Connections::default(),
        }
    }
}

fn read<'a>(rules: impl Iterator<Item = &'a FilterRule>, scope: &Scope) -> Vec<Rule> {
    let mut budget = MAX_RANGES;
    let mut out = Vec::new();
    for rule in rules.take(MAX_RULES) {
        let Some(rule) = Rule::read(rule, &scope.cap_holders) else {
            continue;
        };
        let Some(rest) = budget.checked_sub(rule.len()) else {
            tracing::warn!("the packet filter of this network is too large; its tail is left out");
            break;
        };
        budget = rest;
        out.push(rule);
    }
    // A node limited to the PeerAPI that a rule lets in shows that the filter was tampered with.
    let tampered = |r: &Rule| scope.peer_api_only.iter().any(|n| r.sources().contains(n.addr()));
    if out.iter().any(tampered) {
        tracing::warn!("the packet filter names a PeerAPI-only node: everything is refused");
        out.clear();
    }
    out
}

impl Filter {
    /// Takes new rules. Flows stay, but for connections that peers opened and may not have any more.
    pub(crate) fn set<'a>(
        &mut self,
        rules: impl Iterator<Item = &'a FilterRule>,
        scope: Scope,
        shields_up: bool,
    ) {
        let same = scope.version != 0 && self.scope == scope;
        if same && self.shields_up == shields_up {
            return;
        }
        self.shields_up = shields_up;
        if !same {
            let rules = read(rules, &scope);
            self.index = build::build(&rules, &scope.local, Budget::NODE);
            self.scope = scope;
            let (bytes, parts) = self.index.size();
            tracing::debug!(rules = rules.len(), bytes, parts, "the packet filter was built");
        }
        let (index, local) = (&self.index, &self.scope.local);
        let cut = self.connections.judge_again(|flow| {
            !shields_up
                && local.contains(flow.near.0)
                && index.port(flow.far.0, flow.near.0, flow.proto.0, flow.near.1)
        });
        if cut > 0 {
            tracing::info!(connections = cut, "the policy changed: connections of peers were cut");
        }
    }

    /// Notes an outgoing packet's flow, so that answers come back; says why when it may not leave.
    pub(crate) fn outbound(&mut self, h: &Headers) -> Result<(), &'static str> {
        precheck(h)?;
        match h.proto {
            Proto::TSMP => Err("tsmp from host"),
            Proto::UDP | Proto::SCTP => {
                let flow = Flow::outbound(h);
                // An answer to a peer does not make its flow ours: the rules go on to judge it.
                if !self.theirs.refresh(&flow) {
                    self.ours.touch(flow);
                }
                Ok(())
            }
            Proto::TCP if h.is_tcp_syn() => {
                self.connections.opened_by_us(Flow::outbound(h));
                Ok(())
            }
            Proto::TCP => {
                if h.is_tcp_end() {
                    self.connections.ends(&Flow::outbound(h));
                }
                // The host's own reset may tell the peer.
                let cut = !h.is_tcp_rst() && self.connections.is_cut(&Flow::outbound(h));
                if cut { Err(CUT) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    /// Judges a peer's packet. `jailed` peers may only answer.
    pub(crate) fn inbound(&mut self, packet: FromPeer, jailed: bool) -> Result<Permitted, Refused> {
        let h = *packet.packet().headers();
        let closed = self.shields_up || jailed;
        match self.judge(&h, closed) {
            Ok(()) => Ok(Permitted::filtered(packet)),
            Err(reason) => {
                let syn = h.proto == Proto::TCP && h.is_tcp_syn() && h.src.is_ipv4();
                let notify = (syn && reason == "acl").then_some(if closed { b'S' } else { b'A' });
                let resets = (reason == CUT).then(|| Resets::of(packet.packet()));
                Err(Refused { reason, notify, headers: h, resets })
            }
        }
    }

    fn judge(&mut self, h: &Headers, closed: bool) -> Result<(), &'static str> {
        precheck(h)?;
        if h.proto == Proto::FRAGMENT {
            return Ok(());
        }
        if !self.scope.local.contains(h.dst) {
            return Err("not for us");
        }
        let open = !closed;
        let permitted = match h.proto {
            Proto::ICMPV4 | Proto::ICMPV6 => h.is_icmp_answer() || (open && self.index.reaches(h.src, h.dst)),
            Proto::TCP if h.is_tcp_syn() => {
                let permitted = open && self.port(h);
                if permitted {
                    self.connections.opened_by_peer(Flow::inbound(h));
                }
                permitted
            }
            Proto::TCP => return self.segment(h, open),
            Proto::UDP | Proto::SCTP => {
                let flow = Flow::inbound(h);
                self.ours.refresh(&flow) || {
                    let permitted = open && self.port(h);
                    if permitted {
                        self.theirs.touch(flow);
                    }
                    permitted
                }
            }
            Proto::TSMP => true,
            // Capability sources do not count on this branch (dataplane.md 6.3).
            _ => open && self.index.portless(h.src, h.dst, h.proto.0),
        };
        if permitted { Ok(()) } else { Err("acl") }
    }

    /// A TCP segment that opens nothing.
    fn segment(&mut self, h: &Headers, open: bool) -> Result<(), &'static str> {
        if open && self.connections.is_calm() {
            return Ok(());
        }
        match self.connections.standing(&Flow::inbound(h)) {
            Standing::Unknown => Ok(()),
            Standing::Theirs if open => Ok(()),
            Standing::Suspect if open && self.port(h) => Ok(()),
            Standing::Theirs | Standing::Cut | Standing::Suspect => Err(CUT),
        }
    }

    fn port(&self, h: &Headers) -> bool {
        self.index.port(h.src, h.dst, h.proto.0, h.dst_port)
    }
}

impl Resets {
    fn of(packet: &IpPacket) -> Self {
        if packet.headers().is_tcp_rst() {
            // Never a reset for a reset.
            return Self { to_peer: None, to_host: None };
        }
        let to_host = build_rst_onward(packet).map(|rst| Permitted::own(rst.into()));
        Self { to_peer: build_rst(packet), to_host }
    }
}

fn precheck(h: &Headers) -> Result<(), &'static str> {
    if h.proto == Proto::UNKNOWN {
        return Err("unknown protocol");
    }
    if h.dst.is_multicast() {
        return Err("multicast");
    }
    let link_local = match h.dst {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    if link_local && h.dst != CLOUD_METADATA {
        return Err("link-local");
    }
    Ok(())
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod naive_tests;
