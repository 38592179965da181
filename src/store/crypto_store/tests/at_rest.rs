//! What lies in the database tells nobody a secret.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use matrix_sdk_crypto::{OlmMachine, store::CryptoStore as _};

use super::{
    super::PgCryptoStore,
    fencing::dump,
    world::{World, own_user, room},
};
use crate::store::testing::database;

const CANARY: &str = "canary-canary-canary";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[tokio::test]
async fn no_secret_lies_open() {
    let database = database().await;
    let store = PgCryptoStore::unfenced(database.store.clone(), database.bot("@a:x", "BOT").await);
    let world = World::new().await;
    world.fill(&store).await;
    store.set_custom_value("canary", CANARY.as_bytes().to_vec()).await.expect("saves");
    let machine =
        OlmMachine::with_store(own_user(), world.account.device_id(), store.clone(), None)
            .await
            .expect("opens");
    machine.bootstrap_cross_signing(true).await.expect("bootstraps");
    let keys = machine.export_cross_signing_keys().await.expect("exports").expect("has keys");
    let backup_key = store.load_backup_keys().await.expect("reads").decryption_key.expect("there");
    let dehydrated =
        store.load_dehydrated_device_pickle_key().await.expect("reads").expect("there");

    let dump = dump(&database).await;
    assert!(dump.contains(room().as_str()), "the dump does show what lies open");
    let mut secrets = vec![
        CANARY.to_owned(),
        world.secret.clone(),
        backup_key.to_base64(),
        dehydrated.to_base64(),
        world.inbound.export().await.session_key.to_base64(),
        "mxc://example.org/bundle".to_owned(),
        "qcHVMSgYg-71CauWBezXI5qkaRb0LuIy-Wx5kIaHMIA".to_owned(),
        "m.blacklisted".to_owned(),
    ];
    secrets.extend(keys.master_key.clone());
    secrets.extend(keys.self_signing_key.clone());
    secrets.extend(keys.user_signing_key.clone());
    assert_eq!(secrets.len(), 11);
    for secret in secrets {
        assert!(!dump.contains(&secret), "{secret} lies open");
        assert!(!dump.contains(&hex(secret.as_bytes())), "{secret} lies open in a BYTEA");
        if let Ok(raw) = STANDARD_NO_PAD.decode(&secret) {
            assert!(!dump.contains(&hex(&raw)), "{secret} lies open, decoded");
        }
    }
}
