//! Public keys as people read them.

/// A public key in groups of four, for reading aloud.
#[must_use]
pub fn fingerprint(key: &str) -> String {
    let mut text = String::with_capacity(key.len() + key.len() / 4);
    for (n, character) in key.chars().enumerate() {
        if n > 0 && n % 4 == 0 {
            text.push(' ');
        }
        text.push(character);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::fingerprint;

    #[test]
    fn a_fingerprint_is_in_groups_of_four() {
        assert_eq!(fingerprint("abcdefghij"), "abcd efgh ij");
        assert_eq!(fingerprint("abcd"), "abcd");
        assert_eq!(fingerprint(""), "");
    }
}
