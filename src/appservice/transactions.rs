//! `PUT /_matrix/app/v1/transactions/{txnId}`.

use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{AppserviceState, auth::FromHomeserver, fan_out::fan_out, wire::Transaction};
use crate::{
    model::foreign,
    store::{Connection, Signal, StoreError, transactions},
    web::{ApiError, MatrixBytes, MatrixPath},
};

/// Takes a transaction in: committed to Postgres, then `200 {}`. The homeserver takes anything but a
/// JSON body with its length for a failure, and drops to-device messages then.
///
/// An exact repeat is skipped as a whole. The same id with another body (which Synapse sends after a
/// failure) is taken in like any other: each item in it is recognised by itself.
pub(super) async fn put(
    _: FromHomeserver,
    State(state): State<AppserviceState>,
    MatrixPath(txn_id): MatrixPath,
    MatrixBytes(body): MatrixBytes,
) -> Result<Json<Value>, ApiError> {
    if !foreign::is_id(&txn_id) {
        return Err(ApiError::invalid_param("A transaction's id has up to 255 bytes, and no NUL"));
    }
    let transaction = Transaction::read(&body).map_err(|error| {
        // What is no object may be anything, and is not repeated.
        let why = if error.is_data() { "it is something else".into() } else { error.to_string() };
        ApiError::not_json(format!("The transaction is not a JSON object: {why}"))
    })?;
    let digest = Sha256::digest(&body);
    drop(body);
    let now = state.clock.now();
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
    let write = async |tx: &mut Connection| {
        let wakes = transactions::take_in(tx, txn_id, digest, now).await?
            && fan_out(tx, state.store.sealer(), transaction, now).await?;
        if wakes {
            state.signals.announce(&[Signal::Work], tx).await?;
        }
        Ok(wakes)
    };
    if state.store.transaction(write).await? {
        state.signals.give(Signal::Work);
    }
    Ok(())
}
