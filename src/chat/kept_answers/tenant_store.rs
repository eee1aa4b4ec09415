//! SQL of answers that are given again.

use tokio_postgres::Error;

use super::Hit;
use crate::chat::turn::Begin;
use crate::ids::ModelCallId;
use crate::metering::Ledger;
use crate::tenant_db::{Client, GenericClient as _};

/// A question with its answer, both whole, and the row in the ledger that says that nobody was asked. What differs comes
/// first.
macro_rules! store {
    ($session:literal) => {
        concat!(
            "WITH session AS (",
            $session,
            " RETURNING id
            ), call AS (
                INSERT INTO model_calls (id, kind, user_id, message_id, server_id, provider, configuration, model,
                    upstream_model, billed_to, state, input_tokens, output_tokens, cached_input_tokens, usage_reported,
                    cost_micros, currency, cached, started_at, first_token_ms, latency_ms, settled_at)
                SELECT $9::uuid, 'chat', $2, $7::uuid, $10::uuid, $11::text, $12::text, $8::text, $13::text, $14::text,
                    'succeeded', 0, 0, 0, true, 0, $15::text, true, $4, 0, 0, $4
                FROM session
            )
            INSERT INTO chat_messages (id, session_id, role, content, state, model, queries_remaining, created_at,
                input_tokens, output_tokens, usage_reported, latency_ms, finished_at, delta_lengths, from_cache, assistant)
            SELECT m.id, s.id, m.role, m.content, 'complete', m.model, m.queries_remaining, $4,
                m.tokens, m.tokens, m.reported, m.latency_ms, m.finished_at, m.delta_lengths, m.from_cache,
                m.assistant
            FROM session s, (VALUES
                ($5::uuid, 'user', $6::text, NULL, NULL, NULL, NULL, NULL, NULL, NULL, false, NULL),
                ($7::uuid, 'assistant', $16::text, $8::text, $17::bigint, 0, true, 0, $4, $18::bytea, true,
                    $19::text))
                m (id, role, content, model, queries_remaining, tokens, reported, latency_ms, finished_at, delta_lengths,
                   from_cache, assistant)"
        )
    };
}

/// In a new conversation.
const BEGIN_CONVERSATION: &str = store!(
    "INSERT INTO chat_sessions (id, user_id, title, created_at, updated_at)
            VALUES ($1, $2, $3, $4::timestamptz, $4)"
);

/// In one that is there, which has a title. Inserts nothing if it was deleted meanwhile.
const CONTINUE_CONVERSATION: &str = store!(
    "UPDATE chat_sessions SET updated_at = GREATEST(updated_at, $4::timestamptz)
            WHERE id = $1 AND user_id = $2 AND $3::text IS NULL"
);

/// Every statement, for a test that prepares them all against the schema.
pub const STATEMENTS: &[&str] = &[BEGIN_CONVERSATION, CONTINUE_CONVERSATION];

/// Stores a question and its answer. `false` if the conversation is not the user's any more.
pub(super) async fn store(client: &Client, turn: &Begin, hit: &Hit, ledger: &Ledger) -> Result<bool, Error> {
    let text = if turn.new_title.is_some() { BEGIN_CONVERSATION } else { CONTINUE_CONVERSATION };
    let statement = client.prepare_cached(text).await?;
    let remaining = turn.queries_remaining.map(|count| i64::try_from(count).unwrap_or(i64::MAX));
    let target = &hit.target;
    let stored = client
        .execute(
            &statement,
            &[
                &turn.session_id,
                &turn.user_id,
                &turn.new_title,
                &turn.now,
                &turn.question_id,
                &turn.question,
                &turn.answer_id,
                &turn.model,
                &ModelCallId::new(),
                &ledger.server_id(),
                &target.provider,
                &&*target.configuration,
                &&*target.upstream_model,
                &target.billed_to.as_str(),
                &&*ledger.prices().currency(),
                &hit.answer.content,
                &remaining,
                &hit.answer.delta_lengths,
                &turn.assistant,
            ],
        )
        .await?;
    Ok(stored == 2)
}
