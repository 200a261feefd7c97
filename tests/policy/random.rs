//! Random policies, as text, and random worlds: people with roles and domains, tagged nodes, routers,
//! several nodes with one route, exit nodes, crowds of one person's devices. The same seed gives the same.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde_json::{Map, Value, json};
use tsd::acl::ast::AttrValue;
use tsd::acl::{World, WorldChange, WorldNode, WorldUser};
use tsd::keys::{NodeId, UserId};
use tsd::model::{Owner, Role, Tag, Tags};

/// A deterministic source of choices.
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }

    pub(crate) fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Some of the list, at least one, without repeats.
    fn some<'a, T>(&mut self, from: &'a [T], most: usize) -> Vec<&'a T> {
        let count = 1 + self.below(most);
        let mut left: Vec<&T> = from.iter().collect();
        (0..count.min(from.len())).map(|_| left.swap_remove(self.below(left.len()))).collect()
    }
}

const PEOPLE: [&str; 4] = ["odin@example.com", "thor@example.org", "freya@example.com", "dave"];
const TAGS: [&str; 5] = ["tag:a", "tag:b", "tag:c", "tag:d", "tag:e"];
const GROUPS: [&str; 3] = ["group:g", "group:h", "group:none"];
const ROUTES: [&str; 6] =
    ["10.33.0.0/16", "10.33.7.0/24", "10.0.0.0/8", "192.168.1.0/24", "172.20.0.0/14", "fd00:33::/48"];

/// Literals none of which is in part internet and in part not.
pub(crate) const LITERALS: [&str; 18] = [
    "100.64.0.2",
    "100.64.0.3",
    "fd7a:115c:a1e0::2",
    "100.64.0.0/30",
    "100.64.0.4/31",
    "100.64.0.2-100.64.0.6",
    "100.64.0.0/10",
    "fd7a:115c:a1e0::/126",
    "10.33.7.9",
    "10.33.0.0/16",
    "10.33.7.0/24",
    "10.0.0.0/8",
    "192.168.1.0/25",
    "192.168.1.200-192.168.2.9",
    "fd00:33::/64",
    "8.8.8.8",
    "8.8.0.0/16",
    "2606:4700::/32",
];
/// Literals that are.
pub(crate) const WIDE: [&str; 4] = ["0.0.0.0/0", "::/0", "9.0.0.0-11.0.0.255", "8.0.0.0/6"];
/// Names with which a rule for `autogroup:self` may begin.
const SELF_SOURCES: [&str; 10] = [
    "odin@example.com",
    "thor@example.org",
    "dave@",
    "group:g",
    "group:h",
    "autogroup:member",
    "autogroup:member",
    "autogroup:admin",
    "autogroup:owner",
    "autogroup:network-admin",
];
const PORTS: [&str; 9] =
    ["*", "*", "22", "80-443", "22,80", "8080-9090", "1-1023", "65535", "443,80-81,22-8080"];
pub(crate) const PORTS_TO_TRY: [u16; 16] =
    [1, 21, 22, 23, 79, 80, 81, 82, 443, 444, 1023, 1024, 8080, 9090, 9091, 65535];

fn user(name: &str) -> String {
    if name.contains('@') { name.to_owned() } else { format!("{name}@") }
}

/// A world of 4 to 12 nodes.
pub(crate) fn world(draw: &mut Draw) -> World {
    let mut world = World {
        domains: ["example.com".to_owned()].into(),
        auto_update: draw.percent(50),
        ..World::default()
    };
    for (id, name) in (1..).zip(PEOPLE) {
        let user = WorldUser { id: UserId(id), name: name.to_owned(), role: *draw.pick(&Role::ALL) };
        world.users.insert(user.id, user);
    }
    let crowd = draw.percent(25);
    let mut id = 0;
    for number in 1..=4 + draw.below(9) {
        id += 1 + draw.below(3) as u64;
        let node = node(draw, id, number as u16, crowd);
        world.nodes.insert(node.id, node);
    }
    world
}

