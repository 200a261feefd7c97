//! `ssh` (SEMANTICS.md 12.1).

use std::time::Duration;

use super::duration;
use super::fields::{Fields, Shape, array, fields, flag, raw, string};
use super::posture;
use super::words::{Side, aliases};
use crate::acl::ast::{Spanned, SshAction, SshRule, SshUser};
use crate::acl::error::{Faults, did_you_mean, quote};
use crate::acl::hujson::Value;

const RULE: Shape = Shape {
    what: "an ssh rule",
    known: &[
        "action",
        "src",
        "dst",
        "users",
        "checkPeriod",
        "acceptEnv",
        "recorder",
        "enforceRecorder",
        "srcPosture",
    ],
    old: &[],
    comments: false,
    example: "such as { \"action\": \"accept\", \"src\": [\"autogroup:member\"], \"dst\": [\"autogroup:self\"], \"users\": [\"autogroup:nonroot\"] }",
};

/// Of a check rule that names no period.
const CHECK_PERIOD: Duration = Duration::from_secs(12 * 3600);
/// The longest a check may hold.
const MAX_CHECK_PERIOD: i64 = 168 * 3600 * 1_000_000_000;
const USERS_HINT: &str = "logins on the destination: names, \"root\", \"autogroup:nonroot\" for all but root, or localpart:*@domain";

pub(super) fn rule(value: &Value<'_>, faults: &mut Faults) -> Option<SshRule> {
    let found = fields(value, &RULE, faults)?;
    let action = action(value, &found, faults);
    let src = aliases(found.get("src"), "src", Side::Source, faults);
    let dst = aliases(found.get("dst"), "dst", Side::Destination, faults);
    let users = users(value, &found, faults);
    let accept_env = found.get("acceptEnv").and_then(|v| accept_env(v, faults));
    let recorder = aliases(found.get("recorder"), "recorder", Side::Other, faults);
    let enforce_recorder = flag(found.get("enforceRecorder"), "enforceRecorder", faults);
    let posture = found.get("srcPosture").and_then(|v| posture::names(v, "srcPosture", faults));
    Some(SshRule {
        span: value.span,
        action: action?,
        src,
        dst,
        users,
        accept_env,
        recorder,
        enforce_recorder,
        posture,
    })
}

fn action(value: &Value<'_>, found: &Fields<'_, '_>, faults: &mut Faults) -> Option<SshAction> {
    let field = found.get("action");
    let text = match field {
        Some(v) => string(v, "action", faults)?,
        None => "",
    };
    let span = field.map_or(value.span, |v| v.span);
    let period = found.get("checkPeriod");
    match text {
        "check" => period.map_or(Some(SshAction::Check(Some(CHECK_PERIOD))), |v| check_period(v, faults)),
        "accept" => {
            if let Some(v) = period {
                faults.note(
                    "no-effect",
                    v.span,
                    "checkPeriod says nothing where action is \"accept\"",
                    "write \"action\": \"check\", or remove checkPeriod",
                );
                check_period(v, faults)?;
            }
            Some(SshAction::Accept)
        }
        "" => {
            faults.add("action", span, "action must be specified", "write \"accept\" or \"check\"");
            None
        }
        other => {
            let near = faults.suggest(other, ["accept", "check"]).map(quote);
            faults.add(
                "action",
                span,
                format!("{} is not a valid action", quote(other)),
                did_you_mean(
                    near.as_deref(),
                    "write \"accept\" or \"check\"; what no rule lets in is refused",
                ),
            );
            None
        }
    }
}

fn check_period(value: &Value<'_>, faults: &mut Faults) -> Option<SshAction> {
    let text = string(value, "checkPeriod", faults)?;
    if text == "always" {
        return Some(SshAction::Check(None));
    }
    let fault = match duration::parse(text) {
        Err(reason) => reason,
        Ok(nanos) if nanos < 0 => {
            format!("checkPeriod {} must be a positive duration", duration::print(nanos))
        }
        Ok(nanos) if nanos > MAX_CHECK_PERIOD => {
            format!("checkPeriod {} is above the max (168h)", duration::print(nanos))
        }
        Ok(nanos) => {
            let period = Duration::from_nanos(nanos.unsigned_abs());
            return Some(SshAction::Check(Some(period)));
        }
    };
    faults.add("duration", value.span, fault, "such as \"12h\", \"1h30m\", at most \"168h\", or \"always\"");
    None
}

fn users(value: &Value<'_>, found: &Fields<'_, '_>, faults: &mut Faults) -> Vec<Spanned<SshUser>> {
    let field = found.get("users");
    let items = match field {
        Some(v) => match array(v, "users", faults) {
            Some(items) => items,
            None => return Vec::new(),
        },
        None => &[],
    };
    if items.is_empty() {
        let span = field.map_or(value.span, |v| v.span);
        faults.add("ssh-users", span, "users must be specified", USERS_HINT);
    }
    let mut out = Vec::with_capacity(items.len());
    for item in items {
        let Some(text) = string(item, "an element of users", faults) else {
            continue;
        };
        let user = match text {
            "" | "*" => {
                let message = format!("user {} is not valid", quote(text));
                faults.add("ssh-users", item.span, message, USERS_HINT);
                continue;
            }
            "root" => SshUser::Root,
            "autogroup:nonroot" => SshUser::NonRoot,
            _ => match text.strip_prefix("localpart:*@") {
                Some(domain) if !domain.is_empty() => SshUser::LocalPart(domain.to_owned()),
                _ => {
                    odd_login(text, item, faults);
                    SshUser::Literal(text.to_owned())
                }
            },
        };
        out.push(Spanned { value: user, span: item.span });
    }
    out
}

/// Logins that were surely meant otherwise. They are legal (SEMANTICS.md 12.1).
fn odd_login(text: &str, item: &Value<'_>, faults: &mut Faults) {
    if ["autogroup:", "group:", "tag:", "localpart:"].iter().any(|p| text.starts_with(p)) {
        faults.note(
            "odd-login",
            item.span,
            format!("{} is taken for a login name, letter by letter", quote(text)),
            USERS_HINT,
        );
    }
}

fn accept_env(value: &Value<'_>, faults: &mut Faults) -> Option<Vec<String>> {
    let mut out = Vec::new();
    for item in array(value, "acceptEnv", faults)? {
        let Some(text) = raw(item, "an element of acceptEnv", faults) else {
            continue;
        };
        if text.is_empty() {
            faults.add(
                "accept-env",
                item.span,
                "acceptEnv values cannot be empty",
                "write a variable's name, or a pattern such as LC_*",
            );
        }
        out.push(text.to_owned());
    }
    Some(out)
}
