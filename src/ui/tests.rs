//! Every page rendered with ordinary, empty and hostile data. With `TSD_PAGES_TO` set to a directory
//! the pages are also written there, to be looked at.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use askama::Template;
use chrono::{DateTime, Duration, TimeZone, Utc};

use super::access_pages::*;
use super::device_pages::*;
use super::editor::{Editor, difference};
use super::pages::*;
use super::session::Session;
use super::simulator_pages::*;
use super::text::When;
use crate::acl::explain::*;
use crate::acl::{AccessChange, AccessDiff, Effect, OtherChange, OtherKind, PolicyError};
use crate::clock::Rng;
use crate::control::explaining::Given;
use crate::control::service::{AuthKeyView, LoginView, NodeView, PolicyOutcome, UserView};
use crate::keys::{MachinePrivate, NodeId, NodePrivate, UserId};
use crate::model::{KeyId, LoginId, PolicySummary, PolicyVersion, Tag};

const EVIL: &str = "<script>alert(1)</script>\"'><img src=x onerror=y>\u{202e}gnp.exe";

fn now() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 3, 14, 15, 9, 26).unwrap()
}

fn session() -> Session {
    Session::for_test([9; 32], IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)), now() - Duration::minutes(12))
}

fn frame(room: Room, title: &str) -> Frame {
    Frame::new(&session(), room, title, 2, now()).command("tsd nodes list")
}

fn node(id: u8, name: &str, hostname: &str) -> NodeView {
    let mut rng = Rng::from_seed([id; 32]);
    NodeView {
        id: NodeId(id.into()),
        name: name.into(),
        fqdn: format!("{name}.tail.internal"),
        hostname: hostname.into(),
        user: Some("alice".into()),
        tags: Vec::new(),
        ipv4: Ipv4Addr::new(100, 64, 0, id),
        ipv6: Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, id.into()),
        online: !id.is_multiple_of(4),
        last_seen: Some(now() - Duration::minutes(17 * i64::from(id))),
        version: "1.102.5-t3f1a2b".into(),
        os: "linux".into(),
        expires: None,
        expired: false,
        ephemeral: false,
        created: now() - Duration::days(i64::from(id) * 3),
        advertised_routes: Vec::new(),
        approved_routes: Vec::new(),
        home_derp: 900,
        endpoints: vec!["203.0.113.9:41641".parse().unwrap(), "[2001:db8::9]:41641".parse().unwrap()],
        key: NodePrivate::generate(&mut rng).public(),
        machine: MachinePrivate::generate(&mut rng).public(),
    }
}

fn nodes() -> Vec<NodeView> {
    let names = ["laptop", "phone", "db-1", "nas", "build-7", "tv", "gateway", "old-mac"];
    let mut out: Vec<NodeView> = names.iter().zip(1..).map(|(n, id)| node(id, n, n)).collect();
    out[2].user = None;
    out[2].tags = vec![Tag::parse("tag:db").unwrap(), Tag::parse("tag:prod").unwrap()];
    out[4].ephemeral = true;
    out[6].advertised_routes = vec!["192.168.1.0/24".parse().unwrap(), "0.0.0.0/0".parse().unwrap()];
    out[6].approved_routes = vec!["10.9.0.0/16".parse().unwrap(), "0.0.0.0/0".parse().unwrap()];
    out[7].expired = true;
    out[7].online = false;
    out[7].expires = Some(now() - Duration::days(2));
    out[1].expires = Some(now() + Duration::days(3));
    out
}

fn hostile_node() -> NodeView {
    let mut out = node(200, &"x".repeat(63), EVIL);
    out.os = EVIL.into();
    out.version = EVIL.into();
    out.user = Some(EVIL.into());
    out.fqdn = EVIL.into();
    out.tags = (0..200).map(|n| Tag::parse(&format!("tag:t{n}")).unwrap()).collect();
    out
}

