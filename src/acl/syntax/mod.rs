//! The tree of values to typed sections (SEMANTICS.md 2, 3): shapes, field names and the words inside.
//! One file per family of sections. Names are looked up by [`super::check`], which also knows what may
//! stand where. Nothing is skipped silently; null counts as not written.

mod asserts;
mod attrs;
mod duration;
mod fields;
mod grants;
mod names;
mod options;
mod posture;
mod rules;
mod ssh;
mod words;

use super::ast::File;
use super::error::Faults;
use super::hujson::{Kind, Value};
use fields::{Shape, array, fields};

/// More rules than this in all sections together are refused.
const MAX_RULES: usize = 1_000_000;

const POLICY: Shape = Shape {
    what: "a policy",
    known: &[
        "acls",
        "grants",
        "groups",
        "hosts",
        "ipsets",
        "tagOwners",
        "autoApprovers",
        "ssh",
        "nodeAttrs",
        "postures",
        "defaultSrcPosture",
        "tests",
        "sshTests",
        "derpMap",
        "disableIPv4",
        "OneCGNATRoute",
        "randomizeClientPort",
    ],
    old: &[],
    comments: false,
    example: "put the sections inside { }",
};

/// Reads all sections; names are looked up by [`super::check`].
pub(super) fn read(root: &Value<'_>, faults: &mut Faults) -> File {
    let mut file = File::default();
    let Some(found) = fields(root, &POLICY, faults) else {
        return file;
    };
    if too_many(root, faults) {
        return file;
    }
    let get = |name| found.get(name);
    if let Some(value) = get("groups") {
        file.groups = names::groups(value, faults);
    }
    if let Some(value) = get("hosts") {
        file.hosts = names::hosts(value, faults);
    }
    if let Some(value) = get("ipsets") {
        file.ipsets = names::ipsets(value, faults);
    }
    if let Some(value) = get("tagOwners") {
        file.tag_owners = names::tag_owners(value, faults);
    }
    if let Some(value) = get("postures") {
        file.postures = posture::postures(value, faults);
    }
    if let Some(value) = get("defaultSrcPosture") {
        file.default_src_posture = posture::names(value, "defaultSrcPosture", faults).unwrap_or_default();
    }
    if let Some(value) = get("autoApprovers") {
        file.auto_approvers = attrs::auto_approvers(value, faults);
    }
    file.acls = entries(get("acls"), "acls", faults, rules::acl);
    file.grants = entries(get("grants"), "grants", faults, grants::grant);
    file.ssh = entries(get("ssh"), "ssh", faults, ssh::rule).unwrap_or_default();
    file.node_attrs = entries(get("nodeAttrs"), "nodeAttrs", faults, attrs::node_attr).unwrap_or_default();
    file.tests = entries(get("tests"), "tests", faults, asserts::test).unwrap_or_default();
    file.ssh_tests = entries(get("sshTests"), "sshTests", faults, asserts::ssh_test).unwrap_or_default();
    options::read(&found, &mut file, faults);
    file
}

/// The entries of a section that is an array; `None` when it is absent or null (SEMANTICS.md 2.1).
fn entries<T>(
    value: Option<&Value<'_>>,
    what: &str,
    faults: &mut Faults,
    read: fn(&Value<'_>, &mut Faults) -> Option<T>,
) -> Option<Vec<T>> {
    let items = array(value?, what, faults)?;
    let mut out = Vec::with_capacity(items.len());
    for item in items {
        if faults.is_full() {
            break;
        }
        out.extend(read(item, faults));
    }
    Some(out)
}

fn too_many(root: &Value<'_>, faults: &mut Faults) -> bool {
    const COUNTED: [&str; 6] = ["acls", "grants", "ssh", "nodeAttrs", "tests", "sshTests"];
    let Kind::Object(members) = &root.kind else {
        return false;
    };
    let counted = members.iter().filter(|m| COUNTED.iter().any(|c| c.eq_ignore_ascii_case(&m.name)));
    let rules: usize = counted
        .map(|m| match &m.value.kind {
            Kind::Array(items) => items.len(),
            _ => 0,
        })
        .sum();
    if rules > MAX_RULES {
        faults.add(
            "too-large",
            root.span,
            format!("the policy has {rules} rules, more than the limit of {MAX_RULES}"),
            "the limit counts acls, grants, ssh, nodeAttrs, tests and sshTests together: join rules with the same sources",
        );
    }
    rules > MAX_RULES
}
