//! What the engine answers itself: pings inside the tunnel and names.

use super::*;

#[test]
fn tsmp_pings_are_answered_to_the_peer_and_never_reach_the_host() {
    let mut s = Sim::new(2).start();
    s.secs(1);
    assert!(s.passes(0, 1, b"x"));
    s.hosts[1].tun.clear();
    let (src, dst) = (IPS[0].parse().unwrap(), IPS[1].parse().unwrap());
    let ping = build_ip(src, dst, Proto::TSMP, b"p12345678").unwrap();
    let sent = s.hosts[1].engine.status(s.now).peers[&id(0)].tx_bytes;
    // From the host it may not leave.
    s.send(0, &ping);
    assert_eq!(s.hosts[0].engine.status(s.now).drops["tsmp from host"], 1);
    let now = s.now;
    s.hosts[0].engine.send_plain(id(1), &ping, false, now);
    s.drain(0);
    s.secs(1);
    assert!(s.hosts[1].tun.is_empty());
    assert!(s.hosts[1].engine.status(s.now).peers[&id(0)].tx_bytes > sent);
}

#[test]
fn names_are_answered_forwarded_and_fail_in_time() {
    let mut s = Sim::new(2).start();
    let query = |name: &[u8]| {
        let mut q = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split(|b| *b == b'.') {
            q.push(label.len() as u8);
            q.extend_from_slice(label);
        }
        q.extend_from_slice(&[0, 0, 1, 0, 1]);
        udp(IPS[0], "100.100.100.100", (4000, 53), &q)
    };
    s.send(0, &query(b"n1.tail.internal"));
    let answer = s.hosts[0].tun.pop().unwrap();
    let h = Headers::parse(&answer).unwrap();
    assert_eq!((h.src_port, h.dst_port), (53, 4000));
    assert_eq!(&answer[answer.len() - 4..], &[100, 64, 0, 2]);
    let now = s.now;
    s.hosts[0].engine.handle_tun(&query(b"example.com"), now);
    let Some(Output::DnsForward { id, query: q, .. }) = s.hosts[0].engine.poll_output() else {
        panic!("a forwarded query");
    };
    let mut answer = q.to_vec();
    answer[2] |= 0x80;
    s.hosts[0].engine.handle_dns_answer(id, Some(&answer), now);
    s.hosts[0].engine.handle_dns_answer(id, Some(&answer), now);
    s.drain(0);
    assert_eq!(s.hosts[0].tun.len(), 1);
    s.hosts[0].tun.clear();
    s.send(0, &query(b"example.com"));
    s.secs(9);
    assert!(s.hosts[0].tun.is_empty());
    s.secs(2);
    // SERVFAIL.
    assert_eq!(s.hosts[0].tun[0][28 + 3] & 0x0f, 2);
    s.hosts[0].tun.clear();
    s.send(0, &tcp(IPS[0], "100.100.100.100", (4000, 53), 2));
    assert!(Headers::parse(&s.hosts[0].tun[0]).unwrap().is_tcp_rst());
}

#[test]
fn a_resolver_that_asks_us_what_we_ask_it_is_told_of_the_loop() {
    let mut s = Sim::new(2).start();
    let mut question = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01".to_vec();
    let now = s.now;
    let mut forwards = 0;
    for n in 0..100 {
        question[1] = n;
        let packet = udp(IPS[0], "100.100.100.100", (4000, 53), &question);
        s.hosts[0].engine.handle_tun(&packet, now);
        while let Some(output) = s.hosts[0].engine.poll_output() {
            match output {
                Output::DnsForward { .. } => forwards += 1,
                Output::Tun(answer) => assert_eq!(answer[28 + 3] & 0x0f, 2, "SERVFAIL"),
                _ => {}
            }
        }
    }
    assert_eq!(forwards, 16);
    assert_eq!(s.hosts[0].engine.status(now).drops["dns loop"], 84);
    question[13] = b'X';
    s.hosts[0].engine.handle_tun(&udp(IPS[0], "100.100.100.100", (4000, 53), &question), now);
    assert!(matches!(s.hosts[0].engine.poll_output(), Some(Output::DnsForward { .. })));
}
