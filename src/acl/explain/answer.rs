//! The whole answer: the flows of a question, one verdict over them, and the words around it.

use std::collections::{HashMap, HashSet};

use crate::acl::Compiled;
use crate::acl::plan::{Form, Id};
use crate::keys::NodeId;

use super::chain::{Words, condition_words, rule_of};
use super::flow::{Block, End, Hit, Outcome, Scene, What};
use super::miss::{asked_words, misses};
use super::party::{Party, Place};
use super::{Case, Explanation, Question, RouteUsed, Side, Verdict, apps, ssh};

/// At most so many different devices of each end are answered for one by one.
const KINDS: usize = 8;
/// At most so many different answers are told.
const CASES: usize = 10;
/// At most so many further rules are told.
const ALSO: usize = 5;
/// Longer lists of ports stand in no sentence.
const LONG: usize = 80;
/// At most so many nodes of an end are listed.
const LISTED: usize = 100;

/// Answers a question.
pub(in crate::acl) fn explain(policy: &Compiled, question: &Question) -> Explanation {
    let scene = Scene { policy, inner: &policy.inner, facts: &question.facts };
    let what = What { protocol: question.protocol, port: question.port };
    let (from, cut_from) = kinds(&scene, &question.from);
    let (to, cut_to) = kinds(&scene, &question.to);
    let several = question.from.places.len() > 1 || question.to.places.len() > 1;
    let mut outcomes = Vec::new();
    for from in &from {
        for to in &to {
            let outcome = scene.outcome(*from, *to, what);
            // Among many, a device and itself say nothing.
            if !(several && outcome.block == Some(Block::Same)) {
                outcomes.push(outcome);
            }
        }
    }
    let verdict = overall(&outcomes);
    let words = Words { scene: &scene };
    let best = outcomes.iter().find(|o| o.verdict() == Verdict::Allowed);
    let shown =
        best.or_else(|| outcomes.iter().find(|o| o.verdict() == Verdict::Partly)).or(outcomes.first());
    let refused = outcomes.iter().find(|o| o.verdict() == Verdict::Refused);
    let mut out = Explanation {
        verdict,
        sentence: String::new(),
        from: side(&question.from),
        to: side(&question.to),
        what: asked_words(what),
        open: shown.map(|o| scene.open(&o.hits, o.asked)).unwrap_or_default(),
        rule: None,
        also: Vec::new(),
        chain: Vec::new(),
        misses: refused.map(|o| misses(&scene, o, what)).unwrap_or_default(),
        back: shown.map(|o| back(&scene, o)).unwrap_or_default(),
        route: shown.and_then(|o| route(&scene, o)),
        apps: shown.map(|o| apps::apps(&scene, o)).unwrap_or_default(),
        posture: shown.map(|o| posture(&scene, o)).unwrap_or_default(),
        ssh: None,
        cases: Vec::new(),
        notes: Vec::new(),
    };
    if let Some(shown) = shown {
        let mut rules = scene.rules(&shown.by).into_iter();
        if let Some(first) = rules.next() {
            out.rule = rule_of(&scene, first.unit);
            out.chain = words.chain(shown, &first);
        }
        out.also = rules.filter_map(|h| rule_of(&scene, h.unit)).take(ALSO).collect();
        out.ssh = question.ssh_user.as_deref().map(|login| ssh::answer(&scene, shown.from, shown.to, login));
        notes(&scene, shown, what, &mut out.notes);
    }
    let far = refused.is_some_and(|o| o.block.is_none()) && out.misses.is_empty();
    if far {
        out.notes.push("No rule would allow it if only one thing changed.".to_owned());
    }
    if outcomes.len() > 1 {
        out.cases = cases(&scene, &outcomes);
    }
    out.notes.extend([&question.from, &question.to].into_iter().filter_map(|p| p.note.clone()));
    if cut_from || cut_to {
        out.notes.push(
            "Not every device was asked about: there are too many that differ. Ask about one.".to_owned(),
        );
    }
    out.sentence = sentence(&scene, &out, shown.zip(Some(outcomes.len())), question);
    out
}

/// Places that may be answered differently, two of each kind; and whether there were too many.
fn kinds(scene: &Scene<'_>, party: &Party) -> (Vec<End>, bool) {
    let mut seen: HashMap<_, usize> = HashMap::new();
    let mut out = Vec::new();
    for end in party.places.iter().filter_map(|place| scene.end(*place)) {
        if party.places.len() > 1 {
            // Two of a kind, for what they may do among themselves.
            let count = seen.entry(kind(scene, end)).or_default();
            *count += 1;
            if *count > 2 {
                continue;
            }
        }
        if out.len() >= KINDS {
            return (out, true);
        }
        out.push(end);
    }
    (out, false)
}

/// A person, names as a source and as a destination, a slot.
type Kin = (u64, Vec<(Id, u8)>, Vec<(Id, u8)>, usize);

