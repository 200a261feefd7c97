use proptest::prelude::*;

use super::*;
use crate::node::packet::IpPacket;
use crate::node::packet::tests::{echo, tcp, udp};
use crate::wire::{NetPortRange, PortRange};

const ME: &str = "100.64.0.1";
const PEER: &str = "100.64.0.2";

fn rule(srcs: &[&str], dsts: &[(&str, u16, u16)], protos: &[i32]) -> FilterRule {
    FilterRule {
        src_ips: srcs.iter().copied().collect(),
        dst_ports: dsts
            .iter()
            .map(|(ip, first, last)| NetPortRange {
                ip: (*ip).into(),
                ports: PortRange { first: *first, last: *last },
            })
            .collect(),
        ip_proto: protos.to_vec(),
        ..FilterRule::default()
    }
}

fn scope() -> Scope {
    let mut local = IpSet::default();
    local.add("100.64.0.1/32".parse().unwrap());
    local.add("fd7a::1/128".parse().unwrap());
    Scope { local: local.seal(), ..Scope::default() }
}

fn filter(rules: &[FilterRule]) -> Filter {
    let mut f = Filter::default();
    f.set(rules.iter(), scope(), false);
    f
}

fn verdict(f: &mut Filter, packet: Vec<u8>) -> Result<(), &'static str> {
    let packet = IpPacket::new(packet.into()).unwrap();
    let packet = FromPeer::check(packet, |_| true).unwrap();
    f.inbound(packet, false).map(|_| ()).map_err(|r| r.reason)
}

#[test]
fn a_syn_needs_a_rule_and_other_segments_do_not() {
    let mut f = filter(&[rule(&[PEER], &[(ME, 22, 22)], &[])]);
    assert_eq!(verdict(&mut f, tcp(PEER, ME, (9, 22), 2)), Ok(()));
    assert_eq!(verdict(&mut f, tcp(PEER, ME, (9, 23), 2)), Err("acl"));
    assert_eq!(verdict(&mut f, tcp(PEER, ME, (9, 23), 0x12)), Ok(()));
    assert_eq!(verdict(&mut f, tcp("100.64.0.3", ME, (9, 22), 2)), Err("acl"));
    assert_eq!(verdict(&mut f, tcp(PEER, "100.64.0.9", (9, 22), 2)), Err("not for us"));
}

#[test]
fn any_open_port_opens_ping_and_none_closes_it_but_for_answers() {
    let mut f = filter(&[rule(&[PEER], &[(ME, 22, 22)], &[6])]);
    assert_eq!(verdict(&mut f, echo(PEER, ME, 8)), Ok(()));
    let mut f = filter(&[]);
    assert_eq!(verdict(&mut f, echo(PEER, ME, 8)), Err("acl"));
    assert_eq!(verdict(&mut f, echo(PEER, ME, 0)), Ok(()));
    assert_eq!(verdict(&mut f, echo(PEER, ME, 3)), Ok(()));
    assert_eq!(verdict(&mut f, echo("fd7a::2", "fd7a::1", 128)), Err("acl"));
    assert_eq!(verdict(&mut f, echo("fd7a::2", "fd7a::1", 129)), Ok(()));
}

#[test]
fn udp_passes_as_the_answer_to_a_flow_of_ours() {
    let mut f = filter(&[]);
    assert_eq!(verdict(&mut f, udp(PEER, ME, (53, 4000), b"x")), Err("acl"));
    let query = udp(ME, PEER, (4000, 53), b"x");
    f.outbound(&Headers::parse(&query).unwrap()).unwrap();
    assert_eq!(verdict(&mut f, udp(PEER, ME, (53, 4000), b"x")), Ok(()));
    assert_eq!(verdict(&mut f, udp(PEER, ME, (54, 4000), b"x")), Err("acl"));
}

#[test]
fn flows_are_bounded_and_the_used_ones_stay() {
    let mut f = filter(&[]);
    let out = |f: &mut Filter, port| {
        f.outbound(&Headers::parse(&udp(ME, PEER, (port, 53), b"")).unwrap()).unwrap();
    };
    for port in 1..=600 {
        out(&mut f, port);
        out(&mut f, 1);
    }
    assert_eq!(f.ours.len(), FLOWS);
    assert_eq!(verdict(&mut f, udp(PEER, ME, (53, 1), b"")), Ok(()));
    assert_eq!(verdict(&mut f, udp(PEER, ME, (53, 600), b"")), Ok(()));
    assert_eq!(verdict(&mut f, udp(PEER, ME, (53, 2), b"")), Err("acl"));
}

