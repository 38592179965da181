//! Shapes that homeservers and clients truly send (`corpus/`), bent by dice.

use std::{fs, path::Path, sync::LazyLock};

use serde_json::{Value, json};

pub static TRANSACTIONS: LazyLock<Vec<Value>> = LazyLock::new(|| corpus("transactions"));
pub static SIGNUPS: LazyLock<Vec<Value>> = LazyLock::new(|| corpus("signups"));
/// The fields of the page's form, or of its link.
pub static FORMS: LazyLock<Vec<Value>> = LazyLock::new(|| corpus("forms"));
/// `LISTENER METHOD PATH`: 0 is the homeserver's, 1 the public one, 2 the operator's.
pub static PATHS: LazyLock<Vec<String>> = LazyLock::new(|| lines("paths.txt"));
/// `Name: value`.
pub static HEADERS: LazyLock<Vec<String>> = LazyLock::new(|| lines("headers.txt"));

fn corpus(folder: &str) -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attacks/corpus").join(folder);
    let entries = fs::read_dir(&folder).expect("the corpus is there");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let read = |path| fs::read_to_string(path).expect("readable");
    paths.iter().map(|path| serde_json::from_str(&read(path)).expect("JSON")).collect()
}

fn lines(file: &str) -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attacks/corpus").join(file);
    let text = fs::read_to_string(file).expect("the corpus is there");
    text.lines().map(ToOwned::to_owned).collect()
}

/// Choices, taken from whatever bytes a fuzzer thinks of; all zero when they are used up.
pub struct Dice<'a>(&'a [u8]);

impl<'a> Dice<'a> {
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// Below `most`.
    pub fn below(&mut self, most: usize) -> usize {
        let number = usize::from(self.byte()) << 8 | usize::from(self.byte());
        number % most.max(1)
    }
}

/// One of the shapes, bent: seldom still JSON, often still almost the shape.
pub fn bent(shapes: &[Value], dice: &mut Dice<'_>) -> Vec<u8> {
    let mut text = bent_shape(shapes, dice).to_string().into_bytes();
    for _ in 0..dice.below(3) {
        bend_text(&mut text, dice);
    }
    text
}

fn bent_shape(shapes: &[Value], dice: &mut Dice<'_>) -> Value {
    let mut shape = shapes[dice.below(shapes.len())].clone();
    for _ in 0..dice.below(5) {
        bend(&mut shape, shapes, dice);
    }
    shape
}

/// A form, bent, as it is sent: `a=b&c=d`.
pub fn bent_form(dice: &mut Dice<'_>) -> String {
    let shape = bent_shape(&FORMS, dice);
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in shape.as_object().into_iter().flatten() {
        match value {
            Value::String(text) => form.append_pair(name, text),
            Value::Array(values) => {
                form.extend_pairs(values.iter().map(|value| (name, value.to_string())))
            }
            value => form.append_pair(name, &value.to_string()),
        };
    }
    bent_line(&form.finish(), dice)
}

/// A line of a request's head or a form, bent; still one line, and never longer than a head may be.
pub fn bent_line(line: &str, dice: &mut Dice<'_>) -> String {
    let odd = [
        "%00",
        "%2F",
        "%ff",
        "%",
        "%25",
        "..",
        "/",
        "//",
        "?",
        "#",
        "&",
        "=",
        "+",
        ";",
        ":",
        "@",
        ",",
        " ",
        "\t",
        "\"",
        "\u{e9}",
        "\u{1f6e1}",
        "\u{7f}",
        "*",
        "~",
        "[",
        "]",
        "0",
        "-1",
        "null",
    ];
    let mut line: Vec<char> = line.chars().collect();
    for _ in 0..dice.below(4) {
        let at = dice.below(line.len());
        match dice.below(6) {
            0 => line.truncate(at),
            1 => drop(line.drain(at..(at + dice.below(9)).min(line.len()))),
            2 => drop(line.splice(at..at, std::iter::repeat_n('x', dice.below(3000)))),
            3 => {
                let end = (at + dice.below(100)).min(line.len());
                let again = line[at..end].to_vec();
                line.splice(at..at, again);
            }
            _ => drop(line.splice(at..at, odd[dice.below(odd.len())].chars())),
        }
    }
    line.into_iter().filter(|c| !matches!(c, '\r' | '\n')).collect()
}

