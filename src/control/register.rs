//! Registration (control.md 5.4): every flow, decided on a draft. The order of the checks is part of
//! the protocol: whose key it is, log out, follow up, pre-auth key, interactive.

use chrono::{DateTime, Duration, Utc};

use super::hostinfo::bounded;
use super::state::{Draft, Tailnet};
use crate::keys::{MachinePublic, NodePublic, StableId, UserId};
use crate::model::{KeyId, LoginId, Node, Owner, PendingLogin, PreAuthKey, Tag, Tags};
use crate::wire::{CapVer, Hostinfo, Login, RegisterRequest, RegisterResponse, User};

/// Waiting logins at most; the oldest makes room (RELIABILITY row 30).
pub(super) const MAX_LOGINS: usize = 1000;
/// How long a login waits for a person.
pub(super) const LOGIN_LIFETIME: Duration = Duration::days(1);
/// The user that stands for all tagged nodes, as the reference servers have it (control.md 5.4).
pub(super) const TAGGED_USER: UserId = UserId(2_147_455_555);
/// Its name.
pub(super) const TAGGED_NAME: &str = "tagged-devices";

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    /// Answer this now.
    Answer(Box<RegisterResponse>),
    /// Block until this login is decided, then ask again.
    Wait(LoginId),
}

fn answer(response: RegisterResponse) -> Outcome {
    Outcome::Answer(Box::new(response))
}

fn refuse(error: impl Into<String>) -> Outcome {
    answer(RegisterResponse { error: error.into(), ..RegisterResponse::default() })
}

/// Decides a registration of the machine whose key was proven.
pub(super) fn register(draft: &mut Draft, machine: MachinePublic, request: RegisterRequest) -> Outcome {
    if request.version < CapVer::OLDEST {
        return refuse(format!(
            "this client is too old: it speaks protocol version {}, the oldest served is {} (Tailscale 1.80); update the client",
            request.version,
            CapVer::OLDEST
        ));
    }
    if request.node_key.is_zero() {
        return refuse("the request carries no node key");
    }
    let now = draft.now.wall;
    let known = draft.net.by_key(&request.node_key).cloned();
    if let Some(node) = &known
        && node.machine != machine
    {
        tracing::warn!(node = %node.id, "a registration named the node key of another machine");
        return refuse("this node key belongs to another machine; log out and make a new one");
    }
    if let Some(at) = request.expiry {
        // Trap 15: before the pre-auth key, or logging out with a key attached would log in.
        if at <= now {
            return log_out(draft, known.as_deref());
        }
        if let Some(node) = &known
            && !node.expired(now)
        {
            return shorten(draft, node, at);
        }
    }
    if let Some(node) = &known
        && !node.expired(now)
    {
        return welcome(&draft.net, node);
    }
    let auth = request.auth.as_ref().map(|a| a.auth_key.clone());
    let auth = auth.filter(|key| !key.is_empty());
    match auth {
        Some(key) if request.followup.is_empty() => by_key(draft, machine, request, &key),
        // Trap 16: an expired node that comes with the same key must make a new one first.
        _ if known.is_some() => {
            answer(RegisterResponse { node_key_expired: true, ..RegisterResponse::default() })
        }
        _ => interactive(draft, machine, request),
    }
}

fn log_out(draft: &mut Draft, known: Option<&Node>) -> Outcome {
    if let Some(node) = known {
        if node.ephemeral {
            draft.delete_node(node.id);
        } else if !node.expired(draft.now.wall) {
            let mut node = node.clone();
            node.expiry = Some(draft.now.wall);
            node.last_seen = Some(draft.now.wall);
            draft.put_node(node);
        }
    }
    answer(RegisterResponse { node_key_expired: true, ..RegisterResponse::default() })
}

fn shorten(draft: &mut Draft, node: &Node, at: DateTime<Utc>) -> Outcome {
    if node.expiry.is_some_and(|old| at > old) {
        return refuse("a login can only be made shorter this way; log in again to extend it");
    }
    let mut node = node.clone();
    node.expiry = Some(at);
    let node = draft.put_node(node);
    welcome(&draft.net, &node)
}

/// The answer to whoever is in.
fn welcome(net: &Tailnet, node: &Node) -> Outcome {
    let (id, name) = match node.owner.user() {
        Some(id) => {
            let name = net.users.get(&id).map(|u| u.name.clone());
            (id, name.unwrap_or_default())
        }
        None => (TAGGED_USER, TAGGED_NAME.to_owned()),
    };
    answer(RegisterResponse {
        user: User { id, display_name: name.clone(), ..User::default() },
        login: Login {
            id,
            provider: "tsd".into(),
            login_name: name.clone(),
            display_name: name,
            ..Login::default()
        },
        machine_authorized: true,
        ..RegisterResponse::default()
    })
}

