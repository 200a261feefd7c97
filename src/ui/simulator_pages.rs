//! The Simulator as values for its template: a question, its answer in words, and what could be changed
//! so that the answer is yes. Pure.

use std::collections::BTreeSet;

use askama::Template;

use super::access_pages::Faults;
use super::editor::Editor;
use super::pages::{Frame, Room};
use super::text::{Mark, clean, shell};
use crate::acl::ast::{self, Alias};
use crate::acl::explain::{AskFault, Asked, Explanation, RuleAt, Side, SshVerdict, Verdict};
use crate::control::service::{NodeView, UserView};

/// Names offered while typing.
const OFFERED: usize = 200;
/// Choices of who or whom when access is given.
const CHOICES: usize = 12;

/// The fields as they were typed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) port: String,
    pub(super) protocol: String,
    pub(super) ssh_user: String,
}

impl Form {
    /// Whether there is a question at all.
    pub(super) fn asks(&self) -> bool {
        !self.from.is_empty() || !self.to.is_empty()
    }

    pub(super) fn asked(&self) -> Asked {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Asked {
            from: self.from.clone(),
            to: self.to.clone(),
            port: some(&self.port),
            protocol: some(&self.protocol),
            ssh_user: some(&self.ssh_user),
        }
    }

    /// The address of this question; `swapped` asks for the way back.
    pub(super) fn url(&self, swapped: bool) -> String {
        use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
        let (from, to) = if swapped { (&self.to, &self.from) } else { (&self.from, &self.to) };
        let fields = [
            ("from", from),
            ("to", to),
            ("port", &self.port),
            ("protocol", &self.protocol),
            ("ssh_user", &self.ssh_user),
        ];
        let parts: Vec<String> = fields
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)))
            .collect();
        if parts.is_empty() { "/simulator".to_owned() } else { format!("/simulator?{}", parts.join("&")) }
    }

    /// The command that asks the same.
    pub(super) fn command(&self, draft: bool) -> String {
        let or = |text: &str, instead: &str| {
            if text.is_empty() { instead.to_owned() } else { shell(&clean(text, 200)) }
        };
        let mut out = format!("tsd policy explain --from {} --to {}", or(&self.from, "X"), or(&self.to, "Y"));
        for (name, value) in [("port", &self.port), ("proto", &self.protocol), ("ssh-user", &self.ssh_user)] {
            if !value.is_empty() {
                out.push_str(&format!(" --{name} {}", or(value, "")));
            }
        }
        if draft {
            out.push_str(" --draft policy.hujson");
        }
        out
    }
}

/// A rule with the way to its line.
pub(super) struct RuleLink {
    pub(super) text: String,
    pub(super) place: String,
    /// 0 when it is not written anywhere.
    pub(super) line: u32,
}

impl RuleLink {
    fn new(rule: &RuleAt) -> Self {
        let place = match (rule.section, rule.line) {
            ("default", _) | (_, 0) => "the rule of a policy without rules".to_owned(),
            (section, line) => format!("{section}, line {line}, column {}", rule.column),
        };
        Self { text: clean(&rule.text, 300), place, line: rule.line }
    }
}

/// Somebody who could be put into a group.
pub(super) struct Join {
    pub(super) user: String,
    pub(super) group: String,
}

/// A rule that is near, and what would have to change.
pub(super) struct MissView {
    pub(super) rule: Option<RuleLink>,
    pub(super) change: String,
    pub(super) joins: Vec<Join>,
}

/// One of several different answers.
pub(super) struct CaseView {
    pub(super) mark: Mark,
    pub(super) from: String,
    pub(super) to: String,
    pub(super) open: String,
    pub(super) line: u32,
}

/// A word for a rule and what it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) word: String,
    pub(super) means: String,
}

/// What a new rule could say.
pub(super) struct Give {
    pub(super) sources: Vec<Choice>,
    pub(super) destinations: Vec<Choice>,
    pub(super) port: String,
}

