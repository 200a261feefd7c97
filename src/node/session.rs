//! One login with a server: the registration, the map stream, the lite updates (control.md 5, 6, 10).
//!
//! Tasks of a session report by one bounded channel; when it is full they wait, and with them the
//! server. Each message carries the session's number, so that one that was ended cannot speak.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::control::{ControlClient, ControlError};
use super::core::{Command, CoreHandle, PING_TIMEOUT};
use super::engine::{Path, Through};
use crate::clock::Rng;
use crate::keys::{NodePrivate, NodePublic};
use crate::wire::{
    Hostinfo, MapRequest, MapResponse, PingRequest, PingResponse, RegisterAuth, RegisterRequest,
    RegisterResponse,
};

/// Pings of the server remembered, to answer each once.
const MAX_SEEN: usize = 16;

/// What a session reports.
#[derive(Debug)]
pub enum SessionEvent {
    /// A person must open this.
    AuthUrl(String),
    /// The key is accepted.
    Registered(Box<(NodePrivate, RegisterResponse)>),
    /// The server refused, in words for the person. True: it will not be tried again.
    Refused(String, bool),
    /// A message of the map stream; the first of a stream says so.
    Map(Box<MapResponse>, bool),
    /// The map stream is open or not.
    Up(bool),
    /// Something that may pass, in words; empty when it has.
    Trouble(String),
}

/// How a session reports.
#[derive(Debug, Clone)]
pub struct Reporter {
    /// The session's number.
    pub session: u64,
    /// The channel.
    pub to: mpsc::Sender<(u64, SessionEvent)>,
}

impl Reporter {
    async fn tell(&self, event: SessionEvent) -> bool {
        self.to.send((self.session, event)).await.is_ok()
    }
}

/// After the n-th failure n²·10 ms, at most 30 s, times a random half to one and a half.
#[must_use]
pub fn backoff(failures: u32, rng: &mut Rng) -> Duration {
    let n = u64::from(failures);
    let base = n.saturating_mul(n).saturating_mul(10).min(30_000);
    Duration::from_millis(base * (500 + rng.below(1000)) / 1000)
}

/// What a registration starts with.
pub struct Login {
    /// The key to try.
    pub key: NodePrivate,
    /// The key before.
    pub old_key: Option<NodePrivate>,
    /// A pre-auth key.
    pub auth_key: Option<String>,
    /// Self-description.
    pub hostinfo: Hostinfo,
    /// Public half of the tailnet-lock key, as text.
    pub lock_key: String,
    /// Randomness.
    pub rng: Rng,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("by_key", &self.auth_key.is_some()).finish_non_exhaustive()
    }
}

impl Login {
    fn request(&self, followup: &str) -> RegisterRequest {
        RegisterRequest {
            version: crate::wire::CapVer::OURS,
            node_key: self.key.public(),
            old_node_key: self.old_key.as_ref().map(NodePrivate::public).unwrap_or_default(),
            nl_key: self.lock_key.clone(),
            auth: self.auth_key.as_ref().map(|key| RegisterAuth { auth_key: key.clone() }),
            followup: followup.to_owned(),
            hostinfo: Some(self.hostinfo.clone()),
            ..RegisterRequest::default()
        }
    }
}

