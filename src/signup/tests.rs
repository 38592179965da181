//! Scenes at the public listener: the worker is played by the test.

use std::time::Duration;

use axum::{
    Router,
    body::{Body, to_bytes},
};
use http::Request;
use ruma::{server_name, user_id};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::{
    secret,
    store::{
        codes::{self, NewCode},
        testing::{TestDatabase, database},
    },
};

const DONE: &str = r#"{"user": true, "device": true, "identity": true, "keys": true, "profile": true,
    "rooms": [], "dm": true, "intro": true}"#;

const FORM: &str = "application/x-www-form-urlencoded";

struct Scene {
    database: TestDatabase,
    router: Router,
    signals: Signals,
    clock: Clock,
}

impl Scene {
    async fn new() -> Self {
        Self::with(true, 1000, WAIT).await
    }

    async fn with(enabled: bool, attempts: u32, wait: Duration) -> Self {
        let database = database().await;
        let signals = Signals::default();
        let clock = Clock::fixed(chrono::DateTime::from_timestamp(1_000_000, 0).expect("a time"));
        let settings = Settings {
            enabled,
            localpart_prefix: "bot_".to_owned(),
            server_name: server_name!("example.org").to_owned(),
            verification_policy: VerificationPolicy::Auto,
            attempts: Attempts::new(attempts),
            wait,
        };
        let signup = Signup {
            store: database.store.clone(),
            signals: signals.clone(),
            clock: clock.clone(),
            settings: Arc::new(settings),
        };
        Self { database, router: router(signup), signals, clock }
    }

    async fn code(&self, code: &str, max_uses: i32) {
        let mut conn = self.database.store.pool().acquire().await.expect("connects");
        let new = NewCode {
            hash: &secret::digest(code),
            hint: "gs-",
            label: "test",
            inviter: user_id!("@alice:example.org"),
            max_uses,
            expires_at: Some(self.clock.now() + chrono::Duration::days(1)),
        };
        codes::insert(&mut conn, new, self.clock.now()).await.expect("inserts");
    }

    async fn send(&self, request: Request<Body>) -> (u16, String) {
        let response = self.router.clone().oneshot(request).await.expect("an answer");
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1_000_000).await.expect("a body");
        (status, String::from_utf8(body.to_vec()).expect("text"))
    }

    async fn post(&self, path: &str, key: Option<&str>, body: &Value) -> (u16, Value) {
        let mut request = Request::post(path);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let (status, body) =
            self.send(request.body(Body::from(body.to_string())).expect("a request")).await;
        (status, serde_json::from_str(&body).expect("JSON"))
    }

    async fn sign_up(&self, code: &str, username: &str, key: Option<&str>) -> (u16, Value) {
        self.post("/signup/api", key, &json!({"code": code, "username": username})).await
    }

    /// Until a call has woken its bot, and so has committed all it has to say: each wake counts once.
    async fn woken(&self) {
        let taken = "WITH taken AS (
                UPDATE bot_queue SET due_at = 'infinity' WHERE due_at < 'infinity' RETURNING bot_id
            )
            SELECT COUNT(*)::TEXT FROM taken";
        self.database.wait_for(taken).await;
    }

    /// Plays the worker: does every step of every bot, once a call has woken one.
    async fn work(&self) {
        self.woken().await;
        self.database
            .execute(&format!(
                "INSERT INTO bot_identities
                    SELECT bot_id, 'mskmskmsk', 'ssk', 'usk', '', NOW() FROM bots
                    ON CONFLICT DO NOTHING;
                INSERT INTO outbox (
                    bot_id, room_id, txn_id, event_type, sealed_content, state, due_at, session_id,
                    devices, event_id, created_at, finished_at
                )
                SELECT bot_id, '!dm:example.org', 'signup-intro', 'm.room.message', '', 'sent', NOW(),
                    'sid', 2, '$intro', NOW(), NOW()
                FROM bots
                ON CONFLICT DO NOTHING;
                UPDATE bots SET state = 'active';
                UPDATE signups
                SET steps = '{DONE}', dm_room = '!dm:example.org', finished_at = NOW()"
            ))
            .await;
        self.signals.give(crate::store::Signal::Progress);
    }

    /// Plays a worker whose first step fails for good, once a call has woken the bot.
    async fn fail(&self, errcode: &str) {
        self.woken().await;
        let failure = failure(errcode, false);
        self.database.execute(&format!("UPDATE signups SET failure = '{failure}'")).await;
        self.signals.give(crate::store::Signal::Progress);
    }

    async fn used(&self) -> String {
        self.database.text("SELECT SUM(used)::TEXT FROM signup_codes").await
    }
}

fn failure(errcode: &str, retry: bool) -> Value {
    json!({"step": "user", "errcode": errcode, "error": "told", "retry": retry, "at": null})
}

