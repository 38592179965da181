-- A message is read once: a homeserver can bring the same one again under another event id.

ALTER TABLE events ADD COLUMN message_index BIGINT;
COMMENT ON COLUMN events.message_index IS 'Which message of its Megolm session the event is: no client uses a number twice.';
CREATE INDEX events_by_message ON events (session_id, message_index) WHERE session_id IS NOT NULL;
