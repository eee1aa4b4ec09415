-- Which tenant an API key leads to: a tenant's database is opened for a known hash only. Whether the key is in force is
-- said by its row in the tenant's own database; a hash without one is good for nothing.
CREATE TABLE api_key_hashes (
    token_hash bytea PRIMARY KEY,
    tenant_id  uuid NOT NULL REFERENCES chat_instances (id),
    api_key_id uuid NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX api_key_hashes_tenant_id ON api_key_hashes (tenant_id);
