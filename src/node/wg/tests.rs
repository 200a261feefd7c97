//! Handshakes and sessions of two cores, by hand.

use super::*;
use crate::clock::{Now, Rng};

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);

fn keys() -> (NodePrivate, NodePrivate) {
    let mut rng = Rng::from_seed([3; 32]);
    (NodePrivate::generate(&mut rng), NodePrivate::generate(&mut rng))
}

fn seal(a: &mut WireGuard, to: &NodePrivate, plain: &[u8], now: Instant) -> Vec<Bytes> {
    let mut out = Vec::new();
    a.encapsulate(B, &to.public(), plain, now, &mut out);
    out
}

fn from() -> SocketAddr {
    "192.0.2.1:1".parse().unwrap()
}

#[test]
fn a_packet_starts_the_handshake_and_arrives_after_it() {
    let now = Now::read().mono;
    let (ka, kb) = keys();
    let (mut a, mut b) = (WireGuard::new(&ka), WireGuard::new(&kb));
    let init = seal(&mut a, &kb, &[0x45; 33], now);
    let answer =
        b.decapsulate(from(), BytesMut::from(&init[0][..]), now, |k| (*k == ka.public()).then_some(A));
    assert_eq!(answer.peer, Some(A));
    let done = a.decapsulate(from(), BytesMut::from(&answer.send[0][..]), now, |_| None);
    assert!(done.established);
    let keepalive = b.decapsulate(from(), BytesMut::from(&done.send[0][..]), now, |_| None);
    assert!(keepalive.established && keepalive.packet.is_none());
    let queued = a.flush(B);
    let got = b.decapsulate(from(), BytesMut::from(&queued[0][..]), now, |_| None);
    assert_eq!(got.packet.as_deref().map(|p| &p[..33]), Some(&[0x45; 33][..]));
    // A replay is refused quietly.
    assert!(b.decapsulate(from(), BytesMut::from(&queued[0][..]), now, |_| None).packet.is_none());
}

#[test]
fn a_lost_initiation_is_repeated_when_a_way_opens() {
    let now = Now::read().mono;
    let (ka, kb) = keys();
    let (mut a, mut b) = (WireGuard::new(&ka), WireGuard::new(&kb));
    assert!(a.retry(B, now).is_empty(), "nobody to talk to");
    let lost = seal(&mut a, &kb, &[0x45; 33], now);
    assert_eq!(lost.len(), 1);
    // At once would look like a flood: it comes by the next tick.
    assert!(a.retry(B, now + Duration::from_millis(1)).is_empty());
    let at = now + RETRY_SPACING;
    let mut init = Vec::new();
    while let Some(id) = a.due(at) {
        init.extend(a.handle_timeout(id, at));
    }
    assert_eq!(init.len(), 1, "one initiation");
    let later = at + RETRY_SPACING;
    let again = a.retry(B, later);
    assert_eq!(again.len(), 1, "a later one goes at once");
    let answer =
        b.decapsulate(from(), BytesMut::from(&again[0][..]), later, |k| (*k == ka.public()).then_some(A));
    let done = a.decapsulate(from(), BytesMut::from(&answer.send[0][..]), later, |_| None);
    assert!(done.established);
    assert!(a.retry(B, later + RETRY_SPACING).is_empty(), "nothing is pending any more");
    assert_eq!(a.flush(B).len(), 1, "the packet was kept");
}

/// The initiations made until `end`, as times since `start`.
fn initiations(a: &mut WireGuard, start: Instant, end: Duration) -> Vec<Duration> {
    let mut at = Vec::new();
    while let Some(t) = a.poll_timeout().filter(|t| *t <= start + end) {
        let id = a.due(t).unwrap();
        let sent = a.handle_timeout(id, t);
        at.extend(sent.iter().filter(|d| is_initiation(d)).map(|_| t - start));
    }
    at
}

#[test]
fn the_first_initiation_is_repeated_soon_and_ever_less_often() {
    let now = Now::read().mono;
    let (ka, kb) = keys();
    let (mut a, mut b) = (WireGuard::new(&ka), WireGuard::new(&kb));
    seal(&mut a, &kb, &[0x45; 33], now);
    assert_eq!(initiations(&mut a, now, Duration::from_secs(4)), REPEATS);
    // With a session there is nothing urgent, a new handshake of it included.
    let at = now + Duration::from_secs(4);
    let init = b.renew(A, &ka.public(), at);
    let answer = a.decapsulate(from(), BytesMut::from(&init[0][..]), at, |_| Some(B));
    let done = b.decapsulate(from(), BytesMut::from(&answer.send[0][..]), at, |_| None);
    a.decapsulate(from(), BytesMut::from(&done.send[0][..]), at, |_| None);
    let again = a.renew(B, &kb.public(), at + Duration::from_secs(95));
    assert_eq!(again.len(), 1);
    let at = at + Duration::from_secs(95);
    assert!(initiations(&mut a, at, Duration::from_secs(4)).is_empty());
}

