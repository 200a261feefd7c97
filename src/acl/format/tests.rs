//! What is printed, and that meaning and comments survive any text.

use proptest::prelude::*;

use super::*;

fn meaning(text: &str) -> serde_json::Value {
    jsonc_parser::parse_to_serde_value(text, &jsonc_parser::ParseOptions::default()).unwrap()
}

#[test]
fn a_policy_is_laid_out() {
    let text = r#"// top
{"acls":[ // rules
{"action":"accept","src":["*"],   "dst":["*:*"]},// all


// next
 {"action":"accept", "src":["alice@"],"dst":["tag:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa:22","tag:b:*"]}], "groups":{"group:a":[
"x@" , "y@" // who
, "z@"
], /* none */ "group:b":[]}, "hosts": {}} // end
// very end"#;
    let want = r#"// top
{
	"acls": [ // rules
		{"action": "accept", "src": ["*"], "dst": ["*:*"]}, // all

		// next
		{
			"action": "accept",
			"src": ["alice@"],
			"dst": ["tag:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa:22", "tag:b:*"],
		},
	],
	"groups": {
		"group:a": [
			"x@",
			"y@", // who
			"z@",
		],
		/* none */ "group:b": [],
	},
	"hosts": {},
} // end
// very end
"#;
    assert_eq!(format(text).unwrap(), want);
    assert_eq!(format(want).unwrap(), want);
}

#[test]
fn comments_in_odd_places_stay() {
    for (text, want) in [
        ("{}", "{}\n"),
        ("{ /* a */ }", "{/* a */}\n"),
        ("{ // a\n}", "{ // a\n}\n"),
        ("{\n\n/* a */\n\n}", "{\n\t/* a */\n}\n"),
        ("{\"a\" /* b */ : // c\n 1}", "{\n\t\"a\": /* b */ // c\n\t\t1,\n}\n"),
        ("{\"a\": [1 /* x */ , /* y */ 2,],}", "{\n\t\"a\": [1 /* x */, /* y */ 2],\n}\n"),
        ("{\"a\":1\r\n// b\r\n,\"c\":2}\r\n", "{\n\t\"a\": 1,\n\t// b\n\t\"c\": 2,\n}\n"),
    ] {
        assert_eq!(format(text).unwrap(), want, "{text:?}");
        assert_eq!(format(want).unwrap(), want, "{text:?} a second time");
    }
}

#[test]
fn objects_opened_over_lines_stay_open_and_lists_close() {
    let text = "{\"ssh\": [{\n\"action\": \"accept\", \"src\": [\n\"a@\",\n\"b@\"\n]}]}";
    let want = "{\n\t\"ssh\": [\n\t\t{\n\t\t\t\"action\": \"accept\",\n\t\t\t\"src\": [\"a@\", \"b@\"],\n\t\t},\n\t],\n}\n";
    assert_eq!(format(text).unwrap(), want);
}

#[test]
fn what_is_no_hujson_is_refused_with_its_place() {
    let faults = format("{\n\"a\": }").unwrap_err();
    assert_eq!((faults[0].code, faults[0].line), ("syntax", 2));
}

/// Blanks and numbered comments between words.
fn trivia() -> BoxedStrategy<String> {
    let blank = prop_oneof![Just(""), Just(" "), Just("\n"), Just("\n\n\n"), Just("\t"), Just("\r\n")];
    let comment =
        prop_oneof![Just(""), Just(""), Just(""), Just("/*#*/"), Just("/* #\n two */"), Just("// #\n")];
    (blank.clone(), comment.clone(), blank.clone(), comment, blank)
        .prop_map(|(a, b, c, d, e)| format!("{a}{b}{c}{d}{e}"))
        .boxed()
}

fn value() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        Just("null".to_owned()),
        Just("-1.5e3".to_owned()),
        Just("true".to_owned()),
        "[a-z ]{0,30}".prop_map(|s| format!("\"{s}\"")),
        Just(r#""\"//\u00e9 /*""#.to_owned()),
    ];
    scalar.boxed().prop_recursive(3, 40, 5, |inner| {
        let element = (trivia(), inner.clone(), trivia()).prop_map(|(a, v, b)| format!("{a}{v}{b}")).boxed();
        let member = (trivia(), trivia(), trivia(), inner, trivia())
            .prop_map(|(a, b, c, v, d)| format!("{a}\"k%\"{b}:{c}{v}{d}"))
            .boxed();
        let close = || (any::<bool>(), trivia()).prop_map(|(comma, t)| (if comma { "," } else { "" }, t));
        let join = |items: Vec<String>, (comma, t): (&str, String)| {
            let comma = if items.is_empty() { "" } else { comma };
            format!("{}{comma}{t}", items.join(","))
        };
        prop_oneof![
            (prop::collection::vec(element, 0..5), close())
                .prop_map(move |(items, end)| format!("[{}]", join(items, end))),
            (prop::collection::vec(member, 0..5), close()).prop_map(move |(items, end)| {
                let numbered = items.iter().enumerate().map(|(i, m)| m.replacen('%', &i.to_string(), 1));
                format!("{{{}}}", join(numbered.collect(), end))
            }),
        ]
    })
}

/// Gives every comment a number, so that order shows.
fn number(text: &str) -> (String, usize) {
    let (mut out, mut count) = (String::new(), 0);
    for c in text.chars() {
        if c == '#' {
            out.push_str(&format!("C{count};"));
            count += 1;
        } else {
            out.push(c);
        }
    }
    (out, count)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn meaning_and_comments_survive_and_twice_is_once(a in trivia(), v in value(), b in trivia()) {
        let (text, comments) = number(&format!("{a}{v}{b}"));
        let once = format(&text).unwrap();
        prop_assert_eq!(meaning(&once), meaning(&text));
        let mut from = 0;
        for comment in 0..comments {
            let at = once.get(from..).unwrap().find(&format!("C{comment};"));
            prop_assert!(at.is_some(), "comment {} is lost or out of order in\n{}", comment, once);
            from += at.unwrap();
        }
        prop_assert_eq!(format(&once).unwrap(), once);
    }

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,80}|[\\[\\]{}\",:/*\\\\ \n\r\t0-9a-z-]{0,120}") {
        let _ = format(&text);
    }
}
