//! What stops a policy and shows only against the tailnet: mail domains that are not its own
//! (SEMANTICS.md 12.1). Domains are compared as they are written.

use crate::acl::ast::{Alias, File, Span, SshUser};
use crate::acl::error::{Faults, Lines, did_you_mean};
use crate::acl::{PolicyError, World};

/// Foreign domains in `user:*@domain` and `localpart:*@domain`.
pub(in crate::acl) fn mistakes(file: &File, lines: &Lines, world: &World) -> Vec<PolicyError> {
    let mut faults = Faults::new(lines.clone());
    let mut look = |domain: &str, prefix: &str, span: Span| {
        if world.domains.contains(domain) {
            return;
        }
        let own: Vec<&str> = world.domains.iter().map(String::as_str).take(5).collect();
        let otherwise = match own.is_empty() {
            true => "the tailnet has no mail domain: name users or groups".to_owned(),
            false => format!("the tailnet's domains are {}; upper and lower case count", own.join(", ")),
        };
        let near = faults.suggest(domain, world.domains.iter().map(String::as_str));
        let hint = did_you_mean(near, &otherwise);
        let message = format!(
            "{prefix}{domain} is not associated with this Tailnet and cannot be used in user:*@<domain> expressions"
        );
        faults.add("foreign-domain", span, message, hint);
    };
    for acl in file.acls.iter().flatten() {
        let dsts = acl.dst.iter().map(|d| (&d.value.alias, d.span));
        for (alias, span) in acl.src.iter().map(|s| (&s.value, s.span)).chain(dsts) {
            if let Alias::Domain(domain) = alias {
                look(domain, "", span);
            }
        }
    }
    for grant in file.grants.iter().flatten() {
        for word in grant.src.iter().chain(&grant.dst) {
            if let Alias::Domain(domain) = &word.value {
                look(domain, "", word.span);
            }
        }
    }
    for rule in &file.ssh {
        for (list, prefix) in [(&rule.src, "[ssh] "), (&rule.dst, "")] {
            for word in list {
                if let Alias::Domain(domain) = &word.value {
                    look(domain, prefix, word.span);
                }
            }
        }
        for user in &rule.users {
            if let SshUser::LocalPart(domain) = &user.value {
                look(domain, "", user.span);
            }
        }
    }
    faults.finish()
}
