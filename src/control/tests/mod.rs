//! The whole room: a store on a temporary directory, the owner task, and clients that speak HTTP/2 over
//! an in-memory stream, without Noise.

mod admin;
mod deltas;
mod faults;
mod limits;
mod map;
mod policies;
mod public;
mod registering;
mod swarm;
mod traps;

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};

use super::machine::{self, Caller};
use super::service::{Actor, Control, NewAuthKeyRequest, Settings};
use crate::clock::Rng;
use crate::keys::{MachinePrivate, MachinePublic, NodePrivate, NodePublic};

pub(super) fn settings() -> Settings {
    Settings {
        url: "http://192.0.2.1:8080".into(),
        base_domain: "tail.internal".into(),
        tailnet_name: "home".into(),
        derp_map: serde_json::from_value(json!({"Regions": {"900": {"RegionID": 900,
            "RegionCode": "tsd", "RegionName": "tsd", "Nodes": []}}}))
        .unwrap(),
        resolvers: Vec::new(),
        split: Default::default(),
        search: vec!["corp.example".into()],
        extra_records: Vec::new(),
        magic_dns: true,
        key_expiry: None,
        ephemeral_timeout: Duration::from_secs(300),
        ipv4_pool: "100.64.0.0/10".parse().unwrap(),
        domains: Default::default(),
        policy_file: None,
    }
}

pub(super) fn by() -> Actor {
    Actor::local("test")
}

pub(super) struct World {
    pub(super) dir: tempfile::TempDir,
    pub(super) control: Control,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with(settings()).await
    }

    pub(super) async fn with(settings: Settings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let control = start(dir.path(), settings).await.unwrap();
        control.create_user(&by(), "alice").await.unwrap();
        Self { dir, control }
    }

    /// What a crash at this moment would leave behind: a copy of the files as they are.
    pub(super) async fn after_crash(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(self.dir.path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        let control = start(dir.path(), settings()).await.unwrap();
        Self { dir, control }
    }

    pub(super) async fn key(&self, reusable: bool, ephemeral: bool, tags: &[&str]) -> String {
        let request = NewAuthKeyRequest {
            user: "alice".into(),
            reusable,
            ephemeral,
            tags: tags.iter().map(|t| crate::model::Tag::parse(t).unwrap()).collect(),
            lifetime: Duration::from_secs(3600),
        };
        self.control.create_auth_key(&by(), request).await.unwrap().secret
    }

    /// A machine that joined with a key, and said where it is.
    pub(super) async fn joined(&self, seed: u8, name: &str) -> Client {
        let client = Client::new(&self.control, seed).await;
        let key = self.key(true, false, &[]).await;
        let answer = client.register(name, &key, json!({})).await;
        assert_eq!(answer["MachineAuthorized"], true, "{answer}");
        client.update(name, seed, json!({})).await;
        client
    }
}

pub(super) async fn start(dir: &std::path::Path, settings: Settings) -> anyhow::Result<Control> {
    let key = MachinePrivate::from_bytes([7; 32]);
    Control::start(dir, key, settings).await
}

/// One machine with its connection.
pub(super) struct Client {
    pub(super) machine: MachinePublic,
    pub(super) node: NodePublic,
    send: hyper::client::conn::http2::SendRequest<Full<Bytes>>,
}

pub(super) fn node_key(seed: u8) -> NodePublic {
    NodePrivate::generate(&mut Rng::from_seed([seed; 32])).public()
}

impl Client {
    pub(super) async fn new(control: &Control, seed: u8) -> Self {
        Self::from(control, seed, "127.0.0.1").await
    }

    pub(super) async fn from(control: &Control, seed: u8, ip: &str) -> Self {
        Self::of([seed ^ 0x80; 32], node_key(seed), control, ip).await
    }

    async fn of(machine: [u8; 32], node: NodePublic, control: &Control, ip: &str) -> Self {
        let machine = MachinePrivate::generate(&mut Rng::from_seed(machine)).public();
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        control
            .spawn(machine::serve(control.clone(), Caller::test(machine, ip.parse().unwrap()), None, theirs))
            .unwrap();
        let (send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(ours)).await.unwrap();
        tokio::spawn(connection);
        Self { machine, node, send }
    }

    /// One of very many.
    pub(super) async fn numbered(control: &Control, n: u32) -> Self {
        let mut seed = [0x55; 32];
        seed[..4].copy_from_slice(&n.to_be_bytes());
        let node = NodePrivate::generate(&mut Rng::from_seed(seed)).public();
        seed[31] ^= 1;
        Self::of(seed, node, control, "127.0.0.1").await
    }

