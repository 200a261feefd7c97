//! The pages as values: each struct is one template with everything it shows, built from the
//! service's views and a moment. Pure, so that hostile data can be tried without a server.

use askama::Template;
use chrono::{DateTime, Utc};

use super::session::Session;
use super::text::{Mark, When, clean, count};
use crate::acl::PolicyError;
use crate::control::service::{AuthKeyView, NodeView, UserView};
use crate::model::Role;

/// Which room of the rail is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Start,
    Devices,
    Approvals,
    People,
    Access,
    Simulator,
    Keys,
    /// Outside all rooms: sign-in, errors.
    None,
}

/// A sentence above the page: what was done, or what stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) tone: &'static str,
    pub(super) text: String,
}

impl Notice {
    /// Something went well.
    pub(super) fn good(text: impl Into<String>) -> Self {
        Self { tone: "good", text: text.into() }
    }

    /// Something was refused; nothing was changed.
    pub(super) fn danger(text: impl Into<String>) -> Self {
        Self { tone: "danger", text: text.into() }
    }
}

/// What stands around every page.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) title: String,
    pub(super) room: Room,
    /// Where this person signed in from, and when; `None` for a stranger.
    pub(super) who: Option<(String, When)>,
    pub(super) form_token: String,
    pub(super) waiting: usize,
    pub(super) notice: Option<Notice>,
    pub(super) style: &'static str,
    pub(super) icon: &'static str,
    /// The command that does the same.
    pub(super) command: String,
}

impl Frame {
    /// A page for nobody in particular.
    pub(super) fn stranger(title: &str) -> Self {
        Self {
            title: title.to_owned(),
            room: Room::None,
            who: None,
            form_token: String::new(),
            waiting: 0,
            notice: None,
            style: super::assets::style_url(),
            icon: super::assets::icon_url(),
            command: String::new(),
        }
    }

    /// A page of somebody signed in, with `waiting` logins to decide.
    pub(super) fn new(
        session: &Session,
        room: Room,
        title: &str,
        waiting: usize,
        now: DateTime<Utc>,
    ) -> Self {
        Self {
            room,
            who: Some((session.signed.from.to_canonical().to_string(), When::new(session.signed.at, now))),
            form_token: session.form_token(),
            waiting,
            ..Self::stranger(title)
        }
    }

    /// With the command line that does the same.
    pub(super) fn command(mut self, command: impl Into<String>) -> Self {
        self.command = command.into();
        self
    }

    /// With a sentence on top.
    pub(super) fn notice(mut self, notice: Option<Notice>) -> Self {
        self.notice = notice.or(self.notice);
        self
    }
}

/// A plain sentence with a way on.
#[derive(Template)]
#[template(path = "message.html")]
pub(super) struct Message {
    pub(super) frame: Frame,
    pub(super) text: String,
    /// A command to type, when that is the way on.
    pub(super) type_this: String,
    /// Address and words of a link.
    pub(super) link: Option<(String, &'static str)>,
    /// The bare code, last and small.
    pub(super) code: u16,
}

/// Sign-in.
#[derive(Template)]
#[template(path = "login.html")]
pub(super) struct Login {
    pub(super) frame: Frame,
    /// A token that may be used now.
    pub(super) token: Option<String>,
}

/// What needs attention, and where it is mended when that is in the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Warning {
    pub(super) text: String,
    /// Address and words.
    pub(super) link: Option<(String, &'static str)>,
}

impl Warning {
    /// Something to mend elsewhere.
    pub(super) fn plain(text: &str) -> Self {
        Self { text: clean(text, 600), link: None }
    }

