-- What the standing audit of the fleet found. A finding that is seen again keeps its row; one that is no longer seen
-- is resolved, and stays for a while as a record.
CREATE TABLE audit_findings (
    id          uuid PRIMARY KEY,
    code        text NOT NULL,
    severity    text NOT NULL CHECK (severity IN ('problem', 'warning')),
    -- What it is about, for example `database fh_… on local`.
    subject     text NOT NULL,
    tenant_id   uuid REFERENCES chat_instances (id),
    cluster_id  uuid REFERENCES clusters (id),
    detail      text NOT NULL,
    first_seen  timestamptz NOT NULL,
    last_seen   timestamptz NOT NULL,
    resolved_at timestamptz
);
CREATE UNIQUE INDEX audit_findings_open ON audit_findings (code, subject) WHERE resolved_at IS NULL;
CREATE INDEX audit_findings_resolved ON audit_findings (resolved_at) WHERE resolved_at IS NOT NULL;
