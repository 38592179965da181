//! Verification on matrix-rust-sdk: how the Rust human asks for one, and how far one is.

use anyhow::{Context as _, Result, bail, ensure};
use matrix_sdk::{
    Client,
    encryption::{
        identities::UserIdentity,
        verification::{
            CancelInfo, SasState, SasVerification, VerificationRequest, VerificationRequestState,
        },
    },
    ruma::{DeviceId, RoomId, UserId, events::key::verification::VerificationMethod},
};

use super::{Emoji, PATIENCE, Phase, Verification, Via};
use crate::support::poll::Wait;

/// A human compares emoji, and scans nothing.
pub(super) fn methods() -> Vec<VerificationMethod> {
    vec![VerificationMethod::SasV1]
}

/// A user's identity as our client knows it. It keeps up with those alone with whom it shares an
/// encrypted room: everybody else's is fetched.
pub(super) async fn identity(client: &Client, user_id: &UserId) -> Result<Option<UserIdentity>> {
    let encryption = client.encryption();
    let followed = encryption.tracked_users().await?.contains(user_id);
    match encryption.get_user_identity(user_id).await? {
        Some(known) if followed => Ok(Some(known)),
        _ => Ok(encryption.request_user_identity(user_id).await?),
    }
}

pub(super) async fn request(
    client: &Client,
    user_id: &UserId,
    via: Via<'_>,
) -> Result<VerificationRequest> {
    let mut wait = Wait::new(format!("an identity of {user_id}"), PATIENCE);
    let identity = loop {
        match identity(client, user_id).await? {
            Some(identity) => break identity,
            None => wait.again().await?,
        }
    };
    match via {
        Via::Room(room_id) => {
            use_as_dm(client, user_id, room_id.try_into()?).await?;
            Ok(identity.request_verification_with_methods(methods()).await?)
        }
        Via::ToDevice(device_id) => {
            let device = client
                .encryption()
                .get_device(user_id, <&DeviceId>::from(device_id))
                .await?
                .with_context(|| format!("{user_id} has no device {device_id}"))?;
            Ok(device.request_verification_with_methods(methods()).await?)
        }
    }
}

/// Element asks in the direct chat, and the SDK looks in `m.direct` for it. So that it finds this
/// room: mark it, and wait until the mark comes back from the homeserver.
async fn use_as_dm(client: &Client, user_id: &UserId, room_id: &RoomId) -> Result<()> {
    let is_dm = || client.get_dm_rooms(user_id).any(|room| room.room_id() == room_id);
    if !is_dm() {
        client.account().mark_as_dm(room_id, &[user_id.to_owned()]).await?;
        let mut wait = Wait::new(format!("{room_id} to be a direct chat"), PATIENCE);
        while !is_dm() {
            wait.again().await?;
        }
    }
    let chosen = client.get_dm_room(user_id).context("there is a direct chat")?;
    ensure!(
        chosen.room_id() == room_id,
        "matrix-rust-sdk would ask in {}, an older direct chat with {user_id}",
        chosen.room_id(),
    );
    Ok(())
}

/// The comparison that a request has led to.
pub(super) fn sas(request: &VerificationRequest) -> Result<SasVerification> {
    let VerificationRequestState::Transitioned { verification } = request.state() else {
        bail!("nothing to compare: {:?}", request.state());
    };
    verification.sas().context("not a SAS verification")
}

/// How far the flow is, once it is in the wanted phase. Agrees to a SAS that the other side
/// starts, as Element does: its user has said yes to the request already.
pub(super) async fn reached(
    request: &VerificationRequest,
    wanted: Phase,
) -> Result<Option<Verification>> {
    if let Ok(sas) = sas(request)
        && matches!(sas.state(), SasState::Started { .. })
        && !sas.we_started()
    {
        sas.accept().await?;
    }
    let now = observe(request);
    let over = matches!(now.phase, Phase::Done | Phase::Cancelled);
    let reached = match wanted {
        Phase::Finished => over,
        Phase::Cancelled => now.phase == Phase::Cancelled,
        _ => now.phase >= wanted && now.phase != Phase::Cancelled,
    };
    ensure!(reached || !over, "the flow ended otherwise: {now:?}");
    Ok(reached.then_some(now))
}

fn observe(request: &VerificationRequest) -> Verification {
    let in_phase = |phase| Verification { phase, emoji: None, decimals: None, cancel_code: None };
    let cancelled = |info: CancelInfo| Verification {
        cancel_code: Some(info.cancel_code().to_string()),
        ..in_phase(Phase::Cancelled)
    };
    let sas = match request.state() {
        VerificationRequestState::Created { .. } | VerificationRequestState::Requested { .. } => {
            return in_phase(Phase::Requested);
        }
        VerificationRequestState::Ready { .. } => return in_phase(Phase::Ready),
        VerificationRequestState::Done => return in_phase(Phase::Done),
        VerificationRequestState::Cancelled(info) => return cancelled(info),
        VerificationRequestState::Transitioned { verification } => match verification.sas() {
            Some(sas) => sas,
            None => return in_phase(Phase::Started),
        },
    };
    match sas.state() {
        SasState::Created { .. } | SasState::Started { .. } | SasState::Accepted { .. } => {
            in_phase(Phase::Started)
        }
        SasState::KeysExchanged { emojis, decimals: (a, b, c) } => Verification {
            emoji: emojis.map(|shown| {
                let shown = shown.emojis.iter();
                shown
                    .map(|emoji| Emoji {
                        symbol: emoji.symbol.to_owned(),
                        name: emoji.description.to_owned(),
                    })
                    .collect()
            }),
            decimals: Some(vec![a, b, c]),
            ..in_phase(Phase::Sas)
        },
        SasState::Confirmed => in_phase(Phase::Confirmed),
        SasState::Done { .. } => in_phase(Phase::Done),
        SasState::Cancelled(info) => cancelled(info),
    }
}