    /// A lite update with one endpoint.
    pub(super) async fn update_at(&self, name: &str, n: u32, port: u16) {
        let disco = format!("discokey:{}{}", hex::encode(n.to_be_bytes()), "77".repeat(28));
        let body = json!({"Version": 130, "NodeKey": self.node, "DiscoKey": disco, "OmitPeers": true,
            "Hostinfo": {"Hostname": name, "OS": "linux", "NetInfo": {"PreferredDERP": 900}},
            "Endpoints": [format!("198.51.{}.{}:{port}", n / 250, n % 250 + 1)]});
        let response = self.post_json("/machine/map", body, json!({})).await;
        assert_eq!(response.status(), StatusCode::OK);
    }

    pub(super) async fn post(&self, path: &str, body: impl Into<Bytes>) -> Response<Incoming> {
        let request = Request::post(format!("https://unused{path}")).body(Full::new(body.into())).unwrap();
        self.send.clone().send_request(request).await.unwrap()
    }

    pub(super) async fn post_json(&self, path: &str, mut base: Value, more: Value) -> Response<Incoming> {
        for (k, v) in more.as_object().unwrap() {
            base[k] = v.clone();
        }
        self.post(path, base.to_string()).await
    }

    pub(super) async fn register_response(&self, name: &str, key: &str, more: Value) -> Response<Incoming> {
        let auth = if key.is_empty() { Value::Null } else { json!({"AuthKey": key}) };
        let base = json!({"Version": 130, "NodeKey": self.node, "Auth": auth,
            "Hostinfo": {"Hostname": name, "OS": "linux"}});
        self.post_json("/machine/register", base, more).await
    }

    pub(super) async fn register(&self, name: &str, key: &str, more: Value) -> Value {
        let response = self.register_response(name, key, more).await;
        assert_eq!(response.status(), StatusCode::OK);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice(&body).unwrap()
    }

    pub(super) async fn update(&self, name: &str, seed: u8, more: Value) {
        let disco = format!("discokey:{}", hex::encode([seed; 32]));
        let base = json!({"Version": 130, "NodeKey": self.node, "DiscoKey": disco, "OmitPeers": true,
            "Hostinfo": {"Hostname": name, "OS": "linux", "NetInfo": {"PreferredDERP": 900},
                "Services": [{"Proto": "peerapi4", "Port": 1234}, {"Proto": "tcp", "Port": 22}]},
            "Endpoints": [format!("192.0.2.{seed}:41641")]});
        let response = self.post_json("/machine/map", base, more).await;
        assert_eq!(response.status(), StatusCode::OK);
    }

    pub(super) async fn poll_response(&self, more: Value) -> Response<Incoming> {
        let base = json!({"Version": 130, "NodeKey": self.node, "Stream": true, "KeepAlive": true});
        self.post_json("/machine/map", base, more).await
    }

    pub(super) async fn poll(&self) -> Stream {
        let response = self.poll_response(json!({})).await;
        assert_eq!(response.status(), StatusCode::OK);
        Stream { body: response.into_body(), buffer: Vec::new() }
    }
}

/// A map stream being read.
pub(super) struct Stream {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Stream {
    /// The next message's bytes, `None` at the end of the stream.
    pub(super) async fn raw(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(length) = self.buffer.first_chunk::<4>() {
                let length = u32::from_le_bytes(*length) as usize;
                if self.buffer.len() >= 4 + length {
                    let rest = self.buffer.split_off(4 + length);
                    let message = std::mem::replace(&mut self.buffer, rest);
                    return Some(message[4..].to_vec());
                }
            }
            let frame = tokio::time::timeout(Duration::from_secs(30), self.body.frame());
            let frame = frame.await.expect("a message within 30 s")?;
            self.buffer.extend(frame.unwrap().into_data().unwrap());
        }
    }

    pub(super) async fn next(&mut self) -> Option<Value> {
        Some(serde_json::from_slice(&self.raw().await?).unwrap())
    }

    /// Reads until a message satisfies `wanted`; gives its size.
    pub(super) async fn raw_until(&mut self, wanted: impl Fn(&Value) -> bool) -> usize {
        loop {
            let bytes = self.raw().await.expect("the stream goes on");
            if wanted(&serde_json::from_slice(&bytes).unwrap()) {
                return bytes.len();
            }
        }
    }

    /// Reads until a message satisfies `wanted`.
    pub(super) async fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let message = self.next().await.expect("the stream goes on");
            if wanted(&message) {
                return message;
            }
        }
    }
}
