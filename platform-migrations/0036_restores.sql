-- What bringing a tenant back has made so far. Nothing of it is in force: the registry changes in the transaction that
-- settles the operation, and secrets are taken out of here by the same one.
CREATE TABLE restores (
    operation_id          uuid PRIMARY KEY,
    backup_id             uuid NOT NULL,
    tenant_id             uuid NOT NULL REFERENCES chat_instances (id),
    -- Whether the tenant stays in service on its old database meanwhile.
    replaces              boolean NOT NULL,
    -- What the registry's row goes back to if it fails.
    state_before          text NOT NULL,
    slug_before           text NOT NULL,
    -- What the registry's row becomes: name, plan, template, admin_email, limits.
    registry              jsonb NOT NULL,
    cluster_id            uuid NOT NULL REFERENCES clusters (id),
    database_name         text NOT NULL,
    owner_role            text NOT NULL,
    login_role            text NOT NULL,
    -- Sealed with a master key, for as long as the operation needs it and no longer.
    archive_key_sealed    bytea,
    -- Sealed with the tenant's data key, which is in `restore_keys`.
    url_sealed            bytea,
    signing_key_id        uuid,
    signing_secret_sealed bytea,
    -- Noted once the new database has the present schema.
    schema_version         bigint,
    schema_compatible_from bigint,
    created_at            timestamptz NOT NULL,
    settled_at            timestamptz
);
CREATE INDEX restores_backup ON restores (backup_id);

-- The tenant's data keys out of its backup, wrapped by the present master key.
CREATE TABLE restore_keys (
    operation_id       uuid NOT NULL REFERENCES restores (operation_id) ON DELETE CASCADE,
    version            integer NOT NULL,
    wrapped_key        bytea NOT NULL,
    master_key_version integer NOT NULL,
    PRIMARY KEY (operation_id, version)
);