#[test]
fn a_late_answer_does_not_bring_an_older_session_back() {
    let now = Now::read().mono;
    let (ka, kb) = keys();
    let (mut a, mut b) = (WireGuard::new(&ka), WireGuard::new(&kb));
    let first = seal(&mut a, &kb, &[0x45; 33], now);
    let later = now + RETRY_SPACING;
    let second = a.retry(B, later);
    let [slow, fast] = [first, second].map(|init| {
        let answer = b.decapsulate(from(), BytesMut::from(&init[0][..]), later, |_| Some(A));
        BytesMut::from(&answer.send[0][..])
    });
    let done = a.decapsulate(from(), fast, later, |_| None);
    assert!(done.established);
    let late = a.decapsulate(from(), slow, later, |_| None);
    assert!(!late.established && late.dropped == Some("late answer"), "{late:?}");
    b.decapsulate(from(), BytesMut::from(&done.send[0][..]), later, |_| None);
    let data = a.flush(B);
    assert!(b.decapsulate(from(), BytesMut::from(&data[0][..]), later, |_| None).packet.is_some());
}

#[test]
fn a_ping_of_the_peer_prompts_an_initiation_a_few_times() {
    let now = Now::read().mono;
    let (ka, kb) = keys();
    let mut a = WireGuard::new(&ka);
    assert!(a.heard(B, now).is_empty(), "nothing to say");
    seal(&mut a, &kb, &[0x45; 33], now);
    let sent: usize = (1..20).map(|n| a.heard(B, now + RETRY_SPACING * n).len()).sum();
    assert_eq!(sent, PROMPTED_REPEATS as usize);
}

#[test]
fn an_undelivered_initiation_is_repeated_sooner_but_not_for_ever() {
    let now = Now::read().mono;
    let (ka, kb) = keys();
    let mut a = WireGuard::new(&ka);
    a.undelivered(B, now);
    assert!(a.poll_timeout().is_none(), "nobody to talk to");
    seal(&mut a, &kb, &[0x45; 33], now);
    let mut at = Vec::new();
    while at.last().is_none_or(|t| *t < Duration::from_secs(4)) && at.len() < 100 {
        // Two frames went out: the initiation and a call-me-maybe.
        let last = now + at.last().copied().unwrap_or_default();
        a.undelivered(B, last);
        a.undelivered(B, last);
        let Some(next) = a.poll_timeout() else {
            break;
        };
        let id = a.due(next).unwrap();
        let sent = a.handle_timeout(id, next);
        at.extend(sent.iter().filter(|d| is_initiation(d)).map(|_| next - now));
        if next > now + Duration::from_secs(4) {
            break;
        }
    }
    let millis: Vec<u128> = at.iter().map(Duration::as_millis).collect();
    assert_eq!(millis.get(..3), Some(&[50, 150, 350][..]), "{millis:?}");
    assert!(millis.len() <= REPEATS.len() + PROMPTED_REPEATS as usize, "{millis:?}");
}

#[test]
fn a_peer_that_lost_its_sessions_begins_a_new_one_when_it_hears_of_them() {
    let now = Now::read().mono;
    let (ka, kb) = keys();
    let (mut a, mut b) = (WireGuard::new(&ka), WireGuard::new(&kb));
    let init = seal(&mut a, &kb, b"x", now);
    let answer = b.decapsulate(from(), BytesMut::from(&init[0][..]), now, |_| Some(A));
    a.decapsulate(from(), BytesMut::from(&answer.send[0][..]), now, |_| None);
    // B restarts.
    let mut b = WireGuard::new(&kb);
    let data = seal(&mut a, &kb, &[0x45; 33], now);
    let lost = b.decapsulate(from(), BytesMut::from(&data[0][..]), now, |_| None);
    assert_eq!(lost.dropped, Some(UNKNOWN_SESSION));
    let begin = b.renew(A, &ka.public(), now);
    assert_eq!(begin.len(), 1);
    assert!(b.renew(A, &ka.public(), now + Duration::from_secs(1)).is_empty(), "not for every packet");
    let answer = a.decapsulate(from(), BytesMut::from(&begin[0][..]), now, |_| Some(B));
    let done = b.decapsulate(from(), BytesMut::from(&answer.send[0][..]), now, |_| None);
    assert!(done.established);
    a.decapsulate(from(), BytesMut::from(&done.send[0][..]), now, |_| None);
    let data = seal(&mut a, &kb, &[0x45; 33], now);
    assert!(b.decapsulate(from(), BytesMut::from(&data[0][..]), now, |_| None).packet.is_some());
}

