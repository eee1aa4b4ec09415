-- The owner's own people. E-mail addresses are stored in lower case.
CREATE TABLE super_admins (
    id            uuid PRIMARY KEY,
    email         text NOT NULL UNIQUE CHECK (email = lower(email)),
    password_hash text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now()
);

-- Super-admin sessions. Only the SHA-256 of the token is kept: a dump of this table signs nobody in.
CREATE TABLE user_sessions (
    id             uuid PRIMARY KEY,
    super_admin_id uuid NOT NULL REFERENCES super_admins (id) ON DELETE CASCADE,
    token_hash     bytea NOT NULL UNIQUE,
    user_agent     text,
    created_at     timestamptz NOT NULL,
    expires_at     timestamptz NOT NULL,
    revoked_at     timestamptz
);
CREATE INDEX user_sessions_super_admin_id ON user_sessions (super_admin_id, created_at DESC);

-- Guessing is slowed by the account that is guessed, whether or not it exists, so that the answer for an
-- unknown address is the same as for a known one. The subject is a hash: addresses typed by mistake are not kept.
CREATE TABLE sign_in_attempts (
    subject      bytea PRIMARY KEY,
    failures     integer NOT NULL,
    last_attempt timestamptz NOT NULL
);

-- A tenant's database role must not even connect here.
DO $$ BEGIN
    EXECUTE format('REVOKE CONNECT, TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
END $$;
