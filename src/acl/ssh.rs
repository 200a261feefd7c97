//! SSH rules (SEMANTICS.md 12): resolved once per world, then asked per destination node. The wire's rules
//! are made in the order the hosted service has them; what cannot be let in yet (a check, a recording
//! without a recorder) becomes a refusal with a sentence that takes nothing else away.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::keys::UserId;
use crate::wire::{SshAction, SshPrincipal, SshRecorderFailure, SshRule};

use super::ast::{self, Alias, File, SshUser};
use super::posture;
use super::ranges::Bits;
use super::resolve::{Ground, Resolver};

/// Where recorders listen.
const RECORDER_PORT: u16 = 80;

/// What a person reads whose login would need a check.
const NO_CHECK_MODE: &str = "tsd: the access policy asks for a check before this login, and this server cannot ask yet. \
     Whoever runs it can write \"action\": \"accept\" in the rule.\n";
/// What a person reads whose session must be recorded where nobody records.
const NO_RECORDER: &str = "tsd: the access policy wants this session recorded, and none of the recorders it names exists. \
     Whoever runs the server can start one or take \"enforceRecorder\" out of the rule.\n";
/// What a client says when no recorder answers.
const RECORDING_REFUSED: &str = "tsd: this session must be recorded and no recorder answers.\n";
const RECORDING_BROKE: &str = "tsd: this session ends because it is not recorded any more.\n";

/// What becomes of a check rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checks<'a> {
    /// The client asks the server with this base URL.
    Delegate(&'a str),
    /// The login is refused: check mode does not exist yet.
    Refuse,
}

/// Requested login to local user, as on the wire.
type Logins = BTreeMap<String, String>;

/// A rule against a world.
#[derive(Debug)]
struct Rule {
    sources: Bits,
    /// Destinations but `autogroup:self`.
    dests: Bits,
    own: bool,
    logins: Logins,
    /// Domains of the canonical `localpart:` entries.
    domains: Vec<String>,
    kind: Kind,
    recorders: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Accept,
    Check,
    /// Must be recorded, and there is no recorder.
    Unrecorded,
}

/// All SSH rules in one world.
#[derive(Debug)]
pub(super) struct Table {
    file: Arc<File>,
    rules: Vec<Rule>,
    /// Numbers of rules as clients meet them: those that check before those that accept.
    order: Vec<usize>,
}

/// One rule on its way to the wire.
struct Entry {
    /// Number in the file.
    number: usize,
    kind: Kind,
    /// Slots of the sources, as often as they count.
    from: Vec<usize>,
    logins: Logins,
}

/// Which rules let a login in: their numbers in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Verdict {
    /// By a rule that accepts.
    pub(super) accept: Option<usize>,
    /// By a rule that checks.
    pub(super) check: Option<usize>,
}

/// Who is let in somewhere under one login.
#[derive(Debug, Default)]
pub(super) struct Admitted {
    /// By rules that accept.
    pub(super) accept: Bits,
    /// By rules that check.
    pub(super) check: Bits,
}

impl Table {
    /// Resolves the rules of `file`.
    pub(super) fn new(file: &Arc<File>, ground: &Ground) -> Self {
        let mut resolving = Resolving {
            resolver: Resolver { file, ground },
            known: HashMap::new(),
            postures: HashMap::new(),
        };
        let rules: Vec<Rule> = file.ssh.iter().map(|rule| resolving.rule(rule)).collect();
        let is_check = |n: &usize| file.ssh.get(*n).is_some_and(|r| r.action != ast::SshAction::Accept);
        let (mut order, accepts): (Vec<usize>, Vec<usize>) = (0..rules.len()).partition(is_check);
        order.extend(accepts);
        Self { file: file.clone(), rules, order }
    }

    /// The rules of the node in `slot`, as on the wire. None lets nobody in.
    pub(super) fn rules(&self, ground: &Ground, slot: usize, checks: Checks<'_>) -> Vec<SshRule> {
        let mut entries = Vec::new();
        for number in &self.order {
            if let Some(rule) = self.rules.get(*number) {
                let froms = applies(ground, rule, slot);
                froms.iter().for_each(|from| split(ground, *number, rule, from, &mut entries));
            }
        }
        let refused = |kind| kind == Kind::Unrecorded || (kind == Kind::Check && checks == Checks::Refuse);
        if entries.iter().any(|e| refused(e.kind)) {
            entries = refuse_last(entries, refused);
        }
        entries.into_iter().filter_map(|entry| self.render(ground, entry, checks)).collect()
    }

