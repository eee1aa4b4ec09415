//! SQL of conversations and messages.

use chrono::{DateTime, Utc};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row};
use uuid::Uuid;

use super::conversations::{Conversation, Message};
use super::duplicates::QuestionKey;
use super::feedback::tenant_store as feedback_store;
use super::images::tenant_store::{NewImages, insert_images, list_images};
use super::prompt::Spoken;
use super::turn::{Begin, Finished};
use crate::access::{ACTIVE_USER, TenantCaller};
use crate::api::tenant::{MessageRole, MessageState, Usage};
use crate::ids::{ChatSessionId, MessageId, UserId};
use crate::metering::{End, EndedCall, OpenCall};
use crate::tenant_db::{Client, GenericClient as _, Transaction};

/// No row if the conversation is not the user's; one without a message if it is and nothing in it can be shown to a
/// model. How far back it goes is read from the settings here, so that they need not be known before. Each row also has the
/// assistant of the last answer, whatever became of that, and its message's id if images came with it.
const HISTORY: &str = "\
    SELECT m.role, m.content, a.assistant, CASE WHEN m.image_count > 0 THEN m.id END
    FROM chat_sessions s LEFT JOIN LATERAL (
        SELECT id, role, content, image_count FROM chat_messages
        WHERE session_id = s.id AND state IN ('complete', 'interrupted', 'stopped') AND content <> ''
            AND NOT degraded
        ORDER BY id DESC
        LIMIT (SELECT (settings->>'history_length')::int FROM live_configurations ORDER BY version DESC LIMIT 1)
    ) m ON true LEFT JOIN LATERAL (
        SELECT assistant FROM chat_messages WHERE session_id = s.id AND role = 'assistant' ORDER BY id DESC LIMIT 1
    ) a ON true
    WHERE s.id = $1 AND s.user_id = $2 ORDER BY m.id";

/// A conversation with its first question, the row of the answer and that of the model's call, if there is one: one
/// statement, one round trip, one commit. All of it follows from the answer's row, which is not inserted if the same
/// question is being answered already: that row's key says so. (References are checked at a statement's end.) What a question
/// with images has more comes behind.
macro_rules! begin_conversation {
    ($columns:literal, $values:literal, $($images:tt)+) => {
        concat!(
            "WITH answer AS (
        INSERT INTO chat_messages (id, session_id, role, content, state, model, queries_remaining, created_at,
            in_flight_key, assistant)
        VALUES ($7, $1, 'assistant', '', 'generating', $8, $16, $4, $17, $18)
        ON CONFLICT (in_flight_key) WHERE state = 'generating' DO NOTHING RETURNING session_id
    ), session AS (
        INSERT INTO chat_sessions (id, user_id, title, created_at, updated_at)
        SELECT session_id, $2, $3, $4, $4 FROM answer
    ), call AS (
        INSERT INTO model_calls (id, kind, user_id, message_id, server_id, provider, configuration, model,
            upstream_model, billed_to, state, input_tokens, started_at)
        SELECT $9::uuid, 'chat', $2, $7, $10, $11, $12, $8, $13, $14, 'started', $15, $4
        FROM answer WHERE $9::uuid IS NOT NULL
    ), question AS (
        INSERT INTO chat_messages (id, session_id, role, content, state, created_at",
            $columns,
            ")
        SELECT $5, session_id, 'user', $6, 'complete', $4",
            $values,
            " FROM answer
    )",
            $($images)+,
            " SELECT true, EXISTS (SELECT FROM answer)"
        )
    };
}

