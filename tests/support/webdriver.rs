//! A small WebDriver client: starts chromedriver on a free port and drives one headless Chromium with
//! a fresh profile. Blocking, so that a test reads top to bottom; must not be used on a thread that
//! runs an async runtime. Everything ends and is deleted on drop. Used by the browser tests; a test
//! binary includes it with `#[path]`.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

/// One command to the browser must be through in this time.
const COMMAND_TIME: Duration = Duration::from_secs(60);
/// Screenshots are the largest answers.
const MAX_ANSWER: usize = 64 << 20;
/// Key under which WebDriver names an element (W3C WebDriver, section 12.1).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A running browser.
pub(crate) struct Browser {
    runtime: tokio::runtime::Runtime,
    driver: Child,
    port: u16,
    session: String,
    _profile: tempfile::TempDir,
}

/// An element of the page that is open; of no use after the browser went on.
#[derive(Debug, Clone)]
pub(crate) struct Element(String);

impl Browser {
    /// Starts a headless browser with a window of that size, in light or dark.
    pub(crate) fn start(width: u32, height: u32, dark: bool) -> Result<Self> {
        let profile = tempfile::tempdir()?;
        let mut driver = Command::new("/usr/bin/chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start /usr/bin/chromedriver: install chromium and chromium-driver")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let port = match chosen_port(&mut driver) {
            Ok(port) => port,
            Err(error) => {
                let _ = driver.kill();
                let _ = driver.wait();
                return Err(error);
            }
        };
        let mut browser = Self { runtime, driver, port, session: String::new(), _profile: profile };
        let mut args: Vec<String> = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--ignore-certificate-errors",
            "--hide-scrollbars",
        ]
        .map(str::to_owned)
        .to_vec();
        args.push(format!("--user-data-dir={}", browser._profile.path().display()));
        args.push(format!("--window-size={width},{height}"));
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "acceptInsecureCerts": true,
            "goog:chromeOptions": {"binary": "/usr/bin/chromium", "args": args},
        }}});
        let made = browser.call(Method::POST, "/session", Some(&wanted))?;
        made["sessionId"].as_str().context("chromedriver gave no session")?.clone_into(&mut browser.session);
        browser.resize(width, height)?;
        browser.dark(dark)?;
        Ok(browser)
    }

    /// Opens an address and waits until the page is loaded.
    pub(crate) fn goto(&self, url: &str) -> Result<()> {
        self.post("/url", &json!({ "url": url })).map(|_| ())
    }

    /// The address of the page.
    pub(crate) fn url(&self) -> Result<String> {
        text_of(self.get("/url")?)
    }

    /// The page's title.
    pub(crate) fn title(&self) -> Result<String> {
        text_of(self.get("/title")?)
    }

    /// The page as markup.
    pub(crate) fn source(&self) -> Result<String> {
        text_of(self.get("/source")?)
    }

    /// Loads the page again.
    pub(crate) fn reload(&self) -> Result<()> {
        self.post("/refresh", &json!({})).map(|_| ())
    }

    /// Goes back in the history.
    pub(crate) fn back(&self) -> Result<()> {
        self.post("/back", &json!({})).map(|_| ())
    }

    /// The first element that fits a CSS selector.
    pub(crate) fn find(&self, css: &str) -> Result<Element> {
        let found = self
            .post("/element", &json!({"using": "css selector", "value": css}))
            .with_context(|| format!("no element {css:?} on {}", self.url().unwrap_or_default()))?;
        element(&found)
    }

    /// All elements that fit a CSS selector.
    pub(crate) fn find_all(&self, css: &str) -> Result<Vec<Element>> {
        let found = self.post("/elements", &json!({"using": "css selector", "value": css}))?;
        found.as_array().context("no list of elements")?.iter().map(element).collect()
    }

    /// The first button or link whose text contains `text`.
    pub(crate) fn button(&self, text: &str) -> Result<Element> {
        for candidate in self.find_all("button, a")? {
            if self.text(&candidate)?.contains(text) {
                return Ok(candidate);
            }
        }
        bail!("no button or link {text:?} on {}", self.url()?)
    }

    /// Waits until an element fits, at most `time`: for what another program must bring about. Every
    /// round loads the page again, since the console has no script.
    pub(crate) fn wait_for(&self, css: &str, time: Duration) -> Result<Element> {
        let end = tsd::clock::Now::read().mono + time;
        loop {
            match self.find(css) {
                Ok(found) => return Ok(found),
                Err(error) if tsd::clock::Now::read().mono >= end => return Err(error),
                Err(_) => self.reload()?,
            }
        }
    }

    /// Clicks something that stays on the page.
    pub(crate) fn click(&self, element: &Element) -> Result<()> {
        self.post(&format!("/element/{}/click", element.0), &json!({})).map(|_| ())
    }

    /// Clicks a link or button that opens a page, and waits until the new page is loaded: the driver
    /// may come back from a click before the browser has begun to leave.
    pub(crate) fn follow(&self, element: &Element) -> Result<()> {
        let old = self.find("html")?;
        self.click(element)?;
        let end = tsd::clock::Now::read().mono + COMMAND_TIME;
        // Each round is a round trip to the browser, which is pause enough.
        while self.get(&format!("/element/{}/name", old.0)).is_ok() {
            ensure!(tsd::clock::Now::read().mono < end, "the click opened no page in {COMMAND_TIME:?}");
        }
        loop {
            if self.run("return document.readyState").is_ok_and(|s| s == "complete") {
                return Ok(());
            }
            ensure!(tsd::clock::Now::read().mono < end, "the page was not loaded in {COMMAND_TIME:?}");
        }
    }

    /// Finds and clicks.
    pub(crate) fn click_on(&self, css: &str) -> Result<()> {
        self.click(&self.find(css)?)
    }

    /// Types into a field, after what is there.
    pub(crate) fn type_into(&self, element: &Element, text: &str) -> Result<()> {
        self.post(&format!("/element/{}/value", element.0), &json!({ "text": text })).map(|_| ())
    }

    /// Empties a field.
    pub(crate) fn clear(&self, element: &Element) -> Result<()> {
        self.post(&format!("/element/{}/clear", element.0), &json!({})).map(|_| ())
    }

    /// Empties a field and types into it.
    pub(crate) fn fill(&self, css: &str, text: &str) -> Result<()> {
        let field = self.find(css)?;
        self.clear(&field)?;
        self.type_into(&field, text)
    }

    /// An element's visible text.
    pub(crate) fn text(&self, element: &Element) -> Result<String> {
        text_of(self.get(&format!("/element/{}/text", element.0))?)
    }

    /// The visible text of the whole page.
    pub(crate) fn page_text(&self) -> Result<String> {
        self.text(&self.find("body")?)
    }

    /// A property, such as a field's `value`.
    pub(crate) fn property(&self, element: &Element, name: &str) -> Result<Value> {
        self.get(&format!("/element/{}/property/{name}", element.0))
    }

    /// The cookies of the page, as WebDriver tells them.
    pub(crate) fn cookies(&self) -> Result<Vec<Value>> {
        Ok(self.get("/cookie")?.as_array().cloned().unwrap_or_default())
    }

    /// Runs a function body in the page and gives what it returns: for measuring, not for driving.
    pub(crate) fn run(&self, body: &str) -> Result<Value> {
        self.post("/execute/sync", &json!({"script": body, "args": []}))
    }

    /// How many pixels the page is wider than the window: 0 when nothing scrolls sideways.
    pub(crate) fn overflow(&self) -> Result<i64> {
        self.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")?
            .as_i64()
            .context("no number")
    }

    /// Sets the size of the page area, also below the narrowest window a desktop allows.
    pub(crate) fn resize(&self, width: u32, height: u32) -> Result<()> {
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            &json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}),
        )
        .map(|_| ())
    }

    /// Switches between light and dark.
    pub(crate) fn dark(&self, dark: bool) -> Result<()> {
        let value = if dark { "dark" } else { "light" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": value}]});
        self.devtools("Emulation.setEmulatedMedia", &features).map(|_| ())
    }

    /// Writes a PNG of the whole page, past what the window shows.
    pub(crate) fn screenshot(&self, path: &Path) -> Result<()> {
        let shot = self
            .devtools("Page.captureScreenshot", &json!({"format": "png", "captureBeyondViewport": true}))?;
        let data = shot["data"].as_str().context("no picture")?;
        let png = base64::engine::general_purpose::STANDARD.decode(data)?;
        std::fs::write(path, png).with_context(|| format!("cannot write {}", path.display()))
    }

    /// A command of the browser's own tools.
    fn devtools(&self, command: &str, params: &Value) -> Result<Value> {
        self.post("/goog/cdp/execute", &json!({"cmd": command, "params": params}))
    }

    fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, &format!("/session/{}{path}", self.session), None)
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.call(Method::POST, &format!("/session/{}{path}", self.session), Some(body))
    }

    fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", format!("127.0.0.1:{}", self.port))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let exchange = async {
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let ask = async {
                let response = sender.send_request(request).await?;
                let status = response.status();
                let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
                let body = body.map_err(|e| anyhow::anyhow!("{e}"))?.to_bytes();
                anyhow::Ok((status, body))
            };
            tokio::pin!(connection);
            tokio::pin!(ask);
            tokio::select! {
                answer = &mut ask => answer,
                ended = &mut connection => {
                    ended?;
                    ask.await
                }
            }
        };
        let answer = self.runtime.block_on(async { tokio::time::timeout(COMMAND_TIME, exchange).await });
        let (status, body) = answer.with_context(|| format!("{path}: no answer in {COMMAND_TIME:?}"))??;
        let mut answer: Value = serde_json::from_slice(&body).context("chromedriver answered no JSON")?;
        let value = answer["value"].take();
        ensure!(status.is_success(), "{path}: {}: {}", value["error"], value["message"]);
        Ok(value)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let _ = self.call(Method::DELETE, &format!("/session/{}", self.session), None);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// The port chromedriver took, as it tells on its output.
fn chosen_port(driver: &mut Child) -> Result<u16> {
    let out = driver.stdout.take().context("no output of chromedriver")?;
    let mut lines = BufReader::new(out).lines();
    let port = lines
        .by_ref()
        .map_while(std::result::Result::ok)
        .find_map(|line| {
            let (_, rest) = line.split_once("started successfully on port ")?;
            rest.trim_end_matches('.').parse().ok()
        })
        .context("chromedriver ended without naming its port")?;
    // Read on to its end, so that it never writes into a closed pipe.
    std::thread::spawn(move || lines.map_while(std::result::Result::ok).for_each(drop));
    Ok(port)
}

fn element(value: &Value) -> Result<Element> {
    Ok(Element(value[ELEMENT].as_str().context("no element")?.to_owned()))
}

fn text_of(value: Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text),
        other => bail!("expected a text, got {other}"),
    }
}
