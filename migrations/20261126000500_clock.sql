-- Leases go by the database's clock.

COMMENT ON COLUMN shards.expires_at IS 'When the lease ends unless its owner renews it, by the database''s clock.';
COMMENT ON COLUMN processes.started_at IS 'When it started, by the database''s clock.';
COMMENT ON COLUMN processes.seen_at IS 'When it last renewed its leases, by the database''s clock; 1970 once it is stopping and takes no more transactions in.';
