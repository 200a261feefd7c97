//! What each address does. Handlers take a [`Caller`] (only made for a signed-in request) and
//! [`Fields`] (only made from a form with the session's token), so none can forget to check.

use askama::Template;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Form, FromRequest, FromRequestParts, Path, Query, Request, State};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use chrono::{DateTime, Utc};
use http::request::Parts;
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;

use super::device_pages::{Approvals, Device, DeviceFilter, Devices, node_argument};
use super::pages::{
    Confirm, Frame, Login, Message, Notice, Room, Start, Warning, expiry_warnings, health_sentence,
    policy_warnings, user_names,
};
use super::session::{Session, clear_cookie};
use super::text::{clean, shell};
use super::{RequestInfo, Shared, Stop, access, done, history, key_routes, redirect, simulator};
use crate::clock::Now;
use crate::control::service::{Actor, AdminError, NodeView};
use crate::model::Tag;

/// Forms other than the policy's are short.
const FORM_LIMIT: usize = 64 << 10;
/// The policy may have 16 MiB; every byte of it may be sent as three.
const POLICY_LIMIT: usize = (48 << 20) + FORM_LIMIT;

/// How the service's own sentence about broken tests begins after its number.
const BROKEN_TESTS: &str = " test(s) of the policy do not hold";

pub(super) type Reply = Result<Response, Stop>;

/// The console's addresses.
pub(super) fn router(shared: Shared) -> Router {
    Router::new()
        .route("/", get(start))
        .route("/login", get(login_page).post(login))
        .route("/logout", post(logout))
        .route("/devices", get(devices))
        .route("/device/{id}", get(device))
        .route("/device/{id}/rename", post(rename))
        .route("/device/{id}/tags", post(tags))
        .route("/device/{id}/routes", post(approve_routes))
        .route("/device/{id}/expire", post(expire))
        .route("/device/{id}/remove", get(confirm_remove).post(remove))
        .route("/approvals", get(approvals))
        .route("/a/{id}", get(login_request).post(decide))
        .route("/people", get(key_routes::people).post(key_routes::make_user))
        .route("/people/{id}/role", post(key_routes::set_role))
        .route("/people/{id}/rename", post(key_routes::rename_user))
        .route("/people/{id}/delete", post(key_routes::delete_user))
        .route("/keys", get(key_routes::keys).post(key_routes::make_key))
        .route("/keys/{id}/revoke", post(key_routes::revoke_key))
        .route("/access", get(access::editor).post(access::submit).layer(DefaultBodyLimit::max(POLICY_LIMIT)))
        .route(
            "/simulator",
            get(simulator::ask).post(simulator::ask_draft).layer(DefaultBodyLimit::max(POLICY_LIMIT)),
        )
        .route("/simulator/give", post(simulator::give).layer(DefaultBodyLimit::max(POLICY_LIMIT)))
        .route("/access/version/{version}", get(history::version).post(history::rollback))
        .route("/access/version/{version}/text", get(history::text))
        .fallback(|| async { Stop::Missing })
        .method_not_allowed_fallback(|| async { Stop::Missing })
        .layer(DefaultBodyLimit::max(FORM_LIMIT))
        .with_state(shared)
}

/// A signed-in person and the moment they asked.
pub(super) struct Caller {
    pub(super) session: Session,
    pub(super) shared: Shared,
    pub(super) now: DateTime<Utc>,
}

impl Caller {
    pub(super) fn frame(&self, room: Room, title: &str) -> Frame {
        self.shared.frame(&self.session, room, title)
    }

    pub(super) fn actor(&self) -> Actor {
        self.session.actor()
    }
}

impl FromRequestParts<Shared> for Caller {
    type Rejection = Stop;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, Stop> {
        let session = parts.extensions.get::<Session>().cloned().ok_or(Stop::Ended)?;
        Ok(Self { session, shared: shared.clone(), now: Now::read().wall })
    }
}

/// A form's fields, whose token was not looked at yet.
pub(super) struct Unchecked(Vec<(String, String)>);

impl Unchecked {
    /// The fields, and whether they carry the session's token.
    pub(super) fn check(self, session: &Session) -> (Fields, bool) {
        let fields = Fields(self.0);
        let good = session.owns_form(fields.one("form"));
        (fields, good)
    }
}

impl FromRequest<Shared> for Unchecked {
    type Rejection = Stop;

    async fn from_request(request: Request, shared: &Shared) -> Result<Self, Stop> {
        match Form::<Vec<(String, String)>>::from_request(request, shared).await {
            Ok(Form(fields)) => Ok(Self(fields)),
            Err(refusal) => Err(Stop::Form(refusal.into_response().status())),
        }
    }
}