#[test]
fn strangers_and_rubbish_get_nothing() {
    let now = Now::read().mono;
    let (ka, kb) = keys();
    let (mut a, mut b) = (WireGuard::new(&ka), WireGuard::new(&kb));
    let init = seal(&mut a, &kb, b"x", now);
    let out = b.decapsulate(from(), BytesMut::from(&init[0][..]), now, |_| None);
    assert_eq!(out.dropped, Some("handshake of a stranger"));
    assert!(out.send.is_empty() && b.sessions.is_empty());
    let mut bent = init[0].to_vec();
    bent[140] ^= 1;
    bent[120] ^= 1;
    let out = b.decapsulate(from(), BytesMut::from(&bent[..]), now, |_| Some(A));
    assert_eq!(out.dropped, Some("bad wireguard handshake"));
}

#[test]
fn a_flood_is_asked_for_cookies() {
    let now = Now::read().mono;
    let (ka, kb) = keys();
    let mut b = WireGuard::new(&kb);
    let mut a = WireGuard::new(&ka);
    let init = seal(&mut a, &kb, b"x", now);
    let mut cookies = 0;
    for i in 0..300_u16 {
        let src = SocketAddr::new(IpAddr::from([10, 0, (i >> 8) as u8, i as u8]), 9);
        let out = b.decapsulate(src, BytesMut::from(&init[0][..]), now, |_| Some(A));
        cookies += u32::from(out.reply.is_some());
    }
    assert!(cookies >= 300 - OVERALL, "{cookies}");
}

#[test]
fn rubbish_does_not_put_us_under_load() {
    let now = Now::read().mono;
    let (ka, kb) = keys();
    let mut b = WireGuard::new(&kb);
    let init = seal(&mut WireGuard::new(&ka), &kb, b"x", now);
    let mut bent = init[0].to_vec();
    bent[120] ^= 1;
    for i in 0..1000_u16 {
        let src = SocketAddr::new(IpAddr::from([10, 0, (i >> 8) as u8, i as u8]), 9);
        let out = b.decapsulate(src, BytesMut::from(&bent[..]), now, |_| Some(A));
        assert_eq!(out.dropped, Some("bad wireguard handshake"));
    }
    let out = b.decapsulate(from(), BytesMut::from(&init[0][..]), now, |_| Some(A));
    assert!(out.reply.is_none() && out.peer == Some(A), "{out:?}");
}

#[test]
fn a_recorded_handshake_is_refused_after_its_session_ended() {
    let now = Now::read().mono;
    let (ka, kb) = keys();
    let (mut a, mut b) = (WireGuard::new(&ka), WireGuard::new(&kb));
    let recorded = seal(&mut a, &kb, b"x", now);
    assert_eq!(b.decapsulate(from(), BytesMut::from(&recorded[0][..]), now, |_| Some(A)).peer, Some(A));
    // Idle for long, or restarted: the session ends.
    b.remove(A);
    let later = now + FORGET;
    let out = b.decapsulate(from(), BytesMut::from(&recorded[0][..]), later, |_| Some(A));
    assert_eq!(out.dropped, Some("wireguard refused"));
    assert!(out.send.is_empty() && b.by_index.is_empty() && b.poll_timeout().is_none());
}

#[test]
fn an_ended_session_starts_over_with_its_retries() {
    let now = Now::read().mono;
    let (ka, kb) = keys();
    let mut a = WireGuard::new(&ka);
    seal(&mut a, &kb, b"x", now);
    a.remove(B);
    assert_eq!(a.poll_timeout(), None);
    let again = seal(&mut a, &kb, b"x", now + FORGET);
    assert_eq!(again.len(), 1);
    assert_eq!(a.poll_timeout(), Some(now + FORGET + TICK));
    // Under another key nothing of it is left.
    let other = seal(&mut a, &ka, b"x", now + FORGET);
    assert_eq!((other.len(), a.sessions.len()), (1, 1));
}

#[test]
fn an_idle_session_sleeps_and_is_forgotten() {
    let now = Now::read().mono;
    let (ka, kb) = keys();
    let mut a = WireGuard::new(&ka);
    seal(&mut a, &kb, b"x", now);
    let mut t = now;
    let mut ticks = 0;
    while let Some(at) = a.poll_timeout() {
        t = t.max(at);
        let id = a.due(t).unwrap();
        a.handle_timeout(id, t);
        ticks += 1;
    }
    assert!(t >= now + FORGET);
    // 92 s of handshake at four a second, and then one more.
    assert!(ticks < 400, "{ticks}");
    assert!(a.by_index.is_empty());
}
