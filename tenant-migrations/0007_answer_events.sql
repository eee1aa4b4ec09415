-- What replays a streamed answer event by event, from any server, and stops one that another server is working on.
--
-- delta_lengths: the length in bytes of each delta of the content, in order, each as a LEB128 number, so that the
-- lengths of two parts follow each other as their texts do. NULL for answers from before, which are one delta.
-- error_message: what the stream told when the answer failed. NULL if nobody was there to tell it.
--
-- The wider constraint holds for the rows that are there, since the narrower one did: they need not be read for it.
ALTER TABLE chat_messages
    ADD COLUMN delta_lengths bytea,
    ADD COLUMN error_message text,
    ADD COLUMN stop_requested_at timestamptz,
    DROP CONSTRAINT chat_messages_state_check,
    ADD CONSTRAINT chat_messages_state_check
        CHECK (state IN ('complete', 'generating', 'interrupted', 'failed', 'stopped')) NOT VALID;

-- What has arrived of answers that are still being generated, written down every second or so. It goes into the
-- answer's own row when that is finished.
CREATE TABLE chat_answer_parts (
    message_id    uuid NOT NULL REFERENCES chat_messages (id) ON DELETE CASCADE,
    first_event   integer NOT NULL,
    content       text NOT NULL,
    delta_lengths bytea NOT NULL,
    PRIMARY KEY (message_id, first_event)
);
