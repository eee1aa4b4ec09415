-- A tenant may bring a database of its own, on a server that is no cluster of the owner's.
ALTER TABLE chat_instances ALTER COLUMN cluster_id DROP NOT NULL;
ALTER TABLE chat_instances DROP CONSTRAINT chat_instances_database_mode_check;
ALTER TABLE chat_instances ADD CONSTRAINT chat_instances_database_mode_check
    CHECK (database_mode IN ('managed', 'own') AND (database_mode = 'own' OR cluster_id IS NOT NULL));
ALTER TABLE tenant_databases ALTER COLUMN cluster_id DROP NOT NULL;
ALTER TABLE tenant_databases ALTER COLUMN owner_role DROP NOT NULL;

-- What this tenant may use, where it differs from the platform's settings.
ALTER TABLE chat_instances ADD COLUMN limits jsonb NOT NULL DEFAULT '{}';
ALTER TABLE chat_instances ADD COLUMN suspended_at timestamptz;
-- When a tenant in state `deleting` is removed for good.
ALTER TABLE chat_instances ADD COLUMN delete_after timestamptz;

-- Two login roles alternate. A credential that is being brought in stands beside the one in use until it is proved,
-- so that at every instant the platform knows one that works.
ALTER TABLE tenant_databases ADD COLUMN next_login_role text;
ALTER TABLE tenant_databases ADD COLUMN next_url_sealed bytea;
ALTER TABLE tenant_databases ADD COLUMN retiring_login_role text;
ALTER TABLE tenant_databases ADD COLUMN rotated_at timestamptz;
