-- no-transaction
-- Of two questions that are the same and asked at once, one gets an answer's row.
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS chat_messages_in_flight ON chat_messages (in_flight_key) WHERE state = 'generating';
