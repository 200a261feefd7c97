//! The policy language as plainly as it can be said: every question walks all rules and asks, for single
//! addresses, whether they are meant. It shares nothing with the engine past the tree of the text.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use tsd::acl::ast::{Alias, AppCaps, AttrValue, Compare, Condition, File, SrcPosture};
use tsd::acl::{World, WorldNode};
use tsd::keys::NodeId;
use tsd::wire::PortRange;

use super::plain::{Flow, INTERNET, Span, TAILNET, addresses, after, is_exit, span, subnets, within};

/// A rule of either section for one of its destinations.
pub(super) struct Rule<'a> {
    src: Vec<&'a Alias>,
    posture: &'a SrcPosture,
    pub(super) dst: &'a Alias,
    pub(super) ports: Vec<(Option<u8>, &'a [PortRange])>,
    pub(super) app: Option<&'a AppCaps>,
    pub(super) via: BTreeSet<&'a str>,
    /// Routes and nodes on the side of its sources, then on that of its destination.
    pub(super) nets: [BTreeSet<IpNet>; 2],
    pub(super) from: BTreeSet<NodeId>,
    pub(super) to: BTreeSet<NodeId>,
    /// Leads to all of the internet of one family.
    pub(super) internet: bool,
}

pub(crate) struct Naive<'a> {
    file: &'a File,
    pub(super) world: &'a World,
    pub(super) at: HashMap<IpAddr, &'a WorldNode>,
    routes: BTreeSet<IpNet>,
    pub(super) rules: Vec<Rule<'a>>,
}

impl<'a> Naive<'a> {
    pub(crate) fn new(file: &'a File, world: &'a World) -> Self {
        let nodes = || world.nodes.values();
        let at = nodes().flat_map(|n| addresses(n).map(|ip| (ip, n))).collect();
        let mut naive = Self { file, world, at, routes: nodes().flat_map(subnets).collect(), rules: vec![] };
        let mut rules = Vec::new();
        let mut rule = |src, posture, dst, ports, app, via| {
            let (nets, from, to, internet) = Default::default();
            rules.push(Rule { src, posture, dst, ports, app, via, nets, from, to, internet });
        };
        for grant in file.grants.iter().flatten() {
            for dst in &grant.dst {
                let src = grant.src.iter().map(|s| &s.value).collect();
                let ports = grant.ip.iter().map(|e| (e.protocol, &*e.ports)).collect();
                let via = grant.via.iter().map(|t| t.value.as_str()).collect();
                rule(src, &grant.posture, &dst.value, ports, Some(&grant.app), via);
            }
        }
        for acl in file.acls.iter().flatten() {
            for dst in &acl.dst {
                let (src, ports) = (acl.src.iter().map(|s| &s.value).collect(), &*dst.value.ports);
                rule(src, &acl.posture, &dst.value.alias, vec![(acl.protocol, ports)], None, BTreeSet::new());
            }
        }
        if file.acls.is_none() && file.grants.is_none() {
            let ports = vec![(None, &[PortRange::ANY][..])];
            rule(vec![&Alias::Any], &None, &Alias::Any, ports, None, BTreeSet::new());
        }
        for mut rule in rules {
            naive.settle(&mut rule);
            naive.rules.push(rule);
        }
        naive
    }

