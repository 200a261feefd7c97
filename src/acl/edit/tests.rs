//! Changes keep comments and layout, and change nothing else.

use proptest::prelude::*;

use super::*;

fn group(user: &str, group: &str) -> Edit {
    Edit::AddUserToGroup { user: user.to_owned(), group: group.to_owned() }
}

fn leave(user: &str, group: &str) -> Edit {
    Edit::RemoveUserFromGroup { user: user.to_owned(), group: group.to_owned() }
}

fn rule(src: &str, dst: &str) -> Edit {
    Edit::AddRule { src: src.to_owned(), dst: dst.to_owned() }
}

fn changed(text: &str, change: &Edit) -> String {
    edit(text, change).unwrap_or_else(|e| panic!("{change:?}: {e:?}\n{text}"))
}

const POLICY: &str = r#"// Ours.
{
  "groups": {
    "group:dev": ["alice@", "bob@"], // the developers
    "group:ops": [
      "carol@", // on call
      "dave@" /* weekends */
    ],
  },
  /* rules */
  "acls": [
    // all
    {"action": "accept", "src": ["group:dev"], "dst": ["*:*"]}, // wide
    {
      "action": "accept", "src": ["group:ops"],
      "dst": ["*:22"]
    }
    // end
  ]
}
"#;

