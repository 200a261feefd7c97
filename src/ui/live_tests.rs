//! The console over a real service and database: who gets in, what is refused, and that forms do
//! what they say.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};

use super::{RequestInfo, StatusSource, Ui};
use crate::clock::Rng;
use crate::control::service::{Control, Settings};
use crate::keys::MachinePrivate;

struct Status;

impl StatusSource for Status {
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
    fn facts(&self) -> Vec<(String, String)> {
        vec![("State".into(), "here".into())]
    }
    fn join_url(&self) -> String {
        "http://192.0.2.1:8080".into()
    }
}

/// A console, its service, and a browser's memory of it.
struct Site {
    ui: Ui,
    control: Control,
    cookie: Option<String>,
    token: String,
    _dir: tempfile::TempDir,
}

struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    body: String,
}

impl Answer {
    fn location(&self) -> &str {
        self.headers.get("location").map_or("", |v| v.to_str().unwrap())
    }
}

fn settings() -> Settings {
    Settings {
        url: "http://192.0.2.1:8080".into(),
        base_domain: "tail.internal".into(),
        tailnet_name: "test".into(),
        derp_map: Default::default(),
        resolvers: Vec::new(),
        split: Default::default(),
        search: Vec::new(),
        extra_records: Vec::new(),
        magic_dns: true,
        key_expiry: None,
        ephemeral_timeout: std::time::Duration::from_secs(60),
        ipv4_pool: "100.64.0.0/10".parse().unwrap(),
        domains: Default::default(),
        policy_file: None,
    }
}

fn info(secure: bool) -> RequestInfo {
    RequestInfo {
        remote: "192.0.2.7:50000".parse().unwrap(),
        secure,
        tls_url: Some("https://192.0.2.1:8443".into()),
    }
}

impl Site {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = MachinePrivate::generate(&mut Rng::from_seed([3; 32]));
        let control = Control::start(dir.path(), key, settings()).await.unwrap();
        let ui = Ui::new(control.clone(), Arc::new(Status));
        Self { ui, control, cookie: None, token: String::new(), _dir: dir }
    }

    /// A site somebody is signed in to.
    async fn signed_in() -> Self {
        let mut site = Self::start().await;
        let link = site.ui.new_console_link().await.unwrap();
        let token = link.strip_prefix("/login?token=").unwrap().to_owned();
        let answer = site.post("/login", &[("token", &token)]).await;
        assert_eq!((answer.status, answer.location()), (StatusCode::SEE_OTHER, "/"), "{}", answer.body);
        let cookie = answer.headers["set-cookie"].to_str().unwrap();
        site.cookie = Some(cookie.split(';').next().unwrap().to_owned());
        let start = site.get("/").await;
        site.token = between(&start.body, "name=\"form\" value=\"", "\"").to_owned();
        site
    }

    async fn send(&self, request: Request<Full<Bytes>>, info: RequestInfo) -> Answer {
        let response: Response<Full<Bytes>> = self.ui.respond(request, info).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    fn request(&self, method: &str, path: &str) -> http::request::Builder {
        let mut out = Request::builder().method(method).uri(path).header("host", "192.0.2.1:8443");
        if let Some(cookie) = &self.cookie {
            out = out.header("cookie", cookie);
        }
        out
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(self.request("GET", path).body(Full::default()).unwrap(), info(true)).await
    }

    /// Sends a form as the browser would, with the session's token unless one is given.
    async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let request = self.request("POST", path).header("sec-fetch-site", "same-origin");
        self.send(self.form(request, fields), info(true)).await
    }

    fn form(&self, request: http::request::Builder, fields: &[(&str, &str)]) -> Request<Full<Bytes>> {
        use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
        let mut all = vec![("form", self.token.as_str())];
        if fields.iter().any(|(name, _)| *name == "form") {
            all.clear();
        }
        all.extend_from_slice(fields);
        let body: Vec<String> =
            all.iter().map(|(n, v)| format!("{n}={}", utf8_percent_encode(v, NON_ALPHANUMERIC))).collect();
        request
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Full::from(body.join("&")))
            .unwrap()
    }
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let (_, rest) = text.split_once(from).unwrap_or_else(|| panic!("no {from} in {text}"));
    rest.split_once(to).unwrap().0
}

