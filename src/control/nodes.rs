//! What a node tells us between registrations: the lite update (control.md 6.1). Keys, names and
//! routes are kept before the answer; endpoints and measurements may lag some seconds.

use super::hostinfo::{bounded, endpoints};
use super::state::{Draft, Tailnet};
use crate::keys::{DiscoPublic, MachinePublic, NodePublic, RegionId};
use crate::model::Node;
use crate::wire::{Hostinfo, MapRequest};

/// Why a map request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum MapRefusal {
    /// Nobody has this node key.
    #[error("no node has this key: it was removed or never registered; log in again")]
    Unknown,
    /// Somebody else's.
    #[error("this node key belongs to another machine")]
    ForeignMachine,
}

/// The node of a map request, if it belongs to the machine that asks.
///
/// # Errors
/// When it does not.
pub(super) fn find<'a>(
    net: &'a Tailnet,
    machine: MachinePublic,
    key: &NodePublic,
) -> Result<&'a std::sync::Arc<Node>, MapRefusal> {
    let node = net.by_key(key).ok_or(MapRefusal::Unknown)?;
    if node.machine != machine {
        tracing::warn!(node = %node.id, "a map request named the node key of another machine");
        return Err(MapRefusal::ForeignMachine);
    }
    Ok(node)
}

/// The home relay a description names; 0 is unknown.
#[must_use]
pub(super) fn home_of(info: &Hostinfo) -> Option<RegionId> {
    let home = info.net_info.as_ref()?.preferred_derp;
    (home != RegionId(0)).then_some(home)
}

/// Renames `node` after the hostname in `info`, unless an admin named it.
pub(super) fn take_hostname(net: &Tailnet, node: &mut Node, info: &Hostinfo) {
    if node.renamed || info.hostname == node.hostinfo.hostname {
        return;
    }
    let label = crate::dns::sanitize_label(&info.hostname);
    let id = node.id;
    node.name =
        crate::dns::unique_label(&label, &|taken| net.by_name.get(taken).is_some_and(|other| *other != id));
}

/// Applies a lite update.
///
/// # Errors
/// When the node is unknown or another machine's.
pub(super) fn update(
    draft: &mut Draft,
    machine: MachinePublic,
    request: MapRequest,
) -> Result<(), MapRefusal> {
    let old = find(&draft.net, machine, &request.node_key)?.clone();
    let mut node = (*old).clone();
    node.capver = request.version;
    if !request.disco_key.is_zero() {
        node.disco = Some(request.disco_key);
    }
    node.endpoints = endpoints(&request.endpoints, draft.net.settings.ipv4_pool);
    if let Some(info) = request.hostinfo {
        let mut info = bounded(info);
        if info.net_info.is_none() {
            // Trap 12: absent means unchanged.
            info.net_info.clone_from(&node.hostinfo.net_info);
        }
        take_hostname(&draft.net, &mut node, &info);
        if let Some(home) = home_of(&info) {
            node.home_derp = Some(home);
        }
        node.hostinfo = info;
    }
    if node == *old {
        return Ok(());
    }
    if only_lags(&old, &node) {
        draft.lag_node(node);
    } else {
        draft.put_node(node);
    }
    Ok(())
}

/// A client whose stream is all we get (tailscale-rs) still has to be reachable: its disco key is taken
/// from there as long as none is known, which cannot overwrite a newer one (trap 11).
pub(super) fn first_disco(draft: &mut Draft, key: &NodePublic, disco: DiscoPublic) {
    let Some(node) = draft.net.by_key(key).cloned() else {
        return;
    };
    if node.disco.is_none() && !disco.is_zero() {
        let mut node = (*node).clone();
        node.disco = Some(disco);
        draft.put_node(node);
    }
}

fn only_lags(old: &Node, new: &Node) -> bool {
    let mut still = new.clone();
    still.endpoints.clone_from(&old.endpoints);
    still.hostinfo.net_info.clone_from(&old.hostinfo.net_info);
    still == *old
}
