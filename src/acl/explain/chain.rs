//! Rules and ends in words: where a rule stands, how a device comes under a name, what a posture wants.

use crate::acl::ast::{Alias, AttrValue, Compare, Condition, File, Span};
use crate::acl::error::Lines;
use crate::acl::plan::{Form, Id, Section, Unit};
use crate::acl::posture::{self, Attributes};
use crate::acl::ranges::Range;

use super::RuleAt;
use super::flow::{End, Hit, Outcome, Scene};

/// A rule's text is cut behind so many characters.
const TEXT: usize = 160;

/// A rule by its section and place.
pub(in crate::acl) fn rule_at(file: &File, lines: &Lines, section: &'static str, index: u32) -> RuleAt {
    let at = index as usize;
    let span = match section {
        "grants" => file.grants.as_ref().and_then(|g| g.get(at)).map(|g| g.span),
        "acls" => file.acls.as_ref().and_then(|a| a.get(at)).map(|a| a.span),
        "ssh" => file.ssh.get(at).map(|r| r.span),
        _ => None,
    };
    match span {
        Some(span) => {
            let (line, column) = lines.place(span.start);
            RuleAt { section, index, line, column, text: lines.excerpt(span, TEXT) }
        }
        None => RuleAt {
            section: "default",
            index: 0,
            line: 0,
            column: 0,
            text: "the policy has no rules, and then everyone may reach everything".to_owned(),
        },
    }
}

/// The name of a section as it is written.
pub(in crate::acl) const fn section_name(section: Section) -> &'static str {
    match section {
        Section::Default => "default",
        Section::Grants => "grants",
        Section::Acls => "acls",
    }
}

/// The rule a unit is a piece of.
pub(super) fn rule_of(scene: &Scene<'_>, unit: Id) -> Option<RuleAt> {
    let unit = scene.unit(unit)?;
    Some(rule_at(&scene.inner.file, &scene.policy.lines, section_name(unit.section), unit.index))
}

/// Says things.
pub(super) struct Words<'s, 'a> {
    pub(super) scene: &'s Scene<'a>,
}

impl Words<'_, '_> {
    /// A place by its name.
    pub(super) fn end(&self, end: End) -> String {
        match end {
            End::Node(at, _) => self.scene.node(at).map_or_else(String::new, |n| n.node.name.clone()),
            End::Address(ip) => ip.to_string(),
        }
    }

    /// How a rule would name a place: its person, its tag, its address.
    pub(super) fn handle(&self, end: End) -> String {
        let End::Node(at, _) = end else {
            return self.end(end);
        };
        let owner = self.scene.inner.ground.owner(at).map(|u| Alias::User(u.name.clone()).to_string());
        let tag = || self.scene.node(at)?.node.owner.tags().next().map(|t| t.as_str().to_owned());
        owner.or_else(tag).unwrap_or_else(|| self.end(end))
    }

    fn line(&self, span: Option<Span>) -> String {
        span.map_or_else(String::new, |s| format!(" (line {})", self.scene.policy.lines.place(s.start).0))
    }

    /// How both ends come under a hit's rule.
    pub(super) fn chain(&self, outcome: &Outcome, hit: &Hit) -> Vec<String> {
        let Some(unit) = self.scene.unit(hit.unit) else {
            return Vec::new();
        };
        let mut out = Vec::new();
        let names = self.scene.inner.plan.lists.get(unit.list as usize).into_iter().flatten();
        let wanted = if hit.dst.is_none() { 3 } else { hit.mask };
        let takes = |id: &&Id| self.scene.takes(**id, outcome.from) & wanted != 0;
        if let Some(alias) =
            names.into_iter().find(takes).and_then(|id| self.scene.inner.plan.names.get(*id as usize))
        {
            self.under(&alias.alias, outcome.from, &mut out);
            let place = self.line(self.place(unit, &alias.alias, false));
            out.push(format!("{} is among the rule's sources{place}", alias.alias));
        }
        match hit.dst.and_then(|id| self.scene.inner.plan.names.get(id as usize)) {
            Some(name) => {
                self.under(&name.alias, outcome.to, &mut out);
                let place = self.line(self.place(unit, &name.alias, true));
                out.push(format!("{} is among the rule's destinations{place}", name.alias));
                if let Form::Via(via) = name.form
                    && let Some(tags) = self.scene.inner.plan.vias.get(via as usize)
                {
                    let tags: Vec<&str> = tags.iter().map(crate::model::Tag::as_str).collect();
                    out.push(format!("the rule goes through routers with {}", tags.join(" or ")));
                }
            }
            None => {
                let place = self.line(self.place(unit, &Alias::Own, true));
                out.push(format!("autogroup:self is among the rule's destinations{place}"));
                let person = self.handle(outcome.to);
                out.push(format!(
                    "{} and {} both belong to {person}",
                    self.end(outcome.from),
                    self.end(outcome.to)
                ));
            }
        }
        out
    }

