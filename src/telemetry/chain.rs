//! An error with its causes, in one line.

use std::error::Error;

/// What happened and why: the error and each of its causes once, joined with colons. An error's own
/// text never repeats its cause, so this is how an error is logged, once, where it ends.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let cause = source.to_string();
        // Some libraries repeat their source in their own text.
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        next = source.source();
    }
    text
}
