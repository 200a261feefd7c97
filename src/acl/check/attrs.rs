//! Whom `nodeAttrs` and `autoApprovers` may name (SEMANTICS.md 4.3, 10, 11).

use super::names::{Place, host_hint, is_owner, known};
use crate::acl::ast::{Alias, File, NodeAttr, Spanned};
use crate::acl::error::{Faults, quote};
use crate::model::Tag;

pub(super) fn node_attr(file: &File, attr: &NodeAttr, faults: &mut Faults) {
    for target in &attr.target {
        match &target.value {
            Alias::Host(name) if !file.hosts.contains_key(name) => faults.add(
                "unknown-host",
                target.span,
                format!("target={}: invalid address: host not defined in policy", quote(name)),
                host_hint(file, name, faults),
            ),
            fine @ (Alias::Any
            | Alias::User(_)
            | Alias::Group(_)
            | Alias::Tag(_)
            | Alias::Host(_)
            | Alias::Prefix(_)
            | Alias::Range(..)
            | Alias::Member
            | Alias::Tagged
            | Alias::Role(_)) => known(file, fine, Place::Other("target"), target.span, faults),
            other => faults.add(
                "alias-place",
                target.span,
                format!("target={}: not valid as a target of nodeAttrs", quote(&other.to_string())),
                "targets are *, users, groups, tags, hosts, addresses, autogroup:member, autogroup:tagged and roles",
            ),
        }
    }
}

pub(super) fn auto_approvers(file: &File, faults: &mut Faults) {
    let all = &file.auto_approvers;
    for (net, list) in &all.routes {
        approvers(file, list, &|| format!("autoApprovers.routes[\"{}\"]", net.value), faults);
    }
    approvers(file, &all.exit_node, &|| "autoApprovers.exitNode".to_owned(), faults);
    for (name, list) in &all.services {
        let what = || format!("autoApprovers.services[{}]", quote(&name.value));
        approvers(file, list, &what, faults);
        if let Ok(tag) = Tag::parse(&name.value) {
            known(file, &Alias::Tag(tag), Place::Other(&what()), name.span, faults);
        }
    }
}

fn approvers(file: &File, list: &[Spanned<Alias>], what: &dyn Fn() -> String, faults: &mut Faults) {
    for approver in list {
        if is_owner(&approver.value) {
            known(file, &approver.value, Place::Other(&what()), approver.span, faults);
        } else {
            faults.add(
                "alias-place",
                approver.span,
                format!("{}: {} cannot be approved", what(), quote(&approver.value.to_string())),
                "name users (alice@), groups (group:x), tags (tag:x), autogroup:member or roles (autogroup:admin)",
            );
        }
    }
}
