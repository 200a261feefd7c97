//! The naive evaluator against what the hosted service sent, so that it can be trusted as a yardstick.

use std::collections::BTreeSet;
use std::net::IpAddr;

use tsd::acl::Policy;
use tsd::wire::FilterRule;

use super::case::{Case, family};
use super::naive::Naive;
use super::plain::{Filter, Flow, addresses, delivers};

/// Captures whose peers come from another moment than their topology, or lack a node.
const OTHER_MOMENT: [&str; 8] =
    ["acl-ah01", "acl-au06", "acl-h03", "acl-mr20", "acl-mu02", "acl-o04", "acl-r08", "acl-w02"];

fn check(case: &Case) -> Result<(), String> {
    let policy = Policy::parse(case.policy()).map_err(|e| format!("refused: {e:?}"))?;
    let naive = Naive::new(policy.ast(), &case.world);
    let mut places: Vec<IpAddr> = case.world.nodes.values().flat_map(addresses).collect();
    let further =
        ["10.33.0.1", "10.55.1.1", "192.168.1.9", "8.8.8.8", "fd00:33::1", "2606:4700::1", "172.16.0.1"];
    places.extend(further.iter().map(|t| t.parse::<IpAddr>().unwrap()));
    for (name, capture) in case.captures() {
        let node = &case.world.nodes[&case.ids[name]];
        let rules: Vec<FilterRule> = serde_json::from_value(capture["packet_filter_rules"].clone()).unwrap();
        let filter = Filter::new(&rules);
        for (number, to) in places.iter().enumerate().filter(|(_, to)| delivers(node, **to)) {
            for (other, from) in places.iter().enumerate() {
                let ports = [22, 80, 443, 8080];
                for (port, protocol) in [(ports[(number + other) % 4], 6), (53, 17), (0, 1), (80, 132)] {
                    let flow = Flow { from: *from, to: *to, port, protocol };
                    let (want, got) = (filter.allows(&flow), naive.allowed(Some(node), &flow));
                    if want != got {
                        return Err(format!("{flow:?} at {name}: captured {want}, naive {got}"));
                    }
                }
                if addresses(node).contains(to) {
                    let (want, got) = (filter.capabilities(*from, *to), naive.capabilities(*from, *to));
                    if want != got {
                        return Err(format!("{from} at {name}: captured {want:?}, naive {got:?}"));
                    }
                }
            }
        }
        let Some(peers) = capture["netmap"]["peers"].as_array() else { continue };
        if OTHER_MOMENT.contains(&case.id()) {
            continue;
        }
        let want: BTreeSet<&str> = peers.iter().map(|p| p["name"].as_str().unwrap()).collect();
        let others = case.world.nodes.values().filter(|n| n.id != node.id);
        let got: BTreeSet<&str> =
            others.filter(|n| naive.visible(node, n)).map(|n| n.name.as_str()).collect();
        if want != got {
            return Err(format!("peers of {name}: captured {want:?}, naive {got:?}"));
        }
    }
    Ok(())
}

#[test]
fn the_naive_evaluator_agrees_with_the_hosted_service() {
    let cases: Vec<Case> =
        ["acl_results", "grant_results", "routes_results"].iter().flat_map(|f| family(f)).collect();
    let taken = cases.iter().filter(|c| c.json["input"]["api_response_code"] == 200);
    let results: Vec<(&str, Result<(), String>)> = taken.map(|c| (c.id(), check(c))).collect();
    let wrong: Vec<String> =
        results.iter().filter_map(|(id, r)| r.as_ref().err().map(|e| format!("{id}: {e}"))).collect();
    println!("naive: {}/{}", results.len() - wrong.len(), results.len());
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(results.len(), 303);
}
