//! The resolver at 100.100.100.100 (dataplane.md 8.1 to 8.3) as a pure table: a query in, an answer or
//! the resolvers to ask out.
//!
//! Names match without regard to case. Names under the tailnet's suffix never leave this node: they are
//! answered here, with NXDOMAIN when nobody has them. A query is hostile until parsed; whatever is wrong
//! with it gets a short error or silence, never a forward.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::wire;

/// Lifetime of our answers: addresses follow the netmap, which changes at any moment.
const TTL: u32 = 5;
/// Lifetime of "no such name" and "no such data".
const NEGATIVE_TTL: u32 = 10;
/// Length of a message's header (RFC 1035 4.1.1); anything shorter is noise.
const HEADER: usize = 12;
/// Most a UDP answer may have, whatever the asker allows.
const MAX_UDP: u16 = 4095;
/// Most a UDP answer may have when the asker says nothing (RFC 1035 4.2.1).
const PLAIN_UDP: u16 = 512;
/// Most resolvers kept per route; control sends a handful.
const MAX_RESOLVERS: usize = 16;
/// The service addresses of this resolver.
const SERVICE_V4: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 100);
const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0x53);
/// What the service address is called.
const SERVICE_NAME: &str = "magicdns.localhost-tailscale-daemon";
/// The reverse zone of fd7a:115c:a1e0::/48.
const REVERSE_V6: &str = "0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa";
/// fd7a:115c:a1e0:b1a::/64: a site id and an IPv4 address behind that site.
const VIA_PREFIX: u128 = 0xfd7a_115c_a1e0_0b1a << 64;
const CAP_AAAA: &str = "magicdns-aaaa";
const CAP_SUBDOMAINS: &str = "dns-subdomain-resolve";

/// The names this node answers for, and where to ask for the others.
#[derive(Debug, Clone, Default)]
pub struct Zone {
    /// Extra records; they win over nodes of the same name.
    extras: HashMap<String, Vec<IpAddr>>,
    /// Nodes, with the AAAA rule already applied.
    hosts: HashMap<String, Vec<IpAddr>>,
    /// Hosts that also answer for every name below theirs.
    open: HashSet<String>,
    reverse: HashMap<IpAddr, String>,
    /// The tailnet's suffix; empty when there is none.
    suffix: String,
    routes: HashMap<String, Route>,
    default: Option<Vec<SocketAddr>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Route {
    /// Answered here, with authority.
    Local,
    /// Asked there. Empty when control named only resolvers we cannot ask.
    Ask(Vec<SocketAddr>),
}

/// What to do with a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Send this back.
    Answer(Vec<u8>),
    /// Ask these; when empty, the host's own resolvers.
    Forward {
        /// Plain resolvers, in the order control gave.
        resolvers: Vec<SocketAddr>,
    },
    /// Say nothing.
    Drop,
}

/// What a name has to say to a question.
enum Found {
    Data(RData),
    /// The name exists, the data does not; with SOA or without (dataplane.md 8.2).
    Nothing {
        soa: bool,
    },
    NoSuchName,
    NotImplemented,
    /// Control wants it asked at resolvers we cannot speak to.
    Unaskable,
    NotOurs(Vec<SocketAddr>),
}

