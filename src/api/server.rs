//! The admin socket: opened safely, answered by the service's functions.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use axum::extract::{DefaultBodyLimit, Path as Arg, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::future::BoxFuture;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::error::ApiError;
use super::types::{
    Approve, AuthKey, ComparePolicies, Compared, CountPolicy, CreateAuthKey, CreatedAuthKey, ExplainPolicy,
    Link, Login, Name, Node, Outcome, Policy, PolicyEntry, Role, Rollback, Routes, SetPolicy, Status, Tags,
    User,
};
use crate::control::service::{Actor, AdminError, Control, NewAuthKeyRequest};
use crate::model::Tag;

/// Makes a console link with a one-time token.
pub type LinkMaker = Arc<dyn Fn() -> BoxFuture<'static, Result<String, AdminError>> + Send + Sync>;

/// Everything but a policy is far smaller.
const MAX_BODY: usize = 1 << 20;
/// A policy of 64 MiB as a JSON string: quotes and line ends take two bytes.
const POLICY_BODY: usize = 160 << 20;
/// Admins and their scripts; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 256;

/// What the socket's routes work with.
#[derive(Clone)]
pub struct Api {
    /// The door to the tailnet's state.
    pub control: Control,
    /// How the server stands.
    pub status: Arc<dyn Fn() -> Status + Send + Sync>,
    /// Makes a console link.
    pub console_link: LinkMaker,
}

/// Opens the socket. The caller holds the state directory's lock, so a socket found there is stale.
///
/// # Errors
/// When something else lies in its place or the directory fails.
pub fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => bail!("{} is no socket; move it away", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot look at {}", path.display()));
        }
    }
    let listener = UnixListener::bind(path).with_context(|| {
        format!("cannot open the admin socket {} (a path over 107 bytes is too long)", path.display())
    })?;
    // Nobody else can reach into the 0700 directory between these two lines.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers on the socket until `stop` turns true.
pub async fn serve(listener: UnixListener, api: Api, mut stop: watch::Receiver<bool>) {
    let routes = routes(api);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) if may_speak(&stream) => {
                    connections.spawn(connection(stream, routes.clone(), stop.clone()));
                }
                Ok(_) => tracing::warn!("refused another user on the admin socket"),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the admin socket");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = stopped(&mut stop) => break,
        }
    }
    while connections.join_next().await.is_some() {}
}

/// Our own user and root, whatever the file modes say.
fn may_speak(stream: &UnixStream) -> bool {
    let me = nix::unistd::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == me || peer.uid() == 0)
}

/// Waits for the word to stop; a sender that is gone says so too.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn connection(stream: UnixStream, routes: Router, mut stop: watch::Receiver<bool>) {
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(30))
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    tokio::pin!(serving);
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = stopped(&mut stop) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "admin connection ended");
    }
}

