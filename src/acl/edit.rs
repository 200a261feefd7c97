//! Small changes to a policy text that leave every other byte alone: comments, layout, order. Each is a
//! splice at a place the parser gave; afterwards the text is read again and must mean exactly what the
//! change asked for, or nothing is handed out.

use serde_json::{Value as Json, json};

use super::alias::{parse_prefix, split_destination};
use super::error::{Faults, Lines, did_you_mean, quote};
use super::hujson::{self, Kind, Member, Span, Value};
use super::splice::{append, apply, remove};
use super::{Policy, PolicyError};

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// Makes an empty group.
    AddGroup {
        /// `group:dev`; the prefix may be left out.
        group: String,
    },
    /// Puts a user into a group, which is made if need be.
    AddUserToGroup {
        /// `alice@`; a name without `@` is a local user.
        user: String,
        /// `group:dev`.
        group: String,
    },
    /// Takes a user out of a group.
    RemoveUserFromGroup {
        /// `alice@`.
        user: String,
        /// `group:dev`.
        group: String,
    },
    /// Names an address.
    AddHost {
        /// The name.
        name: String,
        /// An address or network.
        address: String,
    },
    /// Declares a tag, or lets somebody else apply it too.
    AddTagOwner {
        /// `tag:server`; the prefix may be left out.
        tag: String,
        /// A user, group, tag or role.
        owner: String,
    },
    /// Lets a source reach a destination.
    AddRule {
        /// Who.
        src: String,
        /// Whom, with ports behind a colon; without them all ports.
        dst: String,
    },
    /// Takes away the rule of `acls`, `grants` or `ssh` that stands on a line.
    RemoveRule {
        /// 1-based line.
        line: u32,
    },
    /// Asserts that a source reaches a destination, or that it does not.
    AddTest {
        /// Who.
        src: String,
        /// Whom, with a port.
        dst: String,
        /// Reaches.
        accept: bool,
    },
}

/// The rule of a policy without rules (SEMANTICS.md 2.1), written out.
const DEFAULT_RULE: &str = r#"{"action": "accept", "src": ["*"], "dst": ["*:*"]}"#;

/// Changes a policy text; what it asks for and is there already leaves the text as it is.
///
/// # Errors
/// When the text cannot be read, when what is to be changed is not there, or when the change would make
/// a fault that was not there before.
pub fn edit(text: &str, edit: &Edit) -> Result<String, PolicyError> {
    let mark = text.len() - hujson::body(text).len();
    let (bom, body) = text.split_at_checked(mark).unwrap_or(("", text));
    let root = read(body)?;
    let Some(change) = plan(body, &root, edit)? else {
        return Ok(text.to_owned());
    };
    let after = change.splice(body, &root)?;
    let mut want = root.to_json();
    let Some(()) = change.mean(&mut want) else {
        return Err(fault("edit", "the change does not fit the text", "change it by hand"));
    };
    if read(&after)?.to_json() != want {
        return Err(fault(
            "edit",
            "the change would change more than it should",
            "change it by hand, and report the text",
        ));
    }
    no_new_fault(body, &after)?;
    Ok(format!("{bom}{after}"))
}

fn read(text: &str) -> Result<Value<'_>, PolicyError> {
    let root = hujson::read(text)
        .map_err(|faults| faults.into_iter().next().unwrap_or_else(|| fault("syntax", "no policy", "")))?;
    match root.kind {
        Kind::Object(_) => Ok(root),
        _ => Err(fault("wrong-type", "a policy is an object", "put the sections inside { }")),
    }
}

/// A change may leave old faults, never add one: moved lines aside, each must have been there.
fn no_new_fault(before: &str, after: &str) -> Result<(), PolicyError> {
    let Err(now) = Policy::parse(after) else {
        return Ok(());
    };
    let old = Policy::parse(before).err().unwrap_or_default();
    let known = |f: &PolicyError| old.iter().any(|o| (o.code, &o.message) == (f.code, &f.message));
    now.into_iter().find(|f| !known(f)).map_or(Ok(()), Err)
}

fn fault(code: &'static str, message: impl Into<String>, hint: impl Into<String>) -> PolicyError {
    PolicyError { code, line: 1, column: 1, message: message.into(), hint: hint.into() }
}

