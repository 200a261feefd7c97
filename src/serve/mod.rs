//! Composition root of the server: takes ports, opens state, starts the rooms in order, and ends them.
//!
//! Order matters: ports are taken first (a busy one must not cost a half-made state), the admin socket
//! answers next, and only then does a listener accept. Every task is owned by one `JoinSet`; one that
//! ends by itself ends the server, because half a server is worse than a restarted one.

mod cert;
mod derp_map;
mod door;
mod limits;
mod listen;
mod logging;
mod metrics;
mod page;
mod ports;
mod process;
mod public;
mod router;
mod settings;
mod sniff;
mod state_dir;
mod status;

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::api;
use crate::clock::{Now, Rng};
use crate::config::{self, Config, ServeFlags, ServerUrl, Sources};
use crate::control::service::{Actor, Control, NewAuthKeyRequest};
use crate::derp::server::{Admission, DerpServer};
use crate::keys::{DerpPrivate, MachinePrivate, NodePublic};
use crate::stun::server::{StunLimits, StunStats};
use crate::ui::Ui;
use page::{FirstStart, Page, UrlSource};
use settings::World;
use state_dir::StateDir;
use status::{Fixed, Live};

/// Why the server ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It could not start; the text says what to change.
    #[error("{0:#}")]
    Start(anyhow::Error),
    /// It broke while running.
    #[error("{0:#}")]
    Broken(anyhow::Error),
}

struct NodesOnly(Control);

impl Admission for NodesOnly {
    fn admit(&self, key: &NodePublic, _from: SocketAddr) -> bool {
        self.0.knows_node(key)
    }
}

/// A running server with everything it owns.
struct Server {
    tasks: JoinSet<&'static str>,
    stop: watch::Sender<bool>,
    control: Control,
    derp: DerpServer,
    live: Arc<Live>,
    world: World,
    /// What start could not have as wished; a reload does not mend it.
    port_warnings: Vec<String>,
    // Last, so that the lock falls after everything else.
    state: StateDir,
}

/// Runs the server until a signal or a fault ends it.
///
/// # Errors
/// [`ServeError::Start`] when something is to be mended by the caller, [`ServeError::Broken`] when it
/// broke by itself.
pub async fn run(flags: ServeFlags, state_dir: Option<String>) -> Result<(), ServeError> {
    let load = || {
        let sources = Sources::read(flags.clone(), state_dir.clone())?;
        Ok::<_, config::ConfigError>((config::load(&sources)?, sources.unknown_env()))
    };
    let (config, unknown) = load().map_err(|e| ServeError::Start(e.into()))?;
    logging::init(&config);
    for name in unknown {
        tracing::warn!(name, "unknown variable; config.example.toml lists every key");
    }
    process::raise_open_files();
    // Before the start, so that a signal during it is not lost.
    let mut signals = Signals::new().map_err(|e| ServeError::Start(e.into()))?;
    let (mut server, page) = start(&config).await.map_err(ServeError::Start)?;
    print_page(&page);
    let broken = loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Told::Stop => break None,
                Told::Reload => server.reload(load().map(|(config, _)| config)).await,
            },
            part = server.control.failed() => break Some(anyhow!("the {part} failed")),
            Some(ended) = server.tasks.join_next() => {
                break Some(match ended {
                    Ok(name) => anyhow!("the {name} ended by itself"),
                    Err(error) => anyhow!("a part of the server failed: {error}"),
                });
            }
        }
    };
    if let Some(error) = &broken {
        tracing::error!(%error, "stopping, so that a restart can mend it");
    }
    tokio::select! {
        () = server.shutdown() => {}
        () = signals.stop() => tracing::warn!("second signal: stopping at once"),
    }
    match broken {
        Some(error) => Err(ServeError::Broken(error)),
        None => Ok(()),
    }
}

fn print_page(page: &Page) {
    let mut out = std::io::stdout().lock();
    // Nobody reading is no reason to stop serving.
    let _ = out.write_all(page.render().as_bytes());
    let _ = out.flush();
}

