use std::path::Path;

use secrecy::ExposeSecret as _;
use serde_yaml::Value;

use super::{Config, InvitePolicy, raw::Raw};

const EXAMPLE: &str = include_str!("../../config.example.yaml");
const MINIMAL: &str = "
homeserver: {url: 'http://127.0.0.1:8008', server_name: example.org}
database: {url: 'postgres://a:b@127.0.0.1/c'}
sealing: {key: 'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA='}
";

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("/etc/gs/config.yaml")).map_err(|e| e.to_string())
}

/// The dotted path of every key, with its value.
fn keys(value: &Value, path: &str, found: &mut Vec<(String, Value)>) {
    let Value::Mapping(map) = value else {
        found.push((path.to_owned(), value.clone()));
        return;
    };
    for (key, value) in map {
        let key = key.as_str().expect("a string");
        let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        keys(value, &path, found);
    }
}

#[test]
fn the_example_has_every_key_with_its_default() {
    parse(EXAMPLE).expect("the example is valid");
    let mut expected = Vec::new();
    keys(&serde_yaml::to_value(Raw::default()).expect("serialises"), "", &mut expected);
    let mut written = Vec::new();
    keys(&serde_yaml::from_str(EXAMPLE).expect("YAML"), "", &mut written);

    let required = ["homeserver.url", "homeserver.server_name", "database.url", "sealing.key"];
    for (key, default) in expected {
        if key.ends_with("_file") && default.is_null() {
            let name = key.rsplit('.').next().expect("a name");
            assert!(EXAMPLE.contains(&format!("  # {name}: ")), "{key} is not in the example");
            continue;
        }
        let (_, value) = written
            .iter()
            .find(|(written, _)| *written == key)
            .unwrap_or_else(|| panic!("{key} is not in config.example.yaml"));
        if !required.contains(&key.as_str()) {
            assert_eq!(*value, default, "{key} of the example is not the default");
        }
    }
}

#[test]
fn what_is_required_is_enough() {
    let config = parse(MINIMAL).expect("valid");

    assert_eq!(config.appservice.listen.port(), 29400);
    let proxies = &config.public.trusted_proxies;
    let believed = |addr: &str| {
        let addr: std::net::IpAddr = addr.parse().expect("an address");
        proxies.iter().any(|proxies| proxies.contains(&addr))
    };
    assert!(believed("127.0.0.1") && believed("::1"));
    assert!(
        ["10.0.0.1", "172.17.0.1", "192.168.0.1", "fd00::1"].iter().all(|addr| !believed(addr))
    );
    assert_eq!(config.appservice.registration_file, Path::new("/etc/gs/registration.yaml"));
    assert_eq!(config.bots.invite_policy, InvitePolicy::Homeserver);
    assert_eq!(config.database.url.expose_secret(), "postgres://a:b@127.0.0.1/c");
    assert_eq!(*config.sealing.key.expose_secret(), [0; 32]);
    assert!(!format!("{config:?}").contains("a:b@"));
}

#[test]
fn a_mistake_is_told_with_file_key_and_cure() {
    let cases = [
        (
            "homeserver: {url: 'http://a', server_name: b, ulr: c}",
            "`homeserver` has an unknown key",
            "`url`",
        ),
        ("\nhomesrever: {}", "/etc/gs/config.yaml: the file has an unknown key", "at line 2"),
        ("homeserver: {server_name: b}", "`homeserver.url` is missing", "http://127.0.0.1:8008"),
        ("homeserver: {url: 'ftp://a', server_name: b}", "`homeserver.url`", "https://example.org"),
        ("homeserver: {url: 'http://a', server_name: 'b c'}", "`homeserver.server_name`", "colon"),
        (
            "homeserver: {url: 'http://a', server_name: b, timeout_seconds: 0}",
            "`homeserver.timeout_seconds`",
            "at least 1",
        ),
        ("limits: {request_body_bytes: many}", "`limits.request_body_bytes`", "expected usize"),
        ("- a", "/etc/gs/config.yaml", "expected struct Raw"),
    ];
    for (text, one, other) in cases {
        let error = parse(text).expect_err(text);
        assert!(error.contains(one) && error.contains(other), "{text}: {error}");
    }
    let more = [
        ("public: {listen: here}", "`public.listen`", "127.0.0.1:"),
        ("public: {trusted_proxies: ['::1', proxy]}", "`public.trusted_proxies[1]`", "10.0.0.0/8"),
        ("bots: {localpart_prefix: Bot_}", "`bots.localpart_prefix`", "a-z"),
        ("bots: {invite_policy: list}", "`bots.invite_allow`", "name the users"),
        ("bots: {invite_allow: ['@a:b', c]}", "`bots.invite_allow[1]`", "@user:"),
        ("bots: {verification_policy: sometimes}", "`bots.verification_policy`", "`owner`"),
        ("signup: {space: '#a:b'}", "`signup.space`", "alias"),
        ("workers: {lease_seconds: 1}", "`workers.lease_seconds`", "at least 5"),
        ("log: {filter: 'a=b=c'}", "`log.filter`", "greenshield=info"),
    ];
    for (text, one, other) in more {
        let error = parse(&format!("{MINIMAL}{text}")).expect_err(text);
        assert!(error.contains(one) && error.contains(other), "{text}: {error}");
    }
}