#[tokio::test]
async fn a_stranger_is_sent_to_sign_in_and_every_answer_is_guarded() {
    let site = Site::start().await;
    for path in ["/", "/devices", "/device/1", "/approvals", "/people", "/keys", "/access", "/simulator"] {
        let answer = site.get(path).await;
        assert_eq!((answer.status, answer.location()), (StatusCode::SEE_OTHER, "/login"), "{path}");
    }
    for path in ["/", "/login", "/nowhere", "/a/abc", "/static/none.css"] {
        let headers = site.get(path).await.headers;
        assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["referrer-policy"], "no-referrer");
        assert_eq!(headers["cache-control"], "no-store", "{path}");
        for name in ["cross-origin-opener-policy", "cross-origin-resource-policy", "permissions-policy"] {
            assert!(headers.contains_key(name), "{path}: {name}");
        }
    }
    let style = site.get(super::assets::style_url()).await;
    assert_eq!(style.status, StatusCode::OK);
    assert!(style.headers["cache-control"].to_str().unwrap().contains("immutable"));
}

#[tokio::test]
async fn plain_http_is_redirected_and_a_token_sent_that_way_is_withdrawn() {
    let site = Site::start().await;
    let plain = |path: &str| site.request("GET", path).body(Full::default()).unwrap();
    let answer = site.send(plain("/devices?q=a"), info(false)).await;
    assert_eq!(answer.status, StatusCode::PERMANENT_REDIRECT);
    assert_eq!(answer.location(), "https://192.0.2.1:8443/devices?q=a");

    let link = site.ui.new_console_link().await.unwrap();
    let answer = site.send(plain(&link), info(false)).await;
    assert_eq!(answer.location(), "https://192.0.2.1:8443/login?why=plain");
    let late = site.get(&link).await;
    assert!(late.body.contains("used already") && !late.body.contains("name=\"token\""));

    let nowhere = RequestInfo { tls_url: None, ..info(false) };
    let answer = site.send(plain("/"), nowhere).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert!(answer.body.contains("not shown over plain HTTP"));
}

#[tokio::test]
async fn a_link_survives_being_looked_at_and_works_once() {
    let site = Site::start().await;
    let link = site.ui.new_console_link().await.unwrap();
    for _ in 0..3 {
        let looked = site.get(&link).await;
        assert!(looked.body.contains("name=\"token\"") && !looked.headers.contains_key("set-cookie"));
    }
    let token = link.strip_prefix("/login?token=").unwrap();
    let first = site.post("/login", &[("token", token)]).await;
    assert_eq!(first.status, StatusCode::SEE_OTHER);
    let cookie = first.headers["set-cookie"].to_str().unwrap();
    assert!(cookie.starts_with("__Host-tsd=") && cookie.contains("SameSite=Strict"), "{cookie}");
    let second = site.post("/login", &[("token", token)]).await;
    assert_eq!(second.status, StatusCode::FORBIDDEN);
    assert!(!second.headers.contains_key("set-cookie"));
}

#[tokio::test]
async fn forms_need_the_token_our_origin_and_a_session() {
    let site = Site::signed_in().await;
    let before = site.control.users().len();
    for (name, value) in [("sec-fetch-site", "cross-site"), ("origin", "https://evil.example")] {
        let request = site.form(site.request("POST", "/people").header(name, value), &[("name", "eve")]);
        let answer = site.send(request, info(true)).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{name}");
    }
    for token in ["", "00", &"0".repeat(64)] {
        let answer = site.post("/people", &[("form", token), ("name", "eve")]).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{token}");
    }
    let mut stranger = Site::start().await;
    stranger.token.clone_from(&site.token);
    let answer = stranger.post("/people", &[("name", "eve")]).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(site.control.users().len(), before);

    let answer = site.post("/people", &[("name", "carol")]).await;
    assert_eq!(answer.location(), "/people?done=made", "{}", answer.body);
    assert!(site.get("/people?done=made").await.body.contains("carol"));
}

