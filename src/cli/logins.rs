//! `tsd logins`.

use http::Method;

use super::args::Logins;
use super::client::{Client, path};
use super::exit::Failure;
use super::printer::{Printer, moment, table};
use crate::api::types::{Approve, Login, Node};

pub(super) async fn run(command: Logins, client: &Client, printer: &Printer) -> Result<(), Failure> {
    match command {
        Logins::List => {
            let logins: Vec<Login> = client.get("/v1/logins").await?;
            let row = |l: &Login| {
                vec![
                    l.id.clone(),
                    l.hostname.clone(),
                    l.os.clone(),
                    l.version.clone(),
                    moment(Some(l.created)),
                    moment(Some(l.expires)),
                ]
            };
            let head = ["ID", "HOSTNAME", "OS", "VERSION", "ASKED", "LAPSES"];
            printer.data(&logins, || table(&head, &logins.iter().map(row).collect::<Vec<_>>()))
        }
        Logins::Approve { login, user } => {
            let body = Approve { user };
            let node: Node =
                client.send(Method::POST, &path("/v1/logins", &login, "/approve"), &body).await?;
            printer
                .data(&node, || format!("{} is in as {} ({})", node.hostname_or_name(), node.name, node.ipv4))
        }
        Logins::Reject { login } => {
            let login: Login = client.act(Method::POST, &path("/v1/logins", &login, "/reject")).await?;
            printer.data(&login, || format!("turned away {}", super::printer::plain(&login.hostname)))
        }
    }
}

impl Node {
    fn hostname_or_name(&self) -> String {
        super::printer::plain(if self.hostname.is_empty() { &self.name } else { &self.hostname })
    }
}
