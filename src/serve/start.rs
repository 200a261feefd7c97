//! The start of a server: ports, state, certificate, rooms, admin socket, doors, in this order. Each
//! step is a function that can fail with the remedy; nothing is let in before the last.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::anyhow;
use arc_swap::ArcSwap;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::logging::SetLevel;
use super::page::{FirstStart, Page, UrlSource};
use super::router::{Facing, Router};
use super::settings::World;
use super::state_dir::StateDir;
use super::status::{Fixed, Live};
use super::{cert, door, limits, metrics, policy_file, ports, public, settings};
use crate::api;
use crate::clock::{Now, Rng};
use crate::config::{Config, ServerUrl};
use crate::control::service::{Actor, Control, NewAuthKeyRequest};
use crate::derp::server::{Admission, DerpServer};
use crate::keys::{DerpPrivate, DerpPublic, MachinePrivate, NodePublic};
use crate::stun::server::{StunLimits, StunStats};
use crate::ui::Ui;

struct NodesOnly(Control);

impl Admission for NodesOnly {
    fn admit(&self, key: &NodePublic, _from: SocketAddr) -> bool {
        self.0.knows_node(key)
    }
}

/// A running server with everything it owns.
pub(super) struct Server {
    pub(super) tasks: JoinSet<&'static str>,
    pub(super) stop: watch::Sender<bool>,
    pub(super) control: Control,
    pub(super) derp: DerpServer,
    pub(super) live: Arc<Live>,
    pub(super) world: World,
    /// The configuration in force.
    pub(super) config: Config,
    /// What the doors go by, changed by a reload.
    pub(super) facing: Arc<ArcSwap<Facing>>,
    /// What the TLS listener presents, when there is one.
    pub(super) certificate: Option<Arc<cert::OneCertificate>>,
    pub(super) relay_key: DerpPublic,
    pub(super) set_level: SetLevel,
    /// What start could not have as wished; a reload does not mend it.
    pub(super) port_warnings: Vec<String>,
    // Last, so that the lock falls after everything else.
    pub(super) state: StateDir,
}

/// Starts everything.
///
/// # Errors
/// With what to change.
pub(super) async fn start(config: Config, set_level: SetLevel) -> anyhow::Result<(Server, Page)> {
    let started = Now::read();
    // A second server on this directory shall hear of the first, not of its ports; a first one shall
    // have its ports before it makes a directory.
    let known = config.state_dir.exists().then(|| StateDir::open(&config.state_dir)).transpose()?;
    let ports = ports::take(&config)?;
    let state = match known {
        Some(state) => state,
        None => StateDir::open(&config.state_dir)?,
    };
    let (noise_key, derp_key) = keys(&state)?;
    let relay_key = derp_key.public();

    let tls_port = ports.tls.as_ref().map(|(_, a)| a.port());
    let http_addr = ports.http.as_ref().map(|(_, a)| *a);
    let (url, url_source) = url_of(&config, http_addr, &public::interfaces())?;
    let identity =
        tls_port.map(|_| cert::load(&config, &url.host, &state, &relay_key, started)).transpose()?;
    let world = World {
        guessed: config.url.is_none(),
        tls_port,
        http_port: http_addr.map(|a| a.port()),
        stun_port: ports.stun.as_ref().map(|(_, a)| a.port()),
        pin: pin(identity.as_ref(), &url),
        url,
    };
    let control = Control::start(state.path(), noise_key, settings::build(&config, &world)).await?;
    let derp = DerpServer::new(derp_key, Arc::new(NodesOnly(control.clone())));
    let relay = derp.clone();
    control.on_addresses(Arc::new(|| public::interfaces().into_iter().map(|(_, ip)| ip).collect()));
    control.on_revoked(Arc::new(move |key| relay.close_node(&key)));
    if let Some(path) = &config.policy_file {
        policy_file::read(&control, path, true).await?.apply(&control).await?;
    }

    let port_warnings = ports.warnings.clone();
    let fixed = fixed(&config, &world, &ports, &state, identity.as_ref());
    let stun_stats = Arc::new(StunStats::default());
    let live =
        Arc::new(Live::new(started, control.clone(), derp.clone(), Arc::clone(&stun_stats), fixed.clone()));
    let ui = Ui::new(control.clone(), Arc::clone(&live) as Arc<dyn crate::ui::StatusSource>);
    let facing = Arc::new(ArcSwap::from_pointee(facing(&config, &world)));

    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let socket = api::server::bind(&state.path().join(api::SOCKET_NAME))?;
    open_admin(&mut tasks, socket, admin(&control, &live, &ui, &facing), &stopped);

    let first = first_start(&control, &ui, &facing.load().console).await?;
    let router = Arc::new(Router {
        control: control.clone(),
        derp: derp.clone(),
        ui,
        metrics: metrics::Metrics::new(started, Arc::clone(&stun_stats)),
        facing: Arc::clone(&facing),
        counters: Arc::default(),
        connections: limits::Connections::default(),
    });
    let page = page(fixed, url_source, &world, first);
    let certificate = identity.map(|i| Arc::new(cert::OneCertificate::new(i.certified)));
    open_doors(&mut tasks, ports, certificate.clone(), &router, &stopped, stun_stats)?;
    let server = Server {
        tasks,
        stop,
        control,
        derp,
        live,
        world,
        config,
        facing,
        certificate,
        relay_key,
        set_level,
        port_warnings,
        state,
    };
    Ok((server, page))
}