#[tokio::test]
async fn signing_out_ends_the_session_at_the_server() {
    let site = Site::signed_in().await;
    let answer = site.post("/logout", &[]).await;
    assert_eq!(answer.location(), "/login");
    assert!(answer.headers["set-cookie"].to_str().unwrap().contains("Max-Age=0"));
    assert_eq!(site.get("/devices").await.location(), "/login");
}

#[tokio::test]
async fn a_key_is_made_once_per_form_and_shown_once() {
    let site = Site::signed_in().await;
    if site.control.users().is_empty() {
        site.post("/people", &[("name", "alice")]).await;
    }
    let user = site.control.users()[0].name.clone();
    let before = site.control.auth_keys().len();
    let fields = [("user", user.as_str()), ("hours", "24"), ("once", "abc"), ("reusable", "yes")];
    let made = site.post("/keys", &fields).await;
    assert_eq!(made.status, StatusCode::OK, "{}", made.body);
    let secret = between(&made.body, "command secret\">", "<").to_owned();
    assert!(secret.starts_with("tskey-auth-"));
    assert!(
        made.body.contains(&format!("tailscale up --login-server http://192.0.2.1:8080 --auth-key {secret}"))
    );
    let again = site.post("/keys", &fields).await;
    assert_eq!(again.status, StatusCode::CONFLICT);
    assert_eq!(site.control.auth_keys().len(), before + 1);
    let list = site.get("/keys").await;
    assert!(!list.body.contains(&secret) && list.body.contains("usable"));

    let id = site.control.auth_keys()[0].id;
    let revoked = site.post(&format!("/keys/{id}/revoke"), &[]).await;
    assert_eq!(revoked.location(), "/keys?done=revoked&show=all", "{}", revoked.body);
    let bad =
        site.post("/keys", &[("user", "nobody"), ("hours", "24"), ("once", "x"), ("tags", "tag:nope")]).await;
    assert!(bad.status.is_client_error() && bad.body.contains("tag:nope"), "what was typed is kept");
}

#[tokio::test]
async fn a_policy_is_checked_saved_and_a_lost_race_keeps_the_draft() {
    let site = Site::signed_in().await;
    let version = site.control.policy().version.to_string();
    let text = "// mine\r\n{\"acls\": [{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:*\"]}]}\r\n";
    let checked = site.post("/access", &[("text", text), ("expect", &version), ("do", "check")]).await;
    assert_eq!(checked.status, StatusCode::OK, "{}", checked.body);
    assert_eq!(site.control.policy().version.to_string(), version, "a check stores nothing");

    let broken = site
        .post("/access", &[("text", "{\n  \"acls\": oops\n}"), ("expect", &version), ("do", "save")])
        .await;
    assert_eq!(broken.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        broken.body.contains("<a href=\"#L2\"><b>2:")
            && broken.body.contains("id=\"L2\" class=\"bad\"")
            && broken.body.contains("<mark>"),
        "{}",
        broken.body
    );

    let saved = site.post("/access", &[("text", text), ("expect", &version), ("do", "save")]).await;
    assert_eq!(saved.location(), "/access?done=saved", "{}", saved.body);
    assert_eq!(site.control.policy().text, text.replace("\r\n", "\n"));

    let late = site
        .post("/access", &[("text", "// late\n{\"acls\": []}\n"), ("expect", &version), ("do", "save")])
        .await;
    assert_eq!(late.status, StatusCode::CONFLICT);
    assert!(late.body.contains("stored while you were editing") && late.body.contains("// late"));
    let now = site.control.policy().version;
    assert!(late.body.contains(&format!("name=\"expect\" value=\"{now}\"")));
    assert_eq!(site.get(&format!("/access/version/{now}")).await.status, StatusCode::OK);

    let stale = site
        .post("/access", &[("form", "old"), ("text", "// kept"), ("expect", &version), ("do", "save")])
        .await;
    assert_eq!(stale.status, StatusCode::FORBIDDEN);
    assert!(stale.body.contains("// kept"));
}

