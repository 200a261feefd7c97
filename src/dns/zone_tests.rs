//! Ordinary questions, the rules that keep names inside, and hostile messages.

use proptest::prelude::*;

use super::*;

fn node(name: &str, addresses: &[&str]) -> wire::Node {
    wire::Node {
        name: name.to_owned(),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        ..wire::Node::default()
    }
}

fn config() -> wire::DnsConfig {
    serde_json::from_str(
        r#"{"Proxied":true,
            "Resolvers":[{"Addr":"9.9.9.9"},{"Addr":"100.100.100.100"}],
            "Routes":{"corp.example":[{"Addr":"10.0.0.53:5353"}],
                      "deep.corp.example":[{"Addr":"10.0.0.54"}],
                      "doh.example":[{"Addr":"https://dns.example/q"}],
                      "here.example":null,
                      "out.tail.example":[{"Addr":"8.8.8.8"}]},
            "ExtraRecords":[{"Name":"web.here.example","Value":"100.64.0.9"},
                            {"Name":"txt.here.example","Type":"TXT","Value":"x"}]}"#,
    )
    .unwrap()
}

fn zone() -> Zone {
    let me = node("Me.tail.example.", &["100.64.0.1/32", "fd7a:115c:a1e0::1/128"]);
    let both = node("Both.tail.example.", &["100.64.0.2/32", "fd7a:115c:a1e0::2/128"]);
    let six = node("six.tail.example.", &["fd7a:115c:a1e0::3/128"]);
    let mut open = node("open.tail.example.", &["100.64.0.4/32"]);
    open.cap_map.insert(CAP_SUBDOMAINS.to_owned(), None);
    Zone::build(&me, [both, six, open].iter(), &config())
}

fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(0xabcd, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn answer(zone: &Zone, name: &str, kind: RecordType) -> Message {
    match zone.handle(&query(name, kind), false) {
        Verdict::Answer(bytes) => {
            let message = Message::from_vec(&bytes).unwrap();
            assert_eq!(message.metadata.id, 0xabcd);
            assert_eq!(message.metadata.message_type, MessageType::Response);
            message
        }
        other => panic!("{name} {kind}: {other:?}"),
    }
}

fn data(zone: &Zone, name: &str, kind: RecordType) -> Vec<String> {
    let message = answer(zone, name, kind);
    assert_eq!(message.metadata.response_code, ResponseCode::NoError);
    assert!(message.metadata.authoritative);
    message.answers.iter().map(|r| r.data.to_string()).collect()
}

fn code(zone: &Zone, name: &str, kind: RecordType) -> ResponseCode {
    answer(zone, name, kind).metadata.response_code
}

fn forwarded(zone: &Zone, name: &str) -> Vec<String> {
    match zone.handle(&query(name, RecordType::A), false) {
        Verdict::Forward { resolvers } => resolvers.iter().map(ToString::to_string).collect(),
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn nodes_answer_whatever_the_case_with_five_seconds() {
    let zone = zone();
    for name in ["me.tail.example.", "ME.TAIL.Example."] {
        assert_eq!(data(&zone, name, RecordType::A), ["100.64.0.1"]);
    }
    let message = answer(&zone, "both.tail.example.", RecordType::A);
    assert_eq!(message.answers[0].ttl, 5);
    assert!(message.metadata.recursion_available);
}

#[test]
fn aaaa_is_kept_back_when_there_is_a_v4_address() {
    let zone = zone();
    let message = answer(&zone, "both.tail.example.", RecordType::AAAA);
    assert!(message.answers.is_empty());
    assert_eq!(message.authorities[0].record_type(), RecordType::SOA);
    assert_eq!(message.authorities[0].ttl, 10);
    assert_eq!(data(&zone, "six.tail.example.", RecordType::AAAA), ["fd7a:115c:a1e0::3"]);

    let mut me = node("me.tail.example.", &["100.64.0.1/32", "fd7a:115c:a1e0::1/128"]);
    me.cap_map.insert(CAP_AAAA.to_owned(), None);
    let wanting = Zone::build(&me, std::iter::empty(), &config());
    assert_eq!(data(&wanting, "me.tail.example.", RecordType::AAAA), ["fd7a:115c:a1e0::1"]);

    let me = node("me.tail.example.", &["fd7a:115c:a1e0::1/128"]);
    let both = node("both.tail.example.", &["100.64.0.2/32", "fd7a:115c:a1e0::2/128"]);
    let six_only = Zone::build(&me, [both].iter(), &config());
    assert!(data(&six_only, "both.tail.example.", RecordType::A).is_empty());
    assert_eq!(data(&six_only, "both.tail.example.", RecordType::AAAA), ["fd7a:115c:a1e0::2"]);
}

#[test]
fn other_types_follow_the_table() {
    let zone = zone();
    assert_eq!(data(&zone, "both.tail.example.", RecordType::ANY), ["100.64.0.2"]);
    for kind in [RecordType::TXT, RecordType::MX, RecordType::HTTPS, RecordType::CNAME] {
        let message = answer(&zone, "both.tail.example.", kind);
        assert_eq!(message.metadata.response_code, ResponseCode::NoError);
        assert!(message.answers.is_empty() && message.authorities.is_empty());
    }
    for kind in [RecordType::NS, RecordType::SOA, RecordType::HINFO] {
        assert_eq!(code(&zone, "both.tail.example.", kind), ResponseCode::NotImp);
    }
}

#[test]
fn names_under_the_suffix_never_leave() {
    let zone = zone();
    // The third has a route of control's that would send it outside.
    for name in ["nobody.tail.example.", "tail.example.", "x.out.tail.example."] {
        let message = answer(&zone, name, RecordType::A);
        assert_eq!(message.metadata.response_code, ResponseCode::NXDomain, "{name}");
        assert_eq!(message.authorities[0].name.to_ascii(), "tail.example.");
    }
    assert_eq!(code(&zone, "x.both.tail.example.", RecordType::A), ResponseCode::NXDomain);
    assert_eq!(data(&zone, "a.b.open.tail.example.", RecordType::A), ["100.64.0.4"]);
    // A neighbour that only ends alike is not ours.
    assert_eq!(forwarded(&zone, "x.nottail.example."), ["9.9.9.9:53"]);
}

#[test]
fn the_longest_route_wins_and_the_default_takes_the_rest() {
    let zone = zone();
    assert_eq!(forwarded(&zone, "a.Corp.example."), ["10.0.0.53:5353"]);
    assert_eq!(forwarded(&zone, "a.deep.corp.example."), ["10.0.0.54:53"]);
    assert_eq!(forwarded(&zone, "www.example.org."), ["9.9.9.9:53"]);
    assert_eq!(code(&zone, "x.doh.example.", RecordType::A), ResponseCode::ServFail);
    let me = node("me.tail.example.", &["100.64.0.1/32"]);
    let plain = Zone::build(&me, std::iter::empty(), &wire::DnsConfig::default());
    assert!(forwarded(&plain, "www.example.org.").is_empty());
}

#[test]
fn extra_records_answer_and_their_empty_route_is_authoritative() {
    let zone = zone();
    assert_eq!(data(&zone, "web.here.example.", RecordType::A), ["100.64.0.9"]);
    for name in ["txt.here.example.", "nobody.here.example."] {
        let message = answer(&zone, name, RecordType::A);
        assert_eq!(message.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(message.authorities[0].name.to_ascii(), "here.example.");
    }
}

#[test]
fn reverse_names_of_the_tailnet_are_ours() {
    let zone = zone();
    let v4 = "2.0.64.100.in-addr.arpa.";
    assert_eq!(data(&zone, v4, RecordType::PTR), ["both.tail.example."]);
    let v6 = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa.";
    assert_eq!(v6.split('.').count(), 32 + 3);
    assert_eq!(data(&zone, v6, RecordType::PTR), ["both.tail.example."]);
    let service = "100.100.100.100.in-addr.arpa.";
    assert_eq!(data(&zone, service, RecordType::PTR), [format!("{SERVICE_NAME}.")]);
    for absent in ["99.0.127.100.in-addr.arpa.", "lb._dns-sd._udp.example.org."] {
        assert_eq!(code(&zone, absent, RecordType::PTR), ResponseCode::NXDomain);
    }
    let outside = zone.handle(&query("8.8.8.8.in-addr.arpa.", RecordType::PTR), false);
    assert!(matches!(outside, Verdict::Forward { .. }));
    assert_eq!(code(&zone, "abc.onion.", RecordType::A), ResponseCode::NXDomain);
}

#[test]
fn a_name_of_4via6_is_the_address_behind_its_site() {
    let zone = zone();
    let address = ["fd7a:115c:a1e0:b1a:0:7:c0a8:102"];
    for name in ["192-168-1-2-via-7.", "192-168-1-2-via-0x7.tail.example.", "192-168-1-2-via-7.any.ts.net."] {
        assert_eq!(data(&zone, name, RecordType::AAAA), address, "{name}");
        assert!(data(&zone, name, RecordType::A).is_empty());
    }
    for other in ["192-168-1-2-via-7.example.org.", "192-168-1-via-7.", "1-2-3-4-via-x."] {
        assert_eq!(forwarded(&zone, other), ["9.9.9.9:53"], "{other}");
    }
}

fn rcode(verdict: Verdict) -> ResponseCode {
    match verdict {
        Verdict::Answer(bytes) => Message::from_vec(&bytes).unwrap().metadata.response_code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn hostile_messages_get_an_error_or_silence() {
    let zone = zone();
    let good = query("me.tail.example.", RecordType::A);
    assert_eq!(zone.handle(&[], false), Verdict::Drop);
    assert_eq!(zone.handle(&good[..11], false), Verdict::Drop);

    let mut response = good.clone();
    response[2] |= 0x80;
    assert_eq!(zone.handle(&response, false), Verdict::Drop);
    assert_eq!(Zone::servfail(&response), None);

    let mut update = good.clone();
    update[2] = 5 << 3;
    assert_eq!(rcode(zone.handle(&update, false)), ResponseCode::NotImp);

    let mut chaos = good.clone();
    let class = chaos.len() - 1;
    chaos[class] = 3;
    assert_eq!(rcode(zone.handle(&chaos, false)), ResponseCode::Refused);

    for count in [[0, 0], [0, 2], [0xff, 0xff]] {
        let mut bad = good.clone();
        bad[4..6].copy_from_slice(&count);
        assert_eq!(rcode(zone.handle(&bad, false)), ResponseCode::FormErr);
    }
    let mut answers = good.clone();
    answers[6..8].copy_from_slice(&[0xff, 0xff]);
    assert_eq!(rcode(zone.handle(&answers, false)), ResponseCode::FormErr);

    let head = &good[..HEADER];
    // A pointer to itself, two that point at each other, one forward, a label of 64, a cut one.
    let names: [&[u8]; 5] = [
        &[0xc0, 12, 0, 1, 0, 1],
        &[0xc0, 14, 0xc0, 12, 0, 1, 0, 1],
        &[0xc0, 0xff, 0, 1, 0, 1],
        &[[64_u8].as_slice(), &[b'a'; 64], &[0, 0, 1, 0, 1]].concat(),
        &[9, b'a'],
    ];
    for name in names {
        let bad = [head, name].concat();
        assert_eq!(rcode(zone.handle(&bad, false)), ResponseCode::FormErr);
    }
    for cut in HEADER..good.len() {
        assert_eq!(rcode(zone.handle(&good[..cut], false)), ResponseCode::FormErr);
    }
}

#[test]
fn a_dot_inside_a_label_is_not_a_dot_between_labels() {
    let zone = zone();
    let name = Name::from_labels(vec![&b"me.tail"[..], b"example"]).unwrap();
    let mut message = Message::new(1, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(name, RecordType::A));
    let verdict = zone.handle(&message.to_vec().unwrap(), false);
    assert!(matches!(verdict, Verdict::Forward { .. }));
}

#[test]
fn servfail_repeats_the_question() {
    let message = Message::from_vec(&Zone::servfail(&query("a.b.", RecordType::A)).unwrap()).unwrap();
    assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(message.metadata.id, 0xabcd);
    assert_eq!(message.queries[0].name().to_ascii(), "a.b.");
}

proptest! {
    #[test]
    fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), tcp: bool) {
        let zone = zone_once();
        let _ = zone.handle(&bytes, tcp);
        let _ = Zone::servfail(&bytes);
        let mut framed = query("me.tail.example.", RecordType::A);
        framed.truncate(HEADER);
        framed.extend_from_slice(&bytes);
        let _ = zone.handle(&framed, tcp);
    }
}

fn zone_once() -> &'static Zone {
    static ZONE: std::sync::LazyLock<Zone> = std::sync::LazyLock::new(zone);
    &ZONE
}
