-- What Postgres calls a cluster's data directory, whatever name leads there: a client's own database must not be on a
-- server of the owner's. NULL until it was asked.
ALTER TABLE clusters ADD COLUMN system_identifier text;
