//! SQL of feedback.

use chrono::{DateTime, Utc};
use tokio_postgres::{Error, Row};

use super::RatedAnswer;
use crate::api::tenant::{MessageFeedback, Rating};
use crate::ids::{MessageId, UserId};
use crate::tenant_db::{Client, GenericClient as _};

/// No row if there is no such answer of the user's.
const PUT: &str = "\
    INSERT INTO message_feedback (message_id, rating, comment, created_at, updated_at)
    SELECT m.id, $3, $4, $5, $5 FROM chat_messages m JOIN chat_sessions s ON s.id = m.session_id
    WHERE m.id = $1 AND s.user_id = $2 AND m.role = 'assistant'
    ON CONFLICT (message_id) DO UPDATE
    SET rating = EXCLUDED.rating, comment = EXCLUDED.comment, updated_at = EXCLUDED.updated_at";

/// One row if there is such an answer of the user's, whether or not there was feedback.
const DELETE: &str = "\
    WITH answer AS (
        SELECT m.id FROM chat_messages m JOIN chat_sessions s ON s.id = m.session_id
        WHERE m.id = $1 AND s.user_id = $2 AND m.role = 'assistant'
    ), gone AS (
        DELETE FROM message_feedback f USING answer a WHERE f.message_id = a.id
    )
    SELECT FROM answer";

/// Of both texts the beginning: enough to see what it was about. Messages' ids are in the order in which they were said.
const LIST: &str = "\
    SELECT f.message_id, f.rating, f.comment, f.updated_at, m.model, left(m.content, 300) AS answer, (
        SELECT left(q.content, 300) FROM chat_messages q
        WHERE q.session_id = m.session_id AND q.role = 'user' AND q.id < m.id ORDER BY q.id DESC LIMIT 1
    ) AS question
    FROM message_feedback f JOIN chat_messages m ON m.id = f.message_id
    WHERE ($1::uuid IS NULL OR f.message_id < $1) AND ($2::text IS NULL OR f.rating = $2)
    ORDER BY f.message_id DESC LIMIT $3";

/// Every statement, for a test that prepares them all against the schema.
pub const STATEMENTS: &[&str] = &[PUT, DELETE, LIST];

/// Stores feedback. `false` if there is no such answer of the user's.
pub(super) async fn put(
    client: &Client,
    message: MessageId,
    user: UserId,
    feedback: &MessageFeedback,
    now: DateTime<Utc>,
) -> Result<bool, Error> {
    let statement = client.prepare_cached(PUT).await?;
    let rating = rating_name(feedback.rating);
    Ok(client.execute(&statement, &[&message, &user, &rating, &feedback.comment, &now]).await? == 1)
}

/// Deletes it. `false` if there is no such answer of the user's.
pub(super) async fn delete(client: &Client, message: MessageId, user: UserId) -> Result<bool, Error> {
    let statement = client.prepare_cached(DELETE).await?;
    Ok(client.query_opt(&statement, &[&message, &user]).await?.is_some())
}

/// Feedback with what it is about, the newest answer first.
pub(super) async fn list(
    client: &Client,
    rating: Option<Rating>,
    before: Option<MessageId>,
    limit: i64,
) -> Result<Vec<RatedAnswer>, Error> {
    let statement = client.prepare_cached(LIST).await?;
    let rows = client.query(&statement, &[&before, &rating.map(rating_name), &limit]).await?;
    let mut answers = Vec::with_capacity(rows.len());
    for row in &rows {
        let Some(feedback) = read(row)? else { continue };
        answers.push(RatedAnswer {
            message_id: row.try_get("message_id")?,
            feedback,
            question: row.try_get("question")?,
            answer: row.try_get("answer")?,
            model: row.try_get("model")?,
            updated_at: row.try_get("updated_at")?,
        });
    }
    Ok(answers)
}

/// The feedback of a row that joins it, if there is any.
pub(in crate::chat) fn read(row: &Row) -> Result<Option<MessageFeedback>, Error> {
    let rating = match row.try_get::<_, Option<&str>>("rating")? {
        None => return Ok(None),
        Some("up") => Rating::Up,
        // The table allows no other word.
        Some(_) => Rating::Down,
    };
    Ok(Some(MessageFeedback { rating, comment: row.try_get("comment")? }))
}

fn rating_name(rating: Rating) -> &'static str {
    match rating {
        Rating::Up => "up",
        Rating::Down => "down",
    }
}