/// Registers until the server says yes or a final no.
pub async fn register(client: Arc<ControlClient>, mut login: Login, report: Reporter) {
    let mut failures = 0;
    let mut followup = String::new();
    let mut renewed = false;
    loop {
        let answer = client.register(&login.request(&followup)).await;
        let wait = match answer {
            Ok(answer) if !answer.error.is_empty() => {
                // A bad key does not get better; everything else may.
                let done = login.auth_key.is_some() || !followup.is_empty();
                if !report.tell(SessionEvent::Refused(answer.error, done)).await || done {
                    return;
                }
                None
            }
            Ok(answer) if answer.node_key_expired => {
                if renewed {
                    let why = "the server calls a new key expired; log in again".to_owned();
                    report.tell(SessionEvent::Refused(why, true)).await;
                    return;
                }
                renewed = true;
                let old = std::mem::replace(&mut login.key, NodePrivate::generate(&mut login.rng));
                login.old_key = Some(old);
                followup.clear();
                continue;
            }
            Ok(answer) if !answer.auth_url.is_empty() => {
                let same = answer.auth_url == followup;
                followup.clone_from(&answer.auth_url);
                if same {
                    None
                } else {
                    if !report.tell(SessionEvent::AuthUrl(answer.auth_url)).await {
                        return;
                    }
                    failures = 0;
                    continue;
                }
            }
            Ok(answer) => {
                let registered = Box::new((login.key, answer));
                report.tell(SessionEvent::Registered(registered)).await;
                return;
            }
            Err(ControlError::Status { status: 429, retry_after, .. }) => {
                let random = Duration::from_millis(5000 + login.rng.below(5000));
                let limit = Duration::from_secs(3600);
                let asked = retry_after.filter(|d| !d.is_zero() && *d <= limit);
                let text = "the server limits how often nodes register; waiting".to_owned();
                if !report.tell(SessionEvent::Trouble(text)).await {
                    return;
                }
                Some(asked.unwrap_or(random))
            }
            Err(e) => {
                tracing::debug!("register: {e}");
                if !report.tell(SessionEvent::Trouble(e.to_string())).await {
                    return;
                }
                None
            }
        };
        failures += 1;
        let wait = wait.unwrap_or_else(|| backoff(failures, &mut login.rng));
        tokio::time::sleep(wait).await;
    }
}

/// Keeps a map stream open.
pub async fn follow_map(
    client: Arc<ControlClient>,
    request: watch::Receiver<MapRequest>,
    core: CoreHandle,
    report: Reporter,
    mut rng: Rng,
) {
    let mut failures = 0;
    let mut answering = tokio::task::JoinSet::new();
    let mut seen = VecDeque::new();
    loop {
        let poll = MapRequest {
            stream: true,
            keep_alive: true,
            omit_peers: false,
            endpoints: Vec::new(),
            endpoint_types: Vec::new(),
            ..request.borrow().clone()
        };
        let why = match client.poll(&poll).await {
            Ok(mut stream) => {
                if !report.tell(SessionEvent::Up(true)).await {
                    return;
                }
                let mut fresh = true;
                loop {
                    let message = match stream.next().await {
                        Ok(Some(message)) => message,
                        Ok(None) => break "the server ended the map stream".to_owned(),
                        Err(e) => break e.to_string(),
                    };
                    while answering.try_join_next().is_some() {}
                    if let Some(ping) = message.ping_request.clone()
                        && answering.len() < 4
                        && !seen.contains(&ping.url)
                    {
                        note_seen(&mut seen, &ping.url);
                        answering.spawn(answer_ping(client.clone(), core.clone(), ping));
                    }
                    let brake = message.debug.as_ref().map(|d| d.sleep_seconds);
                    if !message.keep_alive {
                        failures = 0;
                        let map = SessionEvent::Map(Box::new(message), fresh);
                        if !report.tell(map).await {
                            return;
                        }
                        fresh = false;
                    }
                    if let Some(seconds) = brake.filter(|s| *s > 0.0) {
                        tokio::time::sleep(Duration::from_secs_f64(seconds.min(300.0))).await;
                    }
                }
            }
            Err(e) => e.to_string(),
        };
        tracing::debug!("map stream: {why}");
        failures += 1;
        let told =
            report.tell(SessionEvent::Up(false)).await && report.tell(SessionEvent::Trouble(why)).await;
        if !told {
            return;
        }
        tokio::time::sleep(backoff(failures, &mut rng)).await;
    }
}

/// Remembers the last few pings, as each is answered once.
fn note_seen(seen: &mut VecDeque<String>, url: &str) {
    if seen.len() >= MAX_SEEN {
        seen.pop_front();
    }
    seen.push_back(url.to_owned());
}

/// Sends a lite update at the start and whenever the request changes: one at a time, the latest only.
pub async fn send_updates(
    client: Arc<ControlClient>,
    mut request: watch::Receiver<MapRequest>,
    mut rng: Rng,
) {
    let mut failures = 0;
    loop {
        let update = MapRequest { omit_peers: true, stream: false, ..request.borrow_and_update().clone() };
        match client.update(&update).await {
            Ok(()) => {
                failures = 0;
                if request.changed().await.is_err() {
                    return;
                }
            }
            Err(e) => {
                tracing::debug!("lite update: {e}");
                failures += 1;
                tokio::time::sleep(backoff(failures, &mut rng)).await;
            }
        }
    }
}

