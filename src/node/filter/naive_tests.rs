//! The compiled filter beside a plain reading of the rules, which shares nothing with it past the wire:
//! random rules of every spelling over a small world, where ranges touch, nest and overlap all the time.

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::node::packet::build_ip;
use crate::wire::{CapGrant, NetPortRange, PortRange};

/// Who has the capability `c`, per family.
const HOLDERS: [&str; 2] = ["10.0.0.5/32", "fd7a::5/128"];
const LOCAL: [&str; 4] = ["10.0.0.1/32", "10.0.0.16/29", "fd7a::1/128", "fd7a::10/125"];

fn covers(text: &str, addr: IpAddr, caps: bool) -> bool {
    let same = |a: IpAddr| a.is_ipv4() == addr.is_ipv4();
    if text == "*" {
        return true;
    }
    if let Some(cap) = text.strip_prefix("cap:") {
        return caps && cap == "c" && HOLDERS.iter().any(|n| n.parse::<IpNet>().unwrap().contains(&addr));
    }
    if let Some((a, b)) = text.split_once('-') {
        let (Ok(a), Ok(b)) = (a.parse::<IpAddr>(), b.parse::<IpAddr>()) else { return false };
        return same(a) && same(b) && a <= addr && addr <= b;
    }
    if text.contains('/') {
        return text.parse::<IpNet>().is_ok_and(|n| n.trunc() == n && n.contains(&addr));
    }
    text.parse() == Ok(addr)
}

fn naive(rules: &[FilterRule], src: IpAddr, dst: IpAddr, proto: u8, port: u16) -> bool {
    let local = LOCAL.iter().any(|n| n.parse::<IpNet>().unwrap().contains(&dst));
    local
        && rules.iter().any(|rule| {
            let listed = |n: i32| rule.ip_proto.contains(&n);
            let named =
                if rule.ip_proto.is_empty() { [1, 6, 17, 58].contains(&proto) } else { listed(proto.into()) };
            let (ping, ports) = (proto == 1 || proto == 58, matches!(proto, 6 | 17 | 132));
            let from = rule.src_ips.iter().any(|s| covers(s, src, ping || ports));
            let to = rule.dst_ports.iter().any(|d| {
                let PortRange { first, last } = d.ports;
                let fits = if ping {
                    first <= last
                } else if ports {
                    first <= port && port <= last
                } else {
                    first == 0 && last == 65535
                };
                fits && covers(&d.ip, dst, false)
            });
            (ping || named) && from && to
        })
}

/// An address of the small world: ten bits of IPv4 and of IPv6, and the ends of both.
fn address() -> impl Strategy<Value = IpAddr> {
    let v4 = prop_oneof![8 => 0_u32..40, 1 => 0_u32..1024].prop_map(|n| IpAddr::V4((0x0a00_0000 + n).into()));
    let v6 = prop_oneof![8 => 0_u128..40, 1 => 0_u128..1024]
        .prop_map(|n| IpAddr::V6(((0xfd7a << 112) + n).into()));
    let ends = prop_oneof![Just("0.0.0.0"), Just("223.255.255.255"), Just("::"), Just("fe00::")];
    prop_oneof![10 => v4, 10 => v6, 1 => ends.prop_map(|s| s.parse().unwrap())]
}

fn spelling() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => address().prop_map(|a| a.to_string()),
        6 => (address(), address()).prop_map(|(a, b)| format!("{a}-{b}")),
        4 => (address(), 0_u8..12).prop_map(|(a, less)| {
            let most = if a.is_ipv4() { 32 } else { 128 };
            IpNet::new(a, most - less).unwrap().trunc().to_string()
        }),
        1 => (address(), 0_u8..8).prop_map(|(a, len)| IpNet::new(a, len).unwrap().to_string()),
        1 => Just("*".to_owned()),
        1 => Just("0.0.0.0/0".to_owned()),
        1 => Just("rubbish".to_owned()),
    ]
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![6 => 0_u16..12, 1 => Just(65535), 1 => Just(65534), 1 => any::<u16>()]
}

fn some_rule() -> impl Strategy<Value = FilterRule> {
    let source = prop_oneof![12 => spelling(), 1 => Just("cap:c".to_owned()), 1 => Just("cap:d".to_owned())];
    let ports = prop_oneof![2 => Just((0, 65535)), 5 => (port(), port()), 1 => port().prop_map(|p| (p, p))];
    let target = (spelling(), ports)
        .prop_map(|(ip, (first, last))| NetPortRange { ip: ip.into(), ports: PortRange { first, last } });
    let proto = prop_oneof![Just(6), Just(17), Just(1), Just(132), Just(47), Just(-1), Just(256), 0..256];
    (
        proptest::collection::vec(source, 0..5),
        proptest::collection::vec(target, 0..4),
        proptest::collection::vec(proto, 0..3),
        any::<bool>(),
    )
        .prop_map(|(src_ips, dst_ports, ip_proto, grant)| {
            let cap_grant = if grant && dst_ports.is_empty() {
                vec![CapGrant { dsts: vec!["0.0.0.0/0".parse().unwrap()], ..CapGrant::default() }]
            } else {
                Vec::new()
            };
            FilterRule { src_ips: src_ips.into_iter().collect(), dst_ports, ip_proto, cap_grant }
        })
}

fn filter(rules: &[FilterRule]) -> Filter {
    let mut local = IpSet::default();
    LOCAL.iter().for_each(|n| local.add(n.parse().unwrap()));
    let holders = HOLDERS.iter().map(|n| n.parse().unwrap()).collect();
    let cap_holders = HashMap::from([("c".to_owned(), holders), ("d".to_owned(), Vec::new())]);
    let mut f = Filter::default();
    f.set(rules.iter(), Scope { local: local.seal(), cap_holders, ..Scope::default() }, false);
    f
}

