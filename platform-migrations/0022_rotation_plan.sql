-- The last rotation of each kind is found by its operation.
CREATE INDEX operations_tenant_kind ON operations (tenant_id, kind) WHERE tenant_id IS NOT NULL;

-- When each tenant's credentials and keys were replaced last, and when they are to be next.
--
-- A tenth of the period, at most a week, is a window in which each tenant has its own place, by its id, so that a
-- fleet that was made in one hour is not rotated in one. Tenants that are overdue when a schedule is set are spread
-- likewise over at most a day, and after a failure a day passes before the next attempt.
CREATE VIEW rotation_plan AS
SELECT t.id AS tenant_id, kinds.kind, kinds.operation_kind, schedule.every_days, done.last_at,
       CASE WHEN schedule.every_days IS NOT NULL THEN GREATEST(
           COALESCE(done.last_at, t.activated_at, t.created_at) + period.length
               - place.share * LEAST(period.length / 10, interval '168 hours'),
           schedule.set_at + place.share * LEAST(period.length / 10, interval '24 hours'),
           done.failed_at + interval '24 hours'
       ) END AS next_at
FROM chat_instances t
CROSS JOIN (VALUES ('database', 'rotate_database_credential'), ('data_key', 'rotate_data_key'),
                   ('signing_key', 'rotate_signing_key')) AS kinds (kind, operation_kind)
LEFT JOIN LATERAL (
    SELECT s.every_days, s.set_at FROM rotation_schedules s
    WHERE s.kind = kinds.kind AND (s.tenant_id = t.id OR s.tenant_id IS NULL)
    ORDER BY s.tenant_id NULLS LAST LIMIT 1
) schedule ON true
CROSS JOIN LATERAL (
    SELECT max(o.finished_at) FILTER (WHERE o.state = 'succeeded') AS last_at,
           max(o.finished_at) FILTER (WHERE o.state = 'failed') AS failed_at
    FROM operations o WHERE o.tenant_id = t.id AND o.kind = kinds.operation_kind
) done
CROSS JOIN LATERAL (SELECT make_interval(hours => 24 * schedule.every_days) AS length) period
CROSS JOIN LATERAL (
    SELECT ('x' || left(md5(t.id::text || kinds.kind), 7))::bit(28)::int / 268435456.0 AS share
) place
WHERE t.state IN ('active', 'suspended') AND (kinds.kind <> 'database' OR t.database_mode = 'managed');
