//! Scenes between people, bots and a homeserver.

mod harness;
#[macro_use]
mod scene;
mod direct_rooms;
mod restart;
mod rooms;
mod tiers;
mod verification;
mod verification_edges;
