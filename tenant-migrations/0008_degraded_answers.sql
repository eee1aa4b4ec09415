-- An answer that no model gave: all of them were down, and it is the tenant's own message instead.
ALTER TABLE chat_messages ADD COLUMN degraded boolean NOT NULL DEFAULT false;
