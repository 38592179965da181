//! Scenes between people, bots and a homeserver.

mod harness;
mod scene;
mod tiers;
