//! What people may do to users, keys and nodes, decided on a draft: check first, change after.

use std::time::Duration;

use ipnet::IpNet;

use super::register::{self, Newcomer};
use super::state::Draft;
use super::types::{AdminError, AuthKeyView, LoginView, NewAuthKey, NewAuthKeyRequest, NodeView, UserView};
use super::views;
use crate::model::{LoginId, Node, Owner, PreAuthKey, Role, Tag, Tags, User};

/// A pre-auth key works no longer than this (RELIABILITY 1.4).
const MAX_KEY_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

type Done<T> = Result<T, AdminError>;

fn find_user(draft: &Draft, text: &str) -> Done<User> {
    let user = draft.net.user(text.trim());
    user.map(|u| (**u).clone()).ok_or_else(|| {
        AdminError::NotFound(format!(
            "there is no user {text:?}; `tsd users list` shows all, `tsd users create` makes one"
        ))
    })
}

/// A local name such as `alice`, or a mail address.
fn check_user_name(draft: &Draft, name: &str) -> Done<String> {
    let name = name.trim().to_ascii_lowercase();
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
    let mut parts = name.split('@');
    let local = parts.next().unwrap_or_default();
    let domain = parts.next();
    let good_local =
        !local.is_empty() && local.chars().all(fine) && local.chars().any(|c| c.is_ascii_alphabetic());
    let good_domain = domain
        .is_none_or(|d| !d.is_empty() && d.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c)));
    if !good_local || !good_domain || parts.next().is_some() || name.len() > 128 {
        return Err(AdminError::Invalid(format!(
            "{name:?} is no login name: use letters, digits, '.', '_', '-', '+', such as alice or alice@example.com"
        )));
    }
    if draft.net.users.values().any(|u| u.name == name) {
        return Err(AdminError::Conflict(format!("there is a user {name:?} already; take another name")));
    }
    Ok(name)
}

/// Makes a user; the first one owns the tailnet.
pub(super) fn create_user(draft: &mut Draft, name: &str) -> Done<UserView> {
    let name = check_user_name(draft, name)?;
    let role = if draft.net.users.is_empty() { Role::Owner } else { Role::Member };
    let user = User { id: draft.next_user(), name, role, created: draft.now.wall };
    let user = draft.put_user(user);
    Ok(views::user(&draft.net, &user))
}

/// Renames a user.
pub(super) fn rename_user(draft: &mut Draft, user: &str, name: &str) -> Done<UserView> {
    let mut user = find_user(draft, user)?;
    user.name = check_user_name(draft, name)?;
    let user = draft.put_user(user);
    Ok(views::user(&draft.net, &user))
}

/// Gives a user another role.
pub(super) fn set_role(draft: &mut Draft, user: &str, role: Role) -> Done<UserView> {
    let mut user = find_user(draft, user)?;
    if role != Role::Owner {
        other_owner(draft, &user)?;
    }
    if user.role == role {
        return Ok(views::user(&draft.net, &user));
    }
    user.role = role;
    let user = draft.put_user(user);
    Ok(views::user(&draft.net, &user))
}

/// A tailnet with users has an owner.
fn other_owner(draft: &Draft, user: &User) -> Done<()> {
    let another = |u: &std::sync::Arc<User>| u.role == Role::Owner && u.id != user.id;
    if user.role != Role::Owner || draft.net.users.values().any(another) {
        return Ok(());
    }
    Err(AdminError::Conflict(format!(
        "user {:?} is the only owner, and there has to be one; make somebody else an owner first: `tsd users role NAME owner`",
        user.name
    )))
}

/// Deletes a user without devices.
pub(super) fn delete_user(draft: &mut Draft, user: &str) -> Done<UserView> {
    let user = find_user(draft, user)?;
    if draft.net.users.len() > 1 {
        other_owner(draft, &user)?;
    }
    let view = views::user(&draft.net, &user);
    if view.nodes > 0 {
        return Err(AdminError::Conflict(format!(
            "user {:?} still owns {} device(s); delete them first (`tsd nodes list`, `tsd nodes delete`)",
            user.name, view.nodes
        )));
    }
    let keys: Vec<PreAuthKey> = draft
        .net
        .keys
        .values()
        .filter(|k| k.user == user.id && k.revoked.is_none())
        .map(|k| (**k).clone())
        .collect();
    for mut key in keys {
        key.revoked = Some(draft.now.wall);
        draft.put_key(key);
    }
    let made: Vec<Node> =
        draft.net.nodes.values().filter(|n| n.made_by == Some(user.id)).map(|n| (**n).clone()).collect();
    for mut node in made {
        node.made_by = None;
        draft.put_node(node);
    }
    draft.delete_user(user.id);
    Ok(view)
}

