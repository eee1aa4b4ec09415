-- What a tenant in state `deleting` was before: `undelete` takes it back there. Empty once the purge has begun, from
-- which there is no way back.
ALTER TABLE chat_instances ADD COLUMN deleted_from text
    CHECK (deleted_from IN ('active', 'suspended', 'waiting_for_client'));
ALTER TABLE chat_instances ADD COLUMN deleted_at timestamptz;
ALTER TABLE chat_instances ADD COLUMN suspend_reason text;
-- The operation that suspended it: only that one takes the suspension back when it fails.
ALTER TABLE chat_instances ADD COLUMN suspended_by uuid;
CREATE INDEX chat_instances_delete_after ON chat_instances (delete_after) WHERE state = 'deleting';
