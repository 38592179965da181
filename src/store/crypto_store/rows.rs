//! Rows that are to be written: pickled, sealed, and the bot in every key, so that those of many bots
//! go to the database together, a statement per table.

use sqlx::PgConnection;

use super::{account, devices, group_sessions, outbound, requests, rooms, sessions, users, values};
use crate::store::StoreError;

/// What machines have changed. Of two versions of a row the later one is kept.
#[derive(Clone, Debug, Default)]
pub struct CryptoRows {
    pub(super) accounts: account::Rows,
    pub(super) values: values::Rows,
    pub(super) devices: devices::Rows,
    pub(super) identities: devices::IdentityRows,
    pub(super) sessions: sessions::Rows,
    pub(super) hashes: sessions::Hashes,
    pub(super) inbound: group_sessions::InboundRows,
    pub(super) outbound: outbound::Rows,
    pub(super) tracked: users::Rows,
    pub(super) requests: requests::Rows,
    pub(super) secrets: requests::SecretRows,
    pub(super) rooms: rooms::Rows,
}

impl CryptoRows {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.accounts.is_empty()
            && self.values.is_empty()
            && self.devices.is_empty()
            && self.identities.is_empty()
            && self.sessions.is_empty()
            && self.hashes.is_empty()
            && self.inbound.is_empty()
            && self.outbound.is_empty()
            && self.tracked.is_empty()
            && self.requests.is_empty()
            && self.secrets.is_empty()
            && self.rooms.is_empty()
    }

    /// Takes the rows of `newer` in.
    pub fn merge(&mut self, newer: Self) {
        self.accounts.extend(newer.accounts);
        self.values.extend(newer.values);
        self.devices.extend(newer.devices);
        self.identities.extend(newer.identities);
        self.sessions.extend(newer.sessions);
        self.hashes.extend(newer.hashes);
        self.inbound.extend(newer.inbound);
        self.outbound.extend(newer.outbound);
        self.tracked.extend(newer.tracked);
        self.requests.extend(newer.requests);
        self.secrets.extend(newer.secrets);
        self.rooms.merge(newer.rooms);
    }

    /// Writes all of it, table by table, always in the same order. The caller holds the leases of the
    /// bots whose rows these are.
    ///
    /// # Errors
    ///
    /// The database's own, or [`StoreError::OtherAccount`].
    pub async fn write(self, conn: &mut PgConnection) -> Result<(), StoreError> {
        account::save(conn, self.accounts).await?;
        values::save(conn, self.values).await?;
        devices::save(conn, self.devices).await?;
        devices::save_identities(conn, self.identities).await?;
        sessions::save(conn, self.sessions).await?;
        sessions::save_hashes(conn, self.hashes).await?;
        group_sessions::save_inbound(conn, self.inbound, None).await?;
        outbound::save(conn, self.outbound).await?;
        users::save(conn, self.tracked).await?;
        requests::save(conn, self.requests).await?;
        requests::save_secrets(conn, self.secrets).await?;
        self.rooms.save(conn).await
    }
}