fn at(text: &str, span: Span, code: &'static str, message: String, hint: String) -> PolicyError {
    let (line, column) = Lines::new(text).place(span.start);
    PolicyError { code, line, column, message, hint }
}

/// One splice and what it means.
#[derive(Debug, Clone, PartialEq)]
struct Change {
    /// Names that lead to the array or object that is changed.
    path: Vec<String>,
    what: What,
}

#[derive(Debug, Clone, PartialEq)]
enum What {
    /// A member, with its text on one line and, if it is a section, what stands inside its brackets.
    Member { name: String, text: Body },
    /// An element.
    Element { text: String },
    /// The value found there is replaced (a null section).
    Replace { text: Body },
    /// The element of that number goes.
    Remove(usize),
}

/// A new value: brackets and what is in them, one per line when there is room.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Body {
    brackets: Option<(char, char)>,
    inside: Vec<String>,
}

impl Body {
    fn line(text: String) -> Self {
        Self { brackets: None, inside: vec![text] }
    }

    fn section(open: char, close: char, inside: Vec<String>) -> Self {
        Self { brackets: Some((open, close)), inside }
    }

    /// On one line, or below each other when the indentation of its line is known.
    fn text(&self, indent: Option<(&str, &str)>) -> String {
        let Some((open, close)) = self.brackets else {
            return self.inside.join(", ");
        };
        match indent {
            Some((indent, unit)) if !self.inside.is_empty() => {
                let lines: String =
                    self.inside.iter().map(|line| format!("{indent}{unit}{line},\n")).collect();
                format!("{open}\n{lines}{indent}{close}")
            }
            _ => format!("{open}{}{close}", self.inside.join(", ")),
        }
    }

    fn json(&self) -> Option<Json> {
        serde_json::from_str(&self.text(None)).ok()
    }
}

impl Change {
    fn splice(&self, text: &str, root: &Value<'_>) -> Result<String, PolicyError> {
        let lost = || fault("edit", "the place of the change is gone", "change it by hand");
        let target = walk(root, &self.path).ok_or_else(lost)?;
        let unit = unit(text, root);
        // A policy on one line stays on one line.
        let spread = text.contains('\n') || matches!(&root.kind, Kind::Object(m) if m.is_empty());
        let splices = match &self.what {
            What::Member { name, text: body } => {
                let make = |indent: Option<&str>| {
                    format!("{}: {}", json!(name), body.text(indent.map(|i| (i, unit.as_str()))))
                };
                append(text, target.span, &items(target), spread && self.path.len() < 2, &unit, &make)
            }
            What::Element { text: element } => {
                let make = |_: Option<&str>| element.clone();
                append(text, target.span, &items(target), spread && self.path.len() < 2, &unit, &make)
            }
            What::Replace { text: body } => {
                let indent = if spread { Some((unit.as_str(), unit.as_str())) } else { None };
                vec![(target.span.start as usize..target.span.end as usize, body.text(indent))]
            }
            What::Remove(index) => remove(text, target.span, &items(target), *index),
        };
        Ok(apply(text, splices))
    }

    /// The same on the meaning.
    fn mean(&self, root: &mut Json) -> Option<()> {
        let mut target = root;
        for name in &self.path {
            target = target.get_mut(name.as_str())?;
        }
        match &self.what {
            What::Member { name, text } => {
                target.as_object_mut()?.insert(name.clone(), text.json()?).is_none().then_some(())
            }
            What::Element { text } => {
                target.as_array_mut()?.push(serde_json::from_str(text).ok()?);
                Some(())
            }
            What::Replace { text } => {
                *target = text.json()?;
                Some(())
            }
            What::Remove(index) => {
                let list = target.as_array_mut()?;
                (*index < list.len()).then(|| drop(list.remove(*index)))
            }
        }
    }
}

fn walk<'v, 'a>(root: &'v Value<'a>, path: &[String]) -> Option<&'v Value<'a>> {
    path.iter().try_fold(root, |value, name| match &value.kind {
        Kind::Object(members) => members.iter().find(|m| m.name == name.as_str()).map(|m| &m.value),
        _ => None,
    })
}

