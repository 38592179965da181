-- What matrix-sdk-crypto keeps for every bot (see src/store/crypto_store). Every key begins with the
-- bot; columns are what rows are searched by, all else is one sealed value that opens only in its row.

CREATE TABLE crypto_accounts (
    bot_id          BIGINT      PRIMARY KEY REFERENCES bots ON DELETE CASCADE,
    identity_key    TEXT        NOT NULL,
    sealed_account  BYTEA       NOT NULL,
    updated_at      TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE crypto_accounts IS 'The Olm account of a bot: the private identity keys and one-time keys of its device.';
COMMENT ON COLUMN crypto_accounts.bot_id IS 'Whose account.';
COMMENT ON COLUMN crypto_accounts.identity_key IS 'Public Curve25519 key of the account, unpadded base64; an account with another key never overwrites this one.';
COMMENT ON COLUMN crypto_accounts.sealed_account IS 'The pickled account, sealed.';
COMMENT ON COLUMN crypto_accounts.updated_at IS 'When it was last saved.';

CREATE TABLE crypto_values (
    bot_id          BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    name            TEXT        NOT NULL,
    sealed_value    BYTEA       NOT NULL,
    PRIMARY KEY (bot_id, name),
    CONSTRAINT crypto_values_name CHECK (name IN ('private_identity', 'next_batch_token', 'backup_version', 'backup_decryption_key', 'dehydrated_device_key'))
);
COMMENT ON TABLE crypto_values IS 'What the crypto machine keeps once per bot.';
COMMENT ON COLUMN crypto_values.bot_id IS 'The bot.';
COMMENT ON COLUMN crypto_values.name IS 'Which value: private_identity (cross-signing keys), next_batch_token, backup_version, backup_decryption_key or dehydrated_device_key.';
COMMENT ON COLUMN crypto_values.sealed_value IS 'The value, sealed.';

CREATE TABLE crypto_custom_values (
    bot_id          BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    name            TEXT        NOT NULL,
    sealed_value    BYTEA       NOT NULL,
    PRIMARY KEY (bot_id, name)
);
COMMENT ON TABLE crypto_custom_values IS 'Arbitrary values that the crypto machine or its caller keeps under names of their own.';
COMMENT ON COLUMN crypto_custom_values.bot_id IS 'The bot.';
COMMENT ON COLUMN crypto_custom_values.name IS 'The name.';
COMMENT ON COLUMN crypto_custom_values.sealed_value IS 'The value, sealed.';

CREATE TABLE crypto_lease_locks (
    bot_id          BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    name            TEXT        NOT NULL,
    holder          TEXT        NOT NULL,
    expires_at      TIMESTAMPTZ NOT NULL,
    generation      BIGINT      NOT NULL DEFAULT 1,
    PRIMARY KEY (bot_id, name)
);
COMMENT ON TABLE crypto_lease_locks IS 'Locks that the SDK takes inside one bot''s store; the lease of a shard is in shards, not here.';
COMMENT ON COLUMN crypto_lease_locks.bot_id IS 'The bot.';
COMMENT ON COLUMN crypto_lease_locks.name IS 'The lock.';
COMMENT ON COLUMN crypto_lease_locks.holder IS 'Who holds it.';
COMMENT ON COLUMN crypto_lease_locks.expires_at IS 'When anybody else may take it.';
COMMENT ON COLUMN crypto_lease_locks.generation IS 'Rises with every change of holder.';

CREATE TABLE crypto_olm_sessions (
    bot_id          BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    sender_key      TEXT        NOT NULL,
    session_id      TEXT        NOT NULL,
    sealed_session  BYTEA       NOT NULL,
    PRIMARY KEY (bot_id, sender_key, session_id)
);
COMMENT ON TABLE crypto_olm_sessions IS 'Olm sessions: the encrypted channels between a bot''s device and other devices.';
COMMENT ON COLUMN crypto_olm_sessions.bot_id IS 'The bot.';
COMMENT ON COLUMN crypto_olm_sessions.sender_key IS 'Curve25519 key of the other device, unpadded base64.';
COMMENT ON COLUMN crypto_olm_sessions.session_id IS 'The session.';
COMMENT ON COLUMN crypto_olm_sessions.sealed_session IS 'The pickled session, sealed.';

CREATE TABLE crypto_olm_hashes (
    bot_id          BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    sender_key      TEXT        NOT NULL,
    message_hash    TEXT        NOT NULL,
    created_at      TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (bot_id, sender_key, message_hash)
);
COMMENT ON TABLE crypto_olm_hashes IS 'Olm messages that were decrypted, so that a repeat is not taken for a broken session.';
COMMENT ON COLUMN crypto_olm_hashes.bot_id IS 'The recipient.';
COMMENT ON COLUMN crypto_olm_hashes.sender_key IS 'Curve25519 key of the sending device.';
COMMENT ON COLUMN crypto_olm_hashes.message_hash IS 'SHA-256 of the encrypted message.';
COMMENT ON COLUMN crypto_olm_hashes.created_at IS 'When it was decrypted; old rows are pruned.';
CREATE INDEX crypto_olm_hashes_by_created_at ON crypto_olm_hashes (created_at);

CREATE TABLE crypto_inbound_group_sessions (
    bot_id              BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    room_id             TEXT        NOT NULL,
    session_id          TEXT        COLLATE "C" NOT NULL,
    sender_key          TEXT        NOT NULL,
    sender_data_type    SMALLINT    NOT NULL,
    backed_up           BOOLEAN     NOT NULL,
    backed_up_to        TEXT        COLLATE "C",
    sealed_session      BYTEA       NOT NULL,
    PRIMARY KEY (bot_id, room_id, session_id),
    CONSTRAINT crypto_inbound_group_sessions_backup CHECK (backed_up OR backed_up_to IS NULL)
);
COMMENT ON TABLE crypto_inbound_group_sessions IS 'Room keys: Megolm sessions that a bot can decrypt messages of a room with.';
COMMENT ON COLUMN crypto_inbound_group_sessions.bot_id IS 'Who holds the key.';
COMMENT ON COLUMN crypto_inbound_group_sessions.room_id IS 'The room.';
COMMENT ON COLUMN crypto_inbound_group_sessions.session_id IS 'The Megolm session.';
COMMENT ON COLUMN crypto_inbound_group_sessions.sender_key IS 'Curve25519 key of the device that made the session.';
COMMENT ON COLUMN crypto_inbound_group_sessions.sender_data_type IS 'How sure we are of the sender: 1 unknown device, 2 device known, 3 verification violated, 4 sender unverified, 5 sender verified.';
COMMENT ON COLUMN crypto_inbound_group_sessions.backed_up IS 'Whether this very key lies in a server-side backup.';
COMMENT ON COLUMN crypto_inbound_group_sessions.backed_up_to IS 'The version of that backup, where known.';
COMMENT ON COLUMN crypto_inbound_group_sessions.sealed_session IS 'The pickled session, sealed.';
CREATE INDEX crypto_inbound_group_sessions_by_device ON crypto_inbound_group_sessions (bot_id, sender_key, sender_data_type, session_id);
CREATE INDEX crypto_inbound_group_sessions_by_backup ON crypto_inbound_group_sessions (bot_id, backed_up_to);

CREATE TABLE crypto_outbound_group_sessions (
    bot_id          BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    room_id         TEXT        NOT NULL,
    sealed_session  BYTEA       NOT NULL,
    PRIMARY KEY (bot_id, room_id)
);
COMMENT ON TABLE crypto_outbound_group_sessions IS 'The Megolm session that a bot currently encrypts a room''s messages with, and whom it was shared with.';
COMMENT ON COLUMN crypto_outbound_group_sessions.bot_id IS 'Who sends.';
COMMENT ON COLUMN crypto_outbound_group_sessions.room_id IS 'The room.';
COMMENT ON COLUMN crypto_outbound_group_sessions.sealed_session IS 'The pickled session, sealed.';

CREATE TABLE crypto_devices (
    bot_id          BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    user_id         TEXT        NOT NULL,
    device_id       TEXT        NOT NULL,
    sealed_device   BYTEA       NOT NULL,
    PRIMARY KEY (bot_id, user_id, device_id)
);
COMMENT ON TABLE crypto_devices IS 'Devices as a bot knows them, its own included.';
COMMENT ON COLUMN crypto_devices.bot_id IS 'Who knows the device.';
COMMENT ON COLUMN crypto_devices.user_id IS 'Whose device.';
COMMENT ON COLUMN crypto_devices.device_id IS 'The device.';
COMMENT ON COLUMN crypto_devices.sealed_device IS 'Its public keys and our trust in it, sealed to keep anybody from changing that trust.';

CREATE TABLE crypto_identities (
    bot_id          BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    user_id         TEXT        NOT NULL,
    sealed_identity BYTEA       NOT NULL,
    PRIMARY KEY (bot_id, user_id)
);
COMMENT ON TABLE crypto_identities IS 'Public cross-signing identities of users as a bot knows them, its own included.';
COMMENT ON COLUMN crypto_identities.bot_id IS 'Who knows the identity.';
COMMENT ON COLUMN crypto_identities.user_id IS 'Whose identity.';
COMMENT ON COLUMN crypto_identities.sealed_identity IS 'The public keys and our trust in them, sealed to keep anybody from changing that trust.';

CREATE TABLE crypto_tracked_users (
    bot_id          BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    user_id         TEXT        NOT NULL,
    dirty           BOOLEAN     NOT NULL,
    PRIMARY KEY (bot_id, user_id)
);
COMMENT ON TABLE crypto_tracked_users IS 'Whose devices a bot keeps up to date: the users it shares encrypted rooms with.';
COMMENT ON COLUMN crypto_tracked_users.bot_id IS 'The bot.';
COMMENT ON COLUMN crypto_tracked_users.user_id IS 'The user it tracks.';
COMMENT ON COLUMN crypto_tracked_users.dirty IS 'Whether the devices changed since they were last fetched.';
CREATE INDEX crypto_tracked_users_by_user ON crypto_tracked_users (user_id, bot_id);

CREATE TABLE crypto_requests (
    bot_id          BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    request_id      TEXT        NOT NULL,
    info_key        TEXT        NOT NULL,
    sent_out        BOOLEAN     NOT NULL,
    created_at      TIMESTAMPTZ NOT NULL,
    sealed_request  BYTEA       NOT NULL,
    PRIMARY KEY (bot_id, request_id)
);
COMMENT ON TABLE crypto_requests IS 'Room keys and secrets that a bot has asked other devices for.';
COMMENT ON COLUMN crypto_requests.bot_id IS 'Who asks.';
COMMENT ON COLUMN crypto_requests.request_id IS 'The request.';
COMMENT ON COLUMN crypto_requests.info_key IS 'What is asked for: keyRequest with room, session and algorithm, or secretName with the name.';
COMMENT ON COLUMN crypto_requests.sent_out IS 'Whether the homeserver has taken the request.';
COMMENT ON COLUMN crypto_requests.created_at IS 'When it was first saved.';
COMMENT ON COLUMN crypto_requests.sealed_request IS 'The whole request, sealed.';
CREATE INDEX crypto_requests_by_info ON crypto_requests (bot_id, info_key);
CREATE INDEX crypto_requests_unsent ON crypto_requests (bot_id) WHERE NOT sent_out;

CREATE TABLE crypto_secrets (
    bot_id          BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    secret_name     TEXT        NOT NULL,
    digest          BYTEA       NOT NULL,
    sealed_secret   BYTEA       NOT NULL,
    PRIMARY KEY (bot_id, secret_name, digest)
);
COMMENT ON TABLE crypto_secrets IS 'The inbox of secrets that other devices of the bot sent and nobody has taken up yet.';
COMMENT ON COLUMN crypto_secrets.bot_id IS 'The recipient.';
COMMENT ON COLUMN crypto_secrets.secret_name IS 'Which secret it is said to be.';
COMMENT ON COLUMN crypto_secrets.digest IS 'Keyed hash of the secret: the same one is kept once.';
COMMENT ON COLUMN crypto_secrets.sealed_secret IS 'The secret, sealed.';

CREATE TABLE crypto_withheld_sessions (
    bot_id          BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    room_id         TEXT        NOT NULL,
    session_id      TEXT        NOT NULL,
    sealed_entry    BYTEA       NOT NULL,
    PRIMARY KEY (bot_id, room_id, session_id)
);
COMMENT ON TABLE crypto_withheld_sessions IS 'Room keys that a sender told the bot it would not get.';
COMMENT ON COLUMN crypto_withheld_sessions.bot_id IS 'From whom the key is withheld.';
COMMENT ON COLUMN crypto_withheld_sessions.room_id IS 'The room.';
COMMENT ON COLUMN crypto_withheld_sessions.session_id IS 'The Megolm session.';
COMMENT ON COLUMN crypto_withheld_sessions.sealed_entry IS 'Who withholds it and why, sealed.';

CREATE TABLE crypto_room_settings (
    bot_id          BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    room_id         TEXT        NOT NULL,
    sealed_settings BYTEA       NOT NULL,
    PRIMARY KEY (bot_id, room_id)
);
COMMENT ON TABLE crypto_room_settings IS 'How a bot encrypts in a room: never to be weakened from outside.';
COMMENT ON COLUMN crypto_room_settings.bot_id IS 'The bot.';
COMMENT ON COLUMN crypto_room_settings.room_id IS 'The room.';
COMMENT ON COLUMN crypto_room_settings.sealed_settings IS 'Algorithm, trust and rotation, sealed to keep anybody from weakening them.';

CREATE TABLE crypto_room_key_bundles (
    bot_id          BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    room_id         TEXT        NOT NULL,
    sender_user_id  TEXT        NOT NULL,
    sealed_bundle   BYTEA       NOT NULL,
    PRIMARY KEY (bot_id, room_id, sender_user_id)
);
COMMENT ON TABLE crypto_room_key_bundles IS 'Offers of a room''s history that inviters sent: where the file lies and its key.';
COMMENT ON COLUMN crypto_room_key_bundles.bot_id IS 'The recipient.';
COMMENT ON COLUMN crypto_room_key_bundles.room_id IS 'The room.';
COMMENT ON COLUMN crypto_room_key_bundles.sender_user_id IS 'Who sent it; the last one of each sender is kept.';
COMMENT ON COLUMN crypto_room_key_bundles.sealed_bundle IS 'The offer, sealed.';

CREATE TABLE crypto_pending_key_bundles (
    bot_id          BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    room_id         TEXT        NOT NULL,
    sealed_details  BYTEA       NOT NULL,
    PRIMARY KEY (bot_id, room_id)
);
COMMENT ON TABLE crypto_pending_key_bundles IS 'Rooms that a bot has just joined by invitation and whose history it would still accept.';
COMMENT ON COLUMN crypto_pending_key_bundles.bot_id IS 'The bot.';
COMMENT ON COLUMN crypto_pending_key_bundles.room_id IS 'The room.';
COMMENT ON COLUMN crypto_pending_key_bundles.sealed_details IS 'Who invited it and when it accepted, sealed.';

CREATE TABLE crypto_downloaded_rooms (
    bot_id          BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    room_id         TEXT        NOT NULL,
    PRIMARY KEY (bot_id, room_id)
);
COMMENT ON TABLE crypto_downloaded_rooms IS 'Rooms whose keys were all fetched from the server-side backup.';
COMMENT ON COLUMN crypto_downloaded_rooms.bot_id IS 'The bot.';
COMMENT ON COLUMN crypto_downloaded_rooms.room_id IS 'The room.';
