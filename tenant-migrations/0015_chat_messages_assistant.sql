-- The name of the assistant that an answer was asked of; its last event says so, from whatever server it is told again.
-- NULL where it was none in particular.
ALTER TABLE chat_messages ADD COLUMN assistant text;