    /// Which rules let the node in slot `from` log in as `login` at the node in slot `to`.
    pub(super) fn verdict(&self, ground: &Ground, from: usize, to: usize, login: &str) -> Verdict {
        let mut verdict = Verdict::default();
        let source: Bits = [from].into_iter().collect();
        for number in self.candidates(&source, &[to].into_iter().collect()) {
            let Some(rule) = self.rules.get(number) else {
                continue;
            };
            if !lets_in(ground, rule, to, login).get(from) {
                continue;
            }
            match rule.kind {
                Kind::Accept => verdict.accept = verdict.accept.or(Some(number)),
                Kind::Check => verdict.check = verdict.check.or(Some(number)),
                Kind::Unrecorded => break,
            }
        }
        verdict
    }

    /// One number per rule, equal for rules that give the same in one numbering of nodes.
    pub(super) fn prints(&self) -> Vec<u128> {
        let one = |rule: &Rule| {
            let [a, b] = [1_u8, 2].map(|salt| {
                let mut hash = std::hash::DefaultHasher::new();
                (salt, &rule.sources, &rule.dests, rule.own, &rule.logins, &rule.domains).hash(&mut hash);
                std::mem::discriminant(&rule.kind).hash(&mut hash);
                hash.finish()
            });
            u128::from(a) << 64 | u128::from(b)
        };
        self.rules.iter().map(one).collect()
    }

    /// Whether a rule may take from what others let in: it checks or refuses.
    pub(super) fn narrows(&self, number: usize) -> bool {
        self.rules.get(number).is_some_and(|rule| !matches!(rule.kind, Kind::Accept))
    }

    /// Where a rule lets somebody in, and as whom (`*` is any login that is not named); the names of
    /// `localpart:` are those of its sources.
    pub(super) fn reach(&self, ground: &Ground, number: usize) -> Option<(Bits, BTreeSet<String>)> {
        let rule = self.rules.get(number)?;
        let mut to = rule.dests.clone();
        if rule.own {
            let people = rule.sources.iter().filter_map(|slot| devices(ground, slot));
            people.for_each(|nodes| to.add(nodes));
        }
        let named = rule.logins.iter().filter(|(_, local)| !local.is_empty());
        let mut logins: BTreeSet<String> = named.map(|(login, _)| login.clone()).collect();
        if !rule.domains.is_empty() {
            let own = rule.sources.iter().filter_map(|slot| local_part(ground, rule, slot));
            logins.extend(own.map(str::to_owned));
        }
        Some((to, logins))
    }

    /// Rules that may speak of any of `from` at any of `to`, as clients meet them.
    pub(super) fn candidates(&self, from: &Bits, to: &Bits) -> Vec<usize> {
        let numbers = self.order.iter().copied();
        let may = |rule: &Rule| {
            let beyond = rule.own || !rule.domains.is_empty();
            rule.sources.meets(from) && (beyond || rule.dests.meets(to))
        };
        numbers.filter(|n| self.rules.get(*n).is_some_and(may)).collect()
    }

    /// Who is let in at the node in slot `to` as `login` by the rules `candidates`.
    pub(super) fn admitted(&self, ground: &Ground, candidates: &[usize], to: usize, login: &str) -> Admitted {
        let mut admitted = Admitted::default();
        let mut refused = Bits::default();
        for rule in candidates.iter().filter_map(|n| self.rules.get(*n)) {
            let mut from = lets_in(ground, rule, to, login);
            from.drop(&refused);
            match rule.kind {
                Kind::Accept => admitted.accept.add(&from),
                Kind::Check => admitted.check.add(&from),
                Kind::Unrecorded => refused.add(&from),
            }
        }
        admitted
    }

