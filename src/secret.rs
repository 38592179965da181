//! Random secrets, their digests, and comparing them without telling how far they agree.

use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// The characters that a random string is drawn from.
#[derive(Clone, Copy, Debug)]
pub enum Alphabet {
    /// Letters and digits: tokens for machines.
    Alphanumeric,
    /// Lower-case letters and digits that are not mistaken for each other: codes for people.
    Readable,
    /// Lower-case letters and digits: localparts.
    Lower,
    /// Upper-case letters: device ids.
    Upper,
}

impl Alphabet {
    const fn characters(self) -> &'static [u8] {
        match self {
            Self::Alphanumeric => b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
            Self::Readable => b"abcdefghijkmnpqrstuvwxyz23456789",
            Self::Lower => b"abcdefghijklmnopqrstuvwxyz0123456789",
            Self::Upper => b"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        }
    }
}

/// The system has no randomness to give.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandomness(#[source] getrandom::Error);

/// A random string of `length` characters, each equally likely.
///
/// # Errors
///
/// Only if the system has no randomness.
pub fn random_string(alphabet: Alphabet, length: usize) -> Result<String, NoRandomness> {
    let characters = alphabet.characters();
    // Bytes beyond the last whole multiple would favour the first characters.
    let fair = 256 - 256 % characters.len();
    let mut text = String::with_capacity(length);
    let mut bytes = [0_u8; 64];
    while text.len() < length {
        getrandom::fill(&mut bytes).map_err(NoRandomness)?;
        let drawn = bytes.iter().map(|b| usize::from(*b)).filter(|b| *b < fair);
        text.extend(
            drawn.take(length - text.len()).map(|b| char::from(characters[b % characters.len()])),
        );
    }
    Ok(text)
}

/// [`random_string`] as a secret that does not print itself.
///
/// # Errors
///
/// As [`random_string`].
pub fn random_secret(alphabet: Alphabet, length: usize) -> Result<SecretString, NoRandomness> {
    Ok(random_string(alphabet, length)?.into())
}

/// SHA-256 of a token or code: what the database keeps of it. Enough without a salt, because these
/// are long and random, never chosen by people.
#[must_use]
pub fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// Whether two secrets are equal, in a time that depends on neither.
#[must_use]
pub fn equal(one: &str, other: &str) -> bool {
    digest(one).ct_eq(&digest(other)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_strings_keep_length_and_alphabet() {
        let token = random_string(Alphabet::Alphanumeric, 64).expect("randomness");
        assert_eq!(token.len(), 64);
        assert!(token.bytes().all(|b| b.is_ascii_alphanumeric()));
        let device = random_string(Alphabet::Upper, 10).expect("randomness");
        assert!(device.len() == 10 && device.bytes().all(|b| b.is_ascii_uppercase()));
        assert_ne!(token, random_string(Alphabet::Alphanumeric, 64).expect("randomness"));
    }

    #[test]
    fn only_equal_secrets_are_equal() {
        assert!(equal("abc", "abc"));
        assert!(!equal("abc", "abd"));
        assert!(!equal("abc", "abcd"));
        assert!(!equal("", "a"));
    }
}
