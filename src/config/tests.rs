//! Layering, faults with their places, and the example file.

use super::*;

fn sources(file: Option<&str>, env: &[(&str, &str)]) -> Sources {
    Sources {
        file: file.map(|text| FileText { path: "c.toml".into(), text: text.to_owned() }),
        env: env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        default_state_dir: "/s".into(),
        ..Sources::default()
    }
}

fn errors(file: &str) -> String {
    load(&sources(Some(file), &[])).unwrap_err().to_string()
}

#[test]
fn nothing_at_all_gives_the_defaults() {
    let config = load(&sources(None, &[])).unwrap();
    assert_eq!(config.state_dir, Path::new("/s"));
    assert_eq!(config.listen, Listen::At("[::]:8080".parse().unwrap()));
    assert_eq!(config.tls_listen, Listen::At("[::]:443".parse().unwrap()));
    assert!(config.tls_listen_is_default);
    assert_eq!(config.dns.base_domain, "tail.internal");
    assert_eq!(config.key_expiry, None);
}

#[test]
fn flags_stand_above_environment_above_file() {
    let mut s = sources(
        Some(
            "listen = \"1.1.1.1:1\"\ntls_listen = \"off\"\n[derp]\npublic_port = 4443\nregion_code = \"x\"\n",
        ),
        &[
            ("TSD_LISTEN", "2.2.2.2:2"),
            ("TSD_DERP_PUBLIC_PORT", "5443"),
            ("TSD_TRUSTED_PROXIES", "10.0.0.1, 10.1.0.0/16"),
        ],
    );
    s.flags.listen = Some("3.3.3.3:3".into());
    let config = load(&s).unwrap();
    assert_eq!(config.listen, Listen::At("3.3.3.3:3".parse().unwrap()));
    assert_eq!(config.tls_listen, Listen::Off);
    assert_eq!(config.derp.public_port, Some(5443));
    assert_eq!(config.derp.region_code, "x");
    assert_eq!(config.trusted_proxies.len(), 2);
    s.flags.listen = None;
    assert_eq!(load(&s).unwrap().listen, Listen::At("2.2.2.2:2".parse().unwrap()));
}

#[test]
fn faults_name_file_line_and_remedy() {
    assert_eq!(errors("\nlisen = \"[::]:80\"\n"), "c.toml:2: unknown key \"lisen\"; did you mean listen?");
    assert!(
        errors("[derp]\nenabeld = true\n")
            .starts_with("c.toml:2: unknown key \"derp.enabeld\"; did you mean derp.enabled?")
    );
    assert!(errors("a = 1\nb = = 2\n").starts_with("c.toml:2:5: "), "{}", errors("a = 1\nb = = 2\n"));
    let text = errors("# x\nlisten = \"foo\"\n");
    assert!(text.starts_with("c.toml:2: listen: \"foo\" is no listener; write addr:port"), "{text}");
    let text = errors("\n\nlisten = 8080\n");
    assert!(text.starts_with("c.toml:3: listen: "), "{text}");
    let text = errors("[[derp.regions]]\nid = 901\ncode = \"a\"\nbogus = 1\n");
    assert!(text.starts_with("c.toml:1: ") && text.contains("bogus"), "{text}");
}

#[test]
fn faults_name_variable_and_flag() {
    let text = load(&sources(None, &[("TSD_DERP_PUBLIC_PORT", "high")])).unwrap_err().to_string();
    assert!(text.starts_with("TSD_DERP_PUBLIC_PORT: "), "{text}");
    let mut s = sources(None, &[("TSD_LISTNE", "x"), ("TSD_CONFIG", "x")]);
    s.flags.tls_listen = Some("nowhere".into());
    let text = load(&s).unwrap_err().to_string();
    assert!(text.starts_with("--tls-listen: "), "{text}");
    assert_eq!(s.unknown_env(), ["TSD_LISTNE"]);
}