fn node(draw: &mut Draw, id: u64, number: u16, crowd: bool) -> WorldNode {
    let mut node = WorldNode {
        id: NodeId(id),
        name: format!("n{id}"),
        owner: Owner::User(UserId(1)),
        ipv4: Ipv4Addr::from(0x6440_0000 + u32::from(number)),
        ipv6: Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, number),
        served_routes: Vec::new(),
        attributes: BTreeMap::new(),
    };
    if !(crowd && draw.percent(60)) {
        node.owner = owner(draw);
    }
    node.served_routes = routes(draw);
    node.attributes = attributes(draw);
    node
}

fn owner(draw: &mut Draw) -> Owner {
    if draw.percent(45) {
        return Owner::User(UserId(1 + draw.below(PEOPLE.len()) as u64));
    }
    let tags = draw.some(&TAGS, 2).into_iter().map(|t| Tag::parse(t).unwrap());
    Owner::Tags(Tags::new(tags).unwrap())
}

fn routes(draw: &mut Draw) -> Vec<IpNet> {
    let mut texts: Vec<&str> =
        if draw.percent(40) { draw.some(&ROUTES, 2).into_iter().copied().collect() } else { Vec::new() };
    if draw.percent(20) {
        texts.extend(["0.0.0.0/0", "::/0"]);
    }
    let mut routes: Vec<IpNet> = texts.iter().map(|t| t.parse().unwrap()).collect();
    routes.sort_unstable();
    routes
}

fn attributes(draw: &mut Draw) -> BTreeMap<String, AttrValue> {
    let mut out = BTreeMap::new();
    if draw.percent(90) {
        let os = draw.pick(&["linux", "macos", "windows"]);
        out.insert("node:os".to_owned(), AttrValue::Text((*os).to_owned()));
    }
    if draw.percent(60) {
        out.insert("custom:level".to_owned(), AttrValue::Number(1.0 + draw.below(5) as f64));
    }
    if draw.percent(50) {
        out.insert("custom:managed".to_owned(), AttrValue::Bool(draw.percent(50)));
    }
    out
}

/// One to three things that happen to a world.
pub(crate) fn change(draw: &mut Draw, world: &World) -> WorldChange {
    let mut change = WorldChange::default();
    // Those who went come back, with what they had of devices.
    for (id, name) in (1..).map(UserId).zip(PEOPLE) {
        let gone = !world.users.contains_key(&id) && !world.users.values().any(|u| u.name == name);
        if gone && draw.percent(40) {
            let user = WorldUser { id, name: name.to_owned(), role: *draw.pick(&Role::ALL) };
            change.users.insert(id, Some(user));
        }
    }
    for _ in 0..1 + draw.below(3) {
        let nodes: Vec<&WorldNode> = world.nodes.values().collect();
        let Some(old) = nodes.get(draw.below(nodes.len().max(1))) else {
            let node = node(draw, 1, 1, false);
            change.nodes.insert(node.id, Some(node));
            continue;
        };
        let mut node = (*old).clone();
        match draw.below(13) {
            0 | 1 => {
                let last = nodes.iter().map(|n| n.id.0).max().unwrap_or(0);
                let id = last + 1 + change.nodes.len() as u64;
                node = self::node(draw, id, 20 + id as u16, false);
            }
            2 => {
                change.nodes.insert(node.id, None);
                continue;
            }
            3 | 4 => node.owner = owner(draw),
            5 | 6 => node.served_routes = routes(draw),
            7 => node.attributes = attributes(draw),
            8 => node.ipv4 = Ipv4Addr::from(0x6440_0040 + node.id.0 as u32),
            // Two nodes change places, in addresses or in all but their ids.
            9 | 10 => {
                let mut other = (*draw.pick(&nodes)).clone();
                if other.id == node.id || !change.nodes.is_empty() {
                    continue;
                }
                std::mem::swap(&mut node.ipv4, &mut other.ipv4);
                std::mem::swap(&mut node.ipv6, &mut other.ipv6);
                if draw.percent(30) {
                    std::mem::swap(&mut node.owner, &mut other.owner);
                }
                change.nodes.insert(other.id, Some(other));
                change.nodes.insert(node.id, Some(node));
                return change;
            }
            // One goes and another comes with its addresses, before or after it in the order of ids.
            11 => {
                let unused = (1..40).filter(|id| !world.nodes.contains_key(&NodeId(*id)));
                let unused: Vec<u64> = unused.collect();
                let id = if draw.percent(50) { unused[0] } else { unused[draw.below(unused.len())] };
                let fresh = WorldNode { id: NodeId(id), owner: owner(draw), ..node.clone() };
                if change.nodes.is_empty() {
                    change.nodes.insert(node.id, None);
                    change.nodes.insert(fresh.id, Some(fresh));
                    return change;
                }
                continue;
            }
            _ => {
                let users: Vec<&WorldUser> = world.users.values().collect();
                let Some(user) = users.get(draw.below(users.len().max(1))) else { continue };
                let mut user = (*user).clone();
                if draw.percent(15) {
                    change.users.insert(user.id, None);
                    continue;
                }
                user.role = *draw.pick(&Role::ALL);
                let renamed = draw.percent(20);
                user.name =
                    if renamed { (*draw.pick(&["erin@example.com", "dave"])).to_owned() } else { user.name };
                let taken = world.users.values().any(|u| u.id != user.id && u.name == user.name);
                let taken = taken || change.users.values().flatten().any(|u| u.name == user.name);
                if !taken {
                    change.users.insert(user.id, Some(user));
                }
                continue;
            }
        }
        change.nodes.insert(node.id, Some(node));
    }
    change
}

