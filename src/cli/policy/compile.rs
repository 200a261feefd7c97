//! `tsd policy compile`: a policy and a network from files, printed as the wire would have it. Exit status
//! 1 is the policy's, with the faults on stdout; 2 says that the question could not be asked.

use std::path::Path;

use serde::Serialize;

use super::faults::{Named, refuse};
use super::text::read;
use crate::acl::{Compiled, Rendered, Topology};
use crate::api::types::Fault;
use crate::cli::exit::Failure;
use crate::cli::printer::{Printer, table};
use crate::clock::Now;
use crate::keys::NodeId;

/// What is printed for a policy that is accepted.
#[derive(Serialize)]
struct Answer<'a> {
    ok: bool,
    nodes: Rendered<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stats: Option<Figures>,
}

/// Counts and times of the whole network.
#[derive(Debug, Clone, Copy, Serialize)]
struct Figures {
    users: usize,
    nodes: usize,
    /// Filter rules of all nodes.
    filter_rules: usize,
    /// Ordered pairs of nodes that see each other.
    peers: usize,
    /// From the text until the policy is in force for this network, tests included.
    compile_ms: f64,
    /// Then, for the filters and peers of every node.
    nodes_ms: f64,
}

/// Reads a network from its file; all its faults end with status 2.
pub(super) fn topology(file: &Path) -> Result<Topology, Failure> {
    let name = file.display();
    let text = std::fs::read_to_string(file)
        .map_err(|e| Failure::Ours(format!("cannot read the topology {name}: {e}; check the name")))?;
    Topology::parse(&text).map_err(|e| Failure::Ours(format!("the topology {name} is of no use: {e}")))
}

/// Compiles for a network, or shows why not.
pub(super) fn compiled(
    source: &Named,
    net: &Topology,
    printer: &Printer,
) -> Result<(crate::acl::Policy, Compiled), Failure> {
    net.compile(&source.text).map_err(|faults| {
        let faults: Vec<Fault> = faults.into_iter().map(Fault::from).collect();
        refuse(source, &faults, printer)
    })
}

/// Compiles for a network, failing tests or not, or shows why not.
pub(super) fn untested(source: &Named, net: &Topology, printer: &Printer) -> Result<Compiled, Failure> {
    let (_, compiled) = net.compile_untested(&source.text).map_err(|faults| {
        let faults: Vec<Fault> = faults.into_iter().map(Fault::from).collect();
        refuse(source, &faults, printer)
    })?;
    Ok(compiled)
}

pub(super) fn run(
    policy: &Path,
    topology_file: &Path,
    node: Option<&str>,
    stats: bool,
    printer: &Printer,
) -> Result<(), Failure> {
    let net = topology(topology_file)?;
    let only = match node {
        Some(name) => Some(net.node(name).ok_or_else(|| {
            let near = net.nearest(name).map_or_else(String::new, |n| format!("; did you mean {n}?"));
            Failure::Ours(format!("the topology has no node {name:?}{near}"))
        })?),
        None => None,
    };
    // A policy that is not there was not refused.
    let source = read(policy, printer).map_err(|failure| match failure {
        Failure::User(text) => Failure::Ours(text),
        other => other,
    })?;
    let start = Now::read();
    let (_, compiled) = compiled(&source, &net, printer)?;
    let done = Now::read();
    let stats = stats.then(|| figures(&net, &compiled, start, done));
    let answer = Answer { ok: true, nodes: net.rendered(&compiled, only), stats };
    printer.stream(&answer, || summary(&net, &compiled, only, stats))
}

fn figures(net: &Topology, compiled: &Compiled, start: Now, done: Now) -> Figures {
    let (mut filter_rules, mut peers) = (0, 0);
    for id in net.world().nodes.keys() {
        filter_rules += compiled.filter_rules(*id).len();
        peers += compiled.peers(*id).len();
    }
    let millis = |from: Now, to: Now| to.mono.saturating_duration_since(from.mono).as_secs_f64() * 1000.0;
    Figures {
        users: net.world().users.len(),
        nodes: net.world().nodes.len(),
        filter_rules,
        peers,
        compile_ms: millis(start, done),
        nodes_ms: millis(done, Now::read()),
    }
}

fn summary(net: &Topology, compiled: &Compiled, only: Option<NodeId>, stats: Option<Figures>) -> String {
    let nodes = net.world().nodes.values().filter(|n| only.is_none_or(|only| only == n.id));
    let row = |n: &crate::acl::WorldNode| {
        let view = net.view(compiled, n.id);
        let approved: Vec<String> = view.auto_approved.iter().map(ToString::to_string).collect();
        vec![
            n.name.clone(),
            view.packet_filter_rules.len().to_string(),
            view.ssh_rules.len().to_string(),
            view.peers.len().to_string(),
            approved.join(","),
        ]
    };
    let mut out = table(
        &["NODE", "FILTER RULES", "SSH RULES", "PEERS", "AUTO-APPROVED"],
        &nodes.map(row).collect::<Vec<_>>(),
    );
    if let Some(s) = stats {
        out.push_str(&format!(
            "{} nodes, {} users, {} filter rules, {} pairs; compiled in {:.1} ms, all nodes in {:.1} ms\n",
            s.nodes, s.users, s.filter_rules, s.peers, s.compile_ms, s.nodes_ms
        ));
    }
    out
}
