//! What is told of a panic: where, and never what it says.
//!
//! Its words are often made of the values at hand: slicing a text in the wrong place quotes the text.

use std::{
    io::Write as _,
    panic::{self, Location},
};

use tracing::error;

/// From now on a panic of this process is one line with its place, and no more.
pub fn tell_panics() {
    panic::set_hook(Box::new(|panic| tell(panic.location())));
}

fn tell(place: Option<&Location<'_>>) {
    let place = place.map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    if tracing::dispatcher::has_been_set() {
        error!(place, "panicked: this is a bug");
    } else {
        // Before there is a log. If this cannot be told either, there is nobody left to tell.
        let _ = writeln!(std::io::stderr(), "greenshield panicked at {place}: this is a bug");
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::telemetry::{Format, init};

    const CHILD: &str = "GREENSHIELD_TEST_PANIC";

    /// A panic that quotes what it works on.
    fn slice() {
        let text = "canary \u{e9}".to_owned();
        let sliced = panic::catch_unwind(move || text[..8].len());
        assert!(sliced.is_err());
    }

    /// In a process of its own, because a process has one hook: this one, run again.
    #[test]
    fn a_panic_is_told_by_its_place_and_not_in_its_words() {
        if std::env::var_os(CHILD).is_some() {
            tell_panics();
            slice();
            init(Format::Json, "greenshield=info").expect("the first call");
            return slice();
        }
        let name = "telemetry::panics::tests::a_panic_is_told_by_its_place_and_not_in_its_words";
        let output = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .expect("runs");
        let said = String::from_utf8(output.stderr).expect("text");
        assert!(output.status.success(), "{said}");
        let told: Vec<&str> =
            said.lines().filter(|line| line.contains("src/telemetry/panics.rs:")).collect();
        let [first, second] = told[..] else { panic!("not two lines: {said}") };
        assert!(first.starts_with("greenshield panicked at src/"), "{said}");
        let second: serde_json::Value = serde_json::from_str(second).expect("a log line");
        assert_eq!(second["message"], "panicked: this is a bug");
        assert!(!said.contains("canary"), "{said}");
    }
}
