-- The Freehold servers that hold permits of limits or parts of quotas. `name` is where one serves: whoever serves there
-- now has taken the place of who did before, which is gone. From `stopped_at` on a server uses nothing that it held; one
-- that `is_gone` tells no answers any more either.
CREATE TABLE limit_servers (
    id         uuid PRIMARY KEY,
    name       text NOT NULL,
    seen_at    timestamptz NOT NULL,
    stopped_at timestamptz,
    is_gone    boolean NOT NULL DEFAULT false
);
