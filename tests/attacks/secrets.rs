//! A secret in all the forms in which it may lie somewhere.

use std::{collections::HashMap, slice};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use serde_json::Value;

/// A secret, and what it is, for whoever finds it.
pub struct Secret {
    pub what: String,
    forms: Vec<Vec<u8>>,
}

impl Secret {
    /// A text.
    pub fn text(what: impl Into<String>, text: &str) -> Self {
        Self::bytes(what, text.as_bytes())
    }

    /// Bytes: as they are, in hexadecimal, as a list of numbers, and in base64 wherever they begin in
    /// what was encoded.
    pub fn bytes(what: impl Into<String>, bytes: &[u8]) -> Self {
        let what = what.into();
        assert!(bytes.len() >= 12, "{what} is too short to be looked for");
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let numbers: Vec<String> = bytes.iter().map(ToString::to_string).collect();
        let mut forms = vec![
            bytes.to_vec(),
            hex.to_uppercase().into_bytes(),
            hex.into_bytes(),
            numbers.join(",").into_bytes(),
            numbers.join(", ").into_bytes(),
        ];
        for before in 0..3 {
            let mut shifted = vec![0; before];
            shifted.extend_from_slice(bytes);
            // What lies wholly in the secret: without what shares a character with its neighbours.
            shifted.truncate(shifted.len() / 3 * 3);
            let skip = (before * 8).div_ceil(6);
            for encoded in [STANDARD_NO_PAD.encode(&shifted), URL_SAFE_NO_PAD.encode(&shifted)] {
                forms.push(encoded.into_bytes()[skip..].to_vec());
            }
        }
        Self { what, forms }
    }

    /// Whether it lies in there.
    pub fn is_in(&self, haystack: &[u8]) -> bool {
        !found(slice::from_ref(self), haystack).is_empty()
    }
}

/// With so many bytes every form begins.
const HEAD: usize = 8;

/// What of these lies in there: one pass, however many they are.
pub fn found<'a>(secrets: &'a [Secret], haystack: &[u8]) -> Vec<&'a str> {
    let mut begins = vec![false; 1 << 16];
    let pair = |bytes: &[u8]| usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    let mut by_head: HashMap<&[u8], Vec<(usize, &[u8])>> = HashMap::new();
    for (n, secret) in secrets.iter().enumerate() {
        for form in &secret.forms {
            begins[pair(form)] = true;
            by_head.entry(&form[..HEAD]).or_default().push((n, form));
        }
    }
    let mut there = vec![false; secrets.len()];
    for (at, window) in haystack.windows(HEAD).enumerate() {
        if begins[pair(window)] {
            for (n, form) in by_head.get(window).into_iter().flatten() {
                there[*n] |= haystack[at..].starts_with(form);
            }
        }
    }
    let there = secrets.iter().zip(there).filter(|(_, there)| *there);
    there.map(|(secret, _)| secret.what.as_str()).collect()
}

/// The long lists of bytes in a pickle, with their paths; what is public is left out.
pub fn in_pickle(what: &str, pickle: &Value) -> Vec<Secret> {
    let mut found = Vec::new();
    collect(what, pickle, &mut found);
    found
}

fn collect(path: &str, value: &Value, found: &mut Vec<Secret>) {
    match value {
        Value::Array(items) if items.len() >= 32 && items.iter().all(Value::is_u64) => {
            let bytes: Vec<u8> =
                items.iter().filter_map(|item| u8::try_from(item.as_u64()?).ok()).collect();
            // A Megolm ratchet of all parts; of the longer ones each part is a secret.
            found.extend(
                bytes.chunks(32).filter(|part| part.len() == 32).map(|p| Secret::bytes(path, p)),
            );
        }
        Value::Array(items) => items.iter().for_each(|item| collect(path, item, found)),
        Value::Object(map) => {
            // What a key is verified with is public, and so is what goes before each Olm message.
            let public = |key: &str| {
                key.contains("public")
                    || path == "inbound_group_session.pickle" && key == "signing_key"
                    || matches!(key, "sender_key" | "session_keys" | "parent_ratchet_key")
                    || key == "ratchet_key" && !path.ends_with("active_ratchet")
            };
            for (key, value) in map.iter().filter(|(key, _)| !public(key)) {
                collect(&format!("{path}.{key}"), value, found);
            }
        }
        _ => {}
    }
}

#[test]
fn a_secret_is_found_in_every_form() {
    let secret = Secret::text("canary", "canary-0123456789");
    let plain = "xx{\"a\": \"canary-0123456789\"}";
    assert!(secret.is_in(plain.as_bytes()));
    for cut in 0..4 {
        let text = &plain.as_bytes()[cut..];
        assert!(secret.is_in(STANDARD_NO_PAD.encode(text).as_bytes()), "{cut}");
        assert!(secret.is_in(URL_SAFE_NO_PAD.encode(text).as_bytes()), "{cut}");
    }
    let hex: String = plain.bytes().map(|byte| format!("{byte:02x}")).collect();
    assert!(secret.is_in(hex.as_bytes()));
    assert!(secret.is_in(format!("{:?}", plain.as_bytes()).as_bytes()));
    assert!(!secret.is_in(b"canary-012345678"));
    let others =
        [Secret::text("one", "canary-9876543210"), Secret::text("two", "canary-0123456789")];
    assert_eq!(found(&others, plain.as_bytes()), ["two"]);
    let key: Vec<u8> = (0..32).collect();
    let pickle = serde_json::json!({ "keys": { "private": key, "public_key": key } });
    assert_eq!(in_pickle("account", &pickle).len(), 1);
}
