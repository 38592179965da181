//! `GET /signup` and `POST /signup`: the same for people, without JavaScript.

use std::sync::LazyLock;

use axum::{
    extract::{Query, State, rejection::QueryRejection},
    response::{Html, IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue, StatusCode, header};
use minijinja::{Environment, context};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::{IntoParams, ToSchema};

use super::{Signup, errors, rules, wire::SignupRequest};
use crate::{
    model,
    secret::{self, Alphabet},
    web::{ApiError, ClientAddr, MatrixForm},
};

const STYLE: &str = include_str!("page.css");

static TEMPLATES: LazyLock<Result<Environment<'static>, minijinja::Error>> = LazyLock::new(|| {
    let mut templates = Environment::new();
    // The names end in .html, so whatever is put in is escaped.
    templates.add_template("form.html", include_str!("form.html"))?;
    templates.add_template("done.html", include_str!("done.html"))?;
    Ok(templates)
});

/// Nothing is loaded from anywhere, and the one style is known by its hash.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let style = STANDARD.encode(Sha256::digest(STYLE));
    format!(
        "default-src 'none'; style-src 'sha256-{style}'; form-action 'self'; base-uri 'none'; \
         frame-ancestors 'none'"
    )
});

/// What the link to the page carries.
#[derive(Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct FormQuery {
    /// The code, filled into the form.
    #[serde(default)]
    code: String,
}

/// What the form carries.
#[derive(Default, Deserialize, Serialize, ToSchema)]
pub(super) struct SignupForm {
    /// A code from the operator.
    #[serde(default)]
    code: String,
    /// The bot's name.
    #[serde(default)]
    username: String,
    /// The bot's public name.
    #[serde(default)]
    display_name: String,
    /// The bot's first message.
    #[serde(default)]
    intro: String,
    /// Random, from the page: sending the form twice makes one bot.
    #[serde(default)]
    idempotency_key: String,
}

/// The form.
#[utoipa::path(
    get,
    path = "/signup",
    tag = "signup",
    params(FormQuery),
    responses(
        (status = 200, description = "The form.", body = String, content_type = "text/html"),
        (status = 503, description = "Signup is switched off.", body = String, content_type = "text/html"),
    ),
)]
pub(super) async fn form(
    State(signup): State<Signup>,
    query: Result<Query<FormQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let code = query.map(|Query(query)| query.code).unwrap_or_default();
    let form = SignupForm { code, ..SignupForm::default() };
    if !signup.settings.enabled {
        return signup.render_form(form, Some(&errors::disabled()));
    }
    signup.render_form(form, None)
}

/// Takes the form, and shows the bot with its token, once.
#[utoipa::path(
    post,
    path = "/signup",
    tag = "signup",
    request_body(content = SignupForm, content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, description = "The bot.", body = String, content_type = "text/html"),
        (status = "4XX", description = "The form again, with what was wrong.", body = String,
         content_type = "text/html"),
        (status = "5XX", description = "The form again, with what failed.", body = String,
         content_type = "text/html"),
    ),
)]
pub(super) async fn submit(
    State(signup): State<Signup>,
    client: ClientAddr,
    form: Result<MatrixForm<SignupForm>, ApiError>,
) -> Result<Response, ApiError> {
    let form = match form {
        Ok(MatrixForm(form)) => form,
        Err(error) => return signup.render_form(SignupForm::default(), Some(&error)),
    };
    match signup.take(client, &form).await {
        Ok(done) => Ok(done),
        Err(error) => signup.render_form(form, Some(&error)),
    }
}

impl Signup {
    async fn take(&self, client: ClientAddr, form: &SignupForm) -> Result<Response, ApiError> {
        let request = SignupRequest {
            code: form.code.clone(),
            username: form.username.trim().to_owned(),
            display_name: Some(form.display_name.clone()),
            intro: Some(form.intro.clone()),
            webhook: None,
        };
        let key = HeaderValue::from_str(&form.idempotency_key).ok();
        let key = rules::idempotency_key(key.as_ref())?;
        let answer = self.sign_up(client, &request, key).await?;
        let room = answer
            .dm_room
            .as_ref()
            .map(|room| room.matrix_to_uri_via([self.settings.server_name.clone()]).to_string());
        let fingerprint = model::fingerprint(&answer.msk_public);
        let user_link = answer.user_id.matrix_to_uri().to_string();
        let context = context! { answer, room, user_link, fingerprint, style => STYLE };
        render(StatusCode::OK, "done.html", &context)
    }

    fn render_form(
        &self,
        mut form: SignupForm,
        error: Option<&ApiError>,
    ) -> Result<Response, ApiError> {
        if form.idempotency_key.is_empty() {
            form.idempotency_key =
                secret::random_string(Alphabet::Alphanumeric, 32).map_err(ApiError::internal)?;
        }
        let status = error.map_or(StatusCode::OK, ApiError::status);
        let again = error.and_then(ApiError::again_after);
        let context = context! {
            form,
            error => error.map(ApiError::text),
            enabled => self.settings.enabled,
            prefix => self.settings.localpart_prefix,
            server_name => self.settings.server_name.as_str(),
            style => STYLE,
        };
        let mut page = render(status, "form.html", &context)?;
        if let Some(seconds) = again {
            page.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        Ok(page)
    }
}

fn render(
    status: StatusCode,
    name: &str,
    context: &minijinja::Value,
) -> Result<Response, ApiError> {
    let templates = TEMPLATES.as_ref().map_err(|error| ApiError::internal(error.to_string()))?;
    let page = templates.get_template(name).and_then(|template| template.render(context));
    let page = page.map_err(ApiError::internal)?;
    let policy = HeaderValue::from_str(&POLICY).map_err(ApiError::internal)?;
    let fixed = |value| HeaderValue::from_static(value);
    let headers: [(HeaderName, HeaderValue); 5] = [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::REFERRER_POLICY, fixed("no-referrer")),
        (header::CACHE_CONTROL, fixed("no-store")),
        (header::X_CONTENT_TYPE_OPTIONS, fixed("nosniff")),
        (header::X_FRAME_OPTIONS, fixed("DENY")),
    ];
    Ok((status, headers, Html(page)).into_response())
}