    fn render(&self, ground: &Ground, entry: Entry, checks: Checks<'_>) -> Option<SshRule> {
        let rule = self.rules.get(entry.number)?;
        let written = self.file.ssh.get(entry.number)?;
        let nodes = entry.from.iter().filter_map(|slot| ground.nodes.get(*slot));
        let principals = nodes
            .flat_map(|n| [n.v4, n.v6])
            .map(|ip| SshPrincipal { node_ip: ip.to_string(), ..SshPrincipal::default() })
            .collect();
        let mut action = match (entry.kind, checks) {
            (Kind::Accept, _) => SshAction {
                accept: true,
                allow_agent_forwarding: true,
                allow_local_port_forwarding: true,
                allow_remote_port_forwarding: true,
                ..SshAction::default()
            },
            (Kind::Check, Checks::Delegate(base)) => SshAction {
                hold_and_delegate: format!(
                    "{}/machine/ssh/action/$SRC_NODE_ID/to/$DST_NODE_ID?local_user=$LOCAL_USER",
                    base.trim_end_matches('/')
                ),
                ..SshAction::default()
            },
            (Kind::Check, Checks::Refuse) => refusal(NO_CHECK_MODE),
            (Kind::Unrecorded, _) => refusal(NO_RECORDER),
        };
        if !action.reject && !rule.recorders.is_empty() {
            action.recorders.clone_from(&rule.recorders);
            action.on_recording_failure = written.enforce_recorder.then(|| SshRecorderFailure {
                reject_session_with_message: RECORDING_REFUSED.to_owned(),
                terminate_session_with_message: RECORDING_BROKE.to_owned(),
            });
        }
        Some(SshRule {
            rule_expires: None,
            principals,
            ssh_users: entry.logins,
            action: Some(action),
            accept_env: written.accept_env.clone().unwrap_or_default(),
        })
    }
}

/// Whom one rule lets in at the node in slot `to` as `login`.
fn lets_in(ground: &Ground, rule: &Rule, to: usize, login: &str) -> Bits {
    let common = covers(&rule.logins, login);
    if !common && rule.domains.is_empty() {
        return Bits::default();
    }
    let mut from = Bits::default();
    applies(ground, rule, to).iter().for_each(|(part, _)| from.add(part));
    if common {
        return from;
    }
    let named = |slot: &usize| local_part(ground, rule, *slot) == Some(login);
    from.iter().filter(named).collect()
}

/// The nodes of the same person as the node in `slot`; none for a tagged node.
pub(super) fn devices(ground: &Ground, slot: usize) -> Option<&Bits> {
    ground.by_user.get(&ground.nodes.get(slot)?.user?).map(|nodes| &**nodes)
}

/// The sources of one rule for the node in `slot`, a set for each way it concerns it (12.2, 12.3), and
/// whether tagged nodes in it count once for each of their tags.
fn applies(ground: &Ground, rule: &Rule, slot: usize) -> Vec<(Bits, bool)> {
    let mut out = Vec::new();
    let own = devices(ground, slot);
    let among = |own: &Bits| {
        let mut from = rule.sources.clone();
        from.keep(own);
        from
    };
    if let Some(own) = own.filter(|_| rule.own) {
        out.push((among(own), false));
    }
    if rule.dests.get(slot) {
        out.push((rule.sources.clone(), true));
    } else if !rule.domains.is_empty() && !rule.dests.is_empty() && rule.sources.get(slot) {
        // Seen on the hosted service and on no page of its manual: with localpart, sources are given
        // the rule too, for their own person's nodes (`ssh-e5`, `ssh-e6`, `ssh-f5`).
        out.push((own.map_or_else(|| [slot].into_iter().collect(), among), false));
    }
    out
}