#[tokio::test]
async fn one_call_makes_a_bot_and_a_repetition_gets_the_same_one() {
    let scene = Scene::new().await;
    scene.code("gs-one", 1).await;
    let ((status, first), ()) = tokio::join!(scene.sign_up("gs-one", "deploy", None), scene.work());

    assert_eq!(status, 200, "{first}");
    assert_eq!(first["user_id"], "@bot_deploy:example.org");
    assert_eq!(first["dm_room"], "!dm:example.org");
    assert_eq!(first["msk_public"], "mskmskmsk");
    assert_eq!(first["steps"]["keys"], true);
    assert_eq!(first["proof"], json!({"event_id": "$intro", "session_id": "sid", "devices": 2}));
    let device = first["device_id"].as_str().expect("a device");
    assert!(device.len() == 12 && device.starts_with("GS"));
    assert!(first["intro_text"].as_str().expect("a text").starts_with("Hello, I am deploy"));

    let (status, again) = scene.sign_up("gs-one", "deploy", None).await;
    assert_eq!((status, &again), (200, &first));
    assert_eq!(scene.used().await, "1");

    let (status, other) = scene.sign_up("gs-one", "other", None).await;
    assert_eq!((status, &other["errcode"]), (403, &"GREENSHIELD_INVALID_CODE".into()));

    scene.database.execute("UPDATE bot_tokens SET revoked_at = NOW()").await;
    let (status, revoked) = scene.sign_up("gs-one", "deploy", None).await;
    assert_eq!((status, &revoked["errcode"]), (409, &"M_USER_IN_USE".into()));
}

#[tokio::test]
async fn a_call_that_broke_off_is_taken_up_where_it_was() {
    let scene = Scene::with(true, 1000, Duration::from_millis(100)).await;
    scene.code("gs-many", 5).await;
    // A worker so quick that its step has failed whenever the call looks.
    let failure = failure("M_UNKNOWN", true);
    let fails = format!("ALTER TABLE signups ALTER failure SET DEFAULT '{failure}'");
    scene.database.execute(&fails).await;
    let (status, error) = scene.sign_up("gs-many", "a", Some("k")).await;
    assert_eq!((status, &error["errcode"]), (502, &"GREENSHIELD_HOMESERVER_UNREACHABLE".into()));
    assert_eq!((&error["steps"]["user"], &error["step"]), (&false.into(), &"user".into()));
    assert!(error["error"].as_str().expect("a text").contains("(told)"), "{error}");

    scene.work().await;
    let (status, done) = scene.sign_up("gs-many", "a", Some("k")).await;
    assert_eq!(status, 200, "{done}");
    assert_eq!(scene.used().await, "1");

    let (status, taken) = scene.sign_up("gs-many", "a", Some("another")).await;
    assert_eq!((status, &taken["errcode"]), (409, &"M_USER_IN_USE".into()));
    assert!(taken["error"].as_str().expect("a text").contains("Idempotency-Key"));
}

#[tokio::test]
async fn a_step_that_failed_for_good_is_told_and_tried_again_by_the_next_call() {
    let scene = Scene::new().await;
    scene.code("gs-many", 5).await;
    let ((status, error), ()) =
        tokio::join!(scene.sign_up("gs-many", "a", Some("k")), scene.fail("M_FORBIDDEN"));
    assert_eq!((status, &error["errcode"]), (502, &"M_FORBIDDEN".into()));
    assert_eq!((&error["step"], &error["error"]), (&"user".into(), &"told".into()));

    let ((status, done), ()) = tokio::join!(scene.sign_up("gs-many", "a", Some("k")), scene.work());
    assert_eq!(status, 200, "{done}");
    assert_eq!(scene.used().await, "1");
}

#[tokio::test]
async fn a_name_that_the_homeserver_refuses_costs_no_use() {
    let scene = Scene::new().await;
    scene.code("gs-one", 1).await;
    let ((status, error), ()) =
        tokio::join!(scene.sign_up("gs-one", "a", None), scene.fail("M_USER_IN_USE"));
    assert_eq!((status, &error["errcode"]), (409, &"M_USER_IN_USE".into()));
    assert_eq!(scene.used().await, "0");

    let ((status, _), ()) = tokio::join!(scene.sign_up("gs-one", "b", None), scene.work());
    assert_eq!(status, 200);
}

#[tokio::test]
async fn of_two_calls_for_the_last_use_one_wins() {
    let scene = Scene::new().await;
    scene.code("gs-one", 1).await;
    let ((one, _), (other, _), ()) = tokio::join!(
        scene.sign_up("gs-one", "a", None),
        scene.sign_up("gs-one", "b", None),
        scene.work()
    );
    let mut statuses = [one, other];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 403]);
    assert_eq!(scene.used().await, "1");
}

