//! SQL of the ledger.

use chrono::{DateTime, Utc};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row as SqlRow};

use super::abandoned::{Abandoned, Interrupted, Search};
use super::ledger::Row;
use super::usage::{ModelCallRow, UsageRow};
use crate::ids::{MessageId, ModelCallId};
use crate::tenant_db::{Client, GenericClient as _, Transaction};

/// Begins and settles any number of calls: a row that is there is settled, and one that is not is written as it is. So
/// it may be repeated when nobody knows whether it was carried out, and the last word is that of whoever makes the call.
/// What a call has delivered so far is noted as long as it is open.
/// An upsert finds its rows by the primary key whatever the planner thinks of the table's size.
const WRITE: &str = "\
    INSERT INTO model_calls AS c (id, server_id, kind, user_id, api_key_id, message_id, provider, configuration, model,
        upstream_model, billed_to, state, error_code, input_tokens, output_tokens, cached_input_tokens, usage_reported,
        cost_micros, currency, started_at, first_token_ms, latency_ms, settled_at)
    SELECT r.id, $1, r.kind, r.user_id, r.api_key_id, r.message_id, r.provider, r.configuration, r.model,
        r.upstream_model, r.billed_to, r.state, r.error_code, r.input_tokens, r.output_tokens, r.cached_input_tokens,
        r.usage_reported, r.cost_micros, r.currency, r.started_at, r.first_token_ms, r.latency_ms, r.settled_at
    FROM unnest($2::uuid[], $3::text[], $4::uuid[], $5::uuid[], $6::uuid[], $7::text[], $8::text[], $9::text[],
        $10::text[], $11::text[], $12::text[], $13::text[], $14::int8[], $15::int8[], $16::int8[], $17::bool[],
        $18::int8[], $19::text[], $20::timestamptz[], $21::int4[], $22::int4[], $23::timestamptz[])
        r (id, kind, user_id, api_key_id, message_id, provider, configuration, model, upstream_model, billed_to, state,
           error_code, input_tokens, output_tokens, cached_input_tokens, usage_reported, cost_micros, currency,
           started_at, first_token_ms, latency_ms, settled_at)
    ON CONFLICT (id) DO UPDATE
    SET state = EXCLUDED.state, error_code = EXCLUDED.error_code, input_tokens = EXCLUDED.input_tokens,
        output_tokens = EXCLUDED.output_tokens, cached_input_tokens = EXCLUDED.cached_input_tokens,
        usage_reported = EXCLUDED.usage_reported, cost_micros = EXCLUDED.cost_micros, currency = EXCLUDED.currency,
        first_token_ms = EXCLUDED.first_token_ms, latency_ms = EXCLUDED.latency_ms, settled_at = EXCLUDED.settled_at
    WHERE EXCLUDED.state <> 'started' OR (c.state = 'started' AND EXCLUDED.output_tokens IS NOT NULL)";

/// Calls that may be nobody's any more: those of the server that asks, which knows better; those of servers that are not
/// among the others that run, if that is known; and those that have taken longer than any call may.
const ABANDONED: &str = "\
    SELECT id, server_id, message_id, provider, upstream_model, input_tokens, output_tokens, started_at
    FROM model_calls
    WHERE state = 'started' AND started_at < $1
        AND (server_id = $2 OR ($3 AND server_id <> ALL ($4)) OR started_at < $5)
    ORDER BY started_at LIMIT $6 FOR UPDATE SKIP LOCKED";

/// Only what is still open: whoever makes the call may have settled it meanwhile.
const INTERRUPT: &str = "\
    UPDATE model_calls c
    SET state = 'interrupted', error_code = 'server_stopped', output_tokens = e.output_tokens, cached_input_tokens = 0,
        usage_reported = false, cost_micros = e.cost_micros, currency = e.currency, settled_at = $5
    FROM unnest($1::uuid[], $2::int8[], $3::int8[], $4::text[]) e (id, output_tokens, cost_micros, currency)
    WHERE c.id = e.id AND c.state = 'started'";

