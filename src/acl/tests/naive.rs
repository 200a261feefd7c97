//! The language read aloud, one packet at a time. Shares nothing with the compiler past the AST: no
//! ranges, no sets, no rules of the wire.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::acl::alias::Alias;
use crate::acl::ast::{Acl, File};
use crate::acl::compile::allow_all;
use crate::acl::{World, WorldNode};

/// A packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) protocol: u8,
    pub(super) port: u16,
}

/// Whether `node` lets `packet` in.
pub(super) fn allows(file: &File, world: &World, node: &WorldNode, packet: Packet) -> bool {
    let default = vec![allow_all()];
    let acls = file.acls.as_ref().unwrap_or(&default);
    acls.iter().any(|acl| allows_by(file, world, node, packet, acl))
}

fn allows_by(file: &File, world: &World, node: &WorldNode, packet: Packet, acl: &Acl) -> bool {
    let protocol = match acl.protocol {
        Some(one) => packet.protocol == one,
        None => [1, 6, 17, 58].contains(&packet.protocol),
    };
    let from = |ip: IpAddr| acl.src.iter().any(|s| is_source(file, world, &s.value, ip));
    protocol
        && acl.dst.iter().any(|dst| {
            let dst = &dst.value;
            let port = dst.ports.iter().any(|p| p.first <= packet.port && packet.port <= p.last);
            port && if dst.alias == Alias::Own {
                mine(node, packet.to)
                    && world.nodes.values().any(|device| {
                        mine(device, packet.from)
                            && device.owner.user().is_some()
                            && device.owner.user() == node.owner.user()
                            && (from(IpAddr::V4(device.ipv4)) || from(IpAddr::V6(device.ipv6)))
                    })
            } else {
                from(packet.from) && is_destination(file, world, &dst.alias, packet.to)
            }
        })
}

pub(super) fn mine(node: &WorldNode, ip: IpAddr) -> bool {
    IpAddr::V4(node.ipv4) == ip || IpAddr::V6(node.ipv6) == ip
}

fn inside(net: &str, ip: IpAddr) -> bool {
    net.parse::<IpNet>().unwrap().contains(&ip)
}

fn is_source(file: &File, world: &World, alias: &Alias, ip: IpAddr) -> bool {
    match alias {
        Alias::DangerAll => true,
        Alias::Any => {
            let tailnet = inside("100.64.0.0/10", ip) || inside("fd7a:115c:a1e0::/48", ip);
            let routed = world
                .nodes
                .values()
                .flat_map(|n| &n.served_routes)
                .any(|r| r.prefix_len() != 0 && r.contains(&ip));
            (tailnet && !inside("100.115.92.0/23", ip)) || routed
        }
        other => is_common(file, world, other, ip),
    }
}

fn is_destination(file: &File, world: &World, alias: &Alias, ip: IpAddr) -> bool {
    match alias {
        Alias::Any => true,
        Alias::Internet => {
            let private =
                ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16"];
            match ip {
                IpAddr::V4(_) => !private.iter().any(|p| inside(p, ip)),
                IpAddr::V6(_) => inside("2000::/3", ip),
            }
        }
        other => is_common(file, world, other, ip),
    }
}

fn is_common(file: &File, world: &World, alias: &Alias, ip: IpAddr) -> bool {
    let owner = world.nodes.values().find(|n| mine(n, ip)).map(|n| &n.owner);
    let called = |name: &str| {
        let user = owner.and_then(|o| o.user()).and_then(|u| world.users.get(&u));
        user.is_some_and(|u| u.name == name)
    };
    match alias {
        Alias::Prefix(net) => net.contains(&ip),
        Alias::Host(name) => file.hosts[name].value.contains(&ip),
        Alias::User(name) => called(name),
        Alias::Group(name) => file.groups[name].value.iter().any(|m| called(&m.value)),
        Alias::Tag(tag) => owner.is_some_and(|o| o.tags().any(|t| t == tag)),
        Alias::Member => owner.is_some_and(|o| o.user().is_some()),
        Alias::Tagged => owner.is_some_and(|o| o.user().is_none()),
        _ => false,
    }
}
