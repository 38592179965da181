//! Transactions that were not taken in: the homeserver sends them again, without their to-device
//! messages, and later and later. Somebody must know, to ask for both.

use std::sync::Arc;

use tokio::sync::Notify;

/// Where refusals are told; cheap to clone, and all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Refusals {
    news: Arc<Notify>,
}

impl Refusals {
    /// Waits for a refusal, unless there was one since this was last called.
    pub async fn noticed(&self) {
        self.news.notified().await;
    }

    /// To be notified by who knows of a refusal from elsewhere: that of a process that died.
    #[must_use]
    pub fn news(&self) -> Arc<Notify> {
        Arc::clone(&self.news)
    }

    /// A transaction that is being taken in. Whatever ends it before [`Attempt::taken`] is a refusal: an
    /// error, a panic, a timeout, a homeserver that hangs up.
    pub(super) fn attempt(&self) -> Attempt<'_> {
        Attempt { refusals: self, is_taken: false }
    }
}

/// See [`Refusals::attempt`].
pub(super) struct Attempt<'a> {
    refusals: &'a Refusals,
    is_taken: bool,
}

impl Attempt<'_> {
    /// It is on our disk.
    pub(super) fn taken(mut self) {
        self.is_taken = true;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.is_taken {
            self.refusals.news.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn whatever_is_not_taken_in_is_noticed_once() {
        let refusals = Refusals::default();
        refusals.attempt().taken();
        assert!(refusals.noticed().now_or_never().is_none());

        drop(refusals.attempt());
        drop(refusals.clone().attempt());
        assert!(refusals.noticed().now_or_never().is_some());
        assert!(refusals.noticed().now_or_never().is_none());
    }
}
