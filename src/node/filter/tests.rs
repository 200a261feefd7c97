use proptest::prelude::*;

use super::*;
use crate::node::packet::IpPacket;
use crate::node::packet::tests::{echo, tcp, udp};
use crate::wire::NetPortRange;

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
    assert_eq!(f.flows.index.len(), FLOWS);
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
    assert_eq!(f.flows.index.len(), FLOWS);
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

#[test]
fn multicast_link_local_and_tsmp_from_the_host_stay() {
    let mut f = filter(&[]);
    let mut out = |dst: &str| f.outbound(&Headers::parse(&udp(ME, dst, (1, 2), b"")).unwrap());
    assert_eq!(out("224.0.0.1"), Err("multicast"));
    assert_eq!(out("169.254.1.1"), Err("link-local"));
    assert_eq!(out("169.254.169.254"), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn equals_a_naive_filter(
        rules in proptest::collection::vec((0_u8..6, 0_u8..6, 0_u16..6, 0_u16..6, 0_u8..3), 0..8),
        src in 0_u8..8, dst in 0_u8..3, port in 0_u16..6, is_tcp in any::<bool>(),
    ) {
        let wire: Vec<FilterRule> = rules.iter().map(|(a, b, first, last, proto)| {
            let protos: &[i32] = match proto { 0 => &[], 1 => &[6], _ => &[17] };
            rule(&[&format!("10.0.0.{}-10.0.0.{}", a.min(b), a.max(b))], &[(ME, *first, *last)], protos)
        }).collect();
        let mut f = filter(&wire);
        let (s, d) = (format!("10.0.0.{src}"), format!("100.64.0.{dst}"));
        let packet = if is_tcp { tcp(&s, &d, (1, port), 2) } else { udp(&s, &d, (1, port), b"") };
        let naive = dst == 1 && rules.iter().any(|(a, b, first, last, proto)| {
            (a.min(b)..=a.max(b)).contains(&&src)
                && (*first..=*last).contains(&port)
                && (*proto == 0 || (*proto == 1) == is_tcp)
        });
        prop_assert_eq!(verdict(&mut f, packet).is_ok(), naive);
    }

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