#[test]
fn answers_keep_a_flow_too() {
    let mut f = filter(&[]);
    for port in 1..=600 {
        f.outbound(&Headers::parse(&udp(ME, PEER, (port, 53), b"")).unwrap()).unwrap();
        assert_eq!(verdict(&mut f, udp(PEER, ME, (53, 1), b"")), Ok(()));
    }
    assert_eq!(f.ours.len(), FLOWS);
}

#[test]
fn shields_up_and_jail_leave_only_answers() {
    let mut f = Filter::default();
    let rules = [rule(&["*"], &[("*", 0, 65535)], &[])];
    f.set(rules.iter(), scope(), true);
    assert_eq!(verdict(&mut f, tcp(PEER, ME, (9, 22), 2)), Err("acl"));
    f.set(rules.iter(), scope(), false);
    let packet = IpPacket::new(tcp(PEER, ME, (9, 22), 2).into()).unwrap();
    let refused = f.inbound(FromPeer(packet), true).unwrap_err();
    assert_eq!(refused.notify, Some(b'S'));
}

#[test]
fn a_refused_syn_asks_for_a_notice_only_by_ipv4() {
    let mut f = filter(&[]);
    let mut judge = |p: Vec<u8>| f.inbound(FromPeer(IpPacket::new(p.into()).unwrap()), false);
    assert_eq!(judge(tcp(PEER, ME, (9, 22), 2)).unwrap_err().notify, Some(b'A'));
    assert_eq!(judge(tcp("fd7a::2", "fd7a::1", (9, 22), 2)).unwrap_err().notify, None);
    assert_eq!(judge(udp(PEER, ME, (9, 22), b"")).unwrap_err().notify, None);
}

#[test]
fn other_protocols_need_their_number_and_all_ports() {
    let gre = |f: &mut Filter| {
        let (s, d) = (PEER.parse().unwrap(), ME.parse().unwrap());
        verdict(f, crate::node::packet::build_ip(s, d, Proto(47), &[0; 8]).unwrap())
    };
    assert_eq!(gre(&mut filter(&[rule(&["*"], &[("*", 0, 65535)], &[])])), Err("acl"));
    assert_eq!(gre(&mut filter(&[rule(&["*"], &[("*", 0, 65534)], &[47])])), Err("acl"));
    assert_eq!(gre(&mut filter(&[rule(&["*"], &[("*", 0, 65535)], &[47])])), Ok(()));
}

#[test]
fn ranges_prefixes_and_capabilities_are_sources_and_rubbish_is_skipped() {
    let mut s = scope();
    s.cap_holders.insert("x".to_owned(), vec!["100.64.0.7/32".parse().unwrap()]);
    let mut f = Filter::default();
    let srcs = ["100.64.0.2-100.64.0.4", "10.0.0.0/8", "10.0.0.1/8", "cap:x", "what"];
    f.set([rule(&srcs, &[(ME, 1, 9)], &[])].iter(), s, false);
    for (src, want) in
        [("100.64.0.4", Ok(())), ("100.64.0.5", Err("acl")), ("10.9.9.9", Ok(())), ("100.64.0.7", Ok(()))]
    {
        assert_eq!(verdict(&mut f, tcp(src, ME, (9, 5), 2)), want, "{src}");
    }
}

#[test]
fn a_rule_for_a_peer_api_only_node_voids_the_filter() {
    let mut s = scope();
    s.peer_api_only.push("100.64.0.9/32".parse().unwrap());
    let mut f = Filter::default();
    f.set([rule(&["*"], &[("*", 0, 65535)], &[])].iter(), s, false);
    assert_eq!(verdict(&mut f, tcp(PEER, ME, (9, 5), 2)), Err("acl"));
}

fn out(f: &mut Filter, packet: &[u8]) -> Result<(), &'static str> {
    f.outbound(&Headers::parse(packet).unwrap())
}

const SYN: u8 = 2;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const FIN_ACK: u8 = 0x11;
const RST: u8 = 4;

