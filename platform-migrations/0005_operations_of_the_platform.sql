-- An operation on the platform as a whole, such as the migration of the fleet, runs once at a time; whoever comes
-- second is told who holds it.
CREATE UNIQUE INDEX operations_one_per_kind ON operations (kind)
    WHERE tenant_id IS NULL AND state IN ('queued', 'running', 'undoing', 'needs_operator');

-- Operations that were asked for together, such as one rotation for each of many tenants.
ALTER TABLE operations ADD COLUMN group_id uuid;
CREATE INDEX operations_group ON operations (group_id, id) WHERE group_id IS NOT NULL;

-- How far a long step is: {"done": 120, "failed": 1, "total": 2000}.
ALTER TABLE operations ADD COLUMN progress jsonb;
