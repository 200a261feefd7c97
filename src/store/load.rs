//! Rows to values, once at start. A row that cannot be understood is reported and left out: it must
//! not keep everybody else from their maps. Its address stays taken in the ledger.

use chrono::{DateTime, Utc};
use rusqlite::types::Type;
use rusqlite::{Connection, Error, OptionalExtension as _, Result, Row};
use serde::de::DeserializeOwned;

use crate::keys::{DiscoPublic, MachinePublic, NodeId, NodePublic, RegionId, StableId, UserId};
use crate::model::rows::{CapVer, Stored};
use crate::model::{
    KeyId, LoginId, Node, Owner, PendingLogin, PolicySummary, PolicyVersion, PreAuthKey, Role, Tag, Tags,
    User,
};

/// Reads everything.
pub(super) fn load(conn: &Connection) -> Result<Stored> {
    let policy = policy(conn, None)?;
    Ok(Stored {
        users: all(conn, "SELECT * FROM users ORDER BY id", user)?,
        nodes: all(conn, "SELECT * FROM nodes ORDER BY id", node)?,
        keys: all(conn, "SELECT * FROM auth_keys ORDER BY id", key)?,
        logins: all(conn, "SELECT * FROM logins ORDER BY created, id", login)?,
        policy,
        addresses: all(conn, "SELECT * FROM addresses", address)?,
        last_user: sequence(conn, "users")?,
        last_node: sequence(conn, "nodes")?,
        last_key: sequence(conn, "auth_keys")?,
    })
}

/// Every version without its text, newest first.
pub(super) fn history(conn: &Connection, limit: i64) -> Result<Vec<PolicySummary>> {
    let mut statement = conn.prepare_cached(
        "SELECT version, author, comment, created, length(CAST(text AS BLOB)) AS bytes
         FROM policies ORDER BY version DESC LIMIT ?1",
    )?;
    let rows = statement.query_map([limit], |r| {
        Ok(PolicySummary {
            version: uint(r, "version")?,
            author: r.get("author")?,
            comment: r.get("comment")?,
            created: time(r, "created")?,
            bytes: uint(r, "bytes")?,
        })
    })?;
    rows.collect()
}

/// The version with this number; without one the newest.
pub(super) fn policy(conn: &Connection, version: Option<u64>) -> Result<Option<PolicyVersion>> {
    let read = |r: &Row<'_>| {
        Ok(PolicyVersion {
            version: uint(r, "version")?,
            text: r.get("text")?,
            author: r.get("author")?,
            comment: r.get("comment")?,
            created: time(r, "created")?,
        })
    };
    let wanted = version.map(|v| i64::try_from(v).unwrap_or(i64::MAX));
    conn.prepare_cached(
        "SELECT * FROM policies WHERE ?1 IS NULL OR version = ?1 ORDER BY version DESC LIMIT 1",
    )?
    .query_row([wanted], read)
    .optional()
}

fn all<T>(conn: &Connection, sql: &str, read: fn(&Row<'_>) -> Result<T>) -> Result<Vec<T>> {
    let mut statement = conn.prepare(sql)?;
    let mut rows = statement.query([])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        match read(row) {
            Ok(value) => out.push(value),
            Err(error) => {
                tracing::error!(%error, query = sql, "a row in the database cannot be understood; it is left out");
            }
        }
    }
    Ok(out)
}

fn sequence(conn: &Connection, table: &str) -> Result<u64> {
    let mut statement = conn.prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = ?1")?;
    let mut rows = statement.query([table])?;
    match rows.next()? {
        Some(row) => uint(row, "seq"),
        None => Ok(0),
    }
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::FromSqlConversionFailure(0, Type::Text, Box::new(error))
}

fn uint(row: &Row<'_>, column: &str) -> Result<u64> {
    u64::try_from(row.get::<_, i64>(column)?).map_err(broken)
}

fn maybe_uint(row: &Row<'_>, column: &str) -> Result<Option<u64>> {
    row.get::<_, Option<i64>>(column)?.map(|n| u64::try_from(n).map_err(broken)).transpose()
}

fn at(micros: i64) -> Result<DateTime<Utc>> {
    DateTime::from_timestamp_micros(micros)
        .ok_or_else(|| broken(std::io::Error::other("a time out of range")))
}

