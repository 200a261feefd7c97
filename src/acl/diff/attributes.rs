//! Attributes, app configurations and address pools of `nodeAttrs`: which devices gain, lose or change
//! which. What every device has anyway is no change, also when it is written.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::super::compile::Inner;
use super::super::ranges::Bits;
use super::others::{Effect, Members, Named, OtherKind, Others, Told, clipped, join, some};

/// Every device has these (SEMANTICS.md 10).
const EVERYBODYS: [&str; 3] =
    ["https://tailscale.com/cap/file-sharing", "https://tailscale.com/cap/ssh", "default-auto-update"];
const NO_IPV4: &str = "disable-ipv4";
const RANDOM_PORT: &str = "randomize-client-port";
/// Devices whose app values are compared one by one.
const BUDGET: usize = 200_000;

/// What `nodeAttrs` of one policy give.
#[derive(Default)]
struct Given<'a> {
    attributes: BTreeMap<&'a str, Named<'a>>,
    apps: BTreeMap<&'a str, App<'a>>,
    /// Networks per device, in order.
    pools: BTreeMap<usize, Vec<IpNet>>,
}

#[derive(Default)]
struct App<'a> {
    all: Named<'a>,
    /// Who has which value.
    values: BTreeMap<String, Bits>,
}

impl<'a> Given<'a> {
    fn new(policy: &'a Inner) -> Self {
        let mut members = Members::new(policy);
        let mut out = Self::default();
        for entry in &policy.file.node_attrs {
            let mut who = Named::default();
            members.add(&entry.target, &mut who);
            for name in &entry.attr {
                members.add(&entry.target, out.attributes.entry(name).or_default());
            }
            for (name, values) in &entry.app {
                let app = out.apps.entry(name).or_default();
                members.add(&entry.target, &mut app.all);
                for value in values {
                    app.values.entry(value.to_string()).or_default().add(&who.nodes);
                }
            }
            if !entry.ip_pool.is_empty() {
                for at in who.nodes.iter() {
                    let list = out.pools.entry(at).or_default();
                    entry.ip_pool.iter().for_each(|net| {
                        if !list.contains(net) {
                            list.push(*net);
                        }
                    });
                }
            }
        }
        for name in EVERYBODYS {
            out.attributes.remove(name);
        }
        let all = [(NO_IPV4, policy.file.disable_ipv4), (RANDOM_PORT, policy.file.randomize_client_port)];
        for (name, _) in all.into_iter().filter(|(_, on)| *on) {
            out.attributes.entry(name).or_default().nodes.add(&policy.ground.all);
        }
        out
    }
}

/// Whether somebody may live by an attribute: it lets others reach something.
fn carries_access(name: &str) -> bool {
    name == "funnel" || name.starts_with("drive:") || name.contains("/cap/")
}

pub(super) fn find(all: &mut Others<'_>) {
    let (old, new) = (all.old, all.new);
    if old.file.node_attrs.is_empty()
        && new.file.node_attrs.is_empty()
        && old.file.disable_ipv4 == new.file.disable_ipv4
        && old.file.randomize_client_port == new.file.randomize_client_port
    {
        return;
    }
    let (was, is) = (Given::new(old), Given::new(new));
    let nobody = Named::default();
    let names: BTreeSet<&str> = was.attributes.keys().chain(is.attributes.keys()).copied().collect();
    for name in names {
        let flipped = match name {
            NO_IPV4 => old.file.disable_ipv4 != new.file.disable_ipv4,
            RANDOM_PORT => old.file.randomize_client_port != new.file.randomize_client_port,
            _ => false,
        };
        let (before, after) =
            (was.attributes.get(name).unwrap_or(&nobody), is.attributes.get(name).unwrap_or(&nobody));
        if flipped {
            option(all, name, before, after);
            continue;
        }
        for (effect, one, other) in [(Effect::Gained, after, before), (Effect::Lost, before, after)] {
            let told = attribute(name, effect);
            all.devices(&one.more_than(other), told.clone());
            all.nobody(&one.idle_beyond(other), told.taking(false));
        }
    }
    let none = App::default();
    let names: BTreeSet<&str> = was.apps.keys().chain(is.apps.keys()).copied().collect();
    let mut spent = 0;
    for name in names {
        let (before, after) = (was.apps.get(name).unwrap_or(&none), is.apps.get(name).unwrap_or(&none));
        app(all, name, before, after, &mut spent);
    }
    pools(all, &was, &is);
}

/// An attribute that comes or goes. Without IPv4 somebody has less, not more.
fn attribute(name: &str, effect: Effect) -> Told {
    match (name, effect) {
        (NO_IPV4, Effect::Gained) => {
            Told::new(OtherKind::Attribute, Effect::Lost, "IPv4 (attribute disable-ipv4)").taking(true)
        }
        (NO_IPV4, _) => {
            Told::new(OtherKind::Attribute, Effect::Gained, "IPv4 (no attribute disable-ipv4 any more)")
        }
        (name, effect) => Told::new(OtherKind::Attribute, effect, format!("attribute {}", clipped(name)))
            .taking(effect == Effect::Lost && carries_access(name)),
    }
}

