-- A message loses its content after a week, and its row after a year. Each is found without a look at the
-- others, of which there is a year's worth.
DROP INDEX outbox_by_finished_at;
CREATE INDEX outbox_with_content ON outbox (finished_at)
    WHERE finished_at IS NOT NULL AND sealed_content <> '';
CREATE INDEX outbox_without_content ON outbox (finished_at)
    WHERE finished_at IS NOT NULL AND sealed_content = '';