fn time(row: &Row<'_>, column: &str) -> Result<DateTime<Utc>> {
    at(row.get(column)?)
}

fn maybe_time(row: &Row<'_>, column: &str) -> Result<Option<DateTime<Utc>>> {
    row.get::<_, Option<i64>>(column)?.map(at).transpose()
}

fn json<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> Result<T> {
    serde_json::from_str(&row.get::<_, String>(column)?).map_err(broken)
}

fn tags(row: &Row<'_>) -> Result<Option<Tags>> {
    let Some(text) = row.get::<_, Option<String>>("tags")? else {
        return Ok(None);
    };
    let tags: Vec<Tag> = serde_json::from_str(&text).map_err(broken)?;
    Ok(Tags::new(tags))
}

fn address_of<T: std::str::FromStr<Err = std::net::AddrParseError>>(
    row: &Row<'_>,
    column: &str,
) -> Result<T> {
    row.get::<_, String>(column)?.parse().map_err(broken)
}

fn user(row: &Row<'_>) -> Result<User> {
    Ok(User {
        id: UserId(uint(row, "id")?),
        name: row.get("name")?,
        // A role of a newer program: the least there is, rather than no user.
        role: Role::parse(&row.get::<_, String>("role")?).unwrap_or_default(),
        created: time(row, "created")?,
    })
}

fn node(row: &Row<'_>) -> Result<Node> {
    let owner = match (maybe_uint(row, "user_id")?, tags(row)?) {
        (Some(user), None) => Owner::User(UserId(user)),
        (None, Some(tags)) => Owner::Tags(tags),
        _ => return Err(broken(std::io::Error::other("a node without an owner"))),
    };
    Ok(Node {
        id: NodeId(uint(row, "id")?),
        stable_id: StableId(row.get("stable_id")?),
        machine: MachinePublic::from_bytes(row.get("machine")?),
        key: NodePublic::from_bytes(row.get("node_key")?),
        disco: row.get::<_, Option<[u8; 32]>>("disco")?.map(DiscoPublic::from_bytes),
        name: row.get("name")?,
        renamed: row.get("renamed")?,
        owner,
        made_by: maybe_uint(row, "made_by")?.map(UserId),
        ipv4: address_of(row, "ipv4")?,
        ipv6: address_of(row, "ipv6")?,
        created: time(row, "created")?,
        expiry: maybe_time(row, "expiry")?,
        ephemeral: row.get("ephemeral")?,
        auth_key: maybe_uint(row, "auth_key")?.map(KeyId),
        approved_routes: json(row, "approved_routes")?,
        hostinfo: json(row, "hostinfo")?,
        endpoints: json(row, "endpoints")?,
        home_derp: maybe_uint(row, "home_derp")?.map(RegionId),
        capver: CapVer(row.get("capver")?),
        last_seen: maybe_time(row, "last_seen")?,
    })
}

fn key(row: &Row<'_>) -> Result<PreAuthKey> {
    Ok(PreAuthKey {
        id: KeyId(uint(row, "id")?),
        hash: row.get("hash")?,
        user: UserId(uint(row, "user_id")?),
        reusable: row.get("reusable")?,
        ephemeral: row.get("ephemeral")?,
        tags: tags(row)?,
        created: time(row, "created")?,
        expires: time(row, "expires")?,
        revoked: maybe_time(row, "revoked")?,
        uses: uint(row, "uses")?,
    })
}

fn login(row: &Row<'_>) -> Result<PendingLogin> {
    Ok(PendingLogin {
        id: LoginId(row.get("id")?),
        machine: MachinePublic::from_bytes(row.get("machine")?),
        key: NodePublic::from_bytes(row.get("node_key")?),
        hostinfo: json(row, "hostinfo")?,
        capver: CapVer(row.get("capver")?),
        ephemeral: row.get("ephemeral")?,
        created: time(row, "created")?,
        expires: time(row, "expires")?,
    })
}

fn address(row: &Row<'_>) -> Result<(std::net::Ipv4Addr, Option<DateTime<Utc>>)> {
    Ok((address_of(row, "ipv4")?, maybe_time(row, "released")?))
}
