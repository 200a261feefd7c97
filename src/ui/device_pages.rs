//! Devices and approvals as values for their templates: rows, filters that live in the URL, facts,
//! routes, waiting logins. Pure.

use askama::Template;
use chrono::{DateTime, Utc};

use super::pages::{Frame, Room, user_names};
use super::text::{Mark, When, clean, count, or_dash, shell};
use crate::control::explaining::Given;
use crate::control::service::{LoginView, NodeView, UserView};

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
    pub(super) fn new(
        frame: Frame,
        nodes: &[NodeView],
        filter: &DeviceFilter,
        join_url: &str,
        now: DateTime<Utc>,
    ) -> Self {
        let online = nodes.iter().filter(|n| n.online).count();
        let found: Vec<&NodeView> = nodes.iter().filter(|n| filter.matches(n)).collect();
        let chip = |(state, word): &(&'static str, &'static str)| Chip {
            url: filter.url(state, 1),
            word,
            n: found.iter().filter(|n| DeviceFilter::in_state(n, state)).count(),
            chosen: filter.state == *state,
        };
        let chips = STATES
            .iter()
            .map(chip)
            .filter(|c| c.n > 0 || c.chosen || c.word != "Routes to approve")
            .collect();
        let mut shown: Vec<&NodeView> =
            found.iter().copied().filter(|n| DeviceFilter::in_state(n, &filter.state)).collect();
        shown.sort_by(|a, b| a.name.cmp(&b.name).then(a.id.cmp(&b.id)));
        let pages = shown.len().div_ceil(PAGE).max(1);
        let page = filter.page.clamp(1, pages);
        let first = (page - 1) * PAGE;
        let rows: Vec<DeviceRow> =
            shown.iter().skip(first).take(PAGE).map(|n| DeviceRow::new(n, now)).collect();
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
    /// Attributes and capabilities by the policy, with their values.
    pub(super) attributes: Vec<(String, String)>,
    /// Its SSH rules in words.
    pub(super) ssh: Vec<String>,
    /// Devices that see it.
    pub(super) peers: usize,
    /// What stands in the rename field.
    pub(super) name_field: String,
    /// What stands in the tags field.
    pub(super) tags_field: String,
}

impl Device {
    pub(super) fn new(frame: Frame, node: &NodeView, given: &Given, now: DateTime<Utc>) -> Self {
        let mut prefixes: Vec<_> =
            node.advertised_routes.iter().chain(&node.approved_routes).copied().collect();
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
            (
                "Home relay region",
                if node.home_derp == 0 { "not known yet".to_owned() } else { node.home_derp.to_string() },
            ),
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
            attributes: given.attributes.iter().map(|(n, v)| (clean(n, 120), clean(v, 200))).collect(),
            ssh: given.ssh.iter().map(|rule| clean(rule, 400)).collect(),
            peers: given.peers,
            name_field: clean(&node.name, 63),
            tags_field: node.tags.iter().map(|t| t.as_str().to_owned()).collect::<Vec<_>>().join(" "),
            frame,
        }
    }
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
    pub(super) fn new(
        frame: Frame,
        logins: &[LoginView],
        nodes: &[NodeView],
        users: &[UserView],
        now: DateTime<Utc>,
    ) -> Self {
        let routes: Vec<_> = nodes
            .iter()
            .filter(|n| waiting_routes(n) > 0)
            .take(MAX_LOGINS)
            .map(|n| (n.id.0, clean(&n.name, 63), waiting_routes(n)))
            .collect();
        let sentence = match (logins.len(), routes.len()) {
            (0, 0) => "Nothing waits for you.".to_owned(),
            (0, n) => format!(
                "No device waits; {} routes nobody approved.",
                if n == 1 { "1 device offers".to_owned() } else { format!("{n} devices offer") }
            ),
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
            sentence: "Compare the name and the key with what the device shows before you let it in."
                .to_owned(),
            rows: vec![LoginRow::new(login, now)],
            more: 0,
            users: user_names(users),
            single: true,
            routes: Vec::new(),
            frame,
        }
    }
}

/// A node as an argument of a command: its label when that is one, else its id.
pub(super) fn node_argument(node: &NodeView) -> String {
    if shell(&node.name) == node.name { node.name.clone() } else { node.id.to_string() }
}