/// A packet that opens something.
fn opening(src: IpAddr, dst: IpAddr, proto: u8, port: u16) -> Option<IpPacket> {
    let mut t = vec![0_u8; 20];
    t[2..4].copy_from_slice(&port.to_be_bytes());
    match proto {
        6 => t[12..14].copy_from_slice(&[0x50, 2]),
        17 => t[4..6].copy_from_slice(&20_u16.to_be_bytes()),
        1 => t[0] = 8,
        58 => t[0] = 128,
        _ => {}
    }
    IpPacket::new(build_ip(src, dst, Proto(proto), &t)?.into())
}

fn compare(rules: &[FilterRule], packets: &[(IpAddr, IpAddr, u8, u16)]) -> Result<(), TestCaseError> {
    let mut f = filter(rules);
    for &(src, dst, proto, port) in packets {
        // TSMP passes always; what is no protocol never does; ICMP is of its own family.
        let family = (proto == 1 && dst.is_ipv6()) || (proto == 58 && dst.is_ipv4());
        if matches!(proto, 0 | 44 | 99 | 255) || family || dst.is_multicast() {
            continue;
        }
        let Some(packet) = opening(src, dst, proto, port).filter(|p| p.headers().proto.0 == proto) else {
            continue;
        };
        let got = f.inbound(FromPeer(packet), false).is_ok();
        let want = naive(rules, src, dst, proto, port);
        prop_assert_eq!(got, want, "{} to {} proto {} port {}", src, dst, proto, port);
    }
    Ok(())
}

fn packet() -> impl Strategy<Value = (IpAddr, IpAddr, u8, u16)> {
    let proto = prop_oneof![6 => Just(6), 6 => Just(17), 2 => Just(1), 2 => Just(58), 2 => Just(132), 2 => Just(47), 1 => any::<u8>()];
    (address(), address(), proto, port())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn equals_a_naive_filter(
        rules in proptest::collection::vec(some_rule(), 0..12),
        packets in proptest::collection::vec(packet(), 40),
    ) {
        compare(&rules, &packets)?;
    }
}

fn agrees(f: &mut Filter, rules: &[FilterRule], next: &mut impl FnMut(u32) -> u32) {
    let mut permitted = 0;
    for _ in 0..1500 {
        // Often what some rule means, and often just beside it.
        let rule = &rules[next(1200) as usize];
        let source = rule.src_ips[0].split('-').next().unwrap();
        let IpAddr::V4(source) = source.parse().unwrap() else { panic!() };
        let src = IpAddr::V4((source.to_bits() + next(2)).into());
        let dst = IpAddr::V4((0x0a00_0010 + next(9)).into());
        let port = rule.dst_ports[0].ports.first + next(1000) as u16;
        let packet = opening(src, dst, 6, port).unwrap();
        let got = f.inbound(FromPeer(packet), false).is_ok();
        assert_eq!(got, naive(rules, src, dst, 6, port), "{src} {dst} {port}");
        permitted += u32::from(got);
    }
    assert!(permitted > 20, "{permitted}");
}

/// Many rules that cross in all three dimensions and are halved for want of memory are still the same filter.
#[test]
fn a_filter_of_several_parts_equals_a_naive_one() {
    let mut seed = 7_u32;
    let mut next = |below: u32| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) % below
    };
    let mut rules = Vec::new();
    for n in 0..1200_u32 {
        let (first, more) = (next(60_000) as u16, next(5000) as u16);
        let dst = 0x0a00_0010 + next(6);
        let (from, to) = (IpAddr::V4(dst.into()), IpAddr::V4((dst + next(3)).into()));
        // Every third is wide: those go to the matrix of a grid.
        let (one, last) = (0x0b00_0000 + 2 * n, 0x0b00_0000 + 2 * n + 300);
        let (one, last) = (IpAddr::V4(one.into()), IpAddr::V4(last.into()));
        let sources = if n % 3 == 0 { format!("{one}-{last}") } else { one.to_string() };
        rules.push(FilterRule {
            src_ips: [sources].into_iter().collect(),
            dst_ports: vec![NetPortRange {
                ip: format!("{from}-{to}").into(),
                ports: PortRange { first, last: first + more },
            }],
            ..FilterRule::default()
        });
    }
    let mut f = filter(&rules);
    assert_eq!(f.index.size().1, 1);
    agrees(&mut f, &rules, &mut next);
    let read: Vec<Rule> = rules.iter().filter_map(|r| Rule::read(r, &HashMap::new())).collect();
    let tight = Budget { base: 1 << 10, per_entry: 8, ..Budget::NODE };
    f.index = build::build(&read, &f.scope.local, tight);
    assert!(f.index.size().1 > 1, "{:?}", f.index.size());
    agrees(&mut f, &rules, &mut next);

    // Without memory for all of them it refuses more, and never permits more.
    f.index = build::build(&read, &f.scope.local, Budget { all: 30 << 10, ..tight });
    assert!(f.index.size().0 < 40 << 10, "{:?}", f.index.size());
    let mut refused = 0;
    for rule in &rules {
        let src: IpAddr = rule.src_ips[0].split('-').next().unwrap().parse().unwrap();
        let (dst, port) = (IpAddr::V4(0x0a00_0011_u32.into()), rule.dst_ports[0].ports.first);
        let got = f.index.port(src, dst, 6, port);
        let want = naive(&rules, src, dst, 6, port);
        assert!(want || !got);
        refused += u32::from(want && !got);
    }
    assert!(refused > 0);
}
