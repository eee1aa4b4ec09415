-- Models that the owner lends to tenants: AI keys of the platform's own, sealed with a master key.
CREATE TABLE shared_models (
    id             uuid PRIMARY KEY,
    name           text NOT NULL UNIQUE,
    provider       text NOT NULL,
    base_url       text NOT NULL,
    api_key_sealed bytea NOT NULL,
    api_key_hint   text NOT NULL,
    models         text[] NOT NULL CHECK (cardinality(models) > 0),
    model_aliases  jsonb NOT NULL DEFAULT '{}',
    default_model  text NOT NULL,
    -- The lowest answers first.
    position       integer NOT NULL,
    enabled        boolean NOT NULL,
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL
);

-- Every server keeps them opened; each change tells all of them to read them again.
CREATE FUNCTION notify_shared_models() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('freehold_shared_models', '');
    RETURN NULL;
END $$;
CREATE TRIGGER shared_models_notify AFTER INSERT OR UPDATE OR DELETE ON shared_models
    FOR EACH STATEMENT EXECUTE FUNCTION notify_shared_models();
