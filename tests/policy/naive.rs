//! The policy language as plainly as it can be said: every question walks all rules and asks, for single
//! addresses, whether they are meant. It shares nothing with the engine past the tree of the text.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use tsd::acl::ast::{Alias, AppCaps, AttrValue, Compare, Condition, File, SrcPosture};
use tsd::acl::{World, WorldNode};
use tsd::keys::NodeId;
use tsd::wire::PortRange;

use super::plain::{Flow, INTERNET, Span, TAILNET, addresses, after, is_exit, span, subnets, within};

/// A rule of either section for one of its destinations.
struct Rule<'a> {
    src: Vec<&'a Alias>,
    posture: &'a SrcPosture,
    dst: &'a Alias,
    ports: Vec<(Option<u8>, &'a [PortRange])>,
    app: Option<&'a AppCaps>,
    via: BTreeSet<&'a str>,
}

pub(crate) struct Naive<'a> {
    file: &'a File,
    world: &'a World,
    rules: Vec<Rule<'a>>,
}

impl<'a> Naive<'a> {
    pub(crate) fn new(file: &'a File, world: &'a World) -> Self {
        let mut rules = Vec::new();
        for grant in file.grants.iter().flatten() {
            rules.extend(grant.dst.iter().map(|dst| Rule {
                src: grant.src.iter().map(|s| &s.value).collect(),
                posture: &grant.posture,
                dst: &dst.value,
                ports: grant.ip.iter().map(|e| (e.protocol, &*e.ports)).collect(),
                app: (!grant.app.is_empty()).then_some(&grant.app),
                via: grant.via.iter().map(|t| t.value.as_str()).collect(),
            }));
        }
        for acl in file.acls.iter().flatten() {
            rules.extend(acl.dst.iter().map(|dst| Rule {
                src: acl.src.iter().map(|s| &s.value).collect(),
                posture: &acl.posture,
                dst: &dst.value.alias,
                ports: vec![(acl.protocol, &*dst.value.ports)],
                app: None,
                via: BTreeSet::new(),
            }));
        }
        if file.acls.is_none() && file.grants.is_none() {
            let (src, ports) = (vec![&Alias::Any], vec![(None, &[PortRange::ANY][..])]);
            let via = BTreeSet::new();
            rules.push(Rule { src, posture: &None, dst: &Alias::Any, ports, app: None, via });
        }
        Self { file, world, rules }
    }

    fn at(&self, ip: IpAddr) -> Option<&WorldNode> {
        self.world.nodes.values().find(|n| addresses(n).contains(&ip))
    }

    fn is(&self, alias: &Alias, node: &WorldNode) -> bool {
        let user = node.owner.user().and_then(|id| self.world.users.get(&id));
        match (alias, user) {
            (Alias::User(name), Some(user)) => user.name == *name,
            (Alias::Domain(d), Some(user)) => user.name.ends_with(&format!("@{d}")),
            (Alias::Group(g), Some(user)) => self.file.groups[g].value.iter().any(|m| m.value == user.name),
            (Alias::Role(role), Some(user)) => user.role.is(*role),
            (Alias::Tag(tag), _) => node.owner.tags().any(|t| t == tag),
            (Alias::Member, _) => node.owner.user().is_some(),
            (Alias::Tagged, _) => node.owner.user().is_none(),
            _ => false,
        }
    }

    /// What a literal name says, entry by entry.
    fn spans(&self, alias: &Alias) -> Vec<Span> {
        match alias {
            Alias::Internet => INTERNET.clone(),
            Alias::Prefix(net) => vec![span(*net)],
            Alias::Range(a, b) => vec![(*a, *b)],
            Alias::Host(name) => vec![span(self.file.hosts[name].value)],
            Alias::IpSet(name) => {
                self.file.ipsets[name].value.iter().flat_map(|e| self.spans(&e.target.value)).collect()
            }
            _ => Vec::new(),
        }
    }

    fn means(&self, alias: &Alias, ip: IpAddr) -> bool {
        match alias {
            Alias::Any | Alias::DangerAll => true,
            Alias::IpSet(name) => self.file.ipsets[name].value.iter().fold(false, |inside, entry| {
                if self.means(&entry.target.value, ip) { entry.add } else { inside }
            }),
            Alias::Internet | Alias::Prefix(_) | Alias::Range(..) | Alias::Host(_) => {
                self.spans(alias).iter().any(|s| within(*s, ip))
            }
            _ => self.at(ip).is_some_and(|n| self.is(alias, n)),
        }
    }