/// The world after a change.
pub(crate) fn changed(world: &World, change: &WorldChange) -> World {
    let mut world = world.clone();
    for (id, node) in &change.nodes {
        match node {
            Some(node) => drop(world.nodes.insert(*id, node.clone())),
            None => drop(world.nodes.remove(id)),
        }
    }
    for (id, user) in &change.users {
        match user {
            Some(user) => drop(world.users.insert(*id, user.clone())),
            None => drop(world.users.remove(id)),
        }
    }
    world
}

fn who(draw: &mut Draw) -> String {
    match draw.below(14) {
        0..=2 => user(PEOPLE[draw.below(PEOPLE.len())]),
        3 | 4 => (*draw.pick(&GROUPS)).to_owned(),
        5..=8 => (*draw.pick(&TAGS)).to_owned(),
        9 | 10 => "autogroup:member".to_owned(),
        11 => "autogroup:tagged".to_owned(),
        12 => (*draw.pick(&["autogroup:admin", "autogroup:owner", "autogroup:auditor"])).to_owned(),
        _ => "user:*@example.com".to_owned(),
    }
}

fn place(draw: &mut Draw) -> String {
    match draw.below(10) {
        0..=5 => (*draw.pick(&LITERALS)).to_owned(),
        6 | 7 => (*draw.pick(&["h1", "h2", "h3"])).to_owned(),
        _ => (*draw.pick(&["ipset:s", "ipset:t"])).to_owned(),
    }
}

fn source(draw: &mut Draw) -> String {
    match draw.below(20) {
        0..=2 => "*".to_owned(),
        3..=12 => who(draw),
        13..=17 => place(draw),
        18 => (*draw.pick(&WIDE)).to_owned(),
        _ => "autogroup:danger-all".to_owned(),
    }
}

fn destination(draw: &mut Draw, wide: bool) -> String {
    match draw.below(20) {
        0 | 1 => "*".to_owned(),
        2..=9 => who(draw),
        10..=16 => place(draw),
        17 if wide => (*draw.pick(&WIDE)).to_owned(),
        _ => "autogroup:internet".to_owned(),
    }
}

fn list(draw: &mut Draw, most: usize, mut one: impl FnMut(&mut Draw) -> String) -> Vec<String> {
    (0..1 + draw.below(most)).map(|_| one(draw)).collect()
}

fn posture(draw: &mut Draw, rule: &mut Map<String, Value>) {
    if draw.percent(15) {
        let names =
            [json!([]), json!(["posture:p"]), json!(["posture:q"]), json!(["posture:p", "posture:r"])];
        rule.insert("srcPosture".into(), draw.pick(&names).clone());
    }
}

