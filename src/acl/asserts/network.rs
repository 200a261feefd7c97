//! `tests` (SEMANTICS.md 14): whether sources reach destinations by the global rules, without the parts
//! of `autogroup:self` and `via`. Names are resolved once, rules are found through the destinations
//! that overlap with a test's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use super::super::alias::Alias;
use super::super::ast::{Span, Spanned, SrcPosture, Test};
use super::super::error::quote;
use super::super::posture::{self, Attributes};
use super::super::ranges::Bits;
use super::sides::{Side, Sides, Source};
use super::words::{attributes, protocols, split};
use super::{PolicyError, Report, Scene, Unfit};
use crate::wire::PortRange;

/// The name of the rule that a policy without rules stands for (2.1).
const DEFAULT: &str = "a policy without \"acls\" and \"grants\"";

/// So many ports named by tests and a rule that opens all of them is taken to be meant.
const MEANT: usize = 3;
/// At most so many rules are told to be wider than the tests.
const MAX_WIDE: usize = 10;

/// One rule.
struct Rule<'a> {
    /// `acls[3]`.
    name: (&'static str, usize),
    span: Span,
    posture: &'a SrcPosture,
    /// Numbers of sides.
    srcs: Vec<usize>,
}

/// A rule's word for one destination.
struct Use<'a> {
    rule: usize,
    to: &'a Alias,
    protocol: Option<u8>,
    ports: &'a [PortRange],
}

/// A test's source, with the source names of rules that have a part of it.
struct Trying {
    source: Source,
    sides: Bits,
}

/// What is looked for.
struct Target {
    sides: Rc<[usize]>,
    port: u16,
}

/// How far a source gets.
enum Reach {
    /// All of it, by this rule among others.
    All(usize),
    /// Not all of it: what is left, and a rule for the same destination, if there is one.
    Left { left: Source, some: bool, near: Option<usize> },
}

/// A run over all tests of one policy.
pub(super) struct Run<'a> {
    scene: &'a Scene<'a>,
    rules: Vec<Rule<'a>>,
    srcs: Sides<'a>,
    dsts: Sides<'a>,
    /// For each destination name: who speaks of it.
    uses: Vec<Vec<Use<'a>>>,
    /// Nodes that satisfy a list of postures.
    postures: HashMap<Vec<&'a str>, Rc<Bits>>,
    trying: HashMap<Alias, Rc<Trying>>,
    targets: HashMap<Alias, Rc<[usize]>>,
    /// Rules that open all ports to what an accepted test reaches: where, and the ports tests name there.
    wide: BTreeMap<usize, (&'a Alias, BTreeSet<u16>)>,
}

impl<'a> Run<'a> {
    pub(super) fn new(scene: &'a Scene<'a>) -> Self {
        let mut run = Self {
            scene,
            rules: Vec::new(),
            srcs: Sides::default(),
            dsts: Sides::default(),
            uses: Vec::new(),
            postures: HashMap::new(),
            trying: HashMap::new(),
            targets: HashMap::new(),
            wide: BTreeMap::new(),
        };
        run.gather();
        run
    }

    /// Takes the rules apart.
    fn gather(&mut self) {
        let file = self.scene.file;
        for (number, grant) in file.grants.iter().flatten().enumerate() {
            // What goes through a router of the grant's choice is no part of the global rules.
            if !grant.via.is_empty() || grant.ip.is_empty() {
                continue;
            }
            let rule = self.rule(("grants", number), grant.span, &grant.posture, &grant.src);
            for dst in grant.dst.iter().filter(|d| d.value != Alias::Own) {
                for ip in &grant.ip {
                    self.speaks(Use { rule, to: &dst.value, protocol: ip.protocol, ports: &ip.ports });
                }
            }
        }
        for (number, acl) in file.acls.iter().flatten().enumerate() {
            let rule = self.rule(("acls", number), acl.span, &acl.posture, &acl.src);
            for dst in acl.dst.iter().filter(|d| d.value.alias != Alias::Own) {
                let ports = &dst.value.ports;
                self.speaks(Use { rule, to: &dst.value.alias, protocol: acl.protocol, ports });
            }
        }
        if file.acls.is_none() && file.grants.is_none() {
            // All members reach all (2.1).
            let rule = self.rule((DEFAULT, 0), Span::default(), &None, &[]);
            let src = self.source_side(&Alias::Any);
            self.rules.iter_mut().for_each(|r| r.srcs.push(src));
            self.speaks(Use { rule, to: &Alias::Any, protocol: None, ports: &[PortRange::ANY] });
        }
    }

