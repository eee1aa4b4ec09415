//! SQL of answers' events: what is written down of them, read again, and asked to stop.

use chrono::{DateTime, Utc};
use tokio_postgres::Error;

use super::event_log::Deltas;
use super::parts::Part;
use crate::api::tenant::{MessageState, Usage};
use crate::chat::tenant_store::{state, usage};
use crate::ids::{ChatSessionId, MessageId, UserId};
use crate::tenant_db::{Client, GenericClient as _};

/// Writes parts of answers that are still being generated, and returns those of all answers named that are to be
/// stopped: their users said so, or deleted them with their conversations. A part that was written by a statement whose end
/// nobody heard is replaced by one that is at least as long, and by none that is shorter, should that statement be carried out last.
const WRITE_PARTS: &str = "\
    WITH parts AS (
        INSERT INTO chat_answer_parts (message_id, first_event, content, delta_lengths)
        SELECT p.message_id, p.first_event, p.content, p.delta_lengths
        FROM unnest($2::uuid[], $3::int[], $4::text[], $5::bytea[]) p (message_id, first_event, content, delta_lengths)
        JOIN chat_messages m ON m.id = p.message_id AND m.state = 'generating'
        ON CONFLICT (message_id, first_event)
        DO UPDATE SET content = excluded.content, delta_lengths = excluded.delta_lengths
        WHERE octet_length(excluded.content) > octet_length(chat_answer_parts.content)
    )
    SELECT named.id FROM unnest($1::uuid[]) named (id) LEFT JOIN chat_messages m ON m.id = named.id
    WHERE m.id IS NULL OR m.stop_requested_at IS NOT NULL";

/// An answer of the user's, with the deltas from a number on while it is being generated, and all once it is not. The part that
/// the number is in comes as a whole: it may have begun before, and have grown since somebody was told of it.
const ANSWER: &str = "\
    SELECT m.session_id, m.state, m.error_code, m.error_message, m.model, m.assistant, m.input_tokens, m.output_tokens,
        m.usage_reported, m.degraded, m.from_cache, m.queries_remaining, m.created_at, p.first_event,
        CASE WHEN m.state = 'generating' THEN p.content ELSE m.content END AS content,
        CASE WHEN m.state = 'generating' THEN p.delta_lengths ELSE m.delta_lengths END AS delta_lengths
    FROM chat_messages m JOIN chat_sessions s ON s.id = m.session_id
    LEFT JOIN LATERAL (
        SELECT min(first_event) AS first_event, string_agg(content, '' ORDER BY first_event) AS content,
            string_agg(delta_lengths, '' ORDER BY first_event) AS delta_lengths
        FROM chat_answer_parts
        WHERE message_id = m.id AND m.state = 'generating' AND first_event >= COALESCE(
            (SELECT max(first_event) FROM chat_answer_parts WHERE message_id = m.id AND first_event <= $3), $3)
    ) p ON true
    WHERE m.id = $1 AND s.user_id = $2 AND m.role = 'assistant'";

/// One row if the answer is the user's, whether or not it can still be stopped. Nobody who asks the same from now on joins
/// it.
const REQUEST_STOP: &str = "\
    WITH answer AS (
        SELECT m.id FROM chat_messages m JOIN chat_sessions s ON s.id = m.session_id
        WHERE m.id = $1 AND s.user_id = $2 AND m.role = 'assistant'
    ), asked AS (
        UPDATE chat_messages m SET stop_requested_at = $3, in_flight_key = NULL FROM answer a
        WHERE m.id = a.id AND m.state = 'generating' AND m.stop_requested_at IS NULL
    )
    SELECT id FROM answer";

/// Every statement, for a test that prepares them all against the schema.
pub const STATEMENTS: &[&str] = &[WRITE_PARTS, ANSWER, REQUEST_STOP];

/// What is known of an answer.
#[derive(Debug)]
pub(super) struct StoredAnswer {
    pub(super) session_id: ChatSessionId,
    pub(super) state: MessageState,
    pub(super) error_code: Option<String>,
    pub(super) error_message: Option<String>,
    pub(super) model: Option<String>,
    pub(super) assistant: Option<String>,
    pub(super) usage: Option<Usage>,
    pub(super) degraded: bool,
    pub(super) from_cache: bool,
    pub(super) queries_remaining: Option<u64>,
    pub(super) created_at: DateTime<Utc>,
    pub(super) deltas: Deltas,
}

/// Writes down what has arrived of some answers. Returns those of `answers` that are to be stopped.
pub(super) async fn write_parts(
    client: &Client,
    answers: &[MessageId],
    parts: &[Part],
) -> Result<Vec<MessageId>, Error> {
    let statement = client.prepare_cached(WRITE_PARTS).await?;
    let ids: Vec<_> = parts.iter().map(|(id, _)| *id).collect();
    let numbers: Vec<_> = parts.iter().map(|(_, deltas)| number(deltas.first_event)).collect();
    let contents: Vec<_> = parts.iter().map(|(_, deltas)| deltas.content.as_str()).collect();
    let lengths: Vec<_> = parts.iter().map(|(_, deltas)| deltas.lengths.as_deref().unwrap_or_default()).collect();
    let rows = client.query(&statement, &[&answers, &ids, &numbers, &contents, &lengths]).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// An answer, with what was written down of it from a delta on, and some before it; `None` if it is not the user's.
pub(super) async fn answer(
    client: &Client,
    id: MessageId,
    user: UserId,
    from: u64,
) -> Result<Option<StoredAnswer>, Error> {
    let statement = client.prepare_cached(ANSWER).await?;
    let Some(row) = client.query_opt(&statement, &[&id, &user, &number(from)]).await? else { return Ok(None) };
    let first_event: Option<i32> = row.try_get("first_event")?;
    let content: Option<String> = row.try_get("content")?;
    let deltas = Deltas {
        first_event: first_event.and_then(|number| u64::try_from(number).ok()).unwrap_or(1),
        content: content.unwrap_or_default(),
        lengths: row.try_get("delta_lengths")?,
    };
    Ok(Some(StoredAnswer {
        session_id: row.try_get("session_id")?,
        state: state(row.try_get("state")?),
        error_code: row.try_get("error_code")?,
        error_message: row.try_get("error_message")?,
        model: row.try_get("model")?,
        assistant: row.try_get("assistant")?,
        usage: usage(&row)?,
        degraded: row.try_get("degraded")?,
        from_cache: row.try_get("from_cache")?,
        queries_remaining: row
            .try_get::<_, Option<i64>>("queries_remaining")?
            .and_then(|count| u64::try_from(count).ok()),
        created_at: row.try_get("created_at")?,
        deltas,
    }))
}

/// Notes that an answer is to be stopped, if it can be. `false` if it is not the user's.
pub(super) async fn request_stop(
    client: &Client,
    id: MessageId,
    user: UserId,
    now: DateTime<Utc>,
) -> Result<bool, Error> {
    let statement = client.prepare_cached(REQUEST_STOP).await?;
    Ok(client.query_opt(&statement, &[&id, &user, &now]).await?.is_some())
}

/// An answer has far fewer events than there are numbers.
fn number(event: u64) -> i32 {
    i32::try_from(event).unwrap_or(i32::MAX)
}