fn with_ports(alias: &str, ports: &str) -> String {
    match alias.split_once('/') {
        _ if alias.starts_with("ipset:") || !alias.contains("::") => format!("{alias}:{ports}"),
        Some((address, length)) => format!("[{address}]/{length}:{ports}"),
        None => format!("[{alias}]:{ports}"),
    }
}

fn acl(draw: &mut Draw) -> Value {
    let own = draw.percent(20);
    let protocol = *draw.pick(&["", "", "", "tcp", "udp", "sctp", "icmp", "gre"]);
    let ported = !matches!(protocol, "icmp" | "gre");
    let mut src = list(draw, 3, |d| if own { (*d.pick(&SELF_SOURCES)).to_owned() } else { source(d) });
    if own && draw.percent(20) {
        src = vec!["*".to_owned()];
    }
    let dst = list(draw, 3, |d| {
        let alias = if own && d.percent(70) { "autogroup:self".to_owned() } else { destination(d, true) };
        let ports = if ported { *d.pick(&PORTS) } else { "*" };
        with_ports(&alias, ports)
    });
    let mut rule = Map::new();
    rule.insert("action".into(), "accept".into());
    rule.insert("src".into(), src.into());
    rule.insert("dst".into(), dst.into());
    if !protocol.is_empty() {
        rule.insert("proto".into(), protocol.into());
    }
    posture(draw, &mut rule);
    rule.into()
}

fn grant(draw: &mut Draw) -> Value {
    let (own, via) = (draw.percent(15), draw.percent(25));
    let app = draw.percent(35);
    let mut rule = Map::new();
    let src = list(draw, 3, |d| if own { (*d.pick(&SELF_SOURCES)).to_owned() } else { source(d) });
    let dst = list(draw, 2, |d| {
        let alias = match d.below(10) {
            _ if own && d.percent(70) => "autogroup:self".to_owned(),
            0..=6 if via => {
                (*d.pick(&["10.33.0.0/16", "10.33.7.0/24", "10.33.7.9", "192.168.1.0/25", "h2", "ipset:one"]))
                    .to_owned()
            }
            7 if via => "autogroup:internet".to_owned(),
            _ => destination(d, false),
        };
        match &*alias {
            "autogroup:internet" | "ipset:t" if app => "tag:a".to_owned(),
            "ipset:s" | "ipset:t" if via => "ipset:one".to_owned(),
            _ => alias,
        }
    });
    // Capabilities that come back from all of the internet are nobody's question.
    let whole = |s: &String| app && (WIDE.contains(&&**s) || s == "autogroup:danger-all" || s == "ipset:t");
    let src: Vec<String> = src.into_iter().map(|s| if whole(&s) { "tag:b".to_owned() } else { s }).collect();
    if via && !own {
        rule.insert("via".into(), draw.some(&TAGS, 2).into_iter().copied().collect::<Vec<_>>().into());
    }
    rule.insert("src".into(), src.into());
    rule.insert("dst".into(), dst.into());
    if app {
        let names =
            ["example.com/cap/x", "example.com/cap/y", "tailscale.com/cap/drive", "tailscale.com/cap/relay"];
        let caps: Map<String, Value> =
            draw.some(&names, 2).into_iter().map(|n| ((*n).to_owned(), json!([{"level": 1}]))).collect();
        rule.insert("app".into(), caps.into());
    }
    if !app || draw.percent(50) {
        let ip = list(draw, 3, |d| match d.below(8) {
            0 | 1 => "*".to_owned(),
            2..=4 => format!("{}:{}", d.pick(&["tcp", "udp", "sctp"]), d.pick(&PORTS)),
            5 => (*d.pick(&["icmp:*", "gre:*"])).to_owned(),
            _ => (*d.pick(&PORTS)).to_owned(),
        });
        rule.insert("ip".into(), ip.into());
    }
    posture(draw, &mut rule);
    rule.into()
}

