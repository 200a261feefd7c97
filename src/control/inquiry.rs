//! Questions about the policy that change nothing: why, how many, and what would differ. Each is answered
//! from one snapshot beside the owner, for the policy in force or for a draft.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::policy;
use super::service::Control;
use super::state::Tailnet;
use super::types::AdminError;
use crate::acl::explain::{AskFault, Asked, Explanation, Facts, Question};
use crate::acl::stats::PolicyStats;
use crate::acl::{AccessDiff, Compiled, diff};
use crate::keys::NodeId;

/// Changes that a comparison lists; the whole counts stand beside them.
const SHOWN: usize = 1000;

impl Control {
    /// May one end reach the other, and why: by the policy in force or by `draft`.
    ///
    /// # Errors
    /// Names that name nothing, as [`AdminError::Invalid`]; faults of the draft.
    pub async fn explain(&self, asked: Asked, draft: Option<String>) -> Result<Explanation, AdminError> {
        self.inquire(move |net| {
            let compiled = compiled(net, draft.as_deref())?;
            let question = Question::parse(&compiled, &asked).map_err(|faults| unknown(&faults))?;
            Ok(compiled.explain(&question.with_facts(facts(net))))
        })
        .await
    }

    /// The policy in force or `draft` in numbers.
    ///
    /// # Errors
    /// Faults of the draft.
    pub async fn policy_numbers(&self, draft: Option<String>) -> Result<PolicyStats, AdminError> {
        self.inquire(move |net| Ok(compiled(net, draft.as_deref())?.stats())).await
    }

    /// Who gains and loses what from policy `a` to policy `b`, for the devices there are.
    ///
    /// # Errors
    /// Faults of either text.
    pub async fn compare_policies(&self, a: String, b: String) -> Result<AccessDiff, AdminError> {
        self.inquire(move |net| {
            let (a, b) = (compiled(net, Some(&a))?, compiled(net, Some(&b))?);
            Ok(diff(&a, &b, &net.world(), SHOWN))
        })
        .await
    }

    async fn inquire<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Tailnet) -> Result<T, AdminError> + Send + 'static,
    ) -> Result<T, AdminError> {
        let net = self.net();
        let done = tokio::task::spawn_blocking(move || work(&net));
        done.await.unwrap_or_else(|e| Err(AdminError::Internal(e.to_string())))
    }
}

fn compiled(net: &Tailnet, draft: Option<&str>) -> Result<Arc<Compiled>, AdminError> {
    let Some(text) = draft else {
        return Ok(Arc::clone(&net.compiled));
    };
    let (policy, world) = (policy::parse(text)?, net.world());
    let mistakes = policy.mistakes(&world);
    if mistakes.is_empty() { Ok(Arc::new(policy.compile(&world))) } else { Err(AdminError::Policy(mistakes)) }
}

fn unknown(faults: &[AskFault]) -> AdminError {
    let line = |f: &AskFault| {
        let hint = if f.hint.is_empty() { String::new() } else { format!("; {}", f.hint) };
        format!("{}: {}{hint}", f.field, f.message)
    };
    AdminError::Invalid(faults.iter().map(line).collect::<Vec<_>>().join("\n"))
}

/// What the policy does not know and an answer needs.
fn facts(net: &Tailnet) -> Facts {
    let mut unapproved: BTreeMap<NodeId, Vec<ipnet::IpNet>> = BTreeMap::new();
    for node in net.nodes.values().filter(|n| !n.hostinfo.routable_ips.is_empty()) {
        let open = node.hostinfo.routable_ips.iter().filter(|r| !node.approved_routes.contains(r));
        let open: Vec<ipnet::IpNet> = open.copied().collect();
        if !open.is_empty() {
            unapproved.insert(node.id, open);
        }
    }
    Facts {
        unapproved,
        offline: net.nodes.keys().filter(|id| !net.is_online(**id)).copied().collect(),
        expired: (*net.expired).clone(),
        carriers: net.primaries.carriers(),
    }
}
