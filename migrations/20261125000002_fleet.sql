-- What makes a large fleet cheap: device keys that all bots share, answers found while an event is
-- logged, and indexes that hold only what is looked for.

CREATE TABLE device_lists (
    user_id         TEXT        PRIMARY KEY,
    changed         BIGINT      NOT NULL DEFAULT 0,
    fetched         BIGINT,
    fetched_at      TIMESTAMPTZ,
    sealed_answer   BYTEA
);
COMMENT ON TABLE device_lists IS 'Users whose devices some bot keeps up to date, and what the homeserver last answered about them: asked once per change, for all bots.';
COMMENT ON COLUMN device_lists.user_id IS 'The user.';
COMMENT ON COLUMN device_lists.changed IS 'The number of the last change of this user''s devices that we were told of (homeserver_state.device_epoch); 0 if none.';
COMMENT ON COLUMN device_lists.fetched IS 'What changed was when the answer was asked for: the answer is good as long as the two are equal.';
COMMENT ON COLUMN device_lists.fetched_at IS 'When the answer came.';
COMMENT ON COLUMN device_lists.sealed_answer IS 'The user''s part of the answer to /keys/query: public keys, sealed to keep anybody from changing them.';
CREATE INDEX device_lists_by_changed ON device_lists (changed);
CREATE INDEX device_lists_by_fetched_at ON device_lists (fetched_at);

INSERT INTO device_lists (user_id) SELECT DISTINCT user_id FROM crypto_tracked_users;

ALTER TABLE homeserver_state ADD COLUMN device_epoch BIGINT NOT NULL DEFAULT 0;
COMMENT ON COLUMN homeserver_state.device_epoch IS 'Rises with every change of devices that concerns any bot.';

ALTER TABLE bots ADD COLUMN device_epoch BIGINT NOT NULL DEFAULT 0;
COMMENT ON COLUMN bots.device_epoch IS 'Up to which change of devices the bot has looked at those of the users it tracks.';

-- Commands are answered in the commit that logs them.
ALTER TABLE event_log DROP COLUMN respond;

-- What a bot of ours sent, for the other bots in the room, who are given no keys for it.
CREATE INDEX outbox_by_event ON outbox (event_id) WHERE event_id IS NOT NULL;
