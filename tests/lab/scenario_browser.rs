//! Proof 10: a person with a browser, scripts or no scripts, on a desktop and on a phone's width.

use std::path::PathBuf;
use std::time::Duration;

use crate::peers::{Kind, OFFICIAL, Peer};
use crate::server::Server;
use crate::webdriver::Browser;
use crate::world::{Host, Lab, eventually};

const CONSOLE: &str = "https://203.0.113.10";

/// Where screenshots go: looked at by people, kept when `TSD_SCREENSHOTS` names a directory.
fn shots() -> PathBuf {
    let dir = std::env::var_os("TSD_SCREENSHOTS")
        .map_or_else(|| std::env::temp_dir().join("tsd-screenshots"), PathBuf::from);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// One browser at a time: three beside the lab starve each other on two cores.
static BROWSER: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn browse<T: Send + 'static>(
    host: &Host,
    width: u32,
    work: impl FnOnce(&Browser) -> T + Send + 'static,
) -> T {
    let _one = BROWSER.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    host.inside(move || {
        let browser = Browser::start(width, 900, false).unwrap();
        let done = work(&browser);
        drop(browser);
        done
    })
    .join()
    .unwrap()
}

fn sign_in(browser: &Browser, link: &str) {
    browser.goto(link).unwrap();
    let button = browser.button("Sign in to the console").unwrap();
    browser.follow(&button).unwrap();
    assert!(browser.find("nav").is_ok(), "{}", browser.page_text().unwrap());
}

fn link(server: &Server) -> String {
    let out = server.ok(&["console", "link"]);
    let at = out.find("https://").unwrap_or_else(|| panic!("{out}"));
    out.get(at..).unwrap().split_whitespace().next().unwrap().to_owned()
}

