//! `tsd authkeys`.

use http::Method;

use super::args::Authkeys;
use super::client::{Client, path};
use super::exit::Failure;
use super::printer::{Printer, list, moment, table};
use crate::api::types::{AuthKey, CreateAuthKey, CreatedAuthKey};

pub(super) async fn run(command: Authkeys, client: &Client, printer: &Printer) -> Result<(), Failure> {
    match command {
        Authkeys::Create(args) => {
            let body = CreateAuthKey {
                user: args.user,
                reusable: args.reusable,
                ephemeral: args.ephemeral,
                tags: args.tags,
                lifetime_seconds: args.expires.as_secs(),
            };
            let made: CreatedAuthKey = client.send(Method::POST, "/v1/authkeys", &body).await?;
            printer.say(&format!(
                "key {} works until {}; it is not shown again",
                made.id,
                moment(Some(made.expires))
            ));
            printer.data(&made, || made.key.clone())
        }
        Authkeys::List => {
            let keys: Vec<AuthKey> = client.get("/v1/authkeys").await?;
            let head = ["ID", "USER", "STATE", "REUSABLE", "EPHEMERAL", "USES", "TAGS", "EXPIRES"];
            printer.data(&keys, || table(&head, &keys.iter().map(row).collect::<Vec<_>>()))
        }
        Authkeys::Revoke { key } => {
            let key: AuthKey = client.act(Method::DELETE, &path("/v1/authkeys", &key, "")).await?;
            printer.data(&key, || format!("revoked {}", key.id))
        }
    }
}

fn row(key: &AuthKey) -> Vec<String> {
    let word = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    vec![
        key.id.to_string(),
        key.user.clone(),
        key.state.clone(),
        word(key.reusable),
        word(key.ephemeral),
        key.uses.to_string(),
        list(&key.tags),
        moment(Some(key.expires)),
    ]
}
