//! The front door: accepts, counts, shakes hands by TLS, sniffs, and hands each connection to the relay
//! or to hyper. Survives running out of file descriptors; a fault in one connection stays in it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::limits::{self, Permit};
use super::listen;
use super::router::{Origin, Router};
use super::sniff::{Sniffed, sniff};
use crate::clock::Now;

/// Serves one listener until `stop` turns true; then waits for its connections to end.
pub(super) async fn run(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Arc<Router>,
    mut stop: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // A panic in one ends that one; the process's hook has counted and logged it.
            Some(_) = connections.join_next() => continue,
            () = stopped(&mut stop) => break,
        };
        match accepted {
            Ok((stream, remote)) => {
                let remote = canonical(remote);
                let Some(permit) = router.connections.admit(remote.ip(), Now::read().mono) else {
                    router.counters.refused.fetch_add(1, Ordering::Relaxed);
                    continue;
                };
                router.counters.accepted.fetch_add(1, Ordering::Relaxed);
                listen::tune(&stream);
                let serve =
                    connection(stream, remote, permit, tls.clone(), Arc::clone(&router), stop.clone());
                connections.spawn(serve);
            }
            // The peer was gone before we looked.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if router.counters.accept_errors.fetch_add(1, Ordering::Relaxed).is_multiple_of(50) {
                    tracing::warn!(%error, "cannot accept connections; raise the limit of open files (ulimit -n)");
                }
                // Level-triggered: without a rest this would spin while descriptors are out.
                tokio::time::sleep(limits::ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(IpAddr::to_canonical(&addr.ip()), addr.port())
}

/// Waits for the word to stop; a sender that is gone says so too.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn connection(
    stream: TcpStream,
    remote: SocketAddr,
    permit: Permit,
    tls: Option<TlsAcceptor>,
    router: Arc<Router>,
    stop: watch::Receiver<bool>,
) {
    let Some(acceptor) = tls else {
        return speak(stream, Origin { remote, tls: false }, permit, router, stop).await;
    };
    match timeout(limits::TLS_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => speak(stream, Origin { remote, tls: true }, permit, router, stop).await,
        Ok(Err(error)) => {
            router.counters.tls_failures.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%remote, %error, "TLS handshake failed");
        }
        Err(_) => {
            router.counters.timeouts.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn speak<S>(io: S, origin: Origin, permit: Permit, router: Arc<Router>, mut stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let sniffed = tokio::select! {
        sniffed = timeout(limits::HEAD_TIMEOUT, sniff(io)) => sniffed,
        () = stopped(&mut stop) => return,
    };
    let io = match sniffed {
        Ok(Ok(Sniffed::Http(io))) => io,
        Ok(Ok(Sniffed::FastStart(io))) => {
            // The relay has its own limits for those it admitted.
            drop(permit);
            return router.derp.serve(io, origin.remote).await;
        }
        Ok(Err(_)) => return,
        Err(_) => {
            router.counters.timeouts.fetch_add(1, Ordering::Relaxed);
            return;
        }
    };
    let service = service_fn(move |request| {
        let router = Arc::clone(&router);
        async move { Ok::<_, std::convert::Infallible>(router.answer(request, origin).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD_TIMEOUT)
        .max_buf_size(limits::MAX_HEAD)
        .half_close(true)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    tokio::pin!(serving);
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = stopped(&mut stop) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(remote = %origin.remote, %error, "connection ended");
    }
    drop(permit);
}
