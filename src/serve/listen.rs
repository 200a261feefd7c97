//! Opening listeners: dual-stack, with the options every long stream needs, and with the name of the
//! process that holds a port when it cannot be had.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::limits;

/// A TCP socket that has its port but does not listen yet, so that nobody is let in before the server
/// can answer.
#[derive(Debug)]
pub(super) struct Bound(Socket);

impl Bound {
    /// Where it stands.
    ///
    /// # Errors
    /// As the kernel says.
    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    /// Lets connections in.
    ///
    /// # Errors
    /// As the kernel says.
    pub(super) fn listen(self) -> io::Result<TcpListener> {
        self.0.listen(1024)?;
        TcpListener::from_std(self.0.into())
    }
}

/// Takes a TCP port; `[::]` serves IPv4 too.
///
/// # Errors
/// As the kernel says.
pub(super) fn tcp(addr: SocketAddr) -> io::Result<Bound> {
    match stream_socket(addr) {
        // A kernel without IPv6: [::] means everything there is.
        Err(error) if no_ipv6(&error) && addr.ip() == IpAddr::from([0_u16; 8]) => {
            stream_socket(SocketAddr::from(([0, 0, 0, 0], addr.port()))).map(Bound)
        }
        other => other.map(Bound),
    }
}

fn stream_socket(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Opens a UDP socket; `[::]` serves IPv4 too.
///
/// # Errors
/// As the kernel says.
pub(super) fn udp(addr: SocketAddr) -> io::Result<UdpSocket> {
    let open = |addr: SocketAddr| -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        UdpSocket::from_std(socket.into())
    };
    match open(addr) {
        Err(error) if no_ipv6(&error) && addr.ip() == IpAddr::from([0_u16; 8]) => {
            open(SocketAddr::from(([0, 0, 0, 0], addr.port())))
        }
        other => other,
    }
}

/// What every accepted stream gets. Failures are harmless: the connection only ages worse.
pub(super) fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(limits::TCP_KEEPALIVE).with_interval(limits::TCP_KEEPALIVE);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(limits::TCP_USER_TIMEOUT));
}

/// Which transport a port belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// TCP listeners.
    Tcp,
    /// UDP sockets.
    Udp,
}

/// Who holds a port, in words: `nginx (process 812)`; a vague word when /proc does not tell.
#[must_use]
pub(super) fn holder(port: u16, transport: Transport) -> String {
    let inodes = inodes_of(port, transport);
    let found = (!inodes.is_empty()).then(|| process_with(&inodes)).flatten();
    found.unwrap_or_else(|| "another program".to_owned())
}

fn inodes_of(port: u16, transport: Transport) -> Vec<String> {
    let (files, state) = match transport {
        // 0A is LISTEN, 07 is an unconnected UDP socket (include/net/tcp_states.h).
        Transport::Tcp => (["/proc/net/tcp", "/proc/net/tcp6"], "0A"),
        Transport::Udp => (["/proc/net/udp", "/proc/net/udp6"], "07"),
    };
    files
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .flat_map(|text| listening_inodes(&text, port, state))
        .collect()
}

/// The inodes of sockets on `port` in a /proc/net table.
fn listening_inodes(table: &str, port: u16, state: &str) -> Vec<String> {
    let suffix = format!(":{port:04X}");
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let here = fields.get(1)?.ends_with(&suffix) && *fields.get(3)? == state;
            here.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
        })
        .collect()
}

fn process_with(inodes: &[String]) -> Option<String> {
    let wanted: Vec<String> = inodes.iter().map(|i| format!("socket:[{i}]")).collect();
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(fds) = std::fs::read_dir(entry.path().join("fd")) else {
            continue;
        };
        let holds = fds.flatten().any(|fd| {
            std::fs::read_link(fd.path())
                .is_ok_and(|target| wanted.iter().any(|w| target.as_os_str() == w.as_str()))
        });
        if holds {
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {pid})", name.trim()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_busy_port_names_its_holder() {
        let first = tcp("127.0.0.1:0".parse().unwrap()).unwrap().listen().unwrap();
        let addr = first.local_addr().unwrap();
        let error = tcp(addr).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let who = holder(addr.port(), Transport::Tcp);
        assert!(who.ends_with(&format!("(process {})", std::process::id())), "{who}");
    }

    #[tokio::test]
    async fn the_unspecified_address_serves_both_families() {
        let listener = tcp("[::]:0".parse().unwrap()).unwrap().listen().unwrap();
        let port = listener.local_addr().unwrap().port();
        let dial = TcpStream::connect(("127.0.0.1", port));
        let (stream, accepted) = tokio::join!(dial, listener.accept());
        stream.unwrap();
        tune(&accepted.unwrap().0);
    }

    #[test]
    fn proc_tables_are_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 00000000:01BB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1\n   1: 00000000:01BB 00000000:0000 01 00000000:00000000 00:00000000 00000000     0        0 4712 1\n";
        assert_eq!(listening_inodes(table, 443, "0A"), ["4711"]);
        assert!(listening_inodes(table, 80, "0A").is_empty());
        assert!(listening_inodes("garbage\nx y", 80, "0A").is_empty());
    }
}
