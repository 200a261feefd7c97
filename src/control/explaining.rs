//! "May A reach B, and why?" of the live tailnet, also under a draft; and what the policy gives one
//! device, in words. Answers are made beside the owner, from one snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Serialize;

use super::policy;
use super::service::Control;
use super::state::Tailnet;
use super::types::AdminError;
use crate::acl::explain::{AskFault, Asked, Explanation, Facts, Question};
use crate::acl::{Compiled, PolicyError};
use crate::keys::NodeId;
use crate::model::Node;
use crate::wire::SshRule;

/// Names in a sentence about SSH.
const NAMED: usize = 3;
/// Attributes and SSH rules told of one device.
const TOLD: usize = 40;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// The question names what is not there.
    #[error("{}", .0.first().map_or("the question cannot be read", |f| f.message.as_str()))]
    Question(Vec<AskFault>),
    /// The draft has faults.
    #[error("the draft has {} fault(s)", .0.len())]
    Draft(Vec<PolicyError>),
    /// Our failure, or the draft is too large.
    #[error(transparent)]
    Other(#[from] AdminError),
}

/// What the policy gives one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Given {
    /// Attributes and capabilities by name, with their values as JSON (empty without values).
    pub attributes: Vec<(String, String)>,
    /// Who may log in on it by SSH and as whom, one sentence per rule.
    pub ssh: Vec<String>,
    /// Devices that see it.
    pub peers: usize,
}

impl Control {
    /// Whether one end may reach the other and why, under the policy in force or under `draft`.
    ///
    /// # Errors
    /// See [`Unanswered`].
    pub async fn explain(&self, asked: &Asked, draft: Option<&str>) -> Result<Explanation, Unanswered> {
        let (net, asked, draft) = (self.net(), asked.clone(), draft.map(str::to_owned));
        let answer = tokio::task::spawn_blocking(move || {
            let drafted = match draft {
                None => None,
                Some(text) => Some(read(&net, &text)?),
            };
            let compiled = drafted.as_ref().unwrap_or(&net.compiled);
            let question = Question::parse(compiled, &asked).map_err(Unanswered::Question)?;
            Ok(compiled.explain(&question.with_facts(facts(&net))))
        });
        answer.await.unwrap_or_else(|e| Err(AdminError::Internal(e.to_string()).into()))
    }

    /// The file that the policy comes from, when it is not stored from here.
    #[must_use]
    pub fn policy_file(&self) -> Option<std::path::PathBuf> {
        self.net().settings.policy_file.clone()
    }

    /// What the policy in force gives a device.
    #[must_use]
    pub fn given(&self, node: NodeId) -> Given {
        let net = self.net();
        let caps = net.compiled.self_caps(node);
        let values = |list: &Option<Vec<serde_json::Value>>| {
            let texts: Vec<String> = list.iter().flatten().map(ToString::to_string).collect();
            texts.join(", ")
        };
        let rules = net.compiled.ssh_rules(node, &net.settings.url);
        let names = if rules.is_empty() { BTreeMap::new() } else { by_address(&net) };
        Given {
            attributes: caps.iter().take(TOLD).map(|(name, list)| (name.clone(), values(list))).collect(),
            ssh: rules.iter().take(TOLD).map(|rule| ssh_words(&names, rule)).collect(),
            peers: net.compiled.peers(node).len(),
        }
    }
}

impl From<Unanswered> for AdminError {
    fn from(why: Unanswered) -> Self {
        let line = |f: &AskFault| {
            let hint = if f.hint.is_empty() { String::new() } else { format!("; {}", f.hint) };
            format!("{}: {}{hint}", f.field, f.message)
        };
        match why {
            Unanswered::Question(faults) => {
                Self::Invalid(faults.iter().map(line).collect::<Vec<_>>().join("\n"))
            }
            Unanswered::Draft(faults) => Self::Policy(faults),
            Unanswered::Other(error) => error,
        }
    }
}

/// A draft, compiled for the devices there are.
pub(super) fn read(net: &Tailnet, text: &str) -> Result<Compiled, Unanswered> {
    let parsed = policy::parse(text).map_err(|e| match e {
        AdminError::Policy(faults) => Unanswered::Draft(faults),
        other => Unanswered::Other(other),
    })?;
    let world = net.world();
    let mistakes = parsed.mistakes(&world);
    if mistakes.is_empty() {
        Ok(parsed.compile_beside(&net.compiled))
    } else {
        Err(Unanswered::Draft(mistakes))
    }
}

