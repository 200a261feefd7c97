//! Tells when somebody removed an address, a route or a rule, by netlink multicast.
//!
//! Bursts are gathered; what was removed is not said, since only a look at the whole shows what is missing.

use std::time::{Duration, Instant};

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
    /// When the burst that was seen counts as over.
    due: Option<Instant>,
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
    Ok(Removals { messages: messages.boxed(), connection: tokio::spawn(connection), due: None })
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
    /// Waits for a removal and for the burst around it to end. May be cancelled: a burst that was seen is
    /// remembered for the next call.
    pub(super) async fn next(&mut self) {
        while self.due.is_none() {
            match self.messages.next().await {
                Some(true) => self.due = Some(crate::clock::Now::read().mono + GATHER),
                Some(false) => {}
                // Netlink is gone: then nothing can be told any more.
                None => std::future::pending().await,
            }
        }
        while let Some(due) = self.due {
            tokio::select! {
                () = tokio::time::sleep_until(due.into()) => self.due = None,
                message = self.messages.next() => if message.is_none() { self.due = None },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_burst_outlives_a_cancelled_wait() {
        let messages = futures_util::stream::iter([false, true]).chain(futures_util::stream::pending());
        let connection = tokio::spawn(std::future::pending());
        let mut removals = Removals { messages: messages.boxed(), connection, due: None };
        // Something else happens while the burst is gathered.
        tokio::select! {
            biased;
            () = removals.next() => panic!("the burst was not gathered"),
            () = tokio::task::yield_now() => {}
        }
        tokio::time::timeout(Duration::from_secs(5), removals.next())
            .await
            .expect("the removal was forgotten");
    }
}
