//! Addresses, routes in table 52 and the rules that lead there, by rtnetlink (dataplane.md 9.2).
//!
//! Packets with the bypass mark go by the main tables, everything else looks into table 52 first. A
//! family the kernel does not have is skipped. Table and rules are removed on restore.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{AddressMessageBuilder, Handle, IpVersion, LinkUnspec, RouteMessageBuilder};

use crate::node::engine::OsConfig;

/// Our routing table; the number the official client uses.
const TABLE: u32 = 52;
/// The mark of packets that must not enter the tunnel.
pub const BYPASS_MARK: u32 = 0x8_0000;
/// The bits of the mark that are ours.
const MARK_MASK: u32 = 0xff_0000;
/// Priority, marked packets only, table (254 main, 253 default), action.
const RULES: [(u32, bool, u32, RuleAction); 4] = [
    (5210, true, 254, RuleAction::ToTable),
    (5230, true, 253, RuleAction::ToTable),
    (5250, true, 0, RuleAction::Unreachable),
    (5270, false, TABLE, RuleAction::ToTable),
];

/// What is set at present.
pub struct Routes {
    handle: Handle,
    connection: tokio::task::JoinHandle<()>,
    index: u32,
    addresses: BTreeSet<IpNet>,
    routes: BTreeSet<IpNet>,
    rules: bool,
}

impl std::fmt::Debug for Routes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Routes")
            .field("addresses", &self.addresses)
            .field("routes", &self.routes)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn code(error: &rtnetlink::Error) -> i32 {
    match error {
        rtnetlink::Error::NetlinkError(e) => e.raw_code().abs(),
        _ => 0,
    }
}

fn ok_if(result: Result<(), rtnetlink::Error>, codes: &[i32]) -> Result<(), String> {
    match result {
        Err(e) if codes.contains(&code(&e)) => Ok(()),
        Err(rtnetlink::Error::NetlinkError(e)) => Err(e.to_io().to_string()),
        Err(e) => Err(e.to_string()),
        Ok(()) => Ok(()),
    }
}

fn ipv6_there() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6").is_ok_and(|t| t.trim() == "0")
}

