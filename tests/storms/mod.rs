//! greenshield under storms: killed at random and at chosen instants, and with a Postgres that falls
//! over, refuses, or cannot write, while people talk. Afterwards a ledger is drawn up of what each of
//! them said and read, and nothing may be missing from it, or be there twice.
//!
//! Small in the ordinary suite; `scripts/reliability` makes them large, and a table of them.

mod absence;
mod instants;
mod kills;
mod ledger;
mod outages;
mod sas;
mod signup;
mod village;