fn fixed(
    config: &Config,
    world: &World,
    ports: &ports::Ports,
    state: &StateDir,
    identity: Option<&cert::Identity>,
) -> Fixed {
    let mut warnings = ports.warnings.clone();
    warnings.extend(ports::warnings(config, &world.url, world.tls_port));
    Fixed {
        url: world.url.to_string(),
        listeners: listeners(ports),
        state_dir: state.path().display().to_string(),
        fingerprint: identity.map(|i| i.fingerprint.clone()),
        warnings,
    }
}

fn page(fixed: Fixed, url_source: UrlSource, world: &World, first: Option<FirstStart>) -> Page {
    Page {
        url: fixed.url,
        url_source,
        http_port: world.http_port.unwrap_or(8080),
        state_dir: fixed.state_dir,
        fingerprint: fixed.fingerprint,
        listeners: fixed.listeners,
        warnings: fixed.warnings,
        first,
    }
}

/// The server's two identities, made at the first start.
fn keys(state: &StateDir) -> anyhow::Result<(MachinePrivate, DerpPrivate)> {
    let mut rng = Rng::from_os();
    let noise = state.key("noise.key", MachinePrivate::parse_stored, || {
        let key = MachinePrivate::generate(&mut rng);
        let text = key.expose_text();
        (key, text)
    })?;
    let derp = state.key("derp.key", DerpPrivate::parse_stored, || {
        let key = DerpPrivate::generate(&mut rng);
        let text = key.expose_text();
        (key, text)
    })?;
    Ok((noise, derp))
}

/// The certificate that clients pin in the DERP map; behind a proxy they see the proxy's, never ours.
#[must_use]
pub(super) fn pin(identity: Option<&cert::Identity>, url: &ServerUrl) -> Option<String> {
    identity.filter(|i| i.self_signed && !url.https).map(|i| i.fingerprint.clone())
}

/// What the doors go by.
#[must_use]
pub(super) fn facing(config: &Config, world: &World) -> Facing {
    Facing {
        metrics: config.metrics,
        trusted_proxies: config.trusted_proxies.clone(),
        relay: config.derp.enabled,
        host: world.url.host.clone(),
        console: console_base(config, world),
    }
}

fn admin(control: &Control, live: &Arc<Live>, ui: &Ui, facing: &Arc<ArcSwap<Facing>>) -> api::server::Api {
    let (live, ui, facing) = (Arc::clone(live), ui.clone(), Arc::clone(facing));
    api::server::Api {
        control: control.clone(),
        status: Arc::new(move || live.status()),
        console_link: Arc::new(move || {
            let (ui, base) = (ui.clone(), facing.load().console.clone());
            Box::pin(async move { Ok(format!("{base}{}", ui.new_console_link().await?)) })
        }),
    }
}

fn open_admin(
    tasks: &mut JoinSet<&'static str>,
    socket: UnixListener,
    admin: api::server::Api,
    stopped: &watch::Receiver<bool>,
) {
    let stop = stopped.clone();
    tasks.spawn(async move {
        api::server::serve(socket, admin, stop).await;
        "admin socket"
    });
}

