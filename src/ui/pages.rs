//! The pages as values: each struct is one template with everything it shows, built from the
//! service's views and a moment. Pure, so that hostile data can be tried without a server.

use askama::Template;
use chrono::{DateTime, Utc};

use super::editor::{DiffLine, Fault};
use super::session::Session;
use super::text::{Mark, When, clean, count, or_dash, shell};
use crate::acl::{AccessChange, AccessDiff};
use crate::control::service::{AuthKeyView, LoginView, NodeView, UserView};
use crate::model::PolicyVersion;

/// Which room of the rail is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Start,
    Devices,
    Approvals,
    People,
    Access,
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
    pub(super) fn new(session: &Session, room: Room, title: &str, waiting: usize, now: DateTime<Utc>) -> Self {
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

/// Start.
#[derive(Template)]
#[template(path = "start.html")]
pub(super) struct Start {
    pub(super) frame: Frame,
    pub(super) healthy: bool,
    pub(super) sentence: String,
    pub(super) warnings: Vec<String>,
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
        out.push_str(&format!("; {} for approval", match waiting {
            1 => "1 waits".to_owned(),
            n => format!("{n} wait"),
        }));
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

/// The state of a node in a word.
pub(super) fn node_mark(node: &NodeView) -> Mark {
    if node.expired {
        Mark::new("danger", "expired", "Its key has expired: log in again on the device")
    } else if node.online {
        Mark::new("good", "online", "Connected to this server")
    } else {
        Mark::new("quiet", "offline", "Not connected to this server")
    }
}

/// A device in a list.
pub(super) struct DeviceRow {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) full: String,
    pub(super) mark: Mark,
    pub(super) seen: Option<When>,
    pub(super) owner: String,
    pub(super) tags: Vec<String>,
    pub(super) more_tags: usize,
    pub(super) ipv4: String,
    pub(super) ipv6: String,
    pub(super) system: String,
    pub(super) routes_waiting: usize,
    pub(super) ephemeral: bool,
}

impl DeviceRow {
    pub(super) fn new(node: &NodeView, now: DateTime<Utc>) -> Self {
        let shown = 3;
        Self {
            id: node.id.0,
            name: clean(&node.name, 63),
            full: clean(&node.fqdn, 255),
            mark: node_mark(node),
            seen: node.last_seen.filter(|_| !node.online).map(|at| When::new(at, now)),
            owner: node.user.as_deref().map(|u| clean(u, 80)).unwrap_or_default(),
            tags: node.tags.iter().take(shown).map(|t| clean(t.as_str(), 40)).collect(),
            more_tags: node.tags.len().saturating_sub(shown),
            ipv4: node.ipv4.to_string(),
            ipv6: node.ipv6.to_string(),
            system: system(&node.os, &node.version),
            routes_waiting: waiting_routes(node),
            ephemeral: node.ephemeral,
        }
    }
}

/// How many routes a node offers that nobody approved.
fn waiting_routes(node: &NodeView) -> usize {
    node.advertised_routes.iter().filter(|r| !node.approved_routes.contains(r)).count()
}

/// OS and client version in one cut line.
fn system(os: &str, version: &str) -> String {
    // Clients append the commit to their version; the number says enough.
    let version = version.split(['-', '+']).next().unwrap_or("");
    or_dash(clean(format!("{} {}", clean(os, 24), clean(version, 16)).trim(), 42))
}

/// Filters of the device list as they stand in the URL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct DeviceFilter {
    pub(super) q: String,
    pub(super) state: String,
    pub(super) page: usize,
}

/// The states one can filter by.
const STATES: [(&str, &str); 5] = [
    ("", "All"),
    ("online", "Online"),
    ("offline", "Offline"),
    ("expired", "Expired"),
    ("routes", "Routes to approve"),
];

/// Rows on one page of a list.
const PAGE: usize = 50;

impl DeviceFilter {
    fn in_state(node: &NodeView, state: &str) -> bool {
        match state {
            "online" => node.online && !node.expired,
            "offline" => !node.online && !node.expired,
            "expired" => node.expired,
            "routes" => waiting_routes(node) > 0,
            _ => true,
        }
    }

    fn matches(&self, node: &NodeView) -> bool {
        let q = self.q.trim().to_lowercase();
        let has = |text: &str| text.to_lowercase().contains(&q);
        q.is_empty()
            || has(&node.fqdn)
            || has(&node.hostname)
            || has(&node.os)
            || node.user.as_deref().is_some_and(has)
            || node.tags.iter().any(|t| has(t.as_str()))
            || has(&node.ipv4.to_string())
            || has(&node.ipv6.to_string())
            || node.id.0.to_string() == q
    }

