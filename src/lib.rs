//! greenshield gives a fleet of Matrix bots end-to-end encryption.

pub mod clock;
pub mod model;
pub mod store;