fn login(hostname: &str, os: &str) -> LoginView {
    LoginView {
        id: LoginId("3f9ac81e77b04d52a6d1f0b93c5e8a14".into()),
        hostname: hostname.into(),
        os: os.into(),
        version: "1.80.3".into(),
        key: node(77, "x", "x").key,
        created: now() - Duration::minutes(2),
        expires: now() + Duration::hours(24),
    }
}

fn user(id: u64, name: &str, nodes: usize) -> UserView {
    UserView {
        id: UserId(id),
        name: name.into(),
        role: crate::model::Role::Member,
        created: now() - Duration::days(40),
        nodes,
    }
}

fn users() -> Vec<UserView> {
    vec![user(1, "alice", 6), user(2, "bob@example.com", 1), user(3, "guest", 0)]
}

fn key(id: u64, state: &'static str) -> AuthKeyView {
    AuthKeyView {
        id: KeyId(id),
        user: "alice".into(),
        reusable: id == 2,
        ephemeral: id == 2,
        tags: if id == 2 { vec![Tag::parse("tag:ci").unwrap()] } else { Vec::new() },
        created: now() - Duration::hours(3),
        expires: now() + Duration::hours(21),
        state,
        uses: u64::from(state == "used"),
    }
}

fn policy(version: u64, text: &str) -> PolicyVersion {
    PolicyVersion {
        version,
        text: text.into(),
        author: "console, 192.0.2.7".into(),
        comment: String::new(),
        created: now() - Duration::hours(5),
    }
}

const POLICY: &str = "// Who reaches whom.\n{\n  \"groups\": { \"group:dev\": [\"alice@\", \"bob@example.com\"] },\n  \"tagOwners\": { \"tag:db\": [\"group:dev\"] },\n  \"acls\": [\n    { \"action\": \"accept\", \"src\": [\"group:dev\"], \"dst\": [\"tag:db:5432\"] },\n    { \"action\": \"accept\", \"src\": [\"autogroup:member\"], \"dst\": [\"autogroup:self:*\"] },\n  ],\n}\n";

fn access(text: &str) -> Access {
    let mut out = Access::new(frame(Room::Access, "Access"), &policy(2, POLICY), text.into(), now());
    out.history = vec![
        VersionRow::new(&PolicySummary { comment: "one port only".into(), ..policy(2, "").summary() }, now()),
        VersionRow::new(&policy(1, "").summary(), now()),
    ];
    out
}

fn fault(line: u32, column: u32) -> PolicyError {
    PolicyError {
        code: "unknown-tag",
        line,
        column,
        message: "tag \"tag:web\" is not declared".into(),
        hint: "add it to tagOwners".into(),
    }
}

fn start(nodes: &[NodeView], users: &[UserView], warnings: Vec<Warning>) -> Start {
    Start {
        healthy: warnings.is_empty(),
        sentence: health_sentence(nodes, 2, warnings.len()),
        warnings,
        facts: vec![
            ("Address".into(), "https://203.0.113.5:443".into()),
            ("Certificate".into(), "self-signed, sha256 5f:0c:9a:77:…:31".into()),
            ("State".into(), "/var/lib/tsd".into()),
            ("Running".into(), "3 days".into()),
        ],
        counts: vec![
            (6, "devices online", "/devices?state=online"),
            (8, "devices in all", "/devices"),
            (2, "waiting", "/approvals"),
            (3, "people", "/people"),
            (1, "usable keys", "/keys"),
        ],
        join_url: "http://203.0.113.5:8080".into(),
        users: user_names(users),
        once: "0".into(),
        frame: frame(Room::Start, "Start").command("tsd status"),
    }
}

fn confirm() -> Confirm {
    Confirm {
        frame: frame(Room::Devices, "Remove db-1"),
        sentence: "This cannot be undone.".into(),
        consequences: vec!["db-1 loses its connections at once.".into(), "Its addresses become free.".into()],
        action: "/device/3/remove".into(),
        button: "Remove device",
        type_this: "db-1".into(),
        back: "/device/3".into(),
    }
}

