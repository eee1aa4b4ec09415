-- Which tenants' databases have to be swept: those in which a server that died may have left calls of models open.
-- used_at: when a server last said that it makes calls for the tenant. It says so again while it goes on.
-- swept_at: when what dead servers had left by then was last settled.
CREATE TABLE tenant_uses (
    tenant_id uuid PRIMARY KEY REFERENCES chat_instances (id),
    used_at   timestamptz,
    swept_at  timestamptz
);
