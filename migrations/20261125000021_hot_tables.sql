-- What is written with every message costs what it must. The rows of these tables name bots and events
-- that their writers have just read, so no key is checked again; whoever deletes a bot
-- (signups.take_back) or events (retention.events) deletes what belongs to them, in the same statement.

ALTER TABLE inbox
    DROP CONSTRAINT inbox_bot_id_fkey,
    DROP CONSTRAINT inbox_event_seq_fkey,
    DROP CONSTRAINT inbox_event_once,
    ADD CONSTRAINT inbox_event_once UNIQUE (event_seq, bot_id);
DROP INDEX inbox_by_event;

ALTER TABLE event_log
    DROP CONSTRAINT event_log_bot_id_fkey,
    DROP CONSTRAINT event_log_event_seq_fkey,
    DROP CONSTRAINT event_log_once,
    ADD CONSTRAINT event_log_once UNIQUE (event_seq, bot_id);

ALTER TABLE outbox DROP CONSTRAINT outbox_bot_id_fkey;
DROP INDEX outbox_by_finished_at;
CREATE INDEX outbox_by_finished_at ON outbox (finished_at) WHERE finished_at IS NOT NULL;

ALTER TABLE bot_queue DROP CONSTRAINT bot_queue_bot_id_fkey;
ALTER TABLE to_device_seen DROP CONSTRAINT to_device_seen_bot_id_fkey;
ALTER TABLE crypto_olm_sessions DROP CONSTRAINT crypto_olm_sessions_bot_id_fkey;
ALTER TABLE crypto_olm_hashes DROP CONSTRAINT crypto_olm_hashes_bot_id_fkey;
ALTER TABLE crypto_inbound_group_sessions DROP CONSTRAINT crypto_inbound_group_sessions_bot_id_fkey;

-- Events are numbered as they come.
DROP INDEX events_by_received_at;

-- In the order in which they are taken, whatever shards a process owns: a scan in order takes dead
-- entries out of its way, and few of the rows that wait are others'.
DROP INDEX bot_queue_due;
CREATE INDEX bot_queue_due ON bot_queue (due_at);