/// Where the elements or members of a value stand.
fn items(value: &Value<'_>) -> Vec<Span> {
    match &value.kind {
        Kind::Array(list) => list.iter().map(|v| v.span).collect(),
        Kind::Object(members) => {
            members.iter().map(|m| Span { start: m.name_span.start, end: m.value.span.end }).collect()
        }
        _ => Vec::new(),
    }
}

/// One level of indentation as this text has it.
fn unit(text: &str, root: &Value<'_>) -> String {
    let first = items(root).first().map(|s| super::splice::margin(text, s.start as usize));
    match first {
        Some(Some(margin)) if !margin.is_empty() => margin.to_owned(),
        _ => "\t".to_owned(),
    }
}

/// A section by its name in any case; `None` when it is not written.
fn section<'v, 'a>(root: &'v Value<'a>, name: &str) -> Option<&'v Member<'a>> {
    let Kind::Object(members) = &root.kind else {
        return None;
    };
    members.iter().find(|m| m.name.eq_ignore_ascii_case(name))
}

/// Puts one entry into a section, which is made if need be.
fn into_section(
    text: &str,
    root: &Value<'_>,
    name: &str,
    brackets: (char, char),
    entry: What,
) -> Result<Change, PolicyError> {
    let inside = match &entry {
        What::Member { name, text } => format!("{}: {}", json!(name), text.text(None)),
        What::Element { text } => text.clone(),
        _ => String::new(),
    };
    let body = Body::section(brackets.0, brackets.1, vec![inside]);
    let Some(member) = section(root, name) else {
        return Ok(Change { path: Vec::new(), what: What::Member { name: name.to_owned(), text: body } });
    };
    let path = vec![member.name.to_string()];
    match (&member.value.kind, brackets.0) {
        (Kind::Null, _) => Ok(Change { path, what: What::Replace { text: body } }),
        (Kind::Array(_), '[') | (Kind::Object(_), '{') => Ok(Change { path, what: entry }),
        _ => Err(at(
            text,
            member.value.span,
            "wrong-type",
            format!("{name} is {}", member.value.noun()),
            format!("it has to stand inside {} {}", brackets.0, brackets.1),
        )),
    }
}

/// An entry `"name": ["word"]` of a section of lists: the word is added, the list made if need be.
fn into_list(
    text: &str,
    root: &Value<'_>,
    part: &str,
    name: &str,
    word: Option<&str>,
    same: impl Fn(&str) -> bool,
) -> Result<Option<Change>, PolicyError> {
    let found = section(root, part).and_then(|m| walk(&m.value, &[name.to_owned()]));
    let quoted: Vec<String> = word.iter().map(|w| json!(w).to_string()).collect();
    let fresh = Body::line(format!("[{}]", quoted.join(", ")));
    let Some(list) = found else {
        let entry = What::Member { name: name.to_owned(), text: fresh };
        return into_section(text, root, part, ('{', '}'), entry).map(Some);
    };
    let key = section(root, part).map_or_else(String::new, |m| m.name.to_string());
    let path = vec![key, name.to_owned()];
    let Some(word) = word else {
        return Ok(None);
    };
    match &list.kind {
        Kind::Null => Ok(Some(Change { path, what: What::Replace { text: fresh } })),
        Kind::Array(words) if words.iter().any(|w| matches!(&w.kind, Kind::String(s) if same(s.trim()))) => {
            Ok(None)
        }
        Kind::Array(_) => Ok(Some(Change { path, what: What::Element { text: json!(word).to_string() } })),
        _ => Err(at(
            text,
            list.span,
            "wrong-type",
            format!("{part}[{}] is {}", quote(name), list.noun()),
            "it has to be a list inside [ ]".to_owned(),
        )),
    }
}

