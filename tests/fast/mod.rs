//! greenshield, the real program with a real Postgres, beside a homeserver that does what a test
//! wants: for everything that a real one cannot be made to do. Seconds each.

mod bad_input;
mod devices;
mod failures;
mod guard;
mod panics;
mod plaintext;
mod repair;
mod room_keys;
pub mod scene;
pub mod signup;
mod transactions;
mod verification;