/// From here on strangers are let in.
fn open_doors(
    tasks: &mut JoinSet<&'static str>,
    ports: ports::Ports,
    certificate: Option<Arc<cert::OneCertificate>>,
    router: &Arc<Router>,
    stopped: &watch::Receiver<bool>,
    stun_stats: Arc<StunStats>,
) -> anyhow::Result<()> {
    if let (Some((bound, _)), Some(certificate)) = (ports.tls, certificate) {
        let acceptor = TlsAcceptor::from(Arc::new(cert::server_config(certificate)?));
        let (listener, router, stop) = (bound.listen()?, Arc::clone(router), stopped.clone());
        tasks.spawn(async move {
            door::run(listener, Some(acceptor), router, stop).await;
            "TLS listener"
        });
    }
    if let Some((bound, _)) = ports.http {
        let (listener, router, stop) = (bound.listen()?, Arc::clone(router), stopped.clone());
        tasks.spawn(async move {
            door::run(listener, None, router, stop).await;
            "HTTP listener"
        });
    }
    if let Some((socket, _)) = ports.stun {
        let mut stop = stopped.clone();
        tasks.spawn(async move {
            tokio::select! {
                result = crate::stun::server::serve(socket, StunLimits::default(), stun_stats) => {
                    tracing::error!(?result, "the STUN socket broke");
                }
                () = door::stopped(&mut stop) => {}
            }
            "STUN socket"
        });
    }
    Ok(())
}

fn listeners(ports: &ports::Ports) -> String {
    let say = |name: &str, addr: Option<SocketAddr>| match addr {
        Some(addr) => format!("{name} {addr}"),
        None => format!("{name} off"),
    };
    [
        say("http", ports.http.as_ref().map(|(_, a)| *a)),
        say("tls", ports.tls.as_ref().map(|(_, a)| *a)),
        say("stun", ports.stun.as_ref().map(|(_, a)| *a)),
    ]
    .join(", ")
}

fn url_of(
    config: &Config,
    http: Option<SocketAddr>,
    interfaces: &[(String, IpAddr)],
) -> anyhow::Result<(ServerUrl, UrlSource)> {
    if let Some(url) = &config.url {
        return Ok((url.clone(), UrlSource::Given));
    }
    let http = http
        .ok_or_else(|| anyhow!("with listen off the URL cannot be guessed; give it by --url https://NAME"))?;
    let guess = public::guess(http, interfaces);
    let url = ServerUrl { https: false, host: guess.ip.to_string(), port: http.port() };
    // A definite loopback listener was chosen by somebody; nothing to warn of.
    let chosen = guess.reach == public::Reach::Loopback && !http.ip().is_unspecified();
    let source = if chosen { UrlSource::Given } else { UrlSource::Guessed(guess.reach) };
    Ok((url, source))
}

/// Where the console is opened: by TLS where there is any, else on this machine only.
fn console_base(config: &Config, world: &World) -> String {
    if world.url.https {
        return world.url.to_string();
    }
    match (world.tls_port, world.http_port) {
        (Some(own), _) => ServerUrl {
            https: true,
            host: world.url.host.clone(),
            port: config.derp.public_port.unwrap_or(own),
        }
        .to_string(),
        (None, port) => format!("http://127.0.0.1:{}", port.unwrap_or(8080)),
    }
}

/// The first user and key, when nobody is there yet.
async fn first_start(control: &Control, ui: &Ui, console: &str) -> anyhow::Result<Option<FirstStart>> {
    if !control.users().is_empty() {
        return Ok(None);
    }
    let by = Actor::local("start");
    let user = control.create_user(&by, "admin").await?;
    let request = NewAuthKeyRequest {
        user: user.name,
        reusable: true,
        ephemeral: false,
        tags: Vec::new(),
        lifetime: std::time::Duration::from_secs(24 * 3600),
    };
    let key = control.create_auth_key(&by, request).await?;
    Ok(Some(FirstStart {
        auth_key: key.secret,
        console_link: format!("{console}{}", ui.new_start_link().await?),
    }))
}
