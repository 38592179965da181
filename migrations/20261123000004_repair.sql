-- Repairs: a bot that lost its device gets a new one under the same identity (see src/worker/repair.rs).

CREATE TABLE repairs (
    bot_id          BIGINT      PRIMARY KEY REFERENCES bots ON DELETE CASCADE,
    reason          TEXT        NOT NULL,
    new_device_id   TEXT        NOT NULL,
    old_device_id   TEXT,
    asked_at        TIMESTAMPTZ NOT NULL,
    switched_at     TIMESTAMPTZ,
    finished_at     TIMESTAMPTZ,
    outcome         TEXT,
    error           TEXT,
    CONSTRAINT repairs_reason CHECK (reason IN ('asked', 'new_device', 'one_time_keys', 'account')),
    CONSTRAINT repairs_outcome CHECK (outcome IN ('healthy', 'signed', 'new_device', 'refused'))
);
COMMENT ON TABLE repairs IS 'The last repair of each bot that ever had one: the wish, how far it got, and how it ended.';
COMMENT ON COLUMN repairs.bot_id IS 'The bot.';
COMMENT ON COLUMN repairs.reason IS 'asked: an operator had it looked at; new_device: an operator wants a new device in any case; one_time_keys: the homeserver holds other one-time keys under our ids; account: the Olm account was missing or damaged.';
COMMENT ON COLUMN repairs.new_device_id IS 'The device id that it gets if it needs one: minted with the wish, so that a repetition makes no third device.';
COMMENT ON COLUMN repairs.old_device_id IS 'The device that it had before, which is left alone at the homeserver.';
COMMENT ON COLUMN repairs.asked_at IS 'When it was asked for.';
COMMENT ON COLUMN repairs.switched_at IS 'When the old device was given up: from then on there is no way back.';
COMMENT ON COLUMN repairs.finished_at IS 'When it ended.';
COMMENT ON COLUMN repairs.outcome IS 'healthy: nothing was wrong; signed: the device was signed again; new_device; refused: nothing was changed.';
COMMENT ON COLUMN repairs.error IS 'Why it was refused, or what its last attempt failed with.';

ALTER TABLE bots ADD COLUMN identity_checked_at TIMESTAMPTZ;
COMMENT ON COLUMN bots.identity_checked_at IS 'When the homeserver was last asked which identity and devices it shows for this bot.';
COMMENT ON COLUMN bots.device_id IS 'The device id; only a repair ever changes it.';