/// By day (UTC), model, user, API key or kind, and by currency.
const USAGE: &str = "\
    SELECT CASE $3
            WHEN 'day' THEN to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')
            WHEN 'model' THEN model
            WHEN 'user' THEN user_id::text
            WHEN 'api_key' THEN api_key_id::text
            WHEN 'kind' THEN kind
        END AS key,
        currency, count(*) AS calls, count(*) FILTER (WHERE state = 'started') AS started,
        count(*) FILTER (WHERE state = 'succeeded') AS succeeded, count(*) FILTER (WHERE state = 'failed') AS failed,
        count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
        count(*) FILTER (WHERE state = 'interrupted') AS interrupted,
        count(*) FILTER (WHERE state <> 'started' AND NOT usage_reported) AS estimated,
        count(*) FILTER (WHERE state <> 'started' AND input_tokens IS NOT NULL AND cost_micros IS NULL) AS unpriced,
        COALESCE(sum(input_tokens) FILTER (WHERE state <> 'started'), 0)::int8 AS input_tokens,
        COALESCE(sum(output_tokens) FILTER (WHERE state <> 'started'), 0)::int8 AS output_tokens,
        COALESCE(sum(cached_input_tokens) FILTER (WHERE state <> 'started'), 0)::int8 AS cached_input_tokens,
        COALESCE(sum(cost_micros), 0)::int8 AS cost_micros
    FROM model_calls WHERE started_at >= $1 AND started_at < $2
    GROUP BY 1, 2 ORDER BY 1, 2";

const CALLS: &str = "\
    SELECT id, kind, user_id, api_key_id, message_id, provider, configuration, model, upstream_model, billed_to, state,
        error_code, input_tokens, output_tokens, cached_input_tokens, usage_reported, cost_micros, currency, cached,
        started_at, first_token_ms, latency_ms
    FROM model_calls WHERE $1::uuid IS NULL OR id < $1 ORDER BY id DESC LIMIT $2";

/// Every statement, for a test that prepares them all against the schema.
pub const STATEMENTS: &[&str] = &[WRITE, ABANDONED, INTERRUPT, USAGE, CALLS];

/// Writes calls and ends of calls, all of one server, in one statement.
pub(super) async fn write<'a>(
    client: &Client,
    rows: impl ExactSizeIterator<Item = &'a Row> + Clone + Send,
) -> Result<(), Error> {
    let statement = client.prepare_cached(WRITE).await?;
    let Some(server_id) = rows.clone().next().map(|row| row.call.server_id()) else { return Ok(()) };
    macro_rules! column {
        ($row:ident => $value:expr) => {
            rows.clone().map(|$row| $value).collect::<Vec<_>>()
        };
    }
    let ids = column!(row => row.call.id);
    let kinds = column!(row => row.call.start.kind.as_str());
    let users = column!(row => row.call.start.user_id);
    let api_keys = column!(row => row.call.start.api_key_id);
    let messages = column!(row => row.call.start.message_id);
    let providers = column!(row => row.call.start.target.provider);
    let configurations = column!(row => &*row.call.start.target.configuration);
    let models = column!(row => &*row.call.start.model);
    let upstream_models = column!(row => &*row.call.start.target.upstream_model);
    let billed_to = column!(row => row.call.start.target.billed_to.as_str());
    let states = column!(row => row.end.as_ref().map_or("started", |end| end.state.as_str()));
    let codes = column!(row => row.end.as_ref().and_then(|end| end.error_code));
    let inputs = column!(row => match &row.end {
        Some(end) => end.input_tokens(),
        None => Some(row.call.estimated_input()),
    });
    let outputs = column!(row => match &row.end {
        Some(end) => end.output_tokens(),
        None => row.delivered,
    });
    let cached = column!(row => row.end.as_ref().and_then(|end| end.cached_input_tokens()));
    let reported = column!(row => row.end.as_ref().and_then(|end| end.usage_reported()));
    let costs = column!(row => row.end.as_ref().and_then(|end| end.cost_micros));
    let currencies = column!(row => row.end.as_ref().and_then(|end| end.currency.as_deref()));
    let started = column!(row => row.call.started_at);
    let first_tokens = column!(row => row.end.as_ref().and_then(|end| end.first_token_ms));
    let latencies = column!(row => row.end.as_ref().map(|end| end.latency_ms));
    let settled = column!(row => row.end.as_ref().map(|end| end.settled_at));
    client
        .execute(
            &statement,
            &[
                &server_id,
                &ids,
                &kinds,
                &users,
                &api_keys,
                &messages,
                &providers,
                &configurations,
                &models,
                &upstream_models,
                &billed_to,
                &states,
                &codes,
                &inputs,
                &outputs,
                &cached,
                &reported,
                &costs,
                &currencies,
                &started,
                &first_tokens,
                &latencies,
                &settled,
            ],
        )
        .await
        .map(drop)
}

