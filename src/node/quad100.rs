//! The resolver at 100.100.100.100 and fd7a:115c:a1e0::53: takes DNS queries out of the host's packets, has
//! the zone judge them, and makes packets of the answers. Forwarded queries wait here, bounded in number
//! and time (dataplane.md 8.1). TCP has no stack here and is reset, so that nothing hangs.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::outbox::Ctx;
use super::packet::{IpPacket, Permitted, Proto, build_rst, build_udp};
use crate::dns::{Verdict, Zone, question};

/// The service addresses.
pub(crate) const SERVICE_V4: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 100);
/// See [`SERVICE_V4`].
pub(crate) const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0x53);

/// Forwarded queries under way; more are dropped.
const MAX_PENDING: usize = 256;
/// Equal questions under way. More come from nobody but a resolver that asks us for what we ask it
/// (RELIABILITY.md row 63): it would keep both busy with one question for ever.
const MAX_EQUAL: usize = 16;
/// A query's time.
const TIMEOUT: Duration = Duration::from_secs(10);
const DNS_PORT: u16 = 53;
/// The least DNS message.
const DNS_HEADER: usize = 12;

#[derive(Debug)]
struct Pending {
    client: (IpAddr, u16),
    service: IpAddr,
    query: Bytes,
    deadline: Instant,
}

/// The resolver.
#[derive(Debug, Default)]
pub(crate) struct Quad100 {
    zone: Option<Zone>,
    pending: BTreeMap<u64, Pending>,
    next: u64,
}

/// Whether an address is the resolver's.
pub(crate) fn is_service(addr: IpAddr) -> bool {
    addr == IpAddr::V4(SERVICE_V4) || addr == IpAddr::V6(SERVICE_V6)
}

fn respond(service: IpAddr, client: (IpAddr, u16), answer: &[u8], ctx: &mut Ctx<'_>) {
    if let Some(packet) = build_udp((service, DNS_PORT), client, answer) {
        ctx.out.tun(Permitted::own(packet.into()));
    }
}

impl Quad100 {
    /// Takes the zone of the netmap; without one, queries fail.
    pub(crate) fn set_zone(&mut self, zone: Option<Zone>) {
        self.zone = zone;
    }

    /// Handles a packet of the host to a service address.
    pub(crate) fn handle(&mut self, packet: &IpPacket, ctx: &mut Ctx<'_>) {
        let h = *packet.headers();
        match h.proto {
            Proto::TCP if !h.is_tcp_rst() => {
                if let Some(rst) = build_rst(packet) {
                    ctx.out.tun(Permitted::own(rst.into()));
                }
            }
            Proto::UDP if h.dst_port == DNS_PORT => {
                let query = packet.transport().get(8..).unwrap_or_default();
                self.handle_query(query, (h.src, h.src_port), h.dst, ctx);
            }
            _ => ctx.out.dropped("not dns to quad-100"),
        }
    }

    fn handle_query(&mut self, query: &[u8], client: (IpAddr, u16), service: IpAddr, ctx: &mut Ctx<'_>) {
        let verdict = match &self.zone {
            Some(zone) => zone.handle(query, false),
            None => Zone::servfail(query).map_or(Verdict::Drop, Verdict::Answer),
        };
        match verdict {
            Verdict::Answer(answer) => respond(service, client, &answer, ctx),
            Verdict::Forward { .. } if self.pending.len() >= MAX_PENDING => {
                ctx.out.dropped("too many dns queries");
            }
            Verdict::Forward { .. } if self.loops(query) => {
                ctx.out.dropped("dns loop");
                if let Some(failure) = Zone::servfail(query) {
                    respond(service, client, &failure, ctx);
                }
            }
            Verdict::Forward { resolvers } => {
                let query = Bytes::copy_from_slice(query);
                let id = self.next;
                self.next += 1;
                self.pending.insert(
                    id,
                    Pending { client, service, query: query.clone(), deadline: ctx.now.mono + TIMEOUT },
                );
                ctx.out.dns(id, resolvers, query);
            }
            Verdict::Drop => ctx.out.dropped("bad dns query"),
        }
    }

    fn loops(&self, query: &[u8]) -> bool {
        let asked = question(query);
        let equal = |p: &&Pending| match (asked, question(&p.query)) {
            (Some(a), Some(b)) => a.eq_ignore_ascii_case(b),
            _ => false,
        };
        self.pending.values().filter(equal).count() >= MAX_EQUAL
    }

    /// Takes what the resolvers said; nothing usable becomes SERVFAIL.
    pub(crate) fn handle_answer(&mut self, id: u64, answer: Option<&[u8]>, ctx: &mut Ctx<'_>) {
        let Some(p) = self.pending.remove(&id) else {
            return;
        };
        let answer = answer.filter(|a| a.len() >= DNS_HEADER).map(|a| {
            // The shell may have asked under an id of its own.
            let mut own = a.to_vec();
            for (to, from) in own.iter_mut().zip(p.query.iter()).take(2) {
                *to = *from;
            }
            own
        });
        if let Some(answer) = answer.or_else(|| Zone::servfail(&p.query)) {
            respond(p.service, p.client, &answer, ctx);
        }
    }

    /// When the first query is given up. Ids rise with time, so it is the first.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.pending.values().next().map(|p| p.deadline)
    }

    /// Gives up queries that took too long.
    pub(crate) fn handle_timeout(&mut self, ctx: &mut Ctx<'_>) {
        while let Some((&id, p)) = self.pending.first_key_value() {
            if ctx.now.mono < p.deadline {
                break;
            }
            self.handle_answer(id, None, ctx);
        }
    }
}
