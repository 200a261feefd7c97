//! Round trips over a real unix socket and a real control service in a temporary directory.

use http_body_util::{BodyExt as _, Full};

use super::*;
use crate::clock::Rng;
use crate::control::service::Settings;
use crate::keys::MachinePrivate;

fn settings() -> Settings {
    Settings {
        url: "http://127.0.0.1:1".into(),
        base_domain: "tail.internal".into(),
        tailnet_name: "test".into(),
        derp_map: crate::wire::DerpMap::default(),
        resolvers: Vec::new(),
        split: std::collections::BTreeMap::new(),
        search: Vec::new(),
        extra_records: Vec::new(),
        magic_dns: true,
        key_expiry: None,
        ephemeral_timeout: Duration::from_secs(1800),
        ipv4_pool: "100.64.0.0/10".parse().unwrap(),
        domains: Default::default(),
        policy_file: None,
    }
}

async fn ask(socket: &Path, method: &str, path: &str, body: serde_json::Value) -> (u16, serde_json::Value) {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "tsd")
        .header("content-type", "application/json")
        .body(Full::new(bytes::Bytes::from(body.to_string())))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    driver.abort();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

async fn policies_cross_the_socket(socket: &Path) {
    let null = serde_json::Value::Null;
    // Larger than any other request may be.
    let long = format!("{{}} // {}", "x".repeat(3 << 20));
    let body = serde_json::json!({"text": long, "comment": "long"});
    assert_eq!(ask(socket, "PUT", "/v1/policy", body).await.1["version"], 1);
    let body = serde_json::json!({"text": "{\"acls\": []}", "comment": "short", "expect": 1});
    assert_eq!(ask(socket, "PUT", "/v1/policy", body).await.1["version"], 2);
    let body = serde_json::json!({"version": 1, "comment": "after all", "expect": 2});
    assert_eq!(ask(socket, "POST", "/v1/policy/rollback", body).await.1["version"], 3);
    let (_, history) = ask(socket, "GET", "/v1/policy/history", null.clone()).await;
    let told: Vec<_> = history.as_array().unwrap().iter().map(|p| p["comment"].as_str().unwrap()).collect();
    assert_eq!(told, ["back to version 1: after all", "short", "long"]);
    assert_eq!((&history[0]["bytes"], history[0].get("text")), (&long.len().into(), None));
    let (_, second) = ask(socket, "GET", "/v1/policy/history/2", null.clone()).await;
    assert_eq!(
        (second["text"].as_str(), second["comment"].as_str()),
        (Some("{\"acls\": []}"), Some("short"))
    );
    assert_eq!(ask(socket, "GET", "/v1/policy/history/9", null.clone()).await.0, 404);
    let (status, _) =
        ask(socket, "POST", "/v1/users", serde_json::json!({"name": "x".repeat(2 << 20)})).await;
    assert_eq!(status, 413);
}

#[tokio::test]
async fn commands_and_errors_cross_the_socket() {
    let temp = tempfile::tempdir().unwrap();
    let key = MachinePrivate::generate(&mut Rng::from_seed([1; 32]));
    let control = Control::start(temp.path(), key, settings()).await.unwrap();
    let api = Api {
        control: control.clone(),
        status: Arc::new(|| Status { url: "u".into(), ..Status::default() }),
        console_link: Arc::new(|| Box::pin(async { Ok("https://x/login?token=t".to_owned()) })),
    };
    let socket = temp.path().join("admin.sock");
    // A stale socket is cleared away, a strange file is not.
    drop(bind(&socket).unwrap());
    let listener = bind(&socket).unwrap();
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    std::fs::write(temp.path().join("file"), "x").unwrap();
    assert!(bind(&temp.path().join("file")).unwrap_err().to_string().contains("is no socket"));
    let (stop, stopped) = watch::channel(false);
    let serving = tokio::spawn(serve(listener, api, stopped));

    let null = serde_json::Value::Null;
    let (status, user) = ask(&socket, "POST", "/v1/users", serde_json::json!({"name": "alice"})).await;
    assert_eq!((status, &user["name"], &user["id"]), (200, &"alice".into(), &1.into()));
    let (status, error) = ask(&socket, "POST", "/v1/users", serde_json::json!({"name": "alice"})).await;
    assert_eq!((status, &error["code"]), (409, &"conflict".into()));
    let body = serde_json::json!({"user": "alice", "lifetime_seconds": 3600});
    let (status, key) = ask(&socket, "POST", "/v1/authkeys", body).await;
    assert_eq!(status, 200);
    assert!(key["key"].as_str().unwrap().starts_with("tskey-auth-"));
    let (_, keys) = ask(&socket, "GET", "/v1/authkeys", null.clone()).await;
    assert_eq!(keys[0]["state"], "usable");
    assert!(!keys.to_string().contains("tskey-auth-"));
    let (status, error) =
        ask(&socket, "PUT", "/v1/policy", serde_json::json!({"text": "{\"acls\": 5}"})).await;
    assert_eq!((status, &error["code"], &error["faults"][0]["line"]), (422, &"policy".into(), &1.into()));
    let (status, error) = ask(&socket, "GET", "/v1/nodes/nobody%2Fhere", null.clone()).await;
    assert_eq!((status, &error["code"]), (404, &"not-found".into()));
    let (status, _) = ask(&socket, "GET", "/v1/bogus", null.clone()).await;
    assert_eq!(status, 400);
    assert_eq!(user["role"], "owner");
    let (status, error) =
        ask(&socket, "PUT", "/v1/users/alice/role", serde_json::json!({"role": "boss"})).await;
    assert_eq!((status, error["error"].as_str().unwrap().contains("network-admin")), (400, true));
    let (status, error) =
        ask(&socket, "PUT", "/v1/users/alice/role", serde_json::json!({"role": "member"})).await;
    assert_eq!((status, &error["code"]), (409, &"conflict".into()));
    policies_cross_the_socket(&socket).await;
    let (_, link) = ask(&socket, "POST", "/v1/console/link", null.clone()).await;
    assert_eq!(link["url"], "https://x/login?token=t");
    assert_eq!(ask(&socket, "GET", "/v1/status", null).await.1["url"], "u");

    stop.send_replace(true);
    serving.await.unwrap();
    control.shutdown().await;
}
