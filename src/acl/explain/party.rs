//! Whom a question is about: what a person typed, found among nodes, people and names of the policy.

use std::net::IpAddr;

use crate::acl::alias::{Alias, has_ports, parse_prefix, parse_protocol, protocol_name};
use crate::acl::compile::Inner;
use crate::acl::error::{Faults, Lines, did_you_mean, quote};
use crate::acl::ground::GroundNode;
use crate::acl::ranges::{Bits, Range};
use crate::acl::resolve::Resolver;
use crate::keys::NodeId;

use super::{AskFault, Asked, Compiled, Facts, Question};

/// At most so many devices of one end are looked at.
pub(super) const MOST: usize = 2000;
/// Addresses that stand for the internet when it is asked about as a whole: documentation networks.
const INTERNET: [[u8; 4]; 1] = [[198, 51, 100, 1]];

/// One thing at an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A node, by its IPv4, its IPv6 address or both.
    Node(NodeId, [bool; 2]),
    /// An address that is no node's.
    Address(IpAddr),
}

/// One end of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Party {
    /// In words.
    pub(super) words: String,
    /// What is meant, at most [`MOST`].
    pub(super) places: Vec<Place>,
    /// How many are meant.
    pub(super) total: usize,
    /// What had to be chosen, in a sentence.
    pub(super) note: Option<String>,
}

/// Reads a question.
pub(super) fn question(policy: &Compiled, asked: &Asked) -> Result<Question, Vec<AskFault>> {
    let inner = &*policy.inner;
    let mut faults = Vec::new();
    let mut keep = |found: Result<Party, AskFault>| found.map_err(|fault| faults.push(fault)).ok();
    let from = keep(party(inner, "from", &asked.from));
    let to = keep(party(inner, "to", &asked.to));
    let filled =
        |text: &Option<String>| text.as_deref().map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned);
    let mut fault = |field, message: String, hint: &str| {
        faults.push(AskFault { field, message, hint: hint.to_owned() });
    };
    let mut port = None;
    if let Some(text) = filled(&asked.port) {
        match text.parse::<u16>() {
            Ok(number) if number > 0 => port = Some(number),
            _ => fault("port", format!("{} is no port", quote(&text)), "ask about one port, from 1 to 65535"),
        }
    }
    let mut protocol = None;
    if let Some(text) = filled(&asked.protocol) {
        match parse_protocol(&text) {
            Ok(number) => protocol = number,
            Err(_) => fault(
                "protocol",
                format!("{} is no protocol", quote(&text)),
                "ask about tcp, udp, icmp, another protocol's name, or a number from 1 to 255",
            ),
        }
    }
    if port.is_some() {
        let protocol = *protocol.get_or_insert(6);
        if !has_ports(Some(protocol)) {
            let message = format!("{} has no ports", protocol_name(protocol));
            fault("port", message, "leave the port out, or ask about tcp or udp");
        }
    }
    match (from, to) {
        (Some(from), Some(to)) if faults.is_empty() => {
            let ssh_user = filled(&asked.ssh_user);
            Ok(Question { from, to, port, protocol, ssh_user, facts: Facts::default() })
        }
        _ => Err(faults),
    }
}

fn party(inner: &Inner, field: &'static str, text: &str) -> Result<Party, AskFault> {
    let text = text.trim();
    if text.is_empty() {
        let message = if field == "from" { "who tries is missing" } else { "where to is missing" };
        let hint = "name a device, a person such as alice@, a tag, or an address";
        return Err(AskFault { field, message: message.to_owned(), hint: hint.to_owned() });
    }
    if let Some(node) = node_called(inner, text) {
        return Ok(single(inner, node, [true; 2]));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(address(inner, ip, None));
    }
    match Alias::parse(text) {
        Ok(alias) => named(inner, &alias),
        Err(_) => None,
    }
    .ok_or_else(|| unknown(inner, field, text))
}

/// A node by its name, its full DNS name or its number.
fn node_called<'a>(inner: &'a Inner, text: &str) -> Option<&'a GroundNode> {
    let live = || inner.ground.all.iter().filter_map(|at| inner.ground.nodes.get(at));
    let called = |name: &str| live().find(|n| n.node.name.eq_ignore_ascii_case(name)).map(|n| &**n);
    let number = || {
        let id = text.parse::<NodeId>().ok()?;
        inner.ground.nodes.get(*inner.ground.index.get(&id)?).map(|n| &**n)
    };
    // An address has dots too, and names are never numbers alone.
    let label = || {
        text.parse::<IpAddr>().is_err().then(|| text.split_once('.')).flatten().and_then(|(l, _)| called(l))
    };
    called(text).or_else(number).or_else(|| if parse_prefix(text).is_some() { None } else { label() })
}

fn single(inner: &Inner, node: &GroundNode, families: [bool; 2]) -> Party {
    Party {
        words: node_words(inner, node),
        places: vec![Place::Node(node.id, families)],
        total: 1,
        note: None,
    }
}

