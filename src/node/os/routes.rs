//! Addresses, routes in table 52 and the rules that lead there, by rtnetlink (dataplane.md 9.2).
//!
//! Packets with the bypass mark go by the main tables, everything else looks into table 52 first. A
//! family the kernel does not have is skipped. Table and rules are removed on restore.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::route::{RouteMessage, RouteScope};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute};
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
            let mut found = Vec::new();
            let mut dump = self.handle.rule().get(version.clone()).execute();
            while let Ok(Some(rule)) = dump.try_next().await {
                let ours = rule
                    .attributes
                    .iter()
                    .any(|a| matches!(a, RuleAttribute::Priority(p) if RULES.iter().any(|r| r.0 == *p)));
                if ours {
                    found.push(rule);
                }
            }
            for rule in found {
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
