//! The policy in a browser without scripts: a typo shown at its place, the list of who gains and who
//! loses, going back to an old version, and the simulator with and without a draft.

use crate::scenario_browser::{CONSOLE, browse, link, shots, sign_in};
use crate::server::Server;
use crate::webdriver::Browser;
use crate::world::{Host, Lab};

/// Lets `group:dev` reach the server's SSH port; bob is not in the group.
const NARROW: &str = r#"{
  // Only developers reach servers.
  "groups": {"group:dev": ["alice@"]},
  "tagOwners": {"tag:server": ["group:dev"]},
  "acls": [
    {"action": "accept", "src": ["group:dev"], "dst": ["tag:server:22"]},
  ],
}
"#;

/// A server with devices of alice and bob and a tagged one; nobody has to run for their policy to count.
fn tailnet(lab: &Lab, admin: &Host) -> Server {
    let server = Server::start(&lab.host_at("srv", "203.0.113.10"));
    let first = server.json(&["users", "list"])[0]["name"].as_str().unwrap().to_owned();
    server.ok(&["users", "rename", &first, "alice"]);
    server.ok(&["users", "create", "bob"]);
    server.set_policy(r#"{"tagOwners": {"tag:server": ["autogroup:admin"]}, "acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#);
    for (user, name) in [("alice", "alices-laptop"), ("bob", "bobs-phone"), ("alice", "db-1")] {
        let made = server.json(&["authkeys", "create", "--user", user]);
        let (key, url) = (made["key"].as_str().unwrap().to_owned(), server.url.clone());
        crate::machines::block_inside(admin, move || async move {
            let mut machine = crate::machines::Machine::new(name);
            let request = machine.request(&key);
            let answer = machine.client(&url).register(&request).await.unwrap();
            assert!(answer.error.is_empty(), "{answer:?}");
        });
    }
    server.ok(&["nodes", "tag", "db-1", "tag:server"]);
    server
}

/// A page's text must contain all of these.
fn says(b: &Browser, words: &[&str]) {
    let text = b.page_text().unwrap();
    for word in words {
        assert!(text.contains(word), "{word:?} is not on {}:\n{text}", b.url().unwrap());
    }
}

fn press(b: &Browser, words: &str) {
    b.follow(&b.button(words).unwrap()).unwrap();
}

/// Pictures at both widths; nothing scrolls sideways.
fn shot(b: &Browser, name: &str) {
    for width in [360, 1280] {
        b.resize(width, 900).unwrap();
        b.screenshot(&shots().join(format!("policy-{name}-{width}.png"))).unwrap();
        assert!(b.overflow().unwrap() <= 0, "{name} scrolls sideways at {width}");
    }
}

#[test]
fn a_policy_is_mended_shown_stored_and_taken_back() {
    let lab = Lab::new("policy pages");
    let admin = lab.host("admin");
    let server = tailnet(&lab, &admin);
    let before = server.ok(&["policy", "get"]);
    let one_time = link(&server);
    browse(&admin, 1280, move |b| {
        sign_in(b, &one_time);
        // A typo is marked in its line, with the name that was meant, and a link leads there.
        b.goto(&format!("{CONSOLE}/access")).unwrap();
        b.fill("#text", &NARROW.replace("tag:server:22", "tag:sever:22")).unwrap();
        press(b, "Check policy");
        says(b, &["1 fault in the text", "6:", "tag:sever", "tag:server"]);
        let marked = b.find_all(".gutter .bad").unwrap();
        assert_eq!(marked.len(), 1);
        assert_eq!(b.text(&marked[0]).unwrap().trim(), "6");
        let seen = b.run("const m = document.querySelector('.gutter .bad').getBoundingClientRect(), t = document.querySelector('#text'), r = t.getBoundingClientRect(); return Math.round((m.top - r.top - 12) / 20)").unwrap();
        assert_eq!(seen.as_i64(), Some(5), "the mark stands beside the sixth line");
        shot(b, "typo");
        b.click_on(".faults a").unwrap();
        assert!(b.url().unwrap().ends_with("#L6"));

        // Who loses is shown by name before anything is stored, and confirmed as it was seen.
        b.fill("#text", NARROW).unwrap();
        b.fill("input[name=comment]", "servers for developers only").unwrap();
        press(b, "Save policy");
        says(b, &["takes access away", "Lose access", "Nothing is stored", "bob"]);
        shot(b, "losses");
        press(b, "Save and take this access away");
        says(b, &["The policy was saved", "Version 2 is in force", "servers for developers only"]);

        // Formatting and the difference of a version; then back to the first one.
        press(b, "Format text");
        says(b, &["Nothing was stored yet"]);
        b.goto(&format!("{CONSOLE}/access/version/2")).unwrap();
        says(b, &["What it changed in version 1", "in force", "servers for developers only"]);
        b.goto(&format!("{CONSOLE}/access/version/1")).unwrap();
        press(b, "Roll back to this version");
        says(b, &["Who gains and who loses", "Gain access", "bob"]);
        shot(b, "rollback");
        press(b, "Roll back to version 1");
        says(b, &["The old text is in force again", "Version 3 is in force", "back to version 1"]);
        shot(b, "history");
    });
    assert_eq!(server.ok(&["policy", "get"]), before, "letter for letter");
}

/// As [`NARROW`], with an attribute and an approver.
fn with_more(attribute: &str, approver: &str) -> String {
    let more = format!(
        "\n  \"nodeAttrs\": [{{\"target\": [\"tag:server\"], \"attr\": [\"{attribute}\"]}}],\n  \"autoApprovers\": {{\"routes\": {{\"10.0.0.0/8\": [\"{approver}\"]}}}},\n}}\n"
    );
    NARROW.strip_suffix("\n}\n").unwrap().to_owned() + &more
}

#[test]
fn attributes_and_approval_are_shown_before_a_save() {
    let lab = Lab::new("beside access");
    let admin = lab.host("admin");
    let server = tailnet(&lab, &admin);
    server.set_policy(NARROW);
    let one_time = link(&server);
    browse(&admin, 1280, move |b| {
        sign_in(b, &one_time);
        let save = |text: &str| {
            b.goto(&format!("{CONSOLE}/access")).unwrap();
            b.fill("#text", text).unwrap();
            press(b, "Save policy");
        };
        // Gains are shown before anything is stored, though nobody's access changes.
        save(&with_more("funnel", "bob@"));
        says(b, &["Nobody gains or loses access; 2 other things change.", "Changes beside access"]);
        says(b, &["tag:server gains attribute funnel", "Nothing is stored yet"]);
        says(b, &["bob@ gains automatic approval of routes within 10.0.0.0/8"]);
        shot(b, "beside");
        press(b, "Save this change");
        says(b, &["The policy was saved", "Version 3 is in force"]);
        // What is taken away is confirmed, and the same text again is no new version.
        save(&with_more("custom:x", "alice@"));
        says(b, &["This takes something away", "tag:server loses attribute funnel"]);
        says(b, &["bob@ loses automatic approval of routes within 10.0.0.0/8 (what is approved stays)"]);
        press(b, "Save and take it away");
        says(b, &["The policy was saved", "Version 4 is in force"]);
        save(&with_more("custom:x", "alice@"));
        says(b, &["Unchanged", "Version 4 is in force"]);
    });
    assert_eq!(server.json(&["policy", "history"]).as_array().unwrap().len(), 4);
}

#[test]
fn the_simulator_finds_the_rule_and_mends_it() {
    let lab = Lab::new("simulator");
    let admin = lab.host("admin");
    let server = tailnet(&lab, &admin);
    server.set_policy(NARROW);
    let one_time = link(&server);
    browse(&admin, 1280, move |b| {
        sign_in(b, &one_time);
        b.goto(&format!("{CONSOLE}/simulator")).unwrap();
        b.fill("#from", "alices-laptop").unwrap();
        b.fill("#to", "db-1").unwrap();
        b.fill("#port", "22").unwrap();
        press(b, "Ask");
        assert!(b.url().unwrap().contains("from=alices-laptop&to=db-1&port=22"), "{}", b.url().unwrap());
        says(b, &["Allowed", "line 6", "group:dev"]);
        shot(b, "allowed");
        b.click_on("#answer a").unwrap();
        assert!(b.url().unwrap().ends_with("/access?line=6#L6"), "{}", b.url().unwrap());
        assert_eq!(b.find_all(".gutter .here").unwrap().len(), 1);

        // A name nobody has is said at its field.
        b.goto(&format!("{CONSOLE}/simulator?from=alices-lapto&to=db-1")).unwrap();
        says(b, &["cannot be answered", "alices-lapto"]);
        assert_eq!(b.find_all("#from[aria-invalid]").unwrap().len(), 1);

        // Refused, with the nearest rule and what would have to change; a draft of another port first.
        b.goto(&format!("{CONSOLE}/simulator?from=bobs-phone&to=db-1&port=22")).unwrap();
        says(b, &["Refused", "What would have to change", "line 6"]);
        shot(b, "refused");
        press(b, "Ask with a draft");
        b.fill("#text", &NARROW.replace("\"src\": [\"group:dev\"]", "\"src\": [\"autogroup:member\"]"))
            .unwrap();
        press(b, "Ask");
        says(b, &["Allowed", "Answers come from the draft"]);
        shot(b, "draft");
        b.goto(&format!("{CONSOLE}/simulator?from=bobs-phone&to=db-1&port=22")).unwrap();
        says(b, &["Refused"]);

        // The change is offered, becomes a draft, and is saved by a person.
        press(b, "Put bob@ into group:dev");
        says(b, &["Put bob@ into group:dev: this draft does it", "Gain access"]);
        shot(b, "given");
        press(b, "Save this change");
        b.goto(&format!("{CONSOLE}/simulator?from=bobs-phone&to=db-1&port=22")).unwrap();
        says(b, &["Allowed"]);
        b.goto(&format!("{CONSOLE}/simulator?from=bobs-phone&to=db-1&port=443")).unwrap();
        says(b, &["Refused", "Give access"]);
        press(b, "Make a draft with this rule");
        says(b, &["this draft does it", "443", "Gain access"]);
    });
    let stored = server.ok(&["policy", "get"]);
    assert!(stored.contains("// Only developers reach servers.") && stored.contains("\"bob@\""), "{stored}");
    assert!(!stored.contains("443"), "what was not saved is not stored: {stored}");
}

#[test]
fn roles_change_and_a_broken_test_shows_on_start() {
    let lab = Lab::new("roles");
    let admin = lab.host("admin");
    let server = tailnet(&lab, &admin);
    server.ok(&["users", "role", "bob", "admin"]);
    server.set_policy(
        "{\n  \"tagOwners\": {\"tag:server\": [\"autogroup:admin\"]},\n  \"acls\": [{\"action\": \"accept\", \"src\": [\"autogroup:admin\"], \"dst\": [\"tag:server:22\"]}],\n  \"tests\": [{\"src\": \"bob@\", \"accept\": [\"tag:server:22\"]}],\n}",
    );
    let one_time = link(&server);
    browse(&admin, 1280, move |b| {
        sign_in(b, &one_time);
        says(b, &["Start"]);
        b.goto(&format!("{CONSOLE}/people")).unwrap();
        for (row, role) in [(2, "member"), (1, "member")] {
            b.click_on(&format!("tbody tr:nth-child({row}) summary")).unwrap();
            b.click_on(&format!("tbody tr:nth-child({row}) option[value={role}]")).unwrap();
            let save = b.find(&format!("tbody tr:nth-child({row}) form[action$=role] button")).unwrap();
            b.follow(&save).unwrap();
            if row == 2 {
                says(b, &["The role was saved"]);
            } else {
                says(b, &["only owner"]);
            }
        }
        shot(b, "people");
        // Rules for admins moved with the role: the test about bob does not hold any more.
        b.goto(&format!("{CONSOLE}/")).unwrap();
        b.wait_for(".notice a[href='/access?line=4#L4']", std::time::Duration::from_secs(10)).unwrap();
        shot(b, "start");
        press(b, "Look at the test");
        says(b, &["1 test does not hold any more"]);
        shot(b, "broken");
        // Saving the same text is refused for it, and nothing is lost.
        press(b, "Check policy");
        says(b, &["1 test does not hold; nothing was changed"]);
        b.goto(&format!("{CONSOLE}/device/1")).unwrap();
        says(b, &["Ask the simulator", "attributes"]);
        shot(b, "device");
    });
}
