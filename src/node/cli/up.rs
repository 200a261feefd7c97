//! `up`: starts the daemon when none answers, edits preferences, logs in, waits for Running.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::client::{CallError, Client, Watch};
use super::text::say;
use super::{DEFAULT_SOCKET, Failure, UpArgs, yours};

/// How long a started daemon may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(15);
/// How long until the end of a daemon that hung up is noticed.
const END_LIMIT: Duration = Duration::from_secs(2);
/// The unit of the packages.
const UNIT: &str = "tsd-node.service";

/// `up`.
pub(super) async fn up(socket: &Path, args: UpArgs) -> Result<(), Failure> {
    let limit = args.timeout;
    let waiting = tokio::sync::watch::Sender::new("the daemon to answer".to_owned());
    let work = go(socket, args, &waiting);
    if limit.is_zero() {
        return work.await;
    }
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => {
            let what = waiting.borrow().clone();
            let health = health(&Client::new(socket)).await;
            Err(yours(format!(
                "gave up after {} s waiting for {what}{health}; look with `tsd node status`",
                limit.as_secs_f32()
            )))
        }
    }
}

/// What the daemon says is wrong, in brackets.
async fn health(client: &Client) -> String {
    let asked = client.get("status?peers=false");
    let Ok(Ok(status)) = tokio::time::timeout(Duration::from_secs(1), asked).await else {
        return String::new();
    };
    let first = status.get("Health").and_then(|h| h.get(0)?.as_str());
    first.map(|h| format!(" ({h})")).unwrap_or_default()
}

type Waiting = tokio::sync::watch::Sender<String>;

async fn go(socket: &Path, args: UpArgs, waiting: &Waiting) -> Result<(), Failure> {
    let client = Client::new(socket);
    match client.get("status?peers=false").await {
        Ok(status) => log_in(&client, &status, args, waiting).await,
        Err(CallError::NoDaemon(_)) => {
            let (status, ended) = start_daemon(&client, socket).await?;
            match log_in(&client, &status, args, waiting).await {
                // It answered, and then something stopped it: its log says what.
                Err(Failure::Ours(text)) => {
                    Err(match tokio::time::timeout(END_LIMIT, why_ended(ended)).await {
                        Ok(why) => ended_at_once(&why),
                        Err(_) => Failure::Ours(text),
                    })
                }
                done => done,
            }
        }
        Err(e) => Err(e.into()),
    }
}

/// Edits preferences and logs in where that is needed, and waits until the node runs.
async fn log_in(client: &Client, status: &Value, args: UpArgs, waiting: &Waiting) -> Result<(), Failure> {
    let auth_key = args.auth_key.as_deref().map(read_key).transpose()?;
    let current = client.get("prefs").await?;
    let prefs = wished(&current, &args);
    let url = prefs.get("ControlURL").and_then(Value::as_str);
    if url.unwrap_or_default().is_empty() {
        return Err(yours("say which server: tsd node up --login-server https://…"));
    }
    let state = status.get("BackendState").and_then(Value::as_str);
    let moved = prefs.get("ControlURL") != current.get("ControlURL");
    let logged_in = status.get("HaveNodeKey") == Some(&Value::Bool(true)) && state != Some("NeedsLogin");
    if moved && logged_in && !args.force_reauth {
        return Err(yours(format!(
            "this node is logged in with {}; to leave that network and join {}, add --force-reauth",
            current.get("ControlURL").and_then(Value::as_str).unwrap_or_default(),
            url.unwrap_or_default()
        )));
    }
    let login = moved || args.force_reauth || auth_key.is_some() || state == Some("NeedsLogin");

    // Watching begins before anything is asked, so that no answer is missed.
    let mut watch = client.watch().await?;
    waiting.send_replace("the server to answer".to_owned());
    if login {
        let answer = client.post("check-prefs", &prefs).await?;
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        if let Some(why) = answer.get("Error").and_then(Value::as_str) {
            return Err(yours(why));
        }
        let key = auth_key.as_ref().map_or("", |k| k.as_str());
        let start = json!({"UpdatePrefs": prefs, "AuthKey": key});
        client.post("start", &start).await?;
        if auth_key.is_none() {
            client.call(Method::POST, "login-interactive", Vec::new()).await?;
        }
    } else {
        client.patch_prefs(&masked(&args)).await?;
    }
    wait_running(client, &mut watch, auth_key.is_some(), waiting).await
}

