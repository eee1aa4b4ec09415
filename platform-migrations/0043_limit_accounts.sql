-- Who holds the permits of a rate limit, unless Redis keeps that, and what of a month's quota is used and held by whom.
-- `key` is `rate:TENANT`, `rate:TENANT:user:ID`, `rate:TENANT:api_key:ID` or `quota:TENANT:YYYY-MM`.
CREATE TABLE limit_accounts (
    key        text PRIMARY KEY,
    tenant_id  uuid NOT NULL,
    account    jsonb NOT NULL,
    updated_at timestamptz NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX limit_accounts_tenant_id ON limit_accounts (tenant_id);
