-- The rows that greenshield lives by. Ids, counts, times and states are plain, for operators to read;
-- whatever holds a key, a token or a message is BYTEA and sealed (see src/store/sealer.rs) or a digest.

CREATE TABLE sealing_key (
    singleton   BOOLEAN     PRIMARY KEY DEFAULT TRUE,
    wrapped     BYTEA       NOT NULL,
    created_at  TIMESTAMPTZ NOT NULL,
    rewrapped_at TIMESTAMPTZ,
    CONSTRAINT sealing_key_is_one_row CHECK (singleton)
);
COMMENT ON TABLE sealing_key IS 'The random data key that seals everything else, wrapped by the key in the configuration.';
COMMENT ON COLUMN sealing_key.singleton IS 'Always true: there is one row.';
COMMENT ON COLUMN sealing_key.wrapped IS 'The data key, encrypted with the configured sealing key (matrix-sdk-store-encryption export).';
COMMENT ON COLUMN sealing_key.created_at IS 'When the data key was made: the first migrate or serve.';
COMMENT ON COLUMN sealing_key.rewrapped_at IS 'When the configured key was last changed.';

CREATE TABLE shards (
    shard       SMALLINT    PRIMARY KEY,
    owner       UUID,
    fence       BIGINT      NOT NULL DEFAULT 0,
    expires_at  TIMESTAMPTZ
);
COMMENT ON TABLE shards IS 'Leases: bots are dealt into a fixed number of shards, and one process works a shard at a time.';
COMMENT ON COLUMN shards.shard IS 'bot_id modulo the number of shards.';
COMMENT ON COLUMN shards.owner IS 'The process that holds the lease; null when free.';
COMMENT ON COLUMN shards.fence IS 'Rises with every change of owner; every write of a worker checks it.';
COMMENT ON COLUMN shards.expires_at IS 'When the lease ends unless its owner renews it.';
INSERT INTO shards (shard) SELECT generate_series(0, 63);