/// The fields of a form that carries the session's token.
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    /// The first field of that name, or nothing.
    pub(super) fn one(&self, name: &str) -> &str {
        self.0.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v)
    }

    /// Whether the form had such a field.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(n, _)| n == name)
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

impl FromRequest<Shared> for Fields {
    type Rejection = Stop;

    async fn from_request(request: Request, shared: &Shared) -> Result<Self, Stop> {
        let session = request.extensions().get::<Session>().cloned().ok_or(Stop::Ended)?;
        let (fields, good) = Unchecked::from_request(request, shared).await?.check(&session);
        if good { Ok(fields) } else { Err(Stop::Token) }
    }
}

/// What addresses may carry. Unknown names are ignored.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Asked {
    q: Option<String>,
    state: Option<String>,
    page: Option<String>,
    pub(super) show: Option<String>,
    token: Option<String>,
    why: Option<String>,
    pub(super) done: Option<String>,
    pub(super) from: Option<String>,
    pub(super) line: Option<String>,
}

/// Writes a page.
pub(super) fn page(template: &impl Template) -> Reply {
    Ok(Html(template.render()?).into_response())
}

/// Writes a page with another status than 200.
pub(super) fn page_with(status: StatusCode, template: &impl Template) -> Reply {
    Ok((status, Html(template.render()?)).into_response())
}

/// Whether a refusal is the typist's to mend: then the form is shown again with what was typed.
pub(super) fn mendable(error: &AdminError) -> bool {
    matches!(error, AdminError::Invalid(_) | AdminError::Conflict(_) | AdminError::NotFound(_))
}

async fn start(caller: Caller) -> Reply {
    let control = caller.shared.control();
    let (nodes, logins, users) = (control.nodes(), control.logins(), control.users());
    let status = caller.shared.status();
    let (fault, broken) = (control.policy_fault(), control.broken_tests());
    let mut warnings = policy_warnings(fault.as_deref(), &broken);
    // The service names both in plain words too; here they come with the way to their line.
    let told = |w: &String| fault.as_ref() == Some(w) || (!broken.is_empty() && w.contains(BROKEN_TESTS));
    let others = status.warnings().into_iter().filter(|w| !told(w));
    warnings.extend(others.chain(expiry_warnings(&nodes, caller.now)).map(|w| Warning::plain(&w)));
    let usable = control.auth_keys().iter().filter(|k| k.state == "usable").count();
    page(&Start {
        healthy: warnings.is_empty(),
        sentence: health_sentence(&nodes, logins.len(), warnings.len()),
        warnings,
        facts: status.facts(),
        counts: vec![
            (nodes.iter().filter(|n| n.online).count(), "devices online", "/devices?state=online"),
            (nodes.len(), "devices in all", "/devices"),
            (logins.len(), "waiting", "/approvals"),
            (users.len(), "people", "/people"),
            (usable, "usable keys", "/keys"),
        ],
        join_url: status.join_url(),
        users: user_names(&users),
        once: caller.shared.nonce(),
        frame: caller.frame(Room::Start, "Start").command("tsd status"),
    })
}

async fn login_page(State(shared): State<Shared>, Query(asked): Query<Asked>) -> Reply {
    let mut frame = Frame::stranger("Sign in to tsd");
    let token = match asked.token {
        Some(token) if shared.link_is_good(&token).await? => Some(token),
        Some(_) => {
            frame.notice = Some(Notice::danger("This link was used already or has lapsed. Make a new one."));
            None
        }
        None => None,
    };
    if asked.why.as_deref() == Some("plain") {
        frame.notice = Some(Notice::danger(
            "The link was opened over plain HTTP, where it could be read on the way, so it was withdrawn. Make a new one and open its https address.",
        ));
    }
    page(&Login { frame, token })
}

async fn login(State(shared): State<Shared>, request: Request) -> Reply {
    let info = request.extensions().get::<RequestInfo>().cloned().ok_or(Stop::Ended)?;
    let fields = Fields(Unchecked::from_request(request, &shared).await?.0);
    if !shared.use_link(fields.one("token")).await? {
        let frame = Frame::stranger("Sign in to tsd")
            .notice(Some(Notice::danger("This link was used already or has lapsed. Make a new one.")));
        return page_with(StatusCode::FORBIDDEN, &Login { frame, token: None });
    }
    let cookie = shared.start_session(info.remote.ip()).await?;
    tracing::info!("console: signed in by one-time link");
    with_cookie("/", &cookie)
}

async fn logout(caller: Caller, _fields: Fields) -> Reply {
    caller.shared.end_session(&caller.session).await?;
    with_cookie("/login", &clear_cookie())
}

