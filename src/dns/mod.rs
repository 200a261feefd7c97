//! Names of the tailnet: labels, MagicDNS configuration per node, message codec. Used by server and
//! node alike; takes names and suffixes as plain values.

/// Makes a DNS label of a hostname: lower case, `[a-z0-9-]`, no dash at either end, at most 63
/// bytes; the part before the first dot; `node` when nothing is left.
#[must_use]
pub fn sanitize_label(_hostname: &str) -> String {
    todo!()
}

/// `label`, or `label-1`, `label-2`, … : the first that `taken` does not know.
#[must_use]
pub fn unique_label(_label: &str, _taken: &dyn Fn(&str) -> bool) -> String {
    todo!()
}