    /// As a source `*` is the tailnet and all that is routed into it.
    fn means_source(&self, alias: &Alias, ip: IpAddr) -> bool {
        let routed = || self.world.nodes.values().flat_map(subnets).any(|r| r.contains(&ip));
        match alias {
            Alias::Any => TAILNET.iter().any(|s| within(*s, ip)) || routed(),
            _ => self.means(alias, ip),
        }
    }

    /// Meant by name and, if it is a node, in the right posture.
    fn source(&self, rule: &Rule<'_>, ip: IpAddr) -> bool {
        rule.src.iter().any(|a| self.means_source(a, ip))
            && self.at(ip).is_none_or(|n| {
                let names = rule.posture.as_ref().unwrap_or(&self.file.default_src_posture);
                let holds = |p: &str| self.file.postures[p].value.iter().all(|c| condition(&c.value, n));
                names.is_empty() || names.iter().any(|p| holds(&p.value))
            })
    }

    /// All addresses of `net` where the meaning of `names` can begin or end.
    fn points(&self, names: &[&Alias], net: Span) -> Vec<IpAddr> {
        let routes = self.world.nodes.values().flat_map(subnets).map(span);
        let nodes = self.world.nodes.values().flat_map(addresses).map(|ip| (ip, ip));
        let all = names.iter().flat_map(|a| self.spans(a)).chain(routes).chain(nodes).chain(TAILNET.clone());
        let edges = all.flat_map(|(first, last)| [first, after(last)]);
        edges.chain([net.0]).filter(|ip| within(net, *ip)).collect()
    }

    fn from_net(&self, rule: &Rule<'_>, net: IpNet) -> bool {
        self.points(&rule.src, span(net)).into_iter().any(|ip| self.source(rule, ip))
    }

    fn to_net(&self, rule: &Rule<'_>, net: IpNet) -> bool {
        self.points(&[rule.dst], span(net)).into_iter().any(|ip| self.means(rule.dst, ip))
    }

    /// Leads to all of the internet of one family.
    fn to_internet(&self, rule: &Rule<'_>) -> bool {
        let all = |s: &Span| self.points(&[rule.dst], *s).into_iter().all(|ip| self.means(rule.dst, ip));
        let (v4, v6): (Vec<&Span>, Vec<&Span>) = INTERNET.iter().partition(|s| s.0.is_ipv4());
        v4.into_iter().all(all) || v6.into_iter().all(all)
    }

    fn from_node(&self, rule: &Rule<'_>, node: &WorldNode) -> bool {
        addresses(node).iter().any(|ip| self.source(rule, *ip))
    }

    fn from_side(&self, rule: &Rule<'_>, node: &WorldNode) -> bool {
        self.from_node(rule, node) || subnets(node).any(|r| self.from_net(rule, r))
    }

    fn to_node(&self, rule: &Rule<'_>, node: &WorldNode) -> bool {
        addresses(node).iter().any(|ip| self.means(rule.dst, *ip))
            || subnets(node).any(|r| self.to_net(rule, r))
    }

    fn to_side(&self, rule: &Rule<'_>, node: &WorldNode) -> bool {
        self.to_node(rule, node) || (is_exit(node) && self.to_internet(rule))
    }

    /// A rule without `via` goes everywhere, one with it through what its tagged nodes route.
    fn passes(&self, rule: &Rule<'_>, node: &WorldNode) -> bool {
        let routed = |r| !self.spans(rule.dst).is_empty() && self.to_net(rule, r);
        let serves = subnets(node).any(routed) || (*rule.dst == Alias::Internet && is_exit(node));
        rule.via.is_empty() || (serves && node.owner.tags().any(|t| rule.via.contains(t.as_str())))
    }

    /// One person's devices, of which the first is a source of an `autogroup:self` rule.
    fn own(&self, rule: &Rule<'_>, from: &WorldNode, to: &WorldNode) -> bool {
        from.owner.user().is_some() && from.owner.user() == to.owner.user() && self.from_node(rule, from)
    }

