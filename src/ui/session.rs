//! Who is signed in: one-time console links, sessions, form tokens, and where a form may come from.
//! Only hashes are kept; a handler gets a [`Session`] only from `Shared::session` and a form's fields
//! only after the checks here.

use std::net::IpAddr;

use chrono::{DateTime, Utc};
use http::{HeaderMap, header};
use ring::{digest, hmac};
use serde::{Deserialize, Serialize};

use super::Shared;
use crate::clock::Now;
use crate::control::service::{Actor, AdminError};

/// The session cookie. The `__Host-` prefix makes the browser insist on Secure, Path=/ and no Domain.
pub(super) const COOKIE: &str = "__Host-tsd";
const SESSION_HOURS: i64 = 12;
const SESSION: &str = "session";
const LINK: &str = "console-link";

/// Somebody who is signed in. Made only from a cookie that was looked up.
#[derive(Clone)]
pub(super) struct Session {
    secret: [u8; 32],
    /// Where they signed in from, and when.
    pub(super) signed: SignedIn,
}

/// What is kept of a session beside its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SignedIn {
    /// Address of the browser at sign-in.
    pub(super) from: IpAddr,
    /// When.
    pub(super) at: DateTime<Utc>,
}

impl Session {
    /// The token that every form of this session carries.
    pub(super) fn form_token(&self) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.secret);
        hex::encode(hmac::sign(&key, b"tsd console form"))
    }

    /// Whether a form carried this session's token.
    pub(super) fn owns_form(&self, token: &str) -> bool {
        crate::keys::ct_eq(self.form_token().as_bytes(), token.as_bytes())
    }

    /// Who acts, for the log and the policy history.
    pub(super) fn actor(&self) -> Actor {
        Actor::at("console", self.signed.from)
    }

    #[cfg(test)]
    pub(super) fn for_test(secret: [u8; 32], from: IpAddr, at: DateTime<Utc>) -> Self {
        Self { secret, signed: SignedIn { from, at } }
    }
}

/// The hash under which a secret is kept.
fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// Reads 256 bits written as 64 hex digits; anything else is no secret of ours.
pub(super) fn parse_secret(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    hex::decode_to_slice(text, &mut out).ok()?;
    Some(out)
}

/// The session secret in the Cookie headers. Two differing ones are none: somebody planted one.
pub(super) fn cookie_secret(headers: &HeaderMap) -> Option<[u8; 32]> {
    let mut found = None;
    for value in headers.get_all(header::COOKIE) {
        for pair in value.to_str().ok()?.split(';') {
            let Some((name, value)) = pair.trim().split_once('=') else {
                continue;
            };
            if name != COOKIE {
                continue;
            }
            let secret = parse_secret(value)?;
            if found.is_some_and(|other| other != secret) {
                return None;
            }
            found = Some(secret);
        }
    }
    found
}

/// The Set-Cookie text that starts a session.
fn set_cookie(secret: &[u8; 32]) -> String {
    format!(
        "{COOKIE}={}; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age={}",
        hex::encode(secret),
        SESSION_HOURS * 3600
    )
}

/// The Set-Cookie text that ends one.
pub(super) fn clear_cookie() -> String {
    format!("{COOKIE}=; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=0")
}

/// Whether a changing request may come from where the browser says it comes from. Fetch metadata
/// decides where there is some; else a named Origin must be our own host. `Origin: null` says
/// nothing, since our own `no-referrer` makes browsers send it (Fetch standard, "append a request
/// Origin header"); the form token decides then.
pub(super) fn same_origin(headers: &HeaderMap, host: Option<&str>) -> bool {
    if let Some(site) = headers.get("sec-fetch-site") {
        return matches!(site.as_bytes(), b"same-origin" | b"none");
    }
    let Some(origin) = headers.get(header::ORIGIN) else {
        return true;
    };
    let Ok(origin) = origin.to_str() else {
        return false;
    };
    if origin == "null" {
        return true;
    }
    let authority = origin.split_once("://").map(|(_, rest)| rest);
    matches!((authority, host), (Some(a), Some(h)) if a.eq_ignore_ascii_case(h))
}

impl Shared {
    /// Makes a one-time sign-in link that works for `lifetime`: the path and query, to be put behind
    /// the console's address.
    pub(super) async fn make_link(&self, lifetime: chrono::Duration) -> Result<String, AdminError> {
        let secret = self.random();
        let expires = Now::read().wall + lifetime;
        self.control().put_secret(LINK, sha256(&secret), "", expires).await?;
        Ok(format!("/login?token={}", hex::encode(secret)))
    }