impl Routes {
    /// Opens netlink for the interface with this index.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open(index: u32) -> std::io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
            index,
            addresses: BTreeSet::new(),
            routes: BTreeSet::new(),
            rules: false,
        })
    }

    /// Goes from what is to what should be; returns what could not be done.
    pub async fn apply(&mut self, config: &OsConfig) -> Vec<String> {
        let mut trouble = Vec::new();
        let v6 = ipv6_there();
        let usable = |n: &&IpNet| v6 || n.addr().is_ipv4();
        let addresses: BTreeSet<IpNet> = config.addresses.iter().filter(usable).copied().collect();
        let mut routes: BTreeSet<IpNet> = config.routes.iter().filter(usable).map(IpNet::trunc).collect();
        // The host's own address is local already; a route to it would shadow nothing but confuse.
        routes.retain(|r| !addresses.contains(r));

        for gone in self.routes.difference(&routes).copied().collect::<Vec<_>>() {
            self.note(&mut trouble, "remove route", gone, self.route(gone, false).await);
            self.routes.remove(&gone);
        }
        for gone in self.addresses.difference(&addresses).copied().collect::<Vec<_>>() {
            self.note(&mut trouble, "remove address", gone, self.address(gone, false).await);
            self.addresses.remove(&gone);
        }
        let wanted = !addresses.is_empty();
        for new in addresses.difference(&self.addresses.clone()) {
            let done = self.address(*new, true).await;
            if done.is_ok() {
                self.addresses.insert(*new);
            }
            self.note(&mut trouble, "add address", *new, done);
        }
        if wanted != self.rules {
            if let Err(e) = self.link(wanted).await {
                trouble.push(format!("cannot set the interface up or down: {e}"));
            }
            for e in self.set_rules(wanted, v6).await {
                trouble.push(e);
            }
            self.rules = wanted;
        }
        for new in routes.difference(&self.routes.clone()) {
            let done = self.route(*new, true).await;
            if done.is_ok() {
                self.routes.insert(*new);
            }
            self.note(&mut trouble, "add route", *new, done);
        }
        trouble
    }

    /// Looks whether everything that was set is still there, and sets again what somebody else removed; says
    /// what that was, and what could not be done.
    pub async fn check(&mut self, config: &OsConfig) -> (Vec<String>, Vec<String>) {
        let (mut gone, mut trouble) = (Vec::new(), Vec::new());
        if !self.rules {
            return (gone, trouble);
        }
        let (addresses, routes) = (self.present_addresses().await, self.present_routes().await);
        let lost: Vec<IpNet> = self.addresses.difference(&addresses).copied().collect();
        gone.extend(lost.iter().map(|n| format!("address {n}")));
        self.addresses.retain(|n| !lost.contains(n));
        let lost: BTreeSet<IpNet> = self.routes.difference(&routes).copied().collect();
        gone.extend(lost.iter().take(3).map(|n| format!("route {n}")));
        if lost.len() > 3 {
            gone.push(format!("{} more routes", lost.len() - 3));
        }
        self.routes.retain(|n| !lost.contains(n));
        let v6 = ipv6_there();
        for version in [IpVersion::V4, IpVersion::V6] {
            if version == IpVersion::V6 && !v6 {
                continue;
            }
            if self.our_rules(version.clone()).await.len() < RULES.len() {
                gone.push("routing rules".to_owned());
                // Set anew by `apply`.
                self.rules = false;
            }
        }
        gone.dedup();
        if !gone.is_empty() {
            trouble = self.apply(config).await;
        }
        (gone, trouble)
    }

    async fn present_addresses(&self) -> BTreeSet<IpNet> {
        let mut out = BTreeSet::new();
        let mut dump = self.handle.address().get().set_link_index_filter(self.index).execute();
        while let Ok(Some(message)) = dump.try_next().await {
            for attribute in &message.attributes {
                if let AddressAttribute::Local(ip) | AddressAttribute::Address(ip) = attribute {
                    out.extend(IpNet::new(*ip, message.header.prefix_len));
                }
            }
        }
        out
    }

    async fn present_routes(&self) -> BTreeSet<IpNet> {
        let mut out = BTreeSet::new();
        let asked = [
            RouteMessageBuilder::<Ipv4Addr>::new().table_id(TABLE).build(),
            RouteMessageBuilder::<Ipv6Addr>::new().table_id(TABLE).build(),
        ];
        for message in asked {
            let mut dump = self.handle.route().get(message).execute();
            while let Ok(Some(route)) = dump.try_next().await {
                out.extend(self.net_of(&route));
            }
        }
        out
    }

    /// The destination of a route of ours.
    fn net_of(&self, route: &RouteMessage) -> Option<IpNet> {
        let (mut table, mut to, mut out) = (u32::from(route.header.table), None, None);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Table(t) => table = *t,
                RouteAttribute::Oif(index) => out = Some(*index),
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => to = Some(IpAddr::V4(*ip)),
                RouteAttribute::Destination(RouteAddress::Inet6(ip)) => to = Some(IpAddr::V6(*ip)),
                _ => {}
            }
        }
        let ours = table == TABLE && out == Some(self.index);
        IpNet::new(to?, route.header.destination_prefix_length).ok().filter(|_| ours)
    }

    /// The rules of our priorities in one family.
    async fn our_rules(&self, version: IpVersion) -> Vec<RuleMessage> {
        let mut found = Vec::new();
        let mut dump = self.handle.rule().get(version).execute();
        while let Ok(Some(rule)) = dump.try_next().await {
            let ours = rule
                .attributes
                .iter()
                .any(|a| matches!(a, RuleAttribute::Priority(p) if RULES.iter().any(|r| r.0 == *p)));
            if ours {
                found.push(rule);
            }
        }
        found
    }

    /// Removes the rules a killed daemon left.
    pub async fn clean(&self) -> Vec<String> {
        self.set_rules(false, ipv6_there()).await
    }

    fn note(&self, out: &mut Vec<String>, what: &str, net: IpNet, done: Result<(), String>) {
        if let Err(e) = done {
            out.push(format!("cannot {what} {net} (interface {}): {e}", self.index));
        }
    }

    async fn link(&self, up: bool) -> Result<(), String> {
        let message = LinkUnspec::new_with_index(self.index);
        let message = if up { message.up() } else { message.down() };
        let done = self.handle.link().set(message.build()).execute().await;
        ok_if(done, &[])
    }

    async fn address(&self, net: IpNet, add: bool) -> Result<(), String> {
        if add {
            let request = self.handle.address().add(self.index, net.addr(), net.prefix_len()).replace();
            return ok_if(request.execute().await, &[libc::EEXIST]);
        }
        let message = match net.addr() {
            IpAddr::V4(ip) => AddressMessageBuilder::<Ipv4Addr>::new()
                .index(self.index)
                .address(ip, net.prefix_len())
                .build(),
            IpAddr::V6(ip) => AddressMessageBuilder::<Ipv6Addr>::new()
                .index(self.index)
                .address(ip, net.prefix_len())
                .build(),
        };
        let done = self.handle.address().del(message).execute().await;
        ok_if(done, &[libc::EADDRNOTAVAIL, libc::ENODEV])
    }

    fn route_message(&self, net: IpNet) -> RouteMessage {
        match net {
            IpNet::V4(n) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(n.addr(), n.prefix_len())
                .output_interface(self.index)
                .table_id(TABLE)
                .scope(RouteScope::Link)
                .build(),
            IpNet::V6(n) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(n.addr(), n.prefix_len())
                .output_interface(self.index)
                .table_id(TABLE)
                .build(),
        }
    }

    async fn route(&self, net: IpNet, add: bool) -> Result<(), String> {
        let message = self.route_message(net);
        if add {
            let request = self.handle.route().add(message).replace();
            return ok_if(request.execute().await, &[libc::EEXIST]);
        }
        // A link that went down took its routes along.
        let done = self.handle.route().del(message).execute().await;
        ok_if(done, &[libc::ESRCH, libc::ENODEV, libc::ENETDOWN])
    }

    /// Removes our four priorities in each family, then adds them when wanted.
    async fn set_rules(&self, wanted: bool, v6: bool) -> Vec<String> {
        let mut trouble = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            if version == IpVersion::V6 && !v6 {
                continue;
            }
            for rule in self.our_rules(version.clone()).await {
                if let Err(e) = ok_if(self.handle.rule().del(rule).execute().await, &[libc::ENOENT]) {
                    trouble.push(format!("cannot remove a routing rule: {e}"));
                }
            }
            if !wanted {
                continue;
            }
            for (priority, marked, table, action) in RULES {
                let mut request = self.handle.rule().add().priority(priority).table_id(table).action(action);
                if marked {
                    request = request.fw_mark(BYPASS_MARK);
                    request.message_mut().attributes.push(RuleAttribute::FwMask(MARK_MASK));
                }
                let done = match version {
                    IpVersion::V4 => request.v4().execute().await,
                    IpVersion::V6 => request.v6().execute().await,
                };
                if let Err(e) = ok_if(done, &[libc::EEXIST]) {
                    trouble.push(format!("cannot add the routing rule {priority}: {e}"));
                }
            }
        }
        trouble
    }
}
