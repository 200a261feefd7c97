//! Captured cases of the hosted service against the policy engine: packet filters, peers, shown routes
//! and refusals. What is compared and how: the comments at each comparison.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ipnet::IpNet;
use serde_json::Value;
use tsd::acl::{Policy, World, WorldNode, WorldUser};
use tsd::keys::{NodeId, UserId};
use tsd::model::{Owner, Role, Tag, Tags};
use tsd::wire::FilterRule;

/// Cases whose captured peers and routes come from a moment when a route was approved that the
/// captured topology does not have yet; their filters match the topology and are compared.
const ROUTE_SNAPSHOT_LATE: [&str; 8] =
    ["acl-ah01", "acl-au06", "acl-h03", "acl-mr20", "acl-mu02", "acl-o04", "acl-r08", "acl-w02"];

/// Cases left out, with the reason: none.
const SKIPPED: [(&str, &str); 0] = [];

/// Users of all captures.
const USERS: [(&str, u64, &str); 3] =
    [("odin", 1, "odin@example.com"), ("thor", 2, "thor@example.org"), ("freya", 3, "freya@example.com")];

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().map(|v| v.as_str().unwrap().to_owned()).collect()
}

fn nets(value: &Value) -> BTreeSet<IpNet> {
    texts(value).iter().map(|t| t.parse().unwrap()).collect()
}

/// The topology: ids in the order of names.
fn world(case: &Value) -> (World, BTreeMap<String, NodeId>) {
    let mut world = World::default();
    let mut ids = BTreeMap::new();
    for (_, id, login) in USERS {
        let user = WorldUser { id: UserId(id), name: login.to_owned(), role: Role::Admin };
        world.users.insert(user.id, user);
    }
    let nodes = case["topology"]["nodes"].as_object().unwrap();
    for (number, (name, node)) in (1..).zip(nodes) {
        let tags = texts(&node["tags"]);
        let owner = Tags::new(tags.iter().map(|t| Tag::parse(t).unwrap())).map_or_else(
            || {
                let user = node["user"].as_str().unwrap();
                let found = USERS.iter().find(|(name, _, _)| *name == user).unwrap();
                Owner::User(UserId(found.1))
            },
            Owner::Tags,
        );
        let offered = nets(&node["routable_ips"]);
        let approved = nets(&node["approved_routes"]);
        let id = NodeId(number);
        ids.insert(name.clone(), id);
        world.nodes.insert(
            id,
            WorldNode {
                id,
                name: name.clone(),
                attributes: BTreeMap::new(),
                owner,
                ipv4: node["ipv4"].as_str().unwrap().parse().unwrap(),
                ipv6: node["ipv6"].as_str().unwrap().parse().unwrap(),
                served_routes: offered.intersection(&approved).copied().collect(),
            },
        );
    }
    (world, ids)
}

/// The policy as captured, without `autoApprovers`: that section decides nothing here (its outcome is
/// the topology's `approved_routes`) and this version refuses it by name.
fn policy_text(case: &Value) -> String {
    let text = case["input"]["full_policy"].as_str().unwrap();
    let mut policy: Value = serde_json::from_str(text).unwrap();
    policy.as_object_mut().unwrap().remove("autoApprovers");
    policy.to_string()
}

/// Order of rules counts; `SrcIPs` in their captured order, `DstPorts` as a multiset, no protocol is
/// an empty list.
fn comparable(mut rules: Vec<FilterRule>) -> Vec<FilterRule> {
    for rule in &mut rules {
        rule.dst_ports.sort_by(|a, b| (&a.ip, a.ports).cmp(&(&b.ip, b.ports)));
        rule.ip_proto.sort_unstable();
    }
    rules
}

/// Captures whose addresses were rewritten afterwards are no longer in text order.
fn renumbered(case: &Value) -> bool {
    let nodes = case["topology"]["nodes"].as_object().unwrap();
    nodes.values().all(|n| n["ipv4"].as_str().unwrap().starts_with("100.64.0."))
}

