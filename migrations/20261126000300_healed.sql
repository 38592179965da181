-- A repair that found damaged rows and nothing else (see src/worker/repair.rs).

ALTER TABLE repairs DROP CONSTRAINT repairs_outcome, ADD CONSTRAINT repairs_outcome CHECK (
    outcome IN ('healthy', 'healed', 'signed', 'new_device', 'refused')
);
COMMENT ON COLUMN repairs.outcome IS 'healthy: nothing was wrong; healed: rows that did not open were dropped; signed: the device was signed again; new_device; refused: nothing was changed.';
COMMENT ON COLUMN bot_identities.sealed_secrets IS 'The three private keys, sealed. Written once; mended from the crypto store''s copy if they do not open any more.';
