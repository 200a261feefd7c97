//! What rules ask of the sources' devices. A posture that every device satisfies today changes nobody's
//! access, and yet from now on something is asked. Compared per source and destination as written, so a
//! rule that moved or was split is the same rule; a posture under another name is the same posture.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hash as _;

use super::super::ast::{Alias, File, Spanned, SrcPosture, SshUser};
use super::super::explain::demand_words;
use super::super::ports::{Ports, grant, joined, ports_in_words};
use super::super::posture::for_rule;
use super::super::ranges::Bits;
use super::double;
use super::others::{Effect, Members, OtherKind, Others, Told, clipped, join};
use crate::model::Tag;
use crate::wire::PortRange;

/// Pairs of a source and a destination under a posture that are compared.
const KEPT: usize = 300_000;
/// Pairs that are looked at in all.
const BUDGET: usize = 5_000_000;
/// Destinations of one change that are named.
const NAMED: usize = 3;

static EVERYBODY: Alias = Alias::Any;

/// What a rule lets its sources do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Aim<'a> {
    Ports { to: &'a Alias, via: Vec<&'a Tag>, protocol: Option<u8>, ports: PortRange },
    App { to: &'a Alias, name: &'a str },
    Ssh { to: &'a Alias, login: String },
}

struct Rule<'a> {
    src: Vec<&'a Alias>,
    posture: &'a SrcPosture,
    aims: Vec<Aim<'a>>,
}

/// What is asked for one aim of one source: any of these postures, or nothing.
#[derive(Debug, Clone, Default)]
struct Demand {
    /// Some rule has this source and aim.
    there: bool,
    /// Some rule asks nothing.
    open: bool,
    /// By what they demand, as they are called.
    any: BTreeMap<String, String>,
}

impl Demand {
    fn same(&self, other: &Self) -> bool {
        (self.open && other.open) || (self.open == other.open && self.any.keys().eq(other.any.keys()))
    }

    /// Whether something that was enough before is not enough for `self`.
    fn stricter(&self, before: &Self) -> bool {
        !self.open && (before.open || before.any.keys().any(|d| !self.any.contains_key(d)))
    }

    fn words(&self) -> String {
        if self.open {
            return "no posture".to_owned();
        }
        let one = |(demand, name): (&String, &String)| format!("{name} ({})", clipped(demand));
        join(self.any.iter().map(one).collect(), "or")
    }
}

fn aliases(list: &[Spanned<Alias>]) -> Vec<&Alias> {
    list.iter().map(|word| &word.value).collect()
}

/// All rules of a policy, one section after the other.
fn rules(file: &File) -> impl Iterator<Item = Rule<'_>> {
    let absent = file.acls.is_none() && file.grants.is_none();
    let all = PortRange::ANY;
    let default = absent.then(|| Rule {
        src: vec![&EVERYBODY],
        posture: &None,
        aims: vec![Aim::Ports { to: &EVERYBODY, via: Vec::new(), protocol: None, ports: all }],
    });
    let grants = file.grants.iter().flatten().map(|grant| {
        let via: Vec<&Tag> = grant.via.iter().map(|tag| &tag.value).collect();
        let mut aims = Vec::new();
        for to in aliases(&grant.dst) {
            for entry in &grant.ip {
                aims.extend(entry.ports.iter().map(|ports| Aim::Ports {
                    to,
                    via: via.clone(),
                    protocol: entry.protocol,
                    ports: *ports,
                }));
            }
            aims.extend(grant.app.keys().map(|name| Aim::App { to, name }));
        }
        Rule { src: aliases(&grant.src), posture: &grant.posture, aims }
    });
    let acls = file.acls.iter().flatten().map(|acl| {
        let mut aims = Vec::new();
        for dst in &acl.dst {
            aims.extend(dst.value.ports.iter().map(|ports| Aim::Ports {
                to: &dst.value.alias,
                via: Vec::new(),
                protocol: acl.protocol,
                ports: *ports,
            }));
        }
        Rule { src: aliases(&acl.src), posture: &acl.posture, aims }
    });
    let ssh = file.ssh.iter().map(|rule| {
        let login = |user: &SshUser| match user {
            SshUser::Root => "root".to_owned(),
            SshUser::NonRoot => "any login but root".to_owned(),
            SshUser::LocalPart(domain) => format!("their name at {domain}"),
            SshUser::Literal(name) => name.clone(),
        };
        let mut aims = Vec::new();
        for to in aliases(&rule.dst) {
            aims.extend(rule.users.iter().map(|user| Aim::Ssh { to, login: login(&user.value) }));
        }
        Rule { src: aliases(&rule.src), posture: &rule.posture, aims }
    });
    default.into_iter().chain(grants).chain(acls).chain(ssh)
}

