//! Free TCP ports on loopback.
//!
//! They come from below the kernel's ephemeral range, so that no outgoing connection takes one
//! between our look and the program's bind, and at random, so that two test runs seldom meet.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, TcpListener},
    sync::Mutex,
};

use super::random;

const FIRST: u16 = 10_000;
const COUNT: u16 = 10_000;

/// Ports this process has handed out: never twice, even if nobody has bound them yet.
static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port that is free now and that no other caller in this process gets.
pub fn free() -> u16 {
    let mut taken = TAKEN.lock().expect("no holder of this lock panics");
    loop {
        let port = FIRST + u16::from_le_bytes(random::bytes()) % COUNT;
        if !taken.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            taken.insert(port);
            return port;
        }
    }
}