/// Calls that nobody seems to make any more, oldest first, locked until the transaction ends.
pub(super) async fn abandoned(transaction: &Transaction<'_>, search: &Search<'_>) -> Result<Vec<Abandoned>, Error> {
    let statement = transaction.prepare_cached(ABANDONED).await?;
    let (known, others) = (search.others.is_some(), search.others.unwrap_or_default());
    let values: [&(dyn ToSql + Sync); 6] =
        [&search.before, &search.server_id, &known, &others, &search.long_before, &search.limit];
    let rows = transaction.query(&statement, &values).await?;
    rows.iter()
        .map(|row| {
            Ok(Abandoned {
                id: row.try_get("id")?,
                server_id: row.try_get("server_id")?,
                message_id: row.try_get::<_, Option<MessageId>>("message_id")?,
                provider: row.try_get("provider")?,
                upstream_model: row.try_get("upstream_model")?,
                input_tokens: row.try_get::<_, Option<i64>>("input_tokens")?.unwrap_or_default(),
                output_tokens: row.try_get::<_, Option<i64>>("output_tokens")?.unwrap_or_default(),
                started_at: row.try_get("started_at")?,
            })
        })
        .collect()
}

/// Settles calls as interrupted. Returns how many.
pub(super) async fn interrupt(
    transaction: &Transaction<'_>,
    calls: &[Interrupted],
    now: DateTime<Utc>,
) -> Result<u64, Error> {
    let statement = transaction.prepare_cached(INTERRUPT).await?;
    let ids: Vec<ModelCallId> = calls.iter().map(|call| call.id).collect();
    let outputs: Vec<i64> = calls.iter().map(|call| call.output_tokens).collect();
    let costs: Vec<Option<i64>> = calls.iter().map(|call| call.cost_micros).collect();
    let currencies: Vec<Option<&str>> = calls.iter().map(|call| call.currency.as_deref()).collect();
    transaction.execute(&statement, &[&ids, &outputs, &costs, &currencies, &now]).await
}

/// Sums of the calls that began within a time.
pub(super) async fn usage(
    client: &Client,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    group_by: &str,
) -> Result<Vec<UsageRow>, Error> {
    let statement = client.prepare_cached(USAGE).await?;
    let rows = client.query(&statement, &[&from, &to, &group_by]).await?;
    rows.iter().map(usage_row).collect()
}

fn usage_row(row: &SqlRow) -> Result<UsageRow, Error> {
    Ok(UsageRow {
        key: row.try_get("key")?,
        currency: row.try_get("currency")?,
        calls: row.try_get("calls")?,
        started: row.try_get("started")?,
        succeeded: row.try_get("succeeded")?,
        failed: row.try_get("failed")?,
        cancelled: row.try_get("cancelled")?,
        interrupted: row.try_get("interrupted")?,
        estimated: row.try_get("estimated")?,
        unpriced: row.try_get("unpriced")?,
        input_tokens: row.try_get("input_tokens")?,
        output_tokens: row.try_get("output_tokens")?,
        cached_input_tokens: row.try_get("cached_input_tokens")?,
        cost_micros: row.try_get("cost_micros")?,
    })
}

/// At most `limit` calls before one, newest first.
pub(super) async fn calls(
    client: &Client,
    before: Option<ModelCallId>,
    limit: i64,
) -> Result<Vec<ModelCallRow>, Error> {
    let statement = client.prepare_cached(CALLS).await?;
    let rows = client.query(&statement, &[&before, &limit]).await?;
    rows.iter()
        .map(|row| {
            Ok(ModelCallRow {
                id: row.try_get("id")?,
                kind: row.try_get("kind")?,
                user_id: row.try_get("user_id")?,
                api_key_id: row.try_get("api_key_id")?,
                message_id: row.try_get("message_id")?,
                provider: row.try_get("provider")?,
                configuration: row.try_get("configuration")?,
                model: row.try_get("model")?,
                upstream_model: row.try_get("upstream_model")?,
                billed_to: row.try_get("billed_to")?,
                state: row.try_get("state")?,
                error_code: row.try_get("error_code")?,
                input_tokens: row.try_get("input_tokens")?,
                output_tokens: row.try_get("output_tokens")?,
                cached_input_tokens: row.try_get("cached_input_tokens")?,
                usage_reported: row.try_get("usage_reported")?,
                cost_micros: row.try_get("cost_micros")?,
                currency: row.try_get("currency")?,
                cached: row.try_get("cached")?,
                started_at: row.try_get("started_at")?,
                first_token_ms: row.try_get("first_token_ms")?,
                latency_ms: row.try_get("latency_ms")?,
            })
        })
        .collect()
}
