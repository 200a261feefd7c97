//! The small words of the language: who or what a string names (SEMANTICS.md 4.1), the ports behind
//! a destination (6.4) and protocols (6.5).

use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{Role, Tag};
use crate::wire::PortRange;

pub(super) use super::ast::Alias;
use super::ast::IpEntry;
use super::error::quote;

/// Why a string names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AliasFault {
    /// Starts with `tag:` and goes on as no tag can.
    Tag,
    /// No such autogroup.
    Autogroup,
    /// `autogroup:nonroot`, which is a login and no address.
    NonRoot,
    /// Two addresses of different families, or the first above the second.
    Range,
    /// Has an `@` and is no user's name.
    User,
    /// Nothing of the language.
    Invalid,
}

/// All autogroups, for suggestions.
pub(super) const AUTOGROUPS: [&str; 12] = [
    "autogroup:member",
    "autogroup:tagged",
    "autogroup:self",
    "autogroup:internet",
    "autogroup:danger-all",
    "autogroup:shared",
    "autogroup:owner",
    "autogroup:admin",
    "autogroup:network-admin",
    "autogroup:it-admin",
    "autogroup:billing-admin",
    "autogroup:auditor",
];

impl Alias {
    /// Reads a trimmed string; the first match decides.
    pub(super) fn parse(text: &str) -> Result<Self, AliasFault> {
        if text == "*" {
            return Ok(Self::Any);
        }
        // Before the `@`: identity providers make groups such as group:x@example.com.
        if let Some((kind, name)) = text.split_once(':')
            && let Some(found) = Self::prefixed(kind, name, text)
        {
            return found;
        }
        if let Some(net) = parse_prefix(text) {
            return Ok(Self::Prefix(net));
        }
        if text.contains('@') {
            return parse_user(text).map(Self::User);
        }
        if let Some((low, high)) = text.split_once('-')
            && let (Ok(low), Ok(high)) = (low.parse::<IpAddr>(), high.parse::<IpAddr>())
        {
            let ordered = low.is_ipv4() == high.is_ipv4() && low <= high;
            return if ordered { Ok(Self::Range(low, high)) } else { Err(AliasFault::Range) };
        }
        host(text)
    }

    fn prefixed(kind: &str, name: &str, text: &str) -> Option<Result<Self, AliasFault>> {
        let filled = |alias: Self| if name.is_empty() { Err(AliasFault::Invalid) } else { Ok(alias) };
        Some(match kind {
            "group" => filled(Self::Group(text.to_owned())),
            "tag" => Tag::parse(text).map(Self::Tag).map_err(|_| AliasFault::Tag),
            "autogroup" => Self::autogroup(name),
            "ipset" => filled(Self::IpSet(text.to_owned())),
            "svc" => filled(Self::Service(text.to_owned())),
            "host" => host(name),
            "user" => match name.strip_prefix("*@") {
                Some(domain) if !domain.is_empty() && !domain.contains(char::is_whitespace) => {
                    Ok(Self::Domain(domain.to_owned()))
                }
                _ => Err(AliasFault::User),
            },
            _ => return None,
        })
    }

    fn autogroup(name: &str) -> Result<Self, AliasFault> {
        Ok(match name {
            "member" => Self::Member,
            "tagged" => Self::Tagged,
            "self" => Self::Own,
            "internet" => Self::Internet,
            "danger-all" => Self::DangerAll,
            "shared" => Self::Shared,
            "nonroot" => return Err(AliasFault::NonRoot),
            other => Self::Role(Role::parse(other).ok_or(AliasFault::Autogroup)?),
        })
    }

    /// Whether it is written `autogroup:…`.
    pub(super) const fn is_autogroup(&self) -> bool {
        matches!(
            self,
            Self::Member
                | Self::Tagged
                | Self::Own
                | Self::Internet
                | Self::DangerAll
                | Self::Shared
                | Self::Role(_)
        )
    }
}

/// As it is written.
impl std::fmt::Display for Alias {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::User(name) if name.contains('@') => f.write_str(name),
            Self::User(name) => write!(f, "{name}@"),
            Self::Domain(domain) => write!(f, "user:*@{domain}"),
            Self::Group(name) | Self::Host(name) | Self::IpSet(name) | Self::Service(name) => {
                f.write_str(name)
            }
            Self::Tag(tag) => f.write_str(tag.as_str()),
            Self::Prefix(net) if net.prefix_len() == net.max_prefix_len() => write!(f, "{}", net.addr()),
            Self::Prefix(net) => write!(f, "{net}"),
            Self::Range(low, high) => write!(f, "{low}-{high}"),
            Self::Member => f.write_str("autogroup:member"),
            Self::Tagged => f.write_str("autogroup:tagged"),
            Self::Own => f.write_str("autogroup:self"),
            Self::Internet => f.write_str("autogroup:internet"),
            Self::DangerAll => f.write_str("autogroup:danger-all"),
            Self::Shared => f.write_str("autogroup:shared"),
            Self::Role(role) => write!(f, "autogroup:{}", role.as_str()),
        }
    }
}

