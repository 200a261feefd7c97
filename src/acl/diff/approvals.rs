//! `autoApprovers`: who gets which routes, exit nodes and services approved by the policy from now on, and
//! who no longer. What is approved stays approved (SEMANTICS.md 11).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;

use super::super::compile::Inner;
use super::super::ranges::Bits;
use super::others::{Effect, Members, Named, OtherKind, Others, Told, clipped};

/// Who may serve what by one policy.
#[derive(Default)]
struct Approvers<'a> {
    routes: HashMap<IpNet, Named<'a>>,
    /// Lengths that prefixes of `routes` have, of IPv4 and of IPv6.
    lengths: [BTreeSet<u8>; 2],
    exits: Named<'a>,
    services: BTreeMap<&'a str, Named<'a>>,
}

impl<'a> Approvers<'a> {
    fn new(policy: &'a Inner) -> Self {
        let mut members = Members::new(policy);
        let mut out = Self::default();
        let written = &policy.file.auto_approvers;
        for (net, who) in &written.routes {
            let [v4, v6] = &mut out.lengths;
            let lengths = if matches!(net.value, IpNet::V4(_)) { v4 } else { v6 };
            lengths.insert(net.value.prefix_len());
            members.add(who, out.routes.entry(net.value.trunc()).or_default());
        }
        members.add(&written.exit_node, &mut out.exits);
        for (name, who) in &written.services {
            members.add(who, out.services.entry(&name.value).or_default());
        }
        out
    }

    /// Who may serve `net`: by itself or as a part of a wider one.
    fn of(&self, net: IpNet) -> Named<'a> {
        let mut out = Named::default();
        for wide in self.wider(net).chain([net]) {
            if let Some(who) = self.routes.get(&wide) {
                out.take(who);
            }
        }
        out
    }

    /// Networks that hold `net`, the widest first, without itself, of the lengths there are.
    fn wider(&self, net: IpNet) -> impl Iterator<Item = IpNet> {
        let [v4, v6] = &self.lengths;
        let lengths = if matches!(net, IpNet::V4(_)) { v4 } else { v6 };
        let shorter = lengths.range(..net.prefix_len());
        shorter.filter_map(move |len| IpNet::new(net.addr(), *len).ok()).map(|wide| wide.trunc())
    }
}

pub(super) fn find(all: &mut Others<'_>) {
    let (was, is) = (Approvers::new(all.old), Approvers::new(all.new));
    let nets: BTreeSet<IpNet> = was.routes.keys().chain(is.routes.keys()).copied().collect();
    for (effect, one, other) in [(Effect::Gained, &is, &was), (Effect::Lost, &was, &is)] {
        let stays = if effect == Effect::Lost { " (what is approved stays)" } else { "" };
        // What is told of a wider network is not told of its parts again.
        let mut told: HashMap<IpNet, Bits> = HashMap::new();
        for net in &nets {
            let (mine, theirs) = (one.of(*net), other.of(*net));
            let mut nodes = mine.more_than(&theirs);
            one.wider(*net).filter_map(|w| told.get(&w)).for_each(|known| nodes.drop(known));
            let what = format!("automatic approval of routes within {net}{stays}");
            let row = Told::new(OtherKind::Approval, effect, what);
            all.devices(&nodes, row.clone().taking(effect == Effect::Lost));
            if let Some(written) = one.routes.get(net) {
                all.nobody(&written.idle_beyond(&theirs), row);
            }
            if !nodes.is_empty() {
                told.insert(*net, nodes);
            }
        }
        let row =
            Told::new(OtherKind::Approval, effect, format!("automatic approval as an exit node{stays}"));
        all.devices(&one.exits.more_than(&other.exits), row.clone().taking(effect == Effect::Lost));
        all.nobody(&one.exits.idle_beyond(&other.exits), row);
        let nobody = Named::default();
        for (name, who) in &one.services {
            let before = other.services.get(name).unwrap_or(&nobody);
            let what = format!("automatic approval for {} (without effect yet)", clipped(name));
            let row = Told::new(OtherKind::Approval, effect, what);
            all.devices(&who.more_than(before), row.clone());
            all.nobody(&who.idle_beyond(before), row);
        }
    }
}