fn by_key(draft: &mut Draft, machine: MachinePublic, request: RegisterRequest, text: &str) -> Outcome {
    let key = match usable_key(&draft.net, text, draft.now.wall) {
        Ok(key) => key,
        Err(why) => return refuse(why),
    };
    let held: Vec<Tag> = key.tags.iter().flat_map(|t| t.iter().cloned()).collect();
    let asked = request.hostinfo.clone().unwrap_or_default().request_tags;
    let owner = match owner(&draft.net, key.user, &held, &asked) {
        Ok(owner) => owner,
        Err(why) => return refuse(why),
    };
    let newcomer = Newcomer {
        machine,
        key: request.node_key,
        hostinfo: request.hostinfo.unwrap_or_default(),
        capver: request.version,
        ephemeral: request.ephemeral || key.ephemeral,
        owner,
        made_by: key.user,
        auth_key: Some(key.id),
        expiry: request.expiry,
    };
    match admit(draft, newcomer) {
        Ok(node) => {
            // Burnt in the same step and the same transaction as the node it lets in.
            let mut key = key;
            key.uses += 1;
            draft.put_key(key);
            welcome(&draft.net, &node)
        }
        Err(why) => refuse(why.to_string()),
    }
}

/// Splits `tskey-auth-<id>-<secret>`.
#[must_use]
pub(super) fn split_key(text: &str) -> Option<(KeyId, &str)> {
    let (id, secret) = text.trim().strip_prefix("tskey-auth-")?.split_once('-')?;
    Some((KeyId(id.parse().ok()?), secret))
}

/// SHA-256 of the secret part; with 256 random bits behind it no slow hash is needed.
#[must_use]
pub(super) fn hash_secret(secret: &str) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, secret.as_bytes());
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

const REMEDY: &str = "make another one with `tsd authkeys create`";

fn usable_key(net: &Tailnet, text: &str, now: DateTime<Utc>) -> Result<PreAuthKey, String> {
    let unknown = || format!("unknown key: this server did not make the pre-auth key; {REMEDY}");
    let (id, secret) = split_key(text).ok_or_else(unknown)?;
    let key = net.keys.get(&id).ok_or_else(unknown)?;
    // Who does not hold the secret learns nothing about the key.
    if !crate::keys::ct_eq(&hash_secret(secret), &key.hash) {
        return Err(unknown());
    }
    if key.revoked.is_some() {
        return Err(format!("the pre-auth key {id} was revoked; {REMEDY}"));
    }
    if key.expires <= now {
        return Err(format!("the pre-auth key {id} has expired; {REMEDY}"));
    }
    if !key.reusable && key.uses > 0 {
        return Err(format!("the pre-auth key {id} was already used and works only once; {REMEDY}"));
    }
    if !net.users.contains_key(&key.user) {
        return Err(format!("the pre-auth key {id} was revoked with its user; {REMEDY}"));
    }
    Ok((**key).clone())
}

/// Whose a node becomes: the user's, or the tags' when the key carries some or some were asked for and
/// the policy lets the user apply them.
///
/// # Errors
/// When a tag may not be applied; the text names it and the rule.
pub(super) fn owner(net: &Tailnet, user: UserId, held: &[Tag], asked: &[String]) -> Result<Owner, String> {
    let who = net.users.get(&user).map(|u| (u.name.as_str(), u.role));
    let name = who.map(|(name, _)| name);
    let mut tags: Vec<Tag> = held.to_vec();
    for text in asked {
        let tag = Tag::parse(text).map_err(|e| e.to_string())?;
        if tags.contains(&tag) {
            continue;
        }
        if !net.policy.declares(&tag) {
            return Err(format!("{tag} is not declared: add it to \"tagOwners\" in the policy"));
        }
        if !net.policy.may_apply(&tag, who, held) {
            return Err(format!(
                "{} may not apply {tag}: the owners of {tag} in the policy's \"tagOwners\" do not include them; add {}, or use a pre-auth key made with --tags {tag}",
                name.unwrap_or("this key"),
                name.map_or_else(|| "an owner".to_owned(), |n| format!("{n:?}")),
            ));
        }
        tags.push(tag);
    }
    Ok(Tags::new(tags).map_or(Owner::User(user), Owner::Tags))
}

/// Somebody who may come in.
pub(super) struct Newcomer {
    /// Proven machine key.
    pub(super) machine: MachinePublic,
    /// Its node key.
    pub(super) key: NodePublic,
    /// What it says of itself.
    pub(super) hostinfo: Hostinfo,
    /// Its capability version.
    pub(super) capver: CapVer,
    /// Leaves with its connection.
    pub(super) ephemeral: bool,
    /// Whose it becomes.
    pub(super) owner: Owner,
    /// Who let it in.
    pub(super) made_by: UserId,
    /// By which key.
    pub(super) auth_key: Option<KeyId>,
    /// An earlier end it asked for.
    pub(super) expiry: Option<DateTime<Utc>>,
}