    /// Works out whom and what a rule relates.
    fn settle(&self, rule: &mut Rule<'a>) {
        let nets = |holds: &dyn Fn(IpAddr) -> bool, names: &[&Alias]| -> BTreeSet<IpNet> {
            let any = |net: &&IpNet| self.points(names, span(**net)).into_iter().any(holds);
            self.routes.iter().filter(any).copied().collect()
        };
        // Capabilities for `*` are for the tailnet, unless a companion comes back from all that is routed.
        let tailnet = rule.ports.is_empty() && *rule.dst == Alias::Any;
        let means = |ip| self.means(rule.dst, ip) && !(tailnet && companions(rule.app).is_empty());
        rule.nets = [nets(&|ip| self.source(rule, ip), &rule.src), nets(&means, &[rule.dst])];
        let all = |s: &Span| self.points(&[rule.dst], *s).into_iter().all(|ip| self.means(rule.dst, ip));
        let family = |v4| INTERNET.iter().filter(|s| s.0.is_ipv4() == v4).all(all);
        rule.internet = !tailnet && (family(true) || family(false));
        let serves = |n: &WorldNode, side: usize| subnets(n).any(|r| rule.nets[side].contains(&r));
        let from = |n: &&WorldNode| self.source_node(rule, n) || serves(n, 0);
        let to = |n: &&WorldNode| addresses(n).iter().any(|ip| self.means(rule.dst, *ip)) || serves(n, 1);
        let nodes = self.world.nodes.values();
        let (from, to) = (nodes.clone().filter(from), nodes.filter(to));
        (rule.from, rule.to) = (from.map(|n| n.id).collect(), to.map(|n| n.id).collect());
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
    pub(super) fn spans(&self, alias: &Alias) -> Vec<Span> {
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

    pub(super) fn means(&self, alias: &Alias, ip: IpAddr) -> bool {
        match alias {
            Alias::Any | Alias::DangerAll => true,
            Alias::Prefix(net) => net.contains(&ip),
            Alias::IpSet(name) => self.file.ipsets[name].value.iter().fold(false, |inside, entry| {
                if self.means(&entry.target.value, ip) { entry.add } else { inside }
            }),
            Alias::Internet | Alias::Range(..) | Alias::Host(_) => {
                self.spans(alias).iter().any(|s| within(*s, ip))
            }
            _ => self.at.get(&ip).is_some_and(|n| self.is(alias, n)),
        }
    }

    /// As a source `*` is the tailnet and all that is routed into it.
    pub(super) fn means_source(&self, alias: &Alias, ip: IpAddr) -> bool {
        match alias {
            Alias::Any => {
                TAILNET.iter().any(|s| within(*s, ip)) || self.routes.iter().any(|r| r.contains(&ip))
            }
            _ => self.means(alias, ip),
        }
    }

    /// Meant by name and, if it is a node, in the right posture.
    pub(super) fn source(&self, rule: &Rule<'_>, ip: IpAddr) -> bool {
        rule.src.iter().any(|a| self.means_source(a, ip))
            && self.at.get(&ip).is_none_or(|n| {
                let names = rule.posture.as_ref().unwrap_or(&self.file.default_src_posture);
                let holds = |p: &str| self.file.postures[p].value.iter().all(|c| condition(&c.value, n));
                names.is_empty() || names.iter().any(|p| holds(&p.value))
            })
    }

    fn source_node(&self, rule: &Rule<'_>, node: &WorldNode) -> bool {
        addresses(node).iter().any(|ip| self.source(rule, *ip))
    }

    /// All addresses of `net` where the meaning of `names` can begin or end.
    fn points(&self, names: &[&Alias], net: Span) -> Vec<IpAddr> {
        let routes = self.routes.iter().map(|r| span(*r));
        let nodes = self.at.keys().map(|ip| (*ip, *ip));
        let all = names.iter().flat_map(|a| self.spans(a)).chain(routes).chain(nodes).chain(TAILNET.clone());
        let edges = all.flat_map(|(first, last)| [first, after(last)]);
        edges.chain([net.0]).filter(|ip| within(net, *ip)).collect()
    }

    /// A rule without `via` goes everywhere, one with it through what its tagged nodes route.
    pub(super) fn passes(&self, rule: &Rule<'_>, node: &WorldNode) -> bool {
        let literal = !self.spans(rule.dst).is_empty();
        let serves = literal && subnets(node).any(|r| rule.nets[1].contains(&r));
        let serves = serves || (*rule.dst == Alias::Internet && is_exit(node));
        rule.via.is_empty() || (serves && node.owner.tags().any(|t| rule.via.contains(t.as_str())))
    }

    /// One person's devices, of which the first is a source of an `autogroup:self` rule.
    pub(super) fn own(&self, rule: &Rule<'_>, from: &WorldNode, to: &WorldNode) -> bool {
        from.owner.user().is_some() && from.owner.user() == to.owner.user() && self.source_node(rule, from)
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
        self.rules.iter().filter(open).any(|rule| {
            match (rule.dst, self.at.get(&flow.from), self.at.get(&flow.to)) {
                (Alias::Own, Some(from), Some(to)) => self.own(rule, from, to),
                (Alias::Own, _, _) => false,
                (dst, _, _) => {
                    let told =
                        |n: &WorldNode| self.passes(rule, n) && (rule.to.contains(&n.id) || internet(dst));
                    self.means(dst, flow.to) && self.source(rule, flow.from) && node.is_none_or(told)
                }
            }
        })
    }
}

/// Capabilities that others have in return.
pub(super) fn companions(app: Option<&AppCaps>) -> Vec<&'static str> {
    let pairs = [
        ("tailscale.com/cap/drive", "tailscale.com/cap/drive-sharer"),
        ("tailscale.com/cap/relay", "tailscale.com/cap/relay-target"),
    ];
    let granted = |name| app.is_some_and(|caps| caps.contains_key(name));
    pairs.iter().filter(|(name, _)| granted(*name)).map(|(_, back)| *back).collect()
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
