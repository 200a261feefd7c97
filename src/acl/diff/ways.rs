//! The way of flows: which routers carry a subnet for whom (SEMANTICS.md 9.4, 9.5). `via` may lead a flow
//! through another router though both routers let the same through. Which router of several is elected is
//! not the policy's, so the routers that may be are compared.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::super::compile::Inner;
use super::super::ground::Route;
use super::super::plan::{Form, Id};
use super::super::ranges::Bits;
use super::access::{Sender, without};
use super::others::{Effect, OtherKind, Others, Told, join};

/// Devices times routes that are looked at.
const BUDGET: usize = 300_000;
/// Devices of one change whose access behind the routers is compared.
const COMPARED: usize = 200;
/// Routers that are named.
const NAMED: usize = 3;

/// Routers of which one carries a route; several such groups when several `via` lead there.
type Carriers = BTreeSet<Vec<usize>>;

/// Who is led to one route by one policy, and how.
struct Lead<'a> {
    route: &'a Route,
    /// Through any router: a rule opens ports there.
    open: Bits,
    /// Through any router too, unless `via` leads elsewhere: a rule comes back from there, or gives
    /// capabilities alone.
    back: Bits,
    /// Through those with certain tags: whom, and which routers.
    steered: BTreeMap<Id, (Bits, Vec<usize>)>,
}

impl<'a> Lead<'a> {
    /// From the names of `policy` that reach into the route.
    fn new(policy: &'a Inner, names: &[usize], route: &'a Route) -> Self {
        let plan = &policy.plan;
        let (open, back) = (Bits::default(), Bits::default());
        let mut out = Self { route, open, back, steered: BTreeMap::new() };
        let side = |across: &[Box<[Id]>], name: usize, to: &mut Bits| {
            for other in across.get(name).into_iter().flatten() {
                if let Some(state) = policy.names.get(*other as usize) {
                    to.add(&state.side);
                }
            }
        };
        for at in names.iter().copied() {
            let Some(name) = plan.names.get(at) else { continue };
            match name.form {
                Form::Dest => side(&plan.from, at, &mut out.open),
                Form::Source(_) => side(&plan.to, at, &mut out.back),
                Form::App(_) => side(&plan.from, at, &mut out.back),
                Form::Via(via) => {
                    let (whom, routers) = out.steered.entry(via).or_default();
                    side(&plan.from, at, whom);
                    if routers.is_empty() {
                        *routers = policy.via_servers(via, &route.nodes).iter().collect();
                    }
                }
            }
        }
        out
    }

    /// Whether everybody is led as by another policy.
    fn same(&self, other: &Self) -> bool {
        let steered = |lead: &Self| lead.steered.values().cloned().collect::<HashSet<_>>();
        self.open == other.open && self.back == other.back && steered(self) == steered(other)
    }

    /// Who is led there at all.
    fn everybody(&self) -> Bits {
        let mut out = self.open.clone();
        out.add(&self.back);
        self.steered.values().for_each(|(whom, _)| out.add(whom));
        out
    }

    /// As `Inner::shown_routes` decides it.
    fn carriers(&self, at: usize) -> Carriers {
        let any = || Carriers::from([self.route.nodes.iter().collect()]);
        if self.open.get(at) {
            return any();
        }
        let mut led = self.steered.values().filter(|(whom, _)| whom.get(at)).peekable();
        if led.peek().is_none() {
            return if self.back.get(at) { any() } else { Carriers::new() };
        }
        led.map(|(_, routers)| routers.clone()).filter(|routers| !routers.is_empty()).collect()
    }
}

pub(super) fn find(all: &mut Others<'_>) {
    let (old, new) = (all.old, all.new);
    if old.plan.vias.is_empty() && new.plan.vias.is_empty() {
        return;
    }
    let steered: BTreeSet<usize> = [old, new]
        .into_iter()
        .flat_map(|policy| policy.plan.names.iter().zip(&policy.names))
        .filter(|(name, _)| matches!(name.form, Form::Via(_)))
        .flat_map(|(_, state)| state.routes.iter().copied())
        .collect();
    let names = [old, new].map(|policy| reaching(policy, &steered));
    let of =
        |side: &HashMap<usize, Vec<usize>>, number: usize| side.get(&number).cloned().unwrap_or_default();
    let mut spent = 0;
    for (number, route) in new.ground.served().filter(|(number, _)| steered.contains(number)) {
        let [was, is] = &names;
        let (before, after) =
            (Lead::new(old, &of(was, number), route), Lead::new(new, &of(is, number), route));
        if before.same(&after) {
            continue;
        }
        let mut whom = before.everybody();
        whom.keep(&after.everybody());
        // Who serves a route needs nobody to carry it.
        whom.drop(&route.nodes);
        spent += whom.len();
        if spent > BUDGET {
            let what = "the way to subnets was not compared in full";
            all.network(Told::new(OtherKind::Way, Effect::Changed, what).taking(true));
            return;
        }
        let mut groups: HashMap<[Carriers; 2], Bits> = HashMap::new();
        for at in whom.iter() {
            let key = [before.carriers(at), after.carriers(at)];
            if key[0] != key[1] && key.iter().all(|c| !c.is_empty()) {
                groups.entry(key).or_default().set(at);
            }
        }
        for ([was, is], nodes) in groups {
            let less = nodes.iter().take(COMPARED).any(|at| opens_less(old, new, at, route, [&was, &is]))
                || nodes.len() > COMPARED;
            let hint = if less { ", where less is open" } else { "" };
            let (was, is) = (words(new, &was), words(new, &is));
            let what = format!("{} through {is}{hint} instead of {was}", route.text);
            all.devices(&nodes, Told::new(OtherKind::Way, Effect::Changed, what).taking(less));
        }
    }
}

/// Names that reach into each of `routes`.
fn reaching(policy: &Inner, routes: &BTreeSet<usize>) -> HashMap<usize, Vec<usize>> {
    let mut out: HashMap<usize, Vec<usize>> = HashMap::new();
    for (at, state) in policy.names.iter().enumerate() {
        for number in state.routes.iter().filter(|number| routes.contains(number)) {
            out.entry(*number).or_default().push(at);
        }
    }
    out
}

/// Whether a router that may carry now lets less through than one that might before.
fn opens_less(old: &Inner, new: &Inner, at: usize, route: &Route, [was, is]: [&Carriers; 2]) -> bool {
    let (before, after) = (Sender::new(old, Some(at)), Sender::new(new, Some(at)));
    let through = |sender: &Sender<'_>, routers: &Carriers| -> Vec<_> {
        routers.iter().flatten().map(|r| sender.access(Some(*r), false).behind(route.range)).collect()
    };
    let (before, after) = (through(&before, was), through(&after, is));
    before.iter().any(|a| after.iter().any(|b| !without(a, b).is_empty()))
}

/// `gate or gate2`, `gate, gate2 and spare` when several carry for several reasons.
fn words(policy: &Inner, carriers: &Carriers) -> String {
    let name = |at: &usize| policy.ground.nodes.get(*at).map_or_else(String::new, |n| n.node.name.clone());
    let group = |routers: &Vec<usize>| {
        let mut names: Vec<String> = routers.iter().take(NAMED).map(name).collect();
        if routers.len() > names.len() {
            names.push(format!("{} more", routers.len() - names.len()));
        }
        join(names, "or")
    };
    join(carriers.iter().map(group).collect(), "and")
}
