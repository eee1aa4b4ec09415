-- in_flight_key: what an answer that is being generated answers, as a hash of the user, the conversation and the question,
-- never the question itself. A unique index lets a question that is asked again meanwhile, at whatever server, find the
-- answer that is on its way. NULL once it is over or its user has it stopped, and for answers that are not to be joined.
-- from_cache: the answer is one that was kept from an earlier question; no model was asked.
ALTER TABLE chat_messages
    ADD COLUMN in_flight_key bytea,
    ADD COLUMN from_cache boolean NOT NULL DEFAULT false;
