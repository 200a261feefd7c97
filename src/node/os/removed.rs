//! Tells when somebody removed an address, a route or a rule, by netlink multicast.
//!
//! Bursts are gathered; what was removed is not said, since only a look at the whole shows what is missing.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::task::JoinHandle;

/// How long a burst is gathered.
const GATHER: Duration = Duration::from_millis(300);

/// The watch; ends with its owner.
pub(super) struct Removals {
    messages: BoxStream<'static, bool>,
    connection: JoinHandle<()>,
}

impl Drop for Removals {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Begins to watch; `index` is our interface.
pub(super) fn removals(index: u32) -> std::io::Result<Removals> {
    let (connection, _handle, messages) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Rule,
    ])?;
    let messages = messages.map(move |(message, _)| match message.payload {
        NetlinkPayload::InnerMessage(inner) => matters(&inner, index),
        _ => false,
    });
    Ok(Removals { messages: messages.boxed(), connection: tokio::spawn(connection) })
}

fn matters(message: &RouteNetlinkMessage, ours: u32) -> bool {
    match message {
        RouteNetlinkMessage::DelRoute(_) | RouteNetlinkMessage::DelRule(_) => true,
        RouteNetlinkMessage::DelAddress(a) => a.header.index == ours,
        // Going down takes routes along without a word about them.
        RouteNetlinkMessage::NewLink(l) => l.header.index == ours,
        _ => false,
    }
}

impl Removals {
    /// Waits for a removal and for the burst around it to end. Safe to be cancelled: what was seen is seen
    /// again as missing.
    pub(super) async fn next(&mut self) {
        loop {
            match self.messages.next().await {
                Some(true) => break,
                Some(false) => {}
                // Netlink is gone: then nothing can be told any more.
                None => std::future::pending().await,
            }
        }
        let gathered = tokio::time::sleep(GATHER);
        tokio::pin!(gathered);
        loop {
            tokio::select! {
                () = &mut gathered => return,
                message = self.messages.next() => if message.is_none() { return },
            }
        }
    }
}
