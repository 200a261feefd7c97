//! `tests` and `sshTests` (SEMANTICS.md 14, 15): assertions that a policy makes about itself, judged
//! against the users and nodes there are. Words are read here, when a test runs: a malformed test fails.

mod network;
mod sides;
mod words;

use super::alias::Alias;
use super::ast::{File, Span, Spanned, SshTest};
use super::error::{Lines, quote};
use super::ranges::Bits;
use super::resolve::{Ground, Resolver};
use super::{PolicyError, ssh};

/// At most so many failures are told.
const MAX_FAILURES: usize = 50;

/// What became of all tests.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Assertions that do not hold.
    pub(super) failed: Vec<PolicyError>,
    /// Assertions that hold and mean less than they say.
    pub(super) doubts: Vec<PolicyError>,
}

impl Report {
    fn is_full(&self) -> bool {
        self.failed.len() >= MAX_FAILURES
    }
}

/// Runs all tests of `file`. SSH rules are asked for when there are `sshTests`.
pub(super) fn run<'s>(
    file: &File,
    ground: &Ground,
    lines: &Lines,
    ssh: impl FnOnce() -> &'s ssh::Table,
) -> Report {
    let mut report = Report::default();
    let scene = Scene { file, ground, lines, resolver: Resolver { file, ground } };
    if !file.tests.is_empty() {
        network::Run::new(&scene).all(&mut report);
    }
    if !file.ssh_tests.is_empty() {
        let table = ssh();
        for (number, test) in file.ssh_tests.iter().enumerate() {
            SshRun { scene: &scene, table, name: format!("sshTests[{number}]"), test }.judge(&mut report);
        }
    }
    report
}

/// What tests are judged against.
struct Scene<'a> {
    file: &'a File,
    ground: &'a Ground,
    lines: &'a Lines,
    resolver: Resolver<'a>,
}

/// A word that makes no test, and what would.
type Unfit = (String, &'static str);

impl Scene<'_> {
    fn fault(&self, span: Span, message: &str, hint: impl Into<String>) -> PolicyError {
        let (line, column) = self.lines.place(span.start);
        PolicyError {
            code: "test-failed",
            line,
            column,
            message: format!("test(s) failed: {message}"),
            hint: hint.into(),
        }
    }

    fn line(&self, span: Span) -> u32 {
        self.lines.place(span.start).0
    }

    fn node_name(&self, slot: usize) -> &str {
        self.ground.nodes.get(slot).map_or("a node", |n| n.node.name.as_str())
    }

    /// Reads the name of somebody whom the policy knows.
    fn alias(&self, text: &str) -> Result<Alias, Unfit> {
        let Ok(alias) = Alias::parse(text) else {
            return Err((
                format!("{} names nobody", quote(text)),
                "name a user, group, tag, host or address",
            ));
        };
        let known = match &alias {
            Alias::Group(name) => self.file.groups.contains_key(name),
            Alias::Tag(tag) => self.file.tag_owners.contains_key(tag),
            Alias::Host(name) => self.file.hosts.contains_key(name),
            Alias::IpSet(name) => self.file.ipsets.contains_key(name),
            _ => true,
        };
        if known {
            return Ok(alias);
        }
        Err((
            format!("{} is not defined in this policy", quote(text)),
            "define it in \"groups\", \"tagOwners\", \"hosts\" or \"ipsets\", or correct the name",
        ))
    }

    /// The source of a test.
    fn source(&self, src: Option<&Spanned<String>>, ssh: bool) -> Result<Alias, Unfit> {
        const HINT: &str = "a source is a user, group, tag, host, address, or an autogroup of nodes";
        let text = src.map_or("", |s| s.value.trim());
        if text.is_empty() {
            return Err(("\"src\" is missing".to_owned(), HINT));
        }
        let alias = self.alias(text)?;
        let fits = match &alias {
            Alias::User(_) | Alias::Group(_) | Alias::Tag(_) | Alias::Member | Alias::Tagged => true,
            Alias::Role(_) => true,
            Alias::Host(_) | Alias::Prefix(_) if ssh => self.is_single(&alias),
            Alias::Host(_) | Alias::Prefix(_) => true,
            Alias::Any | Alias::IpSet(_) | Alias::Range(..) => !ssh,
            _ => false,
        };
        if fits { Ok(alias) } else { Err((format!("{} cannot be a source", quote(text)), HINT)) }
    }

    /// Whether an address alias is one address.
    fn is_single(&self, alias: &Alias) -> bool {
        let net = match alias {
            Alias::Prefix(net) => Some(net),
            Alias::Host(name) => self.file.hosts.get(name).map(|h| &h.value),
            _ => None,
        };
        net.is_none_or(|net| net.prefix_len() == net.max_prefix_len())
    }
}

/// One entry of `sshTests`.
struct SshRun<'a> {
    scene: &'a Scene<'a>,
    table: &'a ssh::Table,
    name: String,
    test: &'a SshTest,
}

/// What an assertion demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Demand {
    Accept,
    Deny,
    Check,
}

