//! The console in a real browser over a real service, on loopback without TLS as an admin at the
//! machine uses it: sign in, make a user and a key, edit the policy with an error and without, sign
//! out; at three widths nothing scrolls sideways. Scripts are off by the page's own policy.

#[path = "support/webdriver.rs"]
mod webdriver;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tsd::control::service::{Control, Settings};
use tsd::ui::{RequestInfo, StatusSource, Ui};
use webdriver::Browser;

struct Status;

impl StatusSource for Status {
    fn warnings(&self) -> Vec<String> {
        vec!["A warning with its remedy.".into()]
    }
    fn facts(&self) -> Vec<(String, String)> {
        vec![("Certificate".into(), "self-signed, ".to_owned() + &"ab:".repeat(31) + "ab")]
    }
    fn join_url(&self) -> String {
        "http://192.0.2.1:8080".into()
    }
}

fn settings() -> anyhow::Result<Settings> {
    Ok(Settings {
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
        ephemeral_timeout: Duration::from_secs(60),
        ipv4_pool: "100.64.0.0/10".parse()?,
        domains: Default::default(),
        policy_file: None,
    })
}

/// Serves a console on a free loopback port: its address and a sign-in link.
async fn serve(dir: &std::path::Path) -> anyhow::Result<(String, String)> {
    let key = tsd::keys::MachinePrivate::generate(&mut tsd::clock::Rng::from_os());
    let control = Control::start(dir, key, settings()?).await?;
    let ui = Ui::new(control, Arc::new(Status));
    let link = ui.new_console_link().await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((stream, remote)) = listener.accept().await {
            let ui = ui.clone();
            let service = service_fn(move |request| {
                let (ui, info) = (ui.clone(), RequestInfo { remote, secure: true, tls_url: None });
                async move { Ok::<_, Infallible>(ui.handle(request, info).await) }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    Ok((base, link))
}

const SIMULATED: &str = "/simulator?from=10.0.0.1&to=10.0.0.2&port=443";
/// Bytes of everything the page loaded, from the browser's own account; cached parts count in full.
const WEIGHT: &str = "return performance.getEntriesByType('navigation').concat(performance.getEntriesByType('resource')).reduce((sum, entry) => sum + entry.encodedBodySize, 0)";

#[test]
fn an_admin_signs_in_and_does_the_jobs_of_an_evening() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (base, link) = runtime.block_on(serve(dir.path())).unwrap();
    let browser = Browser::start(1280, 800, false).unwrap();
    let press = |words: &str| browser.follow(&browser.button(words).unwrap()).unwrap();
    let at = |path: &str| assert_eq!(browser.url().unwrap(), format!("{base}{path}"));

    browser.goto(&format!("{base}/devices")).unwrap();
    at("/login");
    browser.goto(&format!("{base}{link}")).unwrap();
    press("Sign in to the console");
    at("/");
    let cookies = browser.cookies().unwrap();
    assert_eq!(cookies.len(), 1);
    assert_eq!(
        (&cookies[0]["name"], &cookies[0]["httpOnly"], &cookies[0]["sameSite"]),
        (&"__Host-tsd".into(), &true.into(), &"Strict".into())
    );

    browser.goto(&format!("{base}/people")).unwrap();
    browser.fill("main section input[name=name]", "alice").unwrap();
    press("Make user");
    at("/people?done=made");

    browser.goto(&format!("{base}/")).unwrap();
    press("Make a key");
    assert!(browser.page_text().unwrap().contains("--auth-key tskey-auth-"));

    browser.resize(360, 740).unwrap();
    browser.goto(&format!("{base}/access")).unwrap();
    browser.fill("#text", "{\n  \"acls\": oops\n}").unwrap();
    press("Save policy");
    assert!(browser.page_text().unwrap().contains("2:11"));
    assert_eq!(browser.overflow().unwrap(), 0);
    browser.fill("#text", "{\"acls\": []}").unwrap();
    press("Save policy");
    at("/access?done=saved");

    for (width, dark) in [(360, true), (768, false), (1280, true)] {
        browser.resize(width, 800).unwrap();
        browser.dark(dark).unwrap();
        for path in [
            "/",
            "/devices",
            "/approvals",
            "/people",
            "/access",
            "/keys?show=all",
            "/access/version/1",
            SIMULATED,
        ] {
            browser.goto(&format!("{base}{path}")).unwrap();
            assert_eq!(browser.overflow().unwrap(), 0, "{path} scrolls sideways at {width}");
            // What crossed the wire for the page, its style and its icon.
            let bytes = browser.run(WEIGHT).unwrap().as_u64().unwrap();
            assert!((1..60 << 10).contains(&bytes), "{path} weighs {bytes} bytes");
        }
    }
    press("Sign out");
    browser.goto(&format!("{base}/devices")).unwrap();
    at("/login");
}
