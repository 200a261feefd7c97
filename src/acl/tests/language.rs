//! The language as text: what is read, what is refused, in which words, and what is warned of.

use super::*;
use crate::acl::ast::{Alias, Compare, OneCgnatRoute, SshAction, SshUser};

/// Names every fragment below may use.
const NAMES: &str = r#"
    "groups": {"group:a": ["alice@"]},
    "hosts": {"web": "10.0.0.1", "net": "10.0.0.0/8"},
    "ipsets": {"ipset:s": ["10.0.0.0/8", "remove 10.1.0.0/16"]},
    "tagOwners": {"tag:server": [], "tag:router": []},
    "postures": {"posture:p": ["node:os == 'linux'"]},
"#;

fn with_names(fragment: &str) -> String {
    format!("{{{NAMES}{fragment}}}")
}

fn acl(src: &str, dst: &str) -> String {
    with_names(&format!(r#""acls": [{{"action": "accept", "src": [{src}], "dst": [{dst}]}}]"#))
}

fn grant(rest: &str) -> String {
    with_names(&format!(r#""grants": [{{"src": ["*"], "dst": ["tag:server"], {rest}}}]"#))
}

fn ssh(rest: &str) -> String {
    with_names(&format!(r#""ssh": [{{"src": ["group:a"], "dst": ["tag:server"], {rest}}}]"#))
}

fn ssh_between(src: &str, dst: &str) -> String {
    with_names(&format!(
        r#""ssh": [{{"action": "accept", "src": [{src}], "dst": [{dst}], "users": ["root"]}}]"#
    ))
}

fn accepted(text: &str) -> Policy {
    Policy::parse(text).unwrap_or_else(|faults| panic!("{text}\n{faults:#?}"))
}

#[track_caller]
fn refused(text: &str, message: &str) {
    let found = Policy::parse(text).map(|_| ()).unwrap_err();
    assert!(found.iter().any(|f| f.message.contains(message)), "{text}\n{message}\n{found:#?}");
    assert!(found.iter().all(|f| !f.hint.is_empty() && f.line >= 1 && f.column >= 1), "{found:#?}");
}

#[test]
fn captured_texts_are_among_the_faults() {
    for (text, message) in [
        (acl(r#""tag:x""#, r#""*:*""#), r#"src=tag not found: "tag:x""#),
        (acl(r#""*""#, r#""tag:x:22""#), r#"dst="tag:x": tag not found: "tag:x""#),
        (acl(r#""autogroup:self""#, r#""*:*""#), r#""autogroup:self" not valid on the src side of a rule"#),
        (
            acl(r#""web""#, r#""autogroup:self:*""#),
            "autogroup:self can only be used with users, groups, or supported autogroups",
        ),
        (acl(r#""*""#, r#""autogroup:danger-all:*""#), "cannot use autogroup:danger-all as a dst"),
        (acl(r#""*""#, r#""tag:server:ssh""#), r#"dst="tag:server:ssh": port range "ssh": invalid first integer"#),
        (
            acl(r#""*""#, r#""autogroup:self""#),
            r#"dst="autogroup:self": port range "self": invalid first integer"#,
        ),
        (with_names(r#""acls": [{"action": "deny"}]"#), r#"action="deny" is not supported"#),
        (grant(r#""ip": ["icmp"]"#), r#"port range "icmp": invalid first integer"#),
        (grant(r#""ip": ["tcp:0"]"#), r#"port range "0": first port must be >0, or use '*' for wildcard"#),
        (grant(r#""ip": []"#), "ip and app can not both be empty"),
        (grant(r#""app": {}"#), "ip and app can not both be empty"),
        (grant(r#""app": {"https://a.b/c": []}"#), "capability name must have the form {domain}/{path}"),
        (
            grant(r#""app": {"tailscale.com/cap/funnel": []}"#),
            "capability name must not be in the tailscale.com domain",
        ),
        (grant(r#""ip": ["*"], "via": ["tag:x"]"#), r#"tag "tag:x" not found"#),
        (grant(r#""ip": ["*"], "via": ["group:a"]"#), "via can only be a tag"),
        (
            r#"{"grants": [{"src": ["*"], "dst": ["autogroup:internet"], "ip": ["*"], "app": {"a.b/c": []}}]}"#.to_owned(),
            "cannot use app grants with autogroup:internet",
        ),
        (
            r#"{"grants": [{"src": ["*"], "dst": ["::/0"], "ip": ["*"]}]}"#.to_owned(),
            r#"dst "::/0": to allow all IP addresses, use "*" or "autogroup:internet""#,
        ),
        (
            r#"{"grants": [{"src": ["*"], "dst": ["autogroup:self"], "ip": ["*"]}]}"#.to_owned(),
            "autogroup:self can only be used with users, groups, or supported autogroups",
        ),
        (
            r#"{"tagOwners": {"tag:1x": []}}"#.to_owned(),
            r#"tagOwners["tag:1x"]: tag names must start with a letter, after 'tag:'"#,
        ),
        (
            r#"{"groups": {"group:a": ["group:b"], "group:b": []}}"#.to_owned(),
            r#"groups["group:a"]: "group:b": group members cannot be recursive"#,
        ),
        (with_names(r#""nodeAttrs": [{"target": ["tag:x"]}]"#), r#"tag not found: "tag:x""#),
        (with_names(r#""nodeAttrs": [{"target": ["%bogus%"]}]"#), r#""%bogus%": invalid address"#),
        (
            with_names(r#""nodeAttrs": [{"target": ["*"], "ipPool": ["100.100.100.0/24"]}]"#),
            "IPPool(100.100.100.0/24): network within reserved range",
        ),
        (ssh(r#""users": ["root"]"#), "action must be specified"),
        (ssh(r#""action": "", "users": ["root"]"#), "action must be specified"),
        (ssh(r#""action": "deny", "users": ["root"]"#), r#""deny" is not a valid action"#),
        (ssh(r#""action": "Accept", "users": ["root"]"#), r#""Accept" is not a valid action"#),
        (ssh(r#""action": "accept""#), "users must be specified"),
        (ssh(r#""action": "accept", "users": null"#), "users must be specified"),
        (ssh(r#""action": "accept", "users": []"#), "users must be specified"),
        (ssh(r#""action": "accept", "users": ["root", ""]"#), r#"user "" is not valid"#),
        (ssh(r#""action": "accept", "users": ["*"]"#), r#"user "*" is not valid"#),
        (ssh(r#""action": "accept", "users": ["a"], "acceptEnv": [""]"#), "acceptEnv values cannot be empty"),
        (
            ssh(r#""action": "check", "users": ["a"], "checkPeriod": "abc""#),
            r#"time: invalid duration "abc""#,
        ),
        (
            ssh(r#""action": "check", "users": ["a"], "checkPeriod": "-1m""#),
            "checkPeriod -1m0s must be a positive duration",
        ),
        (
            ssh(r#""action": "check", "users": ["a"], "checkPeriod": "168h0m1s""#),
            "checkPeriod 168h0m1s is above the max (168h)",
        ),
        (
            ssh(r#""action": "check", "users": ["a"], "checkPeriod": "200h""#),
            "checkPeriod 200h0m0s is above the max (168h)",
        ),
        (ssh_between(r#""group:a""#, r#""web""#), r#"invalid dst "web""#),
        (
            with_names(r#""sshTests": [{"src": "alice@", "dst": ["autogroup:internet"]}]"#),
            r#"SSH tests dst contains disallowed element "autogroup:internet""#,
        ),
        (
            with_names(r#""sshTests": [{"src": "alice@", "dst": ["net"]}]"#),
            r#"SSH tests dst contains disallowed element "net""#,
        ),
        (
            with_names(r#""sshTests": [{"src": "alice@", "dst": ["tag:server:22"]}]"#),
            r#"SSH tests dst contains unknown tag "tag:server:22""#,
        ),
        (with_names(r#""tests": [{"src": ["alice@"]}]"#), "test(s) failed"),
    ] {
        refused(&text, message);
    }
}

/// SEMANTICS.md 4.3, cell by cell.
#[test]
fn every_alias_stands_where_it_may_and_nowhere_else() {
    let word = |name: &str| match name {
        "user" => "alice@".to_owned(),
        "domain" => "user:*@example.com".to_owned(),
        "group" => "group:a".to_owned(),
        "tag" => "tag:server".to_owned(),
        "host" => "web".to_owned(),
        "ip" => "10.0.0.1".to_owned(),
        "cidr" => "10.0.0.0/8".to_owned(),
        "range" => "10.0.0.1-10.0.0.9".to_owned(),
        "ipset" => "ipset:s".to_owned(),
        "svc" => "svc:x".to_owned(),
        "role" => "autogroup:admin".to_owned(),
        "*" => "*".to_owned(),
        other => format!("autogroup:{other}"),
    };
    // acl src and dst, grant src and dst, ssh src and dst, nodeAttrs, tagOwners, autoApprovers
    let table = [
        ("*", "YYYY--Y--"),
        ("user", "YYYYYYYYY"),
        ("domain", "YYYYYY---"),
        ("group", "YYYYY-YYY"),
        ("tag", "YYYYYYYYY"),
        ("host", "YYYY--Y--"),
        ("ip", "YYYY--Y--"),
        ("cidr", "YYYY--Y--"),
        ("range", "YYYY--Y--"),
        ("ipset", "YYYY-----"),
        ("svc", "-Y-Y-----"),
        ("member", "YYYYYYYYY"),
        ("tagged", "YYYYYYY--"),
        ("self", "-Y-Y-Y---"),
        ("internet", "-Y-Y-----"),
        ("danger-all", "Y-Y------"),
        ("shared", "Y-Y------"),
        ("nonroot", "---------"),
        ("role", "YYYYYYYYY"),
        ("nobody", "---------"),
    ];
    for (name, row) in table {
        let word = word(name);
        let quoted = format!("{word:?}");
        // A source every destination goes with: the word itself for users, tags for tags.
        let partner = match name {
            "user" => "\"alice@\"",
            "tag" | "tagged" => "\"tag:server\"",
            _ => "\"group:a\"",
        };
        let place = |cell: usize| match cell {
            0 => acl(&quoted, r#""*:*""#),
            1 => acl(r#""group:a""#, &format!("\"{word}:*\"")),
            2 => with_names(&format!(r#""grants": [{{"src": [{quoted}], "dst": ["*"], "ip": ["*"]}}]"#)),
            3 => {
                with_names(&format!(r#""grants": [{{"src": ["group:a"], "dst": [{quoted}], "ip": ["*"]}}]"#))
            }
            4 => {
                let dst = if name == "user" { "\"alice@\"" } else { "\"tag:server\"" };
                ssh_between(&quoted, dst)
            }
            5 => ssh_between(partner, &quoted),
            6 => with_names(&format!(r#""nodeAttrs": [{{"target": [{quoted}]}}]"#)),
            7 => format!(
                r#"{{"groups": {{"group:a": []}}, "tagOwners": {{"tag:server": [], "tag:z": [{quoted}]}}}}"#
            ),
            _ => with_names(&format!(r#""autoApprovers": {{"exitNode": [{quoted}]}}"#)),
        };
        for (cell, mark) in row.chars().enumerate() {
            let text = place(cell);
            assert_eq!(Policy::parse(&text).is_ok(), mark == 'Y', "{name} in column {cell}: {text}");
        }
    }
}

#[test]
fn combinations_that_hand_over_too_much_are_refused() {
    for (src, dst) in [
        (r#""tag:server""#, r#""autogroup:self""#),
        (r#""autogroup:tagged""#, r#""autogroup:member""#),
        (r#""group:a", "tag:server""#, r#""autogroup:admin""#),
        (r#""bob@""#, r#""alice@""#),
        (r#""alice@", "bob@""#, r#""alice@""#),
        (r#""group:a""#, r#""alice@""#),
    ] {
        let found = Policy::parse(&ssh_between(src, dst)).unwrap_err();
        assert_eq!(found[0].code, "ssh-combination", "{src} {dst}");
    }
    accepted(&ssh_between("", r#""alice@""#));
    accepted(&ssh_between(r#""alice@""#, ""));
    accepted(&acl(r#""*""#, r#""autogroup:self:*""#));
    refused(&acl(r#""group:a", "tag:server""#, r#""autogroup:self:*""#), "autogroup:self can only be used");
}

#[test]
fn the_whole_language_is_read_into_its_types() {
    let policy = accepted(
        r#"{
        "groups": {"group:a": ["alice@", "bob@example.com"], "group:sync@example.com": []},
        "hosts": {"web": "10.0.0.1"},
        "ipsets": {
            "ipset:s": ["10.0.0.0/8", "remove 10.1.0.0/16", "add host:web", "web", "fd7a::1-fd7a::9"],
            "ipset:t": ["ipset:s", "autogroup:internet"],
        },
        "tagOwners": {"tag:server": ["autogroup:admin", "tag:server"], "tag:router": ["autogroup:member"]},
        "postures": {"posture:p": ["node:os IN ['linux', 'macos']", "custom:x NOT SET"]},
        "defaultSrcPosture": ["posture:p"],
        "autoApprovers": {
            "routes": {"10.0.0.0/8": ["tag:router"], "0.0.0.0/0": ["group:a"]},
            "exitNode": ["autogroup:network-admin"],
            "services": {"svc:x": ["tag:server"], "tag:server": []},
        },
        "acls": [{"action": "accept", "src": ["ipset:s"], "dst": ["ipset:t:443", "svc:x:80"], "srcPosture": []}],
        "grants": [{
            "src": ["user:*@example.com"], "dst": ["10.0.0.0/8"], "ip": ["443", "udp:53-60", "icmp:*", "47", "*"],
            "app": {"example.com/cap/x": [{"a": [1, 2.5, null]}], "tailscale.com/cap/drive": null},
            "via": ["tag:router"], "srcPosture": ["posture:p"],
        }],
        "ssh": [
            {"action": " check\t", "checkPeriod": "1h30m", "src": ["group:a"], "dst": ["autogroup:self"],
             "users": ["root", "autogroup:nonroot", "localpart:*@example.com", "localpart:*@", "\tadm "],
             "acceptEnv": ["LC_*", " X"], "recorder": ["tag:server", "100.64.0.9"], "enforceRecorder": true},
            {"action": "check", "checkPeriod": "always", "users": ["a"]},
            {"action": "check", "users": ["a"]},
        ],
        "nodeAttrs": [{"target": ["*"], "attr": ["funnel", "nextdns:x"], "ipPool": ["100.85.0.0/16"],
                       "app": {"tailscale.com/app-connectors": [{"name": "x"}]}}],
        "tests": [{"src": "alice@", "proto": "tcp", "accept": ["web:80"], "deny": ["web:22"],
                   "srcPostureAttrs": {"node:os": "linux"}}],
        "sshTests": [{"src": "alice@", "dst": ["tag:server"], "accept": ["a"], "deny": ["b"], "check": ["c"]}],
        "derpMap": {"OmitDefaultRegions": true, "Regions": {
            "900": {"RegionID": 900, "RegionCode": "own", "Nodes": [
                {"Name": "900a", "HostName": "relay.example.com", "IPv6": "none", "STUNPort": -1, "DERPPort": 8443}]},
            "1": null,
        }},
        "disableIPv4": true, "OneCGNATRoute": "mac-never", "randomizeClientPort": true,
    }"#,
    );
    let file = policy.ast();
    let set = &file.ipsets["ipset:s"].value;
    assert_eq!(set.iter().map(|e| e.add).collect::<Vec<_>>(), [true, false, true, true, true]);
    assert_eq!(set[2].target.value, set[3].target.value);
    assert_eq!(file.postures["posture:p"].value[1].value.compare, Compare::NotSet);
    assert_eq!(file.acls.as_ref().unwrap()[0].posture, Some(Vec::new()));
    let grant = &file.grants.as_ref().unwrap()[0];
    assert_eq!(grant.src[0].value, Alias::Domain("example.com".into()));
    let ip: Vec<_> = grant.ip.iter().map(|e| (e.protocol, e.ports[0].first, e.ports[0].last)).collect();
    assert_eq!(
        ip,
        [(None, 443, 443), (Some(17), 53, 60), (Some(1), 0, 65535), (None, 47, 47), (None, 0, 65535)]
    );
    assert_eq!(grant.app["example.com/cap/x"][0], serde_json::json!({"a": [1, 2.5, null]}));
    assert!(grant.app["tailscale.com/cap/drive"].is_empty());
    let rule = &file.ssh[0];
    assert_eq!(rule.action, SshAction::Check(Some(std::time::Duration::from_secs(5400))));
    let users: Vec<_> = rule.users.iter().map(|u| u.value.clone()).collect();
    assert_eq!(
        users,
        [
            SshUser::Root,
            SshUser::NonRoot,
            SshUser::LocalPart("example.com".into()),
            SshUser::Literal("localpart:*@".into()),
            SshUser::Literal("adm".into()),
        ]
    );
    assert_eq!(rule.accept_env.as_ref().unwrap()[1], " X");
    assert_eq!(file.ssh[1].action, SshAction::Check(None));
    assert_eq!(file.ssh[2].action, SshAction::Check(Some(std::time::Duration::from_secs(43200))));
    assert_eq!(file.auto_approvers.services.len(), 2);
    assert_eq!(file.node_attrs[0].ip_pool.len(), 1);
    assert_eq!(file.tests[0].posture_attrs["node:os"], "linux");
    assert_eq!(file.ssh_tests[0].check[0].value, "c");
    let region = file.derp_map.regions[&900].as_ref().unwrap();
    assert_eq!((region.nodes[0].stun_port, region.nodes[0].derp_port), (-1, 8443));
    assert_eq!(file.derp_map.regions[&1], None);
    assert!(file.disable_ipv4 && file.randomize_client_port && file.derp_map.omit_default_regions);
    assert_eq!(file.one_cgnat_route, OneCgnatRoute::MacNever);
}

#[test]
fn absent_null_and_empty_rules_are_told_apart() {
    let state = |text: &str| {
        let policy = accepted(text);
        (policy.ast().acls.as_ref().map(Vec::len), policy.ast().grants.as_ref().map(Vec::len))
    };
    assert_eq!(state("{}"), (None, None));
    assert_eq!(state(r#"{"acls": null, "grants": null}"#), (None, None));
    assert_eq!(state(r#"{"acls": []}"#), (Some(0), None));
    assert_eq!(state(r#"{"grants": []}"#), (None, Some(0)));
}

#[test]
fn what_no_policy_may_say_is_refused_with_its_code() {
    for (fragment, code) in [
        (r#""ipsets": {"ipset:a": ["ipset:b"], "ipset:b": ["ipset:a"]}"#, "ipset-cycle"),
        (r#""ipsets": {"ipset:a": ["ipset:a"]}"#, "ipset-cycle"),
        (r#""ipsets": {"ipset:a": ["tag:x"]}"#, "alias-place"),
        (r#""ipsets": {"ipset:a": ["autogroup:member"]}"#, "alias-place"),
        (r#""ipsets": {"ipset:a": ["10.0.0.9-10.0.0.1"]}"#, "invalid-alias"),
        (r#""ipsets": {"ipset:a": ["ipset:none"]}"#, "unknown-ipset"),
        (r#""ipsets": {"a": []}"#, "ipset-name"),
        (r#""postures": {"posture:a": ["node:os = 'x'"]}"#, "posture"),
        (r#""postures": {"a": []}"#, "posture-name"),
        (r#""defaultSrcPosture": ["posture:x"]"#, "unknown-posture"),
        (r#""defaultSrcPosture": ["node:os == 'linux'"]"#, "posture-name"),
        (r#""acls": [{"action": "accept", "srcPosture": ["posture:x"]}]"#, "unknown-posture"),
        (r#""acls": [{"action": "accept", "via": []}]"#, "unknown-field"),
        (r#""nodeAttrs": [{"target": ["*"], "ipPool": ["10.0.0.0/8"]}]"#, "ip-pool"),
        (r#""nodeAttrs": [{"target": ["*"], "ipPool": ["100.64.0.0/10"]}]"#, "ip-pool"),
        (r#""nodeAttrs": [{"target": ["*"], "ipPool": ["100.115.92.0/24"]}]"#, "ip-pool"),
        (r#""autoApprovers": {"routes": {"web": []}}"#, "route"),
        (r#""autoApprovers": {"services": {"web": []}}"#, "service"),
        (r#""autoApprovers": {"exitNode": ["group:none"]}"#, "unknown-group"),
        (r#""OneCGNATRoute": "mac""#, "option"),
        (r#""disableIPv4": "yes""#, "wrong-type"),
        (r#""derpMap": {"Regions": {"x": null}}"#, "region"),
        (r#""derpMap": {"Regions": {"900": {"RegionID": 901}}}"#, "region"),
        (r#""derpMap": {"Regions": {"900": {"Nodes": [{"Name": "a"}]}}}"#, "relay"),
        (
            r#""derpMap": {"Regions": {"900": {"Nodes": [{"Name": "a", "HostName": "b", "DERPPort": 70000}]}}}"#,
            "relay",
        ),
        (r#""grants": [{"src": ["*"], "dst": ["*"], "ip": ["icmp:80"]}]"#, "ports"),
        (r#""grants": [{"src": ["*"], "dst": ["*"], "ip": ["tcp:80:90"]}]"#, "ports"),
        (r#""grants": [{"src": ["*"], "dst": ["*"], "ip": [":80"]}]"#, "ports"),
        (r#""grants": [{"src": ["*"], "dst": ["*"], "app": {"x": []}}]"#, "capability"),
        (r#""grants": [{"src": ["*"], "dst": ["*"], "app": {"Tailscale.com/cap/drive": []}}]"#, "capability"),
        (r#""ssh": [{"action": "accept", "users": ["a"], "recorder": ["10.0.0.0/8"]}]"#, "alias-place"),
        (r#""extraDNSRecords": []"#, "unknown-field"),
    ] {
        let found = Policy::parse(&format!("{{\n{fragment}}}")).unwrap_err();
        assert_eq!((found[0].code, found[0].line), (code, 2), "{fragment}: {found:?}");
        assert!(!found[0].hint.is_empty(), "{fragment}");
    }
}

#[test]
fn the_nearest_name_of_every_kind_is_offered() {
    for (text, hint) in [
        (acl(r#""group:b""#, r#""*:*""#), "did you mean group:a?"),
        (acl(r#""wep""#, r#""*:*""#), "did you mean web?"),
        (acl(r#""server""#, r#""*:*""#), "did you mean tag:server?"),
        (acl(r#""member""#, r#""*:*""#), "did you mean autogroup:member?"),
        (acl(r#""autogroup:membr""#, r#""*:*""#), "did you mean autogroup:member?"),
        (acl(r#""ipset:t""#, r#""*:*""#), "did you mean ipset:s?"),
        (grant(r#""ip": ["*"], "srcPosture": ["posture:q"]"#), "did you mean posture:p?"),
        (grant(r#""app": {"tailscale.com/cap/drvie": []}"#), "did you mean tailscale.com/cap/drive?"),
        (with_names(r#""gropus": {}"#), "did you mean groups?"),
        (ssh(r#""action": "acept", "users": ["a"]"#), "did you mean \"accept\"?"),
        (
            with_names(r#""tests": [{"src": "alice@", "allow": []}]"#),
            "what must be reachable is called accept",
        ),
    ] {
        let found = Policy::parse(&text).unwrap_err();
        assert_eq!(found[0].hint, hint, "{text}: {found:?}");
    }
}

#[test]
fn limits_name_the_limit_and_what_was_found() {
    let many = format!("{{\"tests\": [{}], \"acls\": [{}]}}", "{},".repeat(600_000), "{},".repeat(400_001));
    let found = Policy::parse(&many).unwrap_err();
    assert_eq!((found.len(), found[0].code), (1, "too-large"));
    assert!(found[0].message.contains("1000001") && found[0].message.contains("1000000"), "{found:?}");
    let chain: Vec<String> =
        (0..5000).map(|n| format!("\"ipset:{n}\": [\"ipset:{}\", \"ipset:{0}\"]", n + 1)).collect();
    let text = format!("{{\"ipsets\": {{{}, \"ipset:5000\": [\"10.0.0.1\"]}}}}", chain.join(","));
    assert_eq!(Policy::parse(&text).unwrap_err()[0].code, "too-large");
    let twenty: Vec<String> =
        (0..25).map(|n| format!("\"ipset:{n}\": [\"ipset:{}\", \"ipset:{0}\"]", n + 1)).collect();
    let text = format!("{{\"ipsets\": {{{}, \"ipset:25\": [\"10.0.0.1\"]}}}}", twenty.join(","));
    assert!(Policy::parse(&text).unwrap_err()[0].message.contains("more than the limit of 1000000"));
}

#[test]
fn foreign_mail_domains_stop_a_policy() {
    let text = r#"{
        "acls": [{"action": "accept", "src": ["user:*@example.com"], "dst": ["user:*@a.example:22"]}],
        "grants": [{"src": ["user:*@b.example"], "dst": ["*"], "ip": ["*"]}],
        "ssh": [{"action": "accept", "src": ["user:*@c.example"], "dst": ["autogroup:member"],
                 "users": ["localpart:*@EXAMPLE.COM", "localpart:*@example.com", "localpart:*@*"]}],
    }"#;
    let policy = accepted(text);
    let world = World { domains: ["example.com".to_owned()].into(), ..world() };
    let found = policy.mistakes(&world);
    let heads: Vec<&str> =
        found.iter().filter_map(|f| f.message.split_once(" is not")).map(|(a, _)| a).collect();
    assert_eq!(heads, ["a.example", "b.example", "[ssh] c.example", "EXAMPLE.COM", "*"]);
    assert!(found.iter().all(|f| {
        f.message.ends_with(
            "is not associated with this Tailnet and cannot be used in user:*@<domain> expressions",
        )
    }));
    assert_eq!(found[3].hint, "did you mean example.com?");
    assert_eq!(found[0].hint, "the tailnet's domains are example.com; upper and lower case count");
    assert!(accepted("{}").mistakes(&World::default()).is_empty());
}

fn warned(text: &str) -> Vec<(&'static str, u32)> {
    accepted(text).warnings(&world()).iter().map(|w| (w.code, w.line)).collect()
}

#[test]
fn old_spellings_work_and_are_noted() {
    let text = "{\n\"ACLs\": [{\n\"Action\": \"accept\",\n\"Users\": [\"*\"],\n\"Ports\": [\"*:*\"]}]}";
    assert_eq!(accepted(text).ast().acls.as_ref().unwrap()[0].dst.len(), 1);
    assert_eq!(
        warned(text),
        [("old-spelling", 2), ("old-spelling", 3), ("old-spelling", 4), ("old-spelling", 5)]
    );
    assert_eq!(accepted(text).warnings(&world())[2].hint, "write \"src\"");
}

#[test]
fn parts_without_effect_are_said_once() {
    let text = r#"{
        "tagOwners": {"tag:server": []},
        "acls": [{"action": "accept", "src": ["*"], "dst": ["svc:x:80", "tag:server:22"]},
                 {"action": "accept", "src": ["autogroup:member"], "dst": ["svc:y:80", "tag:server:*"], "proto": "sctp"}],
        "autoApprovers": {"services": {"svc:x": ["tag:server"],
                                       "svc:y": ["tag:server"]}},
        "ssh": [{"action": "check", "src": ["alice@"], "dst": ["tag:server"], "users": ["root"], "recorder": ["tag:server"]},
                {"action": "check", "src": ["alice@"], "dst": ["tag:server"], "users": ["a"]}],
        "nodeAttrs": [{"target": ["*"], "app": {"tailscale.com/app-connectors": []}}],
    }"#;
    let found = warned(text);
    assert_eq!(
        found,
        [("no-effect", 3), ("no-effect", 5), ("no-effect", 7), ("no-effect", 7), ("no-effect", 9)]
    );
}

#[test]
fn names_that_stand_nowhere_are_told() {
    let text = r#"{
        "groups": {"group:used": ["alice@"],
                   "group:idle": ["alice@"]},
        "hosts": {"idle": "10.0.0.1"},
        "ipsets": {"ipset:idle": ["10.0.0.2"]},
        "tagOwners": {"tag:server": [],
                      "tag:idle": []},
        "postures": {"posture:idle": []},
        "acls": [{"action": "accept", "src": ["group:used"], "dst": ["tag:server:22"]}],
    }"#;
    assert_eq!(warned(text), [3, 4, 5, 7, 8].map(|line| ("unused", line)));
    let many: Vec<String> = (0..40).map(|n| format!("\"h{n}\": \"10.0.0.1\"")).collect();
    let found = accepted(&format!("{{\"hosts\": {{{}}}}}", many.join(",\n"))).warnings(&world());
    assert_eq!(found.len(), 1);
    assert!(found[0].message.starts_with("40 names of hosts stand in no rule"), "{found:?}");
}

#[test]
fn rules_that_say_nothing_new_are_told() {
    let rule = |rest: &str| format!("{{\"action\": \"accept\", {rest}}}");
    let shadowed = |first: &str, second: &str| {
        let text = format!("{{\"acls\": [\n{},\n{}]}}", rule(first), rule(second));
        warned(&text).contains(&("shadowed", 3))
    };
    let wide = r#""src": ["autogroup:member", "10.0.0.0/8"], "dst": ["10.33.0.0/16:20-90", "*:443"]"#;
    assert!(shadowed(wide, wide));
    assert!(shadowed(wide, r#""src": ["alice@"], "dst": ["10.33.7.0/24:22,80"]"#));
    assert!(shadowed(
        wide,
        r#""src": ["alice@", "10.1.0.0/16"], "dst": ["bob@example.com:443"], "proto": "tcp""#
    ));
    assert!(!shadowed(wide, r#""src": ["alice@"], "dst": ["10.33.7.0/24:22,91"]"#));
    assert!(!shadowed(wide, r#""src": ["alice@", "tag:server"], "dst": ["*:443"]"#.replace("tag:server", "autogroup:tagged").as_str()));
    assert!(!shadowed(wide, r#""src": ["alice@"], "dst": ["*:443"], "proto": "sctp""#));
    assert!(!shadowed(r#""src": ["*"], "dst": ["*:*"], "proto": "tcp""#, r#""src": ["*"], "dst": ["*:*"]"#));
    assert!(!shadowed(r#""src": ["*"], "dst": ["*:*"]"#, r#""src": ["192.0.2.0/24"], "dst": ["*:*"]"#));
    let posture = r#"{"postures": {"posture:p": ["node:os == 'linux'"]}, "acls": [
        {"action": "accept", "src": ["*"], "dst": ["*:*"], "srcPosture": ["posture:p"]},
        {"action": "accept", "src": ["*"], "dst": ["*:22"]}]}"#;
    assert_eq!(warned(posture), []);
    let grants = r#"{"tagOwners": {"tag:router": []}, "grants": [
        {"src": ["*"], "dst": ["10.33.0.0/16"], "ip": ["*"], "via": ["tag:router"]},
        {"src": ["*"], "dst": ["10.33.0.0/16"], "ip": ["*"]},
        {"src": ["*"], "dst": ["10.33.0.0/16"], "ip": ["tcp:22"], "app": {"a.example/x": []}},
        {"src": ["*"], "dst": ["10.33.0.0/16"], "ip": ["tcp:22"]}]}"#;
    assert_eq!(warned(grants), [("shadowed", 5)]);
}

#[test]
fn rules_that_match_nobody_today_are_told() {
    let text = r#"{
        "groups": {"group:none": []},
        "tagOwners": {"tag:server": [], "tag:new": []},
        "acls": [
            {"action": "accept", "src": ["group:none", "tag:new"], "dst": ["*:22"]},
            {"action": "accept", "src": ["alice@"], "dst": ["tag:new:22", "autogroup:admin:22"]},
            {"action": "accept", "src": ["alice@"], "dst": ["tag:new:23", "192.0.2.1:23"]},
            {"action": "accept", "src": [], "dst": ["tag:server:24"]},
        ],
        "ssh": [{"action": "accept", "src": ["user:*@example.org"], "dst": ["tag:server"], "users": ["root"]}],
        "nodeAttrs": [{"target": ["tag:new"], "attr": ["funnel"]}],
    }"#;
    assert_eq!(warned(text), [5, 6, 8, 10, 11].map(|line| ("matches-nothing", line)));
}

#[test]
fn tests_that_test_nothing_are_told() {
    let open = r#"{"tests": [{"src": "alice@", "accept": ["10.0.0.1:22"]},
        {"src": "alice@", "accept": ["10.0.0.1:23"], "deny": ["10.0.0.1:24"]},
        {"src": "alice@", "accept": ["10.0.0.1:22"]}]}"#;
    assert_eq!(warned(open), [("idle-test", 1), ("idle-test", 3)]);
    let shut = r#"{"acls": [], "tests": [{"src": "alice@", "deny": ["10.0.0.1:22"]}]}"#;
    assert_eq!(warned(shut), [("idle-test", 1)]);
}

#[test]
fn logins_that_look_like_names_are_noted_and_kept() {
    let text = ssh(r#""action": "accept", "users": ["autogroup:member", "ubuntu"]"#);
    let policy = accepted(&text);
    assert_eq!(policy.ast().ssh[0].users[0].value, SshUser::Literal("autogroup:member".into()));
    assert!(policy.warnings(&world()).iter().any(|w| w.code == "odd-login"));
}

#[test]
fn hostile_policies_end_soon() {
    let names: Vec<String> = (0..3000).map(|n| format!("\"tag:{}{n}\": []", "x".repeat(50))).collect();
    let rules: Vec<String> = (0..3000)
        .map(|n| {
            format!("{{\"action\": \"accept\", \"src\": [\"tag:{}{n}y\"], \"dst\": []}}", "x".repeat(50))
        })
        .collect();
    let text = format!("{{\"tagOwners\": {{{}}}, \"acls\": [{}]}}", names.join(","), rules.join(","));
    assert_eq!(Policy::parse(&text).unwrap_err().len(), 50);
    let same: Vec<String> = (0..3000)
        .map(|n| format!("{{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:{}\"]}}", n + 1))
        .collect();
    let text = format!("{{\"acls\": [{}]}}", same.join(","));
    assert_eq!(accepted(&text).warnings(&world()), []);
}

#[test]
fn many_warnings_of_one_kind_leave_room_for_others() {
    let same = "{\"action\": \"accept\", \"src\": [\"group:none\"], \"dst\": [\"*:1\"]},\n".repeat(200);
    let text = format!(
        "{{\"groups\": {{\"group:none\": []}}, \"acls\": [\n{same}],\n\"hosts\": {{\"idle\": \"10.0.0.1\"}}}}"
    );
    let found = accepted(&text).warnings(&world());
    let count = |code| found.iter().filter(|w| w.code == code).count();
    assert_eq!((count("matches-nothing"), count("shadowed"), count("unused")), (10, 10, 1));
    assert!(found.iter().any(|w| w.hint.ends_with("(190 more like this)")), "{found:?}");
}

/// What tags and tests are told that were not captured: the public client's words for tags, an address
/// with its length, and `test(s) failed` for what has no text of its own (SEMANTICS.md 13, 15).
#[test]
fn neighbours_of_captured_texts_follow_the_rule() {
    let ssh_test = |dst: &str| with_names(&format!(r#""sshTests": [{{"src": "alice@", "dst": [{dst}]}}]"#));
    for (text, message) in [
        (r#"{"tagOwners": {"tag:": []}}"#.to_owned(), r#"tagOwners["tag:"]: tag names must not be empty"#),
        (
            r#"{"tagOwners": {"server": []}}"#.to_owned(),
            r#"tagOwners["server"]: tags must start with 'tag:'"#,
        ),
        (
            r#"{"tagOwners": {"tag:a_b": []}}"#.to_owned(),
            r#"tagOwners["tag:a_b"]: tag names can only contain numbers, letters, or dashes"#,
        ),
        (ssh_between(r#""group:a""#, r#"" 10.0.0.1/32 ""#), r#"invalid dst "10.0.0.1/32""#),
        (ssh_between(r#""10.0.0.1/24""#, r#""tag:server""#), r#"invalid src "10.0.0.1/24""#),
        (ssh_test(r#""*""#), "test(s) failed"),
        (ssh_test(r#""group:a""#), "test(s) failed"),
        (ssh_test(r#""10.0.0.1/32""#), r#"SSH tests dst contains disallowed element "10.0.0.1/32""#),
    ] {
        refused(&text, message);
    }
}