#[test]
fn a_change_of_rules_cuts_what_peers_opened_and_nothing_else() {
    let open = [rule(&["*"], &[(ME, 0, 65535)], &[])];
    let mut f = filter(&open);
    // Two connections of the peer, one of ours.
    for port in [22, 80] {
        verdict(&mut f, tcp(PEER, ME, (9, port), SYN)).unwrap();
        out(&mut f, &tcp(ME, PEER, (port, 9), SYN_ACK)).unwrap();
    }
    out(&mut f, &tcp(ME, PEER, (4000, 443), SYN)).unwrap();
    verdict(&mut f, tcp(PEER, ME, (443, 4000), SYN_ACK)).unwrap();

    f.set([rule(&["*"], &[(ME, 80, 80)], &[])].iter(), scope(), false);
    assert_eq!(verdict(&mut f, tcp(PEER, ME, (9, 22), ACK)), Err(CUT));
    assert_eq!(out(&mut f, &tcp(ME, PEER, (22, 9), ACK)), Err(CUT));
    assert_eq!(out(&mut f, &tcp(ME, PEER, (22, 9), RST)), Ok(()), "the host's own reset may leave");
    assert_eq!(verdict(&mut f, tcp(PEER, ME, (9, 80), ACK)), Ok(()));
    assert_eq!(out(&mut f, &tcp(ME, PEER, (80, 9), ACK)), Ok(()));
    assert_eq!(verdict(&mut f, tcp(PEER, ME, (443, 4000), ACK)), Ok(()));
    assert_eq!(out(&mut f, &tcp(ME, PEER, (4000, 443), ACK)), Ok(()));
    assert_eq!(verdict(&mut f, tcp(PEER, ME, (10, 22), ACK)), Ok(()), "unknown: as official clients");

    // Given back, it goes on.
    f.set(open.iter(), scope(), false);
    assert_eq!(verdict(&mut f, tcp(PEER, ME, (9, 22), ACK)), Ok(()));
    assert!(f.connections.is_calm());
}

#[test]
fn a_peers_reset_or_end_does_not_save_its_connection() {
    for flags in [RST, FIN_ACK] {
        let mut f = filter(&[rule(&["*"], &[(ME, 22, 22)], &[])]);
        verdict(&mut f, tcp(PEER, ME, (9, 22), SYN)).unwrap();
        verdict(&mut f, tcp(PEER, ME, (9, 22), flags)).unwrap();
        f.set([].iter(), scope(), false);
        assert_eq!(verdict(&mut f, tcp(PEER, ME, (9, 22), ACK)), Err(CUT));
    }
}

#[test]
fn both_ends_of_a_cut_connection_are_reset_with_numbers_they_accept() {
    let mut f = filter(&[rule(&["*"], &[(ME, 22, 22)], &[])]);
    verdict(&mut f, tcp(PEER, ME, (9, 22), SYN)).unwrap();
    f.set([].iter(), scope(), false);
    let mut data = tcp(PEER, ME, (9, 22), ACK);
    data[24..28].copy_from_slice(&7000_u32.to_be_bytes());
    data[28..32].copy_from_slice(&500_u32.to_be_bytes());
    let mut refuse = |bytes: &[u8]| f.inbound(FromPeer(IpPacket::new(bytes.to_vec().into()).unwrap()), false);
    let resets = refuse(&data).unwrap_err().resets.unwrap();
    let host = resets.to_host.unwrap().into_bytes();
    let h = Headers::parse(&host).unwrap();
    assert!(h.is_tcp_rst());
    assert_eq!((h.src.to_string(), h.src_port, h.dst_port), (PEER.to_owned(), 9, 22));
    assert_eq!(host[24..28], 7000_u32.to_be_bytes());
    let peer = resets.to_peer.unwrap();
    let h = Headers::parse(&peer).unwrap();
    assert!(h.is_tcp_rst());
    assert_eq!((h.dst.to_string(), h.src_port, h.dst_port), (PEER.to_owned(), 22, 9));
    assert_eq!(peer[24..28], 500_u32.to_be_bytes());
    // Never a reset for a reset.
    let resets = refuse(&tcp(PEER, ME, (9, 22), RST)).unwrap_err().resets.unwrap();
    assert!(resets.to_host.is_none() && resets.to_peer.is_none());
}

#[test]
fn shields_up_cuts_what_peers_opened_and_the_same_rules_told_again_do_nothing() {
    let rules = [rule(&["*"], &[(ME, 22, 22)], &[])];
    let mut f = Filter::default();
    let known = || Scope { version: 1, ..scope() };
    f.set(rules.iter(), known(), false);
    verdict(&mut f, tcp(PEER, ME, (9, 22), SYN)).unwrap();
    f.set([].iter(), known(), false);
    assert_eq!(verdict(&mut f, tcp(PEER, ME, (9, 22), SYN)), Ok(()), "the same version: not read again");
    f.set(rules.iter(), known(), true);
    assert_eq!(verdict(&mut f, tcp(PEER, ME, (9, 22), ACK)), Err(CUT));
    f.set(rules.iter(), known(), false);
    assert_eq!(verdict(&mut f, tcp(PEER, ME, (9, 22), ACK)), Ok(()));
    f.set([].iter(), Scope { version: 2, ..scope() }, false);
    assert_eq!(verdict(&mut f, tcp(PEER, ME, (9, 22), ACK)), Err(CUT));
}