    /// The address of this list with another state and page.
    fn url(&self, state: &str, page: usize) -> String {
        use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
        let mut parts = Vec::new();
        if !self.q.is_empty() {
            parts.push(format!("q={}", utf8_percent_encode(&self.q, NON_ALPHANUMERIC)));
        }
        if !state.is_empty() {
            parts.push(format!("state={}", utf8_percent_encode(state, NON_ALPHANUMERIC)));
        }
        if page > 1 {
            parts.push(format!("page={page}"));
        }
        if parts.is_empty() { "/devices".to_owned() } else { format!("/devices?{}", parts.join("&")) }
    }
}

/// A choice of a filter: address, word, how many, whether chosen.
pub(super) struct Chip {
    pub(super) url: String,
    pub(super) word: &'static str,
    pub(super) n: usize,
    pub(super) chosen: bool,
}

/// Devices.
#[derive(Template)]
#[template(path = "devices.html")]
pub(super) struct Devices {
    pub(super) frame: Frame,
    pub(super) sentence: String,
    pub(super) q: String,
    pub(super) state: String,
    pub(super) chips: Vec<Chip>,
    pub(super) rows: Vec<DeviceRow>,
    pub(super) any: bool,
    pub(super) range: String,
    pub(super) previous: Option<String>,
    pub(super) next: Option<String>,
    pub(super) join_url: String,
}

impl Devices {
    pub(super) fn new(frame: Frame, nodes: &[NodeView], filter: &DeviceFilter, join_url: &str, now: DateTime<Utc>) -> Self {
        let online = nodes.iter().filter(|n| n.online).count();
        let found: Vec<&NodeView> = nodes.iter().filter(|n| filter.matches(n)).collect();
        let chip = |(state, word): &(&'static str, &'static str)| Chip {
            url: filter.url(state, 1),
            word,
            n: found.iter().filter(|n| DeviceFilter::in_state(n, state)).count(),
            chosen: filter.state == *state,
        };
        let chips = STATES.iter().map(chip).filter(|c| c.n > 0 || c.chosen || c.word != "Routes to approve").collect();
        let mut shown: Vec<&NodeView> =
            found.iter().copied().filter(|n| DeviceFilter::in_state(n, &filter.state)).collect();
        shown.sort_by(|a, b| a.name.cmp(&b.name).then(a.id.cmp(&b.id)));
        let pages = shown.len().div_ceil(PAGE).max(1);
        let page = filter.page.clamp(1, pages);
        let first = (page - 1) * PAGE;
        let rows: Vec<DeviceRow> = shown.iter().skip(first).take(PAGE).map(|n| DeviceRow::new(n, now)).collect();
        Self {
            sentence: match nodes.len() {
                0 => "No devices yet.".to_owned(),
                n => format!("{}, {online} online.", count(n, "device")),
            },
            q: clean(&filter.q, 100),
            state: clean(&filter.state, 20),
            chips,
            any: !nodes.is_empty(),
            range: format!("{}–{} of {}", (first + 1).min(shown.len()), first + rows.len(), shown.len()),
            previous: (page > 1).then(|| filter.url(&filter.state, page - 1)),
            next: (page < pages).then(|| filter.url(&filter.state, page + 1)),
            rows,
            join_url: join_url.to_owned(),
            frame,
        }
    }
}

/// A route of a device and what was decided about it.
pub(super) struct RouteRow {
    pub(super) prefix: String,
    pub(super) offered: bool,
    pub(super) approved: bool,
    pub(super) exit: bool,
}