    /// Whether a one-time token would be taken now; does not use it up.
    pub(super) async fn link_is_good(&self, token: &str) -> Result<bool, AdminError> {
        let Some(secret) = parse_secret(token) else {
            return Ok(false);
        };
        Ok(self.control().secret(LINK, sha256(&secret)).await?.is_some())
    }

    /// Uses a one-time token up; whether it was good.
    pub(super) async fn use_link(&self, token: &str) -> Result<bool, AdminError> {
        let Some(secret) = parse_secret(token) else {
            return Ok(false);
        };
        Ok(self.control().take_secret(LINK, sha256(&secret)).await?.is_some())
    }

    /// Starts a session for a browser at `from`; gives the Set-Cookie text.
    pub(super) async fn start_session(&self, from: IpAddr) -> Result<String, AdminError> {
        let secret = self.random();
        let at = Now::read().wall;
        let value = serde_json::to_string(&SignedIn { from, at })
            .map_err(|e| AdminError::Internal(format!("cannot write the session: {e}")))?;
        let expires = at + chrono::Duration::hours(SESSION_HOURS);
        self.control().put_secret(SESSION, sha256(&secret), &value, expires).await?;
        Ok(set_cookie(&secret))
    }

    /// Who sent these headers, if they are signed in.
    pub(super) async fn session(&self, headers: &HeaderMap) -> Result<Option<Session>, AdminError> {
        let Some(secret) = cookie_secret(headers) else {
            return Ok(None);
        };
        let Some(value) = self.control().secret(SESSION, sha256(&secret)).await? else {
            return Ok(None);
        };
        Ok(serde_json::from_str(&value).ok().map(|signed| Session { secret, signed }))
    }

    /// Ends a session.
    pub(super) async fn end_session(&self, session: &Session) -> Result<(), AdminError> {
        self.control().take_secret(SESSION, sha256(&session.secret)).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut out = HeaderMap::new();
        for (name, value) in pairs {
            out.append(*name, value.parse().unwrap());
        }
        out
    }

    #[test]
    fn the_cookie_is_found_among_others_and_two_are_none() {
        let a = hex::encode([1; 32]);
        let b = hex::encode([2; 32]);
        let one = headers(&[("cookie", &format!("x=1; {COOKIE}={a}"))]);
        assert_eq!(cookie_secret(&one), Some([1; 32]));
        let two = headers(&[("cookie", &format!("{COOKIE}={a}; {COOKIE}={b}"))]);
        assert_eq!(cookie_secret(&two), None);
        let short = headers(&[("cookie", &format!("{COOKIE}=abcd"))]);
        assert_eq!(cookie_secret(&short), None);
    }

    #[test]
    fn the_cookie_carries_every_guard() {
        let text = set_cookie(&[7; 32]);
        for part in ["__Host-tsd=", "; Secure", "; HttpOnly", "; SameSite=Strict", "; Path=/"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("Domain"));
    }

    #[test]
    fn forms_of_other_sites_are_refused() {
        let host = Some("tsd.example:8443");
        for (pairs, good) in [
            (vec![("sec-fetch-site", "same-origin")], true),
            (vec![("sec-fetch-site", "cross-site")], false),
            (vec![("sec-fetch-site", "same-site")], false),
            (vec![("sec-fetch-site", "cross-site"), ("origin", "https://tsd.example:8443")], false),
            (vec![("origin", "https://tsd.example:8443")], true),
            (vec![("origin", "https://evil.example")], false),
            (vec![("origin", "https://tsd.example:8443.evil.example")], false),
            (vec![("origin", "null")], true),
            (vec![], true),
        ] {
            assert_eq!(same_origin(&headers(&pairs), host), good, "{pairs:?}");
        }
        assert!(!same_origin(&headers(&[("origin", "https://tsd.example")]), None));
    }

    #[test]
    fn a_form_token_belongs_to_one_session() {
        let from = "192.0.2.1".parse().unwrap();
        let one = Session::for_test([1; 32], from, DateTime::UNIX_EPOCH);
        let two = Session::for_test([2; 32], from, DateTime::UNIX_EPOCH);
        assert!(one.owns_form(&one.form_token()));
        assert!(!one.owns_form(&two.form_token()));
        assert!(!one.owns_form(""));
    }
}