    /// Whether any rule speaks of a flow; with a node, whether that node, which delivers it, is told.
    pub(crate) fn allowed(&self, node: Option<&WorldNode>, flow: &Flow) -> bool {
        let open = |rule: &&Rule<'_>| {
            rule.ports.iter().any(|(protocol, ports)| {
                protocol.map_or([6, 17, 1, 58].contains(&flow.protocol), |p| p == flow.protocol)
                    && ports.iter().any(|range| range.contains(flow.port))
            })
        };
        let inside = |s: &Span| INTERNET.iter().any(|i| within(*i, s.0) && within(*i, s.1));
        let internet = |dst| self.spans(dst).iter().any(|s| within(*s, flow.to) && inside(s));
        self.rules.iter().filter(open).any(|rule| match (rule.dst, self.at(flow.from), self.at(flow.to)) {
            (Alias::Own, Some(from), Some(to)) => self.own(rule, from, to),
            (Alias::Own, _, _) => false,
            (dst, _, _) => {
                let told = |n| self.passes(rule, n) && (self.to_node(rule, n) || internet(dst));
                self.source(rule, flow.from) && self.means(dst, flow.to) && node.is_none_or(told)
            }
        })
    }

    /// Names of the capabilities of one address at a node's address.
    pub(crate) fn capabilities(&self, from: IpAddr, to: IpAddr) -> BTreeSet<String> {
        let mut out = BTreeSet::new();
        for rule in self.rules.iter().filter(|r| r.via.is_empty()) {
            let (there, back) = match (rule.dst, self.at(from), self.at(to)) {
                (Alias::Own, Some(a), Some(b)) => (self.own(rule, a, b), self.own(rule, b, a)),
                (dst, _, _) => (
                    self.source(rule, from) && self.means(dst, to),
                    self.source(rule, to) && self.means_source(dst, from),
                ),
            };
            for name in rule.app.into_iter().flat_map(AppCaps::keys) {
                out.extend(there.then(|| name.clone()));
                let companion = match name.as_str() {
                    "tailscale.com/cap/drive" => "tailscale.com/cap/drive-sharer",
                    "tailscale.com/cap/relay" => "tailscale.com/cap/relay-target",
                    _ => continue,
                };
                out.extend(back.then(|| companion.to_owned()));
            }
        }
        out
    }

    pub(crate) fn visible(&self, a: &WorldNode, b: &WorldNode) -> bool {
        self.rules.iter().any(|rule| {
            [(a, b), (b, a)].into_iter().any(|(x, y)| match rule.dst {
                Alias::Own => self.own(rule, x, y),
                _ => {
                    (self.passes(rule, x) || self.passes(rule, y))
                        && self.from_side(rule, x)
                        && self.to_side(rule, y)
                }
            })
        })
    }

    /// Routes of a peer that a node is shown, with the first of several in charge of a route.
    pub(crate) fn shown(&self, viewer: &WorldNode, peer: &WorldNode) -> BTreeSet<IpNet> {
        let first = |route: IpNet, tags: Option<&BTreeSet<&str>>| -> Option<NodeId> {
            let mut servers = self.world.nodes.values().filter(|n| n.served_routes.contains(&route));
            let right = |n: &&WorldNode| tags.is_none_or(|t| n.owner.tags().any(|x| t.contains(x.as_str())));
            servers.find(right).map(|n| n.id)
        };
        let rules = || self.rules.iter().filter(|r| *r.dst != Alias::Own);
        let shown = |route: &IpNet| {
            if route.prefix_len() == 0 {
                let leads = |r: &Rule<'_>| self.to_internet(r) && self.passes(r, peer);
                return rules().any(|r| leads(r) && self.from_side(r, viewer));
            }
            let plain = viewer.served_routes.contains(route)
                || rules().filter(|r| r.via.is_empty()).any(|r| {
                    (self.from_side(r, viewer) && self.to_net(r, *route))
                        || (self.from_net(r, *route) && self.to_side(r, viewer))
                });
            let steered = |r: &Rule<'_>| {
                let leads = self.to_net(r, *route) && self.from_side(r, viewer);
                leads && self.passes(r, peer) && first(*route, Some(&r.via)) == Some(peer.id)
            };
            if plain { first(*route, None) == Some(peer.id) } else { rules().any(steered) }
        };
        let visible = self.visible(viewer, peer);
        peer.served_routes.iter().filter(|r| visible && shown(r)).copied().collect()
    }
}

fn condition(c: &Condition, node: &WorldNode) -> bool {
    let Some(value) = node.attributes.get(&c.attribute) else {
        return c.compare == Compare::NotSet;
    };
    let number = |v: &AttrValue| if let AttrValue::Number(n) = v { *n } else { f64::NAN };
    let first = c.values.first().map_or(f64::NAN, number);
    match c.compare {
        Compare::Equal | Compare::In => c.values.contains(value),
        Compare::NotEqual | Compare::NotIn => !c.values.contains(value),
        Compare::Less => number(value) < first,
        Compare::LessOrEqual => number(value) <= first,
        Compare::Greater => number(value) > first,
        Compare::GreaterOrEqual => number(value) >= first,
        Compare::IsSet => true,
        Compare::NotSet => false,
    }
}