fn with_cookie(to: &str, cookie: &str) -> Reply {
    let Ok(value) = HeaderValue::try_from(cookie) else {
        return Err(AdminError::Internal("the cookie could not be written".to_owned()).into());
    };
    let mut response = redirect(to);
    response.headers_mut().insert(header::SET_COOKIE, value);
    Ok(response)
}

async fn devices(caller: Caller, Query(asked): Query<Asked>) -> Reply {
    let filter = DeviceFilter {
        q: asked.q.unwrap_or_default().chars().take(100).collect(),
        state: asked.state.unwrap_or_default(),
        page: asked.page.and_then(|p| p.parse().ok()).unwrap_or(1),
    };
    let frame =
        caller.frame(Room::Devices, "Devices").command("tsd nodes list").notice(done(asked.done.as_deref()));
    let nodes = caller.shared.control().nodes();
    page(&Devices::new(frame, &nodes, &filter, &caller.shared.status().join_url(), caller.now))
}

/// A node by its id, and only by that: the service would take `7` for a device *named* 7 first, and
/// names are the devices' to choose.
fn find(caller: &Caller, id: &str) -> Result<NodeView, Stop> {
    let id: u64 = id.parse().map_err(|_| Stop::Missing)?;
    let node = caller.shared.control().nodes().into_iter().find(|n| n.id.0 == id);
    node.ok_or_else(|| {
        let text = format!("There is no device {id}: it was removed. Devices shows all there are.");
        AdminError::NotFound(text).into()
    })
}

/// What names this node and no other to the service: no device can be called by an address.
fn handle(node: &NodeView) -> String {
    node.ipv4.to_string()
}

fn device_page(caller: &Caller, node: &NodeView, notice: Option<Notice>) -> Device {
    let frame = caller
        .frame(Room::Devices, &clean(&node.name, 63))
        .command(format!("tsd nodes show {}", node_argument(node)))
        .notice(notice);
    Device::new(frame, node, &caller.shared.control().given(node.id), caller.now)
}

async fn device(caller: Caller, Path(id): Path<String>, Query(asked): Query<Asked>) -> Reply {
    let node = find(&caller, &id)?;
    page(&device_page(&caller, &node, done(asked.done.as_deref())))
}

/// The page again with what was refused and what was typed, or on to the changed device.
fn device_outcome(
    caller: &Caller,
    node: &NodeView,
    code: &str,
    outcome: Result<NodeView, AdminError>,
    keep: impl FnOnce(&mut Device),
) -> Reply {
    match outcome {
        Ok(_) => Ok(redirect(&format!("/device/{}?done={code}", node.id))),
        Err(error) if mendable(&error) => {
            let mut again = device_page(caller, node, Some(Notice::danger(clean(&error.to_string(), 600))));
            keep(&mut again);
            page_with(Stop::Admin(error).status(), &again)
        }
        Err(error) => Err(error.into()),
    }
}

async fn rename(caller: Caller, Path(id): Path<String>, fields: Fields) -> Reply {
    let node = find(&caller, &id)?;
    let name = fields.one("name").trim();
    let outcome = caller.shared.control().rename_node(&caller.actor(), &handle(&node), name).await;
    device_outcome(&caller, &node, "renamed", outcome, |d| d.name_field = clean(name, 200))
}

/// Tags as typed: separated by spaces or commas, with or without prefix.
pub(super) fn parse_tags(text: &str) -> Result<Vec<Tag>, AdminError> {
    text.split(|c: char| c.is_whitespace() || c == ',')
        .filter(|t| !t.is_empty())
        .map(|t| if t.starts_with("tag:") { Tag::parse(t) } else { Tag::parse(&format!("tag:{t}")) })
        .collect::<Result<_, _>>()
        .map_err(|e| AdminError::Invalid(e.to_string()))
}

async fn tags(caller: Caller, Path(id): Path<String>, fields: Fields) -> Reply {
    let node = find(&caller, &id)?;
    let typed = fields.one("tags");
    let outcome = match parse_tags(typed) {
        Ok(tags) => caller.shared.control().tag_node(&caller.actor(), &handle(&node), &tags).await,
        Err(error) => Err(error),
    };
    device_outcome(&caller, &node, "tagged", outcome, |d| d.tags_field = clean(typed, 4000))
}

async fn approve_routes(caller: Caller, Path(id): Path<String>, fields: Fields) -> Reply {
    let node = find(&caller, &id)?;
    let mut routes = Vec::new();
    for text in fields.all("route") {
        let Ok(route) = text.parse() else {
            return Err(Stop::Form(StatusCode::BAD_REQUEST));
        };
        routes.push(route);
    }
    let outcome =
        caller.shared.control().approve_routes(&caller.actor(), &handle(&node), Some(&routes)).await;
    device_outcome(&caller, &node, "routes", outcome, |_| ())
}