fn diff() -> AccessDiff {
    let change = |from: &str, to: &str, what: &str| AccessChange {
        from: from.into(),
        to: to.into(),
        what: what.into(),
        pairs: 1,
        ..AccessChange::default()
    };
    AccessDiff {
        exact: true,
        gained: vec![change("bob@", "tag:db", "tcp 443")],
        lost: vec![change("alice@", "tag:db", "tcp 22, 5432"), change("node 5", "tag:db", "all ports")],
        gained_total: 1,
        lost_total: 12,
        ..AccessDiff::default()
    }
}

fn other(effect: Effect, what: &str, takes_away: bool) -> OtherChange {
    OtherChange {
        kind: OtherKind::Attribute,
        effect,
        who: "tag:web".into(),
        what: what.into(),
        devices: 1,
        nodes: vec![NodeId(3)],
        takes_away,
    }
}

/// Nobody's access changes, and something else does.
fn beside(other: Vec<OtherChange>) -> AccessDiff {
    let (total, lost) = (other.len() as u64, other.iter().filter(|c| c.takes_away).count() as u64);
    AccessDiff { other, other_total: total, other_lost: lost, ..AccessDiff::default() }
}

fn outcome(diff: AccessDiff) -> PolicyOutcome {
    PolicyOutcome {
        version: 2,
        diff,
        warnings: Vec::new(),
        applied: false,
        unchanged: false,
        cuts_author: None,
    }
}

fn message(code: u16) -> Message {
    Message {
        frame: Frame::stranger("This device waits for an admin"),
        text: "An admin of this network must let the device in.".into(),
        type_this: "tsd logins approve 3f9ac81e77b04d52a6d1f0b93c5e8a14".into(),
        link: Some(("/login".into(), "I am an admin: sign in")),
        code,
    }
}

fn device(node: &NodeView) -> String {
    Device::new(
        frame(Room::Devices, &node.name).notice(Some(Notice::good("Renamed. The new name is in force."))),
        node,
        &Given {
            attributes: vec![("cap/x".into(), "{\"a\":1}".into()), (EVIL.into(), EVIL.into())],
            ssh: vec!["laptop as root is let in".into(), EVIL.into()],
            peers: 4,
        },
        now(),
    )
    .render()
    .unwrap()
}

fn devices(nodes: &[NodeView], filter: &DeviceFilter) -> String {
    Devices::new(frame(Room::Devices, "Devices"), nodes, filter, "http://203.0.113.5:8080", now())
        .render()
        .unwrap()
}

fn approvals(logins: &[LoginView], nodes: &[NodeView]) -> String {
    Approvals::new(frame(Room::Approvals, "Approvals"), logins, nodes, &users(), now()).render().unwrap()
}

fn keys(list: &[AuthKeyView]) -> String {
    let form = KeyForm { user: "bob@example.com".into(), hours: "24".into(), ..KeyForm::default() };
    Keys::new(frame(Room::Keys, "Keys"), list, &users(), form, "0".into(), true, now()).render().unwrap()
}

fn people(users: &[UserView]) -> String {
    People::new(frame(Room::People, "People"), users, now()).render().unwrap()
}

fn rule_at(text: &str) -> RuleAt {
    RuleAt { section: "acls", index: 0, line: 6, column: 5, text: text.into() }
}

fn side(words: &str, node: u64) -> Side {
    Side { words: words.into(), nodes: vec![NodeId(node)], total: 1 }
}

fn told(verdict: Verdict, text: &str) -> Explanation {
    let refused = verdict != Verdict::Allowed;
    Explanation {
        verdict,
        sentence: text.into(),
        from: side(text, 1),
        to: side(text, 3),
        what: "tcp 5432".into(),
        open: "tcp 22".into(),
        rule: (!refused).then(|| rule_at(text)),
        also: vec![rule_at(text)],
        chain: vec![text.into()],
        misses: vec![Miss { rule: Some(rule_at(text)), change: text.into() }],
        back: text.into(),
        route: Some(RouteUsed {
            net: Some("10.9.0.0/16".parse().unwrap()),
            node: NodeId(7),
            name: text.into(),
            why: text.into(),
        }),
        apps: vec![AppGranted {
            name: text.into(),
            values: vec![serde_json::json!({"a": text})],
            rule: rule_at(text),
        }],
        posture: vec![text.into()],
        ssh: Some(SshAnswer {
            verdict: SshVerdict::Check,
            sentence: text.into(),
            rule: Some(rule_at(text)),
            local_user: Some(text.into()),
        }),
        cases: vec![Case {
            from: text.into(),
            to: text.into(),
            verdict,
            open: text.into(),
            rule: Some(rule_at(text)),
        }],
        notes: vec![text.into()],
    }
}

