//! Address texts of packet filters as ranges of numbers, to compare sets whatever their spelling, and to
//! ask whether an address is in one.

use std::net::IpAddr;

use ipnet::IpNet;

/// One family's addresses from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    v6: bool,
    first: u128,
    last: u128,
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

impl Span {
    fn new(first: IpAddr, last: IpAddr) -> Self {
        Self { v6: first.is_ipv6(), first: number(first), last: number(last) }
    }

    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        self.v6 == ip.is_ipv6() && (self.first..=self.last).contains(&number(ip))
    }
}

/// `*`, an address, a network, or `a-b`.
pub(crate) fn spans(text: &str) -> Vec<Span> {
    if text == "*" {
        return ["0.0.0.0/0", "::/0"].iter().flat_map(|t| spans(t)).collect();
    }
    if let Some((first, last)) = text.split_once('-') {
        return vec![Span::new(first.parse().unwrap(), last.parse().unwrap())];
    }
    let net = text.parse::<IpNet>().unwrap_or_else(|_| text.parse::<IpAddr>().unwrap().into());
    vec![Span::new(net.network(), net.broadcast())]
}

/// The union of texts, in order and with neighbours joined.
pub(crate) fn set<'a>(texts: impl IntoIterator<Item = &'a std::sync::Arc<str>>) -> Vec<Span> {
    let mut all: Vec<Span> = texts.into_iter().flat_map(|t| spans(t)).collect();
    all.sort_unstable();
    let mut joined: Vec<Span> = Vec::new();
    for span in all {
        match joined.last_mut() {
            Some(last) if last.v6 == span.v6 && span.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(span.last);
            }
            _ => joined.push(span),
        }
    }
    joined
}
