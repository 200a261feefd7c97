//! The daemon: makes the parts in order, starts their tasks, waits for a signal, puts everything back.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use super::core::{self, CoreParts};
use super::lifecycle::{self, LifecycleParts};
use super::linkmon;
use super::localapi::{self, Api};
use super::os::OsHandle;
use super::os::resolv::ResolvConf;
use super::os::routes::BYPASS_MARK;
use super::state_file::{StateDir, StateError};
use super::tun::Tun;
use super::udp::Udp;
use crate::clock::Rng;
use crate::derp::client::DialOptions;

/// How long putting things back may take.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// What the daemon is started with.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Where keys and netmap are kept.
    pub state_dir: PathBuf,
    /// Where the command line finds us.
    pub socket: PathBuf,
    /// Name of the TUN interface.
    pub tun: String,
    /// UDP port; 0 is any.
    pub port: u16,
    /// Segmentation offload of the TUN.
    pub offload: bool,
}

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The LocalAPI socket.
    #[error("cannot listen on {path}: {source}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The TUN device.
    #[error("cannot make the interface {name}: {source}; {}", tun_remedy(source))]
    Tun {
        /// Which.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// A task that lives as long as the daemon ended: the interface was removed, for one.
    #[error("a part of the node ended, as the log tells; the host's network was put back: start it again")]
    Broken,
    /// Another program routes a tailnet in this network namespace.
    #[error(
        "{0} already runs a tailnet on this machine, and routing rules and DNS have room for one: stop it \
         first, or run this node in a network namespace or container of its own"
    )]
    Taken(String),
    /// Anything else.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl RunError {
    /// Whether the user can mend it.
    #[must_use]
    pub const fn is_users(&self) -> bool {
        !matches!(self, Self::Io { .. } | Self::Broken)
    }
}

/// What to do when the TUN device cannot be made.
fn tun_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            "there is no /dev/net/tun: load the module (modprobe tun), or give the container the device \
             (--device /dev/net/tun)"
        }
        Some(libc::EPERM | libc::EACCES) => "run as root, or with the capability CAP_NET_ADMIN",
        Some(libc::EBUSY | libc::EINVAL | libc::EEXIST) => {
            "the name is taken by another interface: give another --tun"
        }
        _ => "give another --tun, or look into the kernel's log",
    }
}

/// Claims this network namespace: two nodes in one would undo each other's rules, routes and DNS. The claim
/// is an abstract socket, which belongs to the namespace and ends with its process, however that ends.
fn claim_namespace(config: &NodeConfig) -> Result<std::os::unix::net::UnixListener, RunError> {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    let official = "tailscale0";
    if config.tun != official && nix::net::if_::if_nametoindex(official).is_ok() {
        return Err(RunError::Taken(format!("another client (interface {official})")));
    }
    let address = SocketAddr::from_abstract_name("tsd-node").map_err(io_error("name the claim"))?;
    let busy = match UnixListener::bind_addr(&address) {
        Ok(claim) => return Ok(claim),
        Err(e) => e,
    };
    let holder = UnixStream::connect_addr(&address).ok();
    let credentials = holder
        .and_then(|s| nix::sys::socket::getsockopt(&s, nix::sys::socket::sockopt::PeerCredentials).ok());
    match credentials {
        Some(c) if c.uid() == 0 || c.uid() == nix::unistd::geteuid().as_raw() => {
            Err(RunError::Taken(format!("another tsd node (pid {})", c.pid())))
        }
        // Not a node: whoever it is must not keep this one from running.
        _ => {
            tracing::warn!("the mark of a running node is held by somebody else ({busy}); going on without");
            UnixListener::bind_addr(
                &SocketAddr::from_abstract_name(format!("tsd-node-{}", std::process::id()))
                    .map_err(io_error("name the claim"))?,
            )
            .map_err(io_error("claim the network namespace"))
        }
    }
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::Io { what, source }
}

