//! Scenes between people, bots and a homeserver.

/// A scene for both engines: a module with the two tests, beside the function with its name.
macro_rules! with_both_engines {
    ($($scene:ident),* $(,)?) => {
        $(mod $scene {
            use crate::support::human::Engine;

            #[tokio::test(flavor = "multi_thread")]
            async fn rust() -> anyhow::Result<()> {
                super::$scene(Engine::Rust).await
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn js() -> anyhow::Result<()> {
                super::$scene(Engine::Js).await
            }
        })*
    };
}

mod harness;
#[macro_use]
pub mod scene;
mod balancer;
mod direct_rooms;
mod keys;
mod repair;
mod restart;
mod rooms;
mod tiers;
mod verification;
mod verification_edges;
