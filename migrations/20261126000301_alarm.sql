-- What the homeserver wrongly shows of a bot stays told, whatever its steps do (see src/worker/guard.rs).

ALTER TABLE bots ADD COLUMN alarm TEXT, ADD COLUMN alarm_at TIMESTAMPTZ;
COMMENT ON COLUMN bots.alarm IS 'What was wrong with the identity and devices that the homeserver showed for this bot when it was last asked; null if nothing was.';
COMMENT ON COLUMN bots.alarm_at IS 'When this was first seen.';
COMMENT ON COLUMN bots.identity_checked_at IS 'When the homeserver last answered which identity and devices it shows for this bot.';

UPDATE bots
SET alarm = SUBSTR(last_error, LENGTH('identity alarm: ') + 1), alarm_at = last_error_at,
    last_error = NULL
WHERE last_error LIKE 'identity alarm: %';
