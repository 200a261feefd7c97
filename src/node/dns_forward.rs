//! Asks resolvers on behalf of the engine, outside the tunnel.
//!
//! All given resolvers are asked, each a little later than the one before; the first usable answer
//! wins, a refusal counts only when nobody does better. UDP first, TCP for truncated answers and for
//! queries that came by TCP; ten seconds in all. Each query leaves from a port of its own under an id of
//! our own, and only an answer that repeats both and the question counts (RFC 5452).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::task::JoinSet;

use crate::dns::question;
use crate::wire::DerpMap;

/// Length of a message's header (RFC 1035 4.1.1).
const HEADER: usize = 12;
/// A query ends after this long.
const LIMIT: Duration = Duration::from_secs(10);
/// A name of one label ends after this long: those are names of the local network, whose resolver is near.
/// A program that means a machine of the tailnet that is not there (yet) would hang for its own whole limit.
const BARE_LIMIT: Duration = Duration::from_secs(2);
/// The next resolver is asked this much later.
const STAGGER: Duration = Duration::from_millis(200);
/// An unanswered datagram is sent again after this long.
const RETRY: Duration = Duration::from_secs(2);
/// Resolvers asked at most.
const MAX_RESOLVERS: usize = 8;

/// The first good answer, under `id`, which must be random; `None` when there was none in time.
pub(super) async fn ask(
    resolvers: Vec<SocketAddr>,
    query: Bytes,
    id: [u8; 2],
    tcp: bool,
    mark: Option<u32>,
) -> Option<Bytes> {
    let rest = query.get(2..)?;
    let query = Bytes::from([id.as_slice(), rest].concat());
    let limit = limit(&query);
    let mut race = JoinSet::new();
    for (turn, resolver) in (0_u32..).zip(resolvers.into_iter().take(MAX_RESOLVERS)) {
        let query = query.clone();
        race.spawn(async move {
            tokio::time::sleep(STAGGER * turn).await;
            one(resolver, &query, tcp, mark).await
        });
    }
    let mut soft = None;
    let finish = async {
        while let Some(done) = race.join_next().await {
            match done {
                Ok(Ok(answer)) if usable(&answer) => return Some(answer),
                Ok(Ok(answer)) => soft = Some(answer),
                Ok(Err(e)) => tracing::trace!("resolver: {e}"),
                Err(_) => {}
            }
        }
        None
    };
    let good = tokio::time::timeout(limit, finish).await.ok().flatten();
    good.or(soft)
}

/// How long a query may take: a name of a single label less.
fn limit(query: &[u8]) -> Duration {
    let bare = query.get(12..).and_then(<[u8]>::split_first).is_some_and(|(len, rest)| {
        // Nothing but the label and the end of the name.
        *len > 0 && rest.get(usize::from(*len)) == Some(&0)
    });
    if bare { BARE_LIMIT } else { LIMIT }
}

/// Not SERVFAIL and not REFUSED.
fn usable(answer: &[u8]) -> bool {
    answer.get(3).is_some_and(|b| !matches!(b & 0x0f, 2 | 5))
}

fn truncated(answer: &[u8]) -> bool {
    answer.get(2).is_some_and(|b| b & 0x02 != 0)
}

/// The same id and question, and an answer. Some servers do not repeat the question with an error.
fn matches(query: &[u8], answer: &[u8]) -> bool {
    let Some(&[id1, id0, flags, code, ref counts @ ..]) = answer.first_chunk::<HEADER>() else {
        return false;
    };
    let bare_error = counts.iter().all(|b| *b == 0) && code & 0x0f != 0;
    let same = || match (question(query), question(answer)) {
        (Some(asked), Some(told)) => asked.eq_ignore_ascii_case(told),
        _ => false,
    };
    query.get(..2) == Some(&[id1, id0]) && flags & 0x80 != 0 && (bare_error || same())
}

async fn one(to: SocketAddr, query: &[u8], tcp: bool, mark: Option<u32>) -> io::Result<Bytes> {
    if !tcp {
        let answer = by_udp(to, query, mark).await?;
        if !truncated(&answer) {
            return Ok(answer);
        }
        // A truncated answer is better than none when TCP is blocked.
        return Ok(by_tcp(to, query, mark).await.unwrap_or(answer));
    }
    by_tcp(to, query, mark).await
}

async fn by_udp(to: SocketAddr, query: &[u8], mark: Option<u32>) -> io::Result<Bytes> {
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.connect(&to.into())?;
    let socket = UdpSocket::from_std(socket.into())?;
    let mut buf = vec![0; 65_535];
    loop {
        socket.send(query).await?;
        let again = tokio::time::sleep(RETRY);
        tokio::pin!(again);
        loop {
            tokio::select! {
                () = &mut again => break,
                received = socket.recv(&mut buf) => {
                    let answer = buf.get(..received?).unwrap_or_default();
                    if matches(query, answer) {
                        return Ok(Bytes::copy_from_slice(answer));
                    }
                }
            }
        }
    }
}