fn declared(draft: &Draft, tags: &[Tag]) -> Done<()> {
    let unknown = tags.iter().find(|t| !draft.net.policy.declares(t));
    unknown.map_or(Ok(()), |tag| {
        Err(AdminError::Invalid(format!(
            "{tag} is not declared; add it to \"tagOwners\" in the policy first"
        )))
    })
}

/// Makes a pre-auth key.
pub(super) fn create_auth_key(draft: &mut Draft, request: NewAuthKeyRequest) -> Done<NewAuthKey> {
    let user = find_user(draft, &request.user)?;
    declared(draft, &request.tags)?;
    if request.lifetime.is_zero() || request.lifetime > MAX_KEY_LIFETIME {
        return Err(AdminError::Invalid(
            "a pre-auth key may work for at least a second and at most 90 days; give another --expires, such as 24h".into(),
        ));
    }
    let lifetime = chrono::Duration::from_std(request.lifetime).unwrap_or_default();
    let secret = hex::encode(draft.rng.bytes::<32>());
    let key = PreAuthKey {
        id: draft.next_key(),
        hash: register::hash_secret(&secret),
        user: user.id,
        reusable: request.reusable,
        ephemeral: request.ephemeral,
        tags: Tags::new(request.tags),
        created: draft.now.wall,
        expires: draft.now.wall + lifetime,
        revoked: None,
        uses: 0,
    };
    let key = draft.put_key(key);
    Ok(NewAuthKey {
        view: views::auth_key(&draft.net, &key, draft.now.wall),
        secret: format!("tskey-auth-{}-{secret}", key.id),
    })
}

/// Revokes a key by id or full text.
pub(super) fn revoke_auth_key(draft: &mut Draft, text: &str) -> Done<AuthKeyView> {
    let text = text.trim();
    let id =
        register::split_key(text).map(|(id, _)| id).or_else(|| text.parse().ok().map(crate::model::KeyId));
    let key = id.and_then(|id| draft.net.keys.get(&id)).cloned();
    let Some(key) = key else {
        return Err(AdminError::NotFound(
            "there is no such pre-auth key; `tsd authkeys list` shows all".into(),
        ));
    };
    let mut key = (*key).clone();
    if key.revoked.is_none() {
        key.revoked = Some(draft.now.wall);
        draft.put_key(key.clone());
    }
    Ok(views::auth_key(&draft.net, &key, draft.now.wall))
}

fn change_node(draft: &mut Draft, node: Node) -> NodeView {
    let node = draft.put_node(node);
    views::node(&draft.net, &node, draft.now.wall)
}

/// Names a node.
pub(super) fn rename_node(draft: &mut Draft, node: &str, name: &str) -> Done<NodeView> {
    let mut node = (*views::find_node(&draft.net, node)?).clone();
    let name = name.trim().to_ascii_lowercase();
    if name.is_empty() || crate::dns::sanitize_label(&name) != name {
        return Err(AdminError::Invalid(format!(
            "{name:?} is no device name: use letters, digits and '-' inside, at most 63 of them, not digits alone"
        )));
    }
    if draft.net.by_name.get(&name).is_some_and(|id| *id != node.id) {
        return Err(AdminError::Conflict(format!("another device is called {name:?}; take another name")));
    }
    node.name = name;
    node.renamed = true;
    Ok(change_node(draft, node))
}

/// Replaces a node's tags.
pub(super) fn tag_node(draft: &mut Draft, node: &str, tags: &[Tag]) -> Done<NodeView> {
    let mut node = (*views::find_node(&draft.net, node)?).clone();
    declared(draft, tags)?;
    match Tags::new(tags.iter().cloned()) {
        Some(tags) => {
            if let Some(user) = node.owner.user() {
                node.made_by = Some(user);
            }
            node.owner = Owner::Tags(tags);
            node.expiry = None;
        }
        None => {
            let Some(user) = node.owner.user().or(node.made_by) else {
                return Err(AdminError::Invalid(format!(
                    "{} would belong to nobody without tags: the user who made it is gone",
                    node.name
                )));
            };
            node.owner = Owner::User(user);
        }
    }
    Ok(change_node(draft, node))
}

