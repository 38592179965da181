-- Attempts are counted anew when an outage is over.
COMMENT ON COLUMN outbox.attempts IS 'How often it was tried in vain, since the last outage.';
COMMENT ON COLUMN inbox.attempts IS 'How often it was tried in vain; an invitation or a reconcile, since the last outage.';