async fn by_tcp(to: SocketAddr, query: &[u8], mark: Option<u32>) -> io::Result<Bytes> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(mark) = mark {
        socket2::SockRef::from(&socket).set_mark(mark)?;
    }
    let mut stream = socket.connect(to).await?;
    let len = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut message = len.to_be_bytes().to_vec();
    message.extend_from_slice(query);
    stream.write_all(&message).await?;
    let len = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(len)];
    stream.read_exact(&mut answer).await?;
    if matches(query, &answer) { Ok(answer.into()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Addresses of every relay of the map whose address is not given in it.
pub(super) async fn resolve_relays(map: &DerpMap) -> BTreeMap<String, Vec<IpAddr>> {
    let mut lookups = JoinSet::new();
    let nodes = map.regions.values().flat_map(|r| &r.nodes);
    for node in nodes.take(1024) {
        let (name, host) = (node.name.clone(), node.host().to_owned());
        lookups.spawn(async move {
            if let Ok(ip) = host.parse::<IpAddr>() {
                return (name, vec![ip]);
            }
            let found = tokio::time::timeout(LIMIT, tokio::net::lookup_host((host, 0))).await;
            let ips = match found {
                Ok(Ok(addrs)) => addrs.map(|a| a.ip()).collect(),
                _ => Vec::new(),
            };
            (name, ips)
        });
    }
    let mut out = BTreeMap::new();
    while let Some(done) = lookups.join_next().await {
        if let Ok((name, ips)) = done
            && !ips.is_empty()
        {
            out.insert(name, ips);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &[u8] = b"\x07\x07\x01\0\0\x01\0\0\0\0\0\0\x01a\x02de\0\0\x01\0\x01";
    const ID: [u8; 2] = [3, 4];

    async fn server(flags: [u8; 2]) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buf = [0; 512];
            while let Ok((len, from)) = socket.recv_from(&mut buf).await {
                let mut answer = buf[..len].to_vec();
                answer[2] = flags[0];
                answer[3] = flags[1];
                let _ = socket.send_to(&answer, from).await;
            }
        });
        addr
    }

    #[tokio::test]
    async fn a_refusal_loses_against_an_answer() {
        let refuses = server([0x81, 0x05]).await;
        let answers = server([0x81, 0x80]).await;
        let query = Bytes::from_static(QUERY);
        let got = ask(vec![refuses, answers], query, ID, false, None).await.unwrap();
        assert_eq!(got[3], 0x80);
        assert_eq!(got[..2], ID, "asked under an id of our own");
    }

    #[tokio::test]
    async fn a_refusal_is_handed_on_when_it_is_all_there_is() {
        let refuses = server([0x81, 0x05]).await;
        let got = ask(vec![refuses], Bytes::from_static(QUERY), ID, false, None).await;
        assert_eq!(got.unwrap()[3], 0x05);
        let none = ask(vec![], Bytes::from_static(QUERY), ID, false, None).await;
        assert_eq!(none, None);
    }

    #[test]
    fn bare_names_fail_soon_and_others_get_their_time() {
        let query = |name: &[u8]| [&QUERY[..12], name, &[0, 1, 0, 1]].concat();
        assert_eq!(limit(&query(b"\x06cellar\0")), BARE_LIMIT);
        assert_eq!(limit(&query(b"\x01a\x02bc\0")), LIMIT);
        for broken in [&QUERY[..12], &[][..], &[0; 14], &query(b"\xff")] {
            assert_eq!(limit(broken), LIMIT);
        }
    }

    #[test]
    fn only_answers_to_the_question_count() {
        let mut answer = QUERY.to_vec();
        assert!(!matches(QUERY, &answer));
        answer[2] = 0x81;
        assert!(matches(QUERY, &answer));
        let mut upper = answer.clone();
        upper[13] = b'A';
        assert!(matches(QUERY, &upper), "servers may change the case");
        let mut other = answer.clone();
        other[13] = b'b';
        assert!(!matches(QUERY, &other));
        other = answer.clone();
        other[20] = 28;
        assert!(!matches(QUERY, &other), "another type");
        let mut error = answer[..12].to_vec();
        error[5] = 0;
        assert!(!matches(QUERY, &error), "no error and no question");
        error[3] = 1;
        assert!(matches(QUERY, &error));
        answer[0] = 9;
        assert!(!matches(QUERY, &answer));
        assert!(!matches(QUERY, &answer[..11]));
    }
}
