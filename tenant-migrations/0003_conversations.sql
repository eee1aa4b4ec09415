CREATE TABLE chat_sessions (
    id         uuid PRIMARY KEY,
    user_id    uuid NOT NULL REFERENCES client_users (id) ON DELETE CASCADE,
    title      text NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE INDEX chat_sessions_user ON chat_sessions (user_id, id DESC);

-- An answer's row exists before the model is called ('generating'), so that a server that dies leaves a trace.
CREATE TABLE chat_messages (
    id             uuid PRIMARY KEY,
    session_id     uuid NOT NULL REFERENCES chat_sessions (id) ON DELETE CASCADE,
    role           text NOT NULL CHECK (role IN ('user', 'assistant')),
    content        text NOT NULL,
    state          text NOT NULL CHECK (state IN ('complete', 'generating', 'interrupted', 'failed')),
    error_code     text,
    model          text,
    input_tokens   integer,
    output_tokens  integer,
    usage_reported boolean,
    latency_ms     integer,
    created_at     timestamptz NOT NULL,
    finished_at    timestamptz
);
CREATE INDEX chat_messages_session ON chat_messages (session_id, id DESC);
