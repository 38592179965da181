//! Watching what the homeserver shows of our own bots: an identity that is not ours, or a device that
//! our identity has not signed, is somebody else speaking in a bot's name.
//!
//! Asked once in a while, with a reconcile. What is found is logged, counted, and stays in `bots.alarm`
//! until a later look finds it gone.

use chrono::Duration;
use ruma::api::client::keys::get_keys;
use tracing::error;

use super::{StepError, bot_worker::Step};
use crate::{
    crypto::{Published, PublishedDevice, PublishedIdentity},
    homeserver::As,
    store::{StoreError, alarms, bots, bots::PublicIdentity},
};

/// How often the homeserver is asked, at most: reconciles may come more often.
const EVERY: Duration = Duration::hours(6);

/// Asks what the homeserver shows of the bot. Needs neither its machine nor its device.
pub(super) async fn published(
    step: &mut Step<'_>,
    ours: &PublicIdentity,
) -> Result<Published, StepError> {
    let answer = ask(step).await?;
    Ok(Published::read(&answer, &step.bot.user_id, &step.bot.device_id, ours))
}

/// The homeserver's answer to a `/keys/query` about the bot.
pub(super) async fn ask(step: &mut Step<'_>) -> Result<get_keys::v3::Response, StepError> {
    let homeserver = step.homeserver().await?;
    let user = &step.bot.user_id;
    let mut request = get_keys::v3::Request::new();
    request.device_keys.insert(user.clone(), Vec::new());
    Ok(homeserver.send(As::User(user), request).await?)
}

/// Looks, if it is time. Only a look that was answered is one: what fails is tried again soon.
pub(super) async fn run(step: &mut Step<'_>) -> Result<(), StepError> {
    let mut conn = step.connection().await?;
    let due = alarms::is_check_due(&mut conn, step.bot.id, step.now() - EVERY).await?;
    let ours = bots::identity(&mut conn, step.bot.id).await?;
    drop(conn);
    let Some(ours) = ours.filter(|_| due) else { return Ok(()) };
    let published = published(step, &ours).await?;
    raise(step, &published).await
}

/// Makes known what is wrong, and that nothing is any more.
pub(super) async fn raise(step: &mut Step<'_>, published: &Published) -> Result<(), StepError> {
    let alarm = alarm(published);
    if published.identity == PublishedIdentity::Other {
        metrics::counter!("greenshield_identity_mismatch").increment(1);
    }
    for what in own_keys_wrong(published) {
        metrics::counter!("greenshield_own_keys_wrong", "what" => what).increment(1);
    }
    if !published.foreign_devices.is_empty() {
        metrics::counter!("greenshield_foreign_devices")
            .increment(published.foreign_devices.len() as u64);
    }
    if let Some(alarm) = &alarm {
        error!(user_id = %step.bot.user_id, alarm, "the homeserver does not show the bot as it is");
    }
    let mut tx = step.begin().await?;
    alarms::note(&mut tx, step.bot.id, alarm.as_deref(), step.now()).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(())
}

/// What of the bot's own the homeserver has lost, or shows without our signature.
fn own_keys_wrong(published: &Published) -> impl Iterator<Item = &'static str> {
    let identity = match published.identity {
        PublishedIdentity::Missing => Some("identity_missing"),
        PublishedIdentity::Ours | PublishedIdentity::Other => None,
    };
    let device = match published.device {
        PublishedDevice::Missing => Some("device_missing"),
        PublishedDevice::Unsigned { .. } => Some("device_unsigned"),
        PublishedDevice::Signed { .. } => None,
    };
    identity.into_iter().chain(device)
}

/// What is wrong, in words.
fn alarm(published: &Published) -> Option<String> {
    let mut wrong = Vec::new();
    match published.identity {
        PublishedIdentity::Ours => {}
        PublishedIdentity::Missing => {
            wrong.push("the homeserver shows no cross-signing identity of this bot".to_owned());
        }
        PublishedIdentity::Other => wrong.push(
            "the homeserver shows another cross-signing identity for this bot than ours: somebody \
             may be speaking in its name"
                .to_owned(),
        ),
    }
    if !published.foreign_devices.is_empty() {
        wrong.push(format!(
            "the bot has devices that its identity has not signed ({}): remove them at the homeserver",
            published.foreign_devices.join(", ")
        ));
    }
    match published.device {
        PublishedDevice::Signed { .. } => {}
        PublishedDevice::Missing => wrong.push(
            "the homeserver does not show the bot's device: run `greenshield bots repair`"
                .to_owned(),
        ),
        PublishedDevice::Unsigned { .. } => wrong.push(
            "the bot's device is not signed by its identity: run `greenshield bots repair`"
                .to_owned(),
        ),
    }
    (!wrong.is_empty()).then(|| wrong.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_wrong_is_told() {
        let whole = Published {
            identity: PublishedIdentity::Ours,
            device: PublishedDevice::Signed { curve25519: None },
            foreign_devices: Vec::new(),
        };
        assert_eq!(alarm(&whole), None);
        assert_eq!(own_keys_wrong(&whole).count(), 0);

        let foreign = Published { foreign_devices: vec!["ALIEN".to_owned()], ..whole.clone() };
        let text = alarm(&foreign).expect("an alarm");
        assert!(text.contains("ALIEN") && !text.contains("another"), "{text}");

        let lost = Published {
            identity: PublishedIdentity::Missing,
            device: PublishedDevice::Missing,
            ..whole.clone()
        };
        let told: Vec<_> = own_keys_wrong(&lost).collect();
        assert_eq!(told, ["identity_missing", "device_missing"]);

        let replaced = Published { identity: PublishedIdentity::Other, ..whole };
        assert!(alarm(&replaced).expect("an alarm").contains("another cross-signing identity"));
    }
}