/// The same in a conversation that is there. Inserts nothing if it was deleted meanwhile.
macro_rules! continue_conversation {
    ($columns:literal, $values:literal, $($images:tt)+) => {
        concat!(
            "WITH session AS (
        UPDATE chat_sessions SET updated_at = GREATEST(updated_at, $3) WHERE id = $1 AND user_id = $2 RETURNING id
    ), answer AS (
        INSERT INTO chat_messages (id, session_id, role, content, state, model, queries_remaining, created_at,
            in_flight_key, assistant)
        SELECT $6, id, 'assistant', '', 'generating', $7, $15, $3, $16, $17 FROM session
        ON CONFLICT (in_flight_key) WHERE state = 'generating' DO NOTHING RETURNING session_id
    ), call AS (
        INSERT INTO model_calls (id, kind, user_id, message_id, server_id, provider, configuration, model,
            upstream_model, billed_to, state, input_tokens, started_at)
        SELECT $8::uuid, 'chat', $2, $6, $9, $10, $11, $7, $12, $13, 'started', $14, $3
        FROM answer WHERE $8::uuid IS NOT NULL
    ), question AS (
        INSERT INTO chat_messages (id, session_id, role, content, state, created_at",
            $columns,
            ")
        SELECT $4, session_id, 'user', $5, 'complete', $3",
            $values,
            " FROM answer
    )",
            $($images)+,
            " SELECT EXISTS (SELECT FROM session), EXISTS (SELECT FROM answer)"
        )
    };
}

const BEGIN_CONVERSATION: &str = begin_conversation!("", "", "");
const BEGIN_WITH_IMAGES: &str =
    begin_conversation!(", image_count", ", $19::smallint", ", ", insert_images!("$5", "answer", "$20", "$21", "$22"));
const CONTINUE_CONVERSATION: &str = continue_conversation!("", "", "");
const CONTINUE_WITH_IMAGES: &str = continue_conversation!(
    ", image_count",
    ", $18::smallint",
    ", ",
    insert_images!("$4", "answer", "$19", "$20", "$21")
);

/// The user's answer that another server is giving a question. That a row says so is not enough, for its server may have died,
/// or have given it up: somebody has to have an open call for it. Only an answer that no model was there to give has none, and
/// is over in a moment. The key of a row that is nobody's work is taken away, so that the next question takes its place.
const IN_FLIGHT: &str = "\
    WITH found AS (
        SELECT m.id,
            m.created_at > $3 AND (
                EXISTS (
                    SELECT FROM model_calls c
                    WHERE c.message_id = m.id AND c.state = 'started' AND c.server_id <> $5
                        AND (c.started_at > $4 OR c.server_id = ANY ($6) OR $6::uuid[] IS NULL)
                ) OR m.created_at > $4 AND NOT EXISTS (
                    SELECT FROM model_calls c
                    WHERE c.message_id = m.id AND c.started_at BETWEEN m.created_at AND m.created_at + interval '10 minutes'
                )
            ) AS is_alive
        FROM chat_messages m JOIN chat_sessions s ON s.id = m.session_id
        WHERE m.in_flight_key = $1 AND m.state = 'generating' AND s.user_id = $2
    ), freed AS (
        UPDATE chat_messages m SET in_flight_key = NULL FROM found
        WHERE m.id = found.id AND NOT found.is_alive AND m.state = 'generating'
    )
    SELECT id FROM found WHERE is_alive";

/// Whether nobody has asked to stop an answer that is being generated. No row if its conversation was deleted.
const STILL_WANTED: &str = "\
    SELECT state <> 'generating' OR stop_requested_at IS NULL FROM chat_messages WHERE id = $1";

/// The end of an answer. What differs comes behind the call.
macro_rules! finish {
    ($more:literal) => {
        concat!(
            "WITH call AS (
                UPDATE model_calls
                SET state = $12, error_code = $13, input_tokens = $14, output_tokens = $15, cached_input_tokens = $16,
                    usage_reported = $17, cost_micros = $18, currency = $19, first_token_ms = $20, latency_ms = $21,
                    settled_at = $9
                WHERE id = $11
            )",
            $more,
            "UPDATE chat_messages
            SET content = $2, state = $3, error_code = $4, input_tokens = $5, output_tokens = $6, usage_reported = $7,
                latency_ms = $8, finished_at = $9, degraded = $10, delta_lengths = $22, error_message = $23,
                in_flight_key = NULL
            WHERE id = $1"
        )
    };
}

