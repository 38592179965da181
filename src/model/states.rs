//! The words that columns hold, as types.

use std::{fmt, str::FromStr};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$vdoc])* $variant,)+
        }

        impl $name {
            /// The word that the database and the APIs use.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;

            fn from_str(word: &str) -> Result<Self, UnknownWord> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(UnknownWord { kind: stringify!($name), word: word.to_owned() }),
                }
            }
        }
    };
}

/// A column held a word that this version does not know.
#[derive(Debug, thiserror::Error)]
#[error("`{word}` is not a {kind} that this version knows")]
pub struct UnknownWord {
    kind: &'static str,
    word: String,
}

words! {
    /// Life of a bot.
    BotState {
        /// Its signup has steps to do.
        Provisioning = "provisioning",
        /// It works.
        Active = "active",
        /// It has been ended and keeps only its history.
        Retired = "retired",
    }
}

words! {
    /// What a bot does when the emoji are there.
    VerificationPolicy {
        /// Confirm once the human has confirmed.
        Auto = "auto",
        /// Wait for the owner's decision.
        Owner = "owner",
        /// Decline every request.
        Off = "off",
    }
}

words! {
    /// How an event came to be readable.
    Decryption {
        /// It was never encrypted.
        Plain = "plain",
        /// Decrypted when it came.
        Ok = "ok",
        /// Decrypted later, when its key came.
        Late = "late",
        /// Given up.
        Failed = "failed",
    }
}

words! {
    /// How far a verification got.
    VerificationState {
        /// Asked for, not yet answered.
        Requested = "requested",
        /// Both sides are willing.
        Ready = "ready",
        /// A SAS was started.
        Started = "started",
        /// The emoji are there to compare.
        Emoji = "emoji",
        /// The bot has confirmed them.
        Confirmed = "confirmed",
        /// Both sides have.
        Done = "done",
        /// It ended without.
        Cancelled = "cancelled",
    }
}

words! {
    /// Why a bot is repaired.
    RepairReason {
        /// An operator wants it looked at: it gets a new device only if it needs one.
        Asked = "asked",
        /// An operator wants it to have a new device.
        NewDevice = "new_device",
        /// The homeserver holds other one-time keys under the ids of ours.
        OneTimeKeys = "one_time_keys",
        /// Its Olm account is missing or damaged.
        Account = "account",
    }
}

impl RepairReason {
    /// Whether nobody asked for it.
    #[must_use]
    pub const fn is_automatic(self) -> bool {
        matches!(self, Self::OneTimeKeys | Self::Account)
    }
}

words! {
    /// How a repair ended.
    RepairOutcome {
        /// Nothing was wrong with its device.
        Healthy = "healthy",
        /// Rows that did not open were dropped; what was in them comes again.
        Healed = "healed",
        /// Its device was signed by its identity again.
        Signed = "signed",
        /// It has a new device.
        NewDevice = "new_device",
        /// Nothing was changed.
        Refused = "refused",
    }
}