#[test]
fn impossible_combinations_are_refused() {
    assert!(errors("listen = \"off\"\ntls_listen = \"off\"\n").contains("both off"));
    assert!(errors("tls_cert = \"a\"\n").contains("needs tls_key"));
    assert!(
        errors("url = \"https://a.example\"\n")
            .starts_with("c.toml:1: url: an https:// URL needs a certificate")
    );
    assert!(errors("[derp]\nenabled = false\n").starts_with("c.toml:2: derp.enabled"));
    assert!(errors("listen = \"[::]:443\"\n").contains("different ports"));
    assert!(errors("ipv4_pool = \"10.0.0.0/8\"\n").contains("100.64.0.0/10"));
    let both = errors("ipv4_pool = \"x\"\nmetrics = \"y\"\n");
    assert_eq!(both.lines().count(), 2, "{both}");
}

#[test]
fn mail_domains_are_names_without_more() {
    let config = load(&sources(Some("[policy]\ndomains = [\"example.com\", \"b.example\"]"), &[])).unwrap();
    assert_eq!(config.policy_domains.into_iter().collect::<Vec<_>>(), ["b.example", "example.com"]);
    let config = load(&sources(None, &[("TSD_POLICY_DOMAINS", "a.example,b.example")])).unwrap();
    assert_eq!(config.policy_domains.len(), 2);
    let text = errors("[policy]\ndomains = [\"@example.com\"]");
    assert!(text.contains("policy.domains") && text.contains("example.com"), "{text}");
}

#[test]
fn urls_are_bare_servers() {
    let url = ServerUrl::parse("http://203.0.113.9:8080/").unwrap();
    assert_eq!((url.to_string().as_str(), url.port), ("http://203.0.113.9:8080", 8080));
    assert_eq!(ServerUrl::parse("https://A.example").unwrap().to_string(), "https://a.example");
    assert_eq!(ServerUrl::parse("http://[2001:db8::1]:80").unwrap().to_string(), "http://[2001:db8::1]");
    for bad in
        ["", "a.example", "ftp://a", "http://a/b", "http://u@a", "http://a:0", "http://a:99999", "http://a b"]
    {
        assert!(ServerUrl::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn state_goes_to_the_right_place() {
    let dir = |root, xdg: Option<&str>, home: Option<&str>| {
        default_state_dir(root, xdg.map(Into::into), home.map(Into::into))
    };
    assert_eq!(dir(true, None, Some("/root")), Path::new("/var/lib/tsd"));
    assert_eq!(dir(false, None, Some("/home/a")), Path::new("/home/a/.local/state/tsd"));
    assert_eq!(dir(false, Some("/x"), Some("/home/a")), Path::new("/x/tsd"));
    assert_eq!(dir(false, None, None), Path::new("/var/lib/tsd"));
}

const EXAMPLE: &str = include_str!("../../config.example.toml");

/// The example with its commented keys switched on.
fn uncommented() -> String {
    let on = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[' || c == '"') => {
            rest.to_owned()
        }
        _ => line.to_owned(),
    };
    EXAMPLE.lines().map(on).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_as_it_stands_is_the_defaults() {
    let config = load(&sources(Some(EXAMPLE), &[])).unwrap();
    let mut defaults = load(&sources(None, &[])).unwrap();
    // Written out, 443 is somebody's choice and no longer gives way to 8443: so the key is commented.
    assert!(config.tls_listen_is_default);
    defaults.tls_listen_is_default = true;
    assert_eq!(config, defaults);
}

#[test]
fn the_example_has_exactly_the_keys_of_the_code() {
    let text = uncommented();
    load(&sources(Some(&text), &[])).unwrap();
    let dict = parse_toml(&FileText { path: "e".into(), text: text.clone() }).unwrap();
    let mut found = Vec::new();
    for (key, value) in &dict {
        match value {
            Value::Dict(_, inner) => found.extend(inner.keys().map(|k| format!("{key}.{k}"))),
            _ => found.push(key.clone()),
        }
    }
    let mut known = key_paths();
    known.sort();
    found.sort();
    assert_eq!(found, known);
    for key in known {
        let line = place::line_of(&text, &key).unwrap();
        let before = text.lines().nth(line.saturating_sub(2)).unwrap_or_default();
        assert!(before.starts_with("# ") || before.starts_with('['), "{key} is not explained");
    }
}
