-- Bots forget the humans with whom they have nothing to do any more.

ALTER TABLE inbox DROP CONSTRAINT inbox_kind, ADD CONSTRAINT inbox_kind CHECK (
    kind IN ('to_device', 'key_counts', 'device_lists', 'room_event', 'invite', 'reconcile', 'forget_strangers')
);

-- Where a room's members are not all known, nobody counts as a stranger.
CREATE VIEW strangers AS
SELECT tracked.bot_id, tracked.user_id
FROM crypto_tracked_users tracked
JOIN bots b USING (bot_id)
WHERE tracked.user_id <> b.user_id
    AND NOT EXISTS (
        SELECT FROM room_members mine
        JOIN rooms r USING (room_id)
        LEFT JOIN room_members theirs
            ON theirs.room_id = mine.room_id AND theirs.user_id = tracked.user_id
                AND theirs.membership IN ('join', 'invite')
        WHERE mine.user_id = b.user_id AND mine.membership IN ('join', 'invite')
            AND (theirs.user_id IS NOT NULL OR NOT r.members_complete)
    )
    AND NOT EXISTS (
        SELECT FROM verifications v
        WHERE v.bot_id = tracked.bot_id AND v.other_user_id = tracked.user_id
    );
COMMENT ON VIEW strangers IS 'Users that a bot tracks, shares no room with, and has not verified or begun to as far back as that is kept.';
COMMENT ON COLUMN strangers.bot_id IS 'The bot.';
COMMENT ON COLUMN strangers.user_id IS 'Whom it need not know any more.';
