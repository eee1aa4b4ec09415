-- Sealed backups of tenants: the files that lie in the backup directory.
CREATE TABLE backups (
    id                 uuid PRIMARY KEY,
    -- Whose it is. NULL for a file that was uploaded: what it says of itself is sealed.
    tenant_id          uuid REFERENCES chat_instances (id),
    origin             text NOT NULL CHECK (origin IN ('backup', 'upload')),
    operation_id       uuid,
    state              text NOT NULL CHECK (state IN ('pending', 'complete', 'failed')),
    file_name          text NOT NULL UNIQUE,
    key_kind           text NOT NULL CHECK (key_kind IN ('passphrase', 'key_file')),
    -- How the archive's key follows from the passphrase or key file: parameters and salt, as in the file's header.
    key_derivation     bytea NOT NULL,
    -- The archive's key, sealed with a master key, for as long as the operation needs it and no longer.
    archive_key_sealed bytea,
    size_bytes         bigint,
    sha256             bytea,
    schema_version     bigint,
    created_at         timestamptz NOT NULL,
    finished_at        timestamptz
);
CREATE INDEX backups_tenant ON backups (tenant_id, id DESC);
CREATE INDEX backups_operation ON backups (operation_id);
