-- What one human has begun with a bot of late: looked at before each further one is heeded.
CREATE INDEX verifications_recent ON verifications (bot_id, other_user_id, created_at);