/// Follows the bus until the node runs.
async fn wait_running(
    client: &Client,
    watch: &mut Watch,
    by_key: bool,
    waiting: &Waiting,
) -> Result<(), Failure> {
    let mut shown = String::new();
    // The change may have happened before the first notification.
    let mut first = true;
    loop {
        let notify = if first {
            let status = client.get("status?peers=false").await?;
            let running = status.get("BackendState").and_then(Value::as_str) == Some("Running");
            first = false;
            json!({"State": if running { json!(6) } else { Value::Null }})
        } else {
            watch.next().await.ok_or_else(daemon_ended)?
        };
        if let Some(error) = notify.get("ErrMessage").and_then(Value::as_str) {
            return Err(yours(format!("backend error: {error}")));
        }
        match notify.get("State").and_then(Value::as_i64) {
            Some(6) => {
                if !shown.is_empty() {
                    say("Success.");
                }
                return Ok(());
            }
            Some(5) => {
                waiting.send_replace("a relay or a peer to answer".to_owned());
            }
            Some(3) => {
                waiting.send_replace("an admin to approve this machine".to_owned());
                say("This machine must be approved by an admin.");
            }
            _ => {}
        }
        if let Some(url) = notify.get("BrowseToURL").and_then(Value::as_str)
            && !by_key
            && !url.is_empty()
            && url != shown
        {
            shown = url.to_owned();
            waiting.send_replace(format!("somebody to approve the login at {url}"));
            say(&format!("\nTo authenticate, visit:\n\n\t{url}\n"));
        }
    }
}

fn daemon_ended() -> Failure {
    let text = "the daemon ended meanwhile; its log says why (journalctl -u tsd-node, or the .log beside its \
                socket). Then run `tsd node up` again";
    Failure::Ours(text.to_owned())
}

fn read_key(text: &str) -> Result<Zeroizing<String>, Failure> {
    let Some(path) = text.strip_prefix("file:") else {
        return Ok(Zeroizing::new(text.to_owned()));
    };
    let content =
        std::fs::read_to_string(path).map_err(|e| yours(format!("cannot read the key from {path}: {e}")))?;
    Ok(Zeroizing::new(content.trim().to_owned()))
}

/// The fields the command line names, with their masks.
fn masked(args: &UpArgs) -> Value {
    let mut out = json!({"WantRunning": true, "WantRunningSet": true,
        "LoggedOut": false, "LoggedOutSet": true});
    let mut set = |name: &str, value: Option<Value>| {
        if let (Some(value), Some(map)) = (value, out.as_object_mut()) {
            map.insert(name.to_owned(), value);
            map.insert(format!("{name}Set"), Value::Bool(true));
        }
    };
    set("ControlURL", args.login_server.clone().map(Value::from));
    set("Hostname", args.hostname.clone().map(Value::from));
    set("CorpDNS", args.accept_dns.map(Value::from));
    set("RouteAll", args.accept_routes.map(Value::from));
    set("ShieldsUp", args.shields_up.map(Value::from));
    set("AdvertiseTags", args.advertise_tags.clone().map(Value::from));
    out
}

/// The whole preferences as they should become.
fn wished(current: &Value, args: &UpArgs) -> Value {
    let mut out = current.clone();
    let edit = masked(args);
    if let (Some(out), Some(edit)) = (out.as_object_mut(), edit.as_object()) {
        for (name, value) in edit.iter().filter(|(n, _)| !n.ends_with("Set")) {
            out.insert(name.clone(), value.clone());
        }
        out.remove("Config");
    }
    out
}

/// Tells the end of a daemon we started, with the last line of its log.
type Ended = tokio::sync::oneshot::Receiver<String>;

/// The last words of a daemon we started, once it ended; of another's end nothing is heard.
async fn why_ended(ended: Option<Ended>) -> String {
    match ended {
        Some(ended) => ended.await.unwrap_or_default(),
        None => std::future::pending().await,
    }
}

fn ended_at_once(why: &str) -> Failure {
    yours(format!("the daemon ended at once: {why}"))
}