/// Goes down to some value, and does something to it.
fn bend(value: &mut Value, shapes: &[Value], dice: &mut Dice<'_>) {
    match value {
        Value::Object(map) if !map.is_empty() && dice.below(8) > 0 => {
            let key = map.keys().nth(dice.below(map.len())).cloned().unwrap_or_default();
            match dice.below(12) {
                0 => drop(map.remove(&key)),
                1 => {
                    let value = map.remove(&key).unwrap_or_default();
                    map.insert(odd_text(dice), value);
                }
                2 => drop(map.insert(odd_text(dice), odd(shapes, dice))),
                _ => bend(&mut map[&key], shapes, dice),
            }
        }
        Value::Array(items) if !items.is_empty() && dice.below(8) > 0 => {
            let at = dice.below(items.len());
            match dice.below(8) {
                0 => drop(items.remove(at)),
                1 => items.push(items[at].clone()),
                2 => items.insert(at, odd(shapes, dice)),
                _ => bend(&mut items[at], shapes, dice),
            }
        }
        value => *value = odd(shapes, dice),
    }
}

fn odd(shapes: &[Value], dice: &mut Dice<'_>) -> Value {
    match dice.below(14) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(-1),
        3 => json!(u64::MAX),
        4 => json!(i64::MIN),
        5 => json!(1e300),
        6 => json!([]),
        7 => json!({}),
        8 => (0..dice.below(200)).fold(json!({}), |inner, _| json!([inner])),
        9 => (0..dice.below(200)).fold(json!(0), |inner, _| json!({ "content": inner })),
        10 => shapes[dice.below(shapes.len())].clone(),
        _ => odd_text(dice).into(),
    }
}

fn odd_text(dice: &mut Dice<'_>) -> String {
    let odd = [
        "",
        "\0",
        "x\0y",
        "@bot:example.org",
        "@alice:example.org",
        "!room:example.org",
        "$text",
        "*",
        "m.room.encrypted",
        "m.room_key",
        "m.key.verification.start",
        "m.key.verification.cancel",
        "content",
        "type",
        "sender",
        "state_key",
        "session_id",
        "transaction_id",
        "to_user_id",
        "🛡",
        "\u{202e}",
        "\n\r\t",
        "../../x",
        "%00",
        "' OR 1=1 --",
        "a:b:c",
        "code",
        "username",
        "intro",
    ];
    match dice.below(odd.len() + 3) {
        n if n < odd.len() => odd[n].to_owned(),
        n if n == odd.len() => "x".repeat(dice.below(60_000)),
        _ => (0..dice.below(300)).map(|_| char::from(dice.byte())).collect(),
    }
}

fn bend_text(text: &mut Vec<u8>, dice: &mut Dice<'_>) {
    let at = dice.below(text.len());
    let odd: [&[u8]; 14] = [
        b"\\u0000",
        b"\\ud800",
        b"\\udc00\\ud800",
        b"1e999",
        b"-",
        b"\"",
        b"}",
        b"]",
        b"{",
        b"[",
        b",",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\0",
    ];
    match dice.below(5) {
        0 => text.truncate(at),
        1 => drop(text.splice(at..at, odd[dice.below(odd.len())].iter().copied())),
        2 => {
            if let Some(byte) = text.get_mut(at) {
                *byte ^= dice.byte() | 1;
            }
        }
        3 => drop(text.splice(at..at, vec![b'9'; dice.below(500)])),
        _ => {
            let end = (at + dice.below(100)).min(text.len());
            let again = text[at..end].to_vec();
            text.splice(at..at, again);
        }
    }
}
