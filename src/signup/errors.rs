//! The errors that only signup has.

use http::StatusCode;

use crate::{
    store::signups::{Failure, Signup},
    web::ApiError,
};

pub(super) const INVALID_CODE: &str = "GREENSHIELD_INVALID_CODE";
const UNREACHABLE: &str = "GREENSHIELD_HOMESERVER_UNREACHABLE";

pub(super) fn disabled() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "GREENSHIELD_SIGNUP_DISABLED",
        "Signing bots up is switched off here: ask the operator, who can set `signup.enabled`",
    )
}

pub(super) fn invalid_code(error: &'static str) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, INVALID_CODE, error)
}

pub(super) fn bad_username(error: String) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "GREENSHIELD_BAD_USERNAME", error)
}

pub(super) fn taken() -> ApiError {
    ApiError::user_in_use(
        "There is a bot of this name already: choose another name; if it is yours, send the code and \
         the Idempotency-Key that you signed it up with to get it again",
    )
}

pub(super) fn token_revoked() -> ApiError {
    ApiError::user_in_use(
        "This bot was signed up already, and the token that it was given has been revoked: choose \
         another name",
    )
}

/// A step failed for good: told with its own error code.
pub(super) fn failed(signup: &Signup, failure: &Failure) -> ApiError {
    let status = match failure.errcode.as_str() {
        "M_USER_IN_USE" => StatusCode::CONFLICT,
        _ => StatusCode::BAD_GATEWAY,
    };
    ApiError::new(status, failure.errcode.clone(), failure.error.clone())
        .with("steps", signup.steps.clone())
        .with("step", failure.step.clone())
}

/// The worker has not finished in time, whether or not it said why.
pub(super) fn unfinished(signup: &Signup) -> ApiError {
    let why = signup.failure.as_ref().map_or_else(
        || "the homeserver is slow".to_owned(),
        |failure| format!("step `{}` is being tried again ({})", failure.step, failure.error),
    );
    let error = format!(
        "This is not done yet: {why}. It goes on by itself; send the same request again to have the \
         answer"
    );
    let unfinished = ApiError::new(StatusCode::BAD_GATEWAY, UNREACHABLE, error)
        .with("steps", signup.steps.clone());
    match &signup.failure {
        Some(failure) => unfinished.with("step", failure.step.clone()),
        None => unfinished,
    }
}
