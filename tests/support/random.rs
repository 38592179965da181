//! Names and secrets nobody else has: tests share a homeserver and a Postgres, and stay apart by
//! these.

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// `N` random bytes.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system has random bytes");
    bytes
}

/// Twelve lower-case hexadecimal digits, fit for a Matrix localpart and a database name.
pub fn suffix() -> String {
    bytes::<6>().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 32 random bytes in base64, the shape of a secret.
pub fn secret() -> String {
    STANDARD.encode(bytes::<32>())
}
