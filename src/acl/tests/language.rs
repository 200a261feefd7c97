//! The language as text: what is read, what is refused, in which words.

use super::*;

/// Development only.
#[test]
fn captured_cases_dev() {
    let mut bad = 0;
    let mut n = 0;
    for family in std::fs::read_dir("/work/shared/policy/cases").unwrap() {
        for file in std::fs::read_dir(family.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let case: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let text = case["input"]["full_policy"].as_str().unwrap();
            let code = case["input"]["api_response_code"].as_i64().unwrap();
            let message = case["input"]["api_response_message"].as_str().unwrap_or_default();
            let world = World { domains: ["example.com".to_owned()].into(), ..World::default() };
            let faults = match Policy::parse(text) {
                Ok(p) => p.mistakes(&world),
                Err(f) => f,
            };
            n += 1;
            let fine = match code {
                200 => faults.is_empty(),
                500 => !faults.is_empty(),
                _ if message == "test(s) failed" => faults.iter().all(|f| f.message.contains(message)),
                _ => faults.iter().any(|f| f.message.contains(message)),
            };
            if !fine {
                bad += 1;
                println!("{} {code} {message}: {faults:#?}", path.display());
            }
        }
    }
    println!("{n} cases, {bad} bad");
    assert_eq!(bad, 0);
}