impl SshRun<'_> {
    fn judge(&self, report: &mut Report) {
        let test = self.test;
        let mut fail = |span, what: &str, hint: String| {
            if !report.is_full() {
                report.failed.push(self.scene.fault(span, &format!("{}: {what}", self.name), hint));
            }
        };
        if test.accept.is_empty() && test.deny.is_empty() && test.check.is_empty() {
            fail(
                test.span,
                "asserts nothing",
                "add \"accept\", \"check\" or \"deny\" with login names".into(),
            );
            return;
        }
        let from = match self.scene.source(test.src.as_ref(), true) {
            Ok(alias) => self.scene.resolver.members(&alias),
            Err((what, hint)) => {
                return fail(test.src.as_ref().map_or(test.span, |s| s.span), &what, hint.into());
            }
        };
        if from.is_empty() {
            let src = test.src.as_ref();
            let what = format!("{} has no node", quote(src.map_or("", |s| s.value.trim())));
            return fail(src.map_or(test.span, |s| s.span), &what, "nobody can try this login".into());
        }
        if test.dst.is_empty() {
            return fail(test.span, "\"dst\" is missing", "name the nodes that are logged in to".into());
        }
        for dst in &test.dst {
            let to = match self.destination(dst, &from) {
                Ok(to) => to,
                Err((what, hint)) => {
                    fail(dst.span, &what, hint.into());
                    continue;
                }
            };
            let pairs =
                Pairs { from: &from, to: &to.0, own: to.1, rules: self.table.candidates(&from, &to.0) };
            let demands =
                [(Demand::Accept, &test.accept), (Demand::Check, &test.check), (Demand::Deny, &test.deny)];
            for (demand, logins) in demands {
                for login in logins {
                    if let Some((what, hint)) = self.broken(&pairs, demand, login, &dst.value) {
                        fail(login.span, &what, hint);
                    }
                }
            }
        }
    }

    /// The nodes logged in to, and whether each is only for its own person.
    fn destination(&self, dst: &Spanned<String>, from: &Bits) -> Result<(Bits, bool), Unfit> {
        const HINT: &str =
            "a destination is a user, tag, single host, IPv4 address, or an autogroup of nodes";
        let text = dst.value.trim();
        let alias = self.scene.alias(text)?;
        let mut own = false;
        let to = match &alias {
            Alias::User(_) | Alias::Tag(_) | Alias::Member | Alias::Tagged | Alias::Role(_) => {
                self.scene.resolver.members(&alias)
            }
            // An IPv6 address fails on the hosted service too (`sshtest-malformed-dst-bare-ipv6`).
            Alias::Prefix(net) if net.addr().is_ipv4() && self.scene.is_single(&alias) => {
                self.scene.resolver.members(&alias)
            }
            Alias::Host(_) if self.scene.is_single(&alias) => self.scene.resolver.members(&alias),
            Alias::Own => {
                own = true;
                let mut devices = Bits::default();
                from.iter()
                    .filter_map(|slot| ssh::devices(self.scene.ground, slot))
                    .for_each(|own| devices.add(own));
                devices
            }
            _ => return Err((format!("{} cannot be a destination", quote(text)), HINT)),
        };
        if to.is_empty() {
            return Err((format!("{} has no node", quote(text)), "nobody can log in there"));
        }
        Ok((to, own))
    }

    /// What is wrong with one assertion, and which rule it is about.
    fn broken(
        &self,
        pairs: &Pairs<'_>,
        demand: Demand,
        login: &Spanned<String>,
        dst: &str,
    ) -> Option<(String, String)> {
        let name = login.value.trim();
        if name.is_empty() {
            return Some((
                "a login name is empty".to_owned(),
                "name the user who logs in, such as root".into(),
            ));
        }
        let (from, to) = pairs.breaking(self.table, self.scene.ground, demand, name)?;
        let scene = self.scene;
        let verdict = self.table.verdict(scene.ground, from, to, name);
        let rule = |number: usize| {
            let line = scene.file.ssh.get(number).map_or(0, |r| scene.line(r.span));
            format!("ssh[{number}] (line {line})")
        };
        let way = format!(
            "{} on {} into {} on {}",
            quote(self.test.src.as_ref().map_or("", |s| s.value.trim())),
            scene.node_name(from),
            quote(dst.trim()),
            scene.node_name(to)
        );
        let login = quote(name);
        Some(match (demand, verdict.accept, verdict.check) {
            (Demand::Deny, Some(number), _) | (Demand::Deny, _, Some(number)) => (
                format!("{way} is let in as {login}, which \"deny\" forbids"),
                format!("{} lets it in", rule(number)),
            ),
            (Demand::Check, Some(number), _) => (
                format!("{way} is let in as {login} without the check that \"check\" demands"),
                format!("{} accepts; write \"action\": \"check\" there", rule(number)),
            ),
            (demand, ..) => {
                let wants = if demand == Demand::Check { "check" } else { "accept" };
                (
                    format!("{way} is not let in as {login}, which {wants:?} demands"),
                    format!(
                        "no rule of \"ssh\" lets this login in; add one, or take the name out of {wants:?}"
                    ),
                )
            }
        })
    }
}

/// Who logs in where in one test.
struct Pairs<'a> {
    from: &'a Bits,
    to: &'a Bits,
    /// Only pairs of one person's nodes.
    own: bool,
    /// Rules that may speak of any pair.
    rules: Vec<usize>,
}

impl Pairs<'_> {
    /// A pair for which the demand does not hold.
    fn breaking(
        &self,
        table: &ssh::Table,
        ground: &Ground,
        demand: Demand,
        login: &str,
    ) -> Option<(usize, usize)> {
        // Destinations with the same rules differ only for rules about people's own nodes; asking each
        // is cheap enough once the rules are few.
        self.to.iter().find_map(|to| {
            let mut from = self.from.clone();
            if self.own {
                from.keep(ssh::devices(ground, to)?);
            }
            let admitted = table.admitted(ground, &self.rules, to, login);
            match demand {
                Demand::Accept => {
                    from.drop(&admitted.accept);
                    from.drop(&admitted.check);
                }
                Demand::Check => from.drop(&admitted.check),
                Demand::Deny => {
                    let mut let_in = admitted.accept;
                    let_in.add(&admitted.check);
                    from.keep(&let_in);
                }
            }
            from.iter().next().map(|from| (from, to))
        })
    }
}