/// An answer.
pub(super) struct Answer {
    pub(super) mark: Mark,
    pub(super) sentence: String,
    /// Both ends, when the sentence does not name them.
    pub(super) ends: String,
    pub(super) rule: Option<RuleLink>,
    pub(super) also: Vec<RuleLink>,
    pub(super) chain: Vec<String>,
    pub(super) misses: Vec<MissView>,
    pub(super) facts: Vec<(&'static str, String)>,
    pub(super) apps: Vec<(String, String, RuleLink)>,
    pub(super) posture: Vec<String>,
    pub(super) ssh: Option<(Mark, String, Option<RuleLink>)>,
    pub(super) cases: Vec<CaseView>,
    pub(super) notes: Vec<String>,
    pub(super) give: Option<Give>,
}

fn verdict(verdict: Verdict) -> Mark {
    match verdict {
        Verdict::Allowed => Mark::new("good", "Allowed", "The receiver lets it through"),
        Verdict::Refused => Mark::new("danger", "Refused", "The receiver drops it"),
        Verdict::Partly => Mark::new("attention", "Partly", "Some of it is let through"),
    }
}

fn texts(list: &[String], most: usize) -> Vec<String> {
    list.iter().take(most).map(|t| clean(t, 400)).collect()
}

impl Answer {
    /// `file` is the policy the answer is from: its groups are what people can be put into.
    pub(super) fn new(told: &Explanation, form: &Form, nodes: &[NodeView], file: Option<&ast::File>) -> Self {
        let link = |rule: &Option<RuleAt>| rule.as_ref().map(RuleLink::new);
        let refused = told.verdict != Verdict::Allowed;
        let people = people(&told.from, nodes);
        let mut facts = vec![("Asked about", clean(&told.what, 100))];
        if !told.open.is_empty() {
            facts.push(("Open between the two", clean(&told.open, 300)));
        }
        if !told.back.is_empty() {
            facts.push(("Way back", clean(&told.back, 400)));
        }
        if let Some(route) = &told.route {
            let net = route.net.map_or_else(|| "the internet".to_owned(), |n| n.to_string());
            facts.push(("Carried by", clean(&format!("{}, for {net}: {}", route.name, route.why), 400)));
        }
        let ssh = told.ssh.as_ref().map(|ssh| {
            let mark = match ssh.verdict {
                SshVerdict::Accept => Mark::new("good", "SSH: let in", ""),
                SshVerdict::Check => Mark::new("attention", "SSH: after a check", ""),
                SshVerdict::Refused => Mark::new("danger", "SSH: turned away", ""),
            };
            (mark, clean(&ssh.sentence, 400), link(&ssh.rule))
        });
        Self {
            mark: verdict(told.verdict),
            sentence: clean(&told.sentence, 500),
            ends: if told.sentence.contains(&told.from.words) && told.sentence.contains(&told.to.words) {
                String::new()
            } else {
                clean(&format!("From {} to {}", told.from.words, told.to.words), 400)
            },
            rule: link(&told.rule),
            also: told.also.iter().map(RuleLink::new).collect(),
            chain: texts(&told.chain, 20),
            misses: told
                .misses
                .iter()
                .map(|miss| MissView {
                    rule: link(&miss.rule),
                    change: clean(&miss.change, 400),
                    joins: miss.rule.as_ref().map_or_else(Vec::new, |rule| joins(rule, &people, file)),
                })
                .collect(),
            facts,
            apps: told
                .apps
                .iter()
                .take(20)
                .map(|app| {
                    let values: Vec<String> = app.values.iter().map(ToString::to_string).collect();
                    (clean(&app.name, 120), clean(&values.join(", "), 300), RuleLink::new(&app.rule))
                })
                .collect(),
            posture: texts(&told.posture, 20),
            ssh,
            cases: told
                .cases
                .iter()
                .map(|case| CaseView {
                    mark: verdict(case.verdict),
                    from: clean(&case.from, 80),
                    to: clean(&case.to, 80),
                    open: clean(&case.open, 200),
                    line: case.rule.as_ref().map_or(0, |r| r.line),
                })
                .collect(),
            notes: texts(&told.notes, 10),
            give: refused.then(|| Give::new(told, form, nodes)),
        }
    }
}

/// Login names of a side's devices.
fn people(side: &Side, nodes: &[NodeView]) -> BTreeSet<String> {
    let of = |n: &&NodeView| side.nodes.contains(&n.id);
    nodes.iter().filter(of).filter_map(|n| n.user.clone()).take(CHOICES).collect()
}

/// A user as policies write one.
fn user_word(name: &str) -> String {
    if name.contains('@') { name.to_owned() } else { format!("{name}@") }
}

/// Groups among the rule's sources that `people` are not in.
fn joins(rule: &RuleAt, people: &BTreeSet<String>, file: Option<&ast::File>) -> Vec<Join> {
    let Some(file) = file else { return Vec::new() };
    let index = rule.index as usize;
    let sources = match rule.section {
        "acls" => file.acls.as_ref().and_then(|l| l.get(index)).map(|r| &r.src),
        "grants" => file.grants.as_ref().and_then(|l| l.get(index)).map(|r| &r.src),
        _ => None,
    };
    let mut out = Vec::new();
    for source in sources.into_iter().flatten() {
        let Alias::Group(group) = &source.value else { continue };
        let members = file.groups.get(group).map_or(&[][..], |g| g.value.as_slice());
        for person in people {
            let word = user_word(person);
            let inside = members.iter().any(|m| m.value == *person || m.value == word);
            if !inside && out.len() < 3 {
                out.push(Join { user: word, group: group.clone() });
            }
        }
    }
    out
}

impl Give {
    fn new(told: &Explanation, form: &Form, nodes: &[NodeView]) -> Self {
        let mut destinations = choices(&told.to, &form.to, nodes);
        if let Some(route) = &told.route {
            match route.net {
                Some(net) => destinations.push(Choice {
                    word: net.to_string(),
                    means: format!("the whole network behind {}", clean(&route.name, 63)),
                }),
                None => destinations.insert(
                    0,
                    Choice { word: "autogroup:internet".into(), means: "the internet, by exit nodes".into() },
                ),
            }
        }
        Self {
            sources: choices(&told.from, &form.from, nodes),
            destinations,
            port: if form.port.is_empty() { "*".to_owned() } else { clean(&form.port, 40) },
        }
    }
}

/// How a rule could name a side: by whose devices they are, by tag, by address, or as typed.
fn choices(side: &Side, typed: &str, nodes: &[NodeView]) -> Vec<Choice> {
    let mut out: Vec<Choice> = Vec::new();
    let mut add = |word: String, means: String| {
        if out.len() < CHOICES && !out.iter().any(|c| c.word == word) {
            out.push(Choice { word, means });
        }
    };
    let mine: Vec<&NodeView> = nodes.iter().filter(|n| side.nodes.contains(&n.id)).collect();
    if mine.is_empty() || typed.contains(['@', ':', '/']) && typed.parse::<std::net::Ipv6Addr>().is_err() {
        add(clean(typed, 200), String::new());
    }
    for node in &mine {
        if let Some(user) = &node.user {
            add(user_word(user), format!("all devices of {}", clean(user, 80)));
        }
        for tag in &node.tags {
            add(tag.to_string(), "all devices with this tag".to_owned());
        }
    }
    for node in &mine {
        add(node.ipv4.to_string(), format!("only {}", clean(&node.name, 63)));
    }
    out
}

/// Simulator.
#[derive(Template)]
#[template(path = "simulator.html")]
pub(super) struct Simulator {
    pub(super) frame: Frame,
    pub(super) form: Form,
    pub(super) names: Vec<String>,
    /// A draft instead of the policy in force.
    pub(super) draft: Option<Editor>,
    /// The draft is there to be changed, not only to be asked.
    pub(super) fresh: bool,
    /// The version that the draft was made from.
    pub(super) expect: u64,
    pub(super) faults: Faults,
    pub(super) questions: Vec<AskFault>,
    pub(super) answer: Option<Answer>,
}

/// Protocols to choose from.
const PROTOCOLS: [(&str, &str); 4] =
    [("", "TCP, or any without a port"), ("tcp", "TCP"), ("udp", "UDP"), ("icmp", "ICMP (ping)")];

impl Simulator {
    pub(super) fn new(frame: Frame, form: Form, draft: Option<Editor>, expect: u64) -> Self {
        let frame = frame.command(form.command(draft.is_some()));
        Self {
            form,
            names: Vec::new(),
            fresh: false,
            draft,
            expect,
            faults: Faults::default(),
            questions: Vec::new(),
            answer: None,
            frame,
        }
    }

