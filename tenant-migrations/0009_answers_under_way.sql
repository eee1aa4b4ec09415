-- no-transaction
-- Answers that are being generated, or were when their server died: those that nobody works on any more are found by it.
CREATE INDEX CONCURRENTLY IF NOT EXISTS chat_messages_generating ON chat_messages (created_at) WHERE state = 'generating';