    /// Something to mend behind a link.
    pub(super) fn linked(text: &str, url: String, words: &'static str) -> Self {
        Self { link: Some((url, words)), ..Self::plain(text) }
    }
}

/// Tests shown on Start.
const MAX_BROKEN: usize = 5;

/// What is wrong with the policy in force, each with the way to its line.
pub(super) fn policy_warnings(fault: Option<&str>, broken: &[PolicyError]) -> Vec<Warning> {
    let unread = |why| Warning::linked(why, "/access".to_owned(), "Mend the policy");
    let line = |test: &PolicyError| {
        let text = format!("A test of the policy does not hold, line {}: {}", test.line, test.message);
        Warning::linked(&text, format!("/access?line={0}#L{0}", test.line), "Look at the test")
    };
    let mut out: Vec<Warning> = fault.map(unread).into_iter().collect();
    out.extend(broken.iter().take(MAX_BROKEN).map(line));
    if broken.len() > MAX_BROKEN {
        let text = format!("{} more tests of the policy do not hold.", broken.len() - MAX_BROKEN);
        out.push(Warning::linked(&text, "/access".to_owned(), "See all"));
    }
    out
}

/// Start.
#[derive(Template)]
#[template(path = "start.html")]
pub(super) struct Start {
    pub(super) frame: Frame,
    pub(super) healthy: bool,
    pub(super) sentence: String,
    pub(super) warnings: Vec<Warning>,
    pub(super) facts: Vec<(String, String)>,
    pub(super) counts: Vec<(usize, &'static str, &'static str)>,
    pub(super) join_url: String,
    pub(super) users: Vec<String>,
    pub(super) once: String,
}

/// One sentence that states the state of everything.
pub(super) fn health_sentence(nodes: &[NodeView], waiting: usize, warnings: usize) -> String {
    let online = nodes.iter().filter(|n| n.online).count();
    let mut out = match nodes.len() {
        0 => "The server runs and waits for its first device".to_owned(),
        n => format!("{}, {online} online", count(n, "device")),
    };
    if waiting > 0 {
        out.push_str(&format!(
            "; {} for approval",
            match waiting {
                1 => "1 waits".to_owned(),
                n => format!("{n} wait"),
            }
        ));
    }
    out.push_str(&match warnings {
        0 => ". Nothing needs attention.".to_owned(),
        1 => ". One thing needs attention.".to_owned(),
        n => format!(". {n} things need attention."),
    });
    out
}

/// Key expiries within a week and past, as warnings.
pub(super) fn expiry_warnings(nodes: &[NodeView], now: DateTime<Utc>) -> Vec<String> {
    let soon = nodes
        .iter()
        .filter(|n| !n.expired && n.expires.is_some_and(|at| at < now + chrono::Duration::days(7)));
    let mut names: Vec<String> = soon.map(|n| clean(&n.name, 40)).collect();
    if names.is_empty() {
        return Vec::new();
    }
    let total = names.len();
    names.truncate(5);
    let more = if total > 5 { format!(" and {} more", total - 5) } else { String::new() };
    vec![format!(
        "The key of {}{more} expires within a week: log in again on the device (tailscale up --force-reauth).",
        names.join(", ")
    )]
}

/// What cannot be undone, named before it is done.
#[derive(Template)]
#[template(path = "confirm.html")]
pub(super) struct Confirm {
    pub(super) frame: Frame,
    pub(super) sentence: String,
    pub(super) consequences: Vec<String>,
    /// Where the form goes.
    pub(super) action: String,
    pub(super) button: &'static str,
    /// What must be typed; empty when a button is enough.
    pub(super) type_this: String,
    pub(super) back: String,
}

/// Login names for a choice, as they are: they are sent back.
pub(super) fn user_names(users: &[UserView]) -> Vec<String> {
    users.iter().map(|u| u.name.clone()).collect()
}

/// A person in a list.
pub(super) struct PersonRow {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) nodes: usize,
    pub(super) created: When,
}

/// What a role means, for people.
pub(super) const fn role_words(role: Role) -> &'static str {
    match role {
        Role::Owner => "owner: everything; there has to be one",
        Role::Admin => "admin: everything but making owners",
        Role::NetworkAdmin => "network-admin: access rules, DNS and routes",
        Role::ItAdmin => "it-admin: devices and people",
        Role::BillingAdmin => "billing-admin: only a name for rules, there is no billing",
        Role::Auditor => "auditor: reads everything, changes nothing",
        Role::Member => "member: own devices only",
    }
}

