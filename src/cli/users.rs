//! `tsd users`.

use http::Method;
use serde::Serialize;

use super::args::Users;
use super::client::{Client, path};
use super::exit::Failure;
use super::printer::{Printer, moment, table};
use crate::api::types::{Name, Role, User};

/// What `users create` prints.
#[derive(Serialize)]
struct Created {
    id: u64,
    name: String,
}

pub(super) async fn run(command: Users, client: &Client, printer: &Printer) -> Result<(), Failure> {
    match command {
        Users::Create { name } => {
            let user: User = client.send(Method::POST, "/v1/users", &Name { name }).await?;
            let made = Created { id: user.id, name: user.name };
            printer.data(&made, || format!("{}  {}", made.id, made.name))
        }
        Users::List => {
            let users: Vec<User> = client.get("/v1/users").await?;
            let row = |u: &User| {
                let (id, nodes) = (u.id.to_string(), u.nodes.to_string());
                vec![id, u.name.clone(), u.role.clone(), nodes, moment(Some(u.created))]
            };
            printer.data(&users, || {
                table(
                    &["ID", "NAME", "ROLE", "DEVICES", "CREATED"],
                    &users.iter().map(row).collect::<Vec<_>>(),
                )
            })
        }
        Users::Rename { user, name } => {
            let user: User =
                client.send(Method::PATCH, &path("/v1/users", &user, ""), &Name { name }).await?;
            printer.data(&user, || format!("{}  {}", user.id, user.name))
        }
        Users::Role { user, role } => {
            let body = Role { role: role.as_str().to_owned() };
            let user: User = client.send(Method::PUT, &path("/v1/users", &user, "/role"), &body).await?;
            printer.data(&user, || format!("{}  {}  {}", user.id, user.name, user.role))
        }
        Users::Delete { user } => {
            let user: User = client.act(Method::DELETE, &path("/v1/users", &user, "")).await?;
            printer.data(&user, || format!("deleted {}", user.name))
        }
    }
}
