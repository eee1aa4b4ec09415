-- A tenant's own people act on the platform too: they give it their database.
ALTER TABLE audit_events DROP CONSTRAINT audit_events_actor_kind_check;
ALTER TABLE audit_events ADD CONSTRAINT audit_events_actor_kind_check
    CHECK (actor_kind IN ('super_admin', 'tenant_user', 'database_token', 'system', 'anonymous'));
