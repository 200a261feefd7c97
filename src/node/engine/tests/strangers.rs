//! Datagrams of nobody we know, and of peers that play tricks.

use super::*;

/// A disco datagram from one key to host 0.
fn disco_to(s: &Sim, from: &DiscoPrivate, message: &disco::Message) -> Vec<u8> {
    let to = s.hosts[0].keys.1.public();
    disco::seal(&from.public(), &from.shared(&to), &[9; 24], message)
}

#[test]
fn disco_of_strangers_is_dropped_and_pings_alone_make_no_path() {
    let mut s = Sim::new(2).start();
    s.secs(1);
    let now = s.now;
    let other: SocketAddr = "203.0.113.77:7".parse().unwrap();
    let ping = disco::Message::Ping { tx: [4; 12], node_key: Some(s.hosts[1].keys.0.public()) };
    let stranger = DiscoPrivate::from_bytes([3; 32]);
    let datagram = disco_to(&s, &stranger, &ping);
    s.hosts[0].engine.handle_udp(other, &datagram, now);
    assert_eq!(s.hosts[0].engine.poll_output(), None);
    let datagram = disco_to(&s, &s.hosts[1].keys.1, &ping);
    s.hosts[0].engine.handle_udp(other, &datagram, now);
    let pong = s.hosts[0].engine.poll_output();
    assert!(matches!(pong, Some(Output::Udp { to, .. }) if to == other));
    // Once only, and the address is no path.
    s.hosts[0].engine.handle_udp(other, &datagram, now);
    assert_eq!(s.hosts[0].engine.poll_output(), None);
    assert_eq!(s.cur_addr(0, 1), None);
    let pong = disco::Message::Pong { tx: [4; 12], src: other };
    let datagram = disco_to(&s, &s.hosts[1].keys.1, &pong);
    s.hosts[0].engine.handle_udp(other, &datagram, now);
    assert_eq!(s.cur_addr(0, 1), None);
    assert_eq!(s.hosts[0].engine.status(now).drops["pong without ping"], 1);
}

#[test]
fn call_me_maybe_counts_only_by_the_relay_and_probes_no_groups() {
    let mut s = Sim::new(2).start();
    s.secs(1);
    let now = s.now;
    let list = ["203.0.113.7:1", "224.0.0.1:1", "255.255.255.255:9"];
    let call = disco::Message::CallMeMaybe(list.iter().map(|a| a.parse().unwrap()).collect());
    let datagram = disco_to(&s, &s.hosts[1].keys.1, &call);
    s.hosts[0].engine.handle_udp("203.0.113.7:1".parse().unwrap(), &datagram, now);
    assert_eq!(s.hosts[0].engine.poll_output(), None);
    let peer = s.hosts[1].keys.0.public();
    s.hosts[0].engine.handle_derp(HOME, peer, &datagram, now);
    let mut to = Vec::new();
    while let Some(output) = s.hosts[0].engine.poll_output() {
        if let Output::Udp { to: addr, .. } = output {
            to.push(addr);
        }
    }
    let inside = s.hosts[1].inside;
    assert_eq!(to, [inside, list[0].parse().unwrap()]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn arbitrary_input_never_panics(all in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..160), 0_u8..6), 1..12)) {
        let mut s = Sim::new(2).start();
        let now = s.now;
        let peer = s.hosts[1].keys.0.public();
        let e = &mut s.hosts[0].engine;
        for (mut b, kind) in all {
            match kind {
                0 => e.handle_tun(&b, now),
                1 => e.handle_udp("10.0.0.1:1".parse().unwrap(), &b, now),
                2 => e.handle_derp(HOME, peer, &b, now),
                3 => {
                    if let Some(first) = b.first_mut() { *first = 0x45; }
                    e.handle_tun(&b, now);
                }
                4 => {
                    let mut d = disco::MAGIC.to_vec();
                    d.extend_from_slice(&b);
                    e.handle_udp("10.0.0.1:1".parse().unwrap(), &d, now);
                }
                _ => {
                    if let Some(first) = b.first_mut() { *first = 1 + *first % 4; }
                    b.resize(148, 0);
                    e.handle_derp(HOME, peer, &b, now);
                }
            }
        }
        while e.poll_output().is_some() {}
    }
}