impl Zone {
    /// Builds the zone of one netmap.
    #[must_use]
    pub fn build<'a>(
        self_node: &'a wire::Node,
        peers: impl Iterator<Item = &'a wire::Node>,
        config: &wire::DnsConfig,
    ) -> Self {
        let self_name = key(&self_node.name);
        let mut zone = Self {
            suffix: self_name.split_once('.').map(|(_, s)| s.to_owned()).unwrap_or_default(),
            ..Self::default()
        };
        let v6_only = !has_v4(self_node) && self_node.addresses.iter().any(|a| a.addr().is_ipv6());
        let want_v6 = has_cap(self_node, CAP_AAAA);
        for node in std::iter::once(self_node).chain(peers) {
            zone.add_node(node, v6_only, want_v6);
        }
        for record in &config.extra_records {
            let known = matches!(record.r#type.as_str(), "" | "A" | "AAAA");
            if let (true, Ok(ip)) = (known, record.value.parse()) {
                let all = zone.extras.entry(key(&record.name)).or_default();
                all.push(ip);
            }
        }
        if config.proxied {
            zone.routes.insert(REVERSE_V6.to_owned(), Route::Local);
            for second in 64..128 {
                let reverse = format!("{second}.100.in-addr.arpa");
                zone.routes.insert(reverse, Route::Local);
            }
        }
        for (suffix, resolvers) in &config.routes {
            let route = if resolvers.is_empty() { Route::Local } else { Route::Ask(addresses(resolvers)) };
            zone.routes.insert(key(suffix), route);
        }
        if !config.resolvers.is_empty() {
            zone.default = Some(addresses(&config.resolvers));
        }
        zone
    }

    fn add_node(&mut self, node: &wire::Node, v6_only: bool, want_v6: bool) {
        let name = key(&node.name);
        if name.is_empty() || node.addresses.is_empty() {
            return;
        }
        let v4 = has_v4(node);
        let mut addresses = Vec::with_capacity(1);
        for ip in node.addresses.iter().map(ipnet::IpNet::addr) {
            self.reverse.insert(ip, name.clone());
            // A name with both families would double every flow (dataplane.md 8.2).
            let serve = match ip {
                IpAddr::V4(_) => !v6_only,
                IpAddr::V6(_) => v6_only || want_v6 || !v4,
            };
            if serve {
                addresses.push(ip);
            }
        }
        if has_cap(node, CAP_SUBDOMAINS) {
            self.open.insert(name.clone());
        }
        self.hosts.insert(name, addresses);
    }

    /// Judges one query. `tcp` lifts the size limit of answers.
    #[must_use]
    pub fn handle(&self, query: &[u8], tcp: bool) -> Verdict {
        let Some(&[_, _, flags, ..]) = query.first_chunk::<HEADER>() else {
            return Verdict::Drop;
        };
        if flags & 0x80 != 0 {
            // A response. Answering one could keep two resolvers busy with each other for ever.
            return Verdict::Drop;
        }
        if flags & 0x78 != 0 {
            return refuse(query, ResponseCode::NotImp);
        }
        // One question per message is all anybody sends (RFC 9619); checked before parsing, so that a
        // claim of 65535 questions costs nothing.
        if query.get(4..6) != Some(&[0, 1]) {
            return refuse(query, ResponseCode::FormErr);
        }
        let Ok(message) = Message::from_vec(query) else {
            return refuse(query, ResponseCode::FormErr);
        };
        let [question] = message.queries.as_slice() else {
            return refuse(query, ResponseCode::FormErr);
        };
        if question.query_class() != DNSClass::IN {
            return refuse(query, ResponseCode::Refused);
        }
        let mut answer = reply(&message);
        answer.metadata.authoritative = true;
        let name = name_key(question.name());
        match self.find(&name, question.query_type()) {
            Found::Data(data) => {
                answer.add_answer(Record::from_rdata(question.name().clone(), TTL, data));
            }
            Found::Nothing { soa } => {
                if soa {
                    self.add_soa(&mut answer, &name);
                }
            }
            Found::NoSuchName => {
                answer.metadata.response_code = ResponseCode::NXDomain;
                self.add_soa(&mut answer, &name);
            }
            Found::NotImplemented => answer.metadata.response_code = ResponseCode::NotImp,
            Found::Unaskable => {
                answer.metadata.authoritative = false;
                answer.metadata.response_code = ResponseCode::ServFail;
            }
            Found::NotOurs(resolvers) => return Verdict::Forward { resolvers },
        }
        emit(&answer, &message, tcp).map_or(Verdict::Drop, Verdict::Answer)
    }

    /// SERVFAIL for a query whose forward failed; `None` when it is no query.
    #[must_use]
    pub fn servfail(query: &[u8]) -> Option<Vec<u8>> {
        let header = query.first_chunk::<HEADER>()?;
        let [_, _, flags, ..] = header;
        if flags & 0x80 != 0 {
            return None;
        }
        let Ok(message) = Message::from_vec(query) else {
            return Some(bare(header, ResponseCode::ServFail));
        };
        let mut answer = reply(&message);
        answer.metadata.response_code = ResponseCode::ServFail;
        emit(&answer, &message, false)
    }

    fn find(&self, name: &str, kind: RecordType) -> Found {
        if under(name, "onion") {
            // RFC 7686: such names must not reach the DNS.
            return Found::NoSuchName;
        }
        if kind == RecordType::PTR
            && let Some(found) = self.find_ptr(name)
        {
            return found;
        }
        if name == SERVICE_NAME {
            return typed(&[SERVICE_V4.into(), SERVICE_V6.into()], kind);
        }
        if matches!(kind, RecordType::A | RecordType::AAAA | RecordType::ANY)
            && let Some(ip) = self.via(name)
        {
            return typed(&[ip], kind);
        }
        if let Some(addresses) = self.addresses_of(name) {
            return typed(addresses, kind);
        }
        if !self.suffix.is_empty() && under(name, &self.suffix) {
            return Found::NoSuchName;
        }
        match self.route_of(name) {
            Some((_, Route::Local)) => Found::NoSuchName,
            Some((_, Route::Ask(resolvers))) => ask(resolvers),
            None => match &self.default {
                Some(resolvers) => ask(resolvers),
                None => Found::NotOurs(Vec::new()),
            },
        }
    }

    fn find_ptr(&self, name: &str) -> Option<Found> {
        let mut labels = name.split('.');
        let browse = matches!(labels.next(), Some("b" | "db" | "r" | "dr" | "lb"));
        if browse && labels.next() == Some("_dns-sd") && labels.next() == Some("_udp") {
            // Bonjour asks every network for browsing domains; no tailnet has any.
            return Some(Found::NoSuchName);
        }
        let ip = reverse_ip(name)?;
        let target = if ip == IpAddr::V4(SERVICE_V4) || ip == IpAddr::V6(SERVICE_V6) {
            SERVICE_NAME
        } else {
            self.reverse.get(&ip)?
        };
        let target = Name::from_ascii(format!("{target}.")).ok()?;
        Some(Found::Data(RData::PTR(PTR(target))))
    }

    /// The address of a 4via6 name, `a-b-c-d-via-<site>`: bare, under our suffix, or under the vendor's
    /// (dataplane.md 8.2).
    fn via(&self, name: &str) -> Option<IpAddr> {
        let (label, domain) = name.split_once('.').unwrap_or((name, ""));
        let ours = !self.suffix.is_empty() && under(domain, &self.suffix);
        let known = ours || under(domain, "ts.net") || under(domain, "tailscale.net");
        if !domain.is_empty() && !known {
            return None;
        }
        let (v4, site) = label.split_once("-via-")?;
        let v4: Ipv4Addr = v4.replace('-', ".").parse().ok()?;
        let site: u32 = match site.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16).ok()?,
            None => site.parse().ok()?,
        };
        let low = (u64::from(site) << 32) | u64::from(u32::from(v4));
        Some(IpAddr::V6((VIA_PREFIX | u128::from(low)).into()))
    }

    fn addresses_of(&self, name: &str) -> Option<&[IpAddr]> {
        let own = self.extras.get(name).or_else(|| self.hosts.get(name));
        own.or_else(|| parents(name).skip(1).find(|p| self.open.contains(*p)).and_then(|p| self.hosts.get(p)))
            .map(Vec::as_slice)
    }

    /// The longest suffix of `name` that has a route.
    fn route_of<'n>(&self, name: &'n str) -> Option<(&'n str, &Route)> {
        parents(name).chain(std::iter::once("")).find_map(|p| self.routes.get(p).map(|r| (p, r)))
    }

    fn add_soa(&self, answer: &mut Message, name: &str) {
        let zone = if !self.suffix.is_empty() && under(name, &self.suffix) {
            &self.suffix
        } else {
            self.route_of(name).map_or(name, |(suffix, _)| suffix)
        };
        let names = (
            Name::from_ascii(format!("{zone}.")),
            Name::from_ascii(format!("{SERVICE_NAME}.")),
            Name::from_ascii("nobody.invalid."),
        );
        if let (Ok(zone), Ok(server), Ok(mailbox)) = names {
            let soa = SOA::new(server, mailbox, 1, 60, 60, 600, NEGATIVE_TTL);
            answer.add_authority(Record::from_rdata(zone, NEGATIVE_TTL, RData::SOA(soa)));
        }
    }
}

