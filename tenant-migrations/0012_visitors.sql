-- People who chat without an account. A visitor is a row of client_users, so that conversations, the ledger and refresh
-- tokens refer to it as to anybody; its address is no address, its password no hash, so that nobody can sign in as one.
--
-- The wider constraint holds for the rows that are there, since the narrower one did: they need not be read for it.
ALTER TABLE client_users
    DROP CONSTRAINT client_users_role_check,
    ADD CONSTRAINT client_users_role_check CHECK (role IN ('admin', 'manager', 'user', 'visitor')) NOT VALID;

-- How long each one lasts: then it goes, with all that was said.
CREATE TABLE visitors (
    user_id    uuid PRIMARY KEY REFERENCES client_users (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX visitors_expires_at ON visitors (expires_at);

-- What visitors have done within a period of time: all together (subject 'questions'), one of them (its id), and how many
-- came (subject 'visitors').
CREATE TABLE visitor_counts (
    subject      text NOT NULL,
    period_start timestamptz NOT NULL,
    count        integer NOT NULL,
    PRIMARY KEY (subject, period_start)
);
CREATE INDEX visitor_counts_period_start ON visitor_counts (period_start);
