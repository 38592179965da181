//! Against a real Postgres, each test in a database of its own.

mod at_rest;
mod concurrent;
mod damage;
mod fencing;
mod isolation;
mod machine;
mod memory;
mod rows;
mod tracked;
mod upstream;
mod world;