/// The end of an answer and of the call that gave it, if there was one. Repeating it changes nothing, so it may be tried
/// again when nobody knows whether it was carried out. Both are found by their keys, so it costs the same in any table.
const FINISH: &str = finish!(" ");

/// The same for an answer that was written down in parts, which nobody needs any more.
const FINISH_PARTED: &str = finish!(", parts AS (DELETE FROM chat_answer_parts WHERE message_id = $1) ");

/// Answers that are said to be generated, without a call of a model that somebody may still make: their call was settled
/// without them, or there was none. Answers with an open call are found by that.
const ORPHANED: &str = "\
    SELECT m.id FROM chat_messages m
    WHERE m.state = 'generating' AND m.created_at < $1
        AND NOT EXISTS (SELECT FROM model_calls c WHERE c.message_id = m.id AND c.state = 'started')
    ORDER BY m.created_at LIMIT $2";

/// Answers whose server died keep what was written down of them. Whoever is just storing one is not waited for.
const INTERRUPT_MESSAGES: &str = "\
    WITH abandoned AS (
        SELECT id FROM chat_messages WHERE id = ANY ($1) AND state = 'generating' FOR UPDATE SKIP LOCKED
    ), kept AS (
        SELECT p.message_id, string_agg(p.content, '' ORDER BY p.first_event) AS content,
            string_agg(p.delta_lengths, '' ORDER BY p.first_event) AS delta_lengths
        FROM chat_answer_parts p JOIN abandoned a ON a.id = p.message_id GROUP BY p.message_id
    ), parts AS (
        DELETE FROM chat_answer_parts p USING abandoned a WHERE p.message_id = a.id
    )
    UPDATE chat_messages m
    SET content = COALESCE(k.content, m.content), delta_lengths = k.delta_lengths,
        state = CASE WHEN COALESCE(k.content, m.content) = '' THEN 'failed' ELSE 'interrupted' END,
        error_code = 'server_stopped', finished_at = $2, in_flight_key = NULL
    FROM abandoned a LEFT JOIN kept k ON k.message_id = a.id WHERE m.id = a.id
    RETURNING m.id, char_length(m.content)";

const LIST_CONVERSATIONS: &str = "\
    SELECT id, title, created_at, updated_at FROM chat_sessions
    WHERE user_id = $1 AND ($2::uuid IS NULL OR id < $2) ORDER BY id DESC LIMIT $3";

/// No row if the conversation is not the user's; one without a message if there are no more.
const LIST_MESSAGES: &str = "\
    SELECT m.id, m.role, m.content, m.state, m.error_code, m.model, m.assistant, m.input_tokens, m.output_tokens,
        m.usage_reported, m.degraded, m.from_cache, m.created_at, m.image_count, f.rating, f.comment
    FROM chat_sessions s LEFT JOIN LATERAL (
        SELECT * FROM chat_messages WHERE session_id = s.id AND ($3::uuid IS NULL OR id > $3) ORDER BY id LIMIT $4
    ) m ON true LEFT JOIN message_feedback f ON f.message_id = m.id
    WHERE s.id = $1 AND s.user_id = $2 ORDER BY m.id";

const DELETE_CONVERSATION: &str = "DELETE FROM chat_sessions WHERE id = $1 AND user_id = $2";

/// Every statement, for a test that prepares them all against the schema.
pub const STATEMENTS: &[&str] = &[
    HISTORY,
    BEGIN_CONVERSATION,
    BEGIN_WITH_IMAGES,
    CONTINUE_CONVERSATION,
    CONTINUE_WITH_IMAGES,
    IN_FLIGHT,
    STILL_WANTED,
    FINISH,
    FINISH_PARTED,
    ORPHANED,
    INTERRUPT_MESSAGES,
    LIST_CONVERSATIONS,
    LIST_MESSAGES,
    DELETE_CONVERSATION,
];