/// People.
#[derive(Template)]
#[template(path = "people.html")]
pub(super) struct People {
    pub(super) frame: Frame,
    pub(super) sentence: String,
    pub(super) rows: Vec<PersonRow>,
    /// All roles with what they mean.
    pub(super) roles: [(Role, &'static str); 7],
    pub(super) name_field: String,
}

impl People {
    pub(super) fn new(frame: Frame, users: &[UserView], now: DateTime<Utc>) -> Self {
        let row = |u: &UserView| PersonRow {
            id: u.id.0,
            name: clean(&u.name, 80),
            role: u.role,
            nodes: u.nodes,
            created: When::new(u.created, now),
        };
        Self {
            sentence: match users.len() {
                0 => "Nobody yet. Devices belong to a user: make the first one.".to_owned(),
                1 => "1 user owns the devices here.".to_owned(),
                n => format!("{n} users own the devices here."),
            },
            rows: users.iter().map(row).collect(),
            roles: Role::ALL.map(|role| (role, role_words(role))),
            name_field: String::new(),
            frame,
        }
    }
}

/// A key in a list.
pub(super) struct KeyRow {
    pub(super) id: String,
    pub(super) mark: Mark,
    pub(super) user: String,
    pub(super) kinds: Vec<&'static str>,
    pub(super) tags: Vec<String>,
    pub(super) uses: u64,
    pub(super) created: When,
    pub(super) expires: When,
    pub(super) usable: bool,
}

impl KeyRow {
    pub(super) fn new(key: &AuthKeyView, now: DateTime<Utc>) -> Self {
        let mark = match key.state {
            "usable" => Mark::new("good", "usable", "Devices can join with it"),
            "used" => Mark::new("quiet", "used", "It was for one device and has been used"),
            "expired" => Mark::new("quiet", "expired", "Its time is over"),
            "revoked" => Mark::new("danger", "revoked", "An admin revoked it"),
            other => Mark::new("quiet", other, ""),
        };
        let mut kinds = vec![if key.reusable { "reusable" } else { "single use" }];
        if key.ephemeral {
            kinds.push("ephemeral");
        }
        Self {
            id: key.id.to_string(),
            mark,
            user: clean(&key.user, 80),
            kinds,
            tags: key.tags.iter().take(8).map(|t| clean(t.as_str(), 40)).collect(),
            uses: key.uses,
            created: When::new(key.created, now),
            expires: When::new(key.expires, now),
            usable: key.state == "usable",
        }
    }
}

/// What was typed into the form for a new key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct KeyForm {
    pub(super) user: String,
    pub(super) reusable: bool,
    pub(super) ephemeral: bool,
    pub(super) tags: String,
    pub(super) hours: String,
}

/// Lifetimes to choose from: hours and words. 90 days is the most a key may live.
pub(super) const LIFETIMES: [(&str, &str); 5] =
    [("1", "1 hour"), ("24", "24 hours"), ("168", "7 days"), ("720", "30 days"), ("2160", "90 days")];

/// Keys.
#[derive(Template)]
#[template(path = "keys.html")]
pub(super) struct Keys {
    pub(super) frame: Frame,
    pub(super) sentence: String,
    pub(super) rows: Vec<KeyRow>,
    pub(super) more: usize,
    pub(super) users: Vec<String>,
    pub(super) form: KeyForm,
    pub(super) lifetimes: [(&'static str, &'static str); 5],
    pub(super) once: String,
    pub(super) all: bool,
}

impl Keys {
    pub(super) fn new(
        frame: Frame,
        keys: &[AuthKeyView],
        users: &[UserView],
        form: KeyForm,
        once: String,
        all: bool,
        now: DateTime<Utc>,
    ) -> Self {
        let usable = keys.iter().filter(|k| k.state == "usable").count();
        let shown: Vec<&AuthKeyView> = keys.iter().filter(|k| all || k.state == "usable").collect();
        Self {
            sentence: match usable {
                0 => "No key can be used now.".to_owned(),
                n => format!("{} can be used now.", count(n, "key")),
            },
            rows: shown.iter().take(200).map(|k| KeyRow::new(k, now)).collect(),
            more: keys.len().saturating_sub(shown.len().min(200)),
            users: user_names(users),
            form,
            lifetimes: LIFETIMES,
            once,
            all,
            frame,
        }
    }
}

/// A key just made: the only time its secret is seen.
#[derive(Template)]
#[template(path = "made.html")]
pub(super) struct Made {
    pub(super) frame: Frame,
    pub(super) secret: String,
    pub(super) row: KeyRow,
    pub(super) join_url: String,
}
