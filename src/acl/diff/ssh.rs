//! Who may log in by SSH where, by one policy and not by the other, or there only after a check. Only rules
//! that the other policy has not are looked at, and the other's own that check or refuse.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::super::AccessChange;
use super::super::compile::Inner;
use super::super::ranges::Bits;
use super::super::ssh::Table;
use super::rows::Identities;

/// Destinations times logins that are compared at most per direction.
const BUDGET: usize = 20_000;
/// Stands for any login that no rule names: no machine has it.
const OTHER: &str = "\u{1}";

/// Logins that `by` lets in and `other` does not: rows, pairs of devices, and whether all was looked at.
pub(super) fn turn(by: &Inner, other: &Inner) -> (Vec<AccessChange>, u64, bool) {
    let (mine, theirs) = (by.ssh(), other.ssh());
    let changed = |table: &Table, than: &Table| -> Vec<usize> {
        let known: HashSet<u128> = than.prints().into_iter().collect();
        (0..).zip(table.prints()).filter(|(_, print)| !known.contains(print)).map(|(at, _)| at).collect()
    };
    let gone = changed(mine, theirs).into_iter().filter_map(|number| mine.reach(&by.ground, number));
    let narrower = changed(theirs, mine).into_iter().filter(|number| theirs.narrows(*number));
    let narrower = narrower.filter_map(|number| theirs.reach(&other.ground, number));
    let mut found: BTreeMap<String, HashMap<Bits, BTreeSet<usize>>> = BTreeMap::new();
    let mut asked: HashSet<(usize, String)> = HashSet::new();
    let mut whole = true;
    for (targets, logins) in gone.chain(narrower) {
        for to in targets.iter() {
            let target: Bits = [to].into_iter().collect();
            for login in &logins {
                if asked.len() >= BUDGET {
                    whole = false;
                    break;
                }
                let login = if login == "*" { OTHER } else { login };
                if !asked.insert((to, login.to_owned())) {
                    continue;
                }
                let who = |table: &Table, policy: &Inner| {
                    let candidates = table.candidates(&policy.ground.all, &target);
                    let admitted = table.admitted(&policy.ground, &candidates, to, login);
                    // Whom a rule checks is checked, whatever other rules say.
                    let mut free = admitted.accept;
                    free.drop(&admitted.check);
                    let mut all = free.clone();
                    all.add(&admitted.check);
                    [free, all].map(|mut nodes| {
                        nodes.clear(to);
                        nodes
                    })
                };
                let ([mut unasked, mut more], [their_free, their_all]) = (who(mine, by), who(theirs, other));
                more.drop(&their_all);
                unasked.drop(&their_free);
                unasked.drop(&more);
                let login = if login == OTHER { "any login but root" } else { login };
                for (nodes, end) in [(more, ""), (unasked, " without a check")] {
                    if !nodes.is_empty() {
                        let what = format!("ssh as {login}{end}");
                        found.entry(what).or_default().entry(nodes).or_default().insert(to);
                    }
                }
            }
        }
    }
    let people = Identities::new(by);
    let mut total = 0;
    let mut rows = Vec::new();
    for (what, groups) in found {
        for (from, to) in groups {
            let (from, to): (Vec<usize>, Vec<usize>) = (from.iter().collect(), to.into_iter().collect());
            let pairs = u64::try_from(from.len().saturating_mul(to.len())).unwrap_or(u64::MAX);
            total += pairs;
            rows.push(people.row(by, &from, &to, what.clone(), pairs));
        }
    }
    (rows, total, whole)
}
