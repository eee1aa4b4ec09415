-- What users thought of the answers they were given.
CREATE TABLE message_feedback (
    message_id uuid PRIMARY KEY REFERENCES chat_messages (id) ON DELETE CASCADE,
    rating     text NOT NULL CHECK (rating IN ('up', 'down')),
    comment    text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE INDEX message_feedback_created_at ON message_feedback (created_at);