async fn start(config: &Config) -> anyhow::Result<(Server, Page)> {
    let started = Now::read();
    let ports = ports::take(config)?;
    let state = StateDir::open(&config.state_dir)?;
    let mut rng = Rng::from_os();
    let noise_key = state.key("noise.key", MachinePrivate::parse_stored, || {
        let key = MachinePrivate::generate(&mut rng);
        let text = key.expose_text();
        (key, text)
    })?;
    let derp_key = state.key("derp.key", DerpPrivate::parse_stored, || {
        let key = DerpPrivate::generate(&mut rng);
        let text = key.expose_text();
        (key, text)
    })?;

    let tls_port = ports.tls.as_ref().map(|(_, a)| a.port());
    let http_addr = ports.http.as_ref().map(|(_, a)| *a);
    let (url, url_source) = url_of(config, http_addr, &public::interfaces())?;
    let identity = match (&config.tls_files, tls_port) {
        (_, None) => None,
        (Some((cert, key)), _) => Some(cert::from_files(cert, key, &derp_key.public(), started)?),
        (None, _) => Some(cert::self_signed(&state, &cert::names(&url.host, &public_ips()), started)?),
    };
    let world = World {
        url: url.clone(),
        guessed: config.url.is_none(),
        tls_port,
        stun_port: ports.stun.as_ref().map(|(_, a)| a.port()),
        // Behind a proxy clients see the proxy's certificate, never ours.
        pin: identity.as_ref().filter(|i| i.self_signed && !url.https).map(|i| i.fingerprint.clone()),
    };
    let control = Control::start(state.path(), noise_key, settings::build(config, &world)).await?;
    let derp = DerpServer::new(derp_key, Arc::new(NodesOnly(control.clone())));
    let relay = derp.clone();
    control.on_revoked(Arc::new(move |key| relay.close_node(&key)));
    if let Some(path) = &config.policy_file {
        apply_policy_file(&control, path).await?;
    }

    let port_warnings = ports.warnings.clone();
    let mut warnings = port_warnings.clone();
    warnings.extend(ports::warnings(config, &url, tls_port));
    let fixed = Fixed {
        url: url.to_string(),
        listeners: listeners(&ports),
        state_dir: state.path().display().to_string(),
        fingerprint: identity.as_ref().map(|i| i.fingerprint.clone()),
        warnings: warnings.clone(),
    };
    let stun_stats = Arc::new(StunStats::default());
    let live =
        Arc::new(Live::new(started, control.clone(), derp.clone(), Arc::clone(&stun_stats), fixed.clone()));
    let ui = Ui::new(control.clone(), Arc::clone(&live) as Arc<dyn crate::ui::StatusSource>);
    let console = console_base(config, &world, http_addr.map(|a| a.port()));

    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let admin = api::server::Api {
        control: control.clone(),
        status: {
            let live = Arc::clone(&live);
            Arc::new(move || live.status())
        },
        console_link: console_link_maker(ui.clone(), console.clone()),
    };
    let socket = api::server::bind(&state.path().join(api::SOCKET_NAME))?;
    let admin_stop = stopped.clone();
    tasks.spawn(async move {
        api::server::serve(socket, admin, admin_stop).await;
        "admin socket"
    });

    let first = first_start(&control, &ui, &console).await?;
    let router = Arc::new(router::Router {
        control: control.clone(),
        derp: derp.clone(),
        ui,
        metrics: metrics::Metrics::new(started, Arc::clone(&stun_stats)),
        metrics_policy: config.metrics,
        trusted_proxies: config.trusted_proxies.clone(),
        tls_url: tls_port.map(|_| console).filter(|c| c.starts_with("https://")),
        host: url.host.clone(),
        relay: config.derp.enabled,
        counters: Arc::default(),
        connections: limits::Connections::default(),
    });
    let page = Page {
        url: url.to_string(),
        url_source,
        http_port: http_addr.map_or(8080, |a| a.port()),
        state_dir: fixed.state_dir,
        fingerprint: fixed.fingerprint,
        listeners: fixed.listeners,
        warnings,
        first,
    };
    open_doors(&mut tasks, ports, identity, &router, &stopped, stun_stats)?;
    let server = Server { tasks, stop, control, derp, live, world, port_warnings, state };
    Ok((server, page))
}

