//! A homeserver with greenshield beside it, and the people who meet there.

use anyhow::Result;
use sqlx::PgPool;
use tokio::sync::OnceCell;

use super::{
    greenshield::Greenshield,
    human::{Engine, Human, LoginOptions},
    postgres::Database,
    synapse::Synapse,
};

/// Dropped in this order: greenshield, its homeserver, its database.
pub struct World {
    pub greenshield: Greenshield,
    pub synapse: Synapse,
    pub postgres: Database,
}

impl World {
    /// A world of one's own, for tests that stop or break parts of it.
    pub async fn start() -> Result<Self> {
        let postgres = Database::create().await?;
        let mut synapse = Synapse::prepare()?;
        let mut greenshield = Greenshield::install(&synapse.url(), &postgres.url())?;
        synapse.start(&[&greenshield.registration()]).await?;
        greenshield.start().await?;
        Ok(Self { greenshield, synapse, postgres })
    }

    /// The world that all tests of this process share. They stay apart by the names of their bots
    /// and humans, and must not stop anything.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<World> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    /// A new human with a logged-in client of this kind.
    pub async fn human(&self, engine: Engine, name: &str) -> Result<Box<dyn Human>> {
        self.human_with(engine, name, LoginOptions::default()).await
    }

    pub async fn human_with(
        &self,
        engine: Engine,
        name: &str,
        options: LoginOptions,
    ) -> Result<Box<dyn Human>> {
        let credentials = self.synapse.register_human(name).await?;
        engine.log_in(&credentials, options).await
    }

    /// greenshield's database, for the calling test.
    pub async fn sql(&self) -> Result<PgPool> {
        self.postgres.pool().await
    }
}
