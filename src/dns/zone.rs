//! skeleton
use crate::wire;
use std::net::SocketAddr;
/// The names this node answers for, and where to ask for the others.
#[derive(Debug, Clone, Default)]
pub struct Zone {}

/// What to do with a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Send this back.
    Answer(Vec<u8>),
    /// Ask these; empty: the host's own resolvers.
    Forward {
        /// Plain resolvers.
        resolvers: Vec<SocketAddr>,
    },
    /// Say nothing.
    Drop,
}

impl Zone {
    /// Builds the zone of one netmap.
    #[must_use]
    pub fn build<'a>(
        _self_node: &'a wire::Node,
        _peers: impl Iterator<Item = &'a wire::Node>,
        _config: &wire::DnsConfig,
    ) -> Self {
        todo!()
    }
    /// Judges one query.
    #[must_use]
    pub fn handle(&self, _query: &[u8], _tcp: bool) -> Verdict {
        todo!()
    }
    /// SERVFAIL for a query whose forward failed.
    #[must_use]
    pub fn servfail(_query: &[u8]) -> Option<Vec<u8>> {
        todo!()
    }
}