/// A name of `hosts`.
fn host(text: &str) -> Result<Alias, AliasFault> {
    let odd = |c: char| matches!(c, ':' | '/' | '@') || c.is_whitespace();
    if text.is_empty() || text.contains(odd) {
        return Err(AliasFault::Invalid);
    }
    Ok(Alias::Host(text.to_owned()))
}

/// A user token without its trailing `@` (SEMANTICS.md 4.2).
pub(super) fn parse_user(text: &str) -> Result<String, AliasFault> {
    let name = text.strip_suffix('@').unwrap_or(text);
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c == '*') {
        return Err(AliasFault::User);
    }
    Ok(name.to_owned())
}

/// An address or prefix, host bits cleared.
pub(super) fn parse_prefix(text: &str) -> Option<IpNet> {
    let Some((address, length)) = text.split_once('/') else {
        return text.parse::<IpAddr>().ok().map(IpNet::from);
    };
    let plain = length.bytes().all(|b| b.is_ascii_digit())
        && !length.is_empty()
        && (length == "0" || !length.starts_with('0'));
    if !plain {
        return None;
    }
    let net = IpNet::new(address.parse().ok()?, length.parse().ok()?).ok()?;
    Some(net.trunc())
}

/// Message and remedy.
pub(super) type Refusal = (String, &'static str);

const PORTS_HINT: &str = "ports are *, one port, a range such as 80-443, or a list such as 22,80-443";

/// Splits `alias:ports` at the last colon.
pub(super) fn split_destination(text: &str) -> Result<(String, Vec<PortRange>), Refusal> {
    let Some((alias, ports)) = text.rsplit_once(':') else {
        return Err((
            format!("dst={}: hostport must contain a colon", quote(text)),
            "write the ports behind the destination, such as tag:server:22 or tag:server:*",
        ));
    };
    let ranges =
        parse_ports(ports).map_err(|(message, hint)| (format!("dst={}: {message}", quote(text)), hint))?;
    let alias = alias.trim();
    if !alias.contains(['[', ']']) {
        return Ok((alias.to_owned(), ranges));
    }
    let inner = alias.strip_prefix('[').and_then(|a| a.split_once(']'));
    if let Some((address, rest)) = inner
        && address.parse::<std::net::Ipv6Addr>().is_ok()
        && (rest.is_empty() || rest.starts_with('/'))
    {
        return Ok((format!("{address}{rest}"), ranges));
    }
    Err((
        format!("dst={}: brackets may only hold an IPv6 address", quote(text)),
        "write [fd7a:115c:a1e0::1]:22 or [fd7a:115c:a1e0::]/48:22",
    ))
}

/// Reads `*` or a list of ports and ranges, kept in order and not joined.
pub(super) fn parse_ports(text: &str) -> Result<Vec<PortRange>, Refusal> {
    if text == "*" {
        return Ok(vec![PortRange::ANY]);
    }
    text.split(',').map(parse_range).collect()
}

/// One port or range. The reasons are those of the public client's reader, which the captured ones show
/// to be the hosted service's too.
fn parse_range(text: &str) -> Result<PortRange, Refusal> {
    let fail = |why: &str, hint| Err((format!("port range {}: {why}", quote(text)), hint));
    if text.is_empty() {
        return Err((format!("invalid port list: {}", quote(text)), PORTS_HINT));
    }
    if text.matches('-').count() > 1 {
        return fail("too many dashes(-)", PORTS_HINT);
    }
    let port = |digits| parse_number(digits).and_then(|n| u16::try_from(n).ok());
    let (first, last) = text.split_once('-').map_or((text, None), |(a, b)| (a, Some(b)));
    let Some(first) = port(first) else {
        return fail("invalid first integer", PORTS_HINT);
    };
    let Some(last) = last else {
        if first == 0 {
            return fail("first port must be >0, or use '*' for wildcard", "write * for all ports");
        }
        return Ok(PortRange { first, last: first });
    };
    match port(last) {
        None => fail("invalid last integer", PORTS_HINT),
        Some(0) => fail("first port must be >0, or use '*' for wildcard", "write * for all ports"),
        Some(last) if last < first => {
            fail("first port must be >= last port", "the last port of a range is not below the first")
        }
        Some(last) => Ok(PortRange { first, last }),
    }
}

/// Plain decimal digits.
fn parse_number(text: &str) -> Option<u32> {
    (text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty() && text.len() <= 9)
        .then(|| text.parse().ok())
        .flatten()
}

/// Reads one string of a grant's `ip` (SEMANTICS.md 6.6): a number alone is a port, and `*` before the
/// colon is what no protocol is.
pub(super) fn parse_ip(text: &str) -> Result<IpEntry, Refusal> {
    const HINT: &str = "write protocol:ports, such as tcp:443 or udp:53-60, or ports alone";
    if text.is_empty() {
        return Err((format!("ip {}: empty string", quote(text)), HINT));
    }
    let (protocol, ports) = text.rsplit_once(':').unwrap_or(("*", text));
    let ports = parse_ports(ports).map_err(|(message, hint)| {
        let protocol =
            parse_protocol(text).ok().flatten().filter(|_| !text.starts_with(|c: char| c.is_ascii_digit()));
        (message, if protocol.is_some() { "write :* behind a protocol, such as icmp:*" } else { hint })
    })?;
    let protocol = match protocol {
        "*" => None,
        "" => return Err((format!("ip {}: empty protocol", quote(text)), HINT)),
        name => parse_protocol(name)?,
    };
    if !has_ports(protocol) && ports.iter().any(|p| *p != PortRange::ANY) {
        let name = protocol_name(protocol.unwrap_or_default());
        return Err((format!("ip {}: {name} has no ports", quote(text)), "write :* behind the protocol"));
    }
    Ok(IpEntry { protocol, ports })
}

/// Names of protocols (SEMANTICS.md 6.5, and what the public client reads besides); of several names for
/// one number the first is shown.
const PROTOCOLS: [(&str, u8); 18] = [
    ("icmp", 1),
    ("igmp", 2),
    ("ipv4", 4),
    ("ip-in-ip", 4),
    ("tcp", 6),
    ("egp", 8),
    ("igp", 9),
    ("udp", 17),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("ipv6-icmp", 58),
    ("sctp", 132),
    ("fc", 133),
    ("dccp", 33),
    ("tsmp", 99),
    ("icmpv4", 1),
    ("icmpv6", 58),
];

/// Reads a rule's protocol; empty is the default set.
pub(super) fn parse_protocol(text: &str) -> Result<Option<u8>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    let lower = text.to_lowercase();
    if let Some((_, number)) = PROTOCOLS.iter().find(|(name, _)| *name == lower) {
        return Ok(Some(*number));
    }
    let number = (!lower.starts_with('0')).then(|| parse_number(&lower)).flatten();
    match number.map(u8::try_from) {
        Some(Ok(number)) => Ok(Some(number)),
        _ => Err((
            format!(
                "proto name {} not known; use protocol number 0-255 or protocol name (icmp, tcp, udp, etc.)",
                quote(text)
            ),
            "leave proto out for TCP, UDP and ICMP; numbers go from 1 to 255 without leading zeros",
        )),
    }
}