/// What decides how an end is treated: equal for ends that are treated alike.
fn kind(scene: &Scene<'_>, end: End) -> Kin {
    let End::Node(at, _) = end else {
        return (0, Vec::new(), Vec::new(), usize::MAX);
    };
    let names = scene.inner.nodes.get(at);
    let user = scene.node(at).and_then(|n| n.user).filter(|_| !scene.inner.plan.own.is_empty());
    let routes = scene.node(at).is_some_and(|n| !n.routes.is_empty() || !n.exits.is_empty());
    let mask = |id: &Id| (*id, scene.takes(*id, end));
    let srcs = names.map(|n| n.srcs.iter().map(mask).collect()).unwrap_or_default();
    let kept = names.map(|n| n.class.kept.iter().map(|id| (*id, scene.gets(*id, at, end))).collect());
    (user.map_or(0, |u| u.0), srcs, kept.unwrap_or_default(), if routes { at } else { usize::MAX })
}

fn overall(outcomes: &[Outcome]) -> Verdict {
    let verdicts: Vec<Verdict> = outcomes.iter().map(Outcome::verdict).collect();
    match verdicts.split_first() {
        None => Verdict::Refused,
        Some((first, rest)) if rest.iter().all(|v| v == first) => *first,
        Some(_) => Verdict::Partly,
    }
}

fn side(party: &Party) -> Side {
    let nodes: Vec<NodeId> = party
        .places
        .iter()
        .filter_map(|p| match p {
            Place::Node(id, _) => Some(*id),
            Place::Address(_) => None,
        })
        .take(LISTED)
        .collect();
    Side { words: party.words.clone(), nodes, total: u64::try_from(party.total).unwrap_or(u64::MAX) }
}