fn address(inner: &Inner, ip: IpAddr, note: Option<String>) -> Party {
    if let [(_, at), ..] = inner.ground.within(Range::single(ip))
        && let Some(node) = inner.ground.nodes.get(*at)
    {
        return Party { note, ..single(inner, node, [ip.is_ipv4(), ip.is_ipv6()]) };
    }
    Party { words: ip.to_string(), places: vec![Place::Address(ip)], total: 1, note }
}

/// A device with whose it is.
pub(super) fn node_words(inner: &Inner, node: &GroundNode) -> String {
    let tags: Vec<&str> = node.node.owner.tags().map(crate::model::Tag::as_str).collect();
    let owner = node.user.and_then(|u| inner.ground.people.get(&u));
    match owner {
        Some(user) => format!("{} ({})", node.node.name, Alias::User(user.name.clone())),
        None if tags.is_empty() => node.node.name.clone(),
        None => format!("{} ({})", node.node.name, tags.join(", ")),
    }
}

/// What a word of the policy means; `None` when nobody is called so.
fn named(inner: &Inner, alias: &Alias) -> Option<Party> {
    let resolver = Resolver { file: &inner.file, ground: &inner.ground };
    match alias {
        // People are often named without the @.
        Alias::Host(name) if !inner.file.hosts.contains_key(name) => {
            let user = Alias::User(name.clone());
            (!inner.ground.users_called(name).is_empty())
                .then(|| devices(inner, &user, &resolver.members(&user)))
        }
        Alias::User(name) if inner.ground.users_called(name).is_empty() => None,
        Alias::Group(name) if !inner.file.groups.contains_key(name) => None,
        Alias::IpSet(name) if !inner.file.ipsets.contains_key(name) => None,
        Alias::Tag(tag) if !inner.file.tag_owners.contains_key(tag) && resolver.members(alias).is_empty() => {
            None
        }
        Alias::Internet => {
            let ip = INTERNET.first().map(|ip| IpAddr::from(*ip))?;
            let note = format!("{ip} stands for the internet here.");
            Some(Party { words: "the internet".to_owned(), ..address(inner, ip, Some(note)) })
        }
        Alias::Prefix(_) | Alias::Host(_) | Alias::IpSet(_) | Alias::Range(..) => {
            let range = resolver.ranges(alias).into_iter().next()?;
            let first = range.prefixes().first().copied()?;
            if range.is_single() {
                return Some(Party { words: alias.to_string(), ..address(inner, first.addr(), None) });
            }
            let members = resolver.members(alias);
            if members.is_empty() {
                let ip = first.hosts().next().unwrap_or(first.addr());
                let note = format!("{ip} stands for all of {alias} here.");
                return Some(Party { words: alias.to_string(), ..address(inner, ip, Some(note)) });
            }
            let note = format!("Only the devices with an address in {alias} are looked at.");
            Some(Party { note: Some(note), ..devices(inner, alias, &members) })
        }
        Alias::Own | Alias::Service(_) | Alias::Shared => None,
        _ => Some(devices(inner, alias, &resolver.members(alias))),
    }
}

fn devices(inner: &Inner, alias: &Alias, members: &Bits) -> Party {
    let mut ids: Vec<NodeId> =
        members.iter().filter_map(|at| inner.ground.nodes.get(at)).map(|n| n.id).collect();
    ids.sort_unstable();
    let total = ids.len();
    let words = match total {
        0 => format!("{alias} (no devices)"),
        1 => format!("{alias} (1 device)"),
        _ => format!("{alias} ({total} devices)"),
    };
    let places = ids.into_iter().take(MOST).map(|id| Place::Node(id, [true; 2])).collect();
    let note = (total > MOST)
        .then(|| format!("Only the first {MOST} of {total} devices of {alias} were looked at."));
    Party { words, places, total, note }
}

fn unknown(inner: &Inner, field: &'static str, text: &str) -> AskFault {
    let users: Vec<String> =
        inner.ground.people.values().map(|u| Alias::User(u.name.clone()).to_string()).collect();
    let nodes = inner.ground.all.iter().filter_map(|at| inner.ground.nodes.get(at));
    let known = nodes
        .map(|n| n.node.name.as_str())
        .chain(users.iter().map(String::as_str))
        .chain(inner.file.tag_owners.keys().map(crate::model::Tag::as_str))
        .chain(inner.file.groups.keys().map(String::as_str))
        .chain(inner.file.hosts.keys().map(String::as_str))
        .chain(inner.file.ipsets.keys().map(String::as_str));
    let near = Faults::new(Lines::new("")).suggest(text, known);
    let otherwise =
        "name a device, a person such as alice@, a tag, a group, a host of the policy, or an address";
    let message = format!("{} is no device, person, tag or address here", quote(text));
    AskFault { field, message, hint: did_you_mean(near, otherwise) }
}