/// Whether a protocol has ports.
pub(super) const fn has_ports(protocol: Option<u8>) -> bool {
    matches!(protocol, None | Some(6 | 17 | 132))
}

/// A protocol in words.
pub(super) fn protocol_name(protocol: u8) -> String {
    PROTOCOLS
        .iter()
        .find(|(_, number)| *number == protocol)
        .map_or_else(|| format!("protocol {protocol}"), |(name, _)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognition_order() {
        assert!(matches!(Alias::parse("10.1.2.3/8"), Ok(Alias::Prefix(n)) if n.to_string() == "10.0.0.0/8"));
        assert_eq!(Alias::parse("alice@"), Ok(Alias::User("alice".into())));
        assert_eq!(Alias::parse("alice@example.com"), Ok(Alias::User("alice@example.com".into())));
        assert_eq!(Alias::parse("web"), Ok(Alias::Host("web".into())));
        assert_eq!(Alias::parse("tag:1a"), Err(AliasFault::Tag));
        assert_eq!(Alias::parse("autogroup:mebmer"), Err(AliasFault::Autogroup));
        assert_eq!(Alias::parse("svc:x"), Ok(Alias::Service("svc:x".into())));
        assert_eq!(Alias::parse("host:web"), Ok(Alias::Host("web".into())));
        assert_eq!(Alias::parse("group:a@example.com"), Ok(Alias::Group("group:a@example.com".into())));
        assert_eq!(Alias::parse("user:*@example.com"), Ok(Alias::Domain("example.com".into())));
        assert_eq!(Alias::parse("user:*@"), Err(AliasFault::User));
        assert!(matches!(Alias::parse("10.0.0.1-10.0.0.9"), Ok(Alias::Range(..))));
        assert_eq!(Alias::parse("10.0.0.9-10.0.0.1"), Err(AliasFault::Range));
        assert_eq!(Alias::parse("10.0.0.9-fd7a::1"), Err(AliasFault::Range));
        assert_eq!(Alias::parse("autogroup:it-admin"), Ok(Alias::Role(Role::ItAdmin)));
        assert_eq!(Alias::parse("autogroup:nonroot"), Err(AliasFault::NonRoot));
        assert_eq!(Alias::parse("fd7a::1"), Ok(Alias::Prefix("fd7a::1/128".parse().unwrap())));
        for text in
            ["*", "alice@", "user:*@a.example", "10.0.0.0/8", "10.0.0.1", "autogroup:auditor", "svc:x"]
        {
            assert_eq!(Alias::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Alias::parse("10.0.0.0/33"), Err(AliasFault::Invalid));
        assert_eq!(Alias::parse("10.0.0.0/08"), Err(AliasFault::Invalid));
        assert_eq!(Alias::parse(""), Err(AliasFault::Invalid));
    }

    #[test]
    fn destinations_split_at_the_last_colon() {
        let one = |t: &str| split_destination(t).map(|(a, p)| (a, p.len()));
        assert_eq!(one("tag:a:22,80-443"), Ok(("tag:a".into(), 2)));
        assert_eq!(one("[fd7a::1]:22"), Ok(("fd7a::1".into(), 1)));
        assert_eq!(one("[fd7a::]/48:22"), Ok(("fd7a::/48".into(), 1)));
        assert_eq!(one("fd7a::1:22"), Ok(("fd7a::1".into(), 1)));
        assert!(one("[web]:22").is_err());
        assert!(one("web").unwrap_err().0.contains("must contain a colon"));
        assert_eq!(
            one("autogroup:self").unwrap_err().0,
            "dst=\"autogroup:self\": port range \"self\": invalid first integer"
        );
    }

    #[test]
    fn bad_ports_are_refused() {
        for bad in ["", "0", "65536", "9-1", "1-2-3", "a", "1,", "1, 2", "+1", "0-0", "1-"] {
            assert!(parse_ports(bad).is_err(), "{bad:?} was accepted");
        }
        assert_eq!(parse_ports("0-5").map(|p| p[0].last), Ok(5));
        assert!(parse_ports("0").unwrap_err().0.contains("first port must be >0"));
        for (text, why) in [
            ("", "invalid port list: \"\""),
            ("65536", "port range \"65536\": invalid first integer"),
            ("-1", "port range \"-1\": invalid first integer"),
            ("80-65536", "port range \"80-65536\": invalid last integer"),
            ("9-1", "port range \"9-1\": first port must be >= last port"),
            ("1-2-3", "port range \"1-2-3\": too many dashes(-)"),
        ] {
            assert_eq!(parse_ports(text).unwrap_err().0, why);
        }
    }

    #[test]
    fn grants_name_a_protocol_before_the_ports_or_any() {
        let one = |text| parse_ip(text).map(|e| (e.protocol, e.ports.len())).map_err(|(why, _)| why);
        assert_eq!(one("*"), Ok((None, 1)));
        assert_eq!(one("*:*"), Ok((None, 1)));
        assert_eq!(one("*:80"), Ok((None, 1)));
        assert_eq!(one("47"), Ok((None, 1)));
        assert_eq!(one("6:22,80"), Ok((Some(6), 2)));
        assert_eq!(one("ICMPv6:*"), Ok((Some(58), 1)));
        assert_eq!(one("icmp"), Err("port range \"icmp\": invalid first integer".into()));
        assert_eq!(one("http:ssh"), Err("port range \"ssh\": invalid first integer".into()));
        for bad in ["", ":80", "tcp:80:90", "http:80", "icmp:8", "*:0", "tcp:"] {
            assert!(one(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(one("tcp:80:90").unwrap_err().contains("proto name \"tcp:80\" not known"));
    }

    #[test]
    fn protocols() {
        assert_eq!(parse_protocol("TCP"), Ok(Some(6)));
        assert_eq!(parse_protocol("47"), Ok(Some(47)));
        assert_eq!(parse_protocol(""), Ok(None));
        for bad in ["*", "0", "06", "256", "-1", "http"] {
            assert!(parse_protocol(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