fn simulator(verdict: Option<Verdict>, text: &str, draft: bool) -> Simulator {
    let form = Form { from: text.into(), to: "db-1".into(), port: "5432".into(), ..Form::default() };
    let editor = draft.then(|| Editor::new(POLICY.into()));
    let mut out = Simulator::new(frame(Room::Simulator, "Simulator"), form, editor, 2);
    out.offer(&nodes(), &users());
    match verdict {
        Some(verdict) => {
            let file = crate::acl::Policy::parse(POLICY).unwrap();
            out.answer = Some(Answer::new(&told(verdict, text), &out.form, &nodes(), Some(file.ast())));
        }
        None => out.questions = vec![AskFault { field: "from", message: text.into(), hint: text.into() }],
    }
    out
}

/// All pages with the data people have.
fn all_pages() -> Vec<(&'static str, String)> {
    let mut faulty = access(&POLICY.replace("tag:db:5432", "tag:web:80"));
    faulty.faults = Faults::new(&mut faulty.editor, &[fault(6, 62), fault(3, 5)]);
    let mut losing = access(POLICY);
    let outcome = PolicyOutcome {
        warnings: vec![fault(5, 3)],
        cuts_author: Some("you sit at laptop and would lose access to nas".into()),
        ..outcome(diff())
    };
    losing.preview = Some(Preview::new(&mut losing.editor, &outcome, &nodes(), 3));
    let mut race = access(POLICY);
    race.race = Some(difference(POLICY, &POLICY.replace("5432", "5433")));
    let made = Made {
        frame: frame(Room::Keys, "Your key"),
        secret: format!("tskey-auth-7-{}", "k".repeat(43)),
        row: KeyRow::new(&key(7, "usable"), now()),
        join_url: "http://203.0.113.5:8080".into(),
    };
    let version = Version {
        frame: frame(Room::Access, "Version 1"),
        row: VersionRow::new(&policy(1, POLICY).summary(), now()),
        editor: Editor::new(POLICY.into()),
        cut: false,
        current: 3,
        made: Some((0, difference("", POLICY))),
        since: difference(POLICY, &POLICY.replace("5432", "443")),
        comment: String::new(),
        faults: Faults::default(),
        preview: None,
    };
    let logins = [login("alices-new-laptop", "macOS"), login("DESKTOP-8F2K1", "windows")];
    vec![
        ("login", Login { frame: Frame::stranger("Sign in to tsd"), token: None }.render().unwrap()),
        ("login-token", Login { frame: Frame::stranger("Sign in to tsd"), token: Some("ab".into()) }.render().unwrap()),
        ("stranger", message(200).render().unwrap()),
        ("start", start(&nodes(), &users(), vec![Warning::plain("Port 443 belongs to another program (nginx), so TLS is on 8443: clients that lose their stream will not find it. Free 443 or give --url."), Warning::linked("A test of the policy does not hold, line 4: x", "/access?line=4#L4".into(), "Look at the test")]).render().unwrap()),
        ("start-empty", start(&[], &[], vec![]).render().unwrap()),
        ("devices", devices(&nodes(), &DeviceFilter::default())),
        ("devices-empty", devices(&[], &DeviceFilter::default())),
        ("devices-hostile", devices(&[hostile_node()], &DeviceFilter { q: EVIL.chars().take(0).collect(), state: EVIL.into(), page: 0 })),
        ("device", device(&nodes()[6])),
        ("device-hostile", device(&hostile_node())),
        ("confirm", confirm().render().unwrap()),
        ("approvals", approvals(&logins, &nodes())),
        ("approvals-empty", approvals(&[], &[])),
        ("approvals-hostile", approvals(&[login(EVIL, EVIL)], &[hostile_node()])),
        ("people", people(&users())),
        ("keys", keys(&[key(1, "usable"), key(2, "used"), key(3, "expired"), key(4, "revoked")])),
        ("made", made.render().unwrap()),
        ("access", access(POLICY).render().unwrap()),
        ("access-faults", faulty.render().unwrap()),
        ("access-confirm", losing.render().unwrap()),
        ("access-race", race.render().unwrap()),
        ("version", version.render().unwrap()),
        ("simulator", simulator(Some(Verdict::Allowed), "laptop", false).render().unwrap()),
        ("simulator-refused", simulator(Some(Verdict::Refused), "laptop", false).render().unwrap()),
        ("simulator-draft", simulator(Some(Verdict::Partly), "laptop", true).render().unwrap()),
        ("simulator-faulty", simulator(None, "laptop", false).render().unwrap()),
    ]
}