    /// Offers names while typing: people first, then tags, then devices.
    pub(super) fn offer(&mut self, nodes: &[NodeView], users: &[UserView]) {
        let tags: BTreeSet<String> =
            nodes.iter().flat_map(|n| n.tags.iter().map(ToString::to_string)).collect();
        let people = users.iter().map(|u| user_word(&u.name));
        let devices = nodes.iter().map(|n| n.name.clone());
        self.names = people.chain(tags).chain(devices).take(OFFERED).map(|n| clean(&n, 80)).collect();
    }

    /// All protocols, and the one that was typed.
    fn protocols(&self) -> Vec<(String, String)> {
        let mut out: Vec<(String, String)> =
            PROTOCOLS.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        if !out.iter().any(|(value, _)| *value == self.form.protocol) {
            out.push((self.form.protocol.clone(), self.form.protocol.clone()));
        }
        out
    }

    /// What is wrong with a field.
    fn wrong(&self, field: &str) -> Option<String> {
        let fault = self.questions.iter().find(|f| f.field == field)?;
        Some(clean(format!("{} {}", fault.message, fault.hint).trim(), 300))
    }

    /// The form that buttons beside the question belong to: with a draft they carry it along.
    fn changes(&self) -> &'static str {
        if self.draft.is_some() { "ask" } else { "give" }
    }
}