/// One entry for all sources, or with localpart one or two for each person (12.3).
fn split(ground: &Ground, number: usize, rule: &Rule, part: &(Bits, bool), out: &mut Vec<Entry>) {
    let (from, by_tag) = part;
    let counted = |slots: &mut dyn Iterator<Item = usize>| match by_tag {
        true => by_tags(ground, slots),
        false => slots.collect(),
    };
    let mut push = |from: Vec<usize>, logins: Logins| {
        if !from.is_empty() {
            out.push(Entry { number, kind: rule.kind, from, logins });
        }
    };
    if rule.domains.is_empty() {
        push(counted(&mut from.iter()), rule.logins.clone());
        return;
    }
    let mut people: BTreeMap<UserId, Vec<usize>> = BTreeMap::new();
    let mut tagged = Vec::new();
    for slot in from.iter() {
        match ground.nodes.get(slot).and_then(|n| n.user) {
            Some(user) => people.entry(user).or_default().push(slot),
            None => tagged.push(slot),
        }
    }
    for slots in people.into_values() {
        push(slots.clone(), rule.logins.clone());
        if let Some(local) = slots.first().and_then(|slot| local_part(ground, rule, *slot)) {
            push(slots, Logins::from([(local.to_owned(), local.to_owned())]));
        }
    }
    push(counted(&mut tagged.into_iter()), rule.logins.clone());
}

/// Slots as often as they count at a destination: a tagged node once for each of its tags, whichever tag
/// makes it a source (12.2.5).
fn by_tags(ground: &Ground, slots: impl Iterator<Item = usize>) -> Vec<usize> {
    let times = |slot: usize| ground.nodes.get(slot).map_or(1, |n| n.node.owner.tags().count().max(1));
    slots.flat_map(|slot| std::iter::repeat_n(slot, times(slot))).collect()
}

/// The login that a rule's `localpart:` makes of the mail address of a node's person.
fn local_part<'g>(ground: &'g Ground, rule: &Rule, slot: usize) -> Option<&'g str> {
    let (local, domain) = ground.owner(slot)?.name.rsplit_once('@')?;
    // A mail address is not what makes somebody root, and some names mean more on the wire.
    let plain = !["", "root", "*", "="].contains(&local);
    (plain && rule.domains.iter().any(|d| d == domain)).then_some(local)
}

fn refusal(message: &str) -> SshAction {
    SshAction { message: message.to_owned(), reject: true, ..SshAction::default() }
}

/// Whether a map of logins lets `login` in: its own key decides, else `*` (15).
fn covers(logins: &Logins, login: &str) -> bool {
    let local = logins.get(login).or_else(|| logins.get("*").filter(|_| login != "root"));
    local.is_some_and(|local| !local.is_empty())
}

/// Moves refusals behind everything else. A client takes a refusal for every login of its principals,
/// whatever the rule's own logins are; so each entry behind a refusal loses the logins refused there, and
/// the refusal, now last, meets only those whom nothing else lets in.
fn refuse_last(entries: Vec<Entry>, refused: impl Fn(Kind) -> bool) -> Vec<Entry> {
    let mut out = Vec::new();
    let mut refusals: Vec<Entry> = Vec::new();
    // For each source: refusals that come before what is looked at.
    let mut masks: HashMap<usize, Vec<usize>> = HashMap::new();
    for entry in entries {
        if refused(entry.kind) {
            let mut slots = entry.from.clone();
            slots.dedup();
            for slot in slots {
                masks.entry(slot).or_default().push(refusals.len());
            }
            refusals.push(entry);
            continue;
        }
        let mut parts: BTreeMap<&[usize], Vec<usize>> = BTreeMap::new();
        for slot in &entry.from {
            parts.entry(masks.get(slot).map_or(&[], Vec::as_slice)).or_default().push(*slot);
        }
        for (mask, from) in parts {
            let mut logins = entry.logins.clone();
            mask.iter().filter_map(|at| refusals.get(*at)).for_each(|r| take_away(&mut logins, &r.logins));
            if logins.values().any(|local| !local.is_empty()) || mask.is_empty() {
                out.push(Entry { number: entry.number, kind: entry.kind, from, logins });
            }
        }
    }
    out.extend(refusals);
    out
}

/// Takes from `logins` what `gone` lets in.
fn take_away(logins: &mut Logins, gone: &Logins) {
    let named = logins.iter_mut().filter(|(login, _)| *login != "*" && covers(gone, login));
    named.for_each(|(_, local)| local.clear());
    if gone.get("*").is_some_and(|local| !local.is_empty()) {
        logins.remove("*");
    } else if logins.contains_key("*") {
        for (login, _) in gone.iter().filter(|(_, local)| !local.is_empty()) {
            logins.entry(login.clone()).or_default();
        }
    }
}

