//! `ssh` rules and the shape of `sshTests` (SEMANTICS.md 4.3, 4.4, 13).

use super::names::{Place, known, postures, tag_hint};
use super::rules::{is_person, own_source};
use crate::acl::ast::{Alias, File, Span, SshRule, SshTest};
use crate::acl::error::{Faults, quote};
use crate::model::Tag;

const SRC_HINT: &str = "sources of ssh are users, groups, tags, autogroup:member, autogroup:tagged and roles";
const DST_HINT: &str = "destinations of ssh are tags, autogroup:self, autogroup:member, autogroup:tagged and roles; tag the machine and name the tag";

pub(super) fn rule(file: &File, rule: &SshRule, faults: &mut Faults) {
    for src in &rule.src {
        match &src.value {
            Alias::Own => own_source(src.span, faults),
            fine if is_person(fine) || matches!(fine, Alias::Tag(_) | Alias::Tagged) => {
                known(file, fine, Place::Source, src.span, faults);
            }
            other => {
                let message = format!("invalid src {}", as_written(other, src.span, faults));
                faults.add("alias-place", src.span, message, SRC_HINT);
            }
        }
    }
    destinations(file, rule, faults);
    for recorder in &rule.recorder {
        match &recorder.value {
            fine @ Alias::Tag(_) => known(file, fine, Place::Other("recorder"), recorder.span, faults),
            Alias::Prefix(net) if net.prefix_len() == net.max_prefix_len() => {}
            other => faults.add(
                "alias-place",
                recorder.span,
                format!("recorder={}: neither a tag nor an address", quote(&other.to_string())),
                "name the recorder nodes by their tag, such as tag:recorder",
            ),
        }
    }
    if let Some(list) = &rule.posture {
        postures(file, list, faults);
    }
}

/// A name in quotes, an address with the length it was given.
fn as_written(alias: &Alias, span: Span, faults: &Faults) -> String {
    faults.written(span).map_or_else(|| quote(&alias.to_string()), quote)
}

fn destinations(file: &File, rule: &SshRule, faults: &mut Faults) {
    let from_tags = rule.src.iter().any(|s| matches!(s.value, Alias::Tag(_) | Alias::Tagged));
    for dst in &rule.dst {
        match &dst.value {
            Alias::Tag(_) | Alias::Tagged => {
                known(file, &dst.value, Place::Destination, dst.span, faults);
            }
            Alias::User(_) | Alias::Domain(_) | Alias::Member | Alias::Own | Alias::Role(_) if from_tags => {
                faults.add(
                    "ssh-combination",
                    dst.span,
                    format!("tags as src cannot reach {} by ssh", quote(&dst.value.to_string())),
                    "machines with tags may only reach machines with tags; name people as sources",
                );
            }
            Alias::User(name) if rule.src.iter().any(|s| s.value != dst.value) => faults.add(
                "ssh-combination",
                dst.span,
                format!("a user as dst needs that same user as the only src: {}", quote(name)),
                "use autogroup:self for everybody's own devices, or tag the machine",
            ),
            Alias::User(_) | Alias::Domain(_) | Alias::Member | Alias::Own | Alias::Role(_) => {}
            other => {
                let mut message = format!("invalid dst {}", as_written(other, dst.span, faults));
                if *other == Alias::DangerAll {
                    message.push_str(": cannot use autogroup:danger-all as a dst");
                }
                faults.add("alias-place", dst.span, message, DST_HINT);
            }
        }
    }
}

/// Destinations of a test that are wrong by their form; others fail when the test runs.
pub(super) fn test(file: &File, test: &SshTest, faults: &mut Faults) {
    for dst in &test.dst {
        let text = dst.value.as_str();
        if text.starts_with("tag:") {
            let hint = match Tag::parse(text) {
                Ok(tag) if file.tag_owners.contains_key(&tag) => continue,
                Ok(tag) => tag_hint(file, &tag, faults),
                Err(_) => "destinations of ssh tests have no ports: write the tag alone".to_owned(),
            };
            let message = format!("SSH tests dst contains unknown tag {}", quote(text));
            faults.add("ssh-test", dst.span, message, hint);
            continue;
        }
        // Kinds with a text of their own; every other fault of a test is a test that fails (15).
        let (disallowed, prefix) = match Alias::parse(text) {
            Ok(
                Alias::User(_) | Alias::Tag(_) | Alias::Member | Alias::Tagged | Alias::Own | Alias::Role(_),
            ) => (false, ""),
            // Even one that holds a single address.
            Ok(Alias::Prefix(_)) => (text.contains('/'), ""),
            Ok(Alias::Host(name)) => {
                let host = file.hosts.get(&name);
                (host.is_some_and(|h| h.value.prefix_len() != h.value.max_prefix_len()), "")
            }
            Ok(Alias::Internet) => (true, ""),
            Ok(_) => (true, "test(s) failed: "),
            Err(_) => (text.starts_with("autogroup:"), "test(s) failed: "),
        };
        if disallowed {
            faults.add(
                "ssh-test",
                dst.span,
                format!("{prefix}SSH tests dst contains disallowed element {}", quote(text)),
                "name a tag, a user, autogroup:self, or one address",
            );
        }
    }
}
