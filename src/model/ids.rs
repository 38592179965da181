//! Typed ids: one per table that others refer to.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub i64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<i64> for $name {
            fn from(id: i64) -> Self {
                Self(id)
            }
        }
    };
}

id!(
    /// A bot: row of `bots`, and the first part of every key of the crypto store.
    BotId
);
id!(
    /// A piece of work for a bot: row of `inbox`.
    EntryId
);
id!(
    /// A room event as we stored it: row of `events`.
    EventSeq
);
id!(
    /// A signup code: row of `signup_codes`.
    CodeId
);
id!(
    /// How a bot came to be: row of `signups`.
    SignupId
);
id!(
    /// A verification: row of `verifications`.
    VerificationId
);