async fn expire(caller: Caller, Path(id): Path<String>, _fields: Fields) -> Reply {
    let node = find(&caller, &id)?;
    let outcome = caller.shared.control().expire_node(&caller.actor(), &handle(&node)).await;
    device_outcome(&caller, &node, "expired", outcome, |_| ())
}

fn remove_page(caller: &Caller, node: &NodeView) -> Confirm {
    let name = clean(&node.name, 63);
    Confirm {
        frame: caller
            .frame(Room::Devices, &format!("Remove {name}"))
            .command(format!("tsd nodes delete {}", node_argument(node))),
        sentence: "This cannot be undone.".to_owned(),
        consequences: vec![
            format!(
                "{name} loses its connections to all other devices at once and vanishes from their lists."
            ),
            format!("Its addresses {} and {} become free.", node.ipv4, node.ipv6),
            "To come back it must join again, with a key or an approval.".to_owned(),
        ],
        action: format!("/device/{}/remove", node.id),
        button: "Remove device",
        type_this: name,
        back: format!("/device/{}", node.id),
    }
}

async fn confirm_remove(caller: Caller, Path(id): Path<String>) -> Reply {
    let node = find(&caller, &id)?;
    page(&remove_page(&caller, &node))
}

async fn remove(caller: Caller, Path(id): Path<String>, fields: Fields) -> Reply {
    let node = find(&caller, &id)?;
    let mut again = remove_page(&caller, &node);
    if fields.one("typed").trim() != again.type_this {
        again.frame.notice = Some(Notice::danger(format!(
            "The name does not fit; nothing was removed. Type {}.",
            again.type_this
        )));
        return page_with(StatusCode::UNPROCESSABLE_ENTITY, &again);
    }
    caller.shared.control().delete_node(&caller.actor(), &handle(&node)).await?;
    Ok(redirect("/devices?done=removed"))
}

async fn approvals(caller: Caller, Query(asked): Query<Asked>) -> Reply {
    let frame = caller
        .frame(Room::Approvals, "Approvals")
        .command("tsd logins list")
        .notice(done(asked.done.as_deref()));
    let control = caller.shared.control();
    page(&Approvals::new(frame, &control.logins(), &control.nodes(), &control.users(), caller.now))
}

/// Whether a text can be a login's id at all; others get no page.
fn login_id(id: &str) -> Result<&str, Stop> {
    let fits = !id.is_empty()
        && id.len() <= 64
        && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if fits { Ok(id) } else { Err(Stop::Missing) }
}

/// The AuthURL (control.md 4.2). A stranger learns nothing, not even whether the login exists.
async fn login_request(State(shared): State<Shared>, Path(id): Path<String>, request: Request) -> Reply {
    let id = login_id(&id)?;
    let Some(session) = request.extensions().get::<Session>().cloned() else {
        return page(&Message {
            frame: Frame::stranger("This device waits for an admin"),
            text: "An admin of this network must let the device in. Send them this line, or the address of this page. The device goes on by itself once it is approved.".to_owned(),
            type_this: format!("tsd logins approve {id}"),
            link: Some(("/login".to_owned(), "I am an admin: sign in")),
            code: 200,
        });
    };
    let caller = Caller { session, shared, now: Now::read().wall };
    let control = caller.shared.control();
    let frame = caller
        .frame(Room::Approvals, "Let this device in?")
        .command(format!("tsd logins approve {} --user NAME", shell(id)));
    match control.logins().iter().find(|l| l.id.0 == id) {
        Some(login) => page(&Approvals::one(frame, login, &control.users(), caller.now)),
        None => page_with(
            StatusCode::NOT_FOUND,
            &Message {
                frame: caller.frame(Room::Approvals, "This login waits no more"),
                text: "It was approved or rejected already, or it lapsed after a day. If the device is not in, start the login on it again.".to_owned(),
                type_this: String::new(),
                link: Some(("/approvals".to_owned(), "See what waits")),
                code: 404,
            },
        ),
    }
}

async fn decide(caller: Caller, Path(id): Path<String>, fields: Fields) -> Reply {
    let id = login_id(&id)?;
    let control = caller.shared.control();
    match fields.one("decision") {
        "approve" => {
            let node = control.approve_login(&caller.actor(), id, Some(fields.one("user"))).await?;
            Ok(redirect(&format!("/device/{}?done=approved", node.id)))
        }
        "reject" => {
            control.reject_login(&caller.actor(), id).await?;
            Ok(redirect("/approvals?done=rejected"))
        }
        _ => Err(Stop::Form(StatusCode::BAD_REQUEST)),
    }
}