/// An option that is an attribute of everybody. Whoever has the attribute anyway is no part of it.
fn option(all: &mut Others<'_>, name: &str, before: &Named<'_>, after: &Named<'_>) {
    let (came, went) = (after.more_than(before), before.more_than(after));
    let on = after.nodes.len() >= before.nodes.len() && went.is_empty();
    let told = match (name, on) {
        (NO_IPV4, true) => Told::new(OtherKind::Option, Effect::Lost, "IPv4 (disableIPv4)").taking(true),
        (NO_IPV4, false) => Told::new(OtherKind::Option, Effect::Gained, "IPv4 (no disableIPv4 any more)"),
        (_, true) => Told::new(OtherKind::Option, Effect::Gained, "a random UDP port (randomizeClientPort)"),
        (_, false) => Told::new(OtherKind::Option, Effect::Lost, "a random UDP port (randomizeClientPort)"),
    };
    let nodes = if on { came } else { went };
    if nodes.is_empty() || nodes == *all.new.ground.all {
        all.network(told);
    } else {
        all.devices(&nodes, told);
    }
}

/// One app: who has it now, who no longer, and whose values are others.
fn app<'a>(all: &mut Others<'a>, name: &str, before: &App<'a>, after: &App<'a>, spent: &mut usize) {
    let values = |app: &App<'_>, of: &Bits| -> BTreeSet<String> {
        app.values.iter().filter(|(_, who)| who.meets(of)).map(|(text, _)| text.clone()).collect()
    };
    let told =
        |effect, text: String| Told::new(OtherKind::App, effect, format!("app {}{text}", clipped(name)));
    for (effect, one, other) in [(Effect::Gained, after, before), (Effect::Lost, before, after)] {
        let nodes = one.all.more_than(&other.all);
        let text = match effect {
            Effect::Gained => some(&values(one, &nodes)),
            _ => String::new(),
        };
        all.devices(&nodes, told(effect, text).taking(effect == Effect::Lost));
        all.nobody(&one.all.idle_beyond(&other.all), told(effect, String::new()));
    }
    let mut both = before.all.nodes.clone();
    both.keep(&after.all.nodes);
    let differing: Vec<(&str, [Bits; 2])> = before
        .values
        .keys()
        .chain(after.values.keys())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .filter_map(|text| {
            let sets = [before, after].map(|app| {
                let mut who = app.values.get(text).cloned().unwrap_or_default();
                who.keep(&both);
                who
            });
            (sets[0] != sets[1]).then_some((text.as_str(), sets))
        })
        .collect();
    let mut touched = Bits::default();
    for (_, [was, is]) in &differing {
        let mut only = was.clone();
        only.drop(is);
        touched.add(&only);
        let mut only = is.clone();
        only.drop(was);
        touched.add(&only);
    }
    *spent = spent.saturating_add(touched.len().saturating_mul(differing.len()));
    if *spent > BUDGET {
        all.devices(&touched, told(Effect::Changed, " with other values".to_owned()));
        return;
    }
    let mut groups: BTreeMap<[Vec<&str>; 2], Bits> = BTreeMap::new();
    for at in touched.iter() {
        let mut key: [Vec<&str>; 2] = [Vec::new(), Vec::new()];
        for (text, [was, is]) in &differing {
            match (was.get(at), is.get(at)) {
                (true, false) => key[0].push(text),
                (false, true) => key[1].push(text),
                _ => {}
            }
        }
        groups.entry(key).or_default().set(at);
    }
    for ([gone, come], nodes) in groups {
        let owned = |list: Vec<&str>| list.into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
        let (gone, come) = (some(&owned(gone)), some(&owned(come)));
        let text = match (gone.is_empty(), come.is_empty()) {
            (false, false) => format!("{come} instead of{gone}"),
            (true, _) => format!(" also{come}"),
            (_, true) => format!(" no longer{gone}"),
        };
        all.devices(&nodes, told(Effect::Changed, text));
    }
}

fn pools(all: &mut Others<'_>, was: &Given<'_>, is: &Given<'_>) {
    let none = Vec::new();
    let mut groups: BTreeMap<[&Vec<IpNet>; 2], Bits> = BTreeMap::new();
    for at in was.pools.keys().chain(is.pools.keys()).collect::<BTreeSet<_>>() {
        let key = [was, is].map(|given| given.pools.get(at).unwrap_or(&none));
        if key[0] != key[1] {
            groups.entry(key).or_default().set(*at);
        }
    }
    let words = |list: &Vec<IpNet>| match list.as_slice() {
        [] => "the server's own pool".to_owned(),
        list => join(list.iter().map(ToString::to_string).collect(), "and"),
    };
    for ([before, after], nodes) in groups {
        let what = format!(
            "new addresses from {} instead of {} (those given stay)",
            clipped(&words(after)),
            clipped(&words(before))
        );
        all.devices(&nodes, Told::new(OtherKind::IpPool, Effect::Changed, what));
    }
}
