//! SQL of answers that are given again.

use tokio_postgres::Error;
use tokio_postgres::types::ToSql;

use super::Hit;
use crate::chat::images::tenant_store::{NewImages, insert_images};
use crate::chat::turn::Begin;
use crate::ids::ModelCallId;
use crate::metering::Ledger;
use crate::tenant_db::{Client, GenericClient as _};

/// A question with its answer, both whole, and the row in the ledger that says that nobody was asked. What differs comes
/// first: how the conversation is found, how many images there are, and those.
macro_rules! store {
    ($session:literal, $image_count:literal, $($images:tt)+) => {
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
            )",
            $($images)+,
            "
            INSERT INTO chat_messages (id, session_id, role, content, state, model, queries_remaining, created_at,
                input_tokens, output_tokens, usage_reported, latency_ms, finished_at, delta_lengths, from_cache, assistant,
                image_count)
            SELECT m.id, s.id, m.role, m.content, 'complete', m.model, m.queries_remaining, $4,
                m.tokens, m.tokens, m.reported, m.latency_ms, m.finished_at, m.delta_lengths, m.from_cache,
                m.assistant, m.image_count
            FROM session s, (VALUES
                ($5::uuid, 'user', $6::text, NULL, NULL, NULL, NULL, NULL, NULL, NULL, false, NULL, ",
            $image_count,
            "::smallint),
                ($7::uuid, 'assistant', $16::text, $8::text, $17::bigint, 0, true, 0, $4, $18::bytea, true,
                    $19::text, 0::smallint))
                m (id, role, content, model, queries_remaining, tokens, reported, latency_ms, finished_at, delta_lengths,
                   from_cache, assistant, image_count)"
        )
    };
}

/// In a new conversation.
macro_rules! begin_conversation {
    ($image_count:literal, $($images:tt)+) => {
        store!(
            "INSERT INTO chat_sessions (id, user_id, title, created_at, updated_at)
            VALUES ($1, $2, $3, $4::timestamptz, $4)",
            $image_count,
            $($images)+
        )
    };
}

/// In one that is there, which has a title. Inserts nothing if it was deleted meanwhile.
macro_rules! continue_conversation {
    ($image_count:literal, $($images:tt)+) => {
        store!(
            "UPDATE chat_sessions SET updated_at = GREATEST(updated_at, $4::timestamptz)
            WHERE id = $1 AND user_id = $2 AND $3::text IS NULL",
            $image_count,
            $($images)+
        )
    };
}

const BEGIN_CONVERSATION: &str = begin_conversation!("0", "");
const BEGIN_WITH_IMAGES: &str = begin_conversation!("$20", ", ", insert_images!("$5", "session", "$21", "$22", "$23"));
const CONTINUE_CONVERSATION: &str = continue_conversation!("0", "");
const CONTINUE_WITH_IMAGES: &str =
    continue_conversation!("$20", ", ", insert_images!("$5", "session", "$21", "$22", "$23"));

/// Every statement, for a test that prepares them all against the schema.
pub const STATEMENTS: &[&str] = &[BEGIN_CONVERSATION, BEGIN_WITH_IMAGES, CONTINUE_CONVERSATION, CONTINUE_WITH_IMAGES];

/// Stores a question and its answer. `false` if the conversation is not the user's any more.
pub(super) async fn store(client: &Client, turn: &Begin, hit: &Hit, ledger: &Ledger) -> Result<bool, Error> {
    let images = NewImages::of(turn);
    let text = match (&turn.new_title, &images) {
        (Some(_), None) => BEGIN_CONVERSATION,
        (Some(_), Some(_)) => BEGIN_WITH_IMAGES,
        (None, None) => CONTINUE_CONVERSATION,
        (None, Some(_)) => CONTINUE_WITH_IMAGES,
    };
    let statement = client.prepare_cached(text).await?;
    let remaining = turn.queries_remaining.map(|count| i64::try_from(count).unwrap_or(i64::MAX));
    let target = &hit.target;
    let call_id = ModelCallId::new();
    let server = ledger.server_id();
    let currency = ledger.prices().currency();
    let (configuration, upstream_model, currency) = (&*target.configuration, &*target.upstream_model, &*currency);
    let billed_to = target.billed_to.as_str();
    let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![
        &turn.session_id,
        &turn.user_id,
        &turn.new_title,
        &turn.now,
        &turn.question_id,
        &turn.question,
        &turn.answer_id,
        &turn.model,
        &call_id,
        &server,
        &target.provider,
        &configuration,
        &upstream_model,
        &billed_to,
        &currency,
        &hit.answer.content,
        &remaining,
        &hit.answer.delta_lengths,
        &turn.assistant,
    ];
    parameters.extend(images.iter().flat_map(NewImages::parameters));
    Ok(client.execute(&statement, &parameters).await? == 2)
}
