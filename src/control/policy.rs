//! Checking and replacing the policy. The text is kept byte for byte; what counts is its compiled form
//! against the tailnet of the moment.

use std::net::IpAddr;
use std::sync::Arc;

use super::author;
use super::state::{Draft, Tailnet};
use super::types::{AdminError, PolicyOutcome};
use crate::acl::{Compiled, Policy, diff};
use crate::model::PolicyVersion;

/// Shown changes per kind; the whole counts stand beside them.
const SHOWN: usize = 200;
/// A policy text is no larger than this.
const MAX_TEXT: usize = 64 << 20;
/// So is a comment.
const MAX_COMMENT: usize = 500;

/// What stands in the editor before anything was stored: the rule that is in force then.
pub(super) const DEFAULT_TEXT: &str = r#"// Who may reach whom. This is the default: everybody's devices reach all devices.
// Save another text to change it; the history keeps every version.
{
	"acls": [
		{"action": "accept", "src": ["*"], "dst": ["*:*"]},
	],
}
"#;

/// In force when no stored policy can be read.
pub(super) const NOBODY_TEXT: &str = r#"// The stored policy cannot be read, so nobody reaches anybody.
{"acls": []}
"#;

/// Whose change it is, as far as it matters here.
pub(super) struct Author {
    /// Where they come from.
    pub(super) from: Option<IpAddr>,
    /// Addresses of this machine.
    pub(super) server: Vec<IpAddr>,
}

/// What stops a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refuse {
    /// Faults of the text and against the tailnet.
    Faults,
    /// Tests that do not hold as well.
    Everything,
}

/// Checks a comment.
///
/// # Errors
/// When it is too long.
pub(super) fn comment(text: &str) -> Result<String, AdminError> {
    let text = text.trim();
    if text.chars().count() > MAX_COMMENT {
        return Err(AdminError::Invalid(format!("a comment has at most {MAX_COMMENT} characters")));
    }
    Ok(text.to_owned())
}

/// Reads a policy text.
///
/// # Errors
/// All faults.
pub(super) fn parse(text: &str) -> Result<Policy, AdminError> {
    if text.len() > MAX_TEXT {
        return Err(AdminError::Invalid(
            "the policy is larger than 64 MiB; put long lists into groups and ipsets".into(),
        ));
    }
    Policy::parse(text).map_err(AdminError::Policy)
}

/// A policy compared with what is in force, away from the owner: comparing may take seconds.
pub(super) struct Prepared {
    text: Arc<str>,
    policy: Policy,
    compiled: Compiled,
    /// What it changes.
    pub(super) outcome: PolicyOutcome,
    /// For this world.
    epoch: u64,
}

/// Compiles `policy`, runs its tests and finds out what it would change.
///
/// # Errors
/// What `refuse` names.
pub(super) fn prepare(
    net: &Tailnet,
    author: &Author,
    text: Arc<str>,
    policy: Policy,
    refuse: Refuse,
) -> Result<Prepared, AdminError> {
    let world = net.world();
    let refused = |faults: Vec<_>| if faults.is_empty() { Ok(()) } else { Err(AdminError::Policy(faults)) };
    refused(policy.mistakes(&world))?;
    let compiled = policy.compile_beside(&net.compiled);
    if refuse == Refuse::Everything {
        refused(compiled.failing_tests())?;
    }
    let outcome = PolicyOutcome {
        version: net.policy_version.version,
        diff: diff(&net.compiled, &compiled, SHOWN),
        warnings: [policy.warnings(&world), compiled.doubtful_tests()].concat(),
        applied: false,
        unchanged: false,
        cuts_author: author::cut_off(net, &compiled, author),
    };
    Ok(Prepared { text, policy, compiled, outcome, epoch: net.epoch })
}

/// How a prepared policy is to be put in force.
pub(super) struct Stored<'a> {
    /// Who stores it.
    pub(super) by: &'a str,
    /// Why.
    pub(super) comment: &'a str,
    /// Lost access was seen and is meant.
    pub(super) confirmed: bool,
    /// The version the text was made from.
    pub(super) expect: Option<u64>,
    /// Devices and users may have changed since; the owner compiles.
    pub(super) stale: bool,
}

/// Puts a prepared policy in force. `None`: it was prepared against another policy, or for other
/// devices and users than there are now; prepare it again. With `stale` the latter is accepted, and the
/// owner compiles. The very text in force is not stored again.
///
/// # Errors
/// When another was stored meanwhile, or it takes access away and was not confirmed.
pub(super) fn set(
    draft: &mut Draft,
    prepared: Prepared,
    stored: Stored<'_>,
) -> Result<Option<PolicyOutcome>, AdminError> {
    let current = draft.net.policy_version.version;
    if stored.expect.is_some_and(|v| v != current) {
        return Err(AdminError::Conflict(format!(
            "the policy was changed meanwhile: version {current} is in force; look at it and try again"
        )));
    }
    let Prepared { text, policy, compiled, mut outcome, epoch } = prepared;
    if outcome.version != current || (draft.moved_on(epoch) && !stored.stale) {
        return Ok(None);
    }
    // What was never stored is stored also when it says what is in force; so is what mends an unread one.
    let known = &draft.net.policy_version;
    if known.version > 0 && known.text == *text && draft.net.policy_fault.is_none() {
        outcome.unchanged = true;
        return Ok(Some(outcome));
    }
    let takes = outcome.diff.takes_away() || outcome.cuts_author.is_some();
    if takes && !stored.confirmed {
        return Err(AdminError::NeedsConfirmation(Box::new(outcome)));
    }
    // Numbers are never given twice, also not that of a policy that could not be read.
    outcome.version = draft.net.last_policy.max(current) + 1;
    outcome.applied = true;
    let version = PolicyVersion {
        version: outcome.version,
        text: text.to_string(),
        author: stored.by.to_owned(),
        comment: stored.comment.to_owned(),
        created: draft.now.wall,
    };
    draft.put_policy(version, policy, compiled, epoch);
    Ok(Some(outcome))
}
