//! `acls` and `grants`: who may stand where, and with whom (SEMANTICS.md 4.3, 4.4, 8).

use super::names::{Place, known, postures, tag_hint};
use crate::acl::ast::{Acl, Alias, File, Grant, Span};
use crate::acl::error::{Faults, quote};

pub(super) fn acl(file: &File, acl: &Acl, faults: &mut Faults) {
    for src in &acl.src {
        source(file, &src.value, src.span, faults);
    }
    let narrow = acl.src.iter().all(|s| is_person(&s.value) || s.value == Alias::Any);
    for dst in &acl.dst {
        destination(file, &dst.value.alias, dst.span, faults);
        if dst.value.alias == Alias::Own && !narrow {
            let hint = "make the sources users, groups, autogroup:member or *; put the others in a rule of their own";
            self_fault(dst.span, hint, faults);
        }
    }
    if let Some(list) = &acl.posture {
        postures(file, list, faults);
    }
}

pub(super) fn grant(file: &File, grant: &Grant, faults: &mut Faults) {
    for src in &grant.src {
        source(file, &src.value, src.span, faults);
    }
    let narrow = grant.src.iter().all(|s| is_person(&s.value));
    let mut open = false;
    for dst in &grant.dst {
        destination(file, &dst.value, dst.span, faults);
        match &dst.value {
            Alias::Own if !narrow => {
                let hint = "make the sources users, groups or autogroup:member (in a grant not *); put the others in a grant of their own";
                self_fault(dst.span, hint, faults);
            }
            Alias::Internet if !grant.app.is_empty() => faults.add(
                "app-internet",
                dst.span,
                "cannot use app grants with autogroup:internet",
                "put ip for autogroup:internet into a grant without app",
            ),
            // The first only, as the hosted service tells it.
            Alias::Prefix(net) if net.prefix_len() == 0 && !open => {
                open = true;
                faults.add(
                    "default-route",
                    dst.span,
                    format!("dst \"{net}\": to allow all IP addresses, use \"*\" or \"autogroup:internet\""),
                    "\"*\" is everything in the tailnet and behind it, \"autogroup:internet\" what exit nodes reach",
                );
            }
            _ => {}
        }
    }
    for tag in grant.via.iter().filter(|t| !file.tag_owners.contains_key(&t.value)) {
        let message = format!("tag {} not found", quote(tag.value.as_str()));
        faults.add("unknown-tag", tag.span, message, tag_hint(file, &tag.value, faults));
    }
    if let Some(list) = &grant.posture {
        postures(file, list, faults);
    }
}

/// People, the only ones that have devices of their own (SEMANTICS.md 4.4).
pub(super) const fn is_person(alias: &Alias) -> bool {
    matches!(alias, Alias::User(_) | Alias::Domain(_) | Alias::Group(_) | Alias::Member | Alias::Role(_))
}

fn self_fault(span: Span, hint: &str, faults: &mut Faults) {
    let message = "autogroup:self can only be used with users, groups, or supported autogroups";
    faults.add("self-sources", span, message, hint);
}

/// `autogroup:self` as a source has one text everywhere.
pub(super) fn own_source(span: Span, faults: &mut Faults) {
    faults.add(
        "alias-place",
        span,
        "\"autogroup:self\" not valid on the src side of a rule",
        "use autogroup:member as source and autogroup:self as destination",
    );
}

fn source(file: &File, alias: &Alias, span: Span, faults: &mut Faults) {
    match alias {
        Alias::Own => own_source(span, faults),
        Alias::Internet => faults.add(
            "alias-place",
            span,
            "autogroup:internet can only be used in ACL destinations",
            "name who may reach the internet, such as autogroup:member",
        ),
        Alias::Service(name) => faults.add(
            "alias-place",
            span,
            format!("src={}: a service can only be a destination", quote(name)),
            "name the machines that host it by their tag",
        ),
        other => known(file, other, Place::Source, span, faults),
    }
}

fn destination(file: &File, alias: &Alias, span: Span, faults: &mut Faults) {
    match alias {
        Alias::DangerAll => faults.add(
            "alias-place",
            span,
            "cannot use autogroup:danger-all as a dst",
            "use * for everything",
        ),
        Alias::Shared => faults.add(
            "alias-place",
            span,
            "autogroup:shared can only be a source",
            "it means people of other tailnets; name your own machines as destinations",
        ),
        other => known(file, other, Place::Destination, span, faults),
    }
}
