-- Durable operations: what was asked for, and how far it is. Inputs hold ids and hashes, never secrets.
CREATE TABLE operations (
    id            uuid PRIMARY KEY,
    kind          text NOT NULL,
    tenant_id     uuid REFERENCES chat_instances (id),
    input         jsonb NOT NULL,
    state         text NOT NULL CHECK (state IN
        ('queued', 'running', 'undoing', 'succeeded', 'failed', 'needs_operator')),
    -- Counts the takings-over by a worker. A worker that was thought dead finds a higher number and stops.
    attempt       integer NOT NULL DEFAULT 0,
    error_code    text,
    error_message text,
    created_by    uuid,
    created_at    timestamptz NOT NULL,
    started_at    timestamptz,
    finished_at   timestamptz
);
-- One operation a tenant at a time; the holder is named to whoever comes second.
CREATE UNIQUE INDEX operations_one_per_tenant ON operations (tenant_id)
    WHERE state IN ('queued', 'running', 'undoing', 'needs_operator');
CREATE INDEX operations_created ON operations (id DESC);

CREATE TABLE operation_steps (
    operation_id  uuid NOT NULL REFERENCES operations (id) ON DELETE CASCADE,
    position      integer NOT NULL,
    name          text NOT NULL,
    state         text NOT NULL CHECK (state IN ('pending', 'running', 'done', 'undoing', 'undone', 'failed')),
    tries         integer NOT NULL DEFAULT 0,
    error_message text,
    started_at    timestamptz,
    finished_at   timestamptz,
    PRIMARY KEY (operation_id, position)
);

CREATE FUNCTION notify_operation() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed jsonb := to_jsonb(NEW);
BEGIN
    PERFORM pg_notify('freehold_operations', COALESCE(changed ->> 'operation_id', changed ->> 'id'));
    RETURN NULL;
END $$;
CREATE TRIGGER operations_notify AFTER INSERT OR UPDATE ON operations
    FOR EACH ROW EXECUTE FUNCTION notify_operation();
CREATE TRIGGER operation_steps_notify AFTER UPDATE ON operation_steps
    FOR EACH ROW EXECUTE FUNCTION notify_operation();
