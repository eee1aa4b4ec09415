-- What the last check of a client's own database found, for those who look at it later.
ALTER TABLE tenant_databases ADD COLUMN last_check jsonb;
ALTER TABLE tenant_databases ADD COLUMN checked_at timestamptz;
