//! Words that the whole crate shares: our own ids and the small enums that rows speak in.
//!
//! Everything of Matrix keeps ruma's types; these are the things that exist only here. No bare
//! integer or string id crosses a function boundary.

mod fingerprint;
pub mod foreign;
mod heard;
mod ids;
mod states;

pub use fingerprint::fingerprint;
pub use heard::{Heard, Respond};
pub use ids::{BotId, CodeId, EntryId, EventSeq, SignupId, VerificationId};
pub use states::{
    BotState, Decryption, RepairOutcome, RepairReason, UnknownWord, VerificationPolicy,
    VerificationState,
};
