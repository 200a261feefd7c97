//! `tsd serve` on a lab host, and its admin commands.

use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use crate::world::{Host, Process, eventually};

/// The program under test.
pub const TSD: &str = env!("CARGO_BIN_EXE_tsd");

/// A running server.
pub struct Server {
    pub host: Host,
    pub url: String,
    args: Vec<String>,
    process: Option<Process>,
}

impl Server {
    /// Starts `tsd serve` with its defaults and this URL: `http://<address>:8080`.
    pub fn start(host: &Host) -> Self {
        let url = format!("http://{}:8080", host.addr);
        Self::start_with(host, &url, &[])
    }

    /// Starts it with an own URL and more arguments.
    pub fn start_with(host: &Host, url: &str, args: &[&str]) -> Self {
        let mut all = vec!["serve".to_owned(), "--url".into(), url.to_owned()];
        all.extend(args.iter().map(|a| (*a).to_owned()));
        let mut server = Self { host: host.clone(), url: url.to_owned(), args: all, process: None };
        server.restart();
        server
    }

    /// Starts it again with the same arguments; returns when it answers.
    pub fn restart(&mut self) {
        let mut command = self.host.command(TSD);
        command.args(&self.args);
        let process = self.host.spawn("serve", command);
        self.process = Some(process);
        eventually("the server answers", Duration::from_secs(15), || {
            if !self.process.as_mut().unwrap().alive() {
                panic!("tsd serve ended:\n{}", self.process.as_ref().unwrap().text());
            }
            let out = self.admin(&["status"]);
            if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
        });
    }

    /// What it printed so far.
    pub fn text(&self) -> String {
        self.process.as_ref().map(Process::text).unwrap_or_default()
    }

    /// `kill -9`.
    pub fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill9();
        }
    }

    /// The running process.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the server runs")
    }

    /// An admin command, as it came out.
    pub fn admin(&self, args: &[&str]) -> Output {
        self.host.output(TSD, args)
    }

    /// An admin command that must succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        self.host.ok(TSD, args)
    }

    /// An admin command with `--json`.
    pub fn json(&self, args: &[&str]) -> Value {
        let mut all = args.to_vec();
        all.push("--json");
        let text = self.ok(&all);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{all:?} gave no JSON ({e}): {text}"))
    }

    /// A fresh pre-auth key of the first user.
    pub fn key(&self, args: &[&str]) -> String {
        let user = self.json(&["users", "list"])[0]["name"].as_str().unwrap().to_owned();
        let mut all = vec!["authkeys", "create", "--user", &user];
        all.extend_from_slice(args);
        self.json(&all)["key"].as_str().unwrap().to_owned()
    }

    /// All nodes.
    pub fn nodes(&self) -> Vec<Value> {
        self.json(&["nodes", "list"]).as_array().unwrap().clone()
    }

    /// One node by its bare name.
    pub fn node(&self, name: &str) -> Option<Value> {
        self.nodes().into_iter().find(|n| n["name"] == name)
    }

    /// Stores a policy that must be accepted.
    pub fn set_policy(&self, text: &str) {
        let file = self.policy_file(text);
        self.ok(&["policy", "set", file.to_str().unwrap(), "--yes"]);
    }

    /// Writes a policy text to a file the server's host sees.
    pub fn policy_file(&self, text: &str) -> PathBuf {
        std::fs::write(self.host.path("/run/policy.hujson"), text).unwrap();
        PathBuf::from("/run/policy.hujson")
    }

    /// Waits until exactly these nodes are shown online (or not).
    pub fn wait_online(&self, name: &str, online: bool, limit: Duration) {
        eventually(&format!("{name} online={online}"), limit, || match self.node(name) {
            Some(node) if node["online"] == online => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
}
