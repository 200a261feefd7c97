//! Names against declarations, and which word may stand where (SEMANTICS.md 4.3, 4.4): every fault that
//! shows without knowing users and nodes. The texts are the hosted service's where there is one
//! (SEMANTICS.md 13). What needs the tailnet is in `tailnet`, what is no fault in `warnings`.

mod attrs;
mod names;
mod rules;
mod shadow;
mod ssh;
mod tailnet;
mod uses;
mod warnings;

pub(super) use uses::unused_names;

use super::ast::File;
use super::error::Faults;

pub(super) use tailnet::mistakes;
pub(super) use warnings::warnings;

/// Checks every name of `file`.
pub(super) fn check(file: &File, faults: &mut Faults) {
    names::ipsets(file, faults);
    names::tag_owners(file, faults);
    names::postures(file, &file.default_src_posture, faults);
    for acl in file.acls.iter().flatten() {
        rules::acl(file, acl, faults);
    }
    for grant in file.grants.iter().flatten() {
        rules::grant(file, grant, faults);
    }
    for rule in &file.ssh {
        ssh::rule(file, rule, faults);
    }
    for test in &file.ssh_tests {
        ssh::test(file, test, faults);
    }
    for attr in &file.node_attrs {
        attrs::node_attr(file, attr, faults);
    }
    attrs::auto_approvers(file, faults);
}