fn tour(width: u32, label: &'static str) {
    let lab = Lab::new(label);
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let t1 = Peer::join(&lab.host("t1"), Kind::Tsd, &server.url, &key);
    let admin = lab.host("admin");

    // An official client waits for a person.
    let waiting = Peer::start(&lab.host("newlaptop"), OFFICIAL);
    let mut up = waiting
        .host
        .spawn("up", waiting.command(&["up", "--login-server", &server.url, "--hostname=newlaptop"]));
    let url = eventually("the client prints its page", Duration::from_secs(15), || {
        let text = up.text();
        let at = text.find("http").filter(|at| text[*at..].contains("/a/"));
        at.and_then(|at| text[at..].split_whitespace().next().map(str::to_owned)).ok_or(text)
    });

    let one_time = link(&server);
    let (made_key, used_twice) = browse(&admin, width, move |b| {
        let shot = |name: &str| b.screenshot(&shots().join(format!("{label}-{name}.png"))).unwrap();
        // A stranger reads what to do, and nothing else; the plain address leads to the sealed one.
        b.goto(&url).unwrap();
        assert!(b.url().unwrap().starts_with("https://"), "{}", b.url().unwrap());
        let text = b.page_text().unwrap();
        assert!(text.contains("logins approve"), "{text}");
        shot("stranger");
        b.goto(&format!("{CONSOLE}/devices")).unwrap();
        assert!(b.url().unwrap().contains("/login"));

        sign_in(b, &one_time);
        shot("start");
        assert!(b.overflow().unwrap() <= 0, "the start page scrolls sideways");

        // Approve the login that waits.
        b.goto(&format!("{CONSOLE}/approvals")).unwrap();
        assert!(b.page_text().unwrap().contains("newlaptop"));
        shot("approvals");
        let approve = b.button("Approve device").unwrap();
        b.follow(&approve).unwrap();
        assert!(b.page_text().unwrap().contains("newlaptop"), "{}", b.page_text().unwrap());
        shot("device");
        b.goto(&format!("{CONSOLE}/devices")).unwrap();
        let text = b.page_text().unwrap();
        assert!(text.contains("newlaptop") && text.contains("t1"), "{text}");
        shot("devices");
        assert!(b.overflow().unwrap() <= 0, "the device list scrolls sideways");

        // Make a key; it is shown once.
        b.goto(&format!("{CONSOLE}/keys")).unwrap();
        shot("keys");
        b.click_on("input[name=reusable]").unwrap();
        let make = b.button("Make key").unwrap();
        b.follow(&make).unwrap();
        let source = b.source().unwrap();
        let at = source.find("tskey-auth-").expect("the key is shown");
        let key: String = source[at..]
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '-' || *c == '_')
            .collect();
        shot("key");
        b.goto(&format!("{CONSOLE}/keys")).unwrap();
        assert!(!b.source().unwrap().contains(&key), "the key is shown twice");

        // The policy: with an error at its place, then without.
        b.goto(&format!("{CONSOLE}/access")).unwrap();
        b.fill("textarea.policy", "{\n  \"acls\": [\n    {\"action\": \"accept\", \"src\": [\"tag:sever\"], \"dst\": [\"*:*\"]}\n  ]\n}").unwrap();
        let check = b.button("Check policy").unwrap();
        b.follow(&check).unwrap();
        let text = b.page_text().unwrap();
        assert!(text.contains("3:") && text.contains("tag:sever"), "{text}");
        shot("policy-error");
        assert!(b.overflow().unwrap() <= 0, "the policy page scrolls sideways");
        b.fill("textarea.policy", "{\n  // one port only\n  \"acls\": [\n    {\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:22\"]}\n  ]\n}").unwrap();
        let save = b.button("Save policy").unwrap();
        b.follow(&save).unwrap();
        // It takes access away, so it asks first.
        let text = b.page_text().unwrap();
        assert!(text.contains("takes access away"), "{text}");
        shot("policy-confirm");
        let confirm = b.button("Save and take this access away").unwrap();
        b.follow(&confirm).unwrap();
        assert!(b.page_text().unwrap().contains("Version"), "{}", b.page_text().unwrap());
        shot("policy-saved");

        let cookies = b.cookies().unwrap();
        let session =
            cookies.iter().find(|c| c["name"].as_str().is_some_and(|n| n.starts_with("__Host-"))).unwrap();
        assert_eq!((&session["httpOnly"], &session["secure"]), (&true.into(), &true.into()), "{session}");

        // The one-time link works once.
        b.goto(&one_time).unwrap();
        let again = b.button("Sign in to the console");
        if let Ok(button) = again {
            b.follow(&button).unwrap();
        }
        (key, b.page_text().unwrap())
    });
    assert!(used_twice.contains("console link"), "a used link says how to make another: {used_twice}");
    assert!(up.wait(Duration::from_secs(30)).success());
    waiting.wait_running(Duration::from_secs(10));
    assert!(server.ok(&["policy", "get"]).contains("one port only"));
    // The key made in the browser lets a machine in.
    let o2 = Peer::join(&lab.host("o2"), Kind::Tsd, &server.url, &made_key);
    o2.wait_sees(&["t1"], Duration::from_secs(10));
    drop(t1);
}

#[test]
fn an_admin_works_on_a_desktop() {
    tour(1280, "desktop");
}

#[test]
fn an_admin_works_on_a_phone() {
    tour(360, "phone");
}

#[test]
fn hostile_names_stay_text() {
    let lab = Lab::new("hostile names");
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let key = server.key(&["--reusable"]);
    let url = server.url.clone();
    let admin = lab.host("admin");
    crate::machines::block_inside(&admin, move || async move {
        for name in
            ["<script>document.title='pwned'</script>", "\"><img src=x onerror=alert(1)>", "\u{202e}drawkcab"]
        {
            let mut machine = crate::machines::Machine::new(name);
            let mut request = machine.request(&key);
            if let Some(hostinfo) = request.hostinfo.as_mut() {
                hostinfo.os = name.to_owned();
                hostinfo.ipn_version = name.to_owned();
            }
            let answer = machine.client(&url).register(&request).await.unwrap();
            assert!(answer.error.is_empty(), "{answer:?}");
        }
    });
    let nodes: Vec<u64> = server.nodes().iter().map(|n| n["id"].as_u64().unwrap()).collect();
    let one_time = link(&server);
    browse(&admin, 1280, move |b| {
        sign_in(b, &one_time);
        let pages =
            std::iter::once("devices".to_owned()).chain(nodes.iter().map(|id| format!("device/{id}")));
        for page in pages {
            b.goto(&format!("{CONSOLE}/{page}")).unwrap();
            assert!(!b.title().unwrap().contains("pwned"), "{page}");
            assert!(b.find_all("main script, main img").unwrap().is_empty(), "{page}");
        }
        b.screenshot(&shots().join("hostile-device.png")).unwrap();
    });
}
