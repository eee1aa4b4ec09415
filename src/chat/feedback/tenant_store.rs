//! SQL of feedback.

use chrono::{DateTime, Utc};
use tokio_postgres::{Error, Row};

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

/// Every statement, for a test that prepares them all against the schema.
pub const STATEMENTS: &[&str] = &[PUT, DELETE];

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
