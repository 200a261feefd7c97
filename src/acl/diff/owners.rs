//! `tagOwners`: which people, and devices with which tags, may put a tag on a device from now on, and which
//! no longer. Whoever may, has all that the tag is given. Tags that devices carry stay on them.

use std::collections::{BTreeMap, BTreeSet};

use super::super::ast::{Alias, File};
use super::super::ground::Ground;
use super::others::{Effect, OtherKind, Others, Told, join};
use crate::model::Tag;

/// People that are named.
const NAMED: usize = 3;

/// Words that own a tag, by themselves or through tags that own it.
fn owners<'a>(file: &'a File, tag: &'a Tag) -> BTreeSet<&'a Alias> {
    let mut found = BTreeSet::new();
    let mut open = vec![tag];
    while let Some(tag) = open.pop() {
        for owner in file.tag_owners.get(tag).into_iter().flat_map(|list| &list.value) {
            if found.insert(&owner.value)
                && let Alias::Tag(by) = &owner.value
            {
                open.push(by);
            }
        }
    }
    found
}

/// Members of the groups among `words`.
fn members<'a>(file: &'a File, words: &BTreeSet<&Alias>) -> BTreeMap<String, BTreeSet<&'a str>> {
    let group = |word: &&Alias| match word {
        Alias::Group(name) => {
            let members = file.groups.get(name).into_iter().flat_map(|g| &g.value);
            Some((name.clone(), members.map(|m| m.value.as_str()).collect()))
        }
        _ => None,
    };
    words.iter().filter_map(group).collect()
}

/// People and tags behind words, as they are called.
fn behind(file: &File, ground: &Ground, words: &BTreeSet<&Alias>) -> BTreeSet<String> {
    let groups = members(file, words);
    let named: BTreeSet<&str> = groups
        .values()
        .flatten()
        .copied()
        .chain(words.iter().filter_map(|word| match word {
            Alias::User(name) => Some(name.as_str()),
            _ => None,
        }))
        .collect();
    let owns = |user: &&super::super::WorldUser| {
        named.contains(user.name.as_str())
            || words.iter().any(|word| match word {
                Alias::Member => true,
                Alias::Role(role) => user.role.is(*role),
                _ => false,
            })
    };
    let people = ground.people.values().filter(owns).map(|user| Alias::User(user.name.clone()).to_string());
    let tags = words.iter().filter(|word| matches!(word, Alias::Tag(_)));
    people.chain(tags.map(|tag| format!("devices with {tag}"))).collect()
}

pub(super) fn find(all: &mut Others<'_>) {
    let (old, new) = (all.old, all.new);
    let tags: BTreeSet<&Tag> = old.file.tag_owners.keys().chain(new.file.tag_owners.keys()).collect();
    let mut rows: BTreeMap<(Effect, BTreeSet<String>), Vec<&Tag>> = BTreeMap::new();
    for tag in tags {
        let (was, is) = (owners(&old.file, tag), owners(&new.file, tag));
        if was == is && members(&old.file, &was) == members(&new.file, &is) {
            continue;
        }
        let (was, is) = (behind(&old.file, &old.ground, &was), behind(&new.file, &new.ground, &is));
        for (effect, one, other) in [(Effect::Gained, &is, &was), (Effect::Lost, &was, &is)] {
            let more: BTreeSet<String> = one.difference(other).cloned().collect();
            if !more.is_empty() {
                rows.entry((effect, more)).or_default().push(tag);
            }
        }
    }
    for ((effect, who), tags) in rows {
        let words = |list: &mut dyn Iterator<Item = String>, count: usize| {
            let mut words: Vec<String> = list.take(NAMED).collect();
            if count > words.len() {
                words.push(format!("{} more", count - words.len()));
            }
            words
        };
        let tags = join(words(&mut tags.iter().map(ToString::to_string), tags.len()), "and");
        let count = who.len();
        let who = join(words(&mut who.into_iter(), count), "and");
        all.people(
            who,
            Told::new(OtherKind::TagOwner, effect, format!("the right to put {tags} on devices")),
        );
    }
}