#[test]
fn every_page_is_small_closed_and_from_here_only() {
    let to = std::env::var_os("TSD_PAGES_TO").map(std::path::PathBuf::from);
    for (name, html) in all_pages() {
        assert!(html.len() < 60 * 1024, "{name} has {} bytes", html.len());
        assert!(
            !html.contains("<script") && !html.contains(" style=") && !html.contains(" onclick"),
            "{name}"
        );
        assert!(html.trim_end().ends_with("</html>"), "{name}");
        for form in html.split("<form").skip(1).filter(|f| f.contains("method=\"post\"")) {
            let form = form.split("</form>").next().unwrap();
            assert!(
                form.contains("name=\"form\" value=\"") || form.contains("action=\"/login\""),
                "{name}: a form without token"
            );
        }
        if let Some(to) = &to {
            std::fs::write(to.join(format!("{name}.html")), html).unwrap();
        }
    }
}

#[test]
fn hostile_text_stays_text() {
    let logins = [login(EVIL, EVIL)];
    let evil_users = [user(1, EVIL, 0)];
    let mut evil_key = key(1, "usable");
    evil_key.user = EVIL.into();
    let mut text = access(EVIL);
    let evil = PolicyError { code: "syntax", line: 1, column: 4, message: EVIL.into(), hint: EVIL.into() };
    text.faults = Faults::new(&mut text.editor, std::slice::from_ref(&evil));
    let evil_change = OtherChange { who: EVIL.into(), ..other(Effect::Changed, EVIL, true) };
    let diff = AccessDiff { other: vec![evil_change], other_total: 1, other_lost: 1, ..diff() };
    let cut = PolicyOutcome { warnings: vec![evil], cuts_author: Some(EVIL.into()), ..outcome(diff) };
    text.preview = Some(Preview::new(&mut text.editor, &cut, &[hostile_node()], 0));
    text.comment = EVIL.into();
    text.obstacle = Some(EVIL.into());
    text.file = Some(EVIL.into());
    text.edited = Some(difference("a", EVIL));
    text.race = Some(difference("a", EVIL));
    let pages = [
        devices(&[hostile_node()], &DeviceFilter { q: EVIL.into(), state: EVIL.into(), page: 9 }),
        devices(&[hostile_node()], &DeviceFilter::default()),
        device(&hostile_node()),
        approvals(&logins, &[hostile_node()]),
        Approvals::one(frame(Room::Approvals, "x"), &logins[0], &evil_users, now()).render().unwrap(),
        people(&evil_users),
        keys(&[evil_key]),
        text.render().unwrap(),
        simulator(Some(Verdict::Refused), EVIL, true).render().unwrap(),
        simulator(Some(Verdict::Allowed), EVIL, false).render().unwrap(),
        simulator(None, EVIL, false).render().unwrap(),
    ];
    for html in pages {
        assert!(!html.contains("<script") && !html.contains("<img src=x"), "{html}");
    }
    // Direction marks are dropped wherever text is shown; the policy's own text is kept as it is.
    assert!(!device(&hostile_node()).contains('\u{202e}'));
    assert!(!approvals(&logins, &[]).contains('\u{202e}'));
}

