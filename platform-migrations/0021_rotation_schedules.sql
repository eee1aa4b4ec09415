-- How often credentials and keys are replaced: one row a kind for all tenants, and rows of single tenants before it.
-- A tenant's row without a period leaves that tenant out.
CREATE TABLE rotation_schedules (
    kind       text NOT NULL CHECK (kind IN ('database', 'data_key', 'signing_key')),
    tenant_id  uuid REFERENCES chat_instances (id) ON DELETE CASCADE,
    every_days integer CHECK (every_days BETWEEN 1 AND 3650),
    set_at     timestamptz NOT NULL,
    CHECK (tenant_id IS NOT NULL OR every_days IS NOT NULL)
);
CREATE UNIQUE INDEX rotation_schedules_all ON rotation_schedules (kind) WHERE tenant_id IS NULL;
CREATE UNIQUE INDEX rotation_schedules_tenant ON rotation_schedules (tenant_id, kind) WHERE tenant_id IS NOT NULL;
