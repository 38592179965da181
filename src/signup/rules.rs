//! What a name, a code and a repeated call may be. No side effects.

use chrono::{DateTime, Utc};
use ruma::{OwnedUserId, ServerName, UserId};

use super::{errors, wire::SignupRequest};
use crate::{
    store::{codes::Code, signups},
    web::ApiError,
};

const USERNAME_MAX: usize = 64;
const DISPLAY_NAME_MAX: usize = 100;
const INTRO_MAX: usize = 4000;
const KEY_MAX: usize = 255;

/// A request that follows the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The bot's user.
    pub user_id: OwnedUserId,
    /// The name that was asked for.
    pub username: String,
    /// The bot's public name.
    pub display_name: String,
    /// The bot's first message.
    pub intro: String,
}

impl Wish {
    /// `request`, if it follows the rules.
    ///
    /// # Errors
    ///
    /// The first rule that it breaks.
    pub fn new(
        request: &SignupRequest,
        prefix: &str,
        server_name: &ServerName,
    ) -> Result<Self, ApiError> {
        if request.webhook.is_some() {
            return Err(ApiError::invalid_param(
                "`webhook` is not available in this version: leave it out",
            ));
        }
        let username = request.username.as_str();
        let user_id = user_id(username, prefix, server_name)?;
        let display_name = given(request.display_name.as_deref()).unwrap_or(username).to_owned();
        if display_name.chars().count() > DISPLAY_NAME_MAX {
            return Err(too_long("display_name", DISPLAY_NAME_MAX));
        }
        if display_name.chars().any(char::is_control) {
            return Err(ApiError::invalid_param(
                "`display_name` has line breaks or control characters: leave them out",
            ));
        }
        let intro = match given(request.intro.as_deref()) {
            Some(intro) if intro.chars().count() > INTRO_MAX => {
                return Err(too_long("intro", INTRO_MAX));
            }
            Some(intro) if intro.contains('\0') => {
                return Err(ApiError::invalid_param("`intro` has a NUL character: leave it out"));
            }
            Some(intro) => intro.to_owned(),
            None => default_intro(&display_name),
        };
        Ok(Self { user_id, username: username.to_owned(), display_name, intro })
    }
}

fn default_intro(display_name: &str) -> String {
    format!(
        "Hello, I am {display_name}. Say !help to see what I answer by myself. This room is encrypted; \
         to be sure that it is me, open my profile and verify me by emoji."
    )
}

fn too_long(name: &str, most: usize) -> ApiError {
    ApiError::invalid_param(format!("`{name}` is too long: shorten it to {most} characters"))
}

/// The text without the blanks around it, if anything is left.
fn given(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}

fn user_id(
    username: &str,
    prefix: &str,
    server_name: &ServerName,
) -> Result<OwnedUserId, ApiError> {
    if username.is_empty() {
        return Err(errors::bad_username("`username` is empty: give the bot a name".to_owned()));
    }
    if username.len() > USERNAME_MAX {
        let error = format!("`username` is too long: shorten it to {USERNAME_MAX} characters");
        return Err(errors::bad_username(error));
    }
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._=/-".contains(c);
    if let Some(illegal) = username.chars().find(|c| !legal(*c)) {
        let error = format!(
            "`username` cannot have {illegal:?}: use only `a-z 0-9 . _ = / -`, without the server's \
             name"
        );
        return Err(errors::bad_username(error));
    }
    let rest = username.strip_prefix(prefix).unwrap_or(username);
    if rest.is_empty() {
        let error = format!("`username` is nothing but the prefix `{prefix}`: add a name to it");
        return Err(errors::bad_username(error));
    }
    UserId::parse(format!("@{prefix}{rest}:{server_name}")).map_err(|_| {
        errors::bad_username("`username` makes too long a Matrix id: shorten it".to_owned())
    })
}

/// The `Idempotency-Key` of a request, if it is one.
///
/// # Errors
///
/// If it is too long, or not text.
pub fn idempotency_key(value: Option<&http::HeaderValue>) -> Result<Option<&str>, ApiError> {
    let Some(value) = value else {
        return Ok(None);
    };
    match value.to_str().map(str::trim) {
        Ok(key) if key.len() <= KEY_MAX => Ok((!key.is_empty()).then_some(key)),
        _ => Err(ApiError::invalid_param(format!(
            "`Idempotency-Key` is no plain text of up to {KEY_MAX} characters: send a random one"
        ))),
    }
}

/// Whether `code` may be used for anything at all: to make a bot, or to get one again.
///
/// # Errors
///
/// If there is none, or it was revoked.
pub fn known(code: Option<Code>) -> Result<Code, ApiError> {
    let Some(code) = code else {
        return Err(errors::invalid_code(
            "This code is not known: see that it is whole, or ask the operator for one",
        ));
    };
    if code.revoked_at.is_some() {
        return Err(errors::invalid_code(
            "This code was revoked: ask the operator for another one",
        ));
    }
    Ok(code)
}

/// Whether `code` may make a new bot.
///
/// # Errors
///
/// If it has expired or is used up.
pub fn usable(code: &Code, now: DateTime<Utc>) -> Result<(), ApiError> {
    if code.expires_at.is_some_and(|expires_at| expires_at <= now) {
        return Err(errors::invalid_code(
            "This code has expired: ask the operator for another one",
        ));
    }
    if code.used >= code.max_uses {
        return Err(used_up());
    }
    Ok(())
}