fn sentence(
    scene: &Scene<'_>,
    out: &Explanation,
    shown: Option<(&Outcome, usize)>,
    question: &Question,
) -> String {
    let (from, to) = (&question.from.words, &question.to.words);
    let Some((shown, count)) = shown else {
        let empty = if question.from.places.is_empty() { from } else { to };
        return format!("{from} reaches nothing at {to}: there is no device of {empty} to ask about.");
    };
    let on = match (out.what.as_str(), &out.open) {
        ("anything", open) if out.verdict == Verdict::Allowed && open.len() > LONG => {
            " on many ports".to_owned()
        }
        ("anything", open) if out.verdict == Verdict::Allowed && !open.is_empty() => format!(": {open}"),
        ("anything", _) => String::new(),
        (what, _) => format!(" on {what}"),
    };
    match out.verdict {
        Verdict::Allowed if shown.block == Some(Block::Same) => {
            format!("{from} is both ends: what a device sends itself never meets the rules.")
        }
        Verdict::Allowed if matches!(shown.block, Some(Block::Local(_))) => {
            let router = match shown.block {
                Some(Block::Local(at)) => scene.node(at).map(|n| n.node.name.as_str()),
                _ => None,
            };
            let router = router.unwrap_or_default();
            format!(
                "{from} and {to} are both on the network that {router} serves: what passes there never meets the rules."
            )
        }
        Verdict::Allowed => format!("{from} may reach {to}{on}."),
        Verdict::Partly if count > 1 => {
            format!("{from} may reach {to}{on} between some of the devices only.")
        }
        Verdict::Partly => {
            let (open, closed) = if shown.passed == 1 { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
            format!("{from} may reach {to}{on} over {open} only: no rule allows it over {closed}.")
        }
        Verdict::Refused => {
            let why = match (shown.block, &shown.carrier) {
                (Some(Block::NoWay(ip)), _) => format!("no approved route and no exit node leads to {ip}"),
                (Some(Block::NoSource(ip)), _) => format!("no approved route leads back to {ip}"),
                (Some(Block::Gone), _) => "one of the devices is gone".to_owned(),
                (Some(Block::Families), _) => "one end has only IPv4 and the other only IPv6".to_owned(),
                (_, Some(carrier)) if !carrier.shown => {
                    let name = scene.node(carrier.at).map(|n| n.node.name.as_str()).unwrap_or_default();
                    format!("no rule leads it through {name}, which carries it")
                }
                _ if shown.hits.is_empty() => "no rule joins the two".to_owned(),
                _ if out.open.len() > LONG => "the rules that join the two open other ports only".to_owned(),
                _ => format!("the rules that join the two open only {}", out.open),
            };
            format!("{from} may not reach {to}{on}: {why}.")
        }
    }
}

/// The way back.
fn back(scene: &Scene<'_>, outcome: &Outcome) -> String {
    if outcome.block.is_some() {
        return String::new();
    }
    let words = Words { scene };
    let (from, to) = (words.end(outcome.from), words.end(outcome.to));
    let reverse = scene.outcome(outcome.to, outcome.from, What { protocol: None, port: None });
    let open = scene.open(&reverse.hits, reverse.asked);
    let own = if open.is_empty() {
        format!("On its own {to} may not reach {from}.")
    } else {
        format!("On its own {to} may reach {from}: {open}.")
    };
    if outcome.passed == 0 { own } else { format!("Answers come back without a rule of their own. {own}") }
}

fn route(scene: &Scene<'_>, outcome: &Outcome) -> Option<RouteUsed> {
    let carrier = outcome.carrier.as_ref()?;
    let node = scene.node(carrier.at)?;
    let name = node.node.name.clone();
    let exit = carrier.net.prefix_len() == 0;
    let shown = if carrier.shown { "" } else { "; the rules do not show it to the sender" };
    let why = match (exit, carrier.others, carrier.steered) {
        (true, _, _) => format!("{name} is an exit node, and no narrower route leads there{shown}."),
        (false, 0, _) => format!("{name} alone serves {}{shown}.", carrier.net),
        (false, others, true) => {
            format!(
                "{name} is one of {} that serve {}, and a rule's via leads through it{shown}.",
                others + 1,
                carrier.net
            )
        }
        (false, others, false) => {
            format!("{name} carries {} now; {others} more serve it too{shown}.", carrier.net)
        }
    };
    Some(RouteUsed { net: (!exit).then_some(carrier.net), node: node.id, name, why })
}

/// What the rules that join the ends check of the source.
fn posture(scene: &Scene<'_>, outcome: &Outcome) -> Vec<String> {
    let End::Node(at, _) = outcome.from else {
        return Vec::new();
    };
    let Some(node) = scene.node(at) else {
        return Vec::new();
    };
    let mut seen = HashSet::new();
    let mut out = Vec::new();
    for hit in &outcome.by {
        let Some(list) = scene.unit(hit.unit).and_then(|u| scene.inner.plan.lists.get(u.list as usize))
        else {
            continue;
        };
        let name = list.first().and_then(|n| scene.inner.plan.names.get(*n as usize));
        let Some(Form::Source(number)) = name.map(|n| n.form) else {
            continue;
        };
        let wanted = scene.inner.plan.postures.get(number as usize).and_then(Option::as_ref);
        for word in wanted.into_iter().flatten().filter(|w| seen.insert(w.value.clone())) {
            let conditions = scene.inner.file.postures.get(&word.value).into_iter().flat_map(|p| &p.value);
            for condition in conditions {
                let (holds, words) = condition_words(&condition.value, &node.node.attributes);
                let mark = if holds { "holds" } else { "does not hold" };
                out.push(format!("{}: {words} ({mark})", word.value));
            }
        }
    }
    out
}

fn cases(scene: &Scene<'_>, outcomes: &[Outcome]) -> Vec<Case> {
    let words = Words { scene };
    let mut out: Vec<Case> = Vec::new();
    let mut seen = HashSet::new();
    for outcome in outcomes {
        let first = outcome.by.first().map(|h: &Hit| h.unit);
        let open = scene.open(&outcome.hits, outcome.asked);
        if out.len() >= CASES || !seen.insert((outcome.passed, outcome.block.is_some(), first, open.clone()))
        {
            continue;
        }
        out.push(Case {
            from: words.end(outcome.from),
            to: words.end(outcome.to),
            verdict: outcome.verdict(),
            open,
            rule: first.and_then(|unit| rule_of(scene, unit)),
        });
    }
    out
}

/// What else is worth knowing of a flow.
fn notes(scene: &Scene<'_>, outcome: &Outcome, what: What, out: &mut Vec<String>) {
    let words = Words { scene };
    let mut known = vec![outcome.from, outcome.to];
    if let Some(carrier) = &outcome.carrier {
        known.push(End::Node(carrier.at, 3));
        let name = words.end(End::Node(carrier.at, 3));
        out.push(format!("The packet filter that decides is that of {name}, which carries the traffic."));
        if carrier.net.prefix_len() == 0 {
            out.push(format!(
                "{} has to choose an exit node such as {name} itself.",
                words.end(outcome.from)
            ));
        }
    }
    for end in known {
        let End::Node(at, _) = end else { continue };
        let Some(node) = scene.node(at) else { continue };
        if scene.facts.expired.contains(&node.id) {
            out.push(format!(
                "The key of {} has expired: nobody reaches it until its person logs in again.",
                node.node.name
            ));
        } else if scene.facts.offline.contains(&node.id) {
            out.push(format!("{} is not connected now.", node.node.name));
        }
        if scene.policy.without_ipv4(node.id) {
            out.push(format!("{} is without IPv4.", node.node.name));
        }
    }
    let ping = matches!(what.protocol, Some(1 | 58));
    if ping && !outcome.by.is_empty() {
        out.push("A device may ping whatever it may reach on any port.".to_owned());
    }
}
