-- Chat settings, branding and feature flags. Every change is a new version; the highest is in force.
CREATE TABLE live_configurations (
    version    bigint PRIMARY KEY,
    settings   jsonb NOT NULL,
    created_by uuid,
    created_at timestamptz NOT NULL
);

-- The client's own AI keys, sealed with the client's data key, which is in another database and wrapped there.
CREATE TABLE api_configurations (
    id             uuid PRIMARY KEY,
    name           text NOT NULL UNIQUE,
    provider       text NOT NULL,
    base_url       text NOT NULL,
    api_key_sealed bytea NOT NULL,
    api_key_hint   text NOT NULL,
    models         text[] NOT NULL CHECK (cardinality(models) > 0),
    default_model  text NOT NULL,
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL
);
