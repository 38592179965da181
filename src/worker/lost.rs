//! Verifications of which something was lost: a message on its way to us, or, by a restart, the whole
//! flow, which lives in memory only.

use chrono::{DateTime, Duration, Utc};
use ruma::{
    TransactionId, UserId,
    api::client::to_device::send_event_to_device,
    events::{ToDeviceEventType, key::verification::cancel::CancelCode},
    serde::Raw,
    to_device::DeviceIdOrAllDevices,
};
use serde_json::json;
use tracing::warn;

use super::{StepError, bot_worker::Step, send, verify};
use crate::{
    model::VerificationState,
    store::{
        StoreError, verifications,
        verifications::{OpenVerification, Progress},
    },
    telemetry::chain,
};

/// How soon and how late we ask for lost messages of a verification, which lasts ten minutes at most.
const LOOK_SOON: Duration = Duration::seconds(3);
const LOOK_LATE: Duration = Duration::seconds(60);

/// Of two to-device messages at the same moment Synapse may bring an application service only the
/// later one. A room key that is missed so shows as an event that cannot be decrypted; a message of a
/// verification shows as nothing at all, so while one runs over to-device we ask.
pub(super) fn ask_again(step: &mut Step<'_>, begun: DateTime<Utc>) {
    let now = step.now();
    let wait = ((now - begun) / 2).clamp(LOOK_SOON, LOOK_LATE);
    step.ask_reconcile(now + wait);
}

/// A row whose flow is gone: we were restarted meanwhile. The other side is told, so that it does not
/// wait for ten minutes, and the human can ask again.
///
/// Where both had confirmed, only the human's last word was still to come: that one is done.
pub(super) async fn flow(step: &mut Step<'_>, row: &OpenVerification) -> Result<(), StepError> {
    if row.state == VerificationState::Confirmed && row.mac_received {
        verify::start_new_keys(step, &row.other_user_id).await?;
        return end(step, row, VerificationState::Done, Progress::default()).await;
    }
    warn!(verification = %row.id, "cancelling a verification that a restart broke off");
    let code = CancelCode::User;
    let reason = "The bot was restarted meanwhile: please verify again";
    if let Some(room) = &row.room_id {
        let content = json!({
            "code": code.as_str(),
            "reason": reason,
            "m.relates_to": { "rel_type": "m.reference", "event_id": row.flow_id },
        });
        let txn_id = format!("gs-{}-cancel-{}", step.bot.id, row.id);
        let kind = "m.key.verification.cancel";
        match send::message(step, room, kind, &content, txn_id.as_str().into()).await {
            Err(error) if !matches!(error, StepError::Fail { .. }) => return Err(error),
            Err(error) => {
                warn!(error = chain(&error), "could not tell that the verification is cancelled");
            }
            Ok(_) => {}
        }
    } else {
        let device = row.other_device_id.as_deref();
        cancel(step, &row.other_user_id, device, &row.flow_id, &code, reason).await?;
    }
    let progress = Progress {
        cancel_code: Some(code.as_str().to_owned()),
        cancel_reason: Some(reason.to_owned()),
        ..Progress::default()
    };
    end(step, row, VerificationState::Cancelled, progress).await
}

async fn end(
    step: &mut Step<'_>,
    row: &OpenVerification,
    state: VerificationState,
    progress: Progress,
) -> Result<(), StepError> {
    let mut tx = step.begin().await?;
    verifications::advance(&mut tx, row.id, state, &progress, step.now()).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(())
}

/// A cancel for a flow that the machine does not have.
pub(super) async fn cancel(
    step: &mut Step<'_>,
    user: &UserId,
    device: Option<&str>,
    flow_id: &str,
    code: &CancelCode,
    reason: &str,
) -> Result<(), StepError> {
    let content = json!({
        "transaction_id": flow_id,
        "code": code.as_str(),
        "reason": reason,
    });
    let content = serde_json::value::to_raw_value(&content)
        .map_err(|e| StepError::fail("M_UNKNOWN", e.to_string()))?;
    let device = device.map_or(DeviceIdOrAllDevices::AllDevices, |device| {
        DeviceIdOrAllDevices::DeviceId(device.into())
    });
    let messages = [(user.to_owned(), [(device, Raw::from_json(content))].into())].into();
    let request = send_event_to_device::v3::Request::new_raw(
        ToDeviceEventType::from("m.key.verification.cancel"),
        TransactionId::new(),
        messages,
    );
    step.homeserver().await?.send((&step.actor).into(), request).await?;
    Ok(())
}
