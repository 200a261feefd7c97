//! Values to rows. Each write is one or two prepared statements inside the writer's transaction.

use chrono::{DateTime, Utc};
use rusqlite::{Connection, Result, params};
use serde::Serialize;

use crate::model::rows::Write;
use crate::model::{Node, PendingLogin, PolicyVersion, PreAuthKey, Tag};

/// Microseconds since 1970.
pub(super) fn micros(time: DateTime<Utc>) -> i64 {
    time.timestamp_micros()
}

fn json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}

fn tags<'a>(tags: impl Iterator<Item = &'a Tag>) -> Result<Option<String>> {
    let tags: Vec<&Tag> = tags.collect();
    if tags.is_empty() { Ok(None) } else { json(&tags).map(Some) }
}

/// SQLite integers are signed; ids stay far below the sign.
fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Carries out one write.
pub(super) fn apply(conn: &Connection, write: &Write) -> Result<()> {
    match write {
        Write::PutUser(user) => {
            conn.prepare_cached(
                "INSERT INTO users (id, name, created, role) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT(id) DO UPDATE SET name = excluded.name, role = excluded.role",
            )?
            .execute(params![
                int(user.id.0),
                user.name,
                micros(user.created),
                user.role.as_str()
            ])?;
        }
        Write::DeleteUser(id) => {
            conn.prepare_cached("DELETE FROM users WHERE id = ?1")?.execute([int(id.0)])?;
        }
        Write::PutNode(node) => put_node(conn, node)?,
        Write::DeleteNode { id, at } => {
            conn.prepare_cached("UPDATE addresses SET released = ?2 WHERE node_id = ?1")?
                .execute(params![int(id.0), micros(*at)])?;
            conn.prepare_cached("DELETE FROM nodes WHERE id = ?1")?.execute([int(id.0)])?;
        }
        Write::PutKey(key) => put_key(conn, key)?,
        Write::PutLogin(login) => put_login(conn, login)?,
        Write::DeleteLogin(id) => {
            conn.prepare_cached("DELETE FROM logins WHERE id = ?1")?.execute([&id.0])?;
        }
        Write::PutPolicy(policy) => put_policy(conn, policy)?,
    }
    Ok(())
}

fn put_node(conn: &Connection, n: &Node) -> Result<()> {
    conn.prepare_cached(
        "INSERT INTO nodes (id, stable_id, machine, node_key, disco, name, renamed, user_id, tags,
           made_by, ipv4, ipv6, created, expiry, ephemeral, auth_key, approved_routes, hostinfo,
           endpoints, home_derp, capver, last_seen)
         VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?19,?20,?21,?22)
         ON CONFLICT(id) DO UPDATE SET machine = excluded.machine, node_key = excluded.node_key,
           disco = excluded.disco, name = excluded.name, renamed = excluded.renamed,
           user_id = excluded.user_id, tags = excluded.tags, made_by = excluded.made_by,
           expiry = excluded.expiry, ephemeral = excluded.ephemeral, auth_key = excluded.auth_key,
           approved_routes = excluded.approved_routes, hostinfo = excluded.hostinfo,
           endpoints = excluded.endpoints, home_derp = excluded.home_derp,
           capver = excluded.capver, last_seen = excluded.last_seen",
    )?
    .execute(params![
        int(n.id.0),
        n.stable_id.0,
        n.machine.as_bytes(),
        n.key.as_bytes(),
        n.disco.as_ref().map(|d| *d.as_bytes()),
        n.name,
        n.renamed,
        n.owner.user().map(|u| int(u.0)),
        tags(n.owner.tags())?,
        n.made_by.map(|u| int(u.0)),
        n.ipv4.to_string(),
        n.ipv6.to_string(),
        micros(n.created),
        n.expiry.map(micros),
        n.ephemeral,
        n.auth_key.map(|k| int(k.0)),
        json(&n.approved_routes)?,
        json(&n.hostinfo)?,
        json(&n.endpoints)?,
        n.home_derp.map(|r| int(r.0)),
        n.capver.0,
        n.last_seen.map(micros),
    ])?;
    conn.prepare_cached(
        "INSERT INTO addresses (ipv4, node_id, released) VALUES (?1, ?2, NULL)
         ON CONFLICT(ipv4) DO UPDATE SET node_id = excluded.node_id, released = NULL
         WHERE node_id <> excluded.node_id OR released IS NOT NULL",
    )?
    .execute(params![n.ipv4.to_string(), int(n.id.0)])?;
    Ok(())
}

fn put_key(conn: &Connection, key: &PreAuthKey) -> Result<()> {
    conn.prepare_cached(
        "INSERT INTO auth_keys (id, hash, user_id, reusable, ephemeral, tags, created, expires,
           revoked, uses) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
         ON CONFLICT(id) DO UPDATE SET revoked = excluded.revoked, uses = excluded.uses",
    )?
    .execute(params![
        int(key.id.0),
        key.hash,
        int(key.user.0),
        key.reusable,
        key.ephemeral,
        tags(key.tags.iter().flat_map(|t| t.iter()))?,
        micros(key.created),
        micros(key.expires),
        key.revoked.map(micros),
        int(key.uses),
    ])?;
    Ok(())
}

fn put_login(conn: &Connection, login: &PendingLogin) -> Result<()> {
    conn.prepare_cached(
        "INSERT INTO logins (id, machine, node_key, hostinfo, capver, ephemeral, created, expires)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT(id) DO UPDATE SET hostinfo = excluded.hostinfo, capver = excluded.capver",
    )?
    .execute(params![
        login.id.0,
        login.machine.as_bytes(),
        login.key.as_bytes(),
        json(&login.hostinfo)?,
        login.capver.0,
        login.ephemeral,
        micros(login.created),
        micros(login.expires),
    ])?;
    Ok(())
}

fn put_policy(conn: &Connection, policy: &PolicyVersion) -> Result<()> {
    conn.prepare_cached(
        "INSERT INTO policies (version, text, author, created, comment) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![
        int(policy.version),
        policy.text,
        policy.author,
        micros(policy.created),
        policy.comment
    ])?;
    Ok(())
}
