//! A compiled policy brought up to date step by step equals one compiled from scratch, and every node
//! whose view differs was named.

use std::collections::BTreeMap;

use serde_json::Value;
use tsd::acl::{Compiled, Policy, Touched, World};
use tsd::keys::NodeId;

use super::equality::{describe, first, for_all};
use super::random::{self, Draw};

/// All that can be asked about one node alone.
fn own_view(compiled: &Compiled, node: NodeId) -> Vec<(&'static str, String)> {
    let mut rules = compiled.filter_rules(node).to_vec();
    rules.iter_mut().for_each(|r| r.dst_ports.sort_by(|a, b| (&a.ip, a.ports).cmp(&(&b.ip, b.ports))));
    let mut ssh = compiled.ssh_rules(node, "https://base");
    ssh.iter_mut().for_each(|r| r.principals.sort_by(|a, b| a.node_ip.cmp(&b.node_ip)));
    vec![
        ("filter", serde_json::to_string(&rules).unwrap()),
        ("ssh", serde_json::to_string(&ssh).unwrap()),
        ("attributes", serde_json::to_string(&compiled.self_caps(node)).unwrap()),
    ]
}

/// The same, with the filter's rules in no order.
fn unordered(compiled: &Compiled, node: NodeId) -> Vec<(&'static str, String)> {
    let mut view = own_view(compiled, node);
    for (_, text) in view.iter_mut().filter(|(what, _)| *what == "filter") {
        let mut rules: Vec<Value> = serde_json::from_str(text).unwrap();
        rules.sort_by_cached_key(ToString::to_string);
        *text = serde_json::to_string(&rules).unwrap();
    }
    view
}

/// All that others are told about a node.
fn told(compiled: &Compiled, node: NodeId) -> String {
    format!("{:?} {}", compiled.peer_caps(node), compiled.without_ipv4(node))
}

/// Its peers with the routes they show it.
fn peers(compiled: &Compiled, node: NodeId) -> BTreeMap<NodeId, String> {
    let shown = |p| compiled.shown_routes(node, p, &first);
    compiled.peers(node).into_iter().map(|p| (p, format!("{:?}", shown(p)))).collect()
}

fn same(scratch: &Compiled, updated: &Compiled, world: &World) -> Result<(), String> {
    for node in world.nodes.values() {
        for (want, got) in own_view(scratch, node.id).iter().zip(own_view(updated, node.id)) {
            if *want != got {
                return Err(format!("{:?} {}: want {}\n got {}", node.id, want.0, want.1, got.1));
            }
        }
        let pairs = [
            (told(scratch, node.id), told(updated, node.id)),
            (format!("{:?}", peers(scratch, node.id)), format!("{:?}", peers(updated, node.id))),
            (format!("{:?}", scratch.ip_pool(node.id)), format!("{:?}", updated.ip_pool(node.id))),
            (
                format!("{:?}", scratch.auto_approved(node.id, &node.served_routes)),
                format!("{:?}", updated.auto_approved(node.id, &node.served_routes)),
            ),
        ];
        if let Some((want, got)) = pairs.into_iter().find(|(want, got)| want != got) {
            return Err(format!("{:?}: want {want}\n got {got}", node.id));
        }
    }
    let groups = |c: &Compiled| {
        let mut groups = c.via_groups();
        groups.iter_mut().for_each(|(_, nodes)| nodes.sort_unstable());
        groups.sort_unstable();
        groups.dedup();
        groups
    };
    let (want, got) = (groups(scratch), groups(updated));
    if want == got { Ok(()) } else { Err(format!("via groups: want {want:?}, got {got:?}")) }
}

/// Whoever sees something else than before was named, and whoever is seen in another way.
fn all_named(old: &Compiled, new: &Compiled, touched: &Touched, world: &World) -> Result<(), String> {
    if touched.all {
        return Ok(());
    }
    for node in world.nodes.keys().filter(|n| !touched.nodes.contains(n)) {
        if told(old, *node) != told(new, *node) {
            return Err(format!("{node:?} is told about differently and not named in {touched:?}"));
        }
        // The order of rules means nothing to a filter: one that only moved need not be sent.
        let (before, after) = (unordered(old, *node), unordered(new, *node));
        if !touched.filters.contains(node)
            && let Some((was, is)) = before.iter().zip(&after).find(|(was, is)| was != is)
        {
            return Err(format!("{node:?}: {was:?} became {is:?} and is not named in {touched:?}"));
        }
        let (before, after) = (peers(old, *node), peers(new, *node));
        let others = before.keys().chain(after.keys()).filter(|p| !touched.nodes.contains(p));
        for peer in others {
            if before.get(peer) != after.get(peer) {
                let (was, is) = (before.get(peer), after.get(peer));
                return Err(format!("{node:?} saw {peer:?} as {was:?}, now {is:?}; neither in {touched:?}"));
            }
        }
    }
    Ok(())
}

fn steps(seed: u64, policy: &Value) -> Result<(), String> {
    let mut draw = Draw::new(seed ^ 0x0f0f_0f0f);
    let mut world = random::world(&mut draw);
    let policy = Policy::parse(&policy.to_string()).map_err(|e| format!("refused: {e:?}"))?;
    let mut compiled = policy.compile(&world);
    for step in 0..2 {
        let change = random::change(&mut draw, &world);
        let next_world = random::changed(&world, &change);
        let (next, touched) = compiled.update(&change);
        let checked = same(&policy.compile(&next_world), &next, &next_world)
            .and_then(|()| all_named(&compiled, &next, &touched, &next_world));
        if let Err(why) = checked {
            return Err(format!("step {step} {why}\nbefore:\n{}\nchange: {change:?}", describe(&world)));
        }
        (compiled, world) = (next, next_world);
    }
    Ok(())
}

#[test]
fn updates_equal_a_compile_from_scratch() {
    for_all(steps);
}
