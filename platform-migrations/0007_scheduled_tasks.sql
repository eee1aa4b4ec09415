-- When each periodic task runs next. A server takes a task by moving its time on, so that of many servers one runs it.
CREATE TABLE scheduled_tasks (
    name        text PRIMARY KEY,
    next_run_at timestamptz NOT NULL,
    last_run_at timestamptz
);