/// Name, type and class of the one question of a message. Two messages with the same are of the same
/// question, but for the case of letters.
#[must_use]
pub fn question(message: &[u8]) -> Option<&[u8]> {
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let mut at = HEADER;
    loop {
        // A first name has nothing before it to point to, so a pointer is as wrong as a long label.
        match usize::from(*message.get(at)?) {
            0 => return message.get(HEADER..at + 5),
            len if len < 64 => at += 1 + len,
            _ => return None,
        }
    }
}

/// A name as the tables keep it: lower case, no dot at the end.
fn key(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// The key of a name off the wire. A dot inside a label becomes NUL, which no key of ours holds:
/// the label `a.b` must not be taken for the two labels a and b.
fn name_key(name: &Name) -> String {
    let mut out = String::with_capacity(name.len());
    for label in name.iter() {
        if !out.is_empty() {
            out.push('.');
        }
        let plain = |b: &u8| match b {
            b'.' => '\0',
            b => char::from(b.to_ascii_lowercase()),
        };
        out.extend(label.iter().map(plain));
    }
    out
}

/// `a.b.c`, `b.c`, `c`.
fn parents(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(name), |n| n.split_once('.').map(|(_, rest)| rest))
}

fn under(name: &str, suffix: &str) -> bool {
    name.strip_suffix(suffix).is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

fn has_v4(node: &wire::Node) -> bool {
    node.addresses.iter().any(|a| a.addr().is_ipv4())
}

fn has_cap(node: &wire::Node, cap: &str) -> bool {
    node.cap_map.contains_key(cap) || node.capabilities.iter().any(|c| c == cap)
}

/// The resolvers we can ask: plain DNS, and not ourselves.
fn addresses(resolvers: &[wire::Resolver]) -> Vec<SocketAddr> {
    let plain = |text: &str| {
        text.parse().ok().or_else(|| text.parse().ok().map(|ip: IpAddr| SocketAddr::new(ip, 53)))
    };
    resolvers
        .iter()
        .filter_map(|r| plain(&r.addr))
        .filter(|a| a.ip() != IpAddr::V4(SERVICE_V4) && a.ip() != IpAddr::V6(SERVICE_V6))
        .take(MAX_RESOLVERS)
        .collect()
}

/// Forwards; but never to the host's own when control named resolvers: those names were meant for
/// somebody else.
fn ask(resolvers: &[SocketAddr]) -> Found {
    if resolvers.is_empty() {
        return Found::Unaskable;
    }
    Found::NotOurs(resolvers.to_vec())
}

fn typed(addresses: &[IpAddr], kind: RecordType) -> Found {
    let first = match kind {
        RecordType::A => addresses.iter().find(|a| a.is_ipv4()),
        RecordType::AAAA => addresses.iter().find(|a| a.is_ipv6()),
        RecordType::ANY => addresses.first(),
        RecordType::NS | RecordType::SOA | RecordType::AXFR | RecordType::HINFO => {
            return Found::NotImplemented;
        }
        _ => return Found::Nothing { soa: false },
    };
    match first {
        Some(IpAddr::V4(ip)) => Found::Data(RData::A(A(*ip))),
        Some(IpAddr::V6(ip)) => Found::Data(RData::AAAA(AAAA(*ip))),
        None => Found::Nothing { soa: true },
    }
}

/// The address a whole reverse name stands for.
fn reverse_ip(name: &str) -> Option<IpAddr> {
    if let Some(front) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0_u8; 4];
        let mut labels = front.split('.');
        for slot in octets.iter_mut().rev() {
            *slot = labels.next()?.parse().ok()?;
        }
        return labels.next().is_none().then(|| octets.into());
    }
    let front = name.strip_suffix(".ip6.arpa")?;
    let mut bits = 0_u128;
    let mut count = 0_u32;
    for label in front.split('.') {
        let digit = match label.as_bytes() {
            [c] => char::from(*c).to_digit(16)?,
            _ => return None,
        };
        // The first label is the lowest nibble.
        bits |= u128::from(digit).checked_shl(4 * count)?;
        count += 1;
    }
    (count == 32).then(|| IpAddr::V6(bits.into()))
}

