//! The engine equals the naive evaluator: what a node's packet filter lets in, capabilities, peers and
//! shown routes; and no filter is wider than the policy.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;
use tsd::acl::explain::{Asked, Question, Verdict};
use tsd::acl::{Compiled, Policy, World, WorldNode};

use tsd::keys::NodeId;

use super::naive::Naive;
use super::plain::{Filter, Flow, addresses, after, before, delivers, spans};
use super::random::{self, Draw, LITERALS, PORTS_TO_TRY, WIDE};

/// Seeds to try; more with `TSD_PROPERTY_CASES`, a single one with `TSD_PROPERTY_SEED`.
pub(crate) fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|t| t.parse().ok());
    match number("TSD_PROPERTY_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("TSD_PROPERTY_CASES").unwrap_or(10_000)).collect(),
    }
}

/// Tries all seeds on two threads; the first few failures, each with as few rules as still fail.
pub(crate) fn for_all(check: impl Fn(u64, &Value) -> Result<(), String> + Sync) {
    let seeds = seeds();
    let some = |which: usize| -> Vec<String> {
        let mut wrong = Vec::new();
        for seed in seeds.iter().skip(which).step_by(2) {
            let policy = random::policy(&mut Draw::new(*seed));
            if check(*seed, &policy).is_err() {
                let small = shrink(policy, |p| check(*seed, p).is_err());
                let why = check(*seed, &small).unwrap_err();
                wrong.push(format!("seed {seed}: {why}\n{small}"));
            }
            if wrong.len() > 4 {
                break;
            }
        }
        wrong
    };
    let wrong = std::thread::scope(|scope| {
        let other = scope.spawn(|| some(1));
        let mut wrong = some(0);
        wrong.extend(other.join().unwrap());
        wrong
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Takes away what a failure does not need.
fn shrink(mut policy: Value, fails: impl Fn(&Value) -> bool) -> Value {
    let attempt = |smaller: Value, policy: &mut Value| {
        let shorter = fails(&smaller);
        if shorter {
            *policy = smaller;
        }
        shorter
    };
    for key in ["ssh", "nodeAttrs", "autoApprovers", "defaultSrcPosture"] {
        let mut smaller = policy.clone();
        smaller.as_object_mut().unwrap().remove(key);
        attempt(smaller, &mut policy);
    }
    for key in ["acls", "grants", "ssh", "nodeAttrs"] {
        let mut at = 0;
        while at < policy[key].as_array().map_or(0, Vec::len) {
            let mut smaller = policy.clone();
            smaller[key].as_array_mut().unwrap().remove(at);
            if attempt(smaller, &mut policy) {
                continue;
            }
            for field in ["src", "dst", "ip", "via", "users", "attr", "target"] {
                let mut place = 0;
                while policy[key][at][field].as_array().is_some_and(|l| l.len() > 1 && place < l.len()) {
                    let mut smaller = policy.clone();
                    smaller[key][at][field].as_array_mut().unwrap().remove(place);
                    if !attempt(smaller, &mut policy) {
                        place += 1;
                    }
                }
            }
            at += 1;
        }
    }
    policy
}

pub(crate) fn describe(world: &World) -> String {
    let node = |n: &WorldNode| {
        format!("{:?} {:?} {} {:?} {:?}", n.id, n.owner, n.ipv4, n.served_routes, n.attributes)
    };
    let people = world.users.values().map(|u| format!("{} {} {:?}", u.id.0, u.name, u.role));
    people.chain(world.nodes.values().map(node)).collect::<Vec<_>>().join("\n")
}

/// Addresses worth asking for: those of nodes, and where routes and literals begin and end.
fn places(world: &World) -> Vec<IpAddr> {
    let routes = world.nodes.values().flat_map(|n| n.served_routes.iter().map(IpNet::to_string));
    let texts: BTreeSet<String> =
        LITERALS.iter().chain(&WIDE).map(|t| (*t).to_owned()).chain(routes).collect();
    let ends = texts.iter().flat_map(|t| spans(t)).flat_map(|(a, b)| [before(a), a, b, after(b)]);
    let further =
        ["100.115.92.7", "100.115.94.0", "100.100.100.100", "1.1.1.1", "2606:4700::9", "fd7a:115c:a1e1::1"];
    ends.chain(further.iter().map(|t| t.parse().unwrap())).collect()
}

/// The first of several in charge of a route.
pub(crate) fn first(_: &IpNet, among: &[NodeId]) -> Option<NodeId> {
    among.iter().min().copied()
}

fn node_is_right(
    draw: &mut Draw,
    node: &WorldNode,
    (world, places): (&World, &[IpAddr]),
    naive: &Naive<'_>,
    compiled: &Compiled,
) -> Result<(), String> {
    let nodes: Vec<&WorldNode> = world.nodes.values().collect();
    let rules = compiled.filter_rules(node.id);
    let filter = Filter::new(&rules);
    let reached: Vec<IpAddr> = places.iter().copied().filter(|ip| delivers(node, *ip)).collect();
    for _ in 0..40 {
        let from = match draw.below(10) {
            0..=5 => {
                let node: &WorldNode = nodes[draw.below(nodes.len())];
                addresses(node)[draw.below(2)]
            }
            _ => *draw.pick(places),
        };
        let to = match draw.below(10) {
            0 => *draw.pick(places),
            1 => {
                let node: &WorldNode = nodes[draw.below(nodes.len())];
                addresses(node)[draw.below(2)]
            }
            2..=4 if !reached.is_empty() => *draw.pick(&reached),
            _ => addresses(node)[draw.below(2)],
        };
        let protocol = *draw.pick(&[6, 6, 6, 6, 17, 17, 1, 58, 132, 47, 255]);
        let flow = Flow { from, to, port: *draw.pick(&PORTS_TO_TRY), protocol };
        let got = filter.allows(&flow);
        if delivers(node, to) {
            let want = naive.allowed(Some(node), &flow);
            if want != got {
                return Err(format!("{flow:?} at {:?}: want {want}, got {got}: {rules:#?}", node.id));
            }
        } else if got && !naive.allowed(None, &flow) {
            return Err(format!("{flow:?} at {:?}: no rule speaks of it: {rules:#?}", node.id));
        }
        // Explanations also know of ways back and of missing IPv4; between plain nodes there is neither.
        let plain = |n: &&&WorldNode| n.id != node.id && !compiled.without_ipv4(n.id);
        let between = from.is_ipv4() == to.is_ipv4()
            && !compiled.without_ipv4(node.id)
            && nodes.iter().filter(plain).any(|n| addresses(n).contains(&from));
        if between && addresses(node).contains(&to) && [6, 17].contains(&protocol) {
            explained(compiled, &flow, got)?;
        }
        if addresses(node).contains(&to) && protocol == 6 {
            let (want, got) = (naive.capabilities(from, to), filter.capabilities(from, to));
            if want != got {
                return Err(format!("{from} at {to}: want {want:?}, got {got:?}: {rules:#?}"));
            }
        }
    }
    Ok(())
}

/// What the policy says when it is asked in words is what the filter does.
fn explained(compiled: &Compiled, flow: &Flow, allowed: bool) -> Result<(), String> {
    let asked = Asked {
        from: flow.from.to_string(),
        to: flow.to.to_string(),
        port: Some(flow.port.to_string()),
        protocol: Some(flow.protocol.to_string()),
        ssh_user: None,
    };
    let question = Question::parse(compiled, &asked).map_err(|e| format!("{asked:?}: {e:?}"))?;
    let answer = compiled.explain(&question);
    if (answer.verdict == Verdict::Allowed) == allowed {
        Ok(())
    } else {
        Err(format!("{asked:?}: the filter says {allowed}, explained: {answer:#?}"))
    }
}

fn equal(seed: u64, policy: &Value) -> Result<(), String> {
    let mut draw = Draw::new(seed ^ 0x00ff_00ff);
    let world = random::world(&mut draw);
    let policy = Policy::parse(&policy.to_string()).map_err(|e| format!("refused: {e:?}"))?;
    let compiled = policy.compile(&world);
    let naive = Naive::new(policy.ast(), &world);
    let places = places(&world);
    let fail = |why: String| format!("{why}\n{}", describe(&world));
    for node in world.nodes.values() {
        node_is_right(&mut draw, node, (&world, &places), &naive, &compiled).map_err(fail)?;
        let others = world.nodes.values().filter(|n| n.id != node.id);
        let want: Vec<_> = others.filter(|n| naive.visible(node, n)).map(|n| n.id).collect();
        let got = compiled.peers(node.id);
        if want != got {
            return Err(fail(format!("peers of {:?}: want {want:?}, got {got:?}", node.id)));
        }
        for peer in world.nodes.values().filter(|n| n.id != node.id) {
            let seen = (compiled.visible(node.id, peer.id), compiled.visible(peer.id, node.id));
            if seen != (want.contains(&peer.id), want.contains(&peer.id)) {
                return Err(fail(format!("{:?} and {:?} visible: {seen:?}", node.id, peer.id)));
            }
            let routes = compiled.shown_routes(node.id, peer.id, &first);
            let (want, got) = (naive.shown(node, peer), routes.into_iter().collect::<BTreeSet<_>>());
            if want != got {
                return Err(fail(format!(
                    "{:?} shown to {:?}: want {want:?}, got {got:?}",
                    peer.id, node.id
                )));
            }
        }
    }
    Ok(())
}

#[test]
fn the_engine_equals_the_naive_evaluator() {
    for_all(equal);
}
