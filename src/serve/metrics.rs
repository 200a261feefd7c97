//! `/metrics`: figures of all rooms in the OpenMetrics text form, read when asked.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::router::Router;
use crate::clock::Now;
use crate::stun::server::StunStats;

/// What the figures are read from beside the router's rooms.
#[derive(Debug)]
pub(super) struct Metrics {
    started: Now,
    stun: Arc<StunStats>,
}

impl Metrics {
    /// Counts from `started`.
    #[must_use]
    pub(super) const fn new(started: Now, stun: Arc<StunStats>) -> Self {
        Self { started, stun }
    }

    /// How long the server runs.
    #[must_use]
    pub(super) fn uptime(&self) -> std::time::Duration {
        Now::read().mono.saturating_duration_since(self.started.mono)
    }

    /// All figures as text.
    #[must_use]
    pub(super) fn render(&self, router: &Router) -> String {
        let mut registry = Registry::with_prefix("tsd");
        let control = router.control.stats();
        let derp = router.derp.stats();
        let c = &router.counters;
        let gauges: [(&str, &str, u64); 9] = [
            ("nodes", "Nodes in all", control.nodes as u64),
            ("nodes_online", "Nodes with an open map stream", control.online as u64),
            ("users", "Users in all", control.users as u64),
            ("logins_waiting", "Logins that wait for approval", control.logins as u64),
            ("policy_version", "Number of the policy in force", control.policy_version),
            (
                "policy_tests_failing",
                "Tests of the policy that do not hold",
                control.policy_tests_failing as u64,
            ),
            ("derp_connections", "Relay connections now", derp.connections),
            ("http_connections", "Connections now that are not upgraded", router.connections.total() as u64),
            ("open_files_limit", "Soft limit of open files", super::process::open_files_limit()),
        ];
        for (name, help, value) in gauges {
            registry.register(name, help, ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)));
        }
        registry.register_with_unit(
            "uptime",
            "Time since start",
            Unit::Seconds,
            ConstGauge::new(self.uptime().as_secs_f64()),
        );
        let load = |value: &std::sync::atomic::AtomicU64| value.load(Ordering::Relaxed);
        let counters: [(&str, &str, u64); 12] = [
            ("derp_packets", "Packets relayed", derp.packets),
            ("derp_bytes", "Bytes relayed", derp.bytes),
            ("derp_dropped_packets", "Packets dropped by the relay", derp.dropped),
            ("stun_requests", "STUN requests answered", load(&self.stun.requests)),
            ("stun_malformed", "STUN datagrams dropped as malformed", load(&self.stun.malformed)),
            ("stun_limited", "STUN requests dropped by the limit per source", load(&self.stun.limited)),
            ("connections_accepted", "Connections let in", load(&c.accepted)),
            ("connections_refused", "Connections over a limit", load(&c.refused)),
            ("accept_errors", "Failed accepts, mostly for want of file descriptors", load(&c.accept_errors)),
            ("tls_handshake_failures", "Failed TLS handshakes", load(&c.tls_failures)),
            ("connection_timeouts", "Connections that said nothing in time", load(&c.timeouts)),
            ("panics", "Faults of ours that ended a connection or a part", super::process::panics()),
        ];
        for (name, help, value) in counters {
            registry.register(name, help, ConstCounter::new(value));
        }
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut out, &registry);
        out
    }
}