fn reply(query: &Message) -> Message {
    let mut answer = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    answer.metadata.op_code = query.metadata.op_code;
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = query.metadata.recursion_desired;
    answer.add_queries(query.queries.iter().take(1).map(Query::clone));
    if query.edns.is_some() {
        // Who asks with EDNS is answered with EDNS (RFC 6891 6.1.1).
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP);
        answer.set_edns(edns);
    }
    answer
}

fn emit(answer: &Message, query: &Message, tcp: bool) -> Option<Vec<u8>> {
    let bytes = answer.to_vec().ok()?;
    let limit = query.edns.as_ref().map_or(PLAIN_UDP, |e| e.max_payload().clamp(PLAIN_UDP, MAX_UDP));
    if tcp || bytes.len() <= usize::from(limit) {
        return Some(bytes);
    }
    answer.truncate().to_vec().ok()
}

fn refuse(query: &[u8], code: ResponseCode) -> Verdict {
    query.first_chunk::<HEADER>().map_or(Verdict::Drop, |h| Verdict::Answer(bare(h, code)))
}

/// An answer of nothing but a header, for questions that cannot be repeated.
fn bare(header: &[u8; HEADER], code: ResponseCode) -> Vec<u8> {
    let [id1, id0, flags, ..] = *header;
    // QR, the opcode and RD of the query; RA as RD; the code.
    let recursion = flags & 0x01;
    let mut out = vec![0; HEADER];
    if let Some(front) = out.first_chunk_mut::<4>() {
        *front = [id1, id0, 0x80 | (flags & 0x79), (recursion << 7) | code.low()];
    }
    out
}

#[cfg(test)]
#[path = "zone_tests.rs"]
mod tests;