/// Whether the caller is enabled and signed in.
pub(super) async fn is_active(client: &Client, caller: &TenantCaller) -> Result<bool, Error> {
    let statement = client.prepare_cached(ACTIVE_USER).await?;
    Ok(client.query_opt(&statement, &[&caller.user_id, &caller.family_id]).await?.is_some())
}

/// What is known of a conversation before it goes on.
#[derive(Debug, Default)]
pub(super) struct History {
    /// What was said last, oldest first.
    pub(super) spoken: Vec<Spoken>,
    /// The assistant of the last answer.
    pub(super) assistant: Option<String>,
}

/// A conversation; `None` if it is not the user's.
pub(super) async fn history(client: &Client, session: ChatSessionId, user: UserId) -> Result<Option<History>, Error> {
    let statement = client.prepare_cached(HISTORY).await?;
    let rows = client.query(&statement, &[&session, &user]).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let assistant = first.try_get(2)?;
    let mut spoken = Vec::with_capacity(rows.len());
    for row in rows {
        if let Some(who) = row.try_get::<_, Option<&str>>(0)? {
            let with_images = row.try_get(3)?;
            spoken.push(Spoken { role: role(who), content: row.try_get(1)?, with_images, images: Vec::new() });
        }
    }
    Ok(Some(History { spoken, assistant }))
}

/// Whether a question was stored.
pub(super) enum Begun {
    /// It was.
    Stored,
    /// The conversation is not the user's any more.
    NoConversation,
    /// The same one is being answered. Nothing was stored.
    Duplicate,
}

/// Stores a question, the row of its answer and that of the call, unless an answer with the same key is being generated.
pub(super) async fn begin(
    client: &Client,
    turn: &Begin,
    key: Option<&QuestionKey>,
    call: Option<&OpenCall>,
) -> Result<Begun, Error> {
    let key = key.map(QuestionKey::as_bytes);
    let target = call.map(|call| &call.start().target);
    let call_id = call.map(OpenCall::id);
    let server = call.map(OpenCall::server_id);
    let provider = target.map(|target| target.provider);
    let configuration = target.map(|target| &*target.configuration);
    let upstream_model = target.map(|target| &*target.upstream_model);
    let billed_to = target.map(|target| target.billed_to.as_str());
    let estimate = call.map(OpenCall::estimated_input);
    let remaining = turn.queries_remaining.map(|count| i64::try_from(count).unwrap_or(i64::MAX));
    let images = NewImages::of(turn);
    let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&turn.session_id, &turn.user_id];
    parameters.extend(turn.new_title.as_ref().map(|title| title as &(dyn ToSql + Sync)));
    parameters.extend([
        &turn.now as &(dyn ToSql + Sync),
        &turn.question_id,
        &turn.question,
        &turn.answer_id,
        &turn.model,
        &call_id,
        &server,
        &provider,
        &configuration,
        &upstream_model,
        &billed_to,
        &estimate,
        &remaining,
        &key,
        &turn.assistant,
    ]);
    parameters.extend(images.iter().flat_map(NewImages::parameters));
    let statement = match (&turn.new_title, &images) {
        (Some(_), None) => BEGIN_CONVERSATION,
        (Some(_), Some(_)) => BEGIN_WITH_IMAGES,
        (None, None) => CONTINUE_CONVERSATION,
        (None, Some(_)) => CONTINUE_WITH_IMAGES,
    };
    let statement = client.prepare_cached(statement).await?;
    let row = client.query_one(&statement, &parameters).await?;
    Ok(match (row.try_get(0)?, row.try_get(1)?) {
        (_, true) => Begun::Stored,
        (true, false) => Begun::Duplicate,
        (false, false) => Begun::NoConversation,
    })
}

/// By what an answer that is said to be generated is known to be another server's work.
pub(super) struct Work<'a> {
    /// One that was begun before is nobody's.
    pub(super) after: DateTime<Utc>,
    /// One that was begun later may be that of a server of which nobody has heard yet.
    pub(super) young: DateTime<Utc>,
    /// The server that asks. It knows its own answers.
    pub(super) me: Uuid,
    /// The other servers that run, if that is known.
    pub(super) others: Option<&'a [Uuid]>,
}