#[test]
fn a_textarea_cannot_be_closed_and_keeps_its_first_line() {
    let html = access("\n</textarea><script>").render().unwrap();
    assert!(!html.contains("</textarea><script>"));
    // The parser drops one line end after the tag, so there are two.
    assert!(html.contains("aria-label=\"Policy\">\n\n&lt;/textarea>&lt;script>"), "{html}");
}

#[test]
fn filters_find_by_name_address_tag_and_state_and_pages_hold_fifty() {
    let rows = |q: &str, state: &str| {
        let filter = DeviceFilter { q: q.into(), state: state.into(), page: 1 };
        let page = Devices::new(frame(Room::Devices, "Devices"), &nodes(), &filter, "", now());
        page.rows.iter().map(|r| r.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(rows("100.64.0.3", ""), ["db-1"]);
    assert_eq!(rows("TAG:PROD", ""), ["db-1"]);
    assert_eq!(rows("", "expired"), ["old-mac"]);
    assert_eq!(rows("", "routes"), ["gateway"]);
    assert_eq!(rows("nothing", ""), Vec::<String>::new());
    let many: Vec<NodeView> = (1..=120).map(|n| node(n, &format!("n{n:03}"), "x")).collect();
    let at = |page| {
        let filter = DeviceFilter { page, ..DeviceFilter::default() };
        let page = Devices::new(frame(Room::Devices, "Devices"), &many, &filter, "", now());
        (page.rows.len(), page.range, page.previous, page.next)
    };
    assert_eq!(at(1), (50, "1–50 of 120".into(), None, Some("/devices?page=2".into())));
    assert_eq!(at(99), (20, "101–120 of 120".into(), Some("/devices?page=2".into()), None));
}

#[test]
fn the_sentence_names_what_matters() {
    assert_eq!(
        health_sentence(&nodes(), 1, 0),
        "8 devices, 6 online; 1 waits for approval. Nothing needs attention."
    );
    let warnings = expiry_warnings(&nodes(), now());
    assert!(warnings[0].contains("phone") && !warnings[0].contains("old-mac"), "{warnings:?}");
}

#[test]
fn losses_are_counted_past_what_is_shown() {
    let view = DiffView::new(&diff(), &nodes());
    assert_eq!(view.sentence, "12 pairs of devices lose access; 1 pair of devices gains some.");
    assert_eq!((view.lost[0].from.as_str(), view.more_lost), ("alice@", 10));
}

#[test]
fn a_question_is_its_address_and_its_command() {
    let form = Form { from: "alice@".into(), to: "db 1".into(), port: "22".into(), ..Form::default() };
    assert_eq!(form.url(false), "/simulator?from=alice%40&to=db%201&port=22");
    assert_eq!(form.url(true), "/simulator?from=db%201&to=alice%40&port=22");
    assert_eq!(
        form.command(true),
        "tsd policy explain --from alice@ --to 'db 1' --port 22 --draft policy.hujson"
    );
}

#[test]
fn access_is_offered_by_group_person_tag_and_device() {
    let page = simulator(Some(Verdict::Refused), "laptop", false);
    let answer = page.answer.unwrap();
    // alice@ is in group:dev already, so nobody is to be put into it.
    assert!(answer.misses[0].joins.is_empty());
    let give = answer.give.unwrap();
    let words = |list: &[Choice]| list.iter().map(|c| c.word.clone()).collect::<Vec<_>>();
    assert_eq!(words(&give.sources), ["alice@", "100.64.0.1"]);
    assert_eq!(words(&give.destinations), ["tag:db", "tag:prod", "100.64.0.3", "10.9.0.0/16"]);
    let mut others = nodes();
    others[0].user = Some("guest".into());
    let file = crate::acl::Policy::parse(POLICY).unwrap();
    let told = told(Verdict::Refused, "x");
    let again = Answer::new(&told, &Form::default(), &others, Some(file.ast()));
    let join = &again.misses[0].joins[0];
    assert_eq!((join.user.as_str(), join.group.as_str()), ("guest@", "group:dev"));
}

#[test]
fn what_changes_beside_access_is_shown_and_confirmed() {
    let rows = vec![
        other(Effect::Lost, "attribute funnel", true),
        other(Effect::Gained, "attribute x", false),
        other(Effect::Changed, "a route through gate", false),
    ];
    let outcome = outcome(beside(rows));
    let mut page = access(POLICY);
    page.preview = Some(Preview::new(&mut page.editor, &outcome, &nodes(), 0));
    let html = page.render().unwrap();
    for part in [
        "This takes something away",
        "Nobody gains or loses access; 3 other things change.",
        "Changes beside access",
        "<li class=\"less\">tag:web loses <span class=\"small\">attribute funnel</span><span class=\"sub\">db-1</span>",
        "<li class=\"more\">tag:web gains",
        "<li class=\"else\">tag:web: <span class=\"small\">a route through gate",
        "Save and take it away",
    ] {
        assert!(html.contains(part), "{part} is not in\n{html}");
    }
    let gain = self::outcome(beside(vec![other(Effect::Gained, "attribute x", false)]));
    assert!(matters(&gain) && fingerprint("a", &gain) != fingerprint("a", &outcome));
    page.preview = Some(Preview::new(&mut page.editor, &gain, &nodes(), 0));
    let html = page.render().unwrap();
    assert!(html.contains("Save this change") && html.contains("1 other thing changes"), "{html}");
}

#[test]
fn what_is_confirmed_is_what_was_seen() {
    let first = outcome(diff());
    let more = outcome(AccessDiff { lost_total: 13, ..diff() });
    assert_eq!(fingerprint("a", &first), fingerprint("a", &first));
    assert_ne!(fingerprint("a", &first), fingerprint("b", &first));
    assert_ne!(fingerprint("a", &first), fingerprint("a", &more));
    assert!(matters(&first) && !matters(&outcome(AccessDiff::default())));
    let unsure = AccessDiff { exact: false, lost_total: 0, lost: Vec::new(), ..diff() };
    assert_eq!(DiffView::new(&unsure, &nodes()).sentence, "At least 1 pair of devices gains access.");
}

#[test]
fn broken_tests_and_an_unread_policy_lead_to_their_line() {
    let warnings = policy_warnings(Some("the stored policy cannot be read"), &vec![fault(6, 1); 9]);
    assert_eq!(warnings.len(), 7);
    assert_eq!(warnings[1].link.as_ref().unwrap().0, "/access?line=6#L6");
    assert!(warnings[6].text.starts_with("4 more"));
    assert!(policy_warnings(None, &[]).is_empty());
}

#[test]
fn strangers_learn_nothing_and_get_no_rooms() {
    let html = message(200).render().unwrap();
    assert!(!html.contains("/devices") && !html.contains("Sign out"));
    assert!(html.contains("tsd logins approve 3f9ac81e77b04d52a6d1f0b93c5e8a14"));
    assert!(!html.contains(&When::new(now(), now()).to_string()));
}

#[test]
fn redirects_carry_codes_never_text() {
    assert!(super::done(Some("saved")).is_some());
    assert!(super::done(Some("<b>your password</b>")).is_none());
}

#[test]
fn the_console_owns_its_addresses_only() {
    for path in
        ["/", "/login", "/device/3", "/a/abc", "/static/style-1.css", "/access/version/3", "/simulator"]
    {
        assert!(super::Ui::owns(path), "{path}");
    }
    for path in ["/key", "/ts2021", "/derp", "/machine/map", "/healthz", "/devicesx", "/ab"] {
        assert!(!super::Ui::owns(path), "{path}");
    }
}
