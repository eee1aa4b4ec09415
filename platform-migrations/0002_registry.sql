-- Postgres servers on which managed tenants get their databases.
CREATE TABLE clusters (
    id                      uuid PRIMARY KEY,
    name                    text NOT NULL UNIQUE,
    host                    text NOT NULL,
    port                    integer NOT NULL,
    admin_url_sealed        bytea NOT NULL,
    -- The version of tenant-migrations that the cluster's template database holds; NULL before it exists.
    template_schema_version bigint,
    created_at              timestamptz NOT NULL
);

-- The registry: one row a client company ("tenant").
CREATE TABLE chat_instances (
    id             uuid PRIMARY KEY,
    slug           text NOT NULL,
    name           text NOT NULL,
    plan           text NOT NULL,
    template       text NOT NULL,
    admin_email    text NOT NULL,
    database_mode  text NOT NULL CHECK (database_mode IN ('managed')),
    cluster_id     uuid NOT NULL REFERENCES clusters (id),
    state          text NOT NULL CHECK (state IN
        ('requested', 'provisioning', 'waiting_for_client', 'active', 'suspended', 'deleting', 'deleted', 'failed')),
    schema_version bigint,
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL,
    activated_at   timestamptz
);
-- A deleted tenant's slug may be used again; its row stays as the record of what was.
CREATE UNIQUE INDEX chat_instances_slug ON chat_instances (slug) WHERE state <> 'deleted';
CREATE INDEX chat_instances_state ON chat_instances (state, id);

-- Each tenant's data key, wrapped by a master key. Destroying the row makes all that it sealed unreadable.
CREATE TABLE wrapped_keys (
    tenant_id          uuid NOT NULL REFERENCES chat_instances (id),
    version            integer NOT NULL,
    wrapped_key        bytea NOT NULL,
    master_key_version integer NOT NULL,
    created_at         timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, version)
);

-- Where a tenant's database is and how to sign in there. The URL is sealed with the tenant's data key.
CREATE TABLE tenant_databases (
    tenant_id     uuid PRIMARY KEY REFERENCES chat_instances (id),
    cluster_id    uuid NOT NULL REFERENCES clusters (id),
    database_name text NOT NULL,
    owner_role    text NOT NULL,
    login_role    text NOT NULL,
    url_sealed    bytea NOT NULL,
    created_at    timestamptz NOT NULL,
    UNIQUE (cluster_id, database_name)
);

-- Keys that sign a tenant's access tokens; the id is the `kid` of the token. Sealed with the tenant's data key.
CREATE TABLE signing_keys (
    id            uuid PRIMARY KEY,
    tenant_id     uuid NOT NULL REFERENCES chat_instances (id),
    secret_sealed bytea NOT NULL,
    created_at    timestamptz NOT NULL,
    retired_at    timestamptz
);
CREATE INDEX signing_keys_tenant_id ON signing_keys (tenant_id);

-- Servers cache the registry; each change tells them which tenant to read again.
CREATE FUNCTION notify_registry() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed jsonb := to_jsonb(COALESCE(NEW, OLD));
BEGIN
    PERFORM pg_notify('freehold_registry', COALESCE(changed ->> 'tenant_id', changed ->> 'id'));
    RETURN NULL;
END $$;
CREATE TRIGGER chat_instances_notify AFTER INSERT OR UPDATE OR DELETE ON chat_instances
    FOR EACH ROW EXECUTE FUNCTION notify_registry();
CREATE TRIGGER wrapped_keys_notify AFTER INSERT OR UPDATE OR DELETE ON wrapped_keys
    FOR EACH ROW EXECUTE FUNCTION notify_registry();
CREATE TRIGGER tenant_databases_notify AFTER INSERT OR UPDATE OR DELETE ON tenant_databases
    FOR EACH ROW EXECUTE FUNCTION notify_registry();
CREATE TRIGGER signing_keys_notify AFTER INSERT OR UPDATE OR DELETE ON signing_keys
    FOR EACH ROW EXECUTE FUNCTION notify_registry();
