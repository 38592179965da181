//! Reading YAML files that may hold secrets: what is wrong with one is told without a word of it.

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_path_to_error::Segment;

/// What is wrong with a file.
#[derive(Debug)]
pub struct Wrong {
    /// Where in it, as a dotted path; empty for all of it.
    pub key: String,
    /// What was wanted, and the line. Never what is there: a key may stand in the wrong place.
    pub problem: String,
}

/// Reads `T` from a file's text.
///
/// # Errors
///
/// What is wrong with it.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, Wrong> {
    // Only syntax is wrong here, and of that the parser tells without quoting.
    if let Err(error) = serde_yaml::from_str::<IgnoredAny>(text) {
        return Err(Wrong { key: String::new(), problem: format!("is no YAML: {error}") });
    }
    let document = serde_yaml::Deserializer::from_str(text);
    serde_path_to_error::deserialize(document).map_err(|error| {
        let said = error.inner().to_string();
        let is_unknown_key = said.contains("unknown field `");
        let mut keys: Vec<String> = error.path().iter().map(name).collect();
        let unknown = if is_unknown_key { keys.pop() } else { None };
        // Of a key at the top the parser does not tell the line.
        let line = unknown.filter(|_| !said.contains(" at line ")).and_then(|key| line(text, &key));
        let key = keys.concat().trim_start_matches('.').to_owned();
        let problem = match (wanted(&said), is_unknown_key) {
            (Some(wanted), true) => {
                format!("has an unknown key, {wanted}{}", line.unwrap_or_default())
            }
            (Some(wanted), false) => format!("does not fit, {wanted}"),
            (None, _) => "does not fit".to_owned(),
        };
        Wrong { key, problem }
    })
}

/// Where a key stands at the top of a file.
fn line(text: &str, key: &str) -> Option<String> {
    let key = key.trim_start_matches('.');
    let begins = |line: &str| line.trim_start_matches(['"', '\'', '{']).starts_with(key);
    text.lines().position(begins).map(|before| format!(" at line {}", before + 1))
}

fn name(segment: &Segment) -> String {
    match segment {
        Segment::Seq { index } => format!("[{index}]"),
        Segment::Map { key } => format!(".{key}"),
        Segment::Enum { .. } | Segment::Unknown => String::new(),
    }
}

/// The end of what serde says, with the line: what stands before it is what was found.
fn wanted(said: &str) -> Option<&str> {
    let known = ["expected ", "missing field `", "duplicate field `"];
    known.iter().find_map(|known| said.rfind(known)).map(|at| &said[at..])
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[serde(default)]
        inner: Option<Inner>,
        #[serde(default)]
        list: Vec<u8>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        key: String,
    }

    #[test]
    fn what_is_wrong_is_told_by_place_and_never_quoted() {
        for (text, key, told) in [
            ("canary", "", "expected struct Outer"),
            ("inner: canary", "inner", "expected struct Inner at line 1"),
            ("list: []\ninner: {canary}", "inner", "unknown key, expected `key` at line 2"),
            ("inner: {canary: 1, key: x}", "inner", "unknown key"),
            ("list: []\n'canary': 1", "", "unknown key, expected `inner` or `list` at line 2"),
            ("inner: {key: [canary]}", "inner.key", "expected a string"),
            ("list: [1, canary]", "list[1]", "expected u8 at line 1"),
            ("list: [1, 'expected canary']", "list[1]", "does not fit, expected u8"),
            ("inner: {}", "inner", "missing field `key`"),
            ("inner: {key: a, key: canary}", "inner", "duplicate field `key`"),
            ("inner: {key: 'canary", "", "is no YAML: found unexpected end of stream at line 1"),
            ("inner: @canary", "", "is no YAML"),
            ("inner: *canary", "", "is no YAML: unknown anchor"),
            ("? [canary]\n: 1", "", "does not fit"),
        ] {
            let wrong = read::<Outer>(text).expect_err(text);
            assert!(wrong.key == key && wrong.problem.contains(told), "{text}: {wrong:?}");
            assert!(!format!("{wrong:?}").contains("canary"), "{text}: {wrong:?}");
        }
        let outer = read::<Outer>("inner: {key: a}\nlist: [1]").expect("fits");
        assert_eq!((outer.inner.expect("is there").key.as_str(), &outer.list[..]), ("a", &[1][..]));
    }
}