/// From here on strangers are let in.
fn open_doors(
    tasks: &mut JoinSet<&'static str>,
    ports: ports::Ports,
    identity: Option<cert::Identity>,
    router: &Arc<router::Router>,
    stopped: &watch::Receiver<bool>,
    stun_stats: Arc<StunStats>,
) -> anyhow::Result<()> {
    if let (Some((bound, _)), Some(identity)) = (ports.tls, identity) {
        let resolver = Arc::new(cert::OneCertificate::new(identity.certified));
        let acceptor = TlsAcceptor::from(Arc::new(cert::server_config(resolver)?));
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

fn console_link_maker(ui: Ui, base: String) -> api::server::LinkMaker {
    Arc::new(move || {
        let (ui, base) = (ui.clone(), base.clone());
        Box::pin(async move { Ok(format!("{base}{}", ui.new_console_link().await?)) })
    })
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

fn public_ips() -> Vec<std::net::IpAddr> {
    public::interfaces()
        .into_iter()
        .map(|(_, ip)| ip)
        .filter(|ip| public::reach(*ip) == public::Reach::Public)
        .take(8)
        .collect()
}

fn url_of(
    config: &Config,
    http: Option<SocketAddr>,
    interfaces: &[(String, std::net::IpAddr)],
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
fn console_base(config: &Config, world: &World, http_port: Option<u16>) -> String {
    if world.url.https {
        return world.url.to_string();
    }
    match (world.tls_port, http_port) {
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
    let by = Actor("start".to_owned());
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

/// Puts the policy file in force when it differs from what is stored. The file is the admin's own word,
/// so access it takes away needs no further question.
async fn apply_policy_file(control: &Control, path: &std::path::Path) -> anyhow::Result<()> {
    let text = tokio::fs::read_to_string(path)
        .await
        .with_context(|| format!("cannot read the policy file {}", path.display()))?;
    if control.policy().text == text {
        return Ok(());
    }
    let by = Actor("policy file".to_owned());
    match control.set_policy(&by, &text, true, None).await {
        Ok(outcome) => {
            tracing::info!(version = outcome.version, "policy file in force");
            Ok(())
        }
        Err(crate::control::service::AdminError::Policy(faults)) => {
            let line = |f: &crate::acl::PolicyError| {
                let hint = if f.hint.is_empty() { String::new() } else { format!(", {}", f.hint) };
                format!("{}:{}:{}: {}{hint}", path.display(), f.line, f.column, f.message)
            };
            Err(anyhow!(faults.iter().map(line).collect::<Vec<_>>().join("\n")))
        }
        Err(error) => Err(error.into()),
    }
}

impl Server {
    /// SIGHUP: configuration and policy file anew; with any fault the old stays.
    async fn reload(&mut self, config: Result<Config, config::ConfigError>) {
        let fault = match self.try_reload(config).await {
            Ok(()) => {
                tracing::info!("configuration and policy are reloaded");
                None
            }
            Err(error) => {
                tracing::error!("reload changed nothing: {error:#}");
                Some(format!("{error:#}"))
            }
        };
        self.live.set_reload_fault(fault);
    }

    async fn try_reload(&mut self, config: Result<Config, config::ConfigError>) -> anyhow::Result<()> {
        let config = config?;
        // The policy first: it can be refused, the settings cannot.
        if let Some(path) = &config.policy_file {
            apply_policy_file(&self.control, path).await?;
        }
        let mut world = self.world.clone();
        match &config.url {
            Some(url) => {
                let changed = url.host != world.url.host || url.https != world.url.https;
                if changed && world.pin.is_some() {
                    return Err(anyhow!(
                        "url: another host or scheme needs another certificate; restart the server"
                    ));
                }
                world.url = url.clone();
                world.guessed = false;
            }
            // A guess is kept: addresses of interfaces come and go.
            None if world.guessed => {}
            None => {
                return Err(anyhow!("url: was removed; restart the server to have it guessed"));
            }
        }
        self.control.reload(settings::build(&config, &world)).await?;
        let mut fixed = Fixed::clone(&self.live.fixed());
        fixed.url = world.url.to_string();
        fixed.warnings = self.port_warnings.clone();
        fixed.warnings.extend(ports::warnings(&config, &world.url, world.tls_port));
        self.live.set_fixed(fixed);
        self.world = world;
        Ok(())
    }

    /// Says stop to all, then waits for all, with a deadline.
    async fn shutdown(mut self) {
        tracing::info!("stopping");
        self.stop.send_replace(true);
        let ending = async {
            // Streams end first, so that the doors' connections have nothing left to wait for; control
            // last closes the database.
            self.derp.shutdown().await;
            self.control.shutdown().await;
            while self.tasks.join_next().await.is_some() {}
        };
        if tokio::time::timeout(limits::STOP_DEADLINE, ending).await.is_err() {
            tracing::warn!("not everything ended in time; what was acknowledged is on disk all the same");
        }
        let _ = std::fs::remove_file(self.state.path().join(api::SOCKET_NAME));
    }
}

struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.term.recv() => Told::Stop,
            _ = self.int.recv() => Told::Stop,
            _ = self.hup.recv() => Told::Reload,
        }
    }

    async fn stop(&mut self) {
        while self.next().await != Told::Stop {}
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Stop,
    Reload,
}
