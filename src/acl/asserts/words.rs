//! The words of `tests` that no other section has: one destination with one port, a protocol with ports,
//! the attributes of a source.

use super::super::ast::{AttrValue, Spanned, Test};
use super::super::error::quote;
use super::super::posture::Attributes;
use super::Unfit;

/// What a test without a protocol asks for: any of TCP, UDP, ICMP and ICMPv6.
const DEFAULT_PROTOCOLS: [u8; 4] = [6, 17, 1, 58];

/// Protocols that a test asks for; any of them will do.
pub(super) fn protocols(word: Option<&Spanned<String>>) -> Result<&'static [u8], Unfit> {
    let text = word.map_or("", |w| w.value.trim());
    match text.to_ascii_lowercase().as_str() {
        "" => Ok(&DEFAULT_PROTOCOLS),
        "tcp" | "6" => Ok(&[6]),
        "udp" | "17" => Ok(&[17]),
        "sctp" | "132" => Ok(&[132]),
        _ => Err((
            format!("\"proto\" {} has no ports to test", quote(text)),
            "tests know tcp, udp and sctp; without \"proto\" any of tcp, udp and icmp will do",
        )),
    }
}

/// Attributes that a test gives its source; `None` when it gives none.
pub(super) fn attributes(test: &Test) -> Option<Attributes> {
    let known = |(name, value): (&String, &serde_json::Value)| {
        let value = match value {
            serde_json::Value::String(text) => AttrValue::Text(text.clone()),
            serde_json::Value::Bool(yes) => AttrValue::Bool(*yes),
            serde_json::Value::Number(number) => AttrValue::Number(number.as_f64()?),
            _ => return None,
        };
        Some((name.clone(), value))
    };
    (!test.posture_attrs.is_empty()).then(|| test.posture_attrs.iter().filter_map(known).collect())
}

/// Splits `host:port` at the last colon. An IPv6 address stands in brackets; there is one port.
pub(super) fn split(text: &str) -> Result<(String, u16), Unfit> {
    const PORT_HINT: &str = "a test needs one port from 1 to 65535, such as tag:server:22";
    let Some((name, port)) = text.rsplit_once(':') else {
        return Err((format!("{} has no port", quote(text)), PORT_HINT));
    };
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port = digits.then(|| port.parse::<u16>().ok()).flatten().filter(|p| *p > 0);
    let Some(port) = port else {
        return Err((format!("{} has no single port", quote(text)), PORT_HINT));
    };
    let name = name.trim();
    let inner = name.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
    let v6 = |n: &str| n.parse::<std::net::Ipv6Addr>().is_ok();
    match inner {
        Some(inner) if v6(inner) => Ok((inner.to_owned(), port)),
        None if !v6(name) && !name.contains(['[', ']', '/']) => Ok((name.to_owned(), port)),
        _ => Err((
            format!("{} cannot be a destination of a test", quote(text)),
            "write one address, an IPv6 address in brackets: [fd7a:115c:a1e0::1]:22",
        )),
    }
}
