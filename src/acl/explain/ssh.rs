//! The answer for SSH: which `ssh` rule lets a login in, and as whom.

use crate::acl::error::quote;

use super::chain::{Words, rule_at};
use super::flow::{End, Scene, What};
use super::{SshAnswer, SshVerdict};

/// What happens to a session from one end to the other.
pub(super) fn answer(scene: &Scene<'_>, from: End, to: End, login: &str) -> SshAnswer {
    let words = Words { scene };
    let (who, at) = (words.end(from), words.end(to));
    let refused =
        |sentence: String| SshAnswer { verdict: SshVerdict::Refused, sentence, rule: None, local_user: None };
    let (End::Node(f, _), End::Node(t, _)) = (from, to) else {
        return refused("SSH rules speak of devices only, and one end is none.".to_owned());
    };
    let found = scene.policy.ssh().verdict(&scene.inner.ground, f, t, login);
    let rule = |index: usize| {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        rule_at(&scene.inner.file, &scene.policy.lines, "ssh", index)
    };
    let login_words = quote(login);
    let mut answer = match (found.check, found.accept) {
        // A client meets the rules that check first.
        (Some(check), _) => SshAnswer {
            verdict: SshVerdict::Check,
            sentence: format!(
                "{who} may log in at {at} as {login_words} after a check. This server cannot check yet, so the session is turned away until it can."
            ),
            rule: Some(rule(check)),
            local_user: Some(login.to_owned()),
        },
        (None, Some(accept)) => SshAnswer {
            verdict: SshVerdict::Accept,
            sentence: format!("{who} may log in at {at} as {login_words}."),
            rule: Some(rule(accept)),
            local_user: Some(login.to_owned()),
        },
        (None, None) => {
            return refused(format!("No SSH rule lets {who} log in at {at} as {login_words}."));
        }
    };
    let port = scene.outcome(from, to, What { protocol: Some(6), port: Some(22) });
    if port.passed == 0 {
        answer
            .sentence
            .push_str(" But port 22 is closed: SSH rules open no port, a rule of acls or grants has to.");
    }
    answer
}