/// Expires a node's key now.
pub(super) fn expire_node(draft: &mut Draft, node: &str) -> Done<NodeView> {
    let mut node = (*views::find_node(&draft.net, node)?).clone();
    if !node.expired(draft.now.wall) {
        node.expiry = Some(draft.now.wall);
    }
    Ok(change_node(draft, node))
}

/// Removes a node.
pub(super) fn delete_node(draft: &mut Draft, node: &str) -> Done<NodeView> {
    let node = views::find_node(&draft.net, node)?;
    let view = views::node(&draft.net, &node, draft.now.wall);
    draft.delete_node(node.id);
    Ok(view)
}

/// Sets the approved routes.
pub(super) fn approve_routes(draft: &mut Draft, node: &str, routes: Option<&[IpNet]>) -> Done<NodeView> {
    let mut node = (*views::find_node(&draft.net, node)?).clone();
    let routes = routes.unwrap_or(&node.hostinfo.routable_ips);
    node.approved_routes = routes.iter().map(IpNet::trunc).collect();
    Ok(change_node(draft, node))
}

fn waiting(draft: &Draft, id: &str) -> Done<LoginId> {
    let id = register::login_id(id);
    let there = draft.net.logins.get(&id);
    if there.is_some_and(|l| l.expires > draft.now.wall) {
        return Ok(id);
    }
    Err(AdminError::NotFound(
        "this login is gone: it was decided, lapsed after a day, or never was; `tsd logins list` shows what waits, the device gets a new link by itself".into(),
    ))
}

/// Lets a waiting login in.
pub(super) fn approve_login(draft: &mut Draft, id: &str, user: Option<&str>) -> Done<NodeView> {
    let id = waiting(draft, id)?;
    let user = match user {
        Some(name) => find_user(draft, name)?,
        None => match draft.net.users.values().collect::<Vec<_>>().as_slice() {
            [only] => (***only).clone(),
            [] => {
                return Err(AdminError::Invalid(
                    "there is no user yet; make one with `tsd users create`".into(),
                ));
            }
            _ => {
                return Err(AdminError::Invalid(
                    "there are several users; say whose the device becomes with --user".into(),
                ));
            }
        },
    };
    let Some(login) = draft.net.logins.get(&id).cloned() else {
        return Err(AdminError::NotFound("this login is gone".into()));
    };
    // The key may have been registered by another road meanwhile.
    if draft.net.by_key(&login.key).is_some_and(|n| n.machine != login.machine) {
        return Err(AdminError::Conflict(
            "the node key of this login belongs to another machine; reject it".into(),
        ));
    }
    let owner = register::owner(&draft.net, user.id, &[], &login.hostinfo.request_tags)
        .map_err(AdminError::Invalid)?;
    let newcomer = Newcomer {
        machine: login.machine,
        key: login.key,
        hostinfo: login.hostinfo.clone(),
        capver: login.capver,
        ephemeral: login.ephemeral,
        owner,
        made_by: user.id,
        auth_key: None,
        expiry: None,
    };
    let node = register::admit(draft, newcomer).map_err(|e| AdminError::Invalid(e.to_string()))?;
    draft.drop_login(&id);
    Ok(views::node(&draft.net, &node, draft.now.wall))
}

/// Turns a waiting login away.
pub(super) fn reject_login(draft: &mut Draft, id: &str) -> Done<LoginView> {
    let id = waiting(draft, id)?;
    let Some(login) = draft.drop_login(&id) else {
        return Err(AdminError::NotFound("this login is gone".into()));
    };
    let until = draft.now.wall + register::LOGIN_LIFETIME;
    let rejected = std::sync::Arc::make_mut(&mut draft.net.rejected);
    if rejected.len() >= register::MAX_LOGINS
        && let Some(first) = rejected.keys().next().cloned()
    {
        rejected.remove(&first);
    }
    rejected.insert(id, until);
    Ok(views::login(&login))
}
