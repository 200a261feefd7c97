//! Figures and comparisons of policies, which change nothing. Each is answered from one snapshot beside
//! the owner, for the policy in force or for a draft.

use std::sync::Arc;

use super::explaining;
use super::service::Control;
use super::state::Tailnet;
use super::types::{AdminError, Comparison};
use crate::acl::stats::PolicyStats;
use crate::acl::{Compiled, diff};

/// Changes that a comparison lists; the whole counts stand beside them.
const SHOWN: usize = 1000;

impl Control {
    /// The policy in force or `draft` in numbers.
    ///
    /// # Errors
    /// Faults of the draft.
    pub async fn policy_numbers(&self, draft: Option<String>) -> Result<PolicyStats, AdminError> {
        self.inquire(move |net| Ok(compiled(net, draft.as_deref())?.stats())).await
    }

    /// Who gains and loses what from policy `a` to policy `b`, for the devices there are, and which of their
    /// tests do not hold. Failing tests stop nothing here.
    ///
    /// # Errors
    /// Faults of either text.
    pub async fn compare_policies(&self, a: String, b: String) -> Result<Comparison, AdminError> {
        self.inquire(move |net| {
            let (a, b) = (compiled(net, Some(&a))?, compiled(net, Some(&b))?);
            let failing = [a.failing_tests(), b.failing_tests()];
            Ok(Comparison { diff: diff(&a, &b, SHOWN), failing })
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
    Ok(Arc::new(explaining::read(net, text)?))
}
