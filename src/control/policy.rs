//! Checking and replacing the policy. The text is kept byte for byte; what counts is its compiled form
//! against the tailnet of the moment.

use super::state::{Draft, Tailnet};
use super::types::{AdminError, PolicyOutcome};
use crate::acl::{Compiled, Policy, diff};
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

/// A policy compared with what is in force, away from the owner: comparing may take seconds.
pub(super) struct Prepared {
    text: String,
    policy: Policy,
    compiled: Compiled,
    /// What it changes.
    pub(super) outcome: PolicyOutcome,
    /// For this world.
    epoch: u64,
}

/// Compiles `policy` and finds out what it would change.
#[must_use]
pub(super) fn prepare(net: &Tailnet, text: String, policy: Policy) -> Prepared {
    let world = net.world();
    let compiled = policy.compile(&world);
    let outcome = PolicyOutcome {
        version: net.policy_version.version,
        diff: diff(&net.compiled, &compiled, &world, SHOWN),
        warnings: policy.warnings(&world),
        applied: false,
    };
    Prepared { text, policy, compiled, outcome, epoch: net.epoch }
}

/// Puts a prepared policy in force. `None`: it was prepared against another policy, or for other
/// devices and users than there are now; prepare it again. With `stale` the latter is accepted, and the
/// owner compiles.
///
/// # Errors
/// When another was stored meanwhile, or it takes access away and was not confirmed.
pub(super) fn set(
    draft: &mut Draft,
    by: &str,
    prepared: Prepared,
    confirmed: bool,
    expect: Option<u64>,
    stale: bool,
) -> Result<Option<PolicyOutcome>, AdminError> {
    let current = draft.net.policy_version.version;
    if expect.is_some_and(|v| v != current) {
        return Err(AdminError::Conflict(format!(
            "the policy was changed meanwhile: version {current} is in force; look at it and try again"
        )));
    }
    let Prepared { text, policy, compiled, mut outcome, epoch } = prepared;
    if outcome.version != current || (draft.moved_on(epoch) && !stale) {
        return Ok(None);
    }
    if outcome.diff.lost_total > 0 && !confirmed {
        return Err(AdminError::NeedsConfirmation(Box::new(outcome.diff)));
    }
    outcome.version = current + 1;
    outcome.applied = true;
    let version =
        PolicyVersion { version: current + 1, text, author: by.to_owned(), created: draft.now.wall };
    draft.put_policy(version, policy, compiled, epoch);
    Ok(Some(outcome))
}