/// No use of the code is left.
pub(super) fn used_up() -> ApiError {
    errors::invalid_code(
        "This code is used up: ask the operator for another one; to get a bot again that it made, \
         send that bot's username and Idempotency-Key",
    )
}

/// Whether a call with `code` and `key` is a repetition of the one that began `signup`, so that its
/// caller may have the same bot with the same token.
///
/// The same key says so. Without one on either side, a code for a single bot says so, because nobody
/// else has it; a code for several does only while nobody was answered yet.
#[must_use]
pub fn is_repetition(signup: &signups::Signup, code: &Code, key: Option<&[u8; 32]>) -> bool {
    if signup.code != code.id {
        return false;
    }
    match (&signup.idempotency_hash, key) {
        (Some(first), Some(key)) => first.as_slice() == key,
        _ if code.max_uses == 1 => true,
        (Some(_), None) => false,
        (None, _) => signup.answered_at.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use ruma::{owned_user_id, server_name};

    use super::*;
    use crate::model::{BotId, CodeId, SignupId};

    fn wish(username: &str, more: impl FnOnce(&mut SignupRequest)) -> Result<Wish, ApiError> {
        let mut request = SignupRequest {
            code: "c".to_owned(),
            username: username.to_owned(),
            display_name: None,
            intro: None,
            webhook: None,
        };
        more(&mut request);
        Wish::new(&request, "bot_", server_name!("example.org"))
    }

    #[test]
    fn the_prefix_is_put_before_a_name_once() {
        for username in ["deploy", "bot_deploy"] {
            let wish = wish(username, |_| ()).expect("legal");
            assert_eq!(wish.user_id, "@bot_deploy:example.org");
        }
        let wish = wish("deploy", |_| ()).expect("legal");
        assert_eq!(wish.display_name, "deploy");
        assert!(wish.intro.starts_with("Hello, I am deploy. Say !help"));
    }

    #[test]
    fn a_bad_name_is_told_what_to_do() {
        let long = "a".repeat(65);
        for username in ["", "Deploy", "a b", "@a:b", "é", "a+b", "bot_", long.as_str()] {
            let error = wish(username, |_| ()).expect_err(username);
            assert_eq!(error.errcode(), "GREENSHIELD_BAD_USERNAME", "{username}");
        }
        assert!(wish(&"a".repeat(64), |_| ()).is_ok());
    }

    #[test]
    fn texts_are_bounded_and_blank_ones_not_given() {
        let errcode = |result: Result<Wish, ApiError>| {
            result.map_err(|error| error.errcode().to_owned()).expect_err("refused")
        };
        let name = |n: usize| move |r: &mut SignupRequest| r.display_name = Some("é".repeat(n));
        assert!(wish("a", name(100)).is_ok());
        assert_eq!(errcode(wish("a", name(101))), "M_INVALID_PARAM");
        let intro = |n: usize| move |r: &mut SignupRequest| r.intro = Some("é".repeat(n));
        assert!(wish("a", intro(4000)).is_ok());
        assert_eq!(errcode(wish("a", intro(4001))), "M_INVALID_PARAM");
        let lines = wish("a", |r| r.display_name = Some("a\nb".to_owned()));
        assert_eq!(errcode(lines), "M_INVALID_PARAM");
        let webhook = wish("a", |r| r.webhook = Some("https://a".into()));
        assert_eq!(errcode(webhook), "M_INVALID_PARAM");
        let blank = wish("a", |r| r.display_name = Some("  ".to_owned())).expect("legal");
        assert_eq!(blank.display_name, "a");
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).expect("a time")
    }

    fn code(max_uses: i32) -> Code {
        Code {
            id: CodeId(1),
            hint: "gs-a".to_owned(),
            label: String::new(),
            inviter: owned_user_id!("@alice:example.org"),
            max_uses,
            used: 0,
            created_at: at(0),
            expires_at: Some(at(100)),
            revoked_at: None,
        }
    }

    #[test]
    fn a_code_works_until_it_expires_is_used_up_or_revoked() {
        assert!(usable(&code(1), at(99)).is_ok());
        assert!(usable(&code(1), at(100)).is_err());
        assert!(usable(&Code { used: 1, ..code(1) }, at(0)).is_err());
        assert!(known(None).is_err());
        assert!(known(Some(Code { revoked_at: Some(at(1)), ..code(1) })).is_err());
    }

    #[test]
    fn a_repetition_is_known_by_its_key_or_by_a_code_of_one_use() {
        let signup = |key: Option<u8>, answered: bool| signups::Signup {
            id: SignupId(1),
            code: CodeId(1),
            bot: BotId(1),
            user_id: owned_user_id!("@bot_a:example.org"),
            device_id: "GS".into(),
            idempotency_hash: key.map(|k| vec![k; 32]),
            steps: serde_json::Value::Null,
            space_id: None,
            dm_room: None,
            failure: None,
            finished_at: None,
            answered_at: answered.then(|| at(1)),
        };
        let again = |first, answered, uses, key: Option<u8>| {
            let key = key.map(|k| [k; 32]);
            is_repetition(&signup(first, answered), &code(uses), key.as_ref())
        };

        assert!(again(Some(1), true, 9, Some(1)));
        assert!(!again(Some(1), true, 1, Some(2)));
        assert!(again(None, true, 1, None) && again(Some(1), true, 1, None));
        assert!(again(None, false, 9, None) && !again(None, true, 9, None));
        assert!(!again(Some(1), false, 9, None));
        let other = Code { id: CodeId(2), ..code(1) };
        assert!(!is_repetition(&signup(None, false), &other, None));
    }
}
