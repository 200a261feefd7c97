//! Checking and replacing the policy. The text is kept byte for byte; what counts is its compiled form
//! against the tailnet of the moment.

use super::state::{Draft, Tailnet};
use super::types::{AdminError, PolicyOutcome};
use crate::acl::{Policy, diff};
use crate::model::PolicyVersion;

/// Shown changes per kind; the whole counts stand beside them.
const SHOWN: usize = 200;
/// A policy text is no larger than this.
const MAX_TEXT: usize = 4 << 20;

/// What stands in the editor before anything was stored: the rule that is in force then.
pub(super) const DEFAULT_TEXT: &str = r#"// Who may reach whom. This is the default: everybody's devices reach all devices.
// Save another text to change it; the history keeps every version.
{
	"acls": [
		{"action": "accept", "src": ["*"], "dst": ["*:*"]},
	],
}
"#;

/// Reads a policy text.
///
/// # Errors
/// All faults.
pub(super) fn parse(text: &str) -> Result<Policy, AdminError> {
    if text.len() > MAX_TEXT {
        return Err(AdminError::Invalid("the policy is larger than 4 MiB".into()));
    }
    Policy::parse(text).map_err(AdminError::Policy)
}

/// What `policy` would change.
#[must_use]
pub(super) fn check(net: &Tailnet, policy: &Policy) -> PolicyOutcome {
    let world = net.world();
    let compiled = policy.compile(&world);
    PolicyOutcome {
        version: net.policy_version.version,
        diff: diff(&net.compiled, &compiled, &world, SHOWN),
        warnings: policy.warnings(&world),
        applied: false,
    }
}

/// Puts `policy` in force.
///
/// # Errors
/// When another was stored meanwhile, or it takes access away and was not confirmed.
pub(super) fn set(
    draft: &mut Draft,
    by: &str,
    text: String,
    policy: Policy,
    confirmed: bool,
    expect: Option<u64>,
) -> Result<PolicyOutcome, AdminError> {
    let current = draft.net.policy_version.version;
    if expect.is_some_and(|v| v != current) {
        return Err(AdminError::Conflict(format!(
            "the policy was changed meanwhile: version {current} is in force; look at it and try again"
        )));
    }
    let mut outcome = check(&draft.net, &policy);
    if outcome.diff.lost_total > 0 && !confirmed {
        return Err(AdminError::NeedsConfirmation(Box::new(outcome.diff)));
    }
    outcome.version = current + 1;
    outcome.applied = true;
    let version =
        PolicyVersion { version: current + 1, text, author: by.to_owned(), created: draft.now.wall };
    draft.put_policy(version, policy);
    Ok(outcome)
}
