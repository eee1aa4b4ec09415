-- What became of each tenant in a run over the fleet: a migration or a verification.
CREATE TABLE fleet_migration_tenants (
    operation_id  uuid NOT NULL REFERENCES operations (id) ON DELETE CASCADE,
    tenant_id     uuid NOT NULL REFERENCES chat_instances (id),
    -- The order in which they are taken.
    position      integer NOT NULL,
    wave          text NOT NULL CHECK (wave IN ('canary', 'fleet')),
    state         text NOT NULL CHECK (state IN ('pending', 'running', 'done', 'failed', 'skipped')),
    from_version  bigint,
    to_version    bigint,
    error_code    text,
    error_message text,
    -- What a verification found wrong.
    findings      jsonb,
    -- Whoever has the tenant in hand; the notes of a worker that was thought dead are refused.
    run_id        uuid,
    started_at    timestamptz,
    finished_at   timestamptz,
    PRIMARY KEY (operation_id, tenant_id),
    UNIQUE (operation_id, position)
);
CREATE INDEX fleet_migration_tenants_state ON fleet_migration_tenants (operation_id, state, position);
