-- What strangers write into a room's settings is not kept: only what sending heeds. Whatever an
-- m.room.encryption says, it stays one.

UPDATE rooms
SET encryption = COALESCE(
    (
        SELECT JSONB_OBJECT_AGG(key, value)
        FROM JSONB_EACH(CASE JSONB_TYPEOF(encryption) WHEN 'object' THEN encryption ELSE '{}' END)
        WHERE key = 'algorithm' AND value #>> '{}' ~ '^[a-z][a-z0-9._-]{0,254}$'
            OR key IN ('rotation_period_ms', 'rotation_period_msgs')
                AND JSONB_TYPEOF(value) = 'number'
    ),
    '{}'
)
WHERE encryption IS NOT NULL;
COMMENT ON COLUMN rooms.encryption IS 'Of the content of m.room.encryption, once seen: algorithm, rotation_period_ms, rotation_period_msgs. It is never unset.';

UPDATE rooms
SET history_visibility = 'shared'
WHERE history_visibility NOT IN ('invited', 'joined', 'shared', 'world_readable');
COMMENT ON COLUMN rooms.history_visibility IS 'As in m.room.history_visibility: invited, joined, shared or world_readable.';
