-- How the budget of connections to a database server is divided over the Freehold servers that run. `granted` is what
-- one may open; `open` is what it had when it said so last, which is more while its share shrinks. The larger of the
-- two counts. `name` is where it serves: whoever serves there now has taken the place of who did before.
CREATE TABLE connection_shares (
    database_server text NOT NULL,
    server_id       uuid NOT NULL,
    name            text NOT NULL,
    granted         integer NOT NULL CHECK (granted >= 0),
    open            integer NOT NULL CHECK (open >= 0),
    beat_at         timestamptz NOT NULL,
    PRIMARY KEY (database_server, server_id)
);
