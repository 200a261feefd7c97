//! What is no fault and yet surely not meant: names that stand nowhere, rules that say nothing new, parts
//! of the language without effect yet, and, against the world, users nobody has and rules that match
//! nothing. At most 50, in order of place.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::shadow;
use super::uses::{each_alias, unused};
use crate::acl::ast::{Alias, File, Span, SshAction};
use crate::acl::error::{Faults, Lines, did_you_mean, quote};
use crate::acl::{PolicyError, World};
use crate::model::{Role, Tag};

/// Of one kind so many are told, so that none drowns the others.
const MAX_OF_A_KIND: usize = 10;

/// All warnings; `notes` were made while reading.
pub(in crate::acl) fn warnings(
    file: &File,
    lines: &Lines,
    notes: &[PolicyError],
    world: &World,
) -> Vec<PolicyError> {
    let mut all = Faults::new(lines.clone());
    all.extend(notes);
    let kinds: [&dyn Fn(&mut Faults); 6] = [
        &|faults| without_effect(file, faults),
        &|faults| idle_tests(file, lines, faults),
        &|faults| unknown_users(file, world, faults),
        &|faults| matches_nothing(file, world, faults),
        &|faults| unused(file, lines, faults),
        &|faults| shadow::shadowed(file, lines, faults),
    ];
    for kind in kinds {
        let mut faults = Faults::new(lines.clone());
        kind(&mut faults);
        all.extend(&faults.first(MAX_OF_A_KIND));
    }
    all.finish()
}

/// Said once for each part of the language that is kept and does nothing yet.
fn without_effect(file: &File, faults: &mut Faults) {
    let mut say = |span: Option<Span>, message: &str, hint: &str| {
        if let Some(span) = span {
            faults.add("no-effect", span, message, hint);
        }
    };
    say(
        file.ssh.iter().find(|r| matches!(r.action, SshAction::Check(_))).map(|r| r.span),
        "check mode does not exist yet: this rule refuses the session instead of asking first",
        "write \"action\": \"accept\" to let people in without a check",
    );
    say(
        file.ssh.iter().find(|r| !r.recorder.is_empty()).map(|r| r.span),
        "recording is left to the clients: they are handed the recorders' addresses, and nothing here looks for the recordings",
        "look at a recording before relying on it; enforceRecorder refuses sessions when none of the recorders exists",
    );
    say(
        file.auto_approvers.services.first().map(|(name, _)| name.span),
        "there are no services yet: autoApprovers.services is kept and approves nothing",
        "nothing to do",
    );
    let mut service = None;
    let mut shared = None;
    each_alias(file, &mut |alias, span| match alias {
        Alias::Service(_) => service = service.or(Some(span)),
        Alias::Shared => shared = shared.or(Some(span)),
        _ => {}
    });
    say(
        service,
        "there are no services yet: svc: as a destination stands for nobody",
        "name the machines by a tag",
    );
    say(
        shared,
        "autogroup:shared stands for nobody: this server has one tailnet and shares no machines",
        "name users or groups",
    );
    say(
        file.node_attrs.iter().find(|a| !a.app.is_empty()).map(|a| a.span),
        "app of nodeAttrs is handed to the clients as it is: the server sets up no app connector itself",
        "approve the connector's routes under autoApprovers",
    );
}

/// Tests that hold whatever the rules say, and copies.
fn idle_tests(file: &File, lines: &Lines, faults: &mut Faults) {
    type Key<'f> = (Option<&'f str>, Option<&'f str>, Vec<&'f str>, Vec<&'f str>, String);
    let mut seen: BTreeMap<Key<'_>, Span> = BTreeMap::new();
    let open = file.acls.is_none() && file.grants.is_none();
    let shut = file.acls.iter().flatten().next().is_none() && file.grants.iter().flatten().next().is_none();
    for test in &file.tests {
        let key: Key<'_> = (
            test.src.as_ref().map(|w| w.value.as_str()),
            test.proto.as_ref().map(|w| w.value.as_str()),
            test.accept.iter().map(|w| w.value.as_str()).collect(),
            test.deny.iter().map(|w| w.value.as_str()).collect(),
            format!("{:?}", test.posture_attrs),
        );
        if let Some(first) = seen.get(&key) {
            let line = lines.place(first.start).0;
            let message = format!("this test is a copy of the one in line {line}");
            faults.add("idle-test", test.span, message, "remove it");
            continue;
        }
        seen.insert(key, test.span);
        if open && !test.accept.is_empty() && test.deny.is_empty() {
            faults.add(
                "idle-test",
                test.span,
                "this test tests nothing: without acls and grants everybody reaches everybody",
                "write rules, then test them",
            );
        } else if !open && shut && test.accept.is_empty() && !test.deny.is_empty() {
            faults.add(
                "idle-test",
                test.span,
                "this test tests nothing: there is no rule, so nobody reaches anybody",
                "write rules, then test them",
            );
        }
    }
}