/// Per source and aim what each policy asks, where a rule that asks anything stands in one of them only;
/// `None` when that is too much.
fn demands<'a>(files: [&'a File; 2]) -> Option<HashMap<(&'a Alias, Aim<'a>), [Demand; 2]>> {
    let prints = files.map(|file| rules(file).map(|rule| print(file, &rule)).collect::<HashSet<u128>>());
    let [one, other] = &prints;
    let mut found: HashMap<(&Alias, Aim<'_>), [Demand; 2]> = HashMap::new();
    let mut spent = 0_usize;
    // Rules that make an entry first, then those that only add to one.
    for makes in [true, false] {
        for ((side, file), than) in files.into_iter().enumerate().zip([other, one]) {
            for rule in rules(file) {
                let names = for_rule(file, rule.posture);
                if makes != (!names.is_empty() && !than.contains(&print(file, &rule))) {
                    continue;
                }
                spent = spent.saturating_add(rule.src.len().saturating_mul(rule.aims.len()));
                if spent > BUDGET || found.len() > KEPT {
                    return None;
                }
                let any: Vec<(String, String)> =
                    names.iter().map(|name| (demand(file, &name.value), name.value.clone())).collect();
                for key in rule.src.iter().flat_map(|src| rule.aims.iter().map(|aim| (*src, aim.clone()))) {
                    let both = if makes { Some(found.entry(key).or_default()) } else { found.get_mut(&key) };
                    if let Some(demand) = both.and_then(|both| both.get_mut(side)) {
                        demand.there = true;
                        demand.open |= names.is_empty();
                        demand.any.extend(any.iter().cloned());
                    }
                }
            }
        }
        if found.is_empty() {
            break;
        }
    }
    Some(found)
}

/// Stands for all that a rule says here.
fn print(file: &File, rule: &Rule<'_>) -> u128 {
    let asked: BTreeSet<String> =
        for_rule(file, rule.posture).iter().map(|name| demand(file, &name.value)).collect();
    double(|hash| (&rule.src, &rule.aims, &asked).hash(hash))
}

/// All conditions of a posture, in an order of their own.
fn demand(file: &File, name: &str) -> String {
    let conditions = file.postures.get(name).into_iter().flat_map(|posture| &posture.value);
    let words: BTreeSet<String> = conditions.map(|c| demand_words(&c.value)).collect();
    words.into_iter().collect::<Vec<_>>().join(" and ")
}

pub(super) fn find(all: &mut Others<'_>) {
    let files = [&*all.old.file, &*all.new.file];
    // A posture that rules name is declared.
    if files.iter().all(|file| file.postures.is_empty()) {
        return;
    }
    let Some(found) = demands(files) else {
        let what = "what rules ask of devices was not compared: the rules are too many";
        all.network(Told::new(OtherKind::Posture, Effect::Changed, what).taking(true));
        return;
    };
    let mut rows: BTreeMap<(String, String, bool), BTreeMap<Aim<'_>, BTreeSet<&Alias>>> = BTreeMap::new();
    for ((src, aim), [was, is]) in found {
        if was.there && is.there && !is.same(&was) {
            let key = (is.words(), was.words(), is.stricter(&was));
            rows.entry(key).or_default().entry(aim).or_default().insert(src);
        }
    }
    let mut members = Members::new(all.new);
    for ((is, was, stricter), aims) in rows {
        let mut groups: BTreeMap<BTreeSet<&Alias>, Vec<Aim<'_>>> = BTreeMap::new();
        for (aim, sources) in aims {
            groups.entry(sources).or_default().push(aim);
        }
        for (sources, aims) in groups {
            let mut nodes = Bits::default();
            sources.iter().for_each(|name| nodes.add(members.of(name)));
            let what = format!("{is} instead of {was}, for {}", words(&aims));
            let told = Told::new(OtherKind::Posture, Effect::Changed, what).taking(stricter);
            all.named(&sources, &nodes, told);
        }
    }
}

/// `port 443 at tag:web and ssh to tag:web as root`.
fn words(aims: &[Aim<'_>]) -> String {
    let mut ports: BTreeMap<&Alias, Ports> = BTreeMap::new();
    let mut rest = BTreeSet::new();
    for aim in aims {
        match aim {
            Aim::Ports { to, protocol, ports: range, .. } => {
                grant(ports.entry(to).or_default(), *protocol, &[*range]);
            }
            Aim::App { to, name } => drop(rest.insert(format!("capability {name} at {to}"))),
            Aim::Ssh { to, login } => drop(rest.insert(format!("ssh to {to} as {login}"))),
        }
    }
    let mut out: Vec<String> = Vec::new();
    for (to, mut ports) in ports {
        ports.values_mut().for_each(joined);
        out.push(format!("{} at {to}", ports_in_words(&ports)));
    }
    out.extend(rest);
    let more = out.len().saturating_sub(NAMED);
    if more > 1 {
        out.truncate(NAMED);
        out.push(format!("{more} more"));
    }
    join(out, "and")
}
