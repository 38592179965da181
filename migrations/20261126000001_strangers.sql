-- Bots forget the humans with whom they have nothing to do any more.

ALTER TABLE inbox DROP CONSTRAINT inbox_kind, ADD CONSTRAINT inbox_kind CHECK (
    kind IN ('to_device', 'key_counts', 'device_lists', 'room_event', 'invite', 'reconcile', 'forget_strangers')
);

-- Set against set: bots with thousands of rooms, and humans in thousands of rooms, cost no more than
-- the rows that there are of them.
CREATE FUNCTION strangers(bot BIGINT) RETURNS SETOF TEXT LANGUAGE SQL STABLE AS $$
    SELECT user_id FROM crypto_tracked_users WHERE bot_id = bot
    EXCEPT
    SELECT theirs.user_id
    FROM bots b
    JOIN room_members mine ON mine.user_id = b.user_id AND mine.membership IN ('join', 'invite')
    JOIN room_members theirs
        ON theirs.room_id = mine.room_id AND theirs.membership IN ('join', 'invite')
    WHERE b.bot_id = bot
    EXCEPT
    SELECT other_user_id FROM verifications v WHERE v.bot_id = bot
    EXCEPT
    SELECT user_id FROM bots b WHERE b.bot_id = bot
$$;
COMMENT ON FUNCTION strangers IS 'Users that a bot tracks, is not known to share a room with, and has not verified or begun to as far back as that is kept.';
