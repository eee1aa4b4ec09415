-- What was left of the tenant's monthly quota when an answer was begun: its last event says so, from whatever server it is
-- told again. NULL where there was no limit.
ALTER TABLE chat_messages ADD COLUMN queries_remaining bigint;