    fn rule(
        &mut self,
        name: (&'static str, usize),
        span: Span,
        posture: &'a SrcPosture,
        srcs: &'a [Spanned<Alias>],
    ) -> usize {
        let srcs = srcs.iter().map(|src| self.source_side(&src.value)).collect();
        self.rules.push(Rule { name, span, posture, srcs });
        self.rules.len() - 1
    }

    fn source_side(&mut self, alias: &'a Alias) -> usize {
        let scene = self.scene;
        self.srcs.number(alias, || Side::new(scene, alias))
    }

    fn speaks(&mut self, how: Use<'a>) {
        let (scene, alias) = (self.scene, how.to);
        let number = self.dsts.number(alias, || {
            let mut side = Side::new(scene, alias);
            side.everything = *alias == Alias::Any;
            side
        });
        if self.uses.len() <= number {
            self.uses.resize_with(number + 1, Vec::new);
        }
        if let Some(uses) = self.uses.get_mut(number) {
            uses.push(how);
        }
    }

    /// Runs all tests.
    pub(super) fn all(&mut self, report: &mut Report) {
        let file = self.scene.file;
        for (number, test) in file.tests.iter().enumerate() {
            if report.is_full() {
                return;
            }
            self.judge(number, test, report);
        }
        self.tell_wide(report);
    }

    /// Remembers rules that open all ports from a part of `trying` to where an accepted test leads.
    fn note_wide(&mut self, trying: &Trying, target: &Target, protocols: &[u8], given: Option<&Attributes>) {
        let all = |ports: &PortRange| ports.first <= 1 && ports.last == u16::MAX;
        let uses = target.sides.iter().filter_map(|side| self.uses.get(*side)).flatten();
        let wide = uses.filter(|how| how.protocol.is_none_or(|p| protocols.contains(&p)));
        let wide: BTreeMap<usize, &'a Alias> =
            wide.filter(|how| how.ports.iter().any(all)).map(|how| (how.rule, how.to)).collect();
        for (rule, to) in wide {
            let concerned = self.rules.get(rule);
            let concerned = concerned.is_some_and(|r| r.srcs.iter().any(|s| trying.sides.get(*s)));
            if concerned && !matches!(self.fit(rule, given), Fit::Nobody) {
                self.wide.entry(rule).or_insert_with(|| (to, BTreeSet::new())).1.insert(target.port);
            }
        }
    }

    /// Tests say what a policy is for: a rule that opens all ports where they name one or two is likely
    /// wider than anybody meant.
    fn tell_wide(&self, report: &mut Report) {
        let few = self.wide.iter().filter(|(_, (_, ports))| ports.len() < MEANT);
        for (rule, (to, ports)) in few.take(MAX_WIDE) {
            let Some(rule) = self.rules.get(*rule).filter(|r| r.name.0 != DEFAULT) else {
                continue;
            };
            let (line, column) = self.scene.lines.place(rule.span.start);
            let named: Vec<String> = ports.iter().map(u16::to_string).collect();
            let (noun, named) = (if named.len() == 1 { "port" } else { "ports" }, named.join(" and "));
            report.doubts.push(PolicyError {
                code: "wider-than-tests",
                line,
                column,
                message: format!(
                    "this rule opens all ports of {to}, and the tests want {noun} {named} there"
                ),
                hint: format!("write {noun} {named} in the rule, or test what else it is for"),
            });
        }
    }

    fn judge(&mut self, number: usize, test: &Test, report: &mut Report) {
        let scene = self.scene;
        let fault =
            |span, what: &str, hint: &str| scene.fault(span, &format!("tests[{number}]: {what}"), hint);
        if test.accept.is_empty() && test.deny.is_empty() {
            let hint = "add \"accept\" or \"deny\" with destinations such as tag:server:22";
            report.failed.push(fault(test.span, "asserts nothing", hint));
            return;
        }
        let trying = match self.trying(test.src.as_ref()) {
            Ok(trying) => trying,
            Err((what, hint)) => {
                let span = test.src.as_ref().map_or(test.span, |s| s.span);
                report.failed.push(fault(span, &what, hint));
                return;
            }
        };
        let protocols = match protocols(test.proto.as_ref()) {
            Ok(protocols) => protocols,
            Err((what, hint)) => {
                let span = test.proto.as_ref().map_or(test.span, |p| p.span);
                report.failed.push(fault(span, &what, hint));
                return;
            }
        };
        let given = attributes(test);
        let who = test.src.as_ref().map_or("", |s| s.value.trim());
        let words = test.accept.iter().map(|w| (w, true)).chain(test.deny.iter().map(|w| (w, false)));
        for (word, wanted) in words {
            if report.is_full() {
                return;
            }
            let dst = word.value.trim();
            let target = match self.target(dst) {
                Ok(target) => target,
                Err((what, hint)) => {
                    report.failed.push(fault(word.span, &what, hint));
                    continue;
                }
            };
            let reach = self.reach(&trying, &target, protocols, given.as_ref());
            match (reach, wanted) {
                (Reach::All(_), true) => self.note_wide(&trying, &target, protocols, given.as_ref()),
                (Reach::Left { some: false, .. }, false) => {}
                (Reach::All(rule), false) => {
                    let what = format!("{who} reaches {dst}, which \"deny\" forbids");
                    report.failed.push(fault(
                        word.span,
                        &what,
                        &format!("{} allows it", self.rule_name(rule)),
                    ));
                }
                (Reach::Left { left, some, near }, true) => {
                    let what = if some {
                        format!("a part of {who} does not reach {dst}, which \"accept\" demands of all")
                    } else {
                        format!("{who} does not reach {dst}, which \"accept\" demands")
                    };
                    report.failed.push(fault(word.span, &what, &self.why_not(dst, &left, near)));
                }
                (Reach::Left { left, .. }, false) => {
                    if report.doubts.len() < super::MAX_FAILURES {
                        report.doubts.push(self.doubt(number, word, who, &left));
                    }
                }
            }
        }
    }

    /// As on the hosted service a `deny` only fails when all of its sources get through.
    fn doubt(&self, number: usize, word: &Spanned<String>, who: &str, left: &Source) -> PolicyError {
        let (line, column) = self.scene.lines.place(word.span.start);
        let dst = word.value.trim();
        PolicyError {
            code: "test-in-part",
            line,
            column,
            message: format!(
                "tests[{number}]: \"deny\" of {dst} holds because {} is kept out, but a part of {who} gets through",
                self.first_left(left)
            ),
            hint: "write a test of its own for each source that must be kept out".to_owned(),
        }
    }

    fn rule_name(&self, rule: usize) -> String {
        match self.rules.get(rule).filter(|r| r.name.0 != DEFAULT) {
            Some(Rule { name: (section, number), span, .. }) => {
                format!("{section}[{number}] (line {})", self.scene.line(*span))
            }
            None => DEFAULT.to_owned(),
        }
    }

    fn why_not(&self, dst: &str, left: &Source, near: Option<usize>) -> String {
        match near {
            Some(rule) => {
                format!("{} allows {dst}, but not from {}", self.rule_name(rule), self.first_left(left))
            }
            None => format!("no rule allows {dst} over this protocol to anybody"),
        }
    }

    /// One address of what is left, in words.
    fn first_left(&self, left: &Source) -> String {
        let [v4, v6] = &left.nodes;
        let first = v4.iter().map(|s| (s, false)).chain(v6.iter().map(|s| (s, true))).next();
        let node = first.and_then(|(slot, is_v6)| Some((self.scene.ground.nodes.get(slot)?, slot, is_v6)));
        match node {
            Some((node, slot, is_v6)) => {
                format!("{} ({})", self.scene.node_name(slot), if is_v6 { node.v6 } else { node.v4 })
            }
            None => left.ranges.first().map_or_else(String::new, |r| r.text()),
        }
    }

    /// The source of a test, with what of the rules concerns it.
    fn trying(&mut self, src: Option<&Spanned<String>>) -> Result<Rc<Trying>, Unfit> {
        let alias = self.scene.source(src, false)?;
        if let Some(found) = self.trying.get(&alias) {
            return Ok(found.clone());
        }
        let source = Source::new(self.scene, &alias);
        if source.is_empty() {
            let text = src.map_or("", |s| s.value.trim());
            return Err((format!("{} has no node", quote(text)), "nobody can try this"));
        }
        let sides = (0..).zip(&self.srcs.list);
        let sides =
            sides.filter(|(_, side)| source.touches(side, self.scene.ground)).map(|(at, _)| at).collect();
        let trying = Rc::new(Trying { source, sides });
        self.trying.insert(alias, trying.clone());
        Ok(trying)
    }

    /// Reads `host:port` and finds the rules' names that overlap with it.
    fn target(&mut self, text: &str) -> Result<Target, Unfit> {
        let (name, port) = split(text)?;
        let alias = self.scene.alias(&name)?;
        let fits = match &alias {
            Alias::User(_) | Alias::Group(_) | Alias::Tag(_) | Alias::Member | Alias::Tagged => true,
            Alias::Role(_) | Alias::IpSet(_) | Alias::Service(_) => true,
            Alias::Host(_) | Alias::Prefix(_) => self.scene.is_single(&alias),
            _ => false,
        };
        if !fits {
            return Err((
                format!("{} cannot be a destination of a test", quote(text)),
                "test a user, group, tag, single host or single address, with one port",
            ));
        }
        if let Some(sides) = self.targets.get(&alias) {
            return Ok(Target { sides: sides.clone(), port });
        }
        let sides = self.overlapping(&alias).ok_or_else(|| {
            (format!("{} has no node or address", quote(text)), "there is nothing to reach")
        })?;
        self.targets.insert(alias, sides.clone());
        Ok(Target { sides, port })
    }

    /// Numbers of the destination names that overlap with `alias`; `None` when that is nothing at all.
    fn overlapping(&self, alias: &Alias) -> Option<Rc<[usize]>> {
        let resolver = &self.scene.resolver;
        let members = resolver.members(alias);
        // Names of nodes have both addresses of each: comparing nodes is enough.
        let ranges = match alias {
            Alias::Host(_) | Alias::Prefix(_) | Alias::IpSet(_) => Some(resolver.ranges(alias)),
            _ => None,
        };
        if ranges.as_ref().map_or(members.is_empty(), Vec::is_empty) {
            return None;
        }
        let meets = |side: &Side| {
            side.everything
                || match (&side.literal, &ranges) {
                    (Some(mine), Some(theirs)) => {
                        theirs.iter().any(|their| mine.iter().any(|my| my.overlaps(*their)))
                    }
                    _ => side.members.meets(&members),
                }
        };
        let sides = (0..).zip(&self.dsts.list);
        Some(sides.filter(|(_, side)| meets(side)).map(|(at, _)| at).collect())
    }

    /// How far a source gets. Every address of it has to get there; any address there will do.
    fn reach(
        &mut self,
        trying: &Trying,
        target: &Target,
        protocols: &[u8],
        given: Option<&Attributes>,
    ) -> Reach {
        let uses = target.sides.iter().filter_map(|side| self.uses.get(*side)).flatten();
        let allows = |how: &&Use<'_>| {
            how.protocol.is_none_or(|p| protocols.contains(&p))
                && how.ports.iter().any(|ports| ports.contains(target.port))
        };
        let mut candidates: Vec<usize> = uses.filter(allows).map(|how| how.rule).collect();
        candidates.sort_unstable();
        candidates.dedup();
        let mut left = trying.source.clone();
        let mut by = None;
        for number in &candidates {
            let concerned = self.rules.get(*number);
            let concerned = concerned.is_some_and(|r| r.srcs.iter().any(|s| trying.sides.get(*s)));
            if !concerned {
                continue;
            }
            let fit = match self.fit(*number, given) {
                Fit::Everybody => None,
                Fit::Nobody => continue,
                Fit::Nodes(nodes) => Some(nodes),
            };
            let before = left.count();
            for src in self.rules.get(*number).into_iter().flat_map(|r| &r.srcs) {
                if let Some(side) = self.srcs.list.get(*src).filter(|_| trying.sides.get(*src)) {
                    left.take_away(side, fit.as_deref(), self.scene.ground);
                }
            }
            if left.count() < before {
                by = by.or(Some(*number));
            }
            if let Some(by) = by.filter(|_| left.is_empty()) {
                return Reach::All(by);
            }
        }
        Reach::Left { left, some: by.is_some(), near: by.or(candidates.first().copied()) }
    }

    /// Whom a rule's posture lets through: by what the test gives its source, else by what is known.
    fn fit(&mut self, rule: usize, given: Option<&Attributes>) -> Fit {
        let file = self.scene.file;
        let Some(rule) = self.rules.get(rule) else {
            return Fit::Nobody;
        };
        let names = posture::for_rule(file, rule.posture);
        if names.is_empty() {
            return Fit::Everybody;
        }
        if let Some(given) = given {
            let fits = posture::satisfies(file, names, given);
            return if fits { Fit::Everybody } else { Fit::Nobody };
        }
        let ground = self.scene.ground;
        let key = names.iter().map(|n| n.value.as_str()).collect();
        let nodes = self.postures.entry(key).or_insert_with(|| {
            let fits = |slot: &usize| {
                let node = ground.nodes.get(*slot);
                node.is_some_and(|n| posture::satisfies(file, names, &n.node.attributes))
            };
            Rc::new(ground.all.iter().filter(fits).collect())
        });
        Fit::Nodes(nodes.clone())
    }
}

/// Whom a posture lets through.
enum Fit {
    Everybody,
    Nobody,
    Nodes(Rc<Bits>),
}
