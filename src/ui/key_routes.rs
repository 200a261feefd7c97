//! What the addresses of People and Keys do: users are made, renamed and deleted, keys made (their
//! secret is shown in the answer, once) and revoked.

use axum::extract::{Path, Query};
use http::StatusCode;

use super::pages::{KeyForm, KeyRow, Keys, LIFETIMES, Made, Notice, People, Room};
use super::routes::{Asked, Caller, Fields, Reply, mendable, page, page_with, parse_tags};
use super::text::{clean, shell};
use super::{Stop, done, redirect};
use crate::control::service::{AdminError, NewAuthKeyRequest};
use crate::model::Role;

fn people_page(caller: &Caller, notice: Option<Notice>) -> People {
    let frame = caller.frame(Room::People, "People").command("tsd users list").notice(notice);
    People::new(frame, &caller.shared.control().users(), caller.now)
}

pub(super) async fn people(caller: Caller, Query(asked): Query<Asked>) -> Reply {
    page(&people_page(&caller, done(asked.done.as_deref())))
}

fn people_outcome<T>(caller: &Caller, code: &str, typed: &str, outcome: Result<T, AdminError>) -> Reply {
    match outcome {
        Ok(_) => Ok(redirect(&format!("/people?done={code}"))),
        Err(error) if mendable(&error) => {
            let mut again = people_page(caller, Some(Notice::danger(clean(&error.to_string(), 600))));
            again.name_field = clean(typed, 120);
            page_with(Stop::Admin(error).status(), &again)
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn make_user(caller: Caller, fields: Fields) -> Reply {
    let name = fields.one("name").trim();
    let outcome = caller.shared.control().create_user(&caller.actor(), name).await;
    people_outcome(&caller, "made", name, outcome)
}

/// A user's name by their id: the service would take `7` for a user *named* 7 first.
fn user_name(caller: &Caller, id: u64) -> Result<String, AdminError> {
    let found = caller.shared.control().users().into_iter().find(|u| u.id.0 == id);
    found.map(|u| u.name).ok_or_else(|| {
        AdminError::NotFound(format!("There is no user {id}: they were deleted. People shows all there are."))
    })
}

pub(super) async fn rename_user(caller: Caller, Path(id): Path<u64>, fields: Fields) -> Reply {
    let name = fields.one("name").trim();
    let outcome = caller.shared.control().rename_user(&caller.actor(), &user_name(&caller, id)?, name).await;
    people_outcome(&caller, "renamed", "", outcome)
}

pub(super) async fn set_role(caller: Caller, Path(id): Path<u64>, fields: Fields) -> Reply {
    let Some(role) = Role::parse(fields.one("role")) else {
        return Err(Stop::Form(StatusCode::BAD_REQUEST));
    };
    let outcome = caller.shared.control().set_role(&caller.actor(), &user_name(&caller, id)?, role).await;
    people_outcome(&caller, "role", "", outcome)
}

pub(super) async fn delete_user(caller: Caller, Path(id): Path<u64>, _fields: Fields) -> Reply {
    let outcome = caller.shared.control().delete_user(&caller.actor(), &user_name(&caller, id)?).await;
    people_outcome(&caller, "deleted", "", outcome)
}

fn keys_page(caller: &Caller, form: KeyForm, all: bool, notice: Option<Notice>) -> Keys {
    let frame = caller.frame(Room::Keys, "Keys").command("tsd authkeys list").notice(notice);
    let control = caller.shared.control();
    Keys::new(frame, &control.auth_keys(), &control.users(), form, caller.shared.nonce(), all, caller.now)
}

pub(super) async fn keys(caller: Caller, Query(asked): Query<Asked>) -> Reply {
    let form = KeyForm { hours: "24".to_owned(), ..KeyForm::default() };
    let all = asked.show.as_deref() == Some("all");
    page(&keys_page(&caller, form, all, done(asked.done.as_deref())))
}

pub(super) async fn make_key(caller: Caller, fields: Fields) -> Reply {
    let form = KeyForm {
        user: fields.one("user").to_owned(),
        reusable: fields.one("reusable") == "yes",
        ephemeral: fields.one("ephemeral") == "yes",
        tags: clean(fields.one("tags"), 4000),
        hours: fields.one("hours").to_owned(),
    };
    let known = LIFETIMES.iter().any(|(h, _)| *h == form.hours);
    let Some(hours) = form.hours.parse::<u64>().ok().filter(|_| known) else {
        return Err(Stop::Form(StatusCode::BAD_REQUEST));
    };
    if !caller.shared.first_time(fields.one("once")) {
        let notice = Notice::danger(
            "This form was sent before and its key was made then. Its secret is not shown twice: revoke it if you did not copy it, and make another.",
        );
        return page_with(StatusCode::CONFLICT, &keys_page(&caller, form, false, Some(notice)));
    }
    let made = match parse_tags(&form.tags) {
        Ok(tags) => {
            let request = NewAuthKeyRequest {
                user: form.user.clone(),
                reusable: form.reusable,
                ephemeral: form.ephemeral,
                tags,
                lifetime: std::time::Duration::from_secs(hours * 3600),
            };
            caller.shared.control().create_auth_key(&caller.actor(), request).await
        }
        Err(error) => Err(error),
    };
    match made {
        Ok(made) => page(&Made {
            frame: caller.frame(Room::Keys, "Your key").command(key_command(&form, hours)),
            row: KeyRow::new(&made.view, caller.now),
            secret: made.secret,
            join_url: caller.shared.status().join_url(),
        }),
        Err(error) if mendable(&error) => {
            let notice = Notice::danger(clean(&error.to_string(), 600));
            page_with(Stop::Admin(error).status(), &keys_page(&caller, form, false, Some(notice)))
        }
        Err(error) => Err(error.into()),
    }
}

/// The command that makes such a key.
fn key_command(form: &KeyForm, hours: u64) -> String {
    let mut out = format!("tsd authkeys create --user {}", shell(&form.user));
    if form.reusable {
        out.push_str(" --reusable");
    }
    if form.ephemeral {
        out.push_str(" --ephemeral");
    }
    let tags: Vec<&str> = form.tags.split_whitespace().collect();
    if !tags.is_empty() {
        out.push_str(&format!(" --tags {}", shell(&tags.join(","))));
    }
    out.push_str(&format!(" --expires {hours}h"));
    out
}

pub(super) async fn revoke_key(caller: Caller, Path(id): Path<u64>, _fields: Fields) -> Reply {
    caller.shared.control().revoke_auth_key(&caller.actor(), &id.to_string()).await?;
    Ok(redirect("/keys?done=revoked&show=all"))
}
