//! Who may log in by SSH where, by one policy and not by the other. Only rules that the other policy has
//! not are looked at.

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
    let known: HashSet<u128> = theirs.prints().into_iter().collect();
    let prints = mine.prints();
    let changed: Vec<usize> =
        (0..).zip(&prints).filter(|(_, print)| !known.contains(print)).map(|(at, _)| at).collect();
    let mut found: BTreeMap<String, HashMap<Bits, BTreeSet<usize>>> = BTreeMap::new();
    let mut asked: HashSet<(usize, String)> = HashSet::new();
    let mut whole = true;
    for number in changed {
        let Some((targets, logins)) = mine.reach(&by.ground, number) else {
            continue;
        };
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
                    let mut all = admitted.accept;
                    all.add(&admitted.check);
                    all.clear(to);
                    all
                };
                let mut more = who(mine, by);
                more.drop(&who(theirs, other));
                if !more.is_empty() {
                    let what = match login {
                        OTHER => "ssh as any login but root".to_owned(),
                        name => format!("ssh as {name}"),
                    };
                    found.entry(what).or_default().entry(more).or_default().insert(to);
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
