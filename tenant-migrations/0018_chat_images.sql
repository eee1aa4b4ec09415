-- The images that questions came with, in the order in which they came.
--
-- They are stored in the statement that stores the question, and go with it. Images are compressed already, so Postgres does
-- not try again.
CREATE TABLE chat_images (
    id         uuid PRIMARY KEY,
    message_id uuid NOT NULL REFERENCES chat_messages (id) ON DELETE CASCADE,
    position   smallint NOT NULL,
    media_type text NOT NULL CHECK (media_type IN ('image/png', 'image/jpeg', 'image/webp', 'image/gif')),
    content    bytea NOT NULL,
    UNIQUE (message_id, position)
);
ALTER TABLE chat_images ALTER COLUMN content SET STORAGE EXTERNAL;