CREATE TABLE processes (
    process_id  UUID        PRIMARY KEY,
    lock_key    BIGINT      NOT NULL,
    started_at  TIMESTAMPTZ NOT NULL,
    seen_at     TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE processes IS 'The serve processes that share this database.';
COMMENT ON COLUMN processes.process_id IS 'Random, new at every start.';
COMMENT ON COLUMN processes.lock_key IS 'The session advisory lock this process holds while it lives: a free lock means a dead process.';
COMMENT ON COLUMN processes.started_at IS 'When it started.';
COMMENT ON COLUMN processes.seen_at IS 'When it last renewed its leases.';

CREATE TABLE homeserver_state (
    singleton           BOOLEAN     PRIMARY KEY DEFAULT TRUE,
    last_transaction_at TIMESTAMPTZ,
    reconcile_before    TIMESTAMPTZ,
    CONSTRAINT homeserver_state_is_one_row CHECK (singleton)
);
COMMENT ON TABLE homeserver_state IS 'What we know of the homeserver as a whole.';
COMMENT ON COLUMN homeserver_state.singleton IS 'Always true: there is one row.';
COMMENT ON COLUMN homeserver_state.last_transaction_at IS 'When it last pushed a transaction.';
COMMENT ON COLUMN homeserver_state.reconcile_before IS 'Bots whose last reconcile is older than this are swept: moved forward after an outage.';
INSERT INTO homeserver_state (singleton) VALUES (TRUE);

CREATE TABLE bots (
    bot_id              BIGINT      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id             TEXT        NOT NULL UNIQUE,
    device_id           TEXT        NOT NULL,
    shard               SMALLINT    NOT NULL GENERATED ALWAYS AS ((bot_id % 64)::SMALLINT) STORED,
    state               TEXT        NOT NULL DEFAULT 'provisioning',
    display_name        TEXT,
    verification_policy TEXT        NOT NULL DEFAULT 'auto',
    last_update_id      BIGINT      NOT NULL DEFAULT 0,
    created_at          TIMESTAMPTZ NOT NULL,
    activated_at        TIMESTAMPTZ,
    reconciled_at       TIMESTAMPTZ,
    last_decrypted_at   TIMESTAMPTZ,
    last_error          TEXT,
    last_error_at       TIMESTAMPTZ,
    CONSTRAINT bots_state CHECK (state IN ('provisioning', 'active', 'retired')),
    CONSTRAINT bots_verification_policy CHECK (verification_policy IN ('auto', 'owner', 'off'))
);
COMMENT ON TABLE bots IS 'A Matrix user of our namespace, with the one device that we hold for it.';
COMMENT ON COLUMN bots.bot_id IS 'Our id; the first part of every key of the crypto store.';
COMMENT ON COLUMN bots.user_id IS 'The full Matrix user id.';
COMMENT ON COLUMN bots.device_id IS 'The device id, minted once and kept for life.';
COMMENT ON COLUMN bots.shard IS 'Which lease covers this bot.';
COMMENT ON COLUMN bots.state IS 'provisioning until every step of the signup is done, then active; retired is the end.';
COMMENT ON COLUMN bots.display_name IS 'The public profile name.';
COMMENT ON COLUMN bots.verification_policy IS 'auto: confirm when the human has; owner: wait for a recorded decision; off: cancel.';
COMMENT ON COLUMN bots.last_update_id IS 'The newest update_id in event_log for this bot.';
COMMENT ON COLUMN bots.created_at IS 'When the signup made the row.';
COMMENT ON COLUMN bots.activated_at IS 'When provisioning ended.';
COMMENT ON COLUMN bots.reconciled_at IS 'When its to-device inbox was last asked for at the homeserver.';
COMMENT ON COLUMN bots.last_decrypted_at IS 'When it last decrypted a message: health means that it can read.';
COMMENT ON COLUMN bots.last_error IS 'What its last failing step said; null once a step succeeds.';
COMMENT ON COLUMN bots.last_error_at IS 'When that was.';
CREATE INDEX bots_by_reconciled_at ON bots (reconciled_at NULLS FIRST) WHERE state = 'active';

CREATE TABLE bot_identities (
    bot_id              BIGINT      PRIMARY KEY REFERENCES bots ON DELETE CASCADE,
    master_key          TEXT        NOT NULL,
    self_signing_key    TEXT        NOT NULL,
    user_signing_key    TEXT        NOT NULL,
    sealed_secrets      BYTEA       NOT NULL,
    created_at          TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE bot_identities IS 'The cross-signing identity of a bot, apart from its Olm account so that losing one never costs the other. Written once.';
COMMENT ON COLUMN bot_identities.bot_id IS 'Whose identity.';
COMMENT ON COLUMN bot_identities.master_key IS 'Public master key, unpadded base64.';
COMMENT ON COLUMN bot_identities.self_signing_key IS 'Public self-signing key, unpadded base64.';
COMMENT ON COLUMN bot_identities.user_signing_key IS 'Public user-signing key, unpadded base64.';
COMMENT ON COLUMN bot_identities.sealed_secrets IS 'The three private keys, sealed.';
COMMENT ON COLUMN bot_identities.created_at IS 'When the identity was made.';

CREATE TABLE bot_tokens (
    token_id    BIGINT      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    bot_id      BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    token_hash  BYTEA       NOT NULL UNIQUE,
    label       TEXT        NOT NULL,
    created_at  TIMESTAMPTZ NOT NULL,
    revoked_at  TIMESTAMPTZ
);
COMMENT ON TABLE bot_tokens IS 'Access tokens that owners hold; several per bot, each revocable.';
COMMENT ON COLUMN bot_tokens.token_id IS 'Our id.';
COMMENT ON COLUMN bot_tokens.bot_id IS 'The bot that the token speaks for.';
COMMENT ON COLUMN bot_tokens.token_hash IS 'SHA-256 of the token.';
COMMENT ON COLUMN bot_tokens.label IS 'Where it came from.';
COMMENT ON COLUMN bot_tokens.created_at IS 'When it was minted.';
COMMENT ON COLUMN bot_tokens.revoked_at IS 'When it stopped being valid.';
CREATE INDEX bot_tokens_by_bot ON bot_tokens (bot_id);

CREATE TABLE signup_codes (
    code_id     BIGINT      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    code_hash   BYTEA       NOT NULL UNIQUE,
    code_hint   TEXT        NOT NULL,
    label       TEXT        NOT NULL,
    inviter     TEXT        NOT NULL,
    max_uses    INTEGER     NOT NULL,
    used        INTEGER     NOT NULL DEFAULT 0,
    created_at  TIMESTAMPTZ NOT NULL,
    expires_at  TIMESTAMPTZ,
    revoked_at  TIMESTAMPTZ,
    CONSTRAINT signup_codes_uses CHECK (max_uses > 0 AND used >= 0 AND used <= max_uses)
);
COMMENT ON TABLE signup_codes IS 'Codes by which owners sign bots up.';
COMMENT ON COLUMN signup_codes.code_id IS 'Our id, what revoke takes.';
COMMENT ON COLUMN signup_codes.code_hash IS 'SHA-256 of the code.';
COMMENT ON COLUMN signup_codes.code_hint IS 'Its first characters, to tell codes apart in a list.';
COMMENT ON COLUMN signup_codes.label IS 'What the operator called it.';
COMMENT ON COLUMN signup_codes.inviter IS 'The human with whom the bot opens its direct room.';
COMMENT ON COLUMN signup_codes.max_uses IS 'How many bots it may make.';
COMMENT ON COLUMN signup_codes.used IS 'How many it has made.';
COMMENT ON COLUMN signup_codes.created_at IS 'When it was minted.';
COMMENT ON COLUMN signup_codes.expires_at IS 'When it stops working; null means never.';
COMMENT ON COLUMN signup_codes.revoked_at IS 'When an operator ended it.';

CREATE TABLE signups (
    signup_id           BIGINT      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    code_id             BIGINT      NOT NULL REFERENCES signup_codes,
    bot_id              BIGINT      NOT NULL UNIQUE REFERENCES bots ON DELETE CASCADE,
    username            TEXT        NOT NULL,
    idempotency_hash    BYTEA,
    inviter             TEXT        NOT NULL,
    steps               JSONB       NOT NULL,
    sealed_intro        BYTEA       NOT NULL,
    space_id            TEXT,
    dm_room             TEXT,
    failure             JSONB,
    created_at          TIMESTAMPTZ NOT NULL,
    finished_at         TIMESTAMPTZ,
    answered_at         TIMESTAMPTZ
);
COMMENT ON TABLE signups IS 'How a bot came to be: one row per bot, a resumable list of steps.';
COMMENT ON COLUMN signups.signup_id IS 'Our id.';
COMMENT ON COLUMN signups.code_id IS 'The code that was used.';
COMMENT ON COLUMN signups.bot_id IS 'The bot that it made.';
COMMENT ON COLUMN signups.username IS 'The name that was asked for.';
COMMENT ON COLUMN signups.idempotency_hash IS 'SHA-256 of the Idempotency-Key, if one was sent.';
COMMENT ON COLUMN signups.inviter IS 'The human of the direct room, copied from the code.';
COMMENT ON COLUMN signups.steps IS 'Each step by name with true, false or a list of what was done.';
COMMENT ON COLUMN signups.sealed_intro IS 'The text of the first message, sealed.';
COMMENT ON COLUMN signups.space_id IS 'The space that the bot joined.';
COMMENT ON COLUMN signups.dm_room IS 'The direct room with the inviter.';
COMMENT ON COLUMN signups.failure IS 'The last step that failed: its name, the error code and the text.';
COMMENT ON COLUMN signups.created_at IS 'When the first call came.';
COMMENT ON COLUMN signups.finished_at IS 'When the last step was done.';
COMMENT ON COLUMN signups.answered_at IS 'When a caller was first given the whole answer.';

CREATE TABLE transactions (
    txn_id      TEXT        NOT NULL,
    body_digest BYTEA       NOT NULL,
    received_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (txn_id, body_digest)
);
COMMENT ON TABLE transactions IS 'Appservice transactions that were taken in, to skip an exact repeat.';
COMMENT ON COLUMN transactions.txn_id IS 'The homeserver''s id for it.';
COMMENT ON COLUMN transactions.body_digest IS 'SHA-256 of the body: the same id with another body is another transaction.';
COMMENT ON COLUMN transactions.received_at IS 'When it came.';
CREATE INDEX transactions_by_received_at ON transactions (received_at);

CREATE TABLE rooms (
    room_id             TEXT        PRIMARY KEY,
    encryption          JSONB,
    encryption_checked  BOOLEAN     NOT NULL DEFAULT FALSE,
    history_visibility  TEXT        NOT NULL DEFAULT 'shared',
    members_complete    BOOLEAN     NOT NULL DEFAULT FALSE,
    version             BIGINT      NOT NULL DEFAULT 0,
    updated_at          TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE rooms IS 'What sending needs to know of a room.';
COMMENT ON COLUMN rooms.room_id IS 'The Matrix room id.';
COMMENT ON COLUMN rooms.encryption IS 'Content of m.room.encryption once seen; it is never unset.';
COMMENT ON COLUMN rooms.encryption_checked IS 'Whether the homeserver was asked, so that a null means unencrypted.';
COMMENT ON COLUMN rooms.history_visibility IS 'As in m.room.history_visibility.';
COMMENT ON COLUMN rooms.members_complete IS 'Whether room_members holds all joined and invited members.';
COMMENT ON COLUMN rooms.version IS 'Rises with every change seen, so that a slow fetch never overwrites newer news.';
COMMENT ON COLUMN rooms.updated_at IS 'When it last changed.';

CREATE TABLE room_members (
    room_id     TEXT    NOT NULL REFERENCES rooms ON DELETE CASCADE,
    user_id     TEXT    NOT NULL,
    membership  TEXT    NOT NULL,
    PRIMARY KEY (room_id, user_id)
);
COMMENT ON TABLE room_members IS 'Joined and invited members (others only while their leaving matters).';
COMMENT ON COLUMN room_members.room_id IS 'The room.';
COMMENT ON COLUMN room_members.user_id IS 'The member.';
COMMENT ON COLUMN room_members.membership IS 'join, invite, leave, ban or knock.';
CREATE INDEX room_members_by_user ON room_members (user_id, membership);

CREATE TABLE events (
    event_seq       BIGINT      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id        TEXT        NOT NULL UNIQUE,
    room_id         TEXT        NOT NULL,
    sender          TEXT        NOT NULL,
    event_type      TEXT        NOT NULL,
    session_id      TEXT,
    origin_server_ts BIGINT     NOT NULL,
    received_at     TIMESTAMPTZ NOT NULL,
    sealed_event    BYTEA       NOT NULL,
    clear_type      TEXT,
    sealed_clear    BYTEA,
    decrypted_by    BIGINT,
    decrypted_at    TIMESTAMPTZ
);
COMMENT ON TABLE events IS 'Room events, each stored once however many bots are in the room.';
COMMENT ON COLUMN events.event_seq IS 'Our id, in the order of arrival.';
COMMENT ON COLUMN events.event_id IS 'The Matrix event id.';
COMMENT ON COLUMN events.room_id IS 'The room.';
COMMENT ON COLUMN events.sender IS 'The sender''s user id.';
COMMENT ON COLUMN events.event_type IS 'The type on the wire, often m.room.encrypted.';
COMMENT ON COLUMN events.session_id IS 'The Megolm session, for an encrypted event.';
COMMENT ON COLUMN events.origin_server_ts IS 'Milliseconds, as the sending homeserver says.';
COMMENT ON COLUMN events.received_at IS 'When we got it.';
COMMENT ON COLUMN events.sealed_event IS 'The event as received, sealed.';
COMMENT ON COLUMN events.clear_type IS 'The type inside, once decrypted.';
COMMENT ON COLUMN events.sealed_clear IS 'The decrypted event, sealed.';
COMMENT ON COLUMN events.decrypted_by IS 'The bot that decrypted it.';
COMMENT ON COLUMN events.decrypted_at IS 'When.';
CREATE INDEX events_by_received_at ON events (received_at);

CREATE TABLE inbox (
    entry_id        BIGINT      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    bot_id          BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    kind            TEXT        NOT NULL,
    event_seq       BIGINT      REFERENCES events ON DELETE CASCADE,
    sealed_payload  BYTEA,
    received_at     TIMESTAMPTZ NOT NULL,
    due_at          TIMESTAMPTZ NOT NULL,
    attempts        INTEGER     NOT NULL DEFAULT 0,
    waiting_for     TEXT,
    waiting_reason  TEXT,
    CONSTRAINT inbox_kind CHECK (kind IN ('to_device', 'key_counts', 'device_lists', 'room_event', 'invite', 'reconcile')),
    CONSTRAINT inbox_event_once UNIQUE (bot_id, event_seq)
);
COMMENT ON TABLE inbox IS 'Work in: what a bot has still to take up. A row goes when its work is done.';
COMMENT ON COLUMN inbox.entry_id IS 'Our id, in the order of arrival.';
COMMENT ON COLUMN inbox.bot_id IS 'For whom.';
COMMENT ON COLUMN inbox.kind IS 'What it is.';
COMMENT ON COLUMN inbox.event_seq IS 'The room event, for room_event and invite.';
COMMENT ON COLUMN inbox.sealed_payload IS 'What else there is to know, sealed.';
COMMENT ON COLUMN inbox.received_at IS 'When it came.';
COMMENT ON COLUMN inbox.due_at IS 'Not before this time: parked entries wait here.';
COMMENT ON COLUMN inbox.attempts IS 'How often it was tried.';
COMMENT ON COLUMN inbox.waiting_for IS 'The Megolm session whose key it waits for.';
COMMENT ON COLUMN inbox.waiting_reason IS 'Why it could not be decrypted yet, in a word.';
CREATE INDEX inbox_by_bot ON inbox (bot_id, entry_id);
CREATE INDEX inbox_waiting ON inbox (bot_id, waiting_for) WHERE waiting_for IS NOT NULL;
CREATE INDEX inbox_by_event ON inbox (event_seq) WHERE event_seq IS NOT NULL;

CREATE TABLE to_device_seen (
    bot_id      BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    digest      BYTEA       NOT NULL,
    seen_at     TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (bot_id, digest)
);
COMMENT ON TABLE to_device_seen IS 'To-device messages already taken in; outlives the inbox, because reconcile brings every message a second time.';
COMMENT ON COLUMN to_device_seen.bot_id IS 'The recipient.';
COMMENT ON COLUMN to_device_seen.digest IS 'SHA-256 of sender, type and content.';
COMMENT ON COLUMN to_device_seen.seen_at IS 'When it first came.';
CREATE INDEX to_device_seen_by_seen_at ON to_device_seen (seen_at);

CREATE TABLE outbox (
    send_id         BIGINT      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    bot_id          BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    room_id         TEXT        NOT NULL,
    txn_id          TEXT        NOT NULL,
    event_type      TEXT        NOT NULL,
    sealed_content  BYTEA       NOT NULL,
    state           TEXT        NOT NULL DEFAULT 'queued',
    due_at          TIMESTAMPTZ NOT NULL,
    attempts        INTEGER     NOT NULL DEFAULT 0,
    encrypted       BOOLEAN,
    session_id      TEXT,
    devices         INTEGER,
    event_id        TEXT,
    error           TEXT,
    created_at      TIMESTAMPTZ NOT NULL,
    finished_at     TIMESTAMPTZ,
    CONSTRAINT outbox_txn_once UNIQUE (bot_id, txn_id),
    CONSTRAINT outbox_state CHECK (state IN ('queued', 'sent', 'failed'))
);
COMMENT ON TABLE outbox IS 'Work out: messages that a bot is to send. The only way into a room.';
COMMENT ON COLUMN outbox.send_id IS 'Our id, in the order of asking.';
COMMENT ON COLUMN outbox.bot_id IS 'Who sends.';
COMMENT ON COLUMN outbox.room_id IS 'Where to.';
COMMENT ON COLUMN outbox.txn_id IS 'The asker''s id for it: the same id is the same message, for good.';
COMMENT ON COLUMN outbox.event_type IS 'The type before encryption.';
COMMENT ON COLUMN outbox.sealed_content IS 'The content before encryption, sealed.';
COMMENT ON COLUMN outbox.state IS 'queued, sent or failed.';
COMMENT ON COLUMN outbox.due_at IS 'Not before this time: backoff after a failed attempt.';
COMMENT ON COLUMN outbox.attempts IS 'How often it was tried.';
COMMENT ON COLUMN outbox.encrypted IS 'Whether it went out encrypted.';
COMMENT ON COLUMN outbox.session_id IS 'The Megolm session that it was encrypted with.';
COMMENT ON COLUMN outbox.devices IS 'How many devices were newly given that session for this message.';
COMMENT ON COLUMN outbox.event_id IS 'The event id that the homeserver gave it.';
COMMENT ON COLUMN outbox.error IS 'Why it failed, or failed so far.';
COMMENT ON COLUMN outbox.created_at IS 'When it was asked for.';
COMMENT ON COLUMN outbox.finished_at IS 'When it was sent or given up.';
CREATE INDEX outbox_queued ON outbox (bot_id, send_id) WHERE state = 'queued';
CREATE INDEX outbox_by_finished_at ON outbox (finished_at);

CREATE TABLE event_log (
    bot_id      BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    update_id   BIGINT      NOT NULL,
    event_seq   BIGINT      NOT NULL REFERENCES events ON DELETE CASCADE,
    decryption  TEXT        NOT NULL,
    respond     BOOLEAN     NOT NULL,
    logged_at   TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (bot_id, update_id),
    CONSTRAINT event_log_once UNIQUE (bot_id, event_seq),
    CONSTRAINT event_log_decryption CHECK (decryption IN ('plain', 'ok', 'late', 'failed'))
);
COMMENT ON TABLE event_log IS 'What a bot reads: each event once, in a rising order of its own.';
COMMENT ON COLUMN event_log.bot_id IS 'The reader.';
COMMENT ON COLUMN event_log.update_id IS 'Rises by one per bot.';
COMMENT ON COLUMN event_log.event_seq IS 'The event.';
COMMENT ON COLUMN event_log.decryption IS 'plain, ok, late (its key came after it) or failed (given up).';
COMMENT ON COLUMN event_log.respond IS 'Whether the built-in responder has still to look at it.';
COMMENT ON COLUMN event_log.logged_at IS 'When it was logged.';
CREATE INDEX event_log_respond ON event_log (logged_at) WHERE respond;

CREATE TABLE verifications (
    verification_id BIGINT      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    bot_id          BIGINT      NOT NULL REFERENCES bots ON DELETE CASCADE,
    flow_id         TEXT        NOT NULL,
    other_user_id   TEXT        NOT NULL,
    other_device_id TEXT,
    room_id         TEXT,
    we_started      BOOLEAN     NOT NULL,
    state           TEXT        NOT NULL,
    mac_received    BOOLEAN     NOT NULL DEFAULT FALSE,
    decision        TEXT,
    emoji           JSONB,
    decimals        JSONB,
    cancel_code     TEXT,
    cancel_reason   TEXT,
    created_at      TIMESTAMPTZ NOT NULL,
    updated_at      TIMESTAMPTZ NOT NULL,
    finished_at     TIMESTAMPTZ,
    CONSTRAINT verifications_flow_once UNIQUE (bot_id, other_user_id, flow_id),
    CONSTRAINT verifications_state CHECK (state IN ('requested', 'ready', 'started', 'emoji', 'confirmed', 'done', 'cancelled')),
    CONSTRAINT verifications_decision CHECK (decision IN ('confirm', 'mismatch', 'cancel'))
);
COMMENT ON TABLE verifications IS 'The story of every verification, in a room or over to-device.';
COMMENT ON COLUMN verifications.verification_id IS 'Our id.';
COMMENT ON COLUMN verifications.bot_id IS 'The bot being verified.';
COMMENT ON COLUMN verifications.flow_id IS 'The request''s event id in a room, the transaction id over to-device.';
COMMENT ON COLUMN verifications.other_user_id IS 'The human.';
COMMENT ON COLUMN verifications.other_device_id IS 'The human''s device, once known.';
COMMENT ON COLUMN verifications.room_id IS 'The room; null over to-device.';
COMMENT ON COLUMN verifications.we_started IS 'Whether the bot sent the request.';
COMMENT ON COLUMN verifications.state IS 'How far it got.';
COMMENT ON COLUMN verifications.mac_received IS 'Whether the human has confirmed: under auto the bot confirms after that.';
COMMENT ON COLUMN verifications.decision IS 'What the owner decided, where the policy waits for it.';
COMMENT ON COLUMN verifications.emoji IS 'The seven emoji, as both sides should see them.';
COMMENT ON COLUMN verifications.decimals IS 'The three numbers.';
COMMENT ON COLUMN verifications.cancel_code IS 'Why it was cancelled, in the specification''s word.';
COMMENT ON COLUMN verifications.cancel_reason IS 'The same in a sentence.';
COMMENT ON COLUMN verifications.created_at IS 'When it began.';
COMMENT ON COLUMN verifications.updated_at IS 'When it last moved.';
COMMENT ON COLUMN verifications.finished_at IS 'When it was done or cancelled.';
CREATE INDEX verifications_open ON verifications (bot_id) WHERE finished_at IS NULL;

CREATE TABLE bot_queue (
    bot_id      BIGINT      PRIMARY KEY REFERENCES bots ON DELETE CASCADE,
    shard       SMALLINT    NOT NULL,
    due_at      TIMESTAMPTZ NOT NULL,
    generation  BIGINT      NOT NULL DEFAULT 0,
    failures    INTEGER     NOT NULL DEFAULT 0
);
COMMENT ON TABLE bot_queue IS 'Which bots have work, and when: an idle bot has no row.';
COMMENT ON COLUMN bot_queue.bot_id IS 'The bot.';
COMMENT ON COLUMN bot_queue.shard IS 'Its shard, copied for the worker''s query.';
COMMENT ON COLUMN bot_queue.due_at IS 'When its next step is due.';
COMMENT ON COLUMN bot_queue.generation IS 'Rises with every wake, so that one during a step is not forgotten.';
COMMENT ON COLUMN bot_queue.failures IS 'Failed steps in a row, for backoff.';
CREATE INDEX bot_queue_due ON bot_queue (shard, due_at);
