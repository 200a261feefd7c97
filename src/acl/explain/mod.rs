//! "May A reach B, and why?": the verdict that the receivers enforce, the rule and the chain of names that
//! decide it, and for a refusal the rules that are nearest to allowing it. Names are looked up, rules are
//! scanned at most once; words are made only for what is told.

mod answer;
mod apps;
mod chain;
mod flow;
mod miss;
mod party;
mod ssh;
mod way;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::Serialize;

use crate::keys::NodeId;

use super::Compiled;

/// A question as a person writes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// A device, its id or address, a person (`alice@`), a tag, or any address.
    pub from: String,
    /// The same; also an address behind a route or on the internet, or a name of `hosts`.
    pub to: String,
    /// `443`; empty or `None` asks whether anything is open.
    pub port: Option<String>,
    /// `tcp`, `udp`, `icmp`, a number; empty or `None` with a port is TCP.
    pub protocol: Option<String>,
    /// The login on the other machine, when SSH is asked about.
    pub ssh_user: Option<String>,
}

/// What the server knows beside the world a policy is compiled for. Empty is "not known".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Routes that are offered and not approved.
    pub unapproved: BTreeMap<NodeId, Vec<IpNet>>,
    /// Nodes that are not connected.
    pub offline: BTreeSet<NodeId>,
    /// Nodes whose key has expired.
    pub expired: BTreeSet<NodeId>,
    /// Which nodes are elected to carry a route that several serve.
    pub carriers: BTreeMap<IpNet, Vec<NodeId>>,
}

/// Why a question cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{message}")]
pub struct AskFault {
    /// Which field: `from`, `to`, `port`, `protocol`, `ssh_user`.
    pub field: &'static str,
    /// What is wrong.
    pub message: String,
    /// What would be right; may be empty.
    pub hint: String,
}

/// A question whose names exist. Only [`Question::parse`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    from: party::Party,
    to: party::Party,
    port: Option<u16>,
    protocol: Option<u8>,
    ssh_user: Option<String>,
    facts: Facts,
}

impl Question {
    /// Reads a question against the nodes, people and names of `policy`.
    ///
    /// # Errors
    /// Everything that names nothing, in plain words and with the nearest name.
    pub fn parse(policy: &Compiled, asked: &Asked) -> Result<Self, Vec<AskFault>> {
        party::question(policy, asked)
    }

    /// The same question with what the server knows beside the policy.
    #[must_use]
    pub fn with_facts(self, facts: Facts) -> Self {
        Self { facts, ..self }
    }
}

/// The answer in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is let through.
    Allowed,
    /// It is not.
    Refused,
    /// Some of the devices asked about, or only one of IPv4 and IPv6.
    Partly,
}

/// A rule of the policy with its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleAt {
    /// `acls`, `grants`, `ssh`; `default` for a policy without rules.
    pub section: &'static str,
    /// Place in its section, from zero.
    pub index: u32,
    /// 1-based; 0 when the rule is not written anywhere.
    pub line: u32,
    /// 1-based column in bytes; 0 when the rule is not written anywhere.
    pub column: u32,
    /// The rule's own text in one line, cut.
    pub text: String,
}

/// A rule that would allow it if one thing were different.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Miss {
    /// The rule; `None` when no rule but something beside the policy is in the way.
    pub rule: Option<RuleAt>,
    /// What would have to change, in one sentence.
    pub change: String,
}

/// One end of a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Side {
    /// In words: `web-1 (tag:server)`, `alice@ (2 devices)`, `10.33.0.5, behind router-1`.
    pub words: String,
    /// The devices meant, in order of id; at most 100. None for an address that is no device.
    pub nodes: Vec<NodeId>,
    /// All devices meant.
    pub total: u64,
}

/// How the traffic gets to an address that is no device's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteUsed {
    /// The route, `None` for the internet.
    pub net: Option<IpNet>,
    /// The device that carries it.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Why this one, in one sentence.
    pub why: String,
}

/// An application capability that one end is granted at the other.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AppGranted {
    /// `example.com/cap/x`.
    pub name: String,
    /// Its values, as written.
    pub values: Vec<serde_json::Value>,
    /// The rule.
    pub rule: RuleAt,
}

/// What happens to an SSH session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SshVerdict {
    /// Let in.
    Accept,
    /// Let in after the person confirmed who they are.
    Check,
    /// Turned away.
    Refused,
}

/// The answer for SSH by the policy's `ssh` rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SshAnswer {
    /// In one word.
    pub verdict: SshVerdict,
    /// In one sentence.
    pub sentence: String,
    /// The rule that decides.
    pub rule: Option<RuleAt>,
    /// The local user the session runs as.
    pub local_user: Option<String>,
}

/// What happens for some of the devices asked about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Case {
    /// From which device or address.
    pub from: String,
    /// To which.
    pub to: String,
    /// Allowed or not; partly when IPv4 and IPv6 differ.
    pub verdict: Verdict,
    /// What is open, in words: `tcp 22, 443`, `all ports`; empty when nothing is.
    pub open: String,
    /// The rule that allows it.
    pub rule: Option<RuleAt>,
}

/// An answer, for a page or a terminal.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// In one word.
    pub verdict: Verdict,
    /// In one plain sentence.
    pub sentence: String,
    /// From where.
    pub from: Side,
    /// To where.
    pub to: Side,
    /// What was asked about: `tcp 443`, `icmp`, `anything`.
    pub what: String,
    /// All that is open between the two, in words; empty when nothing is.
    pub open: String,
    /// The first rule that allows it.
    pub rule: Option<RuleAt>,
    /// Further rules that allow it too, at most 5.
    pub also: Vec<RuleAt>,
    /// How the two ends come under the rule, step by step.
    pub chain: Vec<String>,
    /// For a refusal: rules that would allow it if one thing changed, nearest first, at most 5.
    pub misses: Vec<Miss>,
    /// The way back, in one or two sentences.
    pub back: String,
    /// Who carries the traffic when the destination is behind a route or on the internet.
    pub route: Option<RouteUsed>,
    /// Capabilities granted on the way.
    pub apps: Vec<AppGranted>,
    /// What was checked of the source's posture, condition by condition.
    pub posture: Vec<String>,
    /// The answer for SSH, when a login was asked about.
    pub ssh: Option<SshAnswer>,
    /// The different answers when several devices are meant, at most 10.
    pub cases: Vec<Case>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
}

pub(super) use answer::explain;
pub(super) use chain::{demand_words, rule_at, section_name};