/// What the server knows beside the policy.
fn facts(net: &Tailnet) -> Facts {
    let mut out = Facts { expired: net.expired.iter().copied().collect(), ..Facts::default() };
    for node in net.nodes.values() {
        if !net.is_online(node.id) {
            out.offline.insert(node.id);
        }
        let offered = &node.hostinfo.routable_ips;
        let waiting: Vec<_> = offered.iter().filter(|r| !node.approved_routes.contains(r)).copied().collect();
        if !waiting.is_empty() {
            out.unapproved.insert(node.id, waiting);
        }
    }
    out.carriers = net.primaries.carriers();
    out
}

/// Names of devices by their addresses.
fn by_address(net: &Tailnet) -> BTreeMap<IpAddr, &str> {
    let both = |n: &'_ std::sync::Arc<Node>| [IpAddr::V4(n.ipv4), IpAddr::V6(n.ipv6)];
    net.nodes.values().flat_map(|n| both(n).map(|ip| (ip, n.name.as_str()))).collect()
}

/// One SSH rule in a sentence: who, as whom, what then.
fn ssh_words(names: &BTreeMap<IpAddr, &str>, rule: &SshRule) -> String {
    let mut who = BTreeSet::new();
    for principal in &rule.principals {
        let device = || names.get(&principal.node_ip.parse().ok()?).map(|name| (*name).to_owned());
        who.insert(if principal.any {
            "everybody".to_owned()
        } else if !principal.user_login.is_empty() {
            principal.user_login.clone()
        } else {
            device().unwrap_or_else(|| principal.node_ip.clone())
        });
    }
    let mut who_words: Vec<&str> = who.iter().take(NAMED).map(String::as_str).collect();
    let more = who.len().saturating_sub(NAMED);
    let more = if more > 0 { format!("{more} more") } else { String::new() };
    if !more.is_empty() {
        who_words.push(&more);
    }
    let users = rule.ssh_users.iter();
    let (allowed, barred): (Vec<_>, Vec<_>) = users.partition(|(_, local)| !local.is_empty());
    let word = |(asked, local): &(&String, &String)| match (asked.as_str(), local.as_str()) {
        ("*", "=") => "any login".to_owned(),
        (asked, "=") => asked.to_owned(),
        (asked, local) if asked == local => local.to_owned(),
        (asked, local) => format!("{asked} (as {local})"),
    };
    let mut logins = allowed.iter().take(TOLD).map(word).collect::<Vec<_>>().join(", ");
    if logins.is_empty() {
        "no login".clone_into(&mut logins);
    }
    if !barred.is_empty() {
        let barred: Vec<&str> = barred.iter().take(NAMED).map(|(asked, _)| asked.as_str()).collect();
        logins.push_str(&format!(" but not {}", barred.join(", ")));
    }
    let what = match &rule.action {
        Some(action) if action.reject => "is turned away",
        Some(action) if action.accept => "is let in",
        Some(action) if !action.hold_and_delegate.is_empty() => "is let in after a check",
        _ => "is turned away",
    };
    let message = rule.action.as_ref().map_or("", |a| a.message.trim());
    let message = if message.is_empty() { String::new() } else { format!(": {message}") };
    format!("{} as {logins} {what}{message}", who_words.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{SshAction, SshPrincipal};

    fn rule(ips: &[&str], users: &[(&str, &str)], action: SshAction) -> SshRule {
        let principal = |ip: &&str| SshPrincipal { node_ip: (*ip).to_owned(), ..SshPrincipal::default() };
        SshRule {
            principals: ips.iter().map(principal).collect(),
            ssh_users: users.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect(),
            action: Some(action),
            ..SshRule::default()
        }
    }

    #[test]
    fn ssh_rules_read_like_sentences() {
        let laptop: IpAddr = "100.64.0.1".parse().unwrap();
        let v6: IpAddr = "fd7a::1".parse().unwrap();
        let names = BTreeMap::from([(laptop, "laptop"), (v6, "laptop")]);
        let accept = SshAction { accept: true, ..SshAction::default() };
        let one = rule(&["100.64.0.1", "fd7a::1"], &[("*", "="), ("root", "")], accept.clone());
        assert_eq!(ssh_words(&names, &one), "laptop as any login but not root is let in");
        let many = rule(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"], &[("ubuntu", "ubuntu")], accept);
        assert_eq!(ssh_words(&names, &many), "10.0.0.1, 10.0.0.2, 10.0.0.3, 1 more as ubuntu is let in");
        let reject = SshAction { reject: true, message: "not yet".into(), ..SshAction::default() };
        let turned = rule(&["100.64.0.1"], &[("a", "b")], reject);
        assert_eq!(ssh_words(&names, &turned), "laptop as a (as b) is turned away: not yet");
    }
}
