-- People of one client company. This database holds one company's data only: no table names a tenant.
CREATE TABLE client_users (
    id            uuid PRIMARY KEY,
    email         text NOT NULL UNIQUE CHECK (email = lower(email)),
    name          text NOT NULL,
    role          text NOT NULL CHECK (role IN ('admin', 'manager', 'user')),
    password_hash text NOT NULL,
    disabled_at   timestamptz,
    created_at    timestamptz NOT NULL,
    updated_at    timestamptz NOT NULL
);

-- One-time invitations; only the hash of the token is kept.
CREATE TABLE user_invites (
    id          uuid PRIMARY KEY,
    email       text NOT NULL CHECK (email = lower(email)),
    role        text NOT NULL CHECK (role IN ('admin', 'manager', 'user')),
    token_hash  bytea NOT NULL UNIQUE,
    created_at  timestamptz NOT NULL,
    expires_at  timestamptz NOT NULL,
    accepted_at timestamptz
);

-- A sign-in starts a family of refresh tokens; each use replaces the token. A used token that comes back means that
-- somebody else holds a copy, so its whole family is revoked.
CREATE TABLE refresh_families (
    id         uuid PRIMARY KEY,
    user_id    uuid NOT NULL REFERENCES client_users (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL,
    revoked_at timestamptz
);
CREATE INDEX refresh_families_user_id ON refresh_families (user_id);
CREATE TABLE refresh_tokens (
    token_hash bytea PRIMARY KEY,
    family_id  uuid NOT NULL REFERENCES refresh_families (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    used_at    timestamptz
);
CREATE INDEX refresh_tokens_family_id ON refresh_tokens (family_id);

-- See the platform's table of the same name.
CREATE TABLE sign_in_attempts (
    subject      bytea PRIMARY KEY,
    failures     integer NOT NULL,
    last_attempt timestamptz NOT NULL
);