fn routes(api: Api) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/console/link", post(console_link))
        .route("/v1/users", get(users).post(create_user))
        .route("/v1/users/{user}", axum::routing::patch(rename_user).delete(delete_user))
        .route("/v1/users/{user}/role", axum::routing::put(set_role))
        .route("/v1/authkeys", get(auth_keys).post(create_auth_key))
        .route("/v1/authkeys/{key}", axum::routing::delete(revoke_auth_key))
        .route("/v1/nodes", get(nodes))
        .route("/v1/nodes/{node}", get(node).patch(rename_node).delete(delete_node))
        .route("/v1/nodes/{node}/tags", axum::routing::put(tag_node))
        .route("/v1/nodes/{node}/expire", post(expire_node))
        .route("/v1/nodes/{node}/routes", axum::routing::put(approve_routes))
        .route("/v1/logins", get(logins))
        .route("/v1/logins/{login}/approve", post(approve_login))
        .route("/v1/logins/{login}/reject", post(reject_login))
        .merge(policy_routes().layer(DefaultBodyLimit::max(POLICY_BODY)))
        .fallback(|| async {
            ApiError::invalid(
                "this server does not know that request; are tsd and the server of one version?",
            )
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(api)
}

/// What takes or gives policy texts.
fn policy_routes() -> Router<Api> {
    Router::new()
        .route("/v1/policy", get(policy).put(set_policy))
        .route("/v1/policy/check", post(check_policy))
        .route("/v1/policy/explain", post(explain_policy))
        .route("/v1/policy/stats", post(count_policy))
        .route("/v1/policy/diff", post(compare_policies))
        .route("/v1/policy/history", get(policy_history))
        .route("/v1/policy/history/{version}", get(policy_at))
        .route("/v1/policy/rollback", post(rollback_policy))
}

type Answer<T> = Result<Json<T>, ApiError>;

impl Api {
    fn answer<T, V: Into<T>>(&self, result: Result<V, AdminError>) -> Answer<T> {
        match result {
            Ok(value) => Ok(Json(value.into())),
            Err(error) => Err(ApiError::new(error)),
        }
    }
}

fn by() -> Actor {
    Actor::local("admin socket")
}

fn tags(texts: &[String]) -> Result<Vec<Tag>, ApiError> {
    let parse = |t: &String| Tag::parse(t).map_err(|e| ApiError::invalid(e.to_string()));
    texts.iter().map(parse).collect()
}

fn all<T, V: Into<T>>(views: Vec<V>) -> Json<Vec<T>> {
    Json(views.into_iter().map(Into::into).collect())
}

async fn status(State(api): State<Api>) -> Json<Status> {
    Json((api.status)())
}

async fn console_link(State(api): State<Api>) -> Answer<Link> {
    let link = (api.console_link)().await;
    api.answer(link.map(|url| Link { url }))
}

async fn users(State(api): State<Api>) -> Json<Vec<User>> {
    all(api.control.users())
}

async fn create_user(State(api): State<Api>, Json(body): Json<Name>) -> Answer<User> {
    api.answer(api.control.create_user(&by(), &body.name).await)
}

async fn rename_user(State(api): State<Api>, Arg(user): Arg<String>, Json(body): Json<Name>) -> Answer<User> {
    api.answer(api.control.rename_user(&by(), &user, &body.name).await)
}

async fn set_role(State(api): State<Api>, Arg(user): Arg<String>, Json(body): Json<Role>) -> Answer<User> {
    let Some(role) = crate::model::Role::parse(body.role.trim()) else {
        let all = crate::model::Role::ALL.map(crate::model::Role::as_str).join(", ");
        return Err(ApiError::invalid(format!("{:?} is no role; there are {all}", body.role)));
    };
    api.answer(api.control.set_role(&by(), &user, role).await)
}

async fn delete_user(State(api): State<Api>, Arg(user): Arg<String>) -> Answer<User> {
    api.answer(api.control.delete_user(&by(), &user).await)
}

async fn auth_keys(State(api): State<Api>) -> Json<Vec<AuthKey>> {
    all(api.control.auth_keys())
}

async fn create_auth_key(State(api): State<Api>, Json(body): Json<CreateAuthKey>) -> Answer<CreatedAuthKey> {
    let request = NewAuthKeyRequest {
        tags: tags(&body.tags)?,
        user: body.user,
        reusable: body.reusable,
        ephemeral: body.ephemeral,
        lifetime: Duration::from_secs(body.lifetime_seconds),
    };
    api.answer(api.control.create_auth_key(&by(), request).await)
}

async fn revoke_auth_key(State(api): State<Api>, Arg(key): Arg<String>) -> Answer<AuthKey> {
    api.answer(api.control.revoke_auth_key(&by(), &key).await)
}

async fn nodes(State(api): State<Api>) -> Json<Vec<Node>> {
    all(api.control.nodes())
}

async fn node(State(api): State<Api>, Arg(node): Arg<String>) -> Answer<Node> {
    let node: Json<Node> = api.answer(api.control.node(&node))?;
    Ok(Json(Node { key: Some(node.node_key.clone()), ..node.0 }))
}

async fn rename_node(State(api): State<Api>, Arg(node): Arg<String>, Json(body): Json<Name>) -> Answer<Node> {
    api.answer(api.control.rename_node(&by(), &node, &body.name).await)
}

async fn delete_node(State(api): State<Api>, Arg(node): Arg<String>) -> Answer<Node> {
    api.answer(api.control.delete_node(&by(), &node).await)
}

async fn tag_node(State(api): State<Api>, Arg(node): Arg<String>, Json(body): Json<Tags>) -> Answer<Node> {
    api.answer(api.control.tag_node(&by(), &node, &tags(&body.tags)?).await)
}

async fn expire_node(State(api): State<Api>, Arg(node): Arg<String>) -> Answer<Node> {
    api.answer(api.control.expire_node(&by(), &node).await)
}

async fn approve_routes(
    State(api): State<Api>,
    Arg(node): Arg<String>,
    Json(body): Json<Routes>,
) -> Answer<Node> {
    let parse = |text: &String| {
        text.parse::<ipnet::IpNet>()
            .map_err(|_| ApiError::invalid(format!("{text:?} is no prefix; write it like 192.168.1.0/24")))
    };
    let routes = match &body.routes {
        Some(texts) => Some(texts.iter().map(parse).collect::<Result<Vec<_>, _>>()?),
        None => None,
    };
    api.answer(api.control.approve_routes(&by(), &node, routes.as_deref()).await)
}

async fn logins(State(api): State<Api>) -> Json<Vec<Login>> {
    all(api.control.logins())
}

async fn approve_login(
    State(api): State<Api>,
    Arg(login): Arg<String>,
    Json(body): Json<Approve>,
) -> Answer<Node> {
    api.answer(api.control.approve_login(&by(), &login, body.user.as_deref()).await)
}

async fn reject_login(State(api): State<Api>, Arg(login): Arg<String>) -> Answer<Login> {
    api.answer(api.control.reject_login(&by(), &login).await)
}

async fn policy(State(api): State<Api>) -> Json<Policy> {
    Json(api.control.policy().into())
}

async fn policy_history(State(api): State<Api>) -> Answer<Vec<PolicyEntry>> {
    let all = api.control.policy_history().await;
    api.answer(all.map(|list| list.into_iter().map(PolicyEntry::from).collect::<Vec<_>>()))
}

async fn policy_at(State(api): State<Api>, Arg(version): Arg<u64>) -> Answer<Policy> {
    api.answer(api.control.policy_at(version).await)
}

async fn check_policy(State(api): State<Api>, Json(body): Json<SetPolicy>) -> Answer<Outcome> {
    let outcome = api.control.check_policy(&by(), &body.text).await;
    api.answer(outcome)
}

async fn set_policy(State(api): State<Api>, Json(body): Json<SetPolicy>) -> Answer<Outcome> {
    let SetPolicy { text, comment, confirmed, expect } = body;
    let outcome = api.control.set_policy(&by(), &text, &comment, confirmed, expect).await;
    api.answer(outcome)
}

async fn explain_policy(
    State(api): State<Api>,
    Json(body): Json<ExplainPolicy>,
) -> Answer<crate::acl::explain::Explanation> {
    let ExplainPolicy { from, to, port, protocol, ssh_user, draft } = body;
    let asked = crate::acl::explain::Asked { from, to, port, protocol, ssh_user };
    api.answer(api.control.explain(&asked, draft.as_deref()).await.map_err(Into::into))
}

async fn count_policy(
    State(api): State<Api>,
    Json(body): Json<CountPolicy>,
) -> Answer<crate::acl::stats::PolicyStats> {
    api.answer(api.control.policy_numbers(body.draft).await)
}

async fn compare_policies(State(api): State<Api>, Json(body): Json<ComparePolicies>) -> Answer<Compared> {
    api.answer(api.control.compare_policies(body.a, body.b).await)
}

async fn rollback_policy(State(api): State<Api>, Json(body): Json<Rollback>) -> Answer<Outcome> {
    let Rollback { version, comment, confirmed, expect } = body;
    let outcome = api.control.rollback_policy(&by(), version, &comment, confirmed, expect).await;
    api.answer(outcome)
}

#[cfg(test)]
mod tests;