fn ssh(draw: &mut Draw) -> Value {
    let tagged = draw.percent(40);
    let src = if tagged {
        list(draw, 2, |d| (*d.pick(&TAGS)).to_owned())
    } else {
        list(draw, 2, |d| (*d.pick(&SELF_SOURCES)).to_owned())
    };
    let people = ["autogroup:self", "autogroup:member", "autogroup:tagged", "tag:a", "tag:b"];
    let dst = list(draw, 2, |d| (*d.pick(if tagged { &people[2..] } else { &people[..] })).to_owned());
    let users = ["root", "autogroup:nonroot", "ubuntu", "localpart:*@example.com"];
    let users: Vec<&str> = draw.some(&users, 3).into_iter().copied().collect();
    json!({"action": draw.pick(&["accept", "check"]), "src": src, "dst": dst, "users": users})
}

fn attribute(draw: &mut Draw) -> Value {
    let target = list(draw, 2, |d| match d.below(6) {
        0 => "*".to_owned(),
        1 => (*d.pick(&LITERALS)).to_owned(),
        _ => who(d).replace("user:*@example.com", "autogroup:tagged"),
    });
    let names = ["custom:x", "custom:y", "disable-ipv4", "suggest-exit-node", "funnel"];
    let attr: Vec<&str> = draw.some(&names, 2).into_iter().copied().collect();
    json!({"target": target, "attr": attr})
}

/// A policy that is well formed and legal in every world of [`world`].
pub(crate) fn policy(draw: &mut Draw) -> Value {
    let set = |draw: &mut Draw, inner: bool| -> Vec<String> {
        list(draw, 4, |d| {
            let target = match d.below(8) {
                0 if inner => "ipset:s".to_owned(),
                1 => "host:h1".to_owned(),
                _ => (*d.pick(&LITERALS)).to_owned(),
            };
            format!("{}{target}", d.pick(&["", "add ", "remove "]))
        })
    };
    let (s, mut t) = (set(draw, false), set(draw, true));
    // Beside its neighbours it would be one range that is in part no internet.
    if draw.percent(30) {
        t = vec!["autogroup:internet".to_owned()];
        t.extend(draw.percent(40).then(|| "remove 8.8.0.0/16".to_owned()));
    }
    let members = ["odin@example.com", "thor@example.org", "dave@", "ghost@example.com"];
    let nets: Vec<&str> = LITERALS.iter().copied().filter(|l| !l.contains('-')).collect();
    let mut out = json!({
        "groups": {
            "group:g": draw.some(&members, 3), "group:h": draw.some(&members, 2), "group:none": [],
        },
        "hosts": {"h1": draw.pick(&nets), "h2": "10.33.7.0/24", "h3": draw.pick(&nets)},
        "ipsets": {"ipset:s": s, "ipset:t": t, "ipset:one": ["10.33.0.0/16"]},
        "tagOwners": TAGS.iter().map(|t| ((*t).to_owned(), json!(["odin@example.com"]))).collect::<Map<_, _>>(),
        "postures": {
            "posture:p": ["node:os == 'linux'"],
            "posture:q": ["custom:level >= 3", "node:os IN ['macos', 'linux']"],
            "posture:r": ["custom:managed != true", "custom:level IS SET"],
        },
    });
    if draw.percent(10) {
        out["defaultSrcPosture"] = json!([*draw.pick(&["posture:p", "posture:q", "posture:r"])]);
    }
    let kind = draw.below(20);
    if kind > 0 && kind < 16 {
        out["acls"] = (0..draw.below(6)).map(|_| acl(draw)).collect();
    }
    if kind > 6 {
        out["grants"] = (0..1 + draw.below(5)).map(|_| grant(draw)).collect();
    }
    if draw.percent(30) {
        out["ssh"] = (0..1 + draw.below(3)).map(|_| ssh(draw)).collect();
    }
    if draw.percent(30) {
        out["nodeAttrs"] = (0..1 + draw.below(3)).map(|_| attribute(draw)).collect();
    }
    if draw.percent(30) {
        let approvers =
            |d: &mut Draw| json!([*d.pick(&["tag:a", "group:g", "odin@example.com", "autogroup:member"])]);
        out["autoApprovers"] =
            json!({"routes": {"10.0.0.0/8": approvers(draw)}, "exitNode": approvers(draw)});
    }
    out
}
