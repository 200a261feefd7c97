//! Tests in policies: verdicts beyond the captured ones, and the words they fail with.

use super::*;
use crate::acl::ast::AttrValue;

const HEAD: &str = r#""tagOwners": {"tag:server": [], "tag:router": [], "tag:none": []},
    "groups": {"group:all": ["alice@", "bob@example.com"]},
    "hosts": {"server4": "100.64.1.8", "net": "10.0.0.0/8", "lonely": "10.9.9.9"},
    "ipsets": {"ipset:lan": ["10.33.0.0/16", "remove 10.33.9.0/24"]},
    "postures": {"posture:linux": ["node:os == 'linux'"]}"#;

fn failing(rest: &str) -> Vec<PolicyError> {
    compiled(&format!("{{{HEAD},\n{rest}}}")).failing_tests()
}

fn acl(src: &str, dst: &str, more: &str) -> String {
    format!(r#""acls": [{{"action": "accept", "src": ["{src}"], "dst": ["{dst}"]{more}}}]"#)
}

/// Whether one entry of `tests` holds under one rule.
fn holds(rule: &str, test: &str) -> bool {
    failing(&format!("{rule},\n\"tests\": [{test}]")).is_empty()
}

#[test]
fn a_failure_says_who_where_and_why() {
    let rule = acl("alice@", "tag:server:22", "");
    let found = failing(&format!(
        "{rule},\n\"tests\": [\n{{\"src\": \"bob@example.com\", \"accept\": [\"tag:server:22\"]}},\n\
         {{\"src\": \"alice@\", \"deny\": [\"tag:server:22\"], \"accept\": [\"tag:server:80\"]}}]"
    ));
    let texts: Vec<_> = found.iter().map(|f| (f.code, f.message.as_str(), f.hint.as_str())).collect();
    assert_eq!(
        texts,
        [
            (
                "test-failed",
                "test(s) failed: tests[0]: bob@example.com does not reach tag:server:22, which \"accept\" demands",
                "acls[0] (line 6) allows tag:server:22, but not from n3 (100.64.1.6)"
            ),
            (
                "test-failed",
                "test(s) failed: tests[1]: alice@ does not reach tag:server:80, which \"accept\" demands",
                "no rule allows tag:server:80 over this protocol to anybody"
            ),
            (
                "test-failed",
                "test(s) failed: tests[1]: alice@ reaches tag:server:22, which \"deny\" forbids",
                "acls[0] (line 6) allows it"
            ),
        ]
    );
    assert_eq!((found[0].line, found[0].column), (8, 39), "the word, not the test");
}

#[test]
fn every_address_of_the_source_has_to_get_there() {
    let one = r#"{"src": "alice@", "accept": ["tag:server:22"]}"#;
    assert!(holds(&acl("alice@", "tag:server:22", ""), one));
    assert!(!holds(&acl("100.64.1.2", "tag:server:22", ""), one), "one address of two devices");
    let all = r#""acls": [{"action": "accept", "src": ["100.64.1.0/24"], "dst": ["tag:server:22"]},
                          {"action": "accept", "src": ["fd7a:115c:a1e0::/48"], "dst": ["server4:22"]}]"#;
    assert!(holds(all, one), "any address of the destination will do");
    assert!(holds(all, r#"{"src": "group:all", "accept": ["tag:server:22"]}"#), "rules add up");
    assert!(!holds(
        &acl("alice@", "tag:server:22", ""),
        r#"{"src": "group:all", "accept": ["tag:server:22"]}"#
    ));
}

#[test]
fn a_deny_that_keeps_out_only_a_part_is_told() {
    let rule = acl("alice@", "tag:server:22", "");
    let text = format!(
        "{{{HEAD},\n{rule},\n\"tests\": [{{\"src\": \"group:all\", \"deny\": [\"tag:server:22\"]}}]}}"
    );
    let compiled = compiled(&text);
    assert!(compiled.failing_tests().is_empty(), "as on the hosted service");
    let doubts = compiled.doubtful_tests();
    assert_eq!(doubts.len(), 1);
    assert_eq!((doubts[0].code, doubts[0].line), ("test-in-part", 7));
    assert!(doubts[0].message.contains("n3 (100.64.1.6) is kept out"), "{}", doubts[0].message);
}

#[test]
fn a_rule_wider_than_its_tests_is_told() {
    let doubts = |rules: &str, tests: &str| -> Vec<(u32, String)> {
        let text = format!(
            "{{\"tagOwners\": {{\"tag:server\": [], \"tag:router\": []}}, \"acls\": [\n{rules}], \"tests\": [{tests}]}}"
        );
        let compiled = compiled(&text);
        assert_eq!(compiled.failing_tests(), []);
        let wide = compiled.doubtful_tests();
        wide.into_iter().filter(|w| w.code == "wider-than-tests").map(|w| (w.line, w.message)).collect()
    };
    let rule = |src: &str, dst: &str| {
        format!("{{\"action\": \"accept\", \"src\": [\"{src}\"], \"dst\": [\"{dst}\"]}},\n")
    };
    let accept = |port: u16| format!("{{\"src\": \"alice@\", \"accept\": [\"tag:server:{port}\"]}},");
    let (narrow, wide) = (rule("alice@", "tag:server:22"), rule("autogroup:member", "tag:server:*"));
    let told = doubts(&format!("{narrow}{wide}"), &accept(22));
    let text = "this rule opens all ports of tag:server, and the tests want port 22 there";
    assert_eq!(told, [(3, text.to_owned())], "though the narrow rule alone is enough");
    let two = accept(22) + &accept(80);
    assert!(doubts(&wide, &two)[0].1.ends_with("want ports 22 and 80 there"));
    let deny = "{\"src\": \"alice@\", \"deny\": [\"tag:router:22\"]},";
    for (rules, tests, why) in [
        (narrow.as_str(), accept(22).as_str(), "no wider"),
        (wide.as_str(), deny, "nothing is known of what it is for"),
        (wide.as_str(), (two + &accept(443)).as_str(), "tests in plenty: it is meant"),
        (format!("{narrow}{}", rule("tag:router", "tag:server:*")).as_str(), accept(22).as_str(), "others"),
        (format!("{narrow}{}", rule("alice@", "tag:router:*")).as_str(), accept(22).as_str(), "elsewhere"),
        (rule("alice@", "tag:server:20-1000").as_str(), accept(22).as_str(), "a range is chosen"),
    ] {
        assert_eq!(doubts(rules, tests), [], "{why}");
    }
    let many: String = (0..30).map(|_| wide.as_str()).collect();
    assert_eq!(doubts(&many, &accept(22)).len(), 10);
}

#[test]
fn protocols_and_ports_have_to_match() {
    let udp = acl("alice@", "tag:server:50-60", r#", "proto": "udp""#);
    assert!(holds(&udp, r#"{"src": "alice@", "proto": "udp", "accept": ["tag:server:53"]}"#));
    assert!(holds(
        &udp,
        r#"{"src": "alice@", "proto": "17", "accept": ["tag:server:53"], "deny": ["tag:server:61"]}"#
    ));
    assert!(holds(&udp, r#"{"src": "alice@", "accept": ["tag:server:53"]}"#), "no protocol: any will do");
    assert!(holds(&udp, r#"{"src": "alice@", "proto": "tcp", "deny": ["tag:server:53"]}"#));
    let any = acl("alice@", "tag:server:*", "");
    assert!(holds(&any, r#"{"src": "alice@", "proto": "SCTP", "accept": ["tag:server:53"]}"#));
    assert!(
        !holds(&any, r#"{"src": "alice@", "proto": "icmp", "deny": ["tag:server:53"]}"#),
        "never with icmp"
    );
}

#[test]
fn grants_count_and_what_is_per_node_does_not() {
    let test = r#"{"src": "alice@", "accept": ["tag:server:22"]}"#;
    let grant = |more: &str| {
        format!(
            r#""grants": [{{"src": ["alice@"], "dst": ["tag:server"], "ip": ["udp:53", "tcp:22"]{more}}}]"#
        )
    };
    assert!(holds(&grant(""), test));
    assert!(!holds(&grant(r#", "via": ["tag:router"]"#), test), "via is no part of the global rules");
    assert!(!holds(&grant(""), r#"{"src": "alice@", "proto": "udp", "accept": ["tag:server:22"]}"#));
    let own = acl("autogroup:member", "autogroup:self:22", "");
    assert!(!holds(&own, r#"{"src": "alice@", "accept": ["alice@:22"]}"#), "neither is self");
    assert!(
        holds("\"hosts\": {}".replace("\"hosts\": {}", "\"randomizeClientPort\": true").as_str(), test),
        "no rules: all reach all"
    );
    assert!(!holds("\"acls\": []", test));
}

#[test]
fn malformed_tests_fail_wherever_they_are_wrong() {
    let rule = acl("*", "*:*", "");
    let bad = [
        r#"{"src": "alice@"}"#,
        r#"{"accept": ["tag:server:22"]}"#,
        r#"{"src": "", "accept": ["tag:server:22"]}"#,
        r#"{"src": "tag:unknown", "accept": ["tag:server:22"]}"#,
        r#"{"src": "tag:none", "accept": ["tag:server:22"]}"#,
        r#"{"src": "nobody@", "accept": ["tag:server:22"]}"#,
        r#"{"src": "autogroup:self", "accept": ["tag:server:22"]}"#,
        r#"{"src": "autogroup:internet", "accept": ["tag:server:22"]}"#,
        r#"{"src": "alice@", "accept": ["tag:none:22"]}"#,
        r#"{"src": "alice@", "accept": ["*:22"]}"#,
        r#"{"src": "alice@", "accept": ["net:22"]}"#,
        r#"{"src": "alice@", "accept": ["10.9.9.9/32:22"]}"#,
        r#"{"src": "alice@", "accept": ["fd7a:115c:a1e0::1:8:22"]}"#,
        r#"{"src": "alice@", "accept": ["[100.64.1.8]:22"]}"#,
        r#"{"src": "alice@", "accept": ["autogroup:self:22"]}"#,
        r#"{"src": "alice@", "accept": ["svc:web:22"]}"#,
        r#"{"src": "alice@", "accept": ["tag:server:0"]}"#,
        r#"{"src": "alice@", "accept": ["tag:server:65536"]}"#,
        r#"{"src": "alice@", "accept": ["tag:server:+22"]}"#,
        r#"{"src": "alice@", "accept": ["tag:server"]}"#,
        r#"{"src": "alice@", "accept": [""]}"#,
    ];
    for test in bad {
        let found = failing(&format!("{rule},\n\"tests\": [{test}]"));
        assert_eq!(found.len(), 1, "{test}");
        assert!(found[0].message.starts_with("test(s) failed: tests[0]: "), "{test}: {}", found[0].message);
        assert!(found[0].line == 7 && !found[0].hint.is_empty(), "{test}");
        let denied = test.replace("accept", "deny");
        assert_eq!(failing(&format!("\"acls\": [],\n\"tests\": [{denied}]")).len(), 1, "{denied}");
    }
    let good = [
        r#"{"src": "alice@", "accept": ["[fd7a:115c:a1e0::1:8]:22", "lonely:22", "100.64.1.8:22", " tag:server:22 "]}"#,
        r#"{"src": " group:all ", "accept": ["ipset:lan:22", "autogroup:tagged:22"]}"#,
        r#"{"src": "autogroup:member", "accept": ["lonely:1", "lonely:65535"]}"#,
        r#"{"src": "net", "accept": ["tag:server:22"]}"#,
        r#"{"src": "lonely", "deny": ["tag:server:22"]}"#,
        r#"{"src": "*", "accept": ["tag:server:22"]}"#,
        r#"{"src": "100.64.1.2", "accept": ["tag:server:22"]}"#,
    ];
    for test in good {
        assert!(holds(&rule, test), "{test}: {:?}", failing(&format!("{rule},\n\"tests\": [{test}]")));
    }
}

#[test]
fn address_sets_overlap_as_addresses_do() {
    let lan = acl("alice@", "ipset:lan:22", "");
    let set = |address: &str| format!(r#"{{"src": "alice@", "accept": ["{address}:22"]}}"#);
    assert!(holds(&lan, &set("10.33.1.1")));
    assert!(!holds(&lan, &set("10.33.9.1")), "taken out of the set");
    assert!(holds(&acl("alice@", "10.33.1.0/24:22", ""), &set("ipset:lan")));
    assert!(!holds(&acl("alice@", "10.33.9.0/24:22", ""), &set("ipset:lan")));
    assert!(holds(&acl("alice@", "100.64.1.8:22", ""), &set("tag:server")), "one address of the server");
    assert!(!holds(&acl("alice@", "100.64.1.8:22", ""), &set("[fd7a:115c:a1e0::1:8]")), "not the other one");
    assert!(holds(&acl("alice@", "tag:server:22", ""), &set("[fd7a:115c:a1e0::1:8]")));
}

#[test]
fn posture_is_what_the_test_says_or_what_is_known() {
    let rule = acl("alice@", "tag:server:22", r#", "srcPosture": ["posture:linux"]"#);
    let test = |attrs: &str| format!(r#"{{"src": "alice@", "accept": ["tag:server:22"]{attrs}}}"#);
    assert!(!holds(&rule, &test("")), "nothing is known of her devices");
    assert!(holds(&rule, &test(r#", "srcPostureAttrs": {"node:os": "linux"}"#)));
    assert!(!holds(&rule, &test(r#", "srcPostureAttrs": {"node:os": "windows"}"#)));
    let mut world = world();
    for node in [1, 2] {
        let attributes = &mut world.nodes.get_mut(&NodeId(node)).unwrap().attributes;
        attributes.insert("node:os".into(), AttrValue::Text("linux".into()));
    }
    let text = format!("{{{HEAD}, {rule}, \"tests\": [{}]}}", test(""));
    assert!(Policy::parse(&text).unwrap().compile(&world).failing_tests().is_empty());
}

#[test]
fn at_most_fifty_failures_are_told() {
    let test = r#"{"src": "alice@", "accept": ["tag:server:1", "tag:server:2", "tag:server:3"]},"#;
    assert_eq!(failing(&format!("\"acls\": [], \"tests\": [{}]", test.repeat(40))).len(), 50);
    let ssh = r#"{"src": "alice@", "dst": ["tag:server"], "accept": ["a", "b", "c"]},"#;
    assert_eq!(failing(&format!("\"acls\": [], \"sshTests\": [{}]", ssh.repeat(40))).len(), 50);
}

const SSH: &str = r#""ssh": [
    {"action": "accept", "src": ["alice@"], "dst": ["tag:server"], "users": ["autogroup:nonroot"]},
    {"action": "check", "src": ["alice@"], "dst": ["tag:server"], "users": ["root"]},
    {"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self"], "users": ["root"]}]"#;

fn ssh_failing(test: &str) -> Vec<String> {
    failing(&format!("{SSH}, \"sshTests\": [{test}]")).into_iter().map(|f| f.message).collect()
}

#[test]
fn logins_are_accepted_checked_or_refused() {
    let good = [
        r#"{"src": "alice@", "dst": ["tag:server"], "accept": ["ubuntu", "root"], "check": ["root"]}"#,
        r#"{"src": "bob@example.com", "dst": ["tag:server"], "deny": ["root", "ubuntu"]}"#,
        r#"{"src": "group:all", "dst": ["autogroup:self"], "accept": ["root"], "deny": ["ubuntu"]}"#,
        r#"{"src": "100.64.1.2", "dst": ["server4", "100.64.1.8"], "accept": ["ubuntu"]}"#,
        r#"{"src": "tag:router", "dst": ["alice@"], "deny": ["root"]}"#,
    ];
    for test in good {
        assert_eq!(ssh_failing(test), [""; 0], "{test}");
    }
    let bad = [
        (r#"{"src": "alice@", "dst": ["tag:server"], "check": ["ubuntu"]}"#, "without the check"),
        (r#"{"src": "alice@", "dst": ["tag:server"], "deny": ["root"]}"#, "\"deny\" forbids"),
        (r#"{"src": "group:all", "dst": ["tag:server"], "accept": ["ubuntu"]}"#, "on n3 into"),
        (r#"{"src": "alice@", "dst": ["tag:server"], "accept": [""]}"#, "empty"),
        (r#"{"src": "alice@", "dst": ["tag:server"]}"#, "asserts nothing"),
        (r#"{"src": "alice@", "dst": [], "accept": ["root"]}"#, "\"dst\" is missing"),
        (r#"{"dst": ["tag:server"], "accept": ["root"]}"#, "\"src\" is missing"),
        (r#"{"src": "tag:none", "dst": ["tag:server"], "deny": ["root"]}"#, "has no node"),
        (r#"{"src": "alice@", "dst": ["tag:none"], "deny": ["root"]}"#, "has no node"),
        (r#"{"src": "tag:router", "dst": ["autogroup:self"], "deny": ["root"]}"#, "has no node"),
        (r#"{"src": "alice@", "dst": ["fd7a:115c:a1e0::1:8"], "deny": ["root"]}"#, "cannot be a destination"),
    ];
    for (test, words) in bad {
        let found = ssh_failing(test);
        assert_eq!(found.len(), 1, "{test}: {found:?}");
        assert!(found[0].starts_with("test(s) failed: sshTests[0]: "), "{}", found[0]);
        assert!(found[0].contains(words), "{test}: {}", found[0]);
    }
}

#[test]
fn an_ssh_failure_names_the_rule() {
    let found = failing(&format!(
        "{SSH},\n\"sshTests\": [{{\"src\": \"alice@\", \"dst\": [\"tag:server\"], \"deny\": [\"root\"]}}]"
    ));
    assert_eq!(found[0].hint, "ssh[1] (line 8) lets it in");
    assert_eq!((found[0].line, found[0].column), (10, 64));
}
