//! Nodes of a mesh: official clients and `tsd node`, behind one face.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::official::{Version, program};
use crate::server::TSD;
use crate::world::{Host, Process, eventually};

/// Which client runs on a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The official client.
    Official(Version),
    /// Ours.
    Tsd,
}

/// The newest official client.
pub const OFFICIAL: Kind = Kind::Official(Version::Newest);

/// A client daemon on a machine of its own.
pub struct Peer {
    pub host: Host,
    pub kind: Kind,
    environment: Vec<(String, String)>,
    daemon: Option<Process>,
}

impl Peer {
    /// Starts the daemon with its defaults.
    pub fn start(host: &Host, kind: Kind) -> Self {
        Self::start_with(host, kind, &[])
    }

    /// Starts the daemon with environment variables.
    pub fn start_with(host: &Host, kind: Kind, environment: &[(&str, &str)]) -> Self {
        let environment = environment.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let mut peer = Self { host: host.clone(), kind, environment, daemon: None };
        peer.start_daemon();
        peer
    }

    /// Starts the daemon, joins with a key, and waits until it is running.
    pub fn join(host: &Host, kind: Kind, url: &str, key: &str) -> Self {
        let peer = Self::start(host, kind);
        peer.up(url, key);
        peer
    }

    /// Starts the daemon again after [`Peer::kill9`].
    pub fn start_daemon(&mut self) {
        let mut command = match self.kind {
            Kind::Official(version) => {
                let mut c = self.host.command(program(version, "tailscaled"));
                // The flag instead of the environment variable: the client stays as a user runs it.
                c.args(["--no-logs-no-support", "--verbose=1"]);
                c
            }
            Kind::Tsd => {
                let mut c = self.host.command(TSD);
                c.args(["node", "run"]);
                c
            }
        };
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        let label = match self.kind {
            Kind::Official(_) => "tailscaled",
            Kind::Tsd => "node",
        };
        self.daemon = Some(self.host.spawn(label, command));
        eventually(&format!("the daemon on {} answers", self.host.name), Duration::from_secs(15), || {
            let out = self.cli(&["status", "--json"]);
            // Not yet logged in is an answer too.
            serde_json::from_slice::<Value>(&out.stdout).map(drop).map_err(|_| lossy(&out.stderr))
        });
    }

    /// The name this machine joins by.
    pub fn name(&self) -> &str {
        &self.host.name
    }

    /// The running daemon.
    pub fn daemon(&mut self) -> &mut Process {
        self.daemon.as_mut().expect("the daemon runs")
    }

    /// `kill -9` of the daemon.
    pub fn kill9(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill9();
        }
    }

    /// A client command, to be run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = match self.kind {
            Kind::Official(version) => self.host.command(program(version, "tailscale")),
            Kind::Tsd => {
                let mut c = self.host.command(TSD);
                c.arg("node");
                c
            }
        };
        command.args(args);
        command
    }

    /// A client command, as it came out; at most 60 s.
    pub fn cli(&self, args: &[&str]) -> Output {
        let (program, first) = match self.kind {
            Kind::Official(version) => (program(version, "tailscale").display().to_string(), None),
            Kind::Tsd => (TSD.to_owned(), Some("node")),
        };
        let all: Vec<&str> = first.into_iter().chain(args.iter().copied()).collect();
        self.host.output(&program, &all)
    }

    /// A client command that must succeed; gives its stdout.
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.cli(args);
        assert!(
            out.status.success(),
            "on {}: {args:?}: {}\n{}{}",
            self.host.name,
            out.status,
            lossy(&out.stdout),
            lossy(&out.stderr)
        );
        lossy(&out.stdout)
    }

    /// Joins with a key and waits until the client says that it runs.
    pub fn up(&self, url: &str, key: &str) {
        let hostname = format!("--hostname={}", self.host.name);
        self.ok(&["up", "--login-server", url, "--auth-key", key, &hostname, "--timeout=40s"]);
        self.wait_running(Duration::from_secs(10));
    }

    /// Its `status --json`.
    pub fn status(&self) -> Value {
        let out = self.cli(&["status", "--json"]);
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| {
            panic!("status of {}: {e}: {}{}", self.host.name, lossy(&out.stdout), lossy(&out.stderr))
        })
    }

    /// Waits for the state Running.
    pub fn wait_running(&self, limit: Duration) {
        self.wait_state("Running", limit);
    }

    /// Waits for a backend state.
    pub fn wait_state(&self, state: &str, limit: Duration) {
        eventually(&format!("{} is {state}", self.host.name), limit, || {
            let status = self.status();
            if status["BackendState"] == state { Ok(()) } else { Err(status["BackendState"].to_string()) }
        });
    }

    /// Its tailnet IPv4 address.
    pub fn ip4(&self) -> String {
        self.ok(&["ip", "-4"]).trim().to_owned()
    }

    /// The entry of a peer, by its bare name, in `status --json`.
    pub fn peer_entry(&self, name: &str) -> Option<Value> {
        let status = self.status();
        let peers = status["Peer"].as_object()?;
        peers
            .values()
            .find(|p| p["DNSName"].as_str().is_some_and(|n| n.split('.').next() == Some(name)))
            .cloned()
    }

    /// Waits until it sees these peers, by bare name.
    pub fn wait_sees(&self, names: &[&str], limit: Duration) {
        eventually(&format!("{} sees {names:?}", self.host.name), limit, || {
            let missing: Vec<_> = names.iter().filter(|n| self.peer_entry(n).is_none()).collect();
            if missing.is_empty() { Ok(()) } else { Err(format!("missing {missing:?}")) }
        });
    }

    /// Waits until it no longer sees a peer; gives how long that took.
    pub fn wait_gone(&self, name: &str, limit: Duration) -> Duration {
        let start = Instant::now();
        eventually(&format!("{name} gone from {}", self.host.name), limit, || {
            self.peer_entry(name).map_or(Ok(()), |p| Err(p.to_string()))
        });
        start.elapsed()
    }

    /// `ping` of the client program until a first answer; gives its line.
    pub fn mesh_ping(&self, target: &str) -> String {
        eventually(
            &format!("{} pings {target} over the mesh", self.host.name),
            Duration::from_secs(20),
            || {
                let out = self.cli(&["ping", "-c", "1", "--until-direct=false", "--timeout=3s", target]);
                let text = lossy(&out.stdout);
                match text.lines().find(|l| l.starts_with("pong from")) {
                    Some(line) => Ok(line.to_owned()),
                    None => Err(format!("{text}{}", lossy(&out.stderr))),
                }
            },
        )
    }

    /// Pings until the path is direct, at most 20 tries; gives the last line.
    pub fn ping_until_direct(&self, target: &str) -> String {
        let out = self.cli(&["ping", "-c", "20", "--until-direct=true", "--timeout=2s", target]);
        let text = lossy(&out.stdout);
        text.lines().rfind(|l| l.starts_with("pong from")).unwrap_or(&text).to_owned()
    }

    /// The system's `ping`, by address or name.
    pub fn icmp(&self, target: &str) -> Result<(), String> {
        let out =
            self.host.output_within("ping", &["-n", "-c", "1", "-W", "2", target], Duration::from_secs(8));
        if out.status.success() { Ok(()) } else { Err(lossy(&out.stdout) + &lossy(&out.stderr)) }
    }

    /// The system's `ping` succeeds within `limit`.
    pub fn wait_icmp(&self, target: &str, limit: Duration) {
        eventually(&format!("{} pings {target}", self.host.name), limit, || self.icmp(target));
    }
}

/// Output as text.
pub fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
