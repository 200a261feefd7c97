//! Lists of words that name somebody: sources, destinations, targets, owners. What a word means is
//! [`Alias::parse`]'s; here it is told where a word is none, in the text each place has (SEMANTICS.md 13).

use super::fields::{array, string};
use crate::acl::alias::{self, AliasFault};
use crate::acl::ast::{Alias, Span, Spanned};
use crate::acl::error::{Faults, did_you_mean, quote};
use crate::acl::hujson::Value;

/// Where a word stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// `src` of any rule.
    Source,
    /// `dst` of any rule.
    Destination,
    /// Anywhere else.
    Other,
}

const TAG_HINT: &str =
    "a tag starts with a letter and goes on with letters, digits, '-' or '.', such as tag:server";

/// The names of a list, in order.
pub(super) fn aliases(
    value: Option<&Value<'_>>,
    what: &str,
    side: Side,
    faults: &mut Faults,
) -> Vec<Spanned<Alias>> {
    let items = value.and_then(|v| array(v, what, faults)).unwrap_or_default();
    let mut out = Vec::with_capacity(items.len());
    for item in items {
        let Some(text) = string(item, what, faults) else {
            continue;
        };
        match Alias::parse(text) {
            Ok(value) => out.push(Spanned { value, span: item.span }),
            Err(fault) => alias_fault(fault, text, what, side, item.span, faults),
        }
    }
    out
}

/// Tells why `text` names nothing; `what` is the field it stands in.
pub(super) fn alias_fault(
    fault: AliasFault,
    text: &str,
    what: &str,
    side: Side,
    span: Span,
    faults: &mut Faults,
) {
    let shown = quote(text);
    match fault {
        AliasFault::Tag => {
            let message = match side {
                Side::Source => format!("src=tag not found: {shown}"),
                Side::Destination => format!("dst={shown}: tag not found: {shown}"),
                Side::Other => format!("{what}: tag not found: {shown}"),
            };
            faults.add("unknown-tag", span, message, TAG_HINT);
        }
        AliasFault::Autogroup => {
            let near = faults.suggest(text, alias::AUTOGROUPS);
            let hint = did_you_mean(near, "there are member, tagged, self, internet, danger-all, shared, owner, admin, network-admin, it-admin, billing-admin and auditor");
            faults.add("unknown-autogroup", span, format!("{what}={shown}: no such autogroup"), hint);
        }
        AliasFault::NonRoot => faults.add(
            "alias-place",
            span,
            format!("{what}={shown}: autogroup:nonroot is no place"),
            "autogroup:nonroot stands in \"users\" of an ssh rule: all logins but root",
        ),
        AliasFault::Range => faults.add(
            "invalid-alias",
            span,
            format!("{what}={shown}: invalid address range"),
            "both ends must be of one family, the first not above the last: 10.0.0.1-10.0.0.9",
        ),
        AliasFault::User => faults.add(
            "invalid-alias",
            span,
            format!("{what}={shown}: invalid user"),
            "a user is a mail address, or name@ for a user of this server; all of a domain are user:*@example.com",
        ),
        AliasFault::Invalid => faults.add(
            "invalid-alias",
            span,
            format!("{what}={shown}: invalid address"),
            "write a user (alice@), group:x, tag:x, a name of hosts, an address or a network",
        ),
    }
}
