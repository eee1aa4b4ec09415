-- What a kept answer is about, so that it can be forgotten together with that. Answers from before are gone in 48 hours.
ALTER TABLE idempotency_keys ADD COLUMN about uuid;
CREATE INDEX idempotency_keys_about ON idempotency_keys (about) WHERE about IS NOT NULL;