fn accepted(case: &Value) -> Result<(), String> {
    let (world, ids) = world(case);
    let policy = Policy::parse(&policy_text(case)).map_err(|e| format!("refused: {e:?}"))?;
    let compiled = policy.compile(&world);
    let sorted = |rules: Vec<FilterRule>| {
        let mut rules = comparable(rules);
        if renumbered(case) {
            rules.iter_mut().for_each(|r| r.src_ips.sort_unstable());
        }
        rules
    };
    for (name, capture) in case["captures"].as_object().unwrap() {
        let want: Vec<FilterRule> = serde_json::from_value(capture["packet_filter_rules"].clone()).unwrap();
        let got = compiled.filter_rules(ids[name]).to_vec();
        let (want, got) = (sorted(want), sorted(got));
        if want != got {
            return Err(format!("filter of {name}:\n want {want:?}\n  got {got:?}"));
        }
    }
    if ROUTE_SNAPSHOT_LATE.contains(&case["id"].as_str().unwrap()) {
        return Ok(());
    }
    peers_and_routes(case, &compiled, &world, &ids)
}

/// Peers are exactly the captured ones, and each is shown with its addresses, the routes it is primary
/// for and its exit routes, and nothing else.
fn peers_and_routes(
    case: &Value,
    compiled: &tsd::acl::Compiled,
    world: &World,
    ids: &BTreeMap<String, NodeId>,
) -> Result<(), String> {
    let captures = case["captures"].as_object().unwrap();
    for (name, capture) in captures {
        let netmap = &capture["netmap"];
        if netmap.is_null() {
            continue;
        }
        let me = ids[name];
        let seen: BTreeMap<&str, &Value> =
            netmap["peers"].as_array().unwrap().iter().map(|p| (p["name"].as_str().unwrap(), p)).collect();
        let want: BTreeSet<NodeId> = seen.keys().map(|n| ids[*n]).collect();
        let got: BTreeSet<NodeId> = compiled.peers(me).into_iter().collect();
        if want != got {
            return Err(format!("peers of {name}: want {want:?}, got {got:?}, ids {ids:?}"));
        }
        for (other, id) in ids {
            if compiled.visible(me, *id) != want.contains(id) {
                return Err(format!("visible({name}, {other}) and peers() differ"));
            }
        }
        for (peer, record) in seen {
            let primary = nets(&captures[peer]["netmap"]["self"]["primary_routes"]);
            let node = &world.nodes[&ids[peer]];
            let mut got: BTreeSet<IpNet> = compiled
                .shown_routes(me, ids[peer], &|r, _| primary.contains(r).then_some(ids[peer]))
                .into_iter()
                .collect();
            got.insert(std::net::IpAddr::V4(node.ipv4).into());
            got.insert(std::net::IpAddr::V6(node.ipv6).into());
            let want = nets(&record["allowed_ips"]);
            if want != got {
                return Err(format!("{peer} as {name} sees it: want {want:?}, got {got:?}"));
            }
        }
    }
    Ok(())
}

/// A refused policy is refused here too, with a message that contains the captured one.
fn refused(case: &Value) -> Result<(), String> {
    let want = case["input"]["api_response_message"].as_str().unwrap();
    match Policy::parse(&policy_text(case)) {
        Ok(_) => Err(format!("accepted, want {want}")),
        Err(faults) if faults.iter().any(|f| f.message.contains(want)) => Ok(()),
        Err(faults) => Err(format!("want {want}, got {faults:?}")),
    }
}

#[test]
fn captured_cases_hold() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/cases");
    let mut tried: BTreeMap<String, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for family in std::fs::read_dir(root).unwrap() {
        let family = family.unwrap();
        for file in std::fs::read_dir(family.path()).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            let case: Value = serde_json::from_str(&text).unwrap();
            let id = case["id"].as_str().unwrap();
            if SKIPPED.iter().any(|(skip, _)| *skip == id) {
                continue;
            }
            let name = family.file_name().to_string_lossy().into_owned();
            *tried.entry(name).or_default() += 1;
            let result =
                if case["input"]["api_response_code"] == 200 { accepted(&case) } else { refused(&case) };
            if let Err(why) = result {
                wrong.push(format!("{id}: {why}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
    // A lost directory must not look like success.
    assert_eq!(tried["acl_results"], 104);
    assert_eq!(tried["routes_results"], 75);
    assert_eq!(tried["issue_3212"], 1);
    assert_eq!(tried["nodeattrs_results"], 3);
}
