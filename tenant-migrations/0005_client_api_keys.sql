-- Keys with which a client's programs call the OpenAI-compatible endpoint. Only the token's hash is kept, and its last
-- characters, by which people tell keys apart. A revoked key stays, for the ledger names it. A key is the company's: it
-- outlives the account of whoever made it.
CREATE TABLE client_api_keys (
    id           uuid PRIMARY KEY,
    name         text NOT NULL,
    token_hash   bytea NOT NULL UNIQUE,
    hint         text NOT NULL,
    scopes       text[] NOT NULL
        CHECK (cardinality(scopes) > 0 AND scopes <@ ARRAY['chat', 'embeddings', 'models']),
    created_by   uuid REFERENCES client_users (id) ON DELETE SET NULL,
    created_at   timestamptz NOT NULL,
    expires_at   timestamptz,
    last_used_at timestamptz,
    revoked_at   timestamptz
);
