-- The ledger: one row for every attempt to call a model, there before the provider is asked. It refers to users, keys and
-- messages without foreign keys, for it outlives what it is about.
CREATE TABLE model_calls (
    id                  uuid PRIMARY KEY,
    kind                text NOT NULL CHECK (kind IN ('chat', 'completion', 'embedding')),
    user_id             uuid,
    api_key_id          uuid,
    message_id          uuid,
    -- The Freehold server that makes the call, as long as it runs: a new one each time it is started.
    server_id           uuid NOT NULL,
    provider            text NOT NULL,
    -- The name of the AI key.
    configuration       text NOT NULL,
    -- The name that was asked for, and the provider's own.
    model               text NOT NULL,
    upstream_model      text NOT NULL,
    billed_to           text NOT NULL CHECK (billed_to IN ('own', 'shared')),
    state               text NOT NULL CHECK (state IN ('started', 'succeeded', 'failed', 'cancelled', 'interrupted')),
    error_code          text,
    -- While a call is under way, input_tokens is an estimate. Null afterwards: nothing is known to have been used.
    input_tokens        bigint,
    output_tokens       bigint,
    -- Part of input_tokens.
    cached_input_tokens bigint,
    -- Whether the provider counted the tokens; else they are estimated.
    usage_reported      boolean,
    -- In millionths of the currency's unit. Null if the price list knows no price.
    cost_micros         bigint,
    currency            text,
    -- Whether the answer came from a cache and no provider was asked.
    cached              boolean NOT NULL DEFAULT false,
    started_at          timestamptz NOT NULL,
    first_token_ms      integer,
    latency_ms          integer,
    settled_at          timestamptz
);
CREATE INDEX model_calls_started_at ON model_calls (started_at);
CREATE INDEX model_calls_open ON model_calls (started_at) WHERE state = 'started';
