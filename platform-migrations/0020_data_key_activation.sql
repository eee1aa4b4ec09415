-- A new data key is made known to every server before any seals with it: until it is activated it only opens. The
-- key that a tenant is made with is in force at once.
ALTER TABLE wrapped_keys ADD COLUMN activated_at timestamptz DEFAULT now();
-- When nothing was left that an older key had sealed.
ALTER TABLE wrapped_keys ADD COLUMN retired_at timestamptz;

-- Wrapping a key again changes nothing that servers know: they need not read a hundred thousand records again.
DROP TRIGGER wrapped_keys_notify ON wrapped_keys;
CREATE TRIGGER wrapped_keys_notify AFTER INSERT OR DELETE OR UPDATE OF activated_at ON wrapped_keys
    FOR EACH ROW EXECUTE FUNCTION notify_registry();