/// One device.
#[derive(Template)]
#[template(path = "device.html")]
pub(super) struct Device {
    pub(super) frame: Frame,
    pub(super) row: DeviceRow,
    pub(super) facts: Vec<(&'static str, String)>,
    pub(super) created: When,
    pub(super) expires: Option<When>,
    pub(super) routes: Vec<RouteRow>,
    /// What stands in the rename field.
    pub(super) name_field: String,
    /// What stands in the tags field.
    pub(super) tags_field: String,
}

impl Device {
    pub(super) fn new(frame: Frame, node: &NodeView, now: DateTime<Utc>) -> Self {
        let mut prefixes: Vec<_> = node.advertised_routes.iter().chain(&node.approved_routes).copied().collect();
        prefixes.sort();
        prefixes.dedup();
        let endpoints: Vec<String> = node.endpoints.iter().take(12).map(ToString::to_string).collect();
        let facts = vec![
            ("Full name", clean(&node.fqdn, 255)),
            ("IPv4", node.ipv4.to_string()),
            ("IPv6", node.ipv6.to_string()),
            ("Calls itself", or_dash(clean(&node.hostname, 64))),
            ("System", or_dash(clean(&node.os, 80))),
            ("Client version", or_dash(clean(&node.version, 80))),
            ("Home relay region", if node.home_derp == 0 { "not known yet".to_owned() } else { node.home_derp.to_string() }),
            ("Endpoints", or_dash(endpoints.join(", "))),
            ("Node key", node.key.short()),
            ("Machine key", node.machine.short()),
            ("Id", node.id.to_string()),
        ];
        Self {
            row: DeviceRow::new(node, now),
            facts,
            created: When::new(node.created, now),
            expires: node.expires.map(|at| When::new(at, now)),
            routes: prefixes
                .into_iter()
                .map(|p| RouteRow {
                    prefix: p.to_string(),
                    offered: node.advertised_routes.contains(&p),
                    approved: node.approved_routes.contains(&p),
                    exit: p.prefix_len() == 0,
                })
                .collect(),
            name_field: clean(&node.name, 63),
            tags_field: node.tags.iter().map(|t| t.as_str().to_owned()).collect::<Vec<_>>().join(" "),
            frame,
        }
    }
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

/// A waiting login in a list.
pub(super) struct LoginRow {
    pub(super) id: String,
    pub(super) hostname: String,
    pub(super) system: String,
    pub(super) key: String,
    pub(super) asked: When,
    pub(super) lapses: When,
}

impl LoginRow {
    pub(super) fn new(login: &LoginView, now: DateTime<Utc>) -> Self {
        Self {
            id: login.id.0.clone(),
            hostname: or_dash(clean(&login.hostname, 64)),
            system: system(&login.os, &login.version),
            key: login.key.short(),
            asked: When::new(login.created, now),
            lapses: When::new(login.expires, now),
        }
    }
}

/// Approvals, or one of them.
#[derive(Template)]
#[template(path = "approvals.html")]
pub(super) struct Approvals {
    pub(super) frame: Frame,
    pub(super) sentence: String,
    pub(super) rows: Vec<LoginRow>,
    pub(super) more: usize,
    pub(super) users: Vec<String>,
    /// Only one login is shown: the one a link named.
    pub(super) single: bool,
    /// Devices that offer routes nobody approved: id, name, how many.
    pub(super) routes: Vec<(u64, String, usize)>,
}

/// Waiting logins shown at once.
const MAX_LOGINS: usize = 100;

impl Approvals {
    pub(super) fn new(frame: Frame, logins: &[LoginView], nodes: &[NodeView], users: &[UserView], now: DateTime<Utc>) -> Self {
        let routes: Vec<_> = nodes
            .iter()
            .filter(|n| waiting_routes(n) > 0)
            .take(MAX_LOGINS)
            .map(|n| (n.id.0, clean(&n.name, 63), waiting_routes(n)))
            .collect();
        let sentence = match (logins.len(), routes.len()) {
            (0, 0) => "Nothing waits for you.".to_owned(),
            (0, n) => format!("No device waits; {} routes nobody approved.", if n == 1 { "1 device offers".to_owned() } else { format!("{n} devices offer") }),
            (1, _) => "1 device waits for a yes or no.".to_owned(),
            (n, _) => format!("{n} devices wait for a yes or no."),
        };
        Self {
            sentence,
            rows: logins.iter().take(MAX_LOGINS).map(|l| LoginRow::new(l, now)).collect(),
            more: logins.len().saturating_sub(MAX_LOGINS),
            users: user_names(users),
            single: false,
            routes,
            frame,
        }
    }