/// Resolves names and postures once each.
struct Resolving<'a> {
    resolver: Resolver<'a>,
    known: HashMap<Alias, Bits>,
    /// Nodes that satisfy a list of postures.
    postures: HashMap<Vec<&'a str>, Bits>,
}

impl<'a> Resolving<'a> {
    fn members(&mut self, alias: &Alias) -> &Bits {
        let Self { known, resolver, .. } = self;
        known.entry(alias.clone()).or_insert_with(|| resolver.members(alias))
    }

    fn rule(&mut self, rule: &'a ast::SshRule) -> Rule {
        let mut sources = Bits::default();
        for src in &rule.src {
            sources.add(self.members(&src.value));
        }
        self.fit(&rule.posture, &mut sources);
        let mut dests = Bits::default();
        for dst in rule.dst.iter().filter(|d| d.value != Alias::Own) {
            dests.add(self.members(&dst.value));
        }
        let mut logins = Logins::from([("root".to_owned(), String::new())]);
        let mut domains: Vec<String> = Vec::new();
        for user in &rule.users {
            match &user.value {
                SshUser::Root => drop(logins.insert("root".to_owned(), "root".to_owned())),
                SshUser::NonRoot => drop(logins.insert("*".to_owned(), "=".to_owned())),
                SshUser::Literal(name) => drop(logins.insert(name.clone(), name.clone())),
                SshUser::LocalPart(domain) if domains.contains(domain) => {}
                SshUser::LocalPart(domain) => domains.push(domain.clone()),
            }
        }
        let recorders = self.recorders(rule);
        let kind = match rule.action {
            _ if rule.enforce_recorder && !rule.recorder.is_empty() && recorders.is_empty() => {
                Kind::Unrecorded
            }
            ast::SshAction::Accept => Kind::Accept,
            ast::SshAction::Check(_) => Kind::Check,
        };
        Rule {
            sources,
            dests,
            own: rule.dst.iter().any(|d| d.value == Alias::Own),
            logins,
            domains,
            kind,
            recorders,
        }
    }

    /// Drops sources that do not satisfy the rule's posture (3.5).
    fn fit(&mut self, src_posture: &'a ast::SrcPosture, sources: &mut Bits) {
        let file = self.resolver.file;
        let names = posture::for_rule(file, src_posture);
        if names.is_empty() || sources.is_empty() {
            return;
        }
        let Self { resolver, postures, .. } = self;
        let fitting = postures.entry(names.iter().map(|n| n.value.as_str()).collect()).or_insert_with(|| {
            let ground = resolver.ground;
            let fits = |slot: &usize| {
                let node = ground.nodes.get(*slot);
                node.is_some_and(|n| posture::satisfies(file, names, &n.node.attributes))
            };
            ground.all.iter().filter(fits).collect()
        });
        sources.keep(fitting);
    }

    /// Addresses of a rule's recorders, those of IPv4 first: a client tries them in order.
    fn recorders(&mut self, rule: &ast::SshRule) -> Vec<String> {
        let ground = self.resolver.ground;
        let mut found: Vec<IpAddr> = Vec::new();
        for recorder in &rule.recorder {
            match &recorder.value {
                Alias::Prefix(net) => found.extend(single(net)),
                Alias::Host(name) => {
                    let host = self.resolver.file.hosts.get(name);
                    found.extend(host.and_then(|h| single(&h.value)));
                }
                alias => {
                    let nodes = self.members(alias).iter().filter_map(|slot| ground.nodes.get(slot));
                    found.extend(nodes.flat_map(|n| [n.v4, n.v6]));
                }
            }
        }
        let mut seen = std::collections::HashSet::new();
        found.retain(|ip| seen.insert(*ip));
        found.sort_by_key(IpAddr::is_ipv6);
        found.into_iter().map(|ip| std::net::SocketAddr::new(ip, RECORDER_PORT).to_string()).collect()
    }
}

fn single(net: &IpNet) -> Option<IpAddr> {
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}
