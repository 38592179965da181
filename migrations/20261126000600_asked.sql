-- Whoever is asked about is not forgotten before a bot has had the time to track them.

ALTER TABLE device_lists ADD COLUMN asked_at TIMESTAMPTZ;
COMMENT ON COLUMN device_lists.asked_at IS 'When a bot last asked about the user, give or take half an hour; that it tracks the user may be committed later.';
