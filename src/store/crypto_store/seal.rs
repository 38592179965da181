//! Sealing a value to its row.

use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::{PgCryptoStore, Result};
use crate::store::SealError;

impl PgCryptoStore {
    /// Seals `data` so that it opens only in this `table`, for this bot, under this `key`.
    pub(super) fn seal_bytes(
        &self,
        table: &'static str,
        key: &[&str],
        data: &[u8],
    ) -> Result<Vec<u8>> {
        let prefix = prefix(key);
        let mut plain = Zeroizing::new(Vec::with_capacity(prefix.len() + data.len()));
        plain.extend_from_slice(&prefix);
        plain.extend_from_slice(data);
        Ok(self.store.sealer().seal(table, Some(self.bot), &plain)?)
    }

    /// Opens what [`PgCryptoStore::seal_bytes`] made for the same row.
    pub(super) fn open_bytes(
        &self,
        table: &'static str,
        key: &[&str],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>> {
        let mut plain = self.store.sealer().open(table, Some(self.bot), sealed)?;
        let prefix = prefix(key);
        if !plain.starts_with(&prefix) {
            return Err(SealError::Damaged(table).into());
        }
        plain.drain(..prefix.len());
        Ok(plain)
    }

    /// [`PgCryptoStore::seal_bytes`] of a value as JSON.
    pub(super) fn seal(
        &self,
        table: &'static str,
        key: &[&str],
        value: &impl Serialize,
    ) -> Result<Vec<u8>> {
        let data =
            Zeroizing::new(serde_json::to_vec(value).map_err(|e| SealError::Content(table, e))?);
        self.seal_bytes(table, key, &data)
    }

    /// [`PgCryptoStore::open_bytes`] of a value as JSON.
    pub(super) fn open<T: DeserializeOwned>(
        &self,
        table: &'static str,
        key: &[&str],
        sealed: &[u8],
    ) -> Result<T> {
        let data = self.open_bytes(table, key, sealed)?;
        Ok(serde_json::from_slice(&data).map_err(|e| SealError::Content(table, e))?)
    }
}

/// The parts of a key, each after its length: no two keys of a table begin alike.
fn prefix(key: &[&str]) -> Vec<u8> {
    let mut prefix = Vec::with_capacity(key.iter().map(|part| 8 + part.len()).sum());
    for part in key {
        prefix.extend_from_slice(&(part.len() as u64).to_be_bytes());
        prefix.extend_from_slice(part.as_bytes());
    }
    prefix
}
