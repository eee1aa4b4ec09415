//! What users think of the answers they were given: a thumb, and perhaps a few words. One for each answer; another one
//! takes its place.

pub mod tenant_store;

use chrono::{DateTime, Utc};

use super::{Chat, ChatError};
use crate::access::TenantCaller;
use crate::api::tenant::{MessageFeedback, Rating};
use crate::ids::MessageId;

/// What a user thought of an answer, for those who look after the answers. Whose it is stays out of it.
#[derive(Debug, Clone)]
pub struct RatedAnswer {
    /// The answer.
    pub message_id: MessageId,
    /// What its user thought of it.
    pub feedback: MessageFeedback,
    /// The beginning of the question.
    pub question: Option<String>,
    /// The beginning of the answer.
    pub answer: String,
    /// The model that answered.
    pub model: Option<String>,
    /// When it was last said.
    pub updated_at: DateTime<Utc>,
}

impl Chat {
    /// At most `limit` of the answers that users have said something of, before one, the newest answer first; only those
    /// with this rating if one is given.
    ///
    /// # Errors
    /// If the tenant's database fails.
    pub async fn rated_answers(
        &self,
        caller: &TenantCaller,
        rating: Option<Rating>,
        before: Option<MessageId>,
        limit: usize,
    ) -> Result<Vec<RatedAnswer>, ChatError> {
        let client = caller.db.client().await?;
        Ok(tenant_store::list(&client, rating, before, i64::try_from(limit).unwrap_or(i64::MAX)).await?)
    }

    /// Stores what the caller thinks of one of its answers.
    ///
    /// # Errors
    /// [`ChatError::AnswerNotFound`] if the answer is not the caller's, or a failure.
    pub async fn rate(
        &self,
        caller: &TenantCaller,
        message: MessageId,
        feedback: &MessageFeedback,
    ) -> Result<(), ChatError> {
        let client = caller.db.client().await?;
        let stored = tenant_store::put(&client, message, caller.user_id, feedback, self.clock.now()).await?;
        if stored { Ok(()) } else { Err(ChatError::AnswerNotFound) }
    }

    /// Takes it back. There may be none.
    ///
    /// # Errors
    /// [`ChatError::AnswerNotFound`] if the answer is not the caller's, or a failure.
    pub async fn unrate(&self, caller: &TenantCaller, message: MessageId) -> Result<(), ChatError> {
        let client = caller.db.client().await?;
        let there = tenant_store::delete(&client, message, caller.user_id).await?;
        if there { Ok(()) } else { Err(ChatError::AnswerNotFound) }
    }
}
