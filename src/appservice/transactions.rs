//! `PUT /_matrix/app/v1/transactions/{txnId}`.

use axum::{
    Json,
    extract::{Path, State},
};
use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{AppserviceState, auth::FromHomeserver, fan_out::fan_out, wire::Transaction};
use crate::{
    store::{Signal, StoreError, transactions},
    web::{ApiError, MatrixBytes},
};

/// Takes a transaction in: committed to Postgres, then `200 {}`. The homeserver takes anything but a
/// JSON body with its length for a failure, and drops to-device messages then.
///
/// An exact repeat is skipped as a whole. The same id with another body (which Synapse sends after a
/// failure) is taken in like any other: each item in it is recognised by itself.
pub(super) async fn put(
    _: FromHomeserver,
    State(state): State<AppserviceState>,
    Path(txn_id): Path<String>,
    MatrixBytes(body): MatrixBytes,
) -> Result<Json<Value>, ApiError> {
    let parsed: Map<String, Value> = serde_json::from_slice(&body).map_err(|error| {
        ApiError::not_json(format!("The transaction is not a JSON object: {error}"))
    })?;
    let digest = Sha256::digest(&body);
    drop(body);
    let now = state.clock.now();
    let transaction = Transaction::read(parsed);
    tracing::debug!(
        txn_id,
        events = transaction.events.len(),
        to_device = transaction.to_device.len(),
        changed_users = transaction.changed_users.len(),
        "transaction"
    );

    let attempt = state.refusals.attempt();
    take_in(&state, &txn_id, &digest, transaction, now).await?;
    attempt.taken();
    metrics::counter!("greenshield_transactions_total").increment(1);
    Ok(Json(json!({})))
}

/// One database transaction: all of it, or nothing.
async fn take_in(
    state: &AppserviceState,
    txn_id: &str,
    digest: &[u8],
    transaction: Transaction,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let mut tx = state.store.begin().await?;
    if transactions::take_in(&mut tx, txn_id, digest, now).await? {
        fan_out(&mut tx, state.store.sealer(), transaction, now).await?;
    }
    state.signals.announce(&[Signal::Work], &mut tx).await?;
    tx.commit().await?;
    state.signals.give(Signal::Work);
    Ok(())
}