#[tokio::test]
async fn mistakes_are_told_by_code() {
    let scene = Scene::new().await;
    scene.code("gs-one", 1).await;
    let (unknown, error) = scene.sign_up("gs-two", "a", None).await;
    assert_eq!((unknown, &error["errcode"]), (403, &"GREENSHIELD_INVALID_CODE".into()));
    let (bad, error) = scene.sign_up("gs-one", "A", None).await;
    assert_eq!((bad, &error["errcode"]), (400, &"GREENSHIELD_BAD_USERNAME".into()));
    let (missing, error) = scene.post("/signup/api", None, &json!({"code": "gs-one"})).await;
    assert_eq!((missing, &error["errcode"]), (400, &"M_MISSING_PARAM".into()));
    scene.clock.advance(chrono::Duration::days(2));
    let (expired, error) = scene.sign_up("gs-one", "a", None).await;
    assert_eq!((expired, &error["errcode"]), (403, &"GREENSHIELD_INVALID_CODE".into()));

    let off = Scene::with(false, 10, WAIT).await;
    let (disabled, error) = off.sign_up("gs-one", "a", None).await;
    assert_eq!((disabled, &error["errcode"]), (503, &"GREENSHIELD_SIGNUP_DISABLED".into()));

    let hasty = Scene::with(true, 1, WAIT).await;
    hasty.sign_up("gs-one", "a", None).await;
    let (limited, error) = hasty.sign_up("gs-one", "a", None).await;
    assert_eq!((limited, &error["errcode"]), (429, &"M_LIMIT_EXCEEDED".into()));
}

#[tokio::test]
async fn crosssign_tells_the_identity_of_the_tokens_bot() {
    let scene = Scene::new().await;
    scene.code("gs-one", 1).await;
    let ((_, bot), ()) = tokio::join!(scene.sign_up("gs-one", "a", None), scene.work());
    let path = "/signup/api/crosssign";
    let (status, identity) =
        scene.post(path, None, &json!({"access_token": bot["access_token"]})).await;
    assert_eq!(status, 200, "{identity}");
    assert_eq!(identity["fingerprint"], "mskm skms k");
    assert_eq!(identity["device_signed"], true);

    let token = bot["access_token"].as_str().expect("a token");
    let request = Request::post(path).header("Authorization", format!("Bearer {token}"));
    let (status, again) = scene.send(request.body(Body::empty()).expect("a request")).await;
    assert_eq!((status, serde_json::from_str::<Value>(&again).expect("JSON")), (200, identity));

    let (status, error) = scene.post(path, None, &json!({"access_token": "gsb_no"})).await;
    assert_eq!((status, &error["errcode"]), (401, &"M_UNKNOWN_TOKEN".into()));
    let (status, error) = scene.post(path, None, &json!({})).await;
    assert_eq!((status, &error["errcode"]), (401, &"M_MISSING_TOKEN".into()));
}

#[tokio::test]
async fn crosssign_finishes_what_is_missing() {
    let scene = Scene::new().await;
    scene.code("gs-one", 1).await;
    let ((_, bot), ()) = tokio::join!(scene.sign_up("gs-one", "a", None), scene.work());
    scene.database.execute(r#"UPDATE signups SET steps = steps || '{"keys": false}'"#).await;
    let body = json!({"access_token": bot["access_token"]});
    // The work is done only because this wakes the bot once more.
    let ((status, identity), ()) =
        tokio::join!(scene.post("/signup/api/crosssign", None, &body), scene.work());
    assert_eq!((status, &identity["device_signed"]), (200, &true.into()));
}

#[tokio::test]
async fn the_page_works_without_javascript_and_escapes() {
    let scene = Scene::new().await;
    scene.code("gs-one", 1).await;
    let get = Request::get("/signup?code=%22%3E%3Cscript%3E").body(Body::empty());
    let response = scene.router.clone().oneshot(get.expect("a request")).await.expect("an answer");
    for (header, value) in [
        ("content-security-policy", "default-src 'none'"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
    ] {
        assert!(response.headers()[header].to_str().expect("ASCII").contains(value), "{header}");
    }
    let page = to_bytes(response.into_body(), 100_000).await.expect("a body");
    let page = String::from_utf8(page.to_vec()).expect("text");
    assert!(page.contains("&quot;&gt;&lt;script&gt;") && !page.contains("<script>"), "{page}");

    let submit = |form: &str| {
        let request = Request::post("/signup").header("content-type", FORM);
        request.body(Body::from(form.to_owned())).expect("a request")
    };
    let (status, page) = scene.send(submit("code=gs-one&username=A%3C")).await;
    assert_eq!(status, 400);
    assert!(page.contains("A&lt;") && page.contains("role=\"alert\""), "{page}");

    let form = "code=gs-one&username=a&display_name=&intro=&idempotency_key=k";
    let ((status, page), ()) = tokio::join!(scene.send(submit(form)), scene.work());
    assert_eq!(status, 200, "{page}");
    for part in ["gsb_", "https://matrix.to/#/!dm:example.org", "mskm skms k", "not shown again"] {
        let found = page.replace("&#x2f;", "/").replace("%21", "!").replace("%3A", ":");
        assert!(found.contains(part), "{part}: {page}");
    }
}

#[test]
fn the_description_has_every_route() {
    let document = serde_json::to_value(openapi()).expect("serialises");
    for (path, method) in [
        ("/signup", "get"),
        ("/signup", "post"),
        ("/signup/api", "post"),
        ("/signup/api/crosssign", "post"),
    ] {
        assert!(document["paths"][path][method].is_object(), "{method} {path}");
    }
}
