//! Whoever signs a bot up, and whoever calls wrongly.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::Story;
use crate::{
    attacks::{
        secrets::Secret,
        tools::{raw, request, token},
    },
    fast::scene::Bot,
    support::fake_homeserver::Person,
};

const IS_FORM: [&str; 1] = ["Content-Type: application/x-www-form-urlencoded"];

impl Story {
    pub(super) fn code(&mut self, alice: &Person) -> Result<String> {
        let code = self.scene.greenshield.mint_code(&alice.user_id, 1)?;
        self.secrets.push(Secret::text("a signup code", &code));
        Ok(code)
    }

    pub(super) async fn sign_up(&mut self, alice: &Person, name: &str) -> Result<Bot> {
        let code = self.code(alice)?;
        let (intro, key) = (self.canary("an intro"), self.canary("an Idempotency-Key"));
        let body = json!({ "code": code, "username": name, "intro": intro });
        let url = format!("{}/signup/api", self.scene.greenshield.public_url());
        let sent = crate::support::http().post(url).json(&body).header("Idempotency-Key", &key);
        let answer = sent.send().await?;
        ensure!(answer.status().is_success(), "{answer:?}");
        let bot = Bot::of(answer.json().await?)?;
        alice.join(&bot.room).await?;
        let access = bot.signup["access_token"].as_str().context("a token")?;
        self.secrets.push(Secret::text("an access token", access));
        self.scene.greenshield.crosssign(access).await?;
        self.call_wrongly(&code, access).await?;
        Ok(bot)
    }

    /// Errors, for each of which somebody has put a secret where it does not belong.
    async fn call_wrongly(&mut self, code: &str, access: &str) -> Result<()> {
        let public = self.scene.greenshield.public_url();
        let quoted = format!("\"{code}\"");
        let bearer = format!("Authorization: Bearer {access}");
        let form = format!("code={code}&username[]=x&username=y&username=z");
        let api = || "/signup/api".to_owned();
        let crosssign = || "/signup/api/crosssign".to_owned();
        for (method, path, body) in [
            ("POST", api(), json!({ "code": [code], "username": "x" }).to_string()),
            ("POST", api(), quoted.clone()),
            ("POST", api(), json!({ "code": code, "username": code.to_uppercase() }).to_string()),
            ("POST", api(), json!({ "code": code, "username": "other" }).to_string()),
            ("POST", format!("/signup/api/{code}"), String::new()),
            ("GET", format!("/{access}?code={code}"), String::new()),
            ("POST", format!("{}?access_token={access}", crosssign()), "{}".to_owned()),
            ("POST", crosssign(), json!({ "access_token": [access] }).to_string()),
            ("POST", crosssign(), quoted.clone()),
        ] {
            self.told_off(&public, method, &path, &[], &body).await?;
        }
        self.told_off(&public, "POST", "/signup", &IS_FORM, &form).await?;
        let appservice = self.scene.greenshield.appservice_url();
        let hs_token = token(&self.scene.greenshield, "hs_token")?;
        let path = format!("/_matrix/app/v1/transactions/1?access_token={hs_token}");
        self.told_off(&appservice, "PUT", &path, &[], "{}").await?;
        self.told_off(&appservice, "PUT", &path, &[&bearer], "{}").await?;
        let right = format!("Authorization: Bearer {hs_token}");
        self.told_off(&appservice, "PUT", &path, &[&right], &quoted).await
    }

    async fn told_off(
        &mut self,
        url: &str,
        method: &str,
        path: &str,
        headers: &[&str],
        body: &str,
    ) -> Result<()> {
        let answer = raw(url, &request(method, path, headers, body.as_bytes())).await?;
        self.answers.push_str(&format!("{}\n{}\n", answer.head, answer.body));
        ensure!(answer.status >= 400, "{method} {path}: {answer:?}");
        Ok(())
    }

    /// The page shows its reader the code of the link, and the token of the bot, and keeps neither.
    pub(super) async fn use_the_page(&mut self, alice: &Person, name: &str) -> Result<()> {
        let code = self.code(alice)?;
        let public = self.scene.greenshield.public_url();
        let link = format!("/signup?code={code}");
        let page = raw(&public, &request("GET", &link, &[], b"")).await?;
        ensure!(page.status == 200 && page.body.contains(&code), "{page:?}");
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("code", &code)
            .append_pair("username", &format!("{name}page"))
            .append_pair("intro", &self.canary("an intro on the page"))
            .append_pair("idempotency_key", &self.canary("the page's Idempotency-Key"));
        let sent = request("POST", "/signup", &IS_FORM, form.finish().as_bytes());
        let page = raw(&public, &sent).await?;
        ensure!(page.status == 200, "{page:?}");
        let token = page.body.split("not shown again").nth(1).context("a token is announced")?;
        let token = token.split("<code>").nth(1).and_then(|token| token.split("</code>").next());
        self.secrets.push(Secret::text("a token on the page", token.context("a token")?));
        Ok(())
    }
}
