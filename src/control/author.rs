//! Whether a policy would take from its own author the way to this server: they sit at a device of the
//! tailnet and reach the console by a device that is this machine.

use std::net::IpAddr;

use super::policy::Author;
use super::state::Tailnet;
use crate::acl::Compiled;
use crate::model::Node;

/// A sentence when the author's device would lose any port of this machine's device. `None` also when
/// nothing is known: they come from elsewhere, or this machine is no device of the tailnet.
pub(super) fn cut_off(net: &Tailnet, new: &Compiled, author: &Author) -> Option<String> {
    let from = author.from?;
    let has = |n: &Node, ip: IpAddr| ip == n.ipv4 || ip == n.ipv6;
    let me = net.nodes.values().find(|n| has(n, from))?;
    let here = net.nodes.values().filter(|n| author.server.iter().any(|ip| has(n, *ip)));
    let lost = here.filter(|n| n.id != me.id).find(|n| net.compiled.opens_beyond(new, me.id, n.id))?;
    Some(format!(
        "you sit at the device {} and would lose access to {}, the device this server runs on: the console may be out of your reach then (`tsd policy rollback` on the server itself takes it back)",
        me.name, lost.name
    ))
}
