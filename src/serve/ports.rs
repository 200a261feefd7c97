//! Takes all ports before anything else starts, with 8443 in place of a default 443 that cannot be
//! had, and knows what stops working when a listener is off.

use std::io;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, anyhow};
use tokio::net::UdpSocket;

use super::listen::{self, Bound, Transport};
use crate::config::{Config, Listen, ServerUrl};

/// All sockets of the server, bound, not yet listening.
#[derive(Debug)]
pub(super) struct Ports {
    /// HTTP.
    pub http: Option<(Bound, SocketAddr)>,
    /// TLS.
    pub tls: Option<(Bound, SocketAddr)>,
    /// STUN.
    pub stun: Option<(UdpSocket, SocketAddr)>,
    /// What could not be had as wished.
    pub warnings: Vec<String>,
}

/// Takes the ports.
///
/// # Errors
/// When an address is busy, naming its holder, or not ours to take.
pub(super) fn take(config: &Config) -> anyhow::Result<Ports> {
    let mut warnings = Vec::new();
    let http = match config.listen {
        Listen::Off => None,
        Listen::At(addr) => {
            Some(bound(listen::tcp(addr).map_err(|e| refused(addr, &e, "--listen", Transport::Tcp))?)?)
        }
    };
    let tls = match config.tls_listen {
        Listen::Off => None,
        Listen::At(addr) => Some(tls(addr, config.tls_listen_is_default, &mut warnings)?),
    };
    let stun = match config.stun_listen {
        Listen::Off => None,
        Listen::At(addr) => {
            let socket = listen::udp(addr).map_err(|e| refused(addr, &e, "--stun-listen", Transport::Udp))?;
            let local = socket.local_addr()?;
            Some((socket, local))
        }
    };
    Ok(Ports { http, tls, stun, warnings })
}

fn bound(socket: Bound) -> anyhow::Result<(Bound, SocketAddr)> {
    let local = socket.local_addr().context("cannot read a listener's address")?;
    Ok((socket, local))
}

fn tls(
    addr: SocketAddr,
    is_default: bool,
    warnings: &mut Vec<String>,
) -> anyhow::Result<(Bound, SocketAddr)> {
    let error = match listen::tcp(addr) {
        Ok(socket) => return bound(socket),
        Err(error) => error,
    };
    let why = match error.kind() {
        io::ErrorKind::PermissionDenied => "this user may not take port 443".to_owned(),
        io::ErrorKind::AddrInUse => format!("{} has port 443", listen::holder(addr.port(), Transport::Tcp)),
        _ => return Err(refused(addr, &error, "--tls-listen", Transport::Tcp)),
    };
    if !is_default {
        return Err(refused(addr, &error, "--tls-listen", Transport::Tcp));
    }
    let instead = SocketAddr::new(addr.ip(), 8443);
    let socket = listen::tcp(instead).map_err(|e| refused(instead, &e, "--tls-listen", Transport::Tcp))?;
    warnings.push(format!("{why}, so TLS is on 8443"));
    bound(socket)
}

fn refused(addr: SocketAddr, error: &io::Error, flag: &str, transport: Transport) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            let who = listen::holder(addr.port(), transport);
            anyhow!("{addr} is taken by {who}; stop it, or choose another address by {flag} ADDR:PORT")
        }
        io::ErrorKind::PermissionDenied => {
            anyhow!(
                "this user may not take {addr}; choose a port above 1023 by {flag}, or give the program the right: setcap cap_net_bind_service=+ep"
            )
        }
        io::ErrorKind::AddrNotAvailable => {
            anyhow!("{addr} is no address of this machine; choose another by {flag} ADDR:PORT")
        }
        _ => {
            anyhow!("cannot listen on {addr}: {error}; choose another address by {flag} ADDR:PORT")
        }
    }
}

/// What does not work with this configuration, for people.
#[must_use]
pub(super) fn warnings(config: &Config, url: &ServerUrl, tls_port: Option<u16>) -> Vec<String> {
    let mut out = Vec::new();
    if config.listen == Listen::Off && !url.https {
        out.push(
            "the HTTP listener is off: clients cannot make their first join by an http:// URL".to_owned(),
        );
    }
    if config.stun_listen == Listen::Off {
        out.push(
            "STUN is off: clients behind NAT learn no public address from us and most pairs stay relayed"
                .to_owned(),
        );
    }
    let behind_proxy = url.https && config.tls_files.is_none();
    if tls_port.is_none() && !behind_proxy {
        out.push("TLS is off: no relay, the console only on this machine, and clients that lost their stream do not come back to an http:// URL".to_owned());
    }
    let outside = config.derp.public_port.or(tls_port);
    if !url.https && !is_private(&url.host) && outside.is_some_and(|p| p != 443) {
        out.push("clients that lost their stream look for TLS on 443 and will not find it; free 443, or forward it here".to_owned());
    }
    if !config.dns.magic_dns {
        out.push("MagicDNS is off: devices have no names".to_owned());
    }
    out
}

/// What clients take for a private host: there they never try TLS (control.md 3.1).
fn is_private(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => ip.is_private() || ip.is_loopback(),
        Ok(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unique_local(),
        Err(_) => host == "localhost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{RawConfig, check};

    #[tokio::test]
    async fn an_explicit_busy_address_is_an_error_that_names_the_holder() {
        let held = listen::tcp("127.0.0.1:0".parse().unwrap()).unwrap().listen().unwrap();
        let addr = held.local_addr().unwrap();
        let raw = RawConfig {
            listen: Some("off".into()),
            tls_listen: Some(addr.to_string()),
            stun_listen: Some("off".into()),
            ..RawConfig::default()
        };
        let config = check(&raw, "/s".as_ref()).unwrap();
        let error = take(&config).unwrap_err().to_string();
        assert!(
            error.contains(&format!("(process {})", std::process::id())) && error.contains("--tls-listen"),
            "{error}"
        );
    }

    #[test]
    fn what_stops_working_is_said() {
        let config = check(&RawConfig::default(), "/s".as_ref()).unwrap();
        let public = ServerUrl::parse("http://203.0.113.9:8080").unwrap();
        let private = ServerUrl::parse("http://10.0.0.1:8080").unwrap();
        assert!(warnings(&config, &public, Some(443)).is_empty());
        assert!(warnings(&config, &private, Some(8443)).is_empty());
        assert!(warnings(&config, &public, Some(8443))[0].contains("TLS on 443"));
        assert!(warnings(&config, &public, None)[0].contains("TLS is off"));
    }
}