/// By systemd where it runs and knows the unit, else in the background. Gives its status, and how its end
/// will be told.
async fn start_daemon(client: &Client, socket: &Path) -> Result<(Value, Option<Ended>), Failure> {
    let mut ended = None;
    let standard = socket == Path::new(DEFAULT_SOCKET);
    if standard && unit_exists().await {
        say(&format!("The daemon is not running; starting {UNIT}."));
        let done = tokio::process::Command::new("systemctl").args(["start", UNIT]).status().await;
        if !done.is_ok_and(|s| s.success()) {
            return Err(yours(format!("{UNIT} does not start; see `journalctl -u {UNIT}`")));
        }
    } else {
        ended = Some(start_in_background(socket)?);
    }
    let answers = async {
        loop {
            match client.get("status?peers=false").await {
                Ok(status) => return Ok(status),
                // A listening socket cannot be awaited before it exists; one that breaks is a daemon that
                // is about to end, which the other branch explains.
                Err(CallError::NoDaemon(_) | CallError::Broken(_)) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(e) => return Err(Failure::from(e)),
            }
        }
    };
    let answers = tokio::time::timeout(START_LIMIT, answers);
    tokio::pin!(answers);
    let answer = match ended.as_mut() {
        Some(ended) => tokio::select! {
            answer = &mut answers => answer,
            why = ended => return Err(ended_at_once(&why.unwrap_or_default())),
        },
        None => answers.await,
    };
    let status = answer.unwrap_or_else(|_| {
        Err(yours("the daemon does not answer; run `tsd node run` by hand to see why"))
    })?;
    Ok((status, ended))
}

/// The last line of a log, without what a terminal would obey.
fn last_line(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("it said nothing");
    line.chars().filter(|c| !c.is_control()).take(500).collect()
}

async fn unit_exists() -> bool {
    if !Path::new("/run/systemd/system").is_dir() {
        return false;
    }
    let known = tokio::process::Command::new("systemctl")
        .args(["cat", UNIT])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await;
    known.is_ok_and(|s| s.success())
}

/// In a session of its own, so that it outlives this terminal; its log goes beside the socket.
fn start_in_background(socket: &Path) -> Result<Ended, Failure> {
    let program =
        std::env::current_exe().map_err(|e| Failure::Ours(format!("cannot find this program: {e}")))?;
    let log = socket.with_extension("log");
    let made = socket.parent().map_or(Ok(()), crate::node::localapi::make_dir);
    // Not for everybody, and never through a link that somebody else put there.
    let mut options = std::fs::OpenOptions::new();
    options.create(true).append(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let opened = made.and_then(|()| options.open(&log));
    let file = opened.map_err(|e| {
        let denied = e.kind() == std::io::ErrorKind::PermissionDenied;
        let remedy = if denied { "; use sudo" } else { "" };
        yours(format!(
            "no daemon runs, and it cannot be started: cannot write {}: {e}{remedy}",
            log.display()
        ))
    })?;
    let mut command = std::process::Command::new(&program);
    command
        .args(["node", "run", "--background", "--socket"])
        .arg(socket)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file);
    let mut child = command.spawn().map_err(|e| yours(format!("cannot start the daemon: {e}")))?;
    let (tell, ended) = tokio::sync::oneshot::channel();
    say(&format!("The daemon was not running; started it in the background (log: {}).", log.display()));
    // It outlives us; until then nobody else would take its exit.
    std::thread::spawn(move || {
        let _ = child.wait();
        let _ = tell.send(last_line(&log));
    });
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_said_is_changed() {
        let args = UpArgs { hostname: Some("h".into()), accept_dns: Some(false), ..UpArgs::default() };
        let edit = masked(&args);
        assert_eq!(edit["HostnameSet"], true);
        assert_eq!(edit["CorpDNS"], false);
        assert_eq!(edit.get("ControlURLSet"), None);
        let current = json!({"ControlURL": "http://x", "Hostname": "", "Config": {}});
        let out = wished(&current, &args);
        assert_eq!(out["ControlURL"], "http://x");
        assert_eq!(out["Hostname"], "h");
        assert_eq!(out["WantRunning"], true);
        assert_eq!(out.get("Config"), None);
        assert_eq!(out.get("HostnameSet"), None);
    }

    #[test]
    fn the_last_line_of_a_log_is_shown_without_control_characters() {
        let tmp = tempfile::tempdir().unwrap();
        let log = tmp.path().join("log");
        std::fs::write(&log, "first\nlast \u{1b}[31mline\n\n").unwrap();
        assert_eq!(last_line(&log), "last [31mline");
        assert_eq!(last_line(Path::new("/no/such")), "it said nothing");
    }

    #[test]
    fn a_key_may_lie_in_a_file() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("k");
        std::fs::write(&path, "secret\n").unwrap();
        let read = read_key(&format!("file:{}", path.display())).unwrap();
        assert_eq!(read.as_str(), "secret");
        assert!(read_key("file:/no/such").is_err());
    }
}