/// Users of the policy that this server does not have. They resolve to nothing, which is legal (an
/// account may come later) and mostly a typo.
fn unknown_users(file: &File, world: &World, faults: &mut Faults) {
    let users: BTreeSet<&str> = world.users.values().map(|u| u.name.as_str()).collect();
    let mut look = |name: &str, span: Span| {
        if users.contains(name) || faults.is_full() {
            return;
        }
        let near = faults
            .suggest(name, users.iter().copied())
            .map(|n| if n.contains('@') { n.to_owned() } else { format!("{n}@") });
        let shown = if name.contains('@') { name.to_owned() } else { format!("{name}@") };
        faults.add(
            "unknown-user",
            span,
            format!("no user is called {}; it stands for nobody", quote(&shown)),
            did_you_mean(near.as_deref(), "make the user, or remove the name"),
        );
    };
    for member in file.groups.values().flat_map(|g| &g.value) {
        look(&member.value, member.span);
    }
    each_alias(file, &mut |alias, span| {
        if let Alias::User(name) = alias {
            look(name, span);
        }
    });
}

/// Who has a device.
struct Present<'w> {
    /// All users, devices or none.
    all: HashSet<&'w str>,
    users: HashSet<&'w str>,
    domains: HashSet<&'w str>,
    roles: Vec<Role>,
    tags: HashSet<&'w Tag>,
}

impl<'w> Present<'w> {
    fn new(world: &'w World) -> Self {
        let mut out = Self {
            all: world.users.values().map(|u| u.name.as_str()).collect(),
            users: HashSet::new(),
            domains: HashSet::new(),
            roles: Vec::new(),
            tags: HashSet::new(),
        };
        for node in world.nodes.values() {
            out.tags.extend(node.owner.tags());
            let Some(user) = node.owner.user().and_then(|id| world.users.get(&id)) else {
                continue;
            };
            out.users.insert(&user.name);
            out.domains.extend(user.name.rsplit_once('@').map(|(_, domain)| domain));
            if !out.roles.contains(&user.role) {
                out.roles.push(user.role);
            }
        }
        out
    }

    /// Whether the name covers no device; written addresses may lie behind routers and never count.
    fn lacks(&self, file: &File, alias: &Alias) -> bool {
        match alias {
            Alias::User(name) => !self.users.contains(name.as_str()),
            Alias::Domain(domain) => !self.domains.contains(domain.as_str()),
            Alias::Group(name) => {
                let members = file.groups.get(name).into_iter().flat_map(|g| &g.value);
                !members.into_iter().any(|m| self.users.contains(m.value.as_str()))
            }
            Alias::Tag(tag) => !self.tags.contains(tag),
            Alias::Member | Alias::Own => self.users.is_empty(),
            Alias::Tagged => self.tags.is_empty(),
            Alias::Role(role) => !self.roles.iter().any(|r| r.is(*role)),
            Alias::Service(_) | Alias::Shared => true,
            Alias::Any
            | Alias::Host(_)
            | Alias::Prefix(_)
            | Alias::Range(..)
            | Alias::IpSet(_)
            | Alias::Internet
            | Alias::DangerAll => false,
        }
    }
}

/// Rules one side of which is nobody today.
fn matches_nothing(file: &File, world: &World, faults: &mut Faults) {
    let present = Present::new(world);
    let mut groups: BTreeMap<&str, bool> = BTreeMap::new();
    for name in file.groups.keys() {
        groups.insert(name, present.lacks(file, &Alias::Group(name.clone())));
    }
    let lacks = |alias: &Alias| match alias {
        Alias::Group(name) => groups.get(name.as_str()).copied().unwrap_or(true),
        other => present.lacks(file, other),
    };
    let mut tell = |span: Span, side: &str, names: &mut dyn Iterator<Item = &Alias>| -> bool {
        let mut shown = Vec::new();
        // Names of users there are not were told already.
        let mut told = true;
        for name in names {
            if !lacks(name) {
                return false;
            }
            told &= matches!(name, Alias::User(user) if !present.all.contains(user.as_str()));
            if shown.len() < 3 {
                shown.push(quote(&name.to_string()));
            }
        }
        if told && !shown.is_empty() {
            return true;
        }
        let (message, hint) = match shown.is_empty() {
            true => (
                format!("this rule has no {side}: it matches nothing"),
                format!("name its {side}s, or remove it"),
            ),
            false => (
                format!("this rule matches nothing now: no device is a {side} of it ({})", shown.join(", ")),
                "right if the devices are still to come".to_owned(),
            ),
        };
        faults.add("matches-nothing", span, message, hint);
        true
    };
    for acl in file.acls.iter().flatten() {
        let _ = tell(acl.span, "source", &mut acl.src.iter().map(|s| &s.value))
            || tell(acl.span, "destination", &mut acl.dst.iter().map(|d| &d.value.alias));
    }
    for grant in file.grants.iter().flatten() {
        let _ = tell(grant.span, "source", &mut grant.src.iter().map(|s| &s.value))
            || tell(grant.span, "destination", &mut grant.dst.iter().map(|d| &d.value));
    }
    for rule in &file.ssh {
        let _ = tell(rule.span, "source", &mut rule.src.iter().map(|s| &s.value))
            || tell(rule.span, "destination", &mut rule.dst.iter().map(|d| &d.value));
    }
    for attr in &file.node_attrs {
        tell(attr.span, "target", &mut attr.target.iter().map(|t| &t.value));
    }
}