/// Whether sockets may carry the mark that keeps them out of the tunnel.
fn usable_mark() -> Option<u32> {
    let probe = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).ok()?;
    match probe.set_mark(BYPASS_MARK) {
        Ok(()) => Some(BYPASS_MARK),
        Err(e) => {
            tracing::warn!("sockets cannot be marked ({e}); exit routes would loop");
            None
        }
    }
}

/// The host's certificate roots, and the built-in ones where the host has none.
fn roots() -> Arc<rustls::RootCertStore> {
    let mut store = rustls::RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    let (added, _) = store.add_parsable_certificates(native.certs);
    if added == 0 {
        store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    Arc::new(store)
}

async fn stop_signal() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be caught");
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("stopping");
}

/// Runs the daemon until SIGTERM, SIGINT or `shutdown`.
///
/// # Errors
/// When a part cannot be made; nothing of the host is changed then.
pub async fn run(config: NodeConfig) -> Result<(), RunError> {
    // With no provider chosen the first TLS connection would panic; a host program may have chosen.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut rng = Rng::from_os();
    let dir = StateDir::open(&config.state_dir)?;
    let state = dir.load(&mut rng)?;
    let _claim = claim_namespace(&config)?;
    let resolv = ResolvConf::new(std::path::Path::new("/"), dir.path());
    // A backup that is still there means that the last daemon was killed.
    if let Err(e) = resolv.restore() {
        tracing::warn!("resolv.conf of before the last crash cannot be put back: {e}");
    }
    let socket = localapi::bind(&config.socket)
        .map_err(|source| RunError::Socket { path: config.socket.clone(), source })?;
    let options = DialOptions { mark: usable_mark(), roots: roots() };
    let tun = Tun::open(&config.tun, config.offload)
        .map_err(|source| RunError::Tun { name: config.tun.clone(), source })?;
    let udp = Udp::bind(config.port, options.mark).map_err(io_error("bind the UDP sockets"))?;
    let ports = udp.ports();
    let mut tasks = JoinSet::new();
    let links =
        linkmon::watch_links(tun.name().to_owned(), &mut tasks).map_err(io_error("watch the network"))?;
    let os = OsHandle::start(tun.name().to_owned(), tun.index(), resolv.clone())
        .map_err(io_error("open netlink"))?;
    tracing::info!("interface {}, UDP ports {ports:?}", tun.name());
    let core =
        core::start(CoreParts { udp, tun, options: options.clone(), resolv, rng: rng.fork() }, &mut tasks);
    let (lifecycle, backend) =
        lifecycle::new(LifecycleParts { dir, state, core: core.clone(), os, links, ports, rng }, options);
    tasks.spawn(localapi::serve(socket, Api { backend, core }));
    let (stopping, stopped) = tokio::sync::oneshot::channel::<()>();
    let (broke, broken) = tokio::sync::oneshot::channel::<()>();
    let lifecycle = lifecycle.run(async {
        tokio::select! {
            () = stop_signal() => {}
            Ok(()) = broken => {}
        }
        let _ = stopping.send(());
    });
    let mut broke = Some(broke);
    tokio::pin!(lifecycle);
    let late = async {
        // Ended by `shutdown` instead: then only the lifecycle's own end counts.
        if stopped.await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(STOP_LIMIT).await;
    };
    tokio::pin!(late);
    loop {
        tokio::select! {
            () = &mut lifecycle => break,
            () = &mut late => {
                tracing::error!("the host's network could not be put back within 5 s");
                break;
            }
            // Without its engine or its LocalAPI the daemon would be there and do nothing.
            Some(_) = tasks.join_next(), if broke.is_some() => {
                if let Some(broke) = broke.take() {
                    let _ = broke.send(());
                }
            }
        }
    }
    tasks.shutdown().await;
    if broke.is_none() { Err(RunError::Broken) } else { Ok(()) }
}
