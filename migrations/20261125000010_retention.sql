-- What strangers can make grow is forgotten after a time (see src/store/retention.rs): when it came.

ALTER TABLE crypto_olm_sessions ADD COLUMN used_at TIMESTAMPTZ NOT NULL DEFAULT NOW();
COMMENT ON COLUMN crypto_olm_sessions.used_at IS 'When a message last went through it.';
ALTER TABLE crypto_inbound_group_sessions ADD COLUMN created_at TIMESTAMPTZ NOT NULL DEFAULT NOW();
COMMENT ON COLUMN crypto_inbound_group_sessions.created_at IS 'When the key came.';
ALTER TABLE crypto_withheld_sessions ADD COLUMN created_at TIMESTAMPTZ NOT NULL DEFAULT NOW();
COMMENT ON COLUMN crypto_withheld_sessions.created_at IS 'When the refusal first came.';
ALTER TABLE crypto_room_key_bundles ADD COLUMN created_at TIMESTAMPTZ NOT NULL DEFAULT NOW();
COMMENT ON COLUMN crypto_room_key_bundles.created_at IS 'When the offer first came.';

COMMENT ON COLUMN outbox.txn_id IS 'The asker''s id for it: the same id is the same message, for a year.';
COMMENT ON COLUMN verifications.cancel_reason IS 'The same in our sentence; what the other side wrote is not kept.';