/// The user's answer that another server is giving a question, if there is one. What is said to be one and is nobody's work
/// is in no question's way any more.
pub(super) async fn in_flight(
    client: &Client,
    key: &QuestionKey,
    user: UserId,
    work: &Work<'_>,
) -> Result<Option<MessageId>, Error> {
    let statement = client.prepare_cached(IN_FLIGHT).await?;
    let Work { after, young, me, others } = work;
    let row = client.query_opt(&statement, &[&key.as_bytes(), &user, after, young, me, others]).await?;
    row.map(|row| row.try_get(0)).transpose()
}

/// Whether an answer is there, and its user has not stopped it.
pub(super) async fn is_still_wanted(client: &Client, id: MessageId) -> Result<bool, Error> {
    let statement = client.prepare_cached(STILL_WANTED).await?;
    let row = client.query_opt(&statement, &[&id]).await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?.unwrap_or_default())
}

/// Stores the end of an answer and of its call. `false` if its row is not there any more.
pub(super) async fn finish(client: &Client, answer: &Finished, now: DateTime<Utc>) -> Result<bool, Error> {
    let statement = client.prepare_cached(if answer.parted { FINISH_PARTED } else { FINISH }).await?;
    let end = answer.call.as_ref().map(EndedCall::end);
    let tokens = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    let updated = client
        .execute(
            &statement,
            &[
                &answer.message_id,
                &answer.content,
                &state_name(answer.state),
                &answer.error_code,
                &answer.usage.map(|usage| tokens(usage.input_tokens)),
                &answer.usage.map(|usage| tokens(usage.output_tokens)),
                &answer.usage.map(|usage| usage.reported),
                &i32::try_from(answer.latency.as_millis()).unwrap_or(i32::MAX),
                &now,
                &answer.degraded,
                &answer.call.as_ref().map(EndedCall::id),
                &end.map(|end| end.state.as_str()),
                &end.and_then(|end| end.error_code),
                &end.and_then(End::input_tokens),
                &end.and_then(End::output_tokens),
                &end.and_then(End::cached_input_tokens),
                &end.and_then(End::usage_reported),
                &end.and_then(|end| end.cost_micros),
                &end.and_then(|end| end.currency.as_deref()),
                &end.and_then(|end| end.first_token_ms),
                &end.map(|end| end.latency_ms),
                &answer.delta_lengths,
                &answer.error_message,
            ],
        )
        .await?;
    Ok(updated == 1)
}

/// At most `limit` answers that were begun before a moment, are said to be generated, and have no open call.
pub(super) async fn orphaned(
    transaction: &Transaction<'_>,
    before: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<MessageId>, Error> {
    let statement = transaction.prepare_cached(ORPHANED).await?;
    transaction.query(&statement, &[&before, &limit]).await?.iter().map(|row| row.try_get(0)).collect()
}

/// Marks answers whose server died. Returns those that were still being generated, with how many characters are kept.
pub(super) async fn interrupt_messages(
    transaction: &Transaction<'_>,
    messages: &[MessageId],
    now: DateTime<Utc>,
) -> Result<Vec<(MessageId, usize)>, Error> {
    let statement = transaction.prepare_cached(INTERRUPT_MESSAGES).await?;
    let rows = transaction.query(&statement, &[&messages, &now]).await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, usize::try_from(row.try_get::<_, i32>(1)?).unwrap_or_default())))
        .collect()
}