    /// Where a rule names `alias`.
    fn place(&self, unit: &Unit, alias: &Alias, destination: bool) -> Option<Span> {
        let at = unit.index as usize;
        let file = &self.scene.inner.file;
        match (unit.section, destination) {
            (Section::Acls, false) => {
                file.acls.as_ref()?.get(at)?.src.iter().find(|s| s.value == *alias).map(|s| s.span)
            }
            (Section::Acls, true) => {
                file.acls.as_ref()?.get(at)?.dst.iter().find(|d| d.value.alias == *alias).map(|d| d.span)
            }
            (Section::Grants, false) => {
                file.grants.as_ref()?.get(at)?.src.iter().find(|s| s.value == *alias).map(|s| s.span)
            }
            (Section::Grants, true) => {
                file.grants.as_ref()?.get(at)?.dst.iter().find(|d| d.value == *alias).map(|d| d.span)
            }
            (Section::Default, _) => None,
        }
    }

    /// How a place comes under a name, step by step.
    fn under(&self, alias: &Alias, end: End, out: &mut Vec<String>) {
        let who = self.end(end);
        let file = &self.scene.inner.file;
        let owner = match end {
            End::Node(at, _) => self.scene.inner.ground.owner(at),
            End::Address(_) => None,
        };
        let owned = |out: &mut Vec<String>| {
            let name = owner.map(|u| Alias::User(u.name.clone()).to_string());
            if let Some(name) = &name {
                out.push(format!("{who} belongs to {name}"));
            }
            name.unwrap_or_default()
        };
        match alias {
            Alias::User(_) => drop(owned(out)),
            Alias::Group(group) => {
                let person = owned(out);
                let members = file.groups.get(group).into_iter().flat_map(|g| &g.value);
                let member = members.into_iter().find(|m| owner.is_some_and(|o| o.name == m.value));
                out.push(format!("{person} is in {alias}{}", self.line(member.map(|m| m.span))));
            }
            Alias::Domain(domain) => {
                let person = owned(out);
                out.push(format!("{person} has an address at {domain}"));
            }
            Alias::Role(role) => {
                let person = owned(out);
                out.push(format!("{person} counts as {role}"));
            }
            Alias::Tag(tag) => out.push(format!("{who} carries {}", tag.as_str())),
            Alias::Member => out.push(format!("{who} is a person's device, and {alias} means all of these")),
            Alias::Tagged => out.push(format!("{who} carries a tag, and {alias} means all such devices")),
            Alias::Any | Alias::DangerAll => out.push(format!("{alias} means everything")),
            Alias::Internet => out.push(format!("{who} is on the internet")),
            Alias::Host(name) => {
                let host = file.hosts.get(name);
                let net = host.map(|h| Alias::Prefix(h.value).to_string()).unwrap_or_default();
                out.push(format!("{name} is {net}{}", self.line(host.map(|h| h.span))));
                self.inside(&net, end, out);
            }
            Alias::Prefix(_) | Alias::Range(..) => self.inside(&alias.to_string(), end, out),
            Alias::IpSet(name) => {
                let set = file.ipsets.get(name);
                out.push(format!("{who} lies in {name}{}", self.line(set.map(|s| s.span))));
            }
            Alias::Service(_) | Alias::Own | Alias::Shared => {}
        }
    }

    fn inside(&self, net: &str, end: End, out: &mut Vec<String>) {
        match end {
            End::Node(at, _) => {
                let Some(node) = self.scene.node(at) else { return };
                let inside = |ip: std::net::IpAddr| {
                    net.parse::<ipnet::IpNet>()
                        .ok()
                        .map(Range::from)
                        .or_else(|| Some(Range::single(net.parse().ok()?)))
                        .is_some_and(|r| r.contains(ip))
                };
                let ip = if inside(node.v6) { node.v6 } else { node.v4 };
                if ip.to_string() == net {
                    out.push(format!("{net} is {}'s address", node.node.name));
                } else {
                    out.push(format!("{net} holds {ip}, an address of {}", node.node.name));
                }
            }
            End::Address(ip) if ip.to_string() == net => {}
            End::Address(ip) => out.push(format!("{net} holds {ip}")),
        }
    }
}

/// Whether a condition holds, and it in words with what is known.
pub(super) fn condition_words(condition: &Condition, attributes: &Attributes) -> (bool, String) {
    let known = attributes.get(&condition.attribute).map_or_else(|| "not known".to_owned(), value_words);
    let holds = posture::condition(condition, attributes);
    (holds, format!("{}, and it is {known}", demand_words(condition)))
}

fn value_words(value: &AttrValue) -> String {
    match value {
        AttrValue::Text(text) => format!("'{text}'"),
        AttrValue::Number(number) => number.to_string(),
        AttrValue::Bool(yes) => yes.to_string(),
    }
}

/// A condition as it is written.
pub(in crate::acl) fn demand_words(condition: &Condition) -> String {
    let list = || condition.values.iter().map(value_words).collect::<Vec<_>>().join(", ");
    let wanted = match condition.compare {
        Compare::Equal => format!("== {}", list()),
        Compare::NotEqual => format!("!= {}", list()),
        Compare::Less => format!("< {}", list()),
        Compare::LessOrEqual => format!("<= {}", list()),
        Compare::Greater => format!("> {}", list()),
        Compare::GreaterOrEqual => format!(">= {}", list()),
        Compare::In => format!("IN [{}]", list()),
        Compare::NotIn => format!("NOT IN [{}]", list()),
        Compare::IsSet => "IS SET".to_owned(),
        Compare::NotSet => "NOT SET".to_owned(),
    };
    format!("{} {wanted}", condition.attribute)
}
