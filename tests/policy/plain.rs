//! Addresses and ranges, said plainly, and a packet filter as a client reads it: rule by rule, text by
//! text. For the naive evaluator's questions and for reading what the engine answers.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::LazyLock;

use ipnet::IpNet;
use tsd::acl::WorldNode;
use tsd::wire::FilterRule;

/// First and last address.
pub(crate) type Span = (IpAddr, IpAddr);

/// `*` as a source, without routes.
pub(crate) static TAILNET: LazyLock<Vec<Span>> = LazyLock::new(|| {
    let texts = ["100.64.0.0-100.115.91.255", "100.115.94.0-100.127.255.255", "fd7a:115c:a1e0::/48"];
    texts.iter().flat_map(|t| spans(t)).collect()
});

/// `autogroup:internet`.
pub(crate) static INTERNET: LazyLock<Vec<Span>> = LazyLock::new(|| {
    let texts = [
        "0.0.0.0-9.255.255.255",
        "11.0.0.0-100.63.255.255",
        "100.128.0.0-169.253.255.255",
        "169.255.0.0-172.15.255.255",
        "172.32.0.0-192.167.255.255",
        "192.169.0.0-255.255.255.255",
        "2000::/3",
    ];
    texts.iter().flat_map(|t| spans(t)).collect()
});

/// `*`, an address, a network or `a-b`.
pub(crate) fn spans(text: &str) -> Vec<Span> {
    let net = |t: &str| t.parse::<IpNet>().unwrap_or_else(|_| t.parse::<IpAddr>().unwrap().into());
    match text.split_once('-') {
        _ if text == "*" => ["0.0.0.0/0", "::/0"].iter().flat_map(|t| spans(t)).collect(),
        Some((a, b)) => vec![(net(a).addr(), net(b).addr())],
        None => vec![span(net(text))],
    }
}

pub(crate) fn span(net: IpNet) -> Span {
    (net.network(), net.broadcast())
}

pub(crate) fn within((first, last): Span, ip: IpAddr) -> bool {
    first.is_ipv4() == ip.is_ipv4() && first <= ip && ip <= last
}

/// The next address; the last one stays.
pub(crate) fn after(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => IpAddr::V4(ip.to_bits().saturating_add(1).into()),
        IpAddr::V6(ip) => IpAddr::V6(ip.to_bits().saturating_add(1).into()),
    }
}

/// The address before; the first one stays.
pub(crate) fn before(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => IpAddr::V4(ip.to_bits().saturating_sub(1).into()),
        IpAddr::V6(ip) => IpAddr::V6(ip.to_bits().saturating_sub(1).into()),
    }
}

pub(crate) fn addresses(node: &WorldNode) -> [IpAddr; 2] {
    [node.ipv4.into(), node.ipv6.into()]
}

/// Served routes that are not exit routes.
pub(crate) fn subnets(node: &WorldNode) -> impl Iterator<Item = IpNet> {
    node.served_routes.iter().copied().filter(|r| r.prefix_len() > 0)
}

pub(crate) fn is_exit(node: &WorldNode) -> bool {
    node.served_routes.iter().any(|r| r.prefix_len() == 0)
}

/// Whether packets to `ip` are for the node or for what is behind it.
pub(crate) fn delivers(node: &WorldNode, ip: IpAddr) -> bool {
    addresses(node).contains(&ip)
        || subnets(node).any(|r| r.contains(&ip))
        || (is_exit(node) && INTERNET.iter().any(|s| within(*s, ip)))
}

/// One packet's beginning.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) port: u16,
    pub(crate) protocol: u8,
}

/// Sources, destinations with the places of their ports, and the rule.
type Read<'a> = (Vec<Span>, Vec<(Span, &'a FilterRule, usize)>, &'a FilterRule);

/// A packet filter with its texts read once.
pub(crate) struct Filter<'a> {
    rules: Vec<Read<'a>>,
}

impl<'a> Filter<'a> {
    pub(crate) fn new(rules: &'a [FilterRule]) -> Self {
        let read = |rule: &'a FilterRule| {
            let sources = rule.src_ips.iter().flat_map(|t| spans(t)).collect();
            let entries = rule.dst_ports.iter().enumerate();
            let entries = entries.flat_map(|(at, d)| spans(&d.ip).into_iter().map(move |s| (s, rule, at)));
            (sources, entries.collect(), rule)
        };
        Self { rules: rules.iter().map(read).collect() }
    }

    pub(crate) fn allows(&self, flow: &Flow) -> bool {
        self.rules.iter().any(|(sources, entries, rule)| {
            let protocol = if rule.ip_proto.is_empty() { &[6, 17, 1, 58][..] } else { &rule.ip_proto };
            protocol.contains(&i32::from(flow.protocol))
                && sources.iter().any(|s| within(*s, flow.from))
                && entries
                    .iter()
                    .any(|(s, rule, at)| within(*s, flow.to) && rule.dst_ports[*at].ports.contains(flow.port))
        })
    }

    /// Names of the capabilities `from` has at `to`.
    pub(crate) fn capabilities(&self, from: IpAddr, to: IpAddr) -> BTreeSet<String> {
        let rules = self.rules.iter().filter(|(s, _, _)| s.iter().any(|s| within(*s, from)));
        let grants = rules.flat_map(|(_, _, rule)| &rule.cap_grant);
        let here = grants.filter(|g| g.dsts.iter().any(|d| d.contains(&to)));
        here.flat_map(|g| g.cap_map.keys().cloned()).collect()
    }
}
