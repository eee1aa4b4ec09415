-- How many events of callers without a credential there were of late is asked before another is written.
CREATE INDEX audit_events_anonymous ON audit_events (at) WHERE actor_kind = 'anonymous';
