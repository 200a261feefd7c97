//! The public listener: `/key`, and `/ts2021` by POST and by WebSocket with real Noise inside.

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

use super::super::http::handle;
use super::super::websocket;
use super::World;
use crate::clock::Rng;
use crate::keys::MachinePrivate;
use crate::noise::stream::ClientHandshake;
use crate::wire::CapVer;

type Empties = Empty<bytes::Bytes>;

async fn connect(world: &World) -> hyper::client::conn::http1::SendRequest<Empties> {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let control = world.control.clone();
    tokio::spawn(async move {
        let service = hyper::service::service_fn(move |request| {
            let answer = handle(&control, request, ([192, 0, 2, 9], 1).into());
            async move { Ok::<_, std::convert::Infallible>(answer) }
        });
        let server = hyper::server::conn::http1::Builder::new();
        let _ = server.serve_connection(TokioIo::new(theirs), service).with_upgrades().await;
    });
    let (send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(ours)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    send
}

fn initiation(world: &World) -> (ClientHandshake, String, MachinePrivate) {
    use base64::Engine as _;
    let mut rng = Rng::from_seed([3; 32]);
    let machine = MachinePrivate::generate(&mut rng);
    let server = world.control.noise_key().public();
    let (shake, bytes) = ClientHandshake::new(&machine, &server, CapVer(130), &mut rng);
    (shake, base64::engine::general_purpose::STANDARD.encode(bytes), machine)
}

async fn whoami<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(shake: ClientHandshake, io: S) -> String {
    let stream = shake.finish(io).await.unwrap();
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("https://unused/machine/whoami").body(Empties::new()).unwrap();
    let answer = send.send_request(request).await.unwrap();
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn the_key_needs_a_version_and_has_both_members() {
    let world = World::new().await;
    let mut send = connect(&world).await;
    for (path, status) in
        [("/key", 400), ("/key?v=x", 400), ("/key?v=145", 200), ("/nothing", 404), ("/ts2021", 400)]
    {
        let answer = send.send_request(http::Request::get(path).body(Empties::new()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        if status == 200 {
            let keys: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(keys["legacyPublicKey"], format!("mkey:{}", "0".repeat(64)));
            assert_eq!(keys["publicKey"], world.control.noise_key().public().to_string());
        }
    }
}

#[tokio::test]
async fn a_post_upgrade_leads_through_noise_to_the_machine_endpoints() {
    let world = World::new().await;
    let mut send = connect(&world).await;
    let (shake, header, machine) = initiation(&world);
    let request = http::Request::post("/ts2021")
        .header("Upgrade", "tailscale-control-protocol")
        .header("Connection", "upgrade")
        .header("X-Tailscale-Handshake", header)
        .body(Empties::new())
        .unwrap();
    let answer = send.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 101);
    assert_eq!(answer.headers()["upgrade"], "tailscale-control-protocol");
    let io = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    let told = whoami(shake, io).await;
    assert!(told.contains(&machine.public().to_string()), "{told}");
}

#[tokio::test]
async fn the_websocket_form_works_and_needs_its_subprotocol() {
    let world = World::new().await;
    let (shake, header, machine) = initiation(&world);
    let query = percent_encoding::utf8_percent_encode(&header, percent_encoding::NON_ALPHANUMERIC);
    let request = |protocol: &str| {
        http::Request::get(format!("/ts2021?X-Tailscale-Handshake={query}"))
            .header("Upgrade", "websocket")
            .header("Connection", "upgrade")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("Sec-WebSocket-Protocol", protocol)
            .body(Empties::new())
            .unwrap()
    };
    let refused = connect(&world).await.send_request(request("derp")).await.unwrap();
    assert_eq!(refused.status(), 400);
    let mut send = connect(&world).await;
    let answer = send.send_request(request("tailscale-control-protocol")).await.unwrap();
    assert_eq!(answer.status(), 101);
    // The example of RFC 6455 1.3.
    assert_eq!(answer.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!(answer.headers()["sec-websocket-protocol"], "tailscale-control-protocol");
    let io = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    let told = whoami(shake, websocket::ByteStream::client(io).await).await;
    assert!(told.contains(&machine.public().to_string()), "{told}");
}
