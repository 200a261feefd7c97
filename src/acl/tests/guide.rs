//! The guide's examples mean what the guide says: each is read, its tests hold in the guide's own small
//! network, and every line of the `explain` block behind it is asked.

use std::fs;

use super::*;
use crate::acl::explain::{Asked, Question, SshVerdict, Verdict};

/// The words of one fenced block and what it is.
struct Block<'t> {
    kind: &'t str,
    text: &'t str,
}

fn blocks(guide: &str) -> Vec<Block<'_>> {
    let mut out = Vec::new();
    for (at, part) in guide.split("```").enumerate() {
        if at % 2 == 1 {
            let (kind, text) = part.split_once('\n').unwrap();
            out.push(Block { kind, text });
        }
    }
    out
}

/// The network with what earlier lines of a block said of its devices.
struct Scene {
    policy: Policy,
    world: World,
    compiled: Compiled,
}

impl Scene {
    fn node(&self, name: &str) -> NodeId {
        self.world.nodes.values().find(|n| n.name == name).unwrap_or_else(|| panic!("no device {name}")).id
    }

    /// `laptop is node:os linux`.
    fn set(&mut self, name: &str, attribute: &str, value: &str) {
        let id = self.node(name);
        let value = ast::AttrValue::Text(value.to_owned());
        self.world.nodes.get_mut(&id).unwrap().attributes.insert(attribute.to_owned(), value);
        self.compiled = self.policy.compile(&self.world);
    }

    /// The answer to one line, in the guide's word for it.
    fn answer(&self, question: &str) -> &'static str {
        let words: Vec<&str> = question.split_whitespace().collect();
        match words[..] {
            [node, "has", attribute] => {
                if self.compiled.self_caps(self.node(node)).contains_key(attribute) {
                    "yes"
                } else {
                    "no"
                }
            }
            [node, "offers", route] => {
                let route = route.parse().unwrap();
                if self.compiled.auto_approved(self.node(node), &[route]).is_empty() {
                    "waiting"
                } else {
                    "approved"
                }
            }
            [a, "sees", b] => {
                if self.compiled.visible(self.node(a), self.node(b)) {
                    "yes"
                } else {
                    "no"
                }
            }
            [from, "->", to, ref rest @ ..] => {
                let mut asked = Asked { from: from.to_owned(), to: to.to_owned(), ..Asked::default() };
                match *rest {
                    [] => {}
                    ["ssh", login] => asked.ssh_user = Some(login.to_owned()),
                    ["icmp"] => asked.protocol = Some("icmp".to_owned()),
                    [port] => asked.port = Some(port.to_owned()),
                    [protocol, port] => {
                        asked.protocol = Some(protocol.to_owned());
                        asked.port = Some(port.to_owned());
                    }
                    _ => panic!("what is {question:?}?"),
                }
                let is_ssh = asked.ssh_user.is_some();
                let question = Question::parse(&self.compiled, &asked).unwrap_or_else(|f| panic!("{f:?}"));
                let found = self.compiled.explain(&question);
                if is_ssh {
                    return match found.ssh.unwrap().verdict {
                        SshVerdict::Accept => "allowed",
                        SshVerdict::Check => "after a check",
                        SshVerdict::Refused => "refused",
                    };
                }
                match found.verdict {
                    Verdict::Allowed => "allowed",
                    Verdict::Refused => "refused",
                    Verdict::Partly => "partly",
                }
            }
            _ => panic!("what is {question:?}?"),
        }
    }
}

/// Reads all examples and asks all questions; tells how many of both.
pub(super) fn check() -> (usize, usize) {
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/policy.md");
    let guide = fs::read_to_string(guide).unwrap();
    let blocks = blocks(&guide);
    let net = blocks.iter().find(|b| b.kind == "json").unwrap();
    let world = Topology::parse(net.text).unwrap().world().clone();
    let (mut examples, mut questions) = (0, 0);
    let mut scene: Option<Scene> = None;
    let mut wrong = Vec::new();
    for block in &blocks {
        match block.kind {
            "hujson" => {
                let text = block.text;
                let policy = Policy::parse(text).unwrap_or_else(|faults| panic!("{faults:#?}\n{text}"));
                assert_eq!(policy.mistakes(&world), [], "{text}");
                let compiled = policy.compile(&world);
                assert_eq!(compiled.failing_tests(), [], "{text}");
                scene = Some(Scene { policy, world: world.clone(), compiled });
                examples += 1;
            }
            "explain" => {
                let scene = scene.as_mut().unwrap();
                for line in block.text.lines().filter(|l| !l.trim().is_empty()) {
                    if let Some((node, rest)) = line.split_once(" is ") {
                        let (attribute, value) = rest.split_once(' ').unwrap();
                        scene.set(node, attribute, value);
                        continue;
                    }
                    let (question, expected) = line.rsplit_once(": ").unwrap();
                    let answer = scene.answer(question);
                    if answer != expected {
                        wrong.push(format!("{line} and not {answer}"));
                    }
                    questions += 1;
                }
            }
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "the guide says what is not so:\n{}", wrong.join("\n"));
    (examples, questions)
}