/// Whatever an operator writes into the wrong place, it is not repeated to whoever reads the log.
#[test]
fn a_mistake_repeats_nothing_that_was_written() {
    let key = "Y2FuYXJ5AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let url = "postgres://u:canary@127.0.0.1/c";
    let mut cases = vec![key.to_owned(), url.to_owned(), format!("- {url}")];
    for written in [key, url] {
        for section in ["homeserver", "appservice", "public", "database", "sealing", "log"] {
            cases.push(format!("{MINIMAL}\n{section}: '{written}'"));
            cases.push(format!("{section}: '{written}'"));
            cases.push(format!("{section}: ['{written}']"));
            cases.push(format!("{section}: {{'{written}': 1}}"));
            cases.push(format!("{section}:\n  '{written}"));
        }
        for (section, keys) in [
            ("homeserver", "url server_name timeout_seconds"),
            ("appservice", "listen url"),
            ("public", "listen base_url trusted_proxies"),
            ("operator", "listen"),
            ("database", "url_file max_connections"),
            ("sealing", "key_file"),
            ("bots", "localpart_prefix invite_policy invite_allow verification_policy responder"),
            ("signup", "enabled space rooms"),
            ("limits", "request_body_bytes"),
            ("log", "format filter"),
        ] {
            for key in keys.split(' ') {
                let rest: String = MINIMAL
                    .lines()
                    .filter(|line| !line.starts_with(section))
                    .fold(String::new(), |rest, line| format!("{rest}{line}\n"));
                cases.push(format!("{rest}{section}: {{{key}: '{written}=b=c'}}"));
                cases.push(format!("{rest}{section}: {{{key}: ['{written}=b=c']}}"));
            }
        }
        cases
            .push(MINIMAL.replace("http://127.0.0.1:8008", &format!("http://:canary@a/{written}")));
    }
    cases.push(MINIMAL.replace("http://127.0.0.1:8008", "http://:canary@a"));
    cases.push(MINIMAL.replace("AAAAAAA=", "canary"));
    cases.push(MINIMAL.replace("postgres://a:b@", "mysql://a:canary@"));
    for text in cases {
        let error = parse(&text).expect_err(&text);
        let told = error.contains("canary") || error.contains("Y2FuYXJ5");
        assert!(!told && error.starts_with("/etc/gs/config.yaml"), "{text}: {error}");
    }
}

#[test]
fn a_secret_comes_from_one_place() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("url"), "postgres://a:b@127.0.0.1/c\n").expect("writes");
    let path = folder.path().join("config.yaml");
    let load = |text: &str| {
        std::fs::write(&path, text).expect("writes");
        Config::load(&path).map_err(|e| e.to_string())
    };
    let with = |database: &str| MINIMAL.replace("{url: 'postgres://a:b@127.0.0.1/c'}", database);

    let config = load(&with("{url_file: url}")).expect("valid");
    assert_eq!(config.database.url.expose_secret(), "postgres://a:b@127.0.0.1/c");
    let twice = load(&with("{url_file: url, url: 'postgres://a/b'}")).expect_err("twice");
    assert!(twice.contains("`database.url` is given twice"), "{twice}");
    let none = load(&with("{}")).expect_err("none");
    assert!(none.contains("database.url_file"), "{none}");
    let absent = load(&with("{url_file: nowhere}")).expect_err("absent");
    assert!(absent.contains("`database.url_file` names a file that cannot"), "{absent}");
    let short = load(&MINIMAL.replace("AAAA", "")).expect_err("not 32 bytes");
    assert!(short.contains("openssl rand -base64 32"), "{short}");
}
