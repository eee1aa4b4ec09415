-- Answers to requests that carried an Idempotency-Key, so that a repeated request gets the same answer instead of
-- a second tenant. The answer may hold a one-time invite and is therefore sealed with a master key.
CREATE TABLE idempotency_keys (
    super_admin_id  uuid NOT NULL REFERENCES super_admins (id) ON DELETE CASCADE,
    key             text NOT NULL,
    request_hash    bytea NOT NULL,
    response_sealed bytea NOT NULL,
    created_at      timestamptz NOT NULL,
    PRIMARY KEY (super_admin_id, key)
);
CREATE INDEX idempotency_keys_created_at ON idempotency_keys (created_at);

-- Who did what, append only: the trigger refuses changes even to the owner of the table.
CREATE TABLE audit_events (
    id         uuid PRIMARY KEY,
    at         timestamptz NOT NULL,
    actor_kind text NOT NULL CHECK (actor_kind IN ('super_admin', 'system', 'anonymous')),
    actor_id   uuid,
    action     text NOT NULL,
    tenant_id  uuid,
    detail     jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX audit_events_tenant ON audit_events (tenant_id, id DESC);
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit events are append only';
END $$;
CREATE TRIGGER audit_events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