#[test]
fn users_join_groups_in_the_layout_the_group_has() {
    let text = changed(POLICY, &group("erin", "dev"));
    assert_eq!(text, POLICY.replace(r#""bob@"]"#, r#""bob@", "erin@"]"#));
    let text = changed(POLICY, &group("erin@example.com", "group:ops"));
    let want =
        POLICY.replace("\"dave@\" /* weekends */", "\"dave@\", /* weekends */\n      \"erin@example.com\"");
    assert_eq!(text, want);
    assert_eq!(changed(POLICY, &group("alice", "group:dev")), POLICY, "who is in it is in it");
    let text = changed(POLICY, &group("erin", "group:new"));
    assert_eq!(text, POLICY.replace("    ],\n  },", "    ],\n    \"group:new\": [\"erin@\"],\n  },"));
}

#[test]
fn users_leave_groups_with_their_own_comment() {
    assert_eq!(changed(POLICY, &leave("alice", "dev")), POLICY.replace(r#""alice@", "#, ""));
    assert_eq!(changed(POLICY, &leave("bob@", "dev")), POLICY.replace(r#", "bob@""#, ""));
    assert_eq!(changed(POLICY, &leave("carol", "ops")), POLICY.replace("      \"carol@\", // on call\n", ""));
    let want = POLICY.replace("      \"dave@\" /* weekends */\n", "").replace("\"carol@\",", "\"carol@\"");
    assert_eq!(changed(POLICY, &leave("dave", "ops")), want);
    let error = edit(POLICY, &leave("alcie", "dev")).unwrap_err();
    assert_eq!((error.code, error.line), ("unknown-user", 4));
    assert_eq!(error.hint, "did you mean alice@?");
    assert_eq!(edit(POLICY, &leave("alice", "dve")).unwrap_err().hint, "did you mean group:dev?");
}

#[test]
fn rules_come_and_go() {
    let text = changed(POLICY, &rule("alice@", "100.64.0.1:443"));
    let line = r#"{"action": "accept", "src": ["alice@"], "dst": ["100.64.0.1:443"]}"#;
    let want = POLICY.replace("    }\n    // end", &format!("    }},\n    {line}\n    // end"));
    assert_eq!(text, want);
    let text = changed(POLICY, &Edit::RemoveRule { line: 13 });
    assert!(!text.contains("// wide") && text.contains("// all") && text.contains("*:22"), "{text}");
    let text = changed(POLICY, &Edit::RemoveRule { line: 15 });
    assert!(text.contains("\"dst\": [\"*:*\"]} // wide\n    // end"), "{text}");
    let error = edit(POLICY, &Edit::RemoveRule { line: 12 }).unwrap_err();
    assert_eq!((error.line, error.hint.as_str()), (12, "the nearest rule is on line 13"));
    let crowded = "{\"acls\": [{\"action\":\"accept\"}, {\"action\":\"accept\"}]}";
    assert!(edit(crowded, &Edit::RemoveRule { line: 1 }).unwrap_err().message.contains("2 rules"));
}

#[test]
fn the_first_rule_writes_the_default_out() {
    let text = changed("{\n}\n", &rule("alice@", "100.64.0.1"));
    let want = "{\n\t\"acls\": [\n\t\t{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:*\"]},\n\t\t{\"action\": \
                \"accept\", \"src\": [\"alice@\"], \"dst\": [\"100.64.0.1:*\"]},\n\t],\n}\n";
    assert_eq!(text, want);
    let text = changed("{\"acls\": null}", &rule("alice@", "fd7a::1"));
    assert!(text.contains("\"*:*\"") && text.contains("\"[fd7a::1]:*\""), "{text}");
    let text = changed("{\"acls\": []}", &rule("alice@", "autogroup:internet:443"));
    assert!(!text.contains("\"*:*\""), "an empty list denies; it is not the default: {text}");
    let text = changed("{\"grants\": []}", &rule("alice@", "autogroup:tagged:22,80"));
    assert_eq!(
        text,
        "{\"grants\": [{\"src\": [\"alice@\"], \"dst\": [\"autogroup:tagged\"], \"ip\": [\"22,80\"]}]}"
    );
}

#[test]
fn sections_are_made_where_they_are_missing() {
    let tag = Edit::AddTagOwner { tag: "server".into(), owner: "alice".into() };
    assert_eq!(changed("{}", &tag), "{\n\t\"tagOwners\": {\n\t\t\"tag:server\": [\"alice@\"],\n\t},\n}");
    let text = changed("{\n    \"acls\": [] // none\n}", &tag);
    assert_eq!(
        text,
        "{\n    \"acls\": [], // none\n    \"tagOwners\": {\n        \"tag:server\": [\"alice@\"],\n    }\n}"
    );
    let host = Edit::AddHost { name: "web".into(), address: "10.0.0.1".into() };
    assert_eq!(changed("{\"acls\": []}", &host), "{\"acls\": [], \"hosts\": {\"web\": \"10.0.0.1\"}}");
    let group = Edit::AddGroup { group: "dev".into() };
    assert_eq!(changed("{\"groups\": {}}", &group), "{\"groups\": {\"group:dev\": []}}");
    let text = changed("\u{feff}{\r\n\t\"acls\": [],\r\n}\r\n", &group);
    assert_eq!(
        text,
        "\u{feff}{\r\n\t\"acls\": [],\r\n\t\"groups\": {\r\n\t\t\"group:dev\": [],\r\n\t},\r\n}\r\n"
    );
    let test = Edit::AddTest { src: "alice@".into(), dst: "10.0.0.1:22".into(), accept: false };
    let text = changed("{\"tests\": [ // none yet\n]}", &test);
    assert!(text.contains("{\"src\": \"alice@\", \"deny\": [\"10.0.0.1:22\"]}"), "{text}");
}

#[test]
fn what_would_be_a_fault_is_refused() {
    for (change, code) in [
        (rule("tag:nobody", "10.0.0.1:1"), "unknown-tag"),
        (rule("alice@", "tag:nobody:1"), "unknown-tag"),
        (rule("alice@", "10.0.0.1:x"), "port"),
        (Edit::AddHost { name: "a:b".into(), address: "10.0.0.1".into() }, "host-name"),
        (Edit::AddHost { name: "a".into(), address: "ten".into() }, "host-address"),
        (Edit::AddTagOwner { tag: "1x".into(), owner: "alice@".into() }, "tag-name"),
        (group("group:ops", "dev"), "nested-group"),
    ] {
        assert_eq!(edit(POLICY, &change).unwrap_err().code, code, "{change:?}");
    }
    assert_eq!(edit("[", &rule("*", "*")).unwrap_err().code, "syntax");
    assert_eq!(edit("[]", &rule("*", "*")).unwrap_err().code, "wrong-type");
    assert_eq!(edit("{\"groups\": []}", &group("a", "b")).unwrap_err().code, "wrong-type");
    // A fault that was there before stays, and does not stand in the way of mending another.
    let faulty = "{\"acls\": [{\"action\": \"accept\", \"src\": [\"tag:x\"], \"dst\": [\"tag:y:*\"]}]}";
    let tag = Edit::AddTagOwner { tag: "x".into(), owner: "alice".into() };
    assert!(edit(faulty, &tag).is_ok());
}

/// Blanks and comments between words.
fn gap() -> BoxedStrategy<String> {
    let blank = prop_oneof![Just(""), Just(" "), Just("\n"), Just("\n  "), Just("\t"), Just("\r\n")];
    let comment =
        prop_oneof![Just(""), Just(""), Just(""), Just("/* C */"), Just("/* C\n */"), Just("// C ,]}\n")];
    (blank.clone(), comment, blank).prop_map(|(a, b, c)| format!("{a}{b}{c}")).boxed()
}

/// A policy with one group of `users` in any layout.
fn policy() -> BoxedStrategy<(String, usize)> {
    let gaps = prop::collection::vec(gap(), 30);
    (0usize..4, gaps, any::<[bool; 4]>())
        .prop_map(|(users, gaps, commas)| {
            let mut gaps = gaps.into_iter();
            let mut g = || gaps.next().unwrap_or_default();
            let list: Vec<String> = (0..users).map(|n| format!("{}\"user{n}@\"{}", g(), g())).collect();
            let comma = |on: bool| if on { "," } else { "" };
            let list = format!("[{}{}{}]", list.join(","), comma(commas[0] && users > 0), g());
            let dev = format!("{}\"group:dev\"{}:{}{list}{}{}", g(), g(), g(), g(), comma(commas[1]));
            let acl = r#"{"action": "accept", "src": ["*"], "dst": ["*:*"]}"#;
            let acls = format!("[{}{acl}{}{}{}]", g(), g(), comma(commas[2]), g());
            let text = format!(
                "{}{{{}\"groups\"{}: {{{dev}{}}}{},{}\"acls\": {acls}{}{}{}}}{}",
                g(),
                g(),
                g(),
                g(),
                g(),
                g(),
                g(),
                comma(commas[3]),
                g(),
                g()
            );
            (text, users)
        })
        .boxed()
}

fn comments(text: &str) -> usize {
    text.matches(" C").count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn any_layout_takes_a_change_and_keeps_its_comments((text, users) in policy()) {
        let changes = [
            group("erin", "dev"),
            group("erin", "other"),
            rule("erin@", "10.0.0.1:22"),
            Edit::AddHost { name: "web".into(), address: "10.0.0.1".into() },
        ];
        let mut all = text.clone();
        for change in &changes {
            // That the meaning is exact is part of `edit` itself: it refuses to hand out anything else.
            let one = edit(&text, change);
            prop_assert!(one.is_ok(), "{:?}\n{}", one, text);
            prop_assert_eq!(comments(&one.unwrap()), comments(&text));
            all = edit(&all, change).unwrap();
        }
        prop_assert_eq!(comments(&all), comments(&text));
        let mut fewer = all;
        for n in 0..users {
            let left = edit(&fewer, &leave(&format!("user{n}"), "dev"));
            prop_assert!(left.is_ok(), "{:?}\n{}", left, fewer);
            fewer = left.unwrap();
        }
        prop_assert!(edit(&fewer, &leave("erin", "dev")).is_ok());
    }
}