    /// The page an AuthURL opens for an admin.
    pub(super) fn one(frame: Frame, login: &LoginView, users: &[UserView], now: DateTime<Utc>) -> Self {
        Self {
            sentence: "Compare the name and the key with what the device shows before you let it in.".to_owned(),
            rows: vec![LoginRow::new(login, now)],
            more: 0,
            users: user_names(users),
            single: true,
            routes: Vec::new(),
            frame,
        }
    }
}

/// Login names for a choice, as they are: they are sent back.
pub(super) fn user_names(users: &[UserView]) -> Vec<String> {
    users.iter().map(|u| u.name.clone()).collect()
}

/// A person in a list.
pub(super) struct PersonRow {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) nodes: usize,
    pub(super) created: When,
}

/// People.
#[derive(Template)]
#[template(path = "people.html")]
pub(super) struct People {
    pub(super) frame: Frame,
    pub(super) sentence: String,
    pub(super) rows: Vec<PersonRow>,
    pub(super) name_field: String,
}

impl People {
    pub(super) fn new(frame: Frame, users: &[UserView], now: DateTime<Utc>) -> Self {
        let row = |u: &UserView| PersonRow {
            id: u.id.0,
            name: clean(&u.name, 80),
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
    pub(super) fn new(frame: Frame, keys: &[AuthKeyView], users: &[UserView], form: KeyForm, once: String, all: bool, now: DateTime<Utc>) -> Self {
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

/// One gain or loss in words.
pub(super) struct ChangeRow {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) what: String,
}

/// Who gains and who loses.
#[derive(Default)]
pub(super) struct DiffView {
    pub(super) gained: Vec<ChangeRow>,
    pub(super) lost: Vec<ChangeRow>,
    pub(super) more_gained: u64,
    pub(super) more_lost: u64,
    pub(super) sentence: String,
}

impl DiffView {
    pub(super) fn new(diff: &AccessDiff, nodes: &[NodeView]) -> Self {
        const SHOWN: usize = 100;
        let names: std::collections::BTreeMap<_, _> = nodes.iter().map(|n| (n.id, clean(&n.name, 63))).collect();
        let name = |id| names.get(&id).cloned().unwrap_or_else(|| format!("node {id}"));
        let rows = |list: &[AccessChange]| -> Vec<ChangeRow> {
            let row = |c: &AccessChange| ChangeRow { from: name(c.from), to: name(c.to), what: clean(&c.what, 200) };
            list.iter().take(SHOWN).map(row).collect()
        };
        let (gained, lost) = (rows(&diff.gained), rows(&diff.lost));
        let pairs = |n: u64| if n == 1 { "1 pair of devices".to_owned() } else { format!("{n} pairs of devices") };
        Self {
            sentence: match (diff.gained_total, diff.lost_total) {
                (0, 0) => "Nobody gains or loses access.".to_owned(),
                (g, 0) => format!("{} gain access; nobody loses any.", pairs(g)),
                (0, l) => format!("{} lose access.", pairs(l)),
                (g, l) => format!("{} lose access; {} gain some.", pairs(l), pairs(g)),
            },
            more_gained: diff.gained_total.saturating_sub(gained.len() as u64),
            more_lost: diff.lost_total.saturating_sub(lost.len() as u64),
            gained,
            lost,
        }
    }
}

/// A stored policy in the history.
pub(super) struct VersionRow {
    pub(super) version: u64,
    pub(super) author: String,
    pub(super) created: When,
}

impl VersionRow {
    pub(super) fn new(policy: &PolicyVersion, now: DateTime<Utc>) -> Self {
        Self { version: policy.version, author: clean(&policy.author, 80), created: When::new(policy.created, now) }
    }
}

/// Access.
#[derive(Template)]
#[template(path = "access.html")]
pub(super) struct Access {
    pub(super) frame: Frame,
    pub(super) sentence: String,
    /// What stands in the editor.
    pub(super) text: String,
    /// The version the editor started from.
    pub(super) expect: u64,
    pub(super) rows: usize,
    pub(super) faults: Vec<Fault>,
    pub(super) warnings: Vec<Fault>,
    pub(super) diff: Option<DiffView>,
    /// Ask before access is taken away.
    pub(super) confirm: bool,
    /// Somebody stored another policy meanwhile: from theirs to this draft.
    pub(super) race: Option<Vec<DiffLine>>,
    pub(super) history: Vec<VersionRow>,
}

impl Access {
    pub(super) fn new(frame: Frame, current: &PolicyVersion, text: String, history: Vec<VersionRow>) -> Self {
        Self {
            sentence: match current.version {
                0 => "No policy was stored yet: all members reach all devices.".to_owned(),
                v => format!("Version {v} is in force."),
            },
            expect: current.version,
            rows: text.lines().count().clamp(12, 32),
            text,
            faults: Vec::new(),
            warnings: Vec::new(),
            diff: None,
            confirm: false,
            race: None,
            history,
            frame,
        }
    }
}

/// A stored policy, to look at.
#[derive(Template)]
#[template(path = "version.html")]
pub(super) struct Version {
    pub(super) frame: Frame,
    pub(super) row: VersionRow,
    pub(super) text: String,
    pub(super) current: bool,
    /// From this version to the one in force.
    pub(super) since: Vec<DiffLine>,
}

/// A node as an argument of a command: its label when that is one, else its id.
pub(super) fn node_argument(node: &NodeView) -> String {
    if shell(&node.name) == node.name { node.name.clone() } else { node.id.to_string() }
}
