-- Tenants with a database of the client's own: what is to be done with it once it is given, and the token by which the
-- client gives it. Only the token's hash is kept; it is gone once the database is in service.
CREATE TABLE own_database_requests (
    tenant_id        uuid PRIMARY KEY REFERENCES chat_instances (id),
    input            jsonb NOT NULL,
    token_hash       bytea UNIQUE,
    token_expires_at timestamptz,
    created_at       timestamptz NOT NULL
);