/// A user's conversations, newest first.
pub(super) async fn list_conversations(
    client: &Client,
    user: UserId,
    before: Option<ChatSessionId>,
    limit: i64,
) -> Result<Vec<Conversation>, Error> {
    let statement = client.prepare_cached(LIST_CONVERSATIONS).await?;
    let rows = client.query(&statement, &[&user, &before, &limit]).await?;
    rows.iter()
        .map(|row| {
            Ok(Conversation {
                id: row.try_get("id")?,
                title: row.try_get("title")?,
                created_at: row.try_get("created_at")?,
                updated_at: row.try_get("updated_at")?,
            })
        })
        .collect()
}

/// A conversation's messages, oldest first; `None` if it is not the user's.
pub(super) async fn list_messages(
    client: &Client,
    session: ChatSessionId,
    user: UserId,
    after: Option<MessageId>,
    limit: i64,
) -> Result<Option<Vec<Message>>, Error> {
    let statement = client.prepare_cached(LIST_MESSAGES).await?;
    let rows = client.query(&statement, &[&session, &user, &after, &limit]).await?;
    if rows.is_empty() {
        return Ok(None);
    }
    let mut messages = Vec::with_capacity(rows.len());
    let mut with_images = Vec::new();
    for row in rows {
        let Some(id) = row.try_get("id")? else { continue };
        if row.try_get::<_, Option<i16>>("image_count")?.is_some_and(|count| count > 0) {
            with_images.push(id);
        }
        messages.push(Message {
            id,
            role: role(row.try_get("role")?),
            content: row.try_get("content")?,
            state: state(row.try_get("state")?),
            error_code: row.try_get("error_code")?,
            model: row.try_get("model")?,
            assistant: row.try_get("assistant")?,
            usage: usage(&row)?,
            degraded: row.try_get::<_, Option<bool>>("degraded")?.unwrap_or_default(),
            from_cache: row.try_get::<_, Option<bool>>("from_cache")?.unwrap_or_default(),
            created_at: row.try_get("created_at")?,
            feedback: feedback_store::read(&row)?,
            images: Vec::new(),
        });
    }
    if !with_images.is_empty() {
        let mut images = list_images(client, &with_images).await?;
        for message in &mut messages {
            message.images = images.remove(&message.id).unwrap_or_default();
        }
    }
    Ok(Some(messages))
}

/// What an answer cost, from a row that has it.
pub(super) fn usage(row: &Row) -> Result<Option<Usage>, Error> {
    let tokens = |column| Ok::<_, Error>(row.try_get::<_, Option<i32>>(column)?.and_then(|n| u32::try_from(n).ok()));
    Ok(match (tokens("input_tokens")?, tokens("output_tokens")?, row.try_get("usage_reported")?) {
        (Some(input_tokens), Some(output_tokens), Some(reported)) => {
            Some(Usage { input_tokens, output_tokens, reported })
        }
        _ => None,
    })
}

/// Deletes a conversation and all that was said in it. `false` if it is not the user's.
pub(super) async fn delete_conversation(client: &Client, session: ChatSessionId, user: UserId) -> Result<bool, Error> {
    let statement = client.prepare_cached(DELETE_CONVERSATION).await?;
    Ok(client.execute(&statement, &[&session, &user]).await? == 1)
}

/// The table allows no other words than these, here and below.
fn role(name: &str) -> MessageRole {
    if name == "user" { MessageRole::User } else { MessageRole::Assistant }
}

pub(super) fn state(name: &str) -> MessageState {
    match name {
        "complete" => MessageState::Complete,
        "generating" => MessageState::Generating,
        "interrupted" => MessageState::Interrupted,
        "stopped" => MessageState::Stopped,
        _ => MessageState::Failed,
    }
}

fn state_name(state: MessageState) -> &'static str {
    match state {
        MessageState::Complete => "complete",
        MessageState::Generating => "generating",
        MessageState::Interrupted => "interrupted",
        MessageState::Failed => "failed",
        MessageState::Stopped => "stopped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_as_they_are_written() {
        for known in [
            MessageState::Complete,
            MessageState::Generating,
            MessageState::Interrupted,
            MessageState::Failed,
            MessageState::Stopped,
        ] {
            assert_eq!(state(state_name(known)), known);
        }
    }
}