fn plan(text: &str, root: &Value<'_>, edit: &Edit) -> Result<Option<Change>, PolicyError> {
    match edit {
        Edit::AddGroup { group } => {
            into_list(text, root, "groups", &prefixed("group:", group), None, |_| false)
        }
        Edit::AddUserToGroup { user, group } => {
            let user = user_word(user);
            let same = |word: &str| bare(word) == bare(&user);
            into_list(text, root, "groups", &prefixed("group:", group), Some(&user), same)
        }
        Edit::RemoveUserFromGroup { user, group } => {
            leave(text, root, &user_word(user), &prefixed("group:", group)).map(Some)
        }
        Edit::AddTagOwner { tag, owner } => {
            let owner = if owner.contains([':', '@']) { owner.trim().to_owned() } else { user_word(owner) };
            let same = |word: &str| bare(word) == bare(&owner);
            into_list(text, root, "tagOwners", &prefixed("tag:", tag), Some(&owner), same)
        }
        Edit::AddHost { name, address } => host(text, root, name.trim(), address.trim()),
        Edit::AddRule { src, dst } => rule(text, root, src.trim(), dst.trim()).map(Some),
        Edit::RemoveRule { line } => remove_rule(text, root, *line).map(Some),
        Edit::AddTest { src, dst, accept } => {
            let verdict = if *accept { "accept" } else { "deny" };
            let entry = format!("{{\"src\": {}, \"{verdict}\": [{}]}}", json!(src.trim()), json!(dst.trim()));
            into_section(text, root, "tests", ('[', ']'), What::Element { text: entry }).map(Some)
        }
    }
}

fn prefixed(prefix: &str, name: &str) -> String {
    let name = name.trim();
    if name.starts_with(prefix) { name.to_owned() } else { format!("{prefix}{name}") }
}

fn user_word(user: &str) -> String {
    let user = user.trim();
    if user.contains(['@', ':']) { user.to_owned() } else { format!("{user}@") }
}

fn bare(word: &str) -> &str {
    word.strip_suffix('@').unwrap_or(word)
}

fn leave(text: &str, root: &Value<'_>, user: &str, group: &str) -> Result<Change, PolicyError> {
    let groups = section(root, "groups");
    let list = groups.and_then(|m| walk(&m.value, &[group.to_owned()]));
    let (Some(groups), Some(list)) = (groups, list) else {
        let names: Vec<&str> = match groups.map(|g| &g.value.kind) {
            Some(Kind::Object(members)) => members.iter().map(|m| m.name.as_ref()).collect(),
            _ => Vec::new(),
        };
        let near = Faults::new(Lines::new("")).suggest(group, names.iter().copied()).map(str::to_owned);
        let hint = did_you_mean(near.as_deref(), "look at \"groups\"");
        return Err(fault("unknown-group", format!("there is no {}", quote(group)), hint));
    };
    let Kind::Array(words) = &list.kind else {
        let message = format!("groups[{}] is {}", quote(group), list.noun());
        return Err(at(text, list.span, "wrong-type", message, "it has to be a list inside [ ]".to_owned()));
    };
    let word = |v: &Value<'_>| match &v.kind {
        Kind::String(s) => s.trim().to_owned(),
        _ => String::new(),
    };
    let Some(index) = words.iter().position(|w| bare(&word(w)) == bare(user)) else {
        let members: Vec<String> = words.iter().map(word).collect();
        let near = Faults::new(Lines::new("")).suggest(user, members.iter().map(String::as_str));
        let hint = did_you_mean(near, &format!("its members are {}", members.join(", ")));
        let message = format!("{} is not in {}", quote(user), quote(group));
        return Err(at(text, list.span, "unknown-user", message, hint));
    };
    let path = vec![groups.name.to_string(), group.to_owned()];
    Ok(Change { path, what: What::Remove(index) })
}

fn host(text: &str, root: &Value<'_>, name: &str, address: &str) -> Result<Option<Change>, PolicyError> {
    let there = section(root, "hosts").and_then(|m| walk(&m.value, &[name.to_owned()]));
    if let Some(there) = there {
        let old = match &there.kind {
            Kind::String(s) => s.trim().to_owned(),
            _ => there.noun().to_owned(),
        };
        if old == address || parse_prefix(&old).is_some_and(|net| parse_prefix(address) == Some(net)) {
            return Ok(None);
        }
        let message = format!("host {} is {} already", quote(name), quote(&old));
        let hint = "change it there, or choose another name".to_owned();
        return Err(at(text, there.span, "duplicate-key", message, hint));
    }
    let entry = What::Member { name: name.to_owned(), text: Body::line(json!(address).to_string()) };
    into_section(text, root, "hosts", ('{', '}'), entry).map(Some)
}

