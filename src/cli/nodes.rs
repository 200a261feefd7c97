//! `tsd nodes`.

use http::Method;

use super::args::Nodes;
use super::client::{Client, path};
use super::exit::Failure;
use super::printer::{Printer, facts, list, moment, table};
use crate::api::types::{Name, Node, Routes, Tags};

pub(super) async fn run(command: Nodes, client: &Client, printer: &Printer) -> Result<(), Failure> {
    let base = "/v1/nodes";
    let node: Node = match command {
        Nodes::List => {
            let nodes: Vec<Node> = client.get(base).await?;
            let head = ["ID", "NAME", "OWNER", "IPV4", "IPV6", "STATE", "LAST SEEN", "VERSION"];
            return printer.data(&nodes, || table(&head, &nodes.iter().map(row).collect::<Vec<_>>()));
        }
        Nodes::Show { node } => {
            let node: Node = client.get(&path(base, &node, "")).await?;
            return printer.data(&node, || show(&node));
        }
        Nodes::Delete { node } => {
            let node: Node = client.act(Method::DELETE, &path(base, &node, "")).await?;
            return printer.data(&node, || format!("removed {} ({})", node.name, node.ipv4));
        }
        Nodes::Rename { node, name } => {
            client.send(Method::PATCH, &path(base, &node, ""), &Name { name }).await?
        }
        Nodes::Tag { node, tags } => {
            client.send(Method::PUT, &path(base, &node, "/tags"), &Tags { tags }).await?
        }
        Nodes::Expire { node } => client.act(Method::POST, &path(base, &node, "/expire")).await?,
        Nodes::ApproveRoutes { node, routes, none } => {
            let routes = if none || !routes.is_empty() { Some(routes) } else { None };
            client.send(Method::PUT, &path(base, &node, "/routes"), &Routes { routes }).await?
        }
    };
    printer.data(&node, || show(&node))
}

fn owner(node: &Node) -> String {
    node.user.clone().unwrap_or_else(|| list(&node.tags))
}

fn state(node: &Node) -> String {
    match (node.expired, node.online) {
        (true, _) => "expired",
        (false, true) => "online",
        (false, false) => "offline",
    }
    .to_owned()
}

fn row(node: &Node) -> Vec<String> {
    vec![
        node.id.to_string(),
        node.name.clone(),
        owner(node),
        node.ipv4.to_string(),
        node.ipv6.to_string(),
        state(node),
        moment(node.last_seen),
        node.version.clone(),
    ]
}

fn show(node: &Node) -> String {
    let endpoints: Vec<String> = node.endpoints.iter().map(ToString::to_string).collect();
    facts(&[
        ("ID", node.id.to_string()),
        ("Name", node.name.clone()),
        ("Full name", node.fqdn.clone()),
        ("Hostname", node.hostname.clone()),
        ("Owner", owner(node)),
        ("IPv4", node.ipv4.to_string()),
        ("IPv6", node.ipv6.to_string()),
        ("State", state(node)),
        ("Last seen", moment(node.last_seen)),
        ("Expires", node.expires.map_or_else(|| "never".to_owned(), |at| moment(Some(at)))),
        ("Ephemeral", if node.ephemeral { "yes" } else { "no" }.to_owned()),
        ("Created", moment(Some(node.created))),
        ("Version", node.version.clone()),
        ("OS", node.os.clone()),
        ("Routes offered", list(&node.advertised_routes)),
        ("Routes approved", list(&node.approved_routes)),
        ("Home relay", node.home_derp.to_string()),
        ("Endpoints", list(&endpoints)),
        ("Node key", node.node_key.clone()),
    ])
}