#[tokio::test]
async fn an_old_version_comes_back_and_is_never_lost() {
    let site = Site::signed_in().await;
    let save = async |text: &str, comment: &str| {
        let version = site.control.policy().version.to_string();
        let fields = [("text", text), ("expect", &version), ("comment", comment), ("do", "save")];
        let saved = site.post("/access", &fields).await;
        assert_eq!(saved.location(), "/access?done=saved", "{}", saved.body);
    };
    let first = "{\"acls\": []} // first";
    save(first, "why <b>not</b>").await;
    save("{\"acls\": []} // second", "").await;
    let page = site.get("/access/version/1").await;
    assert!(page.body.contains("why &#60;b&#62;not") && page.body.contains("Roll back to this version"));
    assert!(page.body.contains("// second"), "the difference since");
    let text = site.get("/access/version/1/text").await;
    assert_eq!(text.body, first);
    assert!(text.headers["content-disposition"].to_str().unwrap().contains("policy-1.hujson"));

    let late = site.post("/access/version/1", &[("expect", "1"), ("comment", "kept")]).await;
    assert_eq!(late.status, StatusCode::CONFLICT);
    assert!(late.body.contains("changed meanwhile") && late.body.contains("value=\"kept\""), "{}", late.body);
    let back = site.post("/access/version/1", &[("expect", "2"), ("comment", "")]).await;
    assert_eq!(back.location(), "/access?done=back", "{}", back.body);
    assert_eq!((site.control.policy().version, site.control.policy().text.as_str()), (3, first));
    assert_eq!(site.post("/access/version/9", &[("expect", "3")]).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn texts_of_megabytes_are_taken_and_not_loaded_unasked() {
    let site = Site::signed_in().await;
    let text = format!("// {}\n{{\"acls\": []}}\n", "<&\" ".repeat(3 << 18));
    let saved = site.post("/access", &[("text", &text), ("expect", "0"), ("do", "save")]).await;
    assert_eq!(saved.location(), "/access?done=saved");
    let page = site.get("/access").await;
    assert!(page.body.len() < 20_000 && page.body.contains("too long to be shown"), "{}", page.body.len());
    assert!(site.get("/access/version/1").await.body.len() < 20_000);
    assert!(site.get("/access?show=whole").await.body.len() > text.len());
    assert_eq!(site.get("/access/version/1/text").await.body, text);
    let over = "x".repeat((16 << 20) + 1);
    let refused = site.post("/access", &[("text", &over), ("expect", "1"), ("do", "check")]).await;
    assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(refused.body.contains("longer than 16 MiB") && refused.body.contains(&over), "the draft is kept");
}

#[tokio::test]
async fn the_simulator_answers_and_its_changes_are_drafts_only() {
    let site = Site::signed_in().await;
    let asked = site.get("/simulator?from=10.0.0.1&to=10.0.0.2&port=22").await;
    assert_eq!(asked.status, StatusCode::OK, "{}", asked.body);
    assert!(
        asked.body.contains("id=\"answer\"")
            && asked.body.contains("--from 10.0.0.1 --to 10.0.0.2 --port 22")
    );
    let unknown = site.get("/simulator?from=%3Cscript%3E&to=nobody").await;
    assert_eq!(unknown.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(!unknown.body.contains("<script") && unknown.body.contains("aria-invalid"));
    // A link that names one end asks nothing yet.
    let half = site.get("/simulator?to=nobody").await;
    assert!(half.status == StatusCode::OK && !half.body.contains("aria-invalid"));

    let fields = [("from", "10.0.0.1"), ("to", "10.0.0.2"), ("text", "{\n\"acls\": oops}"), ("expect", "0")];
    let faulty = site.post("/simulator", &fields).await;
    assert_eq!(faulty.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(faulty.body.contains("id=\"L2\""), "{}", faulty.body);

    let text = "{\n// kept\n\"acls\": [],\n}\n";
    let give = [("src", "10.0.0.1"), ("dst", "10.0.0.2"), ("ports", "22"), ("text", text)];
    let given = site.post("/simulator/give", &give).await;
    assert_eq!(given.status, StatusCode::OK, "{}", given.body);
    assert!(given.body.contains("10.0.0.2:22") && given.body.contains("// kept"));
    for bad in [vec![("src", "10.0.0.1")], vec![("join", "nospace")], vec![]] {
        assert_eq!(site.post("/simulator/give", &bad).await.status, StatusCode::BAD_REQUEST, "{bad:?}");
    }
    let nonsense = site.post("/simulator/give", &[("src", "<b>"), ("dst", "]["), ("ports", "x")]).await;
    assert!(nonsense.status.is_client_error() && !nonsense.body.contains("<b>]"), "{}", nonsense.body);
    let stolen = site.post("/simulator/give", &[("form", "no"), ("src", "*"), ("dst", "*")]).await;
    assert_eq!(stolen.status, StatusCode::FORBIDDEN);
    assert_eq!(site.control.policy().version, 0, "nothing was stored");

    // What was typed comes back from format, and goes to the editor with a line marked.
    let formatted = site.post("/access", &[("text", text), ("expect", "0"), ("do", "format")]).await;
    assert!(
        formatted.body.contains("Formatted.") && formatted.body.contains("\t// kept"),
        "{}",
        formatted.body
    );
    let shown = site.post("/access", &[("text", text), ("expect", "0"), ("line", "2")]).await;
    assert!(shown.body.contains("id=\"L2\" class=\"here\""));
}

#[tokio::test]
async fn roles_are_set_and_the_last_owner_stays() {
    let site = Site::signed_in().await;
    for name in ["alice", "bob"] {
        site.post("/people", &[("name", name)]).await;
    }
    let users = site.control.users();
    let at = |n: usize| format!("/people/{}/role", users[n].id);
    assert_eq!(site.post(&at(1), &[("role", "auditor")]).await.location(), "/people?done=role");
    assert_eq!(site.control.users()[1].role, crate::model::Role::Auditor);
    let last = site.post(&at(0), &[("role", "member")]).await;
    assert_eq!(last.status, StatusCode::CONFLICT);
    assert!(last.body.contains("only owner"), "{}", last.body);
    assert_eq!(site.post(&at(0), &[("role", "king")]).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn what_is_not_here_says_so() {
    let site = Site::signed_in().await;
    for path in [
        "/nowhere",
        "/device/999",
        "/device/x",
        "/a/gone",
        "/a/..%2f",
        "/access/version/77",
        "/people/1/rename",
    ] {
        let answer = site.get(path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert!(answer.body.contains("</html>"), "{path}");
    }
    let big = "x".repeat(70 << 10);
    assert_eq!(site.post("/people", &[("name", &big)]).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    let put = site.request("PUT", "/").body(Full::default()).unwrap();
    assert_eq!(site.send(put, info(true)).await.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn strangers_see_the_same_for_every_login_id() {
    let site = Site::start().await;
    let page = site.get("/a/0123456789abcdef").await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(page.body.contains("tsd logins approve 0123456789abcdef"));
    assert!(!page.body.contains("Approve device"));
    assert_eq!(site.get("/a/%3Cscript%3E").await.status, StatusCode::NOT_FOUND);
}