/// Makes the node, or gives the machine's node of the same owner its new key (same id, addresses and
/// name). A machine's node of another owner is left alone: this becomes a second node.
///
/// # Errors
/// When no address is left.
pub(super) fn admit(
    draft: &mut Draft,
    new: Newcomer,
) -> Result<std::sync::Arc<Node>, super::ipam::Exhausted> {
    let now = draft.now.wall;
    let expiry = match &new.owner {
        Owner::Tags(_) => None,
        Owner::User(_) => {
            let ours = draft
                .net
                .settings
                .key_expiry
                .and_then(|d| now.checked_add_signed(Duration::from_std(d).ok()?));
            [ours, new.expiry].into_iter().flatten().min()
        }
    };
    let same_owner = |n: &Node| match (&n.owner, &new.owner) {
        (Owner::User(a), Owner::User(b)) => a == b,
        (Owner::Tags(_), Owner::Tags(_)) => true,
        _ => false,
    };
    let old = draft
        .net
        .by_key(&new.key)
        .filter(|n| n.machine == new.machine)
        .or_else(|| {
            let mine = |n: &&std::sync::Arc<Node>| n.machine == new.machine && same_owner(n);
            draft.net.nodes.values().find(mine)
        })
        .cloned();
    let mut hostinfo = bounded(new.hostinfo);
    if let Some(old) = old {
        let mut node = (*old).clone();
        if hostinfo.net_info.is_none() {
            hostinfo.net_info = node.hostinfo.net_info.take();
        }
        node.key = new.key;
        node.owner = new.owner;
        node.made_by = Some(new.made_by);
        node.capver = new.capver;
        node.expiry = expiry;
        node.ephemeral = new.ephemeral;
        node.auth_key = new.auth_key;
        super::nodes::take_hostname(&draft.net, &mut node, &hostinfo);
        node.hostinfo = hostinfo;
        return Ok(draft.put_node(node));
    }
    let id = draft.next_node();
    let label = crate::dns::sanitize_label(&hostinfo.hostname);
    let name = crate::dns::unique_label(&label, &|taken| draft.net.by_name.contains_key(taken));
    let mut node = Node {
        id,
        stable_id: StableId(format!("n{id}tsd")),
        machine: new.machine,
        key: new.key,
        disco: None,
        name,
        renamed: false,
        owner: new.owner,
        made_by: Some(new.made_by),
        // Until it has its own.
        ipv4: std::net::Ipv4Addr::UNSPECIFIED,
        ipv6: std::net::Ipv6Addr::UNSPECIFIED,
        created: now,
        expiry,
        ephemeral: new.ephemeral,
        auth_key: new.auth_key,
        approved_routes: std::collections::BTreeSet::new(),
        home_derp: super::nodes::home_of(&hostinfo),
        hostinfo,
        endpoints: Vec::new(),
        capver: new.capver,
        last_seen: None,
    };
    (node.ipv4, node.ipv6) = draft.take_address(&node)?;
    Ok(draft.put_node(node))
}

/// The id in an AuthURL, or the bare id.
#[must_use]
pub(super) fn login_id(text: &str) -> LoginId {
    let text = text.trim().trim_end_matches('/');
    LoginId(text.rsplit('/').next().unwrap_or_default().to_owned())
}

fn interactive(draft: &mut Draft, machine: MachinePublic, request: RegisterRequest) -> Outcome {
    let now = draft.now.wall;
    let same = |l: &PendingLogin| l.machine == machine && l.key == request.node_key && l.expires > now;
    if request.followup.is_empty() {
        // A daemon that restarted while waiting goes on with the login it has.
        let waiting = draft.net.logins.values().find(|l| same(l)).cloned();
        if let Some(login) = waiting {
            return visit(&draft.net, &login.id);
        }
    } else {
        let id = login_id(&request.followup);
        if draft.net.logins.get(&id).is_some_and(|l| same(l)) {
            return Outcome::Wait(id);
        }
        if draft.net.rejected.contains_key(&id) {
            return refuse("this login was turned away by an administrator");
        }
    }
    while draft.net.logins.len() >= MAX_LOGINS {
        let oldest = draft.net.logins.values().min_by_key(|l| (l.created, &l.id));
        let Some(id) = oldest.map(|l| l.id.clone()) else {
            break;
        };
        draft.drop_login(&id);
    }
    let id = LoginId(hex::encode(draft.rng.bytes::<16>()));
    draft.put_login(PendingLogin {
        id: id.clone(),
        machine,
        key: request.node_key,
        hostinfo: bounded(request.hostinfo.unwrap_or_default()),
        capver: request.version,
        ephemeral: request.ephemeral,
        created: now,
        expires: now + LOGIN_LIFETIME,
    });
    visit(&draft.net, &id)
}

fn visit(net: &Tailnet, id: &LoginId) -> Outcome {
    answer(RegisterResponse {
        auth_url: format!("{}/a/{id}", net.settings.url),
        ..RegisterResponse::default()
    })
}
