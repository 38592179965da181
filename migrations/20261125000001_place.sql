-- Where the database was last served: a restored copy of it must be told from the original (see
-- src/store/place.rs).

CREATE TABLE place (
    singleton   BOOLEAN     PRIMARY KEY DEFAULT TRUE,
    cluster     BIGINT,
    tables      BIGINT      NOT NULL,
    timeline    TEXT,
    noted_at    TIMESTAMPTZ NOT NULL,
    CONSTRAINT place_is_one_row CHECK (singleton)
);
COMMENT ON TABLE place IS 'Where this database was last served: a copy that was restored from a backup lies elsewhere.';
COMMENT ON COLUMN place.singleton IS 'Always true: there is one row.';
COMMENT ON COLUMN place.cluster IS 'The PostgreSQL cluster''s own identifier, where it tells.';
COMMENT ON COLUMN place.tables IS 'The object ids of the database and of one of our tables: new whenever they are made anew.';
COMMENT ON COLUMN place.timeline IS 'The cluster''s timeline: new after a recovery to a point in time, and after a standby took over.';
COMMENT ON COLUMN place.noted_at IS 'When this was noted.';