/// A destination with ports behind the last colon; names that hold one colon themselves have none.
fn destination(dst: &str) -> (String, String) {
    if parse_prefix(dst).is_some_and(|net| dst.contains(':') && net.prefix_len() > 0) {
        let (address, length) = dst.split_once('/').unwrap_or((dst, ""));
        let slash = if length.is_empty() { "" } else { "/" };
        return (format!("[{address}]{slash}{length}"), "*".to_owned());
    }
    let prefixes = ["tag:", "group:", "autogroup:", "ipset:", "svc:", "host:", "user:"];
    let name = prefixes.iter().any(|p| dst.starts_with(p)) && dst.matches(':').count() == 1;
    match dst.rsplit_once(':') {
        Some((who, ports)) if !name => (who.to_owned(), ports.to_owned()),
        _ => (dst.to_owned(), "*".to_owned()),
    }
}

fn rule(text: &str, root: &Value<'_>, src: &str, dst: &str) -> Result<Change, PolicyError> {
    let (who, ports) = destination(dst);
    split_destination(&format!("{who}:{ports}")).map_err(|(message, hint)| fault("port", message, hint))?;
    let written = |name: &str| section(root, name).filter(|m| !m.value.is_null());
    let (acls, grants) = (written("acls"), written("grants"));
    if acls.is_none() && grants.is_some() {
        let who = who.strip_prefix('[').map_or_else(|| who.clone(), |inner| inner.replacen(']', "", 1));
        let entry =
            format!("{{\"src\": [{}], \"dst\": [{}], \"ip\": [{}]}}", json!(src), json!(who), json!(ports));
        return into_section(text, root, "grants", ('[', ']'), What::Element { text: entry });
    }
    let dst = format!("{who}:{ports}");
    let entry = format!("{{\"action\": \"accept\", \"src\": [{}], \"dst\": [{}]}}", json!(src), json!(dst));
    if acls.is_some() {
        return into_section(text, root, "acls", ('[', ']'), What::Element { text: entry });
    }
    // Without rules everybody reaches everybody. A first rule alone would silently end that.
    let body = Body::section('[', ']', vec![DEFAULT_RULE.to_owned(), entry]);
    Ok(match section(root, "acls") {
        Some(null) => Change { path: vec![null.name.to_string()], what: What::Replace { text: body } },
        None => Change { path: Vec::new(), what: What::Member { name: "acls".to_owned(), text: body } },
    })
}

fn remove_rule(text: &str, root: &Value<'_>, line: u32) -> Result<Change, PolicyError> {
    let lines = Lines::new(text);
    let mut found: Vec<Change> = Vec::new();
    let mut known: Vec<u32> = Vec::new();
    for part in ["acls", "grants", "ssh"] {
        let Some(member) = section(root, part) else {
            continue;
        };
        let Kind::Array(rules) = &member.value.kind else {
            continue;
        };
        for (index, rule) in rules.iter().enumerate() {
            let first = lines.place(rule.span.start).0;
            let last = lines.place(rule.span.end.saturating_sub(1)).0;
            known.push(first);
            if (first..=last).contains(&line) {
                let path = vec![member.name.to_string()];
                found.push(Change { path, what: What::Remove(index) });
            }
        }
    }
    let count = found.len();
    match (found.pop(), count) {
        (Some(change), 1) => Ok(change),
        (Some(_), _) => Err(PolicyError {
            line,
            ..fault(
                "edit",
                format!("{count} rules stand on line {line}"),
                "give each a line of its own first: tsd policy fmt",
            )
        }),
        (None, _) => {
            let near = known.iter().min_by_key(|l| l.abs_diff(line));
            let hint = near.map_or_else(
                || "the text has no rules".to_owned(),
                |near| format!("the nearest rule is on line {near}"),
            );
            Err(PolicyError { line, ..fault("edit", format!("no rule stands on line {line}"), hint) })
        }
    }
}

#[cfg(test)]
mod tests;