/// Tells the server that this key is to end now (control.md 5.4, logout).
pub async fn logout(client: &ControlClient, key: NodePublic, hostinfo: Hostinfo, lock_key: String) {
    let request = RegisterRequest {
        version: crate::wire::CapVer::OURS,
        node_key: key,
        nl_key: lock_key,
        expiry: chrono::DateTime::from_timestamp(123, 0),
        hostinfo: Some(hostinfo),
        ..RegisterRequest::default()
    };
    match tokio::time::timeout(Duration::from_secs(5), client.register(&request)).await {
        Ok(Ok(_)) => {}
        Ok(Err(e)) => tracing::warn!("the server could not be told of the logout: {e}"),
        Err(_) => tracing::warn!("the server could not be told of the logout within 5 s"),
    }
}

/// Answers a ping the server asks for (control.md 6.5).
async fn answer_ping(client: Arc<ControlClient>, core: CoreHandle, ping: PingRequest) {
    let body = match ping.types.as_str() {
        "" => None,
        "c2n" => Some(c2n(ping.payload.as_deref().unwrap_or_default())),
        kinds => {
            // The first kind that this node knows.
            let known = kinds.split(',').find_map(|k| match k {
                "disco" => Some(("disco", None)),
                "TSMP" => Some(("TSMP", Some(Through::Tsmp))),
                "ICMP" => Some(("ICMP", Some(Through::Icmp))),
                _ => None,
            });
            let (Some((kind, through)), Some(ip)) = (known, ping.ip) else {
                return;
            };
            let asked = core.ask(|reply| Command::Ping(ip, through, reply));
            let Ok(Ok(Ok(outcome))) = tokio::time::timeout(PING_TIMEOUT, asked).await else {
                return;
            };
            let Ok((path, latency)) = outcome.result else {
                return;
            };
            let mut response = PingResponse {
                r#type: kind.to_owned(),
                ip: ip.to_string(),
                latency_seconds: latency.as_secs_f64(),
                ..PingResponse::default()
            };
            match path {
                Path::Direct(addr) => response.endpoint = addr.to_string(),
                Path::Derp(region) => response.derp_region_id = region,
            }
            serde_json::to_vec(&response).ok()
        }
    };
    let over_noise = ping.url_is_noise || ping.types == "c2n";
    if let Err(e) = client.answer_ping(&ping.url, over_noise, body).await {
        tracing::debug!("the server's ping could not be answered: {e}");
    }
}

/// The only question control may put to this node is an echo.
fn c2n(request: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(request);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let mut words = head.split_whitespace();
    let path = words.nth(1).unwrap_or_default();
    let (status, body) = if path == "/echo" {
        ("200 OK", body)
    } else {
        ("501 Not Implemented", "not supported by this node\n")
    };
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Type: text/plain\r\n\r\n{body}", body.len())
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_is_square_and_bounded() {
        let mut rng = Rng::from_seed([2; 32]);
        assert!(backoff(1, &mut rng) <= Duration::from_millis(15));
        let tenth = backoff(10, &mut rng);
        assert!((500..=1500).contains(&tenth.as_millis()));
        assert!(backoff(u32::MAX, &mut rng) <= Duration::from_secs(45));
    }

    #[test]
    fn an_auth_key_is_not_shown() {
        let login = Login {
            key: NodePrivate::generate(&mut Rng::from_seed([1; 32])),
            old_key: None,
            auth_key: Some("tskey-auth-x".to_owned()),
            hostinfo: Hostinfo::default(),
            lock_key: String::new(),
            rng: Rng::from_seed([1; 32]),
        };
        assert!(!format!("{login:?}").contains("tskey"));
    }

    #[test]
    fn the_last_pings_are_remembered() {
        let mut seen = VecDeque::new();
        for n in 0..40 {
            note_seen(&mut seen, &format!("/{n}"));
        }
        assert_eq!(seen.len(), MAX_SEEN);
        assert!(seen.contains(&"/39".to_owned()) && !seen.contains(&"/0".to_owned()));
    }

    #[test]
    fn c2n_echoes_and_refuses_everything_else() {
        let echo = c2n(b"POST /echo HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi");
        assert!(echo.starts_with(b"HTTP/1.1 200") && echo.ends_with(b"hi"));
        assert!(c2n(b"GET /debug HTTP/1.1\r\n\r\n").starts_with(b"HTTP/1.1 501"));
        assert!(c2n(b"\xff").starts_with(b"HTTP/1.1 501"));
    }
}