#[test]
fn a_peer_that_floods_us_out_of_memory_gains_nothing_and_others_lose_nothing() {
    let other = "100.64.0.3";
    let mut f = filter(&[rule(&["*"], &[(ME, 22, 80)], &[])]);
    out(&mut f, &tcp(ME, PEER, (4000, 443), SYN)).unwrap();
    verdict(&mut f, tcp(PEER, ME, (9, 22), SYN)).unwrap();
    for n in 0..20_000_u16 {
        verdict(&mut f, tcp(PEER, ME, (10_000 + n, 80), SYN)).unwrap();
    }
    f.set([].iter(), scope(), false);
    assert_eq!(verdict(&mut f, tcp(PEER, ME, (9, 22), ACK)), Err(CUT), "forgotten, but its sender is not");
    assert_eq!(verdict(&mut f, tcp(PEER, ME, (443, 4000), ACK)), Ok(()), "ours goes on");
    assert_eq!(verdict(&mut f, tcp(other, ME, (443, 4001), ACK)), Ok(()), "others are as before");
}

#[test]
fn ended_connections_make_room_first() {
    let mut f = filter(&[rule(&["*"], &[(ME, 22, 80)], &[])]);
    verdict(&mut f, tcp(PEER, ME, (9, 22), SYN)).unwrap();
    for n in 0..20_000_u16 {
        verdict(&mut f, tcp("100.64.0.3", ME, (10_000 + n, 80), SYN)).unwrap();
        out(&mut f, &tcp(ME, "100.64.0.3", (80, 10_000 + n), FIN_ACK)).unwrap();
    }
    f.set([].iter(), scope(), false);
    assert_eq!(verdict(&mut f, tcp(PEER, ME, (9, 22), ACK)), Err(CUT), "still in the table");
    assert_eq!(out(&mut f, &tcp(ME, PEER, (22, 9), ACK)), Err(CUT));
}

#[test]
fn our_answer_does_not_make_a_peers_datagrams_ours() {
    let mut f = filter(&[rule(&["*"], &[(ME, 53, 53)], &[])]);
    let (query, answer) = (udp(PEER, ME, (9, 53), b"?"), udp(ME, PEER, (53, 9), b"!"));
    verdict(&mut f, query.clone()).unwrap();
    out(&mut f, &answer).unwrap();
    let (ours, back) = (udp(ME, PEER, (4000, 53), b"?"), udp(PEER, ME, (53, 4000), b"!"));
    out(&mut f, &ours).unwrap();
    verdict(&mut f, back.clone()).unwrap();
    f.set([].iter(), scope(), false);
    assert_eq!(verdict(&mut f, query.clone()), Err("acl"));
    out(&mut f, &answer).unwrap();
    assert_eq!(verdict(&mut f, query), Err("acl"));
    assert_eq!(verdict(&mut f, back), Ok(()));
}

#[test]
fn the_last_addresses_of_a_family_are_as_good_as_others() {
    let mut s = scope();
    s.local = IpSet::default();
    for net in ["255.255.255.254/31", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127"] {
        s.local.add(net.parse().unwrap());
    }
    s.local = std::mem::take(&mut s.local).seal();
    let last6 = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    // ffff::/8 is multicast, so that the index is asked itself.
    let rules = [
        rule(&["*"], &[("*", 1, 1)], &[]),
        rule(&["255.255.255.255", last6], &[("255.255.255.255", 2, 65535), (last6, 2, 65535)], &[]),
    ];
    let read: Vec<Rule> = rules.iter().filter_map(|r| Rule::read(r, &HashMap::new())).collect();
    let index = build::build(&read, &s.local, Budget::NODE);
    for (last, before) in
        [("255.255.255.255", "255.255.255.254"), (last6, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe")]
    {
        let (last, before): (IpAddr, IpAddr) = (last.parse().unwrap(), before.parse().unwrap());
        assert!(index.port(last, last, 6, 65535) && index.port(before, last, 6, 1));
        assert!(!index.port(before, last, 6, 65535) && !index.port(last, before, 6, 2));
        assert!(index.reaches(before, before) && !index.portless(last, last, 47));
    }
}

#[test]
fn multicast_link_local_and_tsmp_from_the_host_stay() {
    let mut f = filter(&[]);
    let mut out = |dst: &str| f.outbound(&Headers::parse(&udp(ME, dst, (1, 2), b"")).unwrap());
    assert_eq!(out("224.0.0.1"), Err("multicast"));
    assert_eq!(out("169.254.1.1"), Err("link-local"));
    assert_eq!(out("169.254.169.254"), Ok(()));
}

proptest! {
    #[test]
    fn arbitrary_packets_never_panic(mut b in proptest::collection::vec(any::<u8>(), 20..100), six in any::<bool>()) {
        b[0] = if six { 0x60 } else { 0x45 };
        let mut f = filter(&[rule(&["*"], &[("*", 0, 65535)], &[])]);
        if let Some(p) = IpPacket::new(b.into()) {
            let _ = f.outbound(p.headers());
            let _ = f.inbound(FromPeer(p), false);
        }
    }
}
